use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, SystemTime},
};

use async_trait::async_trait;
use damselfly_messages::{
    config::{Configuration, Settings},
    id::ClusterId,
    membership::{
        Issuer, IssuerCertificate, JoinToken, Role, Roles, Root, Roots, Secret, TOKEN_ID_BYTES, Tags, TokenId,
        join::{Refusal, RefusalCode, RequestBody, Welcome},
    },
    record::UnixMillis,
};
use libp2p::{Multiaddr, identity::Keypair};
use tokio::net::TcpListener;

use super::*;

const DAY: Duration = Duration::from_secs(24 * 3600);

/// A manager that knows one token.
struct Manager {
    issuer: Issuer,
    secret: Secret,
    asked: AtomicU32,
}

#[async_trait]
impl Authority for Manager {
    fn certificate(&self) -> IssuerCertificate {
        self.issuer.certificate().clone()
    }

    async fn answer(&self, asked: Asked) -> Result<Welcome, Refusal> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        match &asked.request.body {
            RequestBody::Join { proof, role, .. } if asked.proves(&self.secret.verifier(), proof, *role) => {}
            _ => return Err(Refusal::new(RefusalCode::Unknown, "no such token")),
        }
        let now = SystemTime::now().into();
        let issued = self.issuer.issue(asked.peer, (Roles::NODES, &Tags::new()), 1, (now, DAY));
        let (cluster, settings) = (self.issuer.cluster(), Settings::default());
        let configuration =
            Configuration { cluster, epoch: 1, issued: now, settings, revoked: Vec::new(), roots: Roots::of(cluster) };
        let configuration = configuration.sign(&self.issuer).expect("signed");
        Ok(Welcome { credential: issued.expect("issued").0, configuration, managers: Vec::new() })
    }
}

async fn manager() -> (Arc<Manager>, JoinServer, JoinToken) {
    let (root, key) = (Keypair::generate_ed25519(), Keypair::generate_ed25519());
    let issuer = Root::founding(root).certify(key.clone(), SystemTime::now().into(), DAY).expect("certified");
    let secret = Secret(rand::random());
    let roots = issuer.roots().clone();
    let manager = Arc::new(Manager { issuer, secret: secret.clone(), asked: AtomicU32::new(0) });
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let server = JoinServer::start(listener, &key, manager.clone()).expect("started");
    let peer = key.public().to_peer_id();
    let address: Multiaddr =
        format!("/ip4/127.0.0.1/tcp/{}/p2p/{peer}", server.address().port()).parse().expect("an address");
    let (id, expires) = (TokenId([1; TOKEN_ID_BYTES]), UnixMillis(0));
    let token = JoinToken { roots, id, secret, roles: Roles::NODES, expires, managers: vec![(peer, address)] };
    (manager, server, token)
}

async fn join(token: &JoinToken) -> Result<Welcome, JoinError> {
    let (manager, address) = &token.managers[0];
    let asking = Asking::Join { token, role: Role::Node };
    ask(&Keypair::generate_ed25519(), &token.roots, (*manager, address), asking, &[]).await
}

#[tokio::test]
async fn who_knows_the_secret_joins() {
    let (_manager, _server, token) = manager().await;
    let Welcome { credential, configuration, .. } = join(&token).await.expect("joined");
    assert_eq!((credential.claim().expect("readable").cluster, configuration.epoch()), (token.cluster(), 1));
}

#[tokio::test]
async fn nobody_joins_whom_the_token_does_not_name() {
    let (_manager, _server, token) = manager().await;
    let other = Keypair::generate_ed25519().public();
    let of_other_cluster = JoinToken { roots: Roots::of(ClusterId::of_root(&other)), ..token.clone() };
    assert!(matches!(join(&of_other_cluster).await, Err(JoinError::NotTheCluster { .. })));
    let (_, address) = token.managers[0].clone();
    let of_other_manager = JoinToken { managers: vec![(other.to_peer_id(), address)], ..token.clone() };
    assert!(matches!(join(&of_other_manager).await, Err(JoinError::OtherPeer { .. })));
}

#[tokio::test]
async fn guessing_ends_soon() {
    let (manager, _server, token) = manager().await;
    for _ in 0..30 {
        let guess = JoinToken { secret: Secret(rand::random()), ..token.clone() };
        assert!(matches!(join(&guess).await, Err(JoinError::Refused(_))));
    }
    assert_eq!(manager.asked.load(Ordering::Relaxed), 20, "then nothing is looked at");
    let Err(JoinError::Refused(refusal)) = join(&token).await else { panic!("joined") };
    assert_eq!(refusal.code, RefusalCode::TooMany, "{refusal}");
}

#[tokio::test]
async fn silent_connections_keep_nobody_from_joining() {
    let (_manager, server, token) = manager().await;
    let mut silent = Vec::new();
    for _ in 0..200 {
        silent.push(tokio::net::TcpStream::connect(server.address()).await.expect("connected"));
    }
    let joined = tokio::time::timeout(WITHIN / 2, join(&token)).await;
    joined.expect("at once").expect("joined");
}
