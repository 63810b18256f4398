use super::{join::*, *};
use crate::{
    config::{Configuration, Revocation, Settings},
    id::ClusterId,
    wire::Wire as _,
};

const NOW: UnixMillis = UnixMillis(1_700_000_000_000);
const DAY: Duration = Duration::from_secs(24 * 3600);

fn key(seed: u8) -> Keypair {
    Keypair::ed25519_from_bytes([seed; 32]).expect("32 bytes")
}

fn host() -> PeerId {
    key(7).public().to_peer_id()
}

fn issuer(root: u8) -> Issuer {
    Issuer::certify(&key(root), key(50), NOW, 90 * DAY).expect("certified")
}

fn issue(issuer: &Issuer) -> SignedCredential {
    issuer.issue(host(), (Roles::NODES, &Tags::new()), 1, (NOW, 14 * DAY)).expect("issued").0
}

fn cluster() -> ClusterId {
    ClusterId::of_root(&key(1).public())
}

fn at(after: i64) -> UnixMillis {
    UnixMillis(NOW.0.saturating_add_signed(after * 1000))
}

#[test]
fn only_the_clusters_own_credentials_are_admitted() {
    let trust = Trust::new(cluster());
    let genuine = issue(&issuer(1));
    let admitted = trust.admit(&host(), &genuine, NOW).expect("genuine");
    assert_eq!((admitted.roles, admitted.serial), (Roles::NODES, 1));

    let stranger = key(8).public().to_peer_id();
    assert_eq!(trust.admit(&stranger, &genuine, NOW), Err(Refused::OtherPeer(host())));
    let other = ClusterId::of_root(&key(2).public());
    assert_eq!(trust.admit(&host(), &issue(&issuer(2)), NOW), Err(Refused::OtherCluster(other)));
    // Signed by itself: it names the cluster's issuer, whose certificate it has seen, but has not its key.
    let mut forger = issuer(1);
    let forged = Issuer::certify(&key(1), key(7), NOW, DAY).expect("certified");
    let mut forged = issue(&forged).to_pb();
    forged.issuer = forger.certificate().as_bytes().to_vec();
    assert!(matches!(trust.admit(&host(), &SignedCredential::from_pb(forged), NOW), Err(Refused::NotGenuine(_))));
    // An issuer that lets credentials outlive its own right.
    forger = Issuer::certify(&key(1), key(50), NOW, DAY).expect("certified");
    assert!(issue(&forger).claim().expect("readable").not_after <= forger.not_after());
}

#[test]
fn any_changed_bit_is_refused() {
    let trust = Trust::new(cluster());
    let bytes = issue(&issuer(1)).to_bytes();
    for position in 0..bytes.len() {
        let mut changed = bytes.clone();
        changed[position] ^= 1;
        let admitted = SignedCredential::from_bytes(&changed).map(|shown| trust.admit(&host(), &shown, NOW));
        assert!(!matches!(admitted, Ok(Ok(_))), "byte {position}");
    }
}

#[test]
fn time_decides() {
    let shown = issue(&issuer(1));
    let fortnight = 14 * 24 * 3600;
    // (seconds after the issue, grace in seconds, what follows, why)
    let table = [
        (0, 0, "valid", "just issued"),
        (-299, 0, "valid", "the clock here is behind"),
        (-301, 0, "not yet", "too far behind"),
        (fortnight + 299, 0, "valid", "the clock here is ahead"),
        (fortnight + 301, 0, "expired", "too far ahead"),
        (fortnight + 301, 600, "valid", "the cluster bears with it"),
        (fortnight + 601, 600, "expired", "but not for ever"),
    ];
    for (after, grace, expected, why) in table {
        let mut trust = Trust::new(cluster());
        let settings = Settings { grace_ms: grace * 1000, ..Settings::default() };
        trust.follow(&Configuration { cluster: cluster(), epoch: 1, issued: NOW, settings, revoked: Vec::new() });
        let result = match trust.admit(&host(), &shown, at(after)) {
            Ok(_) => "valid",
            Err(Refused::NotYet { .. }) => "not yet",
            Err(Refused::Expired { .. }) => "expired",
            Err(_) => "refused",
        };
        assert_eq!(result, expected, "{why}");
    }
}

