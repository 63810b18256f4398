//! The cluster's configuration: what it holds, how it is signed, and which one is accepted.
//!
//! [`Acceptance`] is the only place that decides whether a signed configuration is taken over.

use std::{collections::HashMap, sync::Arc};

use libp2p::PeerId;
use prost::Message as _;
use serde::{Deserialize, Serialize};

use crate::{
    id::ClusterId,
    membership::{Issuer, IssuerCertificate, Roots},
    pb,
    record::UnixMillis,
    ring::Ring,
    units,
    wire::{Invalid, Wire},
};

/// Longest signed configuration in bytes.
pub const CONFIGURATION_BYTES_MAX: usize = 512 << 10;
/// Longest configuration that is sent by gossip itself and not as a hint to pull it.
pub const GOSSIPED_BYTES_MAX: usize = 32 << 10;
/// Separates signatures of configurations from every other use of the key.
const SIGNATURE_DOMAIN: &[u8] = b"damselfly configuration v1\0";

/// Hosts that can be revoked at a time; one is forgotten when none of its credentials can hold any more.
pub const REVOKED_MAX: usize = 4096;

/// Longest lifetime of a credential, in milliseconds: that of its issuer's certificate.
const LONGEST_CREDENTIAL_MS: u64 = 90 * DAY_MS;
/// A manager keeps a revocation for this much longer than members insist on it, whose clocks may be behind.
const REVOCATION_MARGIN_MS: u64 = DAY_MS;

/// What an operator sets for the whole cluster. [`FIELDS`] says what values each may have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// How many schedulers own each task.
    pub replicas: u32,
    /// The schedulers; the active ones are the members of the hash ring.
    pub schedulers: Vec<SchedulerEntry>,
    /// Milliseconds between two heartbeats of a host. A scheduler is warm after three, 15 s at most.
    #[serde(deserialize_with = "units::milliseconds")]
    pub heartbeat_ms: u64,
    /// Milliseconds without a heartbeat after which a host is no longer a holder.
    #[serde(deserialize_with = "units::milliseconds")]
    pub lease_ms: u64,
    /// Most parents that a downloader is given.
    pub candidate_parents: u32,
    /// Parents that a downloader fetches from at a time.
    pub concurrent_parents: u32,
    /// Most bytes per second that each node sends to peers; 0 for no limit. A node's own limit counts too.
    #[serde(deserialize_with = "units::bytes_per_second")]
    pub upload_bytes_per_second: u64,
    /// The same of what it receives.
    #[serde(deserialize_with = "units::bytes_per_second")]
    pub download_bytes_per_second: u64,
    /// Milliseconds that a credential holds. It is renewed after a fourteenth of that.
    #[serde(deserialize_with = "units::milliseconds")]
    pub credential_ms: u64,
    /// Milliseconds for which members go on whose credential has expired, with an alarm.
    #[serde(deserialize_with = "units::milliseconds")]
    pub grace_ms: u64,
    /// Milliseconds for which a scheduler is out of reach before a manager takes it out of the ring; 0: it never does.
    #[serde(deserialize_with = "units::milliseconds")]
    pub dead_scheduler_ms: u64,
    /// Pieces that a host serves at a time.
    pub concurrent_uploads: u32,
    /// Pieces that a download asks of one parent at a time.
    pub concurrent_pieces: u32,
    /// Tags whose tasks are neither imported nor exported.
    pub blocked_tags: Vec<String>,
    /// Other values for hosts with certain tags, in order; later ones count.
    pub overrides: Vec<Override>,
    /// Most bytes that each node's store holds; 0 for no quota. A node's own quota counts too.
    #[serde(deserialize_with = "units::bytes")]
    pub store_quota_bytes: u64,
    /// Above so many percent of its quota a node removes copies of what it fetched, those used least lately first.
    pub store_high_percent: u32,
    /// It stops at so many percent, fewer than `store_high_percent`.
    pub store_low_percent: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            replicas: 2,
            schedulers: Vec::new(),
            heartbeat_ms: 5_000,
            lease_ms: 30_000,
            candidate_parents: 16,
            concurrent_parents: 8,
            upload_bytes_per_second: 0,
            download_bytes_per_second: 0,
            credential_ms: 14 * DAY_MS,
            grace_ms: 7 * DAY_MS,
            dead_scheduler_ms: 600_000,
            concurrent_uploads: 1024,
            concurrent_pieces: 64,
            blocked_tags: Vec::new(),
            overrides: Vec::new(),
            store_quota_bytes: 0,
            store_high_percent: 90,
            store_low_percent: 80,
        }
    }
}

