//! Admission and joining: nobody gets in by bytes that the cluster has not signed.

use std::{
    sync::OnceLock,
    time::{Duration, SystemTime},
};

use damselfly_messages::{
    id::ClusterId,
    membership::{JoinToken, Roles, Root, Roots, Secret, SignedCredential, Tags, TokenId, join},
    record::UnixMillis,
    wire::Wire as _,
};
use damselfly_transport::admission::Admission;
use libp2p::{PeerId, identity::Keypair};
use multibase::Base;
use sha2::{Digest as _, Sha256};

use crate::{head, wire::round_trip};

const DAY: Duration = Duration::from_secs(24 * 3600);

/// A cluster with one member.
struct Cluster {
    root: Root,
    admission: Admission,
    member: PeerId,
    genuine: Vec<u8>,
}

fn key(seed: u8) -> Keypair {
    Keypair::ed25519_from_bytes([seed; 32]).expect("32 bytes are a key")
}

fn cluster() -> &'static Cluster {
    static CLUSTER: OnceLock<Cluster> = OnceLock::new();
    CLUSTER.get_or_init(|| {
        let now = UnixMillis::from(SystemTime::now());
        let root = Root::founding(key(1));
        let issuer = root.certify(key(2), now, 90 * DAY).expect("certified");
        let member = key(3).public().to_peer_id();
        let (genuine, _) = issuer.issue(member, (Roles::NODES, &Tags::new()), 1, (now, 14 * DAY)).expect("issued");
        let admission = Admission::new(root.cluster(), genuine.clone());
        Cluster { genuine: genuine.to_bytes(), root, admission, member }
    })
}

/// Bytes shown as a credential: as they are, and as a change of a genuine one.
pub(crate) fn admission(bytes: &[u8]) {
    let cluster = cluster();
    let stranger = key(4).public().to_peer_id();
    for shown in [bytes.to_vec(), changed(&cluster.genuine, bytes)] {
        round_trip::<SignedCredential>(&shown);
        let Ok(credential) = SignedCredential::from_bytes(&shown) else { continue };
        assert!(cluster.admission.judge(stranger, &credential).is_err(), "a stranger is admitted");
        let Ok(roles) = cluster.admission.judge(cluster.member, &credential) else { continue };
        assert_eq!(roles, Roles::NODES, "other roles than were signed");
    }
}

/// `genuine` with some bytes replaced: three bytes of `edits` name a place and a value.
fn changed(genuine: &[u8], edits: &[u8]) -> Vec<u8> {
    let mut bytes = genuine.to_vec();
    for edit in edits.chunks_exact(3).take(8) {
        let at = usize::from(u16::from_le_bytes([edit[0], edit[1]])) % bytes.len();
        bytes[at] = edit[2];
    }
    bytes
}

/// What is said while joining, and a proof that nobody could make without the secret.
pub(crate) fn join(bytes: &[u8]) {
    round_trip::<join::Greeting>(bytes);
    round_trip::<join::Request>(bytes);
    round_trip::<join::Answer>(bytes);
    if let Ok(greeting) = join::Greeting::from_bytes(bytes) {
        let roots = Roots::of(cluster().root.cluster());
        let stranger = key(4).public().to_peer_id();
        assert!(greeting.issuer.proves(&stranger, &roots).is_err(), "a stranger speaks for the cluster");
    }
}

/// A token as text, and bytes in the envelope of one.
pub(crate) fn token(bytes: &[u8]) {
    check(&String::from_utf8_lossy(bytes));
    let mut message = bytes.to_vec();
    message.extend_from_slice(&Sha256::digest(bytes)[..4]);
    check(&format!("dfj1_{}", Base::Base64Url.encode(message)));
    let (secret, rest) = head::<32>(bytes);
    let (id, _) = head::<16>(rest);
    let token = JoinToken {
        roots: Roots::of(ClusterId::of_root(&key(1).public())),
        id: TokenId(id),
        secret: Secret(secret),
        roles: Roles::NODES,
        expires: UnixMillis(u64::from_le_bytes(head(rest).0)),
        managers: Vec::new(),
    };
    assert_eq!(token.reveal().parse(), Ok(token));
}

fn check(text: &str) {
    let Ok(token) = text.parse::<JoinToken>() else { return };
    assert_eq!(token.reveal().parse().as_ref(), Ok(&token), "a token is what its text says");
    assert!(!format!("{token:?}").contains(&format!("{:?}", token.secret.0)), "the secret is shown");
}
