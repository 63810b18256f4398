//! Roots of a cluster: the first one gives the cluster its name, and each hands over to the next.
//!
//! A [`Succession`] goes along with everything that a root has certified, so whoever knows an earlier root of the cluster
//! can follow to the one in use, also after years. [`Roots`] is what a member accepts: it follows onwards, never back to a
//! root that is retired, and never to a second successor of one that has handed over.

use std::time::Duration;

use libp2p::identity::{Keypair, PublicKey};
use prost::Message as _;
use sha2::{Digest as _, Sha256};

use super::{Issuer, open, seal};
use crate::{
    id::ClusterId,
    pb,
    record::UnixMillis,
    wire::{Invalid, Wire},
};

/// Most roots of a cluster, one after the other.
pub const ROOTS_MAX: usize = 8;
/// The kind of envelope in which a root names its successor.
const SUCCESSOR: &str = "successor";

/// The SHA-256 of a root's public key.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    fn of(root: &PublicKey) -> Self {
        Self(Sha256::digest(root.encode_protobuf()).into())
    }

    fn from_bytes(bytes: &[u8]) -> Result<Self, Invalid> {
        bytes.try_into().map(Self).map_err(|_| Invalid::new("root", "its fingerprint has another length"))
    }
}

impl std::fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl std::fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Fingerprint({self})")
    }
}

/// How the cluster's first root handed over to the second, that one to the third, and so on: an envelope for each step.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Succession(Vec<Vec<u8>>);

impl Succession {
    pub(super) fn to_pb(&self) -> Vec<Vec<u8>> {
        self.0.clone()
    }

    pub(super) fn from_pb(steps: Vec<Vec<u8>>) -> Result<Self, Invalid> {
        pb::at_most("successors of the root", steps, ROOTS_MAX - 1).map(Self)
    }

    /// The fingerprints of all roots, oldest first, once every step was checked.
    fn fingerprints(&self, cluster: ClusterId) -> Result<Vec<Fingerprint>, Invalid> {
        let mut roots = vec![Fingerprint(*cluster.digest())];
        for step in &self.0 {
            let (payload, signer) = open(SUCCESSOR, step)?;
            if roots.last() != Some(&Fingerprint::of(&signer)) {
                return Err(Invalid::new(SUCCESSOR, "it is not named by the root before it"));
            }
            let body: pb::SuccessorBody = pb::decode(SUCCESSOR, &payload)?;
            // A key that is the root of two clusters must not hand over both.
            if ClusterId::from_bytes(&body.cluster)? != cluster {
                return Err(Invalid::new(SUCCESSOR, "it is named for another cluster"));
            }
            let next = Fingerprint::from_bytes(&body.fingerprint)?;
            if roots.contains(&next) {
                return Err(Invalid::new(SUCCESSOR, "it was a root before"));
            }
            roots.push(next);
        }
        Ok(roots)
    }
}

impl Wire for Succession {
    fn to_bytes(&self) -> Vec<u8> {
        pb::Succession { steps: self.0.clone() }.encode_to_vec()
    }

    fn from_bytes(bytes: &[u8]) -> Result<Self, Invalid> {
        let message: pb::Succession = pb::decode("succession", bytes)?;
        Self::from_pb(message.steps)
    }
}

/// The key of the root in use, and how it came to be that.
#[derive(Debug, Clone)]
pub struct Root {
    key: Keypair,
    cluster: ClusterId,
    succession: Succession,
}

impl Root {
    /// The first root of the cluster that it founds.
    pub fn founding(key: Keypair) -> Self {
        let cluster = ClusterId::of_root(&key.public());
        Self { key, cluster, succession: Succession::default() }
    }

    /// The root of `cluster` to which the others handed over in `succession`.
    ///
    /// # Errors
    /// [`Invalid`] when `key` is not the last one, or a step is not genuine.
    pub fn new(key: Keypair, cluster: ClusterId, succession: Succession) -> Result<Self, Invalid> {
        if succession.fingerprints(cluster)?.last() != Some(&Fingerprint::of(&key.public())) {
            return Err(Invalid::new("root", "its key is not the newest root of the cluster"));
        }
        Ok(Self { key, cluster, succession })
    }

    /// The root to which this one hands over.
    ///
    /// # Errors
    /// [`Invalid`] when the cluster has had too many, or this one cannot sign.
    pub fn hand_over(&self, next: Keypair) -> Result<Self, Invalid> {
        let mut steps = self.succession.0.clone();
        let fingerprint = Fingerprint::of(&next.public()).0.to_vec();
        let body = pb::SuccessorBody { cluster: self.cluster.digest().to_vec(), fingerprint };
        steps.push(seal(&self.key, SUCCESSOR, body.encode_to_vec())?);
        Self::new(next, self.cluster, Succession::from_pb(steps)?)
    }

