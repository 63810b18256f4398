//! Credentials and who signs them.

use std::time::Duration;

use libp2p::{
    PeerId,
    identity::{Keypair, PublicKey},
};
use prost::Message as _;

use super::{
    CLOCK_LEEWAY, Roles, Tags, after, open, peer,
    roots::{Fingerprint, Root, Roots, Succession},
    seal,
};
use crate::{
    id::ClusterId,
    pb,
    record::UnixMillis,
    scheduler::{TAG_TEXT_MAX, TAGS_MAX},
    wire::{Invalid, Wire},
};

/// Longest signed credential in bytes, with its issuer's certificate.
pub const CREDENTIAL_BYTES_MAX: usize = 12 << 10;
/// The kind of envelope that holds a credential.
const CREDENTIAL: &str = "credential";
/// The kind of envelope that holds an issuer's certificate.
const ISSUER: &str = "issuer";

/// That a host is a member of a cluster, as what, and until when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credential {
    /// The cluster.
    pub cluster: ClusterId,
    /// The host.
    pub peer: PeerId,
    /// What it is.
    pub roles: Roles,
    /// What its join token says of it.
    pub tags: Tags,
    /// Grows with every credential of the cluster.
    pub serial: u64,
    /// Not valid before.
    pub not_before: UnixMillis,
    /// Not valid after.
    pub not_after: UnixMillis,
}

/// A credential as it is shown: opaque until [`super::Trust::admit`] has looked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedCredential {
    envelope: Vec<u8>,
    issuer: IssuerCertificate,
}

/// That a key may sign for a cluster, signed by one of the cluster's roots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IssuerCertificate {
    envelope: Vec<u8>,
    succession: Succession,
}

/// A manager's key with its certificate: signs credentials and configurations.
#[derive(Debug, Clone)]
pub struct Issuer {
    key: Keypair,
    certificate: IssuerCertificate,
    certified: Certified,
    roots: Roots,
}

/// What an issuer's certificate says, once its signature was checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Certified {
    pub(crate) cluster: ClusterId,
    pub(crate) key: PublicKey,
    pub(crate) not_before: UnixMillis,
    pub(crate) not_after: UnixMillis,
    /// Who certified it.
    pub(crate) root: Fingerprint,
}

impl Issuer {
    /// Certifies `key` with the root's key, from `now` on.
    pub(super) fn certified_by(
        root: &Root,
        root_key: &Keypair,
        key: Keypair,
        (now, lifetime): (UnixMillis, Duration),
    ) -> Result<Self, Invalid> {
        let cluster = root.cluster();
        // A host whose clock is behind has it in use at once.
        let not_before = UnixMillis(now.0.saturating_sub(CLOCK_LEEWAY.as_millis() as u64));
        let not_after = after(now, lifetime);
        let body = pb::IssuerBody {
            cluster: cluster.digest().to_vec(),
            key: key.public().encode_protobuf(),
            not_before: not_before.0,
            not_after: not_after.0,
        };
        let envelope = seal(root_key, ISSUER, body.encode_to_vec())?;
        let certificate = IssuerCertificate { envelope, succession: root.succession().clone() };
        let (key_root, roots) = (root.fingerprint(), root.roots()?);
        let certified = Certified { cluster, key: key.public(), not_before, not_after, root: key_root };
        Ok(Self { key, certificate, certified, roots })
    }

    /// Signs `bytes`, of which the caller knows that they are no other kind's.
    pub(crate) fn sign(&self, bytes: &[u8]) -> Result<Vec<u8>, Invalid> {
        self.key.sign(bytes).map_err(|error| Invalid::new("signing key", error.to_string()))
    }

    /// All roots of the cluster, up to the one that certified this key.
    pub const fn roots(&self) -> &Roots {
        &self.roots
    }

    /// The proof of its right.
    pub const fn certificate(&self) -> &IssuerCertificate {
        &self.certificate
    }

    /// Until when it may sign.
    pub const fn not_after(&self) -> UnixMillis {
        self.certified.not_after
    }

    /// The cluster.
    pub const fn cluster(&self) -> ClusterId {
        self.certified.cluster
    }

    /// Signs that `peer` is a member from `now` on, but not for longer than the issuer's own time.
    ///
    /// # Errors
    /// [`Invalid`]: the whole is too long, or the key cannot sign.
    pub fn issue(
        &self,
        peer: PeerId,
        (roles, tags): (Roles, &Tags),
        serial: u64,
        (now, lifetime): (UnixMillis, Duration),
    ) -> Result<(SignedCredential, Credential), Invalid> {
        let credential = Credential {
            cluster: self.certified.cluster,
            peer,
            roles,
            tags: tags.clone(),
            serial,
            not_before: now,
            not_after: after(now, lifetime).min(self.certified.not_after),
        };
        let envelope = seal(&self.key, CREDENTIAL, credential.to_pb().encode_to_vec())?;
        let signed = SignedCredential { envelope, issuer: self.certificate.clone() };
        let bytes = signed.to_bytes().len();
        if bytes > CREDENTIAL_BYTES_MAX {
            return Err(Invalid::new("credential", format!("{bytes} bytes are too many: shorten the tags")));
        }
        Ok((signed, credential))
    }
}

