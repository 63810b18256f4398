//! The hosts: their leases, where they are, and what each has told.

use std::{
    collections::{BTreeMap, HashMap, hash_map},
    hash::{DefaultHasher, Hash as _, Hasher as _},
    sync::Arc,
    time::Duration,
};

use damselfly_messages::{
    id::TaskId,
    info::{HostReport, shown_tags},
    membership::Tags,
    record::BucketDigests,
};
use libp2p::{Multiaddr, PeerId};

/// Stands for a host in every index; never used again for another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct HostId(pub(crate) u32);

/// Addresses kept of one host; more are of no use to a child.
const ADDRESSES_KEPT: usize = 8;

/// The tags that count for locality, nearest first.
const LOCALITY_TAGS: [&str; 4] = ["host", "rack", "zone", "region"];

/// Where a host is: hashes of its tags, 0 for those it lacks. The texts themselves may take 8 KiB per host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Locality([u64; LOCALITY_TAGS.len()]);

impl Locality {
    pub(crate) fn of(tags: &Tags) -> Self {
        Self(LOCALITY_TAGS.map(|tag| {
            tags.get(tag).map_or(0, |value| {
                // Its keys are fixed, so equal texts are equal in every run.
                let mut hasher = DefaultHasher::new();
                value.hash(&mut hasher);
                hasher.finish().max(1)
            })
        }))
    }

    /// 0 for the same host, then rack, zone, region, and 4 for none of these.
    pub(crate) fn distance(&self, other: &Self) -> u8 {
        let nearest = self.0.iter().zip(other.0).position(|(mine, theirs)| *mine == theirs && theirs != 0);
        nearest.unwrap_or(LOCALITY_TAGS.len()) as u8
    }
}

/// A task's bucket and digest: one bucket is a range.
type TaskKey = (u8, [u8; 32]);

fn key(task: &TaskId) -> TaskKey {
    (task.bucket(), *task.digest())
}

fn task((_, digest): &TaskKey) -> Option<TaskId> {
    TaskId::from_bytes(digest).ok()
}

/// What a record is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A content that the host holds.
    Held,
    /// A delete that it knows of.
    Tombstone,
}

/// One record as a host told it.
#[derive(Debug, Clone, Copy)]
struct Told {
    digest: u64,
    kind: Kind,
    /// The host's [`Host::round`] at that time.
    round: u32,
}

/// A host with a live lease.
#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) peer: PeerId,
    pub(crate) addresses: Arc<[Multiaddr]>,
    pub(crate) seed: bool,
    pub(crate) locality: Locality,
    /// What is shown of its tags.
    pub(crate) tags: Arc<Tags>,
    /// Its connection dropped and it has not spoken since.
    pub(crate) suspect: bool,
    /// Downloads that fetch from it.
    pub(crate) children: u32,
    /// Downloads of its own.
    pub(crate) downloads: u32,
    /// The epoch it runs, its version and its counts, as it said last.
    pub(crate) epoch: u64,
    pub(crate) version: Box<str>,
    pub(crate) report: HostReport,
    /// When it said that: it speaks more often.
    pub(crate) reported: Option<Duration>,
    heard: Duration,
    told: BTreeMap<TaskKey, Told>,
    /// Tombstones among them.
    told_tombstones: usize,
    /// Of what it told about tasks owned by the present ring.
    digests: BucketDigests,
    /// Grows with each bucket that is told anew.
    round: u32,
    /// Buckets that are being told anew, with the round in which that began.
    replacing: BTreeMap<u8, u32>,
}

impl Host {
    fn new(peer: PeerId, at: Duration) -> Self {
        Self {
            peer,
            addresses: Arc::default(),
            seed: false,
            locality: Locality::default(),
            tags: Arc::default(),
            suspect: false,
            children: 0,
            downloads: 0,
            epoch: 0,
            version: Box::default(),
            report: HostReport::default(),
            reported: None,
            heard: at,
            told: BTreeMap::new(),
            told_tombstones: 0,
            digests: BucketDigests::default(),
            round: 0,
            replacing: BTreeMap::new(),
        }
    }

    pub(crate) fn describe(&mut self, mut addresses: Vec<Multiaddr>, seed: bool, tags: &Tags) {
        addresses.truncate(ADDRESSES_KEPT);
        self.addresses = addresses.into();
        self.seed = seed;
        self.locality = Locality::of(tags);
        let shown = shown_tags(tags);
        if *self.tags != shown {
            self.tags = Arc::new(shown);
        }
    }

    /// When it spoke last.
    pub(crate) fn heard(&self) -> Duration {
        self.heard
    }

    pub(crate) fn told_len(&self) -> usize {
        self.told.len()
    }

    pub(crate) fn told_tombstones(&self) -> usize {
        self.told_tombstones
    }

    /// What it told of a task.
    pub(crate) fn has_told(&self, task: &TaskId) -> Option<Kind> {
        self.told.get(&key(task)).map(|told| told.kind)
    }

    pub(crate) fn digests(&self) -> &BucketDigests {
        &self.digests
    }

