//! Members for tests.

use std::{
    sync::LazyLock,
    time::{Duration, SystemTime},
};

use damselfly_messages::membership::{Issuer, Role, Root};
use libp2p::identity::Keypair;

use crate::admission::Admission;

/// The manager of the one cluster that all tests belong to.
static ISSUER: LazyLock<Issuer> = LazyLock::new(|| {
    Root::founding(root()).certify(Keypair::generate_ed25519(), SystemTime::now().into(), DAY).expect("certified")
});
const DAY: Duration = Duration::from_secs(24 * 3600);

/// The root of that cluster.
pub fn root() -> Keypair {
    Keypair::ed25519_from_bytes([7; 32]).expect("32 bytes")
}

/// A member in every role.
pub fn member(keypair: &Keypair) -> Admission {
    member_as(keypair, Role::ALL)
}

/// A member in some roles.
pub fn member_as(keypair: &Keypair, roles: impl IntoIterator<Item = Role>) -> Admission {
    Admission::issued(&ISSUER, keypair.public().to_peer_id(), roles, DAY).expect("issued")
}
