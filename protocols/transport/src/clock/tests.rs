use std::{fs, os::unix::fs::PermissionsExt as _};

use super::*;

const NOW: UnixMillis = UnixMillis(1_700_000_000_000);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);

fn after(time: Duration) -> UnixMillis {
    UnixMillis(NOW.0 + time.as_millis() as u64)
}

/// How a test moves a clock: ±1 h, ±1 day, and to 1970.
const MOVES: [(&str, i64); 5] = [
    ("an hour back", -3_600_000),
    ("an hour ahead", 3_600_000),
    ("a day back", -86_400_000),
    ("a day ahead", 86_400_000),
    ("to 1970", -(NOW.0 as i64)),
];

fn is_near(time: UnixMillis, expected: UnixMillis) -> bool {
    time.0.abs_diff(expected.0) <= 2_000
}

#[test]
fn a_clock_that_is_moved_while_the_program_runs_is_not_believed() {
    for (what, shift) in MOVES {
        let source = Manual::new(NOW);
        let clock = Clock::with_source(source.clone());
        source.pass(MINUTE);
        assert_eq!(clock.expirable(), Some(after(MINUTE)), "the clocks agree");
        source.shift(shift);
        source.pass(MINUTE);
        assert_eq!(clock.expirable(), None, "{what}");
        assert!(is_near(clock.now(), after(2 * MINUTE)), "{what}: {:?}", clock.now());
        assert_eq!(clock.problem().map(|problem| problem.kind()), Some("stepped"), "{what}");
        assert_eq!(clock.vouched(), None, "{what}");
        source.shift(-shift);
        assert_eq!(clock.expirable(), Some(after(2 * MINUTE)), "{what} and back");
        assert_eq!(clock.problem(), None);
    }
}

#[test]
fn a_clock_that_was_wrong_from_the_start_is_seen_by_what_the_cluster_says() {
    for (what, shift) in MOVES {
        let source = Manual::new(NOW);
        source.shift(shift);
        let clock = Clock::with_source(source.clone());
        clock.require_confirmation();
        clock.learn(Signed::Credential, NOW);
        assert_eq!(clock.expirable(), None, "{what}: nobody has confirmed it");
        assert!(clock.now() >= NOW, "{what}: not before what is signed");
        let is_behind = shift < 0;
        assert_eq!(clock.problem().map(|problem| problem.kind()), is_behind.then_some("behind"), "{what}");
        source.pass(MINUTE);
        clock.hear(PeerId::random(), after(MINUTE));
        clock.hear(PeerId::random(), after(MINUTE));
        assert_eq!((clock.expirable(), clock.now()), (None, after(MINUTE)), "{what}: the schedulers' time");
        assert_eq!(clock.problem().map(|problem| problem.kind()), Some("differs"), "{what}");
        // Somebody sets it right.
        source.shift(-shift);
        assert_eq!((clock.expirable(), clock.problem()), (Some(after(MINUTE)), None), "{what}");
    }
}

#[test]
fn schedulers_confirm_a_step_and_a_manager_does() {
    let peer = PeerId::random();
    let source = Manual::new(NOW);
    let clock = Clock::with_source(source.clone());
    clock.require_confirmation();
    assert_eq!(clock.expirable(), None);
    source.shift(DAY.as_millis() as i64);
    assert!(is_near(clock.now(), NOW));
    clock.hear(peer, after(DAY));
    assert_eq!(clock.expirable(), Some(after(DAY)), "it was wrong, and is right now");
    source.shift(HOUR.as_millis() as i64);
    assert_eq!(clock.expirable(), None);
    // The scheduler is silent meanwhile.
    source.pass(HOUR);
    assert!(clock.confirm(after(DAY + 2 * HOUR)));
    assert_eq!(clock.expirable(), Some(after(DAY + 2 * HOUR)));
    // A manager whose clock is wrong moves nobody whose clock is confirmed.
    assert!(!clock.confirm(after(365 * DAY)));
    clock.learn(Signed::Configuration, after(365 * DAY));
    assert_eq!(clock.now(), after(DAY + 2 * HOUR));
}

