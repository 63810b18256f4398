use std::time::Duration;

use libp2p::identity::Keypair;

use super::*;
use crate::membership::Root;

fn configuration(root: &Keypair, epoch: u64) -> Configuration {
    let scheduler = SchedulerEntry::active(PeerId::random(), vec!["/ip4/127.0.0.1/tcp/1".parse().expect("an address")]);
    let settings = Settings { schedulers: vec![scheduler], ..Settings::default() };
    Configuration {
        cluster: ClusterId::of_root(&root.public()),
        epoch,
        issued: UnixMillis(1),
        settings,
        revoked: Vec::new(),
        roots: Roots::of(ClusterId::of_root(&root.public())),
    }
}

fn issuer(root: &Keypair) -> Issuer {
    Root::founding(root.clone()).certify(root.clone(), UnixMillis(0), Duration::MAX).expect("certified")
}

#[test]
fn only_newer_configurations_of_the_root_are_accepted() {
    let root = Keypair::generate_ed25519();
    let mut acceptance = Acceptance::new(ClusterId::of_root(&root.public()));
    let second = configuration(&root, 2).sign(&issuer(&root)).expect("valid");
    assert!(matches!(acceptance.offer(&second), Ok(Verdict::Newer(_))));
    assert!(matches!(acceptance.offer(&second), Ok(Verdict::Known)));

    let first = configuration(&root, 1).sign(&issuer(&root)).expect("valid");
    assert_eq!(acceptance.offer(&first).expect_err("older"), ConfigurationRefused::Older { offered: 1, current: 2 });
    let same = configuration(&root, 2).sign(&issuer(&root)).expect("valid");
    assert_eq!(acceptance.offer(&same).expect_err("another of the epoch"), ConfigurationRefused::Equivocation(2));

    let stranger = Keypair::generate_ed25519();
    let forged = configuration(&root, 3).sign(&issuer(&stranger)).expect("valid");
    assert!(matches!(acceptance.offer(&forged), Err(ConfigurationRefused::OtherSigner(_))));
    let mut other = configuration(&root, 3);
    other.cluster = ClusterId::of_root(&stranger.public());
    let other = other.sign(&issuer(&root)).expect("valid");
    assert!(matches!(acceptance.offer(&other), Err(ConfigurationRefused::OtherCluster(_))));
    assert_eq!(acceptance.epoch(), 2);
}

#[test]
fn any_changed_bit_is_refused() {
    let root = Keypair::generate_ed25519();
    let signed = configuration(&root, 5).sign(&issuer(&root)).expect("valid");
    for position in 0..signed.as_bytes().len() {
        let mut bytes = signed.as_bytes().to_vec();
        bytes[position] ^= 1;
        let mut acceptance = Acceptance::new(ClusterId::of_root(&root.public()));
        let accepted = SignedConfiguration::from_bytes(&bytes).is_ok_and(|signed| acceptance.offer(&signed).is_ok());
        assert!(!accepted, "byte {position}");
    }
}

