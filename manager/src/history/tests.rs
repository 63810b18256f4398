use super::*;
use crate::database::{Location, Page, audit::Filter};

async fn database(data: &Path) -> Database {
    identity::prepare_data_dir(data).expect("made");
    Database::open(Location::Sqlite(data.join("manager.db"))).await.expect("opened")
}

async fn open(data: &Path) -> Result<Store, StoreError> {
    Store::open(data, database(data).await, Settings::default(), UnixMillis(1)).await
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a folder")
}

fn order<'a>(store: &Store, actor: &'a Actor, replicas: u32) -> Order<'a> {
    let settings = Settings { replicas, ..Settings::default() };
    let roots = store.keys().issuer().roots().clone();
    Order { settings, revoked: Vec::new(), roots, next: None, actor, action: "config.change", reason: None }
}

#[tokio::test]
async fn a_cluster_is_founded_once() {
    let folder = folder();
    let data = folder.path().join("data");
    let store = open(&data).await.expect("founded");
    assert!(store.newest().epoch() == 1 && store.is_new());
    let actor = Actor { name: "eve".to_owned(), address: Some("192.0.2.1".to_owned()) };
    let second = store.sign(1, order(&store, &actor, 2), |epoch| epoch == 1, UnixMillis(2)).await.expect("signed");
    let stale = store.sign(1, order(&store, &actor, 2), |epoch| epoch == 1, UnixMillis(3)).await;
    assert!(matches!(stale, Err(SignError::Stale { current: 2 })), "an epoch is used once: {stale:?}");
    let wrong = store.sign(2, order(&store, &actor, 9), |_| true, UnixMillis(3)).await;
    assert!(matches!(wrong, Err(SignError::Invalid(_))));
    let above = store.sign(7, order(&store, &actor, 2), |epoch| epoch == 7, UnixMillis(3)).await.expect("signed");
    assert_eq!(above.epoch(), 8, "members knew of seven");
    let again = open(&data).await.expect("opened");
    assert_eq!((again.cluster(), again.newest()), (store.cluster(), &above));
    assert!(!again.is_new());
    assert_eq!(second.epoch(), 2);
    let any = again.sign(1, order(&again, &actor, 3), |_| true, UnixMillis(4)).await.expect("signed");
    assert_eq!(any.epoch(), 9, "another manager of this database was ahead");

    let audit = again.database().audit(&Page::new(9, None), &Filter::default()).await.expect("read");
    let told: Vec<_> =
        audit.items.iter().map(|entry| (entry.actor.as_str(), &entry.action[..], &entry.target[..])).collect();
    let expected = [
        ("eve", "config.change", "9"),
        ("eve", "config.change", "8"),
        ("eve", "config.change", "2"),
        ("(manager)", "cluster.found", "1"),
    ];
    assert_eq!(told, expected, "and nothing of what was refused");
    let newest = &audit.items[1];
    assert_eq!(newest.before, None, "epoch 7 is not in the database");
    assert_eq!(audit.items[2].before, Some(json!(Settings::default())));
    assert_eq!(newest.after.as_ref().expect("told")["replicas"], 2);
    assert_eq!(newest.from_address.as_deref(), Some("192.0.2.1"));
}

#[tokio::test]
async fn key_and_database_need_each_other() {
    let folder = folder();
    let (one, two) = (folder.path().join("1"), folder.path().join("2"));
    let store = open(&one).await.expect("founded");
    store.database().close().await;
    fs::rename(one.join(ROOT_KEY), folder.path().join("key")).expect("moved away");
    let error = open(&one).await.expect_err("half a store");
    assert!(matches!(error, StoreError::DatabaseAlone { .. }) && error.to_string().contains("backup"), "{error}");

    open(&two).await.expect("founded").database().close().await;
    fs::rename(folder.path().join("key"), two.join(ROOT_KEY)).expect("moved");
    let error = open(&two).await.expect_err("two clusters");
    assert!(matches!(error, StoreError::Foreign { .. }) && error.to_string().contains("backup"), "{error}");

    for file in ["manager.db", "manager.db-wal", "manager.db-shm"] {
        drop(fs::remove_file(two.join(file)));
    }
    let error = open(&two).await.expect_err("half a store");
    assert!(matches!(error, StoreError::KeyAlone { .. }) && error.to_string().contains("backup"), "{error}");
}