impl Settings {
    /// How long after a start or an epoch change a scheduler's not knowing a task means nothing, in milliseconds.
    pub fn warm_up_ms(&self) -> u64 {
        (3 * self.heartbeat_ms).min(15_000)
    }
}

/// One version of the settings of one cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Configuration {
    /// The cluster it is for.
    pub cluster: ClusterId,
    /// Grows with every change.
    pub epoch: u64,
    /// When it was signed.
    pub issued: UnixMillis,
    /// What it says.
    pub settings: Settings,
    /// Who is out, whatever its credential says.
    pub revoked: Vec<Revocation>,
    /// Whose certificates count.
    pub roots: Roots,
}

/// A host that was put out of the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Revocation {
    /// The host.
    pub peer: PeerId,
    /// Since when.
    pub at: UnixMillis,
}

impl Revocation {
    /// Until when a credential of the host may hold that was issued before.
    fn ends(&self, settings: &Settings) -> u64 {
        let holds = settings.credential_ms.max(LONGEST_CREDENTIAL_MS).saturating_add(settings.grace_ms);
        self.at.0.saturating_add(holds)
    }

    /// Whether the next configuration after one with `settings` must still name the host, for whoever signs it at `now`.
    pub fn is_needed(&self, settings: &Settings, now: UnixMillis) -> bool {
        self.ends(settings).saturating_add(REVOCATION_MARGIN_MS) > now.0
    }

    fn to_pb(self) -> pb::Revocation {
        pb::Revocation { peer: self.peer.to_bytes(), at: self.at.0 }
    }

    fn from_pb(revocation: pb::Revocation) -> Result<Self, Invalid> {
        let peer =
            PeerId::from_bytes(&revocation.peer).map_err(|error| Invalid::new("revocation", error.to_string()))?;
        Ok(Self { peer, at: UnixMillis(revocation.at) })
    }
}

impl Configuration {
    /// The ring that follows from it: its active schedulers.
    pub fn ring(&self) -> Ring {
        let members = self.settings.active_schedulers().map(|entry| (entry.peer_id, entry.weight));
        Ring::new(members, self.settings.replicas as usize)
    }

    /// Signs it for the cluster.
    ///
    /// # Errors
    /// [`Invalid`]: a value is out of range, the whole is too long, the issuer comes from other roots, or its key cannot
    /// sign.
    pub fn sign(&self, issuer: &Issuer) -> Result<SignedConfiguration, Invalid> {
        self.settings.validate()?;
        // What no member would accept is not signed.
        if self.revoked.len() > REVOKED_MAX {
            return Err(Invalid::new("revocations", format!("{} are more than {REVOKED_MAX}", self.revoked.len())));
        }
        if !self.roots.are_of(issuer.certificate().succession())? {
            return Err(Invalid::new("roots", "they are not those of who signs"));
        }
        let settings =
            serde_json::to_vec(&self.settings).map_err(|error| Invalid::new("settings", error.to_string()))?;
        let body = pb::Configuration {
            cluster: self.cluster.digest().to_vec(),
            epoch: self.epoch,
            issued: self.issued.0,
            settings,
            revoked: self.revoked.iter().copied().map(Revocation::to_pb).collect(),
            roots: Some(self.roots.to_pb()),
        }
        .encode_to_vec();
        let signature = issuer.sign(&signed_bytes(&body))?;
        let signed = pb::SignedConfiguration { body, issuer: Some(issuer.certificate().to_pb()), signature };
        let bytes = signed.encode_to_vec();
        if bytes.len() > CONFIGURATION_BYTES_MAX {
            return Err(Invalid::new("configuration", format!("{} bytes are too many", bytes.len())));
        }
        Ok(SignedConfiguration { bytes: bytes.into(), epoch: self.epoch })
    }
}

fn signed_bytes(body: &[u8]) -> Vec<u8> {
    [SIGNATURE_DOMAIN, body].concat()
}

/// A configuration as it is passed on: opaque but for its epoch, which is a claim until [`Acceptance`] has looked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedConfiguration {
    bytes: Arc<[u8]>,
    epoch: u64,
}

impl SignedConfiguration {
    /// The epoch it claims.
    pub const fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Its bytes, to be sent and stored.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }
}

impl Wire for SignedConfiguration {
    fn to_bytes(&self) -> Vec<u8> {
        self.bytes.to_vec()
    }

