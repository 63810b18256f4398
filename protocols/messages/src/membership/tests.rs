use super::{join::*, *};
use crate::{
    config::{Acceptance, Configuration, ConfigurationRefused, Revocation, Settings},
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
    Root::founding(key(root)).certify(key(50), NOW, 90 * DAY).expect("certified")
}

fn issue(issuer: &Issuer) -> SignedCredential {
    issuer.issue(host(), (Roles::NODES, &Tags::new()), 1, (NOW, 14 * DAY)).expect("issued").0
}

fn configuration(settings: Settings, revoked: Vec<Revocation>) -> Configuration {
    Configuration { cluster: cluster(), epoch: 1, issued: NOW, settings, revoked, roots: Roots::of(cluster()) }
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
    let admitted = trust.admit(&host(), &genuine, NOW).expect("genuine").credential;
    assert_eq!((admitted.roles, admitted.serial), (Roles::NODES, 1));

    let stranger = key(8).public().to_peer_id();
    assert_eq!(trust.admit(&stranger, &genuine, NOW), Err(Refused::OtherPeer(host())));
    let other = ClusterId::of_root(&key(2).public());
    assert_eq!(trust.admit(&host(), &issue(&issuer(2)), NOW), Err(Refused::OtherCluster(other)));
    // Signed by itself: it names the cluster's issuer, whose certificate it has seen, but has not its key.
    let mut forger = issuer(1);
    let forged = Root::founding(key(1)).certify(key(7), NOW, DAY).expect("certified");
    let mut forged = issue(&forged).to_pb();
    forged.issuer = Some(forger.certificate().to_pb());
    assert!(matches!(
        trust.admit(&host(), &SignedCredential::from_pb(forged).expect("well-formed"), NOW),
        Err(Refused::NotGenuine(_))
    ));
    // An issuer that lets credentials outlive its own right.
    forger = Root::founding(key(1)).certify(key(50), NOW, DAY).expect("certified");
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
        trust.follow(&configuration(settings, Vec::new()));
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
    trust.follow(&Configuration { epoch, ..configuration(settings, revoked) });
    assert_eq!(trust.admit(&host(), &issue(&issuer(1)), NOW), Err(Refused::Revoked));
}

#[test]
fn a_revoked_manager_makes_no_members() {
    let manager = key(50).public().to_peer_id();
    let issued_at = |seconds| {
        let granted = (Roles::NODES, &Tags::new());
        issuer(1).issue(host(), granted, 1, (at(seconds), 14 * DAY)).expect("issued").0
    };
    let mut trust = Trust::new(cluster());
    let before = issued_at(3600);
    let admitted = trust.admit(&host(), &issued_at(3602), at(3602)).expect("nobody is revoked");
    trust.follow(&configuration(Settings::default(), vec![Revocation { peer: manager, at: at(3601) }]));
    trust.admit(&host(), &before, at(7200)).expect("it could sign then");
    for shown in [issued_at(3602), issued_at(86_400)] {
        assert_eq!(trust.admit(&host(), &shown, at(90_000)), Err(Refused::IssuerRevoked));
        assert_eq!(trust.own_standing(&shown, at(90_000)), Err(Refused::IssuerRevoked));
    }
    assert_eq!(
        trust.standing(&admitted, at(7200)),
        Err(Refused::IssuerRevoked),
        "nor does who was admitted before stay"
    );
}