#[test]
fn who_is_revoked_is_out() {
    let mut trust = Trust::new(cluster());
    let revoked = vec![Revocation { peer: host(), at: NOW }];
    let (epoch, settings) = (2, Settings { grace_ms: 1 << 30, ..Settings::default() });
    trust.follow(&Configuration { cluster: cluster(), epoch, issued: NOW, settings, revoked });
    assert_eq!(trust.admit(&host(), &issue(&issuer(1)), NOW), Err(Refused::Revoked));
}

fn token() -> JoinToken {
    let manager = key(50).public().to_peer_id();
    let address = format!("/ip4/10.0.0.1/tcp/4700/p2p/{manager}").parse().expect("an address");
    JoinToken {
        cluster: cluster(),
        id: TokenId([3; TOKEN_ID_BYTES]),
        secret: Secret([4; 32]),
        roles: Roles::of([Role::Scheduler]),
        expires: NOW,
        managers: vec![(manager, address)],
    }
}

#[test]
fn a_token_survives_being_typed_and_every_slip_is_seen() {
    let text = token().reveal();
    assert_eq!(text.parse::<JoinToken>(), Ok(token()));
    assert!(!format!("{:?}", token()).contains("04040404") && !format!("{:?}", token()).contains("4, 4, 4"));
    for position in 0..text.len() {
        let mut slip = text.clone().into_bytes();
        slip[position] = if slip[position] == b'A' { b'B' } else { b'A' };
        let slip = String::from_utf8(slip).expect("ASCII");
        assert!(slip.parse::<JoinToken>().is_err(), "character {position}");
    }
}

#[test]
fn a_proof_is_good_for_one_meeting() {
    let verifier = token().secret.verifier();
    let (manager, host) = (key(50).public().to_peer_id(), host());
    let given = proof(&verifier, (&manager, &host), &[1; NONCE_BYTES], Role::Node);
    let is_good = |verifier, peers, nonce, role| is_proof(&given, verifier, peers, nonce, role);
    assert!(is_good(&verifier, (&manager, &host), &[1; NONCE_BYTES], Role::Node));
    assert!(!is_good(&verifier, (&manager, &host), &[2; NONCE_BYTES], Role::Node), "another nonce");
    assert!(!is_good(&verifier, (&host, &host), &[1; NONCE_BYTES], Role::Node), "another manager");
    assert!(!is_good(&verifier, (&manager, &manager), &[1; NONCE_BYTES], Role::Node), "another host");
    assert!(!is_good(&verifier, (&manager, &host), &[1; NONCE_BYTES], Role::Scheduler), "another role");
    assert!(!is_good(&Secret([5; 32]).verifier(), (&manager, &host), &[1; NONCE_BYTES], Role::Node), "a guess");
}

#[test]
fn what_is_said_is_understood() {
    let body = RequestBody::Join { token: token().id, proof: [9; 32], role: Role::Node };
    let addresses = vec!["/ip4/10.0.0.2/tcp/1".parse().expect("an address")];
    let request = Request { body, addresses, version: "1".into() };
    assert_eq!(Request::from_bytes(&request.to_bytes()), Ok(request.clone()));
    let renew = Request { body: RequestBody::Renew(issue(&issuer(1))), ..request };
    assert_eq!(Request::from_bytes(&renew.to_bytes()), Ok(renew));
    let settings = Settings::default();
    let configuration = Configuration { cluster: cluster(), epoch: 1, issued: NOW, settings, revoked: Vec::new() };
    let configuration = configuration.sign(&key(1)).expect("signed");
    let welcome = Answer::Welcome { credential: issue(&issuer(1)), configuration };
    assert_eq!(Answer::from_bytes(&welcome.to_bytes()), Ok(welcome));
    let refused = Answer::Refused(Refusal::new(RefusalCode::UsedUp, "used up"));
    assert_eq!(Answer::from_bytes(&refused.to_bytes()), Ok(refused));
    let greeting = Greeting { issuer: issuer(1).certificate().clone(), nonce: [1; NONCE_BYTES] };
    assert_eq!(Greeting::from_bytes(&greeting.to_bytes()), Ok(greeting));
}
