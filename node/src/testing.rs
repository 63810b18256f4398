//! What tests of several modules need: a host that belongs to no cluster.

use std::{
    fs::File,
    io::{Seek as _, Write as _},
    ops::ControlFlow,
    path::Path,
};

use damselfly_messages::{
    manifest::Manifest,
    name::Name,
    record::{Binding, UnixMillis},
};
use damselfly_transport::admission::Admission;
use damselfly_transport::network::{self, ConnectionLimits, Network, NetworkConfig, Serves};
use libp2p::identity::Keypair;

use crate::{
    announcer::Announcer,
    download::Downloads,
    export::Exporter,
    host::Host,
    limiter::Limiter,
    metrics::Metrics,
    schedulers::Schedulers,
    settings::HostSettings,
    store::{Options, Store, TaskRecord, TaskState},
};

/// Bytes that differ from place to place and from `seed` to `seed`.
pub fn bytes(seed: u64, length: usize) -> Vec<u8> {
    let mut all = vec![0; length];
    for (chunk, number) in all.chunks_mut(8).zip(seed << 32..) {
        let mixed = number.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        chunk.copy_from_slice(&(mixed ^ mixed >> 29).to_le_bytes()[..chunk.len()]);
    }
    all
}

pub fn source(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().expect("a temporary file");
    file.write_all(bytes).expect("written");
    file.rewind().expect("rewound");
    file
}

pub fn name(cid: &str) -> Name {
    Name::parse(cid, "").expect("a name")
}

pub fn store(directory: &Path) -> Store {
    Store::open(directory, Options { free_space_floor: 0, ..Options::default() }).expect("opens").0
}

/// A record as the owners have accepted it.
pub fn record(cid: &str, manifest: &Manifest) -> TaskRecord {
    TaskRecord {
        name: name(cid),
        binding: Binding {
            content: manifest.content(),
            content_bytes: manifest.layout().content_bytes(),
            generation: 1,
            accepted: Some(UnixMillis(1)),
            expires: None,
        },
        state: TaskState::Acknowledged,
        imported: UnixMillis(1),
        last_used: UnixMillis(1),
        pinned: false,
        fetched: false,
    }
}

/// Puts bytes into the store, under a name that the owners have accepted.
pub fn import(store: &Store, cid: &str, bytes: &[u8]) -> Manifest {
    let import = store.begin_import(None).expect("begins");
    let imported = import.copy_from(source(bytes), &mut |_| ControlFlow::Continue(())).expect("copies");
    let record = record(cid, imported.manifest());
    imported.commit(vec![record]).expect("commits")
}

fn network() -> Network {
    let started = network::start(NetworkConfig {
        admission: Admission::closed(),
        keypair: Keypair::generate_ed25519(),
        listen: Vec::new(),
        serves: Serves::default(),
        topic: None,
        limits: ConnectionLimits::default(),
        dial: damselfly_transport::dialing::DialPolicy::local(),
    });
    started.expect("starts").0
}

pub fn announcer(store: &Store) -> Announcer {
    let network = network();
    let schedulers = Schedulers::new(network.clone(), None);
    Announcer::new(store.clone(), schedulers, network, Host::default(), Metrics::default()).expect("reads the store")
}

pub fn exporter(directory: &Path) -> Exporter {
    let store = store(directory);
    let (network, metrics) = (network(), Metrics::default());
    let schedulers = Schedulers::new(network.clone(), None);
    let announcer =
        Announcer::new(store.clone(), schedulers.clone(), network.clone(), Host::default(), metrics.clone());
    let announcer = announcer.expect("reads the store");
    let (limiter, settings) = (Limiter::new(None), HostSettings::default());
    let downloads = Downloads::new(
        store.clone(),
        network,
        schedulers.clone(),
        announcer.clone(),
        (limiter, settings.clone()),
        metrics.clone(),
    );
    Exporter { store, schedulers, downloads, announcer, settings, metrics }
}