    /// Notes a record; returns of what kind the one was that it replaces.
    pub(crate) fn tell(&mut self, task: TaskId, digest: u64, kind: Kind, owned: bool) -> Option<Kind> {
        let before = self.told.insert(key(&task), Told { digest, kind, round: self.round });
        self.told_tombstones += usize::from(kind == Kind::Tombstone);
        self.told_tombstones -= usize::from(before.is_some_and(|before| before.kind == Kind::Tombstone));
        if owned {
            self.digests.toggle(&task, digest);
            if let Some(before) = before {
                self.digests.toggle(&task, before.digest);
            }
        }
        before.map(|before| before.kind)
    }

    /// Forgets what it told of a task; returns what that was about.
    pub(crate) fn untell(&mut self, task: &TaskId, owned: bool) -> Option<Kind> {
        let told = self.told.remove(&key(task))?;
        self.told_tombstones -= usize::from(told.kind == Kind::Tombstone);
        if owned {
            self.digests.toggle(task, told.digest);
        }
        Some(told.kind)
    }

    /// Counts the digests anew for another ring.
    pub(crate) fn recount(&mut self, owns: impl Fn(&TaskId) -> bool) {
        self.digests = BucketDigests::default();
        for (key, told) in &self.told {
            if let Some(task) = task(key).filter(&owns) {
                self.digests.toggle(&task, told.digest);
            }
        }
    }

    /// The host begins to tell a bucket anew.
    pub(crate) fn begin_replacing(&mut self, bucket: u8) {
        self.round = self.round.wrapping_add(1);
        self.replacing.insert(bucket, self.round);
    }

    /// The host has told the whole bucket; returns what it did not repeat. Nothing without a beginning.
    pub(crate) fn end_replacing(&mut self, bucket: u8) -> Vec<TaskId> {
        let Some(began) = self.replacing.remove(&bucket) else { return Vec::new() };
        let told = self.told.range((bucket, [0; 32])..=(bucket, [u8::MAX; 32]));
        told.filter(|(_, told)| told.round < began).filter_map(|(key, _)| task(key)).collect()
    }

    pub(crate) fn told_tasks(&self) -> Vec<TaskId> {
        self.told.keys().filter_map(task).collect()
    }
}

/// All hosts.
#[derive(Debug, Default)]
pub(crate) struct Hosts {
    ids: HashMap<PeerId, HostId>,
    hosts: BTreeMap<HostId, Host>,
    next: u32,
}

impl Hosts {
    pub(crate) fn len(&self) -> usize {
        self.hosts.len()
    }

    pub(crate) fn id(&self, peer: &PeerId) -> Option<HostId> {
        self.ids.get(peer).copied()
    }

    pub(crate) fn get(&self, id: HostId) -> Option<&Host> {
        self.hosts.get(&id)
    }

    pub(crate) fn get_mut(&mut self, id: HostId) -> Option<&mut Host> {
        self.hosts.get_mut(&id)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (HostId, &Host)> {
        self.hosts.iter().map(|(id, host)| (*id, host))
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Host> {
        self.hosts.values_mut()
    }

    /// The host heard of now; a new one if there is room.
    pub(crate) fn hear(&mut self, peer: PeerId, at: Duration, max: usize) -> Option<HostId> {
        let full = self.hosts.len() >= max;
        match self.ids.entry(peer) {
            hash_map::Entry::Occupied(known) => Some(*known.get()),
            hash_map::Entry::Vacant(_) if full => None,
            hash_map::Entry::Vacant(new) => {
                let id = *new.insert(HostId(self.next));
                self.next += 1;
                self.hosts.insert(id, Host::new(peer, at));
                Some(id)
            }
        }
    }

    /// Renews the lease of a host that spoke.
    pub(crate) fn renew(&mut self, peer: &PeerId, at: Duration) {
        if let Some(host) = self.ids.get(peer).and_then(|id| self.hosts.get_mut(id)) {
            host.heard = at;
            host.suspect = false;
        }
    }

    pub(crate) fn suspect(&mut self, peer: &PeerId) {
        if let Some(host) = self.ids.get(peer).and_then(|id| self.hosts.get_mut(id)) {
            host.suspect = true;
        }
    }

    /// Hosts whose lease has ended.
    pub(crate) fn lapsed(&self, lease: Duration, at: Duration) -> Vec<HostId> {
        self.hosts.iter().filter(|(_, host)| host.heard + lease <= at).map(|(id, _)| *id).collect()
    }

    pub(crate) fn remove(&mut self, id: HostId) {
        if let Some(host) = self.hosts.remove(&id) {
            self.ids.remove(&host.peer);
        }
    }

    /// Counts a download more or less that fetches from each of `parents`.
    pub(crate) fn load(&mut self, parents: &[HostId], more: bool) {
        for id in parents {
            if let Some(host) = self.hosts.get_mut(id) {
                host.children = if more { host.children + 1 } else { host.children.saturating_sub(1) };
            }
        }
    }
}
