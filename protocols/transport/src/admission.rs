//! Admission: both sides of a connection show their credentials before there is a multiplexer.
//!
//! It stands between the proof of the key and everything that speaks a protocol, so a stranger never reaches yamux,
//! identify or gossip. [`Admission`] is also what remembers who was admitted as what: the gate of the swarm closes the
//! connections of those that are members no more, and protocols ask it for roles.

use std::{
    collections::{BTreeMap, HashMap},
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use damselfly_messages::{
    config::Configuration,
    id::ClusterId,
    membership::{
        Admitted, CREDENTIAL_BYTES_MAX, Issuer, Refused, Role, Roles, Roots, SignedCredential, Standing, Tags, Trust,
    },
    record::UnixMillis,
    wire::{Invalid, Wire as _},
};
use futures::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use libp2p::PeerId;
use tokio::sync::watch;

use crate::{
    clock::{Clock, Signed},
    frame::{self, FrameError},
};

/// Both credentials and both verdicts must have passed by then.
const WITHIN: Duration = Duration::from_secs(4);
/// Longest verdict: a byte, and a reason for people.
const VERDICT_BYTES_MAX: usize = 1024;
/// A verdict that admits.
const ADMITTED: &[u8] = &[1];
/// The first byte of a verdict that does not.
const REFUSED: u8 = 0;
/// What refusals by others are counted as.
const REFUSED_BY_PEER: &str = "refused_by_peer";
/// An admitted peer that is not connected is remembered so long: its connection may just be under way.
const REMEMBERED: Duration = Duration::from_secs(60);

/// Why a connection was not admitted.
#[derive(Debug, thiserror::Error)]
pub enum NotAdmitted {
    /// This host refuses the peer.
    #[error("not admitted: {0}")]
    Refused(#[from] Refused),
    /// The peer refuses this host.
    #[error("refused by the other side: {reason}")]
    RefusedByPeer {
        /// What it says.
        reason: String,
    },
    /// It did not show and judge in time.
    #[error("no credential within {} s", WITHIN.as_secs())]
    Timeout,
    /// The connection failed, or what came was too long.
    #[error("connection failed during admission")]
    Frame(#[from] FrameError),
}

/// Decides who is admitted, and remembers who was; cheap to clone.
#[derive(Debug, Clone)]
pub struct Admission {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    clock: Clock,
    state: Mutex<State>,
    /// Grows whenever somebody may have ceased to be a member, or this host shows another credential.
    changed: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct State {
    trust: Option<Trust>,
    own: Option<SignedCredential>,
    members: HashMap<PeerId, Member>,
    refusals: BTreeMap<&'static str, u64>,
}

#[derive(Debug)]
struct Member {
    admitted: Admitted,
    /// The time by which it was admitted, and when that was by the monotonic clock.
    judged: (UnixMillis, Duration),
    connected: bool,
    seen: Instant,
}

impl Member {
    /// The time that it is judged by: the one by which it was admitted, and what has passed since. Whoever sets a clock
    /// while it is connected changes nothing.
    const fn time(&self, elapsed: Duration) -> UnixMillis {
        let passed = elapsed.saturating_sub(self.judged.1).as_millis() as u64;
        UnixMillis(self.judged.0.0.saturating_add(passed))
    }
}

impl Admission {
    /// A host of no cluster admits nobody.
    pub fn closed() -> Self {
        Self::closed_by(Clock::system())
    }

    /// The same, with the host's own clock.
    pub fn closed_by(clock: Clock) -> Self {
        Self { inner: Arc::new(Inner { clock, state: Mutex::default(), changed: watch::Sender::new(0) }) }
    }

    /// Admits members of `cluster`, and shows them `own`.
    pub fn new(cluster: ClusterId, own: SignedCredential) -> Self {
        Self::new_by(Clock::system(), cluster, own)
    }

    /// The same, with the host's own clock.
    pub fn new_by(clock: Clock, cluster: ClusterId, own: SignedCredential) -> Self {
        let admission = Self::closed_by(clock);
        admission.lock().trust = Some(Trust::new(cluster));
        admission.present(own);
        admission
    }

    /// The admission of a host to which `issuer` has just issued a credential for `lifetime`.
    ///
    /// # Errors
    /// [`Invalid`] when it cannot sign.
    pub fn issued(
        issuer: &Issuer,
        peer: PeerId,
        roles: impl IntoIterator<Item = Role>,
        lifetime: Duration,
    ) -> Result<Self, Invalid> {
        Self::issued_by(Clock::system(), issuer, peer, roles, lifetime)
    }

    /// The same, with the host's own clock.
    ///
    /// # Errors
    /// [`Invalid`] when it cannot sign.
    pub fn issued_by(
        clock: Clock,
        issuer: &Issuer,
        peer: PeerId,
        roles: impl IntoIterator<Item = Role>,
        lifetime: Duration,
    ) -> Result<Self, Invalid> {
        let (roles, tags) = (Roles::of(roles), Tags::new());
        let (own, _) = issuer.issue(peer, (roles, &tags), 0, (clock.now(), lifetime))?;
        Ok(Self::new_by(clock, issuer.cluster(), own))
    }

    /// The host's clock.
    pub fn clock(&self) -> &Clock {
        &self.inner.clock
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.inner.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Shows `own` from now on.
    pub fn present(&self, own: SignedCredential) {
        if let Ok(claim) = own.claim() {
            self.inner.clock.learn(Signed::Credential, claim.not_before);
        }
        self.lock().own = Some(own);
        self.inner.changed.send_modify(|changes| *changes += 1);
    }

    /// What this host shows.
    pub fn own(&self) -> Option<SignedCredential> {
        self.lock().own.clone()
    }

    /// The roots that this host accepts; `None` when it belongs to no cluster.
    pub fn roots(&self) -> Option<Roots> {
        self.lock().trust.as_ref().map(|trust| trust.roots().clone())
    }

    /// How this host itself stands.
    ///
    /// # Errors
    /// [`Refused`]: nobody admits it any more.
    pub fn own_standing(&self) -> Result<Standing, Refused> {
        let state = self.lock();
        let (Some(trust), Some(own)) = (&state.trust, &state.own) else { return Err(Refused::Missing) };
        trust.own_standing(own, self.inner.clock.now())
    }

    /// Whether this host's credential comes from the cluster's newest root, as it should sooner or later.
    pub fn own_is_newest(&self) -> bool {
        let state = self.lock();
        state.trust.iter().zip(&state.own).all(|(trust, own)| trust.is_newest(own))
    }

    /// Whether the cluster has revoked `peer`.
    pub fn is_revoked(&self, peer: &PeerId) -> bool {
        self.lock().trust.as_ref().is_some_and(|trust| trust.is_revoked(peer))
    }

    /// How often others have refused this host.
    pub fn refused_by_others(&self) -> u64 {
        self.lock().refusals.get(REFUSED_BY_PEER).copied().unwrap_or(0)
    }

    /// Takes over whom an accepted configuration revokes; those are out at once.
    pub fn follow(&self, configuration: &Configuration) {
        self.inner.clock.learn(Signed::Configuration, configuration.issued);
        if let Some(trust) = &mut self.lock().trust {
            trust.follow(configuration);
        }
        self.inner.changed.send_modify(|changes| *changes += 1);
    }

    /// Whether the peer that proved to be `peer` is a member by what it shows. If so, that is remembered.
    ///
    /// # Errors
    /// [`Refused`]
    pub fn judge(&self, peer: PeerId, shown: &SignedCredential) -> Result<Roles, Refused> {
        let clock = &self.inner.clock;
        let mut state = self.lock();
        let trust = state.trust.as_ref().ok_or(Refused::Missing)?;
        let mut now = clock.now();
        let mut admitted = trust.admit(&peer, shown, now);
        if let Err(Refused::NotYet { .. }) = admitted
            && let Some(limit) = state.own.as_ref().and_then(|own| own.claim().ok()).map(|own| own.not_after)
            && let Ok(claim) = shown.claim()
            // It is genuine, so the cluster's time is at least that.
            && clock.learn_from_peer(claim.not_before, limit)
        {
            now = clock.now();
            admitted = trust.admit(&peer, shown, now);
        }
        let admitted = admitted?;
        let roles = admitted.credential.roles;
        let connected = state.members.get(&peer).is_some_and(|member| member.connected);
        let judged = (now, clock.elapsed());
        state.members.insert(peer, Member { admitted, judged, connected, seen: Instant::now() });
        Ok(roles)
    }

    /// What a peer was admitted as; nothing when it was not.
    pub fn roles(&self, peer: &PeerId) -> Roles {
        self.lock().members.get(peer).map_or(Roles::NONE, |member| member.admitted.credential.roles)
    }

    /// The tags in the credential of a peer that is connected; none of others.
    pub fn tags(&self, peer: &PeerId) -> Tags {
        self.lock().members.get(peer).map(|member| member.admitted.credential.tags.clone()).unwrap_or_default()
    }

    /// The tags in this host's own credential.
    pub fn own_tags(&self) -> Tags {
        self.own().and_then(|own| own.claim().ok()).map(|own| own.tags).unwrap_or_default()
    }

    /// How many peers were refused, by reason; every reason there is.
    pub fn refusals(&self) -> BTreeMap<&'static str, u64> {
        let mut refusals = BTreeMap::from(LABELS.map(|reason| (reason, 0)));
        refusals.extend(&self.lock().refusals);
        refusals
    }

    /// Decides about `peer`, who has proved its key on `stream`, and has it decide about us.
    ///
    /// # Errors
    /// [`NotAdmitted`]: the stream is of no further use.
    pub(crate) async fn admit<C: AsyncRead + AsyncWrite + Unpin>(
        &self,
        peer: PeerId,
        stream: &mut C,
    ) -> Result<(), NotAdmitted> {
        let result = tokio::time::timeout(WITHIN, self.meet(peer, stream)).await.unwrap_or(Err(NotAdmitted::Timeout));
        if let Err(error) = &result {
            *self.lock().refusals.entry(label(error)).or_default() += 1;
        }
        result
    }

    async fn meet<C: AsyncRead + AsyncWrite + Unpin>(&self, peer: PeerId, stream: &mut C) -> Result<(), NotAdmitted> {
        let own = self.own().map(|own| own.to_bytes()).unwrap_or_default();
        frame::write(stream, &own, CREDENTIAL_BYTES_MAX).await?;
        stream.flush().await.map_err(FrameError::from)?;
        let shown = frame::read(stream, CREDENTIAL_BYTES_MAX).await?.ok_or(FrameError::Truncated)?;
        let judged = match shown.is_empty() {
            true => Err(Refused::Missing),
            false => SignedCredential::from_bytes(&shown).map_err(Refused::from),
        };
        let judged = judged.and_then(|shown| self.judge(peer, &shown));
        let verdict = match &judged {
            Ok(_) => ADMITTED.to_vec(),
            Err(refused) => [&[REFUSED], refused.to_string().as_bytes()].concat(),
        };
        let sent = async {
            frame::write(stream, &verdict[..verdict.len().min(VERDICT_BYTES_MAX)], VERDICT_BYTES_MAX).await?;
            Ok::<_, FrameError>(stream.flush().await?)
        };
        let sent = sent.await;
        // Also after a refusal, of either side: who closes before the other has read takes the reason away.
        let verdict = frame::read(stream, VERDICT_BYTES_MAX).await;
        judged?;
        let verdict = match (verdict, sent) {
            (Ok(verdict), _) => verdict.ok_or(FrameError::Truncated)?,
            (Err(_), Err(error)) | (Err(error), Ok(())) => return Err(error.into()),
        };
        match verdict.split_first() {
            Some((first, [])) if [*first] == *ADMITTED => Ok(()),
            Some((_, reason)) => {
                let reason = String::from_utf8_lossy(reason).chars().filter(|char| !char.is_control()).collect();
                Err(NotAdmitted::RefusedByPeer { reason })
            }
            None => Err(FrameError::Truncated.into()),
        }
    }

    /// Whether there may be a connection with `peer`.
    ///
    /// # Errors
    /// [`Refused`]: it is no member.
    pub(crate) fn standing(&self, peer: &PeerId) -> Result<(), Refused> {
        let state = self.lock();
        let State { trust: Some(trust), members, .. } = &*state else { return Err(Refused::Missing) };
        let member = members.get(peer).ok_or(Refused::Missing)?;
        trust.standing(&member.admitted, member.time(self.inner.clock.elapsed())).map(drop)
    }

    /// Notes that there is a connection with `peer`.
    pub(crate) fn connected(&self, peer: &PeerId) {
        if let Some(member) = self.lock().members.get_mut(peer) {
            member.connected = true;
        }
    }

    /// Notes that the last connection with `peer` is closed.
    pub(crate) fn disconnected(&self, peer: &PeerId) {
        if let Some(member) = self.lock().members.get_mut(peer) {
            (member.connected, member.seen) = (false, Instant::now());
        }
    }

    /// Who is connected and is no member any more, with the reason. Forgets who left long ago.
    pub(crate) fn lapsed(&self) -> Vec<(PeerId, Refused)> {
        let mut state = self.lock();
        state.members.retain(|_, member| member.connected || member.seen.elapsed() < REMEMBERED);
        let State { trust: Some(trust), members, .. } = &*state else { return Vec::new() };
        let elapsed = self.inner.clock.elapsed();
        let connected = members.iter().filter(|(_, member)| member.connected);
        let standing = |member: &Member| trust.standing(&member.admitted, member.time(elapsed));
        connected.filter_map(|(peer, member)| Some((*peer, standing(member).err()?))).collect()
    }

    /// Tells whenever somebody may have ceased to be a member, or this host shows another credential.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.inner.changed.subscribe()
    }
}

/// What refusals are counted as: see [`label`].
const LABELS: [&str; 13] = [
    "missing",
    "not_genuine",
    "other_cluster",
    "other_peer",
    "root_retired",
    "issuer_expired",
    "issuer_revoked",
    "not_yet",
    "expired",
    "revoked",
    REFUSED_BY_PEER,
    "timeout",
    "frame",
];

/// What a refusal is counted as.
const fn label(error: &NotAdmitted) -> &'static str {
    match error {
        NotAdmitted::Refused(refused) => match refused {
            Refused::Missing => "missing",
            Refused::NotGenuine(_) => "not_genuine",
            Refused::OtherCluster(_) => "other_cluster",
            Refused::OtherPeer(_) => "other_peer",
            Refused::RootRetired => "root_retired",
            Refused::IssuerExpired => "issuer_expired",
            Refused::IssuerRevoked => "issuer_revoked",
            Refused::NotYet { .. } => "not_yet",
            Refused::Expired { .. } => "expired",
            Refused::Revoked => "revoked",
        },
        NotAdmitted::RefusedByPeer { .. } => REFUSED_BY_PEER,
        NotAdmitted::Timeout => "timeout",
        NotAdmitted::Frame(_) => "frame",
    }
}

impl From<NotAdmitted> for io::Error {
    fn from(error: NotAdmitted) -> Self {
        Self::new(io::ErrorKind::PermissionDenied, error)
    }
}