impl IssuerCertificate {
    pub(crate) fn to_pb(&self) -> pb::IssuerCertificate {
        pb::IssuerCertificate { envelope: self.envelope.clone(), succession: self.succession.to_pb() }
    }

    /// Takes what comes from outside; what it says is looked at when it is used.
    pub(crate) fn from_pb(message: Option<pb::IssuerCertificate>) -> Result<Self, Invalid> {
        let message = pb::required(ISSUER, message)?;
        Ok(Self { envelope: message.envelope, succession: Succession::from_pb(message.succession)? })
    }

    /// How the cluster came to the root that signed it.
    pub(crate) const fn succession(&self) -> &Succession {
        &self.succession
    }

    /// Who is certified by one of these roots, or by one that follows them.
    pub(crate) fn certified(&self, roots: &Roots) -> Result<Certified, Invalid> {
        let (payload, root) = open(ISSUER, &self.envelope)?;
        let root = roots.accept(&root, &self.succession)?;
        let body: pb::IssuerBody = pb::decode(ISSUER, &payload)?;
        let cluster = ClusterId::from_bytes(&body.cluster)?;
        if cluster != roots.cluster() {
            return Err(Invalid::new(ISSUER, "it is certified for another cluster"));
        }
        let key = PublicKey::try_decode_protobuf(&body.key).map_err(|error| Invalid::new(ISSUER, error.to_string()))?;
        let (not_before, not_after) = (UnixMillis(body.not_before), UnixMillis(body.not_after));
        Ok(Certified { cluster, key, not_before, not_after, root })
    }

    /// Whether it proves to who accepts `roots` that `peer` speaks for their cluster.
    ///
    /// # Errors
    /// [`Invalid`]: it does not.
    pub fn proves(&self, peer: &PeerId, roots: &Roots) -> Result<(), Invalid> {
        let certified = self.certified(roots)?;
        if certified.key.to_peer_id() == *peer {
            Ok(())
        } else {
            Err(Invalid::new(ISSUER, "it is another host's certificate"))
        }
    }
}

impl SignedCredential {
    /// What it claims. Nothing of it is proved.
    ///
    /// # Errors
    /// [`Invalid`] when it cannot be read.
    pub fn claim(&self) -> Result<Credential, Invalid> {
        self.opened().map(|(credential, _)| credential)
    }

    /// What it says, and who signed that.
    pub(super) fn opened(&self) -> Result<(Credential, PublicKey), Invalid> {
        let (payload, signer) = open(CREDENTIAL, &self.envelope)?;
        Ok((Credential::from_pb(pb::decode(CREDENTIAL, &payload)?)?, signer))
    }

    pub(super) const fn issuer(&self) -> &IssuerCertificate {
        &self.issuer
    }

    pub(crate) fn to_pb(&self) -> pb::Credential {
        pb::Credential { envelope: self.envelope.clone(), issuer: Some(self.issuer.to_pb()) }
    }

    pub(crate) fn from_pb(message: pb::Credential) -> Result<Self, Invalid> {
        Ok(Self { envelope: message.envelope, issuer: IssuerCertificate::from_pb(message.issuer)? })
    }
}

impl Wire for SignedCredential {
    fn to_bytes(&self) -> Vec<u8> {
        self.to_pb().encode_to_vec()
    }

    fn from_bytes(bytes: &[u8]) -> Result<Self, Invalid> {
        if bytes.len() > CREDENTIAL_BYTES_MAX {
            return Err(Invalid::new(CREDENTIAL, format!("{} bytes are too many", bytes.len())));
        }
        Self::from_pb(pb::decode(CREDENTIAL, bytes)?)
    }
}

impl Credential {
    fn to_pb(&self) -> pb::CredentialBody {
        pb::CredentialBody {
            cluster: self.cluster.digest().to_vec(),
            peer: self.peer.to_bytes(),
            roles: self.roles.to_numbers(),
            tags: self.tags.clone().into_iter().collect(),
            serial: self.serial,
            not_before: self.not_before.0,
            not_after: self.not_after.0,
        }
    }

    fn from_pb(body: pb::CredentialBody) -> Result<Self, Invalid> {
        let too_long = |text: &String| text.len() > TAG_TEXT_MAX;
        if body.tags.len() > TAGS_MAX || body.tags.iter().any(|(key, value)| too_long(key) || too_long(value)) {
            return Err(Invalid::new("tags", "too many or too long"));
        }
        Ok(Self {
            cluster: ClusterId::from_bytes(&body.cluster)?,
            peer: peer(&body.peer)?,
            roles: Roles::from_numbers(&body.roles)?,
            tags: body.tags.into_iter().collect(),
            serial: body.serial,
            not_before: UnixMillis(body.not_before),
            not_after: UnixMillis(body.not_after),
        })
    }
}