    fn from_bytes(bytes: &[u8]) -> Result<Self, Invalid> {
        if bytes.len() > CONFIGURATION_BYTES_MAX {
            return Err(Invalid::new("configuration", format!("{} bytes are too many", bytes.len())));
        }
        let signed: pb::SignedConfiguration = pb::decode("configuration", bytes)?;
        let body: pb::Configuration = pb::decode("configuration", &signed.body)?;
        Ok(Self { bytes: bytes.into(), epoch: body.epoch })
    }
}

/// A configuration that was accepted, with what follows from it.
#[derive(Debug)]
pub struct Accepted {
    /// What it says.
    pub configuration: Configuration,
    /// The ring of its schedulers.
    pub ring: Ring,
    /// As it was signed, to be passed on.
    pub signed: SignedConfiguration,
}

/// Decides which signed configuration a member takes over: only its own cluster's, only by who comes from a root that it
/// accepts, never a lower epoch.
#[derive(Debug)]
pub struct Acceptance {
    roots: Roots,
    current: Option<Arc<Accepted>>,
}

/// What became of a configuration that was offered.
#[derive(Debug)]
pub enum Verdict {
    /// It is newer and is in force from now on.
    Newer(Arc<Accepted>),
    /// It is in force already.
    Known,
}

/// Why a configuration was not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigurationRefused {
    /// It cannot be read or breaks a limit.
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// It is another cluster's.
    #[error("the configuration is of cluster {0}, not of ours")]
    OtherCluster(ClusterId),
    /// Its signer does not come from the cluster's root.
    #[error("the configuration is not signed by who may: {0}")]
    OtherSigner(Invalid),
    /// Its signer did not have the right at that time.
    #[error("the configuration's signer was not certified when it was signed")]
    SignerExpired,
    /// Its signer was revoked before.
    #[error("the configuration is signed by {0}, which is revoked")]
    SignerRevoked(PeerId),
    /// It does not name a host that is revoked.
    #[error("the configuration takes back the revocation of {0}, whose credentials may still hold")]
    Unrevoked(PeerId),
    /// It takes a root back, or names others.
    #[error("the configuration's roots do not follow those that are known")]
    OtherRoots,
    /// The signature does not fit.
    #[error("the configuration's signature is wrong")]
    Forged,
    /// A newer one is in force.
    #[error("the configuration has epoch {offered}, but {current} is in force")]
    Older {
        /// Epoch of the configuration that was offered.
        offered: u64,
        /// Epoch in force.
        current: u64,
    },
    /// The same epoch was signed twice with different contents.
    #[error("two different configurations are signed with epoch {0}")]
    Equivocation(u64),
}

impl ConfigurationRefused {
    /// Every member of the cluster sees this, whatever it knows: malformed, of another cluster, or with a wrong signature.
    pub const fn is_plain(&self) -> bool {
        matches!(self, Self::Invalid(_) | Self::OtherCluster(_) | Self::Forged)
    }
}

impl Acceptance {
    /// Accepts configurations of `cluster`.
    pub fn new(cluster: ClusterId) -> Self {
        Self { roots: Roots::of(cluster), current: None }
    }

    /// What is in force.
    pub const fn current(&self) -> Option<&Arc<Accepted>> {
        self.current.as_ref()
    }

    /// The epoch in force; 0 before the first.
    pub fn epoch(&self) -> u64 {
        self.current.as_ref().map_or(0, |accepted| accepted.configuration.epoch)
    }

    /// Looks at an offered configuration at the time of its issue: see [`Acceptance::offer_at`].
    ///
    /// # Errors
    /// [`ConfigurationRefused`]: what is in force stays.
    pub fn offer(&mut self, signed: &SignedConfiguration) -> Result<Verdict, ConfigurationRefused> {
        self.offer_at(signed, UnixMillis(u64::MAX))
    }