#[test]
fn one_scheduler_of_three_moves_nobody() {
    let source = Manual::new(NOW);
    let clock = Clock::with_source(source.clone());
    clock.require_confirmation();
    let liar = PeerId::random();
    clock.hear(liar, after(365 * DAY));
    assert_eq!(clock.expirable(), None, "alone it can keep entries, and remove none");
    clock.hear(PeerId::random(), NOW);
    assert_eq!((clock.expirable(), clock.problem()), (None, Some(ClockProblem::Disputed)), "one against one");
    assert_eq!(clock.now(), NOW);
    clock.hear(PeerId::random(), NOW);
    assert_eq!((clock.expirable(), clock.problem()), (Some(NOW), None));
    clock.hear(liar, None);
    assert_eq!(clock.expirable(), Some(NOW), "it takes back what it said");
    // They are forgotten.
    source.pass(11 * MINUTE);
    clock.hear(liar, after(365 * DAY));
    assert_eq!(clock.expirable(), None);
    for _ in 0..1000 {
        clock.hear(PeerId::random(), after(11 * MINUTE));
    }
    assert_eq!(clock.expirable(), Some(after(11 * MINUTE)));
}

#[test]
fn what_a_peer_shows_is_a_floor_only_for_a_clock_that_nobody_has_confirmed() {
    let source = Manual::new(UnixMillis(0));
    let clock = Clock::with_source(source.clone());
    assert!(!clock.learn_from_peer(after(HOUR), NOW), "later than the own credential holds");
    assert!(clock.learn_from_peer(NOW, after(DAY)));
    source.pass(MINUTE);
    assert_eq!(clock.now(), after(MINUTE));
    assert!(clock.confirm(after(HOUR)));
    assert!(!clock.learn_from_peer(after(2 * HOUR), after(DAY)));
    assert_eq!(clock.now(), after(HOUR));
}

#[test]
fn a_host_without_a_cluster_believes_a_step_after_a_day() {
    let source = Manual::new(UnixMillis(0));
    let clock = Clock::with_source(source.clone());
    source.set(NOW);
    assert_eq!(clock.expirable(), None);
    for _ in 0..23 {
        source.pass(HOUR);
        assert_eq!(clock.expirable(), None);
    }
    source.pass(HOUR);
    assert_eq!(clock.expirable(), Some(after(DAY)));
}

#[test]
fn of_clocks_that_agree_the_last_one_decides() {
    let source = Manual::new(NOW);
    let clock = Clock::with_source(source.clone());
    clock.hear(PeerId::random(), UnixMillis(NOW.0 - MINUTE.as_millis() as u64));
    assert_eq!(clock.expirable(), Some(UnixMillis(NOW.0 - MINUTE.as_millis() as u64)));
}

#[test]
fn what_an_earlier_run_knew_shows_a_step_between_two_runs() {
    let folder = tempfile::tempdir().expect("a folder");
    for (what, shift) in MOVES {
        let source = Manual::new(NOW);
        let clock = Clock::open_with(source.clone(), folder.path());
        assert_eq!(clock.expirable(), Some(NOW));
        source.pass(MINUTE);
        source.shift(shift);
        let clock = Clock::open_with(source.clone(), folder.path());
        assert_eq!((clock.expirable(), clock.now()), (None, after(MINUTE)), "{what}");
        // Another boot knows nothing of it, and neither does a file that is damaged.
        fs::write(folder.path().join(CLOCK_FILE), "{").expect("written");
        let clock = Clock::open_with(source.clone(), folder.path());
        assert!(clock.expirable().is_some(), "{what}");
        fs::remove_file(folder.path().join(CLOCK_FILE)).expect("removed");
    }
    let confirmed = Clock::open_with(Manual::new(NOW), folder.path());
    assert!(confirmed.confirm(NOW));
    confirmed.keep();
    let again = Clock::open_with(Manual::new(NOW), folder.path());
    again.require_confirmation();
    assert_eq!(again.expirable(), Some(NOW), "it is confirmed since the boot");
}

#[test]
fn a_shift_counts_only_in_a_file_of_the_own_user() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("shift");
    assert!(source::read_shift(&path).is_err(), "none");
    fs::write(&path, "-3600000\n").expect("written");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).expect("chmod");
    assert_eq!(source::read_shift(&path).expect("own"), -3_600_000);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).expect("chmod");
    assert!(source::read_shift(&path).is_err(), "others may write it");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).expect("chmod");
    let link = folder.path().join("link");
    std::os::unix::fs::symlink(&path, &link).expect("a link");
    assert!(source::read_shift(&link).is_err(), "a link");
    fs::write(&path, "tomorrow").expect("written");
    assert!(source::read_shift(&path).is_err(), "no number");
}