    /// The cluster.
    pub const fn cluster(&self) -> ClusterId {
        self.cluster
    }

    /// Its fingerprint.
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(&self.key.public())
    }

    /// How it came to be the root.
    pub const fn succession(&self) -> &Succession {
        &self.succession
    }

    /// All roots of the cluster, none of them retired.
    ///
    /// # Errors
    /// [`Invalid`]: only a defect gets here.
    pub fn roots(&self) -> Result<Roots, Invalid> {
        Ok(Roots { known: self.succession.fingerprints(self.cluster)?, retired: 0 })
    }

    /// Lets `key` sign for the cluster, from `now` on.
    ///
    /// # Errors
    /// [`Invalid`] when the root cannot sign.
    pub fn certify(&self, key: Keypair, now: UnixMillis, lifetime: Duration) -> Result<Issuer, Invalid> {
        Issuer::certified_by(self, &self.key, key, (now, lifetime))
    }
}

/// Which roots a member accepts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Roots {
    /// All that are known, oldest first.
    known: Vec<Fingerprint>,
    /// So many of the oldest are accepted no more; never all.
    retired: usize,
}

impl Roots {
    /// The first root of `cluster`, and whoever it hands over to.
    pub fn of(cluster: ClusterId) -> Self {
        Self { known: vec![Fingerprint(*cluster.digest())], retired: 0 }
    }

    /// All that are known, oldest first, and whether each is accepted.
    pub fn iter(&self) -> impl Iterator<Item = (Fingerprint, bool)> + '_ {
        self.known.iter().enumerate().map(|(number, root)| (*root, number >= self.retired))
    }

    /// How many there were up to now.
    pub const fn count(&self) -> usize {
        self.known.len()
    }

    /// How many of them are accepted.
    pub const fn in_use(&self) -> usize {
        self.known.len() - self.retired
    }

    /// These, and retired is who was so before.
    #[must_use]
    pub fn after(&self, before: &Self) -> Self {
        Self { known: self.known.clone(), retired: before.retired }
    }

    /// Whether what this root has certified counts.
    pub fn accepts(&self, root: &Fingerprint) -> bool {
        // One that is not known follows those that are: it was looked at when it was shown.
        self.known.iter().position(|known| known == root).is_none_or(|number| number >= self.retired)
    }

    /// Whether this root is the newest.
    pub fn is_newest(&self, root: &Fingerprint) -> bool {
        self.known.last() == Some(root)
    }

    /// The same, but of all roots only the newest is accepted.
    #[must_use]
    pub fn newest_only(&self) -> Self {
        Self { known: self.known.clone(), retired: self.known.len() - 1 }
    }

    /// The cluster.
    pub fn cluster(&self) -> ClusterId {
        ClusterId::from_digest(self.known[0].0)
    }

    /// Whether something that `signer` has signed counts, when it goes along with `succession`.
    pub(super) fn accept(&self, signer: &PublicKey, succession: &Succession) -> Result<Fingerprint, Invalid> {
        let refused = |reason| Err(Invalid::new("root", reason));
        let shown = succession.fingerprints(self.cluster())?;
        if shown.iter().zip(&self.known).any(|(shown, known)| shown != known) {
            return refused("it comes after another successor than the one that is known");
        }
        let signer = Fingerprint::of(signer);
        match shown.iter().position(|root| *root == signer) {
            Some(number) if number < self.retired => refused("it is retired"),
            Some(_) => Ok(signer),
            None => refused("it is none of the cluster's"),
        }
    }

    /// Whether these come after `before`: no root was exchanged, and none that is retired came back.
    pub(crate) fn follow(&self, before: &Self) -> bool {
        self.known.starts_with(&before.known) && self.retired >= before.retired
    }

    /// Whether `succession` leads to exactly these.
    pub(crate) fn are_of(&self, succession: &Succession) -> Result<bool, Invalid> {
        Ok(succession.fingerprints(self.cluster())? == self.known)
    }

    pub(crate) fn to_pb(&self) -> pb::Roots {
        let later = self.known[1..].iter().map(|root| root.0.to_vec()).collect();
        pb::Roots { later, retired: self.retired as u32 }
    }

    /// Of `cluster`, whose first root is not named in the message.
    pub(crate) fn from_pb(cluster: ClusterId, message: Option<pb::Roots>) -> Result<Self, Invalid> {
        let message = message.unwrap_or_default();
        let later = pb::at_most("roots", message.later, ROOTS_MAX - 1)?;
        let mut roots = Self::of(cluster);
        for root in later {
            roots.known.push(Fingerprint::from_bytes(&root)?);
        }
        roots.retired = usize::try_from(message.retired).unwrap_or(usize::MAX);
        if roots.retired >= roots.known.len() {
            return Err(Invalid::new("roots", "none of them is accepted"));
        }
        Ok(roots)
    }
}