    /// Looks at an offered configuration and takes it over when it is newer.
    ///
    /// Revocations only become more: one may be left out only when `now`, and the time of the issue, are past the end of
    /// every credential that it is about. What a revoked manager signs is never newer.
    ///
    /// # Errors
    /// [`ConfigurationRefused`]: what is in force stays.
    pub fn offer_at(&mut self, signed: &SignedConfiguration, now: UnixMillis) -> Result<Verdict, ConfigurationRefused> {
        if let Some(current) = &self.current {
            if current.signed == *signed {
                return Ok(Verdict::Known);
            }
            if signed.epoch() < current.configuration.epoch {
                return Err(ConfigurationRefused::Older {
                    offered: signed.epoch(),
                    current: current.configuration.epoch,
                });
            }
        }
        let (configuration, signer) = self.verify_signer(signed)?;
        match &self.current {
            // Another certificate of the same signer may go along with it.
            Some(current) if current.configuration == configuration => return Ok(Verdict::Known),
            Some(current) if current.configuration.epoch == configuration.epoch => {
                return Err(ConfigurationRefused::Equivocation(configuration.epoch));
            }
            _ => {}
        }
        if !configuration.roots.follow(&self.roots) {
            return Err(ConfigurationRefused::OtherRoots);
        }
        if let Some(current) = &self.current {
            keeps_revocations(&current.configuration, &configuration, signer, now)?;
        }
        self.roots = configuration.roots.clone();
        let ring = configuration.ring();
        let accepted = Arc::new(Accepted { configuration, ring, signed: signed.clone() });
        self.current = Some(Arc::clone(&accepted));
        Ok(Verdict::Newer(accepted))
    }

    /// Whether a configuration is the cluster's own, whatever is in force: the one of an earlier epoch is too.
    ///
    /// # Errors
    /// [`ConfigurationRefused`]: it was not signed by the cluster, or is not well-formed.
    pub fn verify(&self, signed: &SignedConfiguration) -> Result<Configuration, ConfigurationRefused> {
        self.verify_signer(signed).map(|(configuration, _)| configuration)
    }

    fn verify_signer(&self, signed: &SignedConfiguration) -> Result<(Configuration, PeerId), ConfigurationRefused> {
        let outer: pb::SignedConfiguration = pb::decode("configuration", signed.as_bytes())?;
        let issuer = IssuerCertificate::from_pb(outer.issuer)?;
        let signer = issuer.certified(&self.roots).map_err(ConfigurationRefused::OtherSigner)?;
        if !signer.key.verify(&signed_bytes(&outer.body), &outer.signature) {
            return Err(ConfigurationRefused::Forged);
        }
        let body: pb::Configuration = pb::decode("configuration", &outer.body)?;
        let cluster = ClusterId::from_bytes(&body.cluster)?;
        if cluster != self.roots.cluster() {
            return Err(ConfigurationRefused::OtherCluster(cluster));
        }
        let issued = UnixMillis(body.issued);
        if issued < signer.not_before || issued > signer.not_after {
            return Err(ConfigurationRefused::SignerExpired);
        }
        let roots = Roots::from_pb(cluster, body.roots)?;
        if !roots.are_of(issuer.succession())? {
            return Err(ConfigurationRefused::OtherRoots);
        }
        let settings = Settings::from_signed(&body.settings)?;
        let revoked = pb::at_most("revocations", body.revoked, REVOKED_MAX)?;
        let revoked = revoked.into_iter().map(Revocation::from_pb).collect::<Result<_, _>>()?;
        let configuration = Configuration { cluster, epoch: body.epoch, issued, settings, revoked, roots };
        Ok((configuration, signer.key.to_peer_id()))
    }
}

/// Whether `next` may follow `current` as far as revocations go.
fn keeps_revocations(
    current: &Configuration,
    next: &Configuration,
    signer: PeerId,
    now: UnixMillis,
) -> Result<(), ConfigurationRefused> {
    if current.revoked.iter().any(|revoked| revoked.peer == signer) {
        return Err(ConfigurationRefused::SignerRevoked(signer));
    }
    let time = next.issued.min(now);
    let still: HashMap<_, _> = next.revoked.iter().map(|still| (still.peer, still.at)).collect();
    let mut needed = current.revoked.iter().filter(|revoked| revoked.ends(&current.settings) > time.0);
    match needed.find(|revoked| still.get(&revoked.peer).is_none_or(|at| *at > revoked.at)) {
        Some(missing) => Err(ConfigurationRefused::Unrevoked(missing.peer)),
        None => Ok(()),
    }
}

mod exchange;
mod fields;
mod newer;
mod overrides;
mod schedulers;
mod tags;

pub use exchange::{Gossip, Request, Response};
use fields::DAY_MS;
pub use fields::{Entries, FIELDS, Field, QUOTA_BYTES_MAX, QUOTA_BYTES_MIN, Values};
pub use overrides::{OVERRIDES_MAX, Override};
pub use schedulers::{SCHEDULER_ADDRESSES_MAX, SCHEDULERS_MAX, SchedulerEntry, SchedulerState, WEIGHT_MAX};

#[cfg(test)]
mod tests;