#[tokio::test]
async fn founding_goes_on_after_a_crash() {
    let folder = folder();
    let data = folder.path().join("data");
    let cluster = open(&data).await.expect("founded").cluster();
    fs::rename(data.join(ROOT_KEY), data.join(FOUNDING_KEY)).expect("as if not finished");
    assert_eq!(open(&data).await.expect("founded").cluster(), cluster);
    assert!(!data.join(FOUNDING_KEY).exists());
    let data = folder.path().join("early");
    identity::prepare_data_dir(&data).expect("made");
    let key = identity::load_or_create(&data.join(FOUNDING_KEY)).expect("made");
    assert_eq!(open(&data).await.expect("founded").cluster(), ClusterId::of_root(&key.public()));
}

#[tokio::test]
async fn the_root_is_exchanged_whenever_the_power_fails() {
    let folder = folder();
    let data = folder.path().join("data");
    let store = open(&data).await.expect("founded");
    let (actor, cluster) = (Actor::manager(), store.cluster());
    let first = fs::read(data.join(ROOT_KEY)).expect("the first key");
    // Begun, and the database never heard of it: the first root is in use.
    let next = store.keys().prepare(UnixMillis(2)).expect("made");
    assert_eq!(open(&data).await.expect("opened").keys().issuer().roots().count(), 1);

    let roots = next.issuer().roots().clone();
    let both = Order { roots: roots.clone(), next: Some((&next, UnixMillis(9))), ..order(&store, &actor, 2) };
    let second = store.sign(1, both, |epoch| epoch == 1, UnixMillis(3)).await.expect("signed");
    // The database knows, and the file still has the name of the next one.
    assert_eq!(fs::read(data.join(ROOT_KEY)).expect("a key"), first);
    let again = open(&data).await.expect("opened");
    assert_eq!((again.cluster(), again.keys().issuer().roots()), (cluster, &roots));
    assert_eq!(again.newest(), &second);
    assert_ne!(fs::read(data.join(ROOT_KEY)).expect("a key"), first);
    assert_eq!(again.database().meta(configurations::RETIREMENT).await.expect("read"), Some("9".to_owned()));

    // A manager that goes on with the first key cannot sign for members who know the second.
    let behind = Order { roots, ..order(&store, &actor, 3) };
    assert!(matches!(store.sign(2, behind, |_| true, UnixMillis(4)).await, Err(SignError::OtherRoot)));
    let third = again.sign(2, order(&again, &actor, 3), |_| true, UnixMillis(4)).await.expect("signed");
    let mut member = Acceptance::new(cluster);
    for signed in [store.newest(), &second, &third] {
        member.offer(signed).expect("members follow");
    }
    fs::write(data.join(ROOT_KEY), first).expect("an old backup");
    assert!(matches!(open(&data).await, Err(StoreError::Foreign { .. })), "the first key is of no use any more");
}

#[test]
fn a_key_without_its_database_is_seen_before_one_is_made() {
    let folder = folder();
    let data = folder.path();
    let file = data.join("manager.db");
    let check = || check_key_not_alone(data, &Location::Sqlite(file.clone()));
    check().expect("a new directory");
    fs::write(data.join(ROOT_KEY), "key").expect("written");
    assert!(matches!(check(), Err(StoreError::KeyAlone { .. })));
    assert!(!file.exists(), "nothing is left behind");
    check_key_not_alone(data, &Location::Postgres("postgres://server".to_owned().into()))
        .expect("that one is elsewhere");
    fs::write(&file, "").expect("written");
    check().expect("the database is looked at");
}