#[test]
fn values_out_of_range_are_refused_with_the_range() {
    let settings = Settings { replicas: 9, ..Settings::default() };
    assert_eq!(settings.validate().expect_err("too many").to_string(), "invalid replicas: 9 is not within 1–8");
    assert!(Settings { lease_ms: 10, ..Settings::default() }.validate().is_err());
    assert!(serde_json::from_str::<Settings>(r#"{"unknown":1}"#).is_err());
    for (quota, high, low, field) in [
        (0, 90, 80, None),
        (64 << 20, 100, 99, None),
        (1 << 50, 2, 1, None),
        ((64 << 20) - 1, 90, 80, Some("store_quota_bytes")),
        ((1 << 50) + 1, 90, 80, Some("store_quota_bytes")),
        (0, 101, 80, Some("store_high_percent")),
        (0, 1, 1, Some("store_high_percent")),
        (0, 80, 80, Some("store_low_percent")),
        (0, 80, 0, Some("store_low_percent")),
    ] {
        let (store_quota_bytes, store_high_percent, store_low_percent) = (quota, high, low);
        let settings = Settings { store_quota_bytes, store_high_percent, store_low_percent, ..Settings::default() };
        let told = settings.validate().err().map(|error| error.to_string());
        assert_eq!(told.is_some(), field.is_some(), "{told:?}");
        assert!(field.is_none_or(|field| told.is_some_and(|told| told.contains(field))), "{field:?}");
    }
}

#[test]
fn gossip_of_a_long_configuration_is_a_hint() {
    let root = Keypair::generate_ed25519();
    let mut long = configuration(&root, 1);
    let entry = long.settings.schedulers[0].clone();
    long.settings.schedulers =
        (0..SCHEDULERS_MAX).map(|_| SchedulerEntry { peer_id: PeerId::random(), ..entry.clone() }).collect();
    long.settings.schedulers[0].addresses = vec![entry.addresses[0].clone(); 16];
    let long = long.sign(&issuer(&root)).expect("valid");
    let gossip = Gossip::of(&long);
    assert_eq!(gossip.full.is_none(), long.as_bytes().len() > GOSSIPED_BYTES_MAX);
    let short = Gossip::of(&configuration(&root, 1).sign(&issuer(&root)).expect("valid"));
    assert_eq!(Gossip::from_bytes(&short.to_bytes()), Ok(short));
}

#[test]
fn what_nobody_would_accept_is_not_signed() {
    let root = Keypair::generate_ed25519();
    let revoked = |count| {
        let at = UnixMillis(1);
        let revoked = (0..count).map(|_| Revocation { peer: PeerId::random(), at }).collect();
        Configuration { revoked, ..configuration(&root, 1) }.sign(&issuer(&root))
    };
    let most = revoked(REVOKED_MAX).expect("as many as there may be");
    assert!(Acceptance::new(ClusterId::of_root(&root.public())).offer(&most).is_ok());
    assert!(revoked(REVOKED_MAX + 1).is_err());
}

/// Two managers of a cluster, and a host.
struct Managers {
    root: Keypair,
    honest: Keypair,
    stolen: Keypair,
    host: PeerId,
}

const DAY: u64 = 24 * 3_600_000;
const NOW: u64 = 1_000 * DAY;

impl Managers {
    fn new() -> Self {
        let key = Keypair::generate_ed25519;
        Self { root: key(), honest: key(), stolen: key(), host: PeerId::random() }
    }

    fn cluster(&self) -> ClusterId {
        ClusterId::of_root(&self.root.public())
    }

    fn issuer(&self, key: &Keypair, days: u64) -> Issuer {
        let root = Root::founding(self.root.clone());
        root.certify(key.clone(), UnixMillis(NOW), Duration::from_millis(days * DAY)).expect("certified")
    }

    fn signed(&self, by: &Keypair, epoch: u64, issued: u64, revoked: &[(PeerId, u64)]) -> SignedConfiguration {
        let revoked = revoked.iter().map(|(peer, at)| Revocation { peer: *peer, at: UnixMillis(*at) }).collect();
        let configuration = Configuration { issued: UnixMillis(issued), revoked, ..configuration(&self.root, epoch) };
        configuration.sign(&self.issuer(by, 200)).expect("signed")
    }

    /// A member that knows whom the honest manager has revoked.
    fn member(&self, revoked: &[(PeerId, u64)]) -> Acceptance {
        let mut member = Acceptance::new(self.cluster());
        member.offer_at(&self.signed(&self.honest, 5, NOW, revoked), UnixMillis(NOW)).expect("the first");
        member
    }
}

#[test]
fn what_a_revoked_manager_signs_is_never_newer() {
    let managers = Managers::new();
    let stolen = managers.stolen.public().to_peer_id();
    let revoked = [(stolen, NOW)];
    for (issued, epoch, why) in [
        (NOW + 1, 6, "after its revocation"),
        (NOW, 6, "at that moment"),
        (NOW - 1, 6, "dated back"),
        (NOW + 100 * DAY, 6, "when its revocation need not be named any more"),
        (NOW, u64::MAX, "above every epoch"),
    ] {
        for names in [&revoked[..], &[]] {
            let mut member = managers.member(&revoked);
            let signed = managers.signed(&managers.stolen, epoch, issued, names);
            let refused = member.offer_at(&signed, UnixMillis(issued)).expect_err(why);
            assert_eq!(refused, ConfigurationRefused::SignerRevoked(stolen), "{why}");
            let next = managers.signed(&managers.honest, 6, NOW + 2, &revoked);
            assert!(matches!(member.offer_at(&next, UnixMillis(NOW + 2)), Ok(Verdict::Newer(_))), "{why}");
        }
    }
    // Before its revocation it counts, and the one that revokes it may be its own.
    let mut member = managers.member(&[]);
    let own = managers.signed(&managers.stolen, 6, NOW, &revoked);
    assert!(matches!(member.offer_at(&own, UnixMillis(NOW)), Ok(Verdict::Newer(_))));
}

#[test]
fn revocations_only_become_more_within_their_time() {
    let managers = Managers::new();
    let (host, other) = (managers.host, PeerId::random());
    let ends = NOW + 97 * DAY;
    // (who the next one names, when it is issued, the member's time, whether it is taken, why)
    let table = [
        (vec![(host, NOW)], NOW + 1, NOW + 1, true, "as it was"),
        (vec![(host, NOW), (other, NOW + 1)], NOW + 1, NOW + 1, true, "one more"),
        (Vec::new(), NOW + 1, NOW + 1, false, "taken back"),
        (vec![(host, NOW + 1)], NOW + 1, NOW + 1, false, "said to be later, so that more of its signatures count"),
        (Vec::new(), ends + 1, ends + 1, true, "no credential can hold any more"),
        (Vec::new(), ends + 1, NOW + 1, false, "only the issuer says that so much time has passed"),
        (Vec::new(), NOW + 1, ends + 1, false, "it was issued when they could hold"),
    ];
    for (names, issued, now, is_taken, why) in table {
        let mut member = managers.member(&[(host, NOW)]);
        let offered = member.offer_at(&managers.signed(&managers.honest, 6, issued, &names), UnixMillis(now));
        match is_taken {
            true => assert!(matches!(offered, Ok(Verdict::Newer(_))), "{why}: {offered:?}"),
            false => assert_eq!(offered.expect_err(why), ConfigurationRefused::Unrevoked(host), "{why}"),
        }
    }
    let (settings, revocation) = (Settings::default(), Revocation { peer: host, at: UnixMillis(NOW) });
    assert!(revocation.is_needed(&settings, UnixMillis(ends)), "managers keep it longer than members insist on it");
    assert!(!revocation.is_needed(&settings, UnixMillis(ends + DAY)));
}
