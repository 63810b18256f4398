//! Makes hosts members, keeps them, and puts them out.

use std::{
    io,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use async_trait::async_trait;
use damselfly_messages::{
    config::{Revocation, SchedulerEntry, SignedConfiguration},
    membership::{
        Credential, Issuer, IssuerCertificate, JoinToken, Refused, Role, Roles, Secret, SignedCredential,
        TOKEN_ID_BYTES, Tags, TokenId, Trust,
        join::{Refusal, RefusalCode, RequestBody},
    },
    record::UnixMillis,
    wire::Invalid,
};
use damselfly_transport::{
    addresses::reachable,
    dialing::DialPolicy,
    join::{Asked, Authority},
    network::Network,
};
use libp2p::{Multiaddr, PeerId, identity::Keypair, multiaddr::Protocol};
use tokio::task::spawn_blocking;

use crate::{
    registry::{Member, NotLetIn, Registry, TokenRecord},
    state::{ChangeError, State},
};

/// How long the root lets a manager issue credentials; it is certified again every day.
pub const ISSUER_LIFETIME: Duration = Duration::from_secs(90 * 24 * 3600);
const CERTIFIED_EVERY: Duration = Duration::from_secs(24 * 3600);
/// A scheduler that joined is dialled for so long before it is given up.
const HEALTHY_WITHIN: Duration = Duration::from_secs(120);
const DIAL_WITHIN: Duration = Duration::from_secs(5);
const DIAL_PAUSE: Duration = Duration::from_millis(250);

/// The cluster's membership; cheap to clone.
#[derive(Clone)]
pub struct Membership {
    inner: Arc<Inner>,
}

struct Inner {
    root: Keypair,
    key: Keypair,
    issuer: Mutex<Issuer>,
    registry: Arc<Registry>,
    state: State,
    network: Network,
    policy: DialPolicy,
    /// Where this manager is joined.
    addresses: Vec<(PeerId, Multiaddr)>,
}

/// Certifies this manager's key.
///
/// # Errors
/// [`Invalid`] when the root cannot sign.
pub fn certify(root: &Keypair, key: &Keypair) -> Result<Issuer, Invalid> {
    Issuer::certify(root, key.clone(), now(), ISSUER_LIFETIME)
}

impl Membership {
    /// The membership of the cluster of `root`, which is joined at `addresses`.
    pub fn new(
        (root, key, issuer): (Keypair, Keypair, Issuer),
        registry: Registry,
        (state, network): (State, Network),
        policy: DialPolicy,
        addresses: Vec<Multiaddr>,
    ) -> Self {
        let us = key.public().to_peer_id();
        let addresses = addresses.into_iter().filter_map(|address| Some((us, address.with_p2p(us).ok()?))).collect();
        let (issuer, registry) = (Mutex::new(issuer), Arc::new(registry));
        Self { inner: Arc::new(Inner { root, key, issuer, registry, state, network, policy, addresses }) }
    }

    /// Has the root certify this manager anew every day, until the program ends.
    pub async fn keep_certified(self) {
        loop {
            tokio::time::sleep(CERTIFIED_EVERY).await;
            let Inner { root, key, issuer, network, .. } = &*self.inner;
            let renewed = certify(root, key).and_then(|certified| {
                let (roles, us) = (Roles::just(Role::Manager), key.public().to_peer_id());
                let own = certified.issue(us, (roles, &Tags::new()), 0, (now(), ISSUER_LIFETIME))?.0;
                Ok((certified, own))
            });
            match renewed {
                Ok((certified, own)) => {
                    *issuer.lock().unwrap_or_else(PoisonError::into_inner) = certified;
                    network.admission().present(own);
                    self.inner.state.follower().show_renewed().await;
                }
                Err(error) => tracing::error!(%error, "this manager is not certified anew"),
            }
        }
    }

    fn issuer(&self) -> Issuer {
        self.inner.issuer.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Tokens and members.
    pub fn registry(&self) -> &Registry {
        &self.inner.registry
    }

    /// Makes a join token. What it returns holds the secret, which is kept nowhere.
    ///
    /// # Errors
    /// [`io::Error`] when it cannot be kept.
    pub async fn make_token(
        &self,
        roles: Roles,
        tags: Tags,
        uses: u32,
        lifetime: Duration,
    ) -> io::Result<(JoinToken, TokenRecord)> {
        let now = now();
        let token = JoinToken {
            cluster: self.inner.state.cluster(),
            id: TokenId(rand::random::<[u8; TOKEN_ID_BYTES]>()),
            secret: Secret(rand::random()),
            roles,
            expires: UnixMillis(now.0.saturating_add(lifetime.as_millis() as u64)),
            managers: self.inner.addresses.clone(),
        };
        let (registry, kept) = (Arc::clone(&self.inner.registry), token.clone());
        let record = blocking(move || registry.add_token(&kept, tags, uses, now)).await?;
        Ok((token, record))
    }

    /// Takes a token back. Returns whether there is one.
    ///
    /// # Errors
    /// [`io::Error`]: it is still good.
    pub async fn withdraw(&self, id: TokenId) -> io::Result<bool> {
        let registry = Arc::clone(&self.inner.registry);
        blocking(move || registry.withdraw(id)).await
    }

    /// Who is out, by the configuration in force.
    pub fn revoked(&self) -> Vec<Revocation> {
        self.inner.state.current().map_or_else(Vec::new, |accepted| accepted.configuration.revoked.clone())
    }

    /// Puts a host out of the cluster, for good: its key is never a member again.
    ///
    /// Returns the epoch that tells everyone.
    ///
    /// # Errors
    /// [`ChangeError`]: it is still in.
    pub async fn revoke(&self, peer: PeerId, because: String) -> Result<u64, ChangeError> {
        let epoch = self.inner.state.revoke(peer).await?;
        let (registry, at) = (Arc::clone(&self.inner.registry), now());
        // It is out already; only the reason may be missing.
        let noted = blocking(move || registry.revoke(&peer, &because, at)).await;
        noted.map_err(ChangeError::Store)?;
        tracing::info!(%peer, epoch, "revoked");
        Ok(epoch)
    }

    fn lifetime(&self) -> Duration {
        let current = self.inner.state.current();
        current.map_or(Duration::ZERO, |accepted| Duration::from_millis(accepted.configuration.settings.credential_ms))
    }

    async fn join(&self, asked: Asked) -> Result<(SignedCredential, Vec<Multiaddr>, Roles), Refusal> {
        let (this, addresses) = (self.clone(), self.seen(&asked));
        let joined = spawn_blocking(move || {
            let RequestBody::Join { token, proof, role } = &asked.request.body else {
                return Err(NotLetIn::Unknown);
            };
            let proves = |verifier: &_| asked.proves(verifier, proof, *role);
            this.inner.registry.let_in((*token, asked.peer, *role), proves, now(), |roles, tags, serial| {
                let issued = this.issue(&asked, (roles, tags), serial, &addresses, None)?;
                Ok(((issued.0, addresses, roles), issued.1))
            })
        });
        joined.await.map_err(unavailable)?.map_err(|error| Refusal::new(code(&error), error.to_string()))
    }

    async fn renew(&self, asked: Asked) -> Result<SignedCredential, Refusal> {
        let RequestBody::Renew(shown) = &asked.request.body else {
            return Err(Refusal::new(RefusalCode::Malformed, "it is no renewal"));
        };
        // Whether it has expired is of no account: the key is proved, and the host is not revoked.
        let trust = Trust::new(self.inner.state.cluster());
        let at = shown.claim().map(|claim| claim.not_before);
        let credential = at.map_err(Refused::from).and_then(|at| trust.admit(&asked.peer, shown, at));
        let credential = credential.map_err(|refused| Refusal::new(RefusalCode::Malformed, refused.to_string()))?;
        let (this, addresses) = (self.clone(), self.seen(&asked));
        let renewed = spawn_blocking(move || {
            this.inner.registry.renew(asked.peer, |known, serial| {
                let roles = known.map_or(credential.roles, |known| Roles::of(known.roles.iter().copied()));
                let tags = known.map_or(&credential.tags, |known| &known.tags);
                this.issue(&asked, (roles, tags), serial, &addresses, known)
            })
        });
        renewed.await.map_err(unavailable)?.map_err(unavailable)
    }

    fn issue(
        &self,
        asked: &Asked,
        granted: (Roles, &Tags),
        serial: u64,
        addresses: &[Multiaddr],
        known: Option<&Member>,
    ) -> io::Result<(SignedCredential, Member)> {
        let issued = self.issuer().issue(asked.peer, granted, serial, (now(), self.lifetime()));
        let (signed, Credential { roles, tags, not_before, not_after, .. }) = issued.map_err(io::Error::other)?;
        let member = Member {
            roles: roles.iter().collect(),
            tags,
            addresses: addresses.to_vec(),
            version: asked.request.version.clone(),
            joined_unix_ms: known.map_or(not_before.0, |known| known.joined_unix_ms),
            renewed_unix_ms: not_before.0,
            expires_unix_ms: not_after.0,
            serial,
            revoked_unix_ms: None,
            revoked_because: None,
        };
        Ok((signed, member))
    }

    /// Where the host can be dialled.
    fn seen(&self, asked: &Asked) -> Vec<Multiaddr> {
        let observed = Multiaddr::from(asked.from.ip()).with(Protocol::Tcp(asked.from.port()));
        reachable(asked.request.addresses.clone(), Some(&observed), self.inner.policy)
    }

    /// Puts a scheduler that has joined into the ring as soon as it answers.
    async fn put_into_ring(self, peer: PeerId, addresses: Vec<Multiaddr>) {
        let healthy = async {
            while let Err(error) = self.inner.network.connect(peer, addresses.clone(), DIAL_WITHIN).await {
                tracing::debug!(%peer, %error, "the new scheduler does not answer yet");
                tokio::time::sleep(DIAL_PAUSE).await;
            }
        };
        if tokio::time::timeout(HEALTHY_WITHIN, healthy).await.is_err() {
            return tracing::warn!(%peer, ?addresses, "the scheduler that joined cannot be reached; it is not in the ring");
        }
        let entry = SchedulerEntry { peer_id: peer, addresses, weight: 1 };
        match self.inner.state.add_scheduler(entry).await {
            Ok(epoch) => tracing::info!(%peer, epoch, "the scheduler is in the ring"),
            Err(error) => tracing::error!(%peer, %error, "the scheduler is not put into the ring"),
        }
    }
}

#[async_trait]
impl Authority for Membership {
    fn certificate(&self) -> IssuerCertificate {
        self.issuer().certificate().clone()
    }

    async fn answer(&self, asked: Asked) -> Result<(SignedCredential, SignedConfiguration), Refusal> {
        let current = self.inner.state.current();
        let current = current.ok_or_else(|| Refusal::new(RefusalCode::Unavailable, "the manager is starting"))?;
        let peer = asked.peer;
        if current.configuration.revoked.iter().any(|revoked| revoked.peer == peer) {
            return Err(Refusal::new(RefusalCode::Revoked, "this host was put out of the cluster"));
        }
        let credential = match &asked.request.body {
            RequestBody::Renew(_) => self.renew(asked).await?,
            RequestBody::Join { .. } => {
                let (credential, addresses, roles) = self.join(asked).await?;
                tracing::info!(%peer, %roles, "a host has joined");
                if roles.contains(Role::Scheduler) && !current.ring.members().contains(&peer) {
                    tokio::spawn(self.clone().put_into_ring(peer, addresses));
                }
                credential
            }
        };
        Ok((credential, current.signed.clone()))
    }
}

const fn code(error: &NotLetIn) -> RefusalCode {
    match error {
        NotLetIn::Unknown => RefusalCode::Unknown,
        NotLetIn::Withdrawn => RefusalCode::Withdrawn,
        NotLetIn::Expired => RefusalCode::Expired,
        NotLetIn::UsedUp { .. } => RefusalCode::UsedUp,
        NotLetIn::Role { .. } => RefusalCode::Role,
        NotLetIn::Io(_) => RefusalCode::Unavailable,
    }
}

fn unavailable(error: impl std::error::Error) -> Refusal {
    tracing::error!(%error, "a host cannot be let in");
    Refusal::new(RefusalCode::Unavailable, "the manager cannot store it; its log says why")
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    spawn_blocking(work).await.unwrap_or_else(|error| Err(io::Error::other(error)))
}

/// Where the join listener at `port` is reached by others, if nothing is said: at the IP addresses of `listeners`.
pub fn join_addresses(ip: IpAddr, port: u16, listeners: &[Multiaddr], policy: DialPolicy) -> Vec<Multiaddr> {
    let of = |ip: Multiaddr| ip.with(Protocol::Tcp(port));
    if !ip.is_unspecified() {
        return vec![of(Multiaddr::from(ip))];
    }
    let mut addresses: Vec<_> = listeners
        .iter()
        .filter(|address| policy.allows(address))
        .filter_map(|address| match address.iter().next()? {
            Protocol::Ip4(ip) => Some(of(ip.into())),
            Protocol::Ip6(ip) => Some(of(ip.into())),
            _ => None,
        })
        .collect();
    addresses.dedup();
    addresses
}

fn now() -> UnixMillis {
    SystemTime::now().into()
}