fn token() -> JoinToken {
    let manager = key(50).public().to_peer_id();
    let address = format!("/ip4/10.0.0.1/tcp/4700/p2p/{manager}").parse().expect("an address");
    JoinToken {
        roots: Root::founding(key(1)).hand_over(key(2)).expect("handed over").roots().expect("genuine"),
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
    let configuration = configuration(settings, Vec::new());
    let configuration = configuration.sign(&issuer(1)).expect("signed");
    let managers = token().managers;
    let welcome = Answer::Welcome(Welcome { credential: issue(&issuer(1)), configuration, managers });
    assert_eq!(Answer::from_bytes(&welcome.to_bytes()), Ok(welcome));
    let refused = Answer::Refused(Refusal::new(RefusalCode::UsedUp, "used up"));
    assert_eq!(Answer::from_bytes(&refused.to_bytes()), Ok(refused));
    let greeting = Greeting { issuer: issuer(1).certificate().clone(), nonce: [1; NONCE_BYTES] };
    assert_eq!(Greeting::from_bytes(&greeting.to_bytes()), Ok(greeting));
}

fn certified(root: &Root) -> Issuer {
    root.certify(key(50), NOW, 90 * DAY).expect("certified")
}

#[test]
fn roots_are_followed_onwards_and_never_back() {
    let first = Root::founding(key(1));
    let second = first.hand_over(key(2)).expect("handed over");
    let third = second.hand_over(key(3)).expect("handed over");
    let of = |root: &Root| issue(&certified(root));
    let configuration = |roots| Configuration { roots, ..configuration(Settings::default(), Vec::new()) };
    let overlap = configuration(third.roots().expect("genuine"));
    let newest = configuration(third.roots().expect("genuine").newest_only());

    // (what the member knows, by which root the credential is, why it is refused)
    let knows = |known: Option<&Configuration>| {
        let mut trust = Trust::new(cluster());
        known.iter().for_each(|known| trust.follow(known));
        trust
    };
    let table = [
        (knows(None), &first, None, "the one it knows"),
        (knows(None), &third, None, "one that it can follow to, after years"),
        (knows(Some(&overlap)), &first, None, "one that still counts"),
        (knows(Some(&newest)), &third, None, "the newest"),
        (knows(Some(&newest)), &first, Some("retired"), "one that counts no more"),
        (knows(Some(&newest)), &second, Some("retired"), "likewise"),
    ];
    for (trust, root, refused, why) in table {
        let admitted = trust.admit(&host(), &of(root), NOW);
        match refused {
            None => assert_eq!(admitted.expect(why).root, root.fingerprint(), "{why}"),
            Some(reason) => {
                let error = admitted.expect_err(why).to_string();
                assert!(error.contains(reason), "{why}: {error}");
            }
        }
    }
    // Who has stolen a root that handed over makes another successor of it.
    let stolen = first.hand_over(key(9)).expect("handed over");
    let error = knows(Some(&overlap)).admit(&host(), &of(&stolen), NOW).expect_err("a second successor");
    assert!(error.to_string().contains("another successor"), "{error}");
    // Steps of another cluster, steps in another order, a key without its steps.
    assert!(Root::new(key(3), ClusterId::of_root(&key(2).public()), third.succession().clone()).is_err());
    let swapped = third.succession().to_pb().into_iter().rev().collect();
    assert!(Root::new(key(3), cluster(), Succession::from_pb(swapped).expect("few")).is_err());
    assert!(Root::new(key(3), cluster(), Succession::default()).is_err());
    assert!(Root::new(key(2), cluster(), third.succession().clone()).is_err(), "it has handed over");
    assert!(third.hand_over(key(1)).is_err(), "it was a root before");
    // What has been admitted goes when its root is retired.
    let mut trust = knows(None);
    let admitted = trust.admit(&host(), &of(&first), NOW).expect("admitted");
    trust.follow(&newest);
    assert_eq!(trust.standing(&admitted, NOW), Err(Refused::RootRetired));
    assert_eq!(trust.own_standing(&of(&second), NOW), Err(Refused::RootRetired));
    assert_eq!(trust.own_standing(&of(&third), NOW), Ok(Standing::Valid));

    let mut last = third;
    for seed in 4..=u8::try_from(ROOTS_MAX).expect("few") {
        last = last.hand_over(key(seed)).expect("not too many");
    }
    assert!(last.hand_over(key(20)).is_err(), "a succession is bounded");
    assert_eq!(Succession::from_bytes(&last.succession().to_bytes()), Ok(last.succession().clone()));
    assert!(of(&last).to_bytes().len() < CREDENTIAL_BYTES_MAX);
}

#[test]
fn configurations_bring_roots_and_take_none_back() {
    let first = Root::founding(key(1));
    let second = first.hand_over(key(2)).expect("handed over");
    let both = second.roots().expect("genuine");
    let signed = |epoch, roots: &Roots, root: &Root| {
        let configuration =
            Configuration { epoch, roots: roots.clone(), ..configuration(Settings::default(), Vec::new()) };
        configuration.sign(&certified(root))
    };
    let mut member = Acceptance::new(cluster());
    member.offer(&signed(1, &Roots::of(cluster()), &first).expect("signed")).expect("the first root's");
    member.offer(&signed(2, &both, &second).expect("signed")).expect("followed");
    let back = signed(3, &Roots::of(cluster()), &first).expect("signed");
    assert!(matches!(member.offer(&back), Err(ConfigurationRefused::OtherRoots)), "by a manager that is behind");
    assert!(signed(3, &both, &first).is_err(), "the first root's manager cannot speak for the second");
    member.offer(&signed(3, &both.newest_only(), &second).expect("signed")).expect("retired");
    assert!(matches!(member.offer(&signed(4, &both, &second).expect("signed")), Err(ConfigurationRefused::OtherRoots)));
    assert!(matches!(
        member.offer(&signed(4, &Roots::of(cluster()), &first).expect("signed")),
        Err(ConfigurationRefused::OtherSigner(_))
    ));
    // A host that was off all the time follows at once.
    let newest = signed(4, &both.newest_only(), &second).expect("signed");
    Acceptance::new(cluster()).offer(&newest).expect("followed");
    // Another certificate of the same signer is the same configuration.
    let again = Configuration { epoch: 4, roots: both.newest_only(), ..configuration(Settings::default(), Vec::new()) };
    member.offer(&newest).expect("taken over");
    let later = second.certify(key(50), at(60), 90 * DAY).expect("certified");
    assert!(matches!(member.offer(&again.sign(&later).expect("signed")), Ok(crate::config::Verdict::Known)));
    let expired = Configuration { epoch: 5, issued: at(-3600), ..again };
    assert_eq!(
        member.offer(&expired.sign(&later).expect("signed")).expect_err("before its signer's time"),
        ConfigurationRefused::SignerExpired
    );
}

#[test]
fn the_tags_of_a_host_are_those_granted_and_its_own_where_that_is_allowed() {
    let tags = |tags: &[(&str, &str)]| -> Tags {
        tags.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    };
    type Row<'a> =
        (&'a [(&'a str, &'a str)], &'a [(&'a str, &'a str)], &'a [(&'a str, &'a str)], &'a [&'a str], &'a str);
    let table: [Row<'_>; 6] = [
        (&[], &[("zone", "a")], &[("zone", "a")], &[], "a token that says nothing"),
        (&[("zone", "a")], &[("rack", "1")], &[("rack", "1"), ("zone", "a")], &[], "other names"),
        (&[("zone", "a")], &[("zone", "b")], &[("zone", "a")], &["zone"], "what the token says, counts"),
        (&[("zone", "a")], &[("zone", "a")], &[("zone", "a")], &[], "the same"),
        (&[("own_tags", "none")], &[("rack", "1")], &[("own_tags", "none")], &["rack"], "a token that allows none"),
        (&[], &[("own_tags", "any")], &[], &["own_tags"], "a host allows itself nothing"),
    ];
    for (granted, own, expected, overruled, reason) in table {
        let (granted, own) = (tags(granted), tags(own));
        assert_eq!(host_tags(&granted, &own), tags(expected), "{reason}");
        assert_eq!(overruled_tags(&granted, &own), overruled, "{reason}");
    }
    let many: Tags = (0..TAGS_MAX + 8).map(|number| (number.to_string(), String::new())).collect();
    assert_eq!(host_tags(&tags(&[("zone", "a")]), &many).len(), TAGS_MAX, "no more than can be told");
}
