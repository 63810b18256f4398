//! Whose credential a manager renews, and for how long after its end.

use std::{
    path::Path,
    time::{Duration, SystemTime},
};

use damselfly_messages::{
    membership::{Issuer, JoinToken, Role, Roles, Root, SignedCredential, Tags, join::RefusalCode},
    record::UnixMillis,
};
use damselfly_transport::{
    join::{Asking, JoinError, ask as ask_manager},
    program::identity,
};
use libp2p::{Multiaddr, PeerId, identity::Keypair};

use crate::common::{admin, ask, body, start};

const DAY: Duration = Duration::from_secs(24 * 3600);

/// What `host` gets from the manager at `at` when it shows a credential that ended `ago`.
struct Renewal<'a> {
    issuer: &'a Issuer,
    at: (PeerId, Multiaddr),
}

impl Renewal<'_> {
    async fn of(&self, host: &Keypair, ago: Duration) -> Result<(), JoinError> {
        let now = UnixMillis::from(SystemTime::now());
        let issued = UnixMillis(now.0 - (ago + DAY).as_millis() as u64);
        let granted = (Roles::just(Role::Node), &Tags::new());
        let peer = host.public().to_peer_id();
        let (shown, _): (SignedCredential, _) = self.issuer.issue(peer, granted, 1, (issued, DAY)).expect("issued");
        let at = (self.at.0, &self.at.1);
        ask_manager(host, self.issuer.roots(), at, Asking::Renew(&shown), &[]).await.map(drop)
    }
}

fn code(result: Result<(), JoinError>) -> Option<RefusalCode> {
    match result {
        Ok(()) => None,
        Err(JoinError::Refused(refusal)) => Some(refusal.code),
        Err(error) => panic!("{error:?}"),
    }
}

/// Signs as the cluster's root does, from long ago on.
fn issuer(data_dir: &Path) -> Issuer {
    let root = identity::load(&data_dir.join("root.key")).expect("read").expect("there");
    let now = UnixMillis::from(SystemTime::now());
    let long_ago = UnixMillis(now.0 - 300 * DAY.as_millis() as u64);
    Root::founding(root).certify(Keypair::generate_ed25519(), long_ago, 400 * DAY).expect("certified")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_expired_credential_is_not_renewed_for_ever() {
    let folder = tempfile::tempdir().expect("a folder");
    let data_dir = folder.path().join("data");
    let server = start(&data_dir).await;
    let issuer = issuer(&data_dir);
    let port = server.join_address().port();
    let at: Multiaddr = format!("/ip4/127.0.0.1/tcp/{port}").parse().expect("an address");
    let renewal = Renewal { issuer: &issuer, at: (server.network().peer_id(), at.clone()) };

    // One that the database knows.
    let admin = admin(&data_dir);
    let request = "POST /api/v1/join-tokens";
    let asked = r#"{"roles":["node"],"uses":1,"ttl_seconds":600}"#;
    let made = ask(server.http_address(), request, &[&admin, "content-type: application/json"], asked).await;
    let made: serde_json::Value = serde_json::from_str(body(&made)).expect("JSON");
    let token: JoinToken = made["token"].as_str().expect("a token").parse().expect("sound");
    let known = Keypair::generate_ed25519();
    let join = async |host: &Keypair, role| {
        let asking = Asking::Join { token: &token, role };
        let at = (server.network().peer_id(), &at);
        code(ask_manager(host, &token.roots, at, asking, &[]).await.map(drop))
    };
    assert_eq!(join(&known, Role::Node).await, None);
    // The answer was lost: it asks again, also when the token is used up, and as nothing else.
    assert_eq!(join(&known, Role::Node).await, None);
    assert_eq!(join(&known, Role::Scheduler).await, Some(RefusalCode::Role));
    assert_eq!(join(&Keypair::generate_ed25519(), Role::Node).await, Some(RefusalCode::UsedUp));

    // (days since the end, of one that is known, of one that is not)
    for (days, of_known, of_unknown) in [
        (0, None, None),
        (6, None, None),
        (8, None, Some(RefusalCode::Expired)),
        (29, None, Some(RefusalCode::Expired)),
        (31, Some(RefusalCode::Expired), Some(RefusalCode::Expired)),
        (98, Some(RefusalCode::Expired), Some(RefusalCode::Expired)),
    ] {
        assert_eq!(code(renewal.of(&known, days * DAY).await), of_known, "{days} days, known");
        let unknown = Keypair::generate_ed25519();
        assert_eq!(code(renewal.of(&unknown, days * DAY).await), of_unknown, "{days} days, unknown");
    }
    server.stop().await;
}
