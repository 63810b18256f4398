//! What this host has to tell each scheduler. Pure: no clock, no I/O.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Instant,
};

use damselfly_messages::{
    config::Accepted,
    id::TaskId,
    record::{BucketDigests, Record},
    ring::Ring,
};
use libp2p::PeerId;

/// The records of this host and, for each scheduler, the digests of those that are its to know.
///
/// Records are found by scheduler and bucket only when a digest differs, so they are kept once.
#[derive(Debug, Default)]
pub struct Ledger {
    records: HashMap<TaskId, Entry>,
    buckets: Vec<HashSet<TaskId>>,
    owners: HashMap<PeerId, Share>,
    accepted: Option<Arc<Accepted>>,
}

#[derive(Debug)]
struct Entry {
    record: Arc<Record>,
    digest: u64,
}

/// What one scheduler is to know.
#[derive(Debug, Default, Clone)]
struct Share {
    /// Without the records that it has refused, for it does not have them either.
    digests: BucketDigests,
    records: usize,
    /// Records that it has refused, and until when it is not asked again.
    refused: HashMap<TaskId, Instant>,
}

impl Ledger {
    /// An empty ledger.
    pub fn new() -> Self {
        Self { buckets: vec![HashSet::new(); damselfly_messages::record::BUCKETS], ..Self::default() }
    }

    fn ring(&self) -> Option<&Ring> {
        self.accepted.as_ref().map(|accepted| &accepted.ring)
    }

    /// Epoch of the ring by which the shares are computed; 0 before the first.
    pub fn epoch(&self) -> u64 {
        self.accepted.as_ref().map_or(0, |accepted| accepted.configuration.epoch)
    }

    /// Adds a record or replaces the task's.
    pub fn put(&mut self, record: Record) {
        let task = record.task();
        let digest = record.digest();
        if self.records.get(&task).is_some_and(|entry| entry.digest == digest) {
            return;
        }
        self.remove(&task);
        self.toggle(&task, digest, true);
        self.buckets[task.bucket() as usize].insert(task);
        self.records.insert(task, Entry { record: Arc::new(record), digest });
    }

    /// Removes the task's record. Returns whether there was one.
    pub fn remove(&mut self, task: &TaskId) -> bool {
        let Some(entry) = self.records.remove(task) else { return false };
        self.toggle(task, entry.digest, false);
        self.buckets[task.bucket() as usize].remove(task);
        true
    }

    fn toggle(&mut self, task: &TaskId, digest: u64, added: bool) {
        let Some(accepted) = self.accepted.clone() else { return };
        for owner in accepted.ring.owners(task) {
            self.owners.entry(owner).or_default().toggle(task, digest, added);
        }
    }

    /// Takes over a new ring. Returns what each scheduler owns now and did not before: what moved.
    pub fn set_ring(&mut self, accepted: Arc<Accepted>) -> HashMap<PeerId, Vec<Arc<Record>>> {
        let before = self.accepted.replace(Arc::clone(&accepted));
        let mut moved: HashMap<_, Vec<_>> = HashMap::new();
        self.owners = HashMap::new();
        for (task, entry) in &self.records {
            for owner in accepted.ring.owners(task) {
                self.owners.entry(owner).or_default().toggle(task, entry.digest, true);
                if !before.as_ref().is_some_and(|before| before.ring.owns(&owner, task)) {
                    moved.entry(owner).or_default().push(Arc::clone(&entry.record));
                }
            }
        }
        moved
    }

    /// The records none of whose owners is in `reachable`, by the scheduler that stands in for them.
    pub fn orphans(&self, reachable: &HashSet<PeerId>) -> HashMap<PeerId, Vec<Arc<Record>>> {
        let mut orphans: HashMap<_, Vec<_>> = HashMap::new();
        let Some(ring) = self.ring() else { return orphans };
        for (task, entry) in &self.records {
            if ring.owners(task).any(|owner| reachable.contains(&owner)) {
                continue;
            }
            if let Some(stand_in) = ring.walk(task).find(|peer| reachable.contains(peer)) {
                orphans.entry(stand_in).or_default().push(Arc::clone(&entry.record));
            }
        }
        orphans
    }

    /// What is told of a task.
    #[cfg(test)]
    pub fn of(&self, task: &TaskId) -> Option<&Record> {
        self.records.get(task).map(|entry| &*entry.record)
    }

    /// `owner` will not have this record: until then it is left out of what the owner is to know, unless it changes or
    /// the ring does.
    pub fn refuse(&mut self, owner: &PeerId, record: &Record, until: Instant) {
        let (task, digest) = (record.task(), record.digest());
        if self.records.get(&task).is_none_or(|entry| entry.digest != digest)
            || !self.ring().is_some_and(|ring| ring.owns(owner, &task))
        {
            return;
        }
        if let Some(share) = self.owners.get_mut(owner)
            && share.refused.insert(task, until).is_none()
        {
            share.digests.toggle(&task, digest);
        }
    }

    /// Takes back in what `owner` has refused long enough ago.
    pub fn readmit(&mut self, owner: &PeerId, now: Instant) {
        let Self { records, owners, .. } = self;
        let Some(Share { refused, digests, .. }) = owners.get_mut(owner) else { return };
        refused.retain(|task, until| {
            let waits = *until > now;
            if let Some(entry) = records.get(task).filter(|_| !waits) {
                digests.toggle(task, entry.digest);
            }
            waits
        });
    }

    /// The digests of what `owner` is to know.
    pub fn digests(&self, owner: &PeerId) -> BucketDigests {
        self.owners.get(owner).map(|share| share.digests.clone()).unwrap_or_default()
    }

    /// Number of records that `owner` is to know, with those that it has refused.
    pub fn share(&self, owner: &PeerId) -> usize {
        self.owners.get(owner).map_or(0, |share| share.records)
    }

    /// The records of one bucket that `owner` is to know.
    pub fn bucket(&self, owner: &PeerId, bucket: u8) -> Vec<Arc<Record>> {
        let (Some(ring), Some(share)) = (self.ring(), self.owners.get(owner)) else { return Vec::new() };
        self.buckets[bucket as usize]
            .iter()
            .filter(|task| ring.owns(owner, task) && !share.refused.contains_key(task))
            .filter_map(|task| self.records.get(task))
            .map(|entry| Arc::clone(&entry.record))
            .collect()
    }
}

impl Share {
    fn toggle(&mut self, task: &TaskId, digest: u64, added: bool) {
        // A refused one that changes or goes is out of the digests already.
        if added || self.refused.remove(task).is_none() {
            self.digests.toggle(task, digest);
        }
        if added {
            self.records += 1;
        } else {
            self.records -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use damselfly_messages::{
        config::{Acceptance, Configuration, SchedulerEntry, Settings, Verdict},
        id::{ClusterId, ContentId},
        membership::{Root, Roots},
        name::Name,
        record::{Announcement, Binding, Holding, UnixMillis},
    };
    use libp2p::identity::Keypair;

    use super::*;

    fn record(number: usize, generation: u64) -> Record {
        let binding = Binding {
            content: ContentId::of(b"x"),
            content_bytes: 1,
            generation,
            accepted: Some(UnixMillis(1)),
            expires: None,
        };
        let name = Name::parse(&format!("name {number}"), "").expect("a name");
        Record::Held(Announcement { name, binding, holding: Holding::Complete })
    }

    fn ring(root: &Keypair, epoch: u64, members: &[PeerId]) -> Arc<Accepted> {
        let address: libp2p::Multiaddr = "/ip4/127.0.0.1/tcp/1".parse().expect("an address");
        let entry = |peer: &PeerId| SchedulerEntry::active(*peer, vec![address.clone()]);
        let settings = Settings { schedulers: members.iter().map(entry).collect(), ..Settings::default() };
        let cluster = ClusterId::of_root(&root.public());
        let configuration = Configuration {
            cluster,
            epoch,
            issued: UnixMillis(0),
            settings,
            revoked: Vec::new(),
            roots: Roots::of(cluster),
        };
        let issuer = Root::founding(root.clone()).certify(root.clone(), UnixMillis(0), std::time::Duration::MAX);
        let signed = configuration.sign(&issuer.expect("certified")).expect("valid");
        match Acceptance::new(cluster).offer(&signed) {
            Ok(Verdict::Newer(accepted)) => accepted,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn only_what_moved_is_told_again() {
        let root = Keypair::generate_ed25519();
        let members: Vec<_> = (0..4).map(|_| PeerId::random()).collect();
        let mut ledger = Ledger::new();
        (0..1000).for_each(|number| ledger.put(record(number, 1)));
        let all = ledger.set_ring(ring(&root, 1, &members[..3]));
        assert_eq!(all.values().map(Vec::len).sum::<usize>(), 2000, "two owners each");
        let moved = ledger.set_ring(ring(&root, 2, &members));
        assert!(moved.keys().all(|owner| *owner == members[3]), "only to the new one");
        let told = moved[&members[3]].len();
        assert!((300..700).contains(&told), "{told} of about 500");
        assert_eq!(ledger.share(&members[3]), told);
    }

    #[test]
    fn who_stands_in_hears_of_what_no_owner_can_be_told() {
        let root = Keypair::generate_ed25519();
        let members: Vec<_> = (0..3).map(|_| PeerId::random()).collect();
        let mut ledger = Ledger::new();
        (0..100).for_each(|number| ledger.put(record(number, 1)));
        ledger.set_ring(ring(&root, 1, &members));
        assert!(ledger.orphans(&HashSet::from([members[0], members[1]])).is_empty(), "each has one owner left");
        let orphans = ledger.orphans(&HashSet::from([members[0]]));
        let told = orphans.get(&members[0]).map_or(0, Vec::len);
        assert_eq!((told + ledger.share(&members[0]), orphans.len()), (100, 1));
        assert!(ledger.orphans(&HashSet::new()).is_empty(), "nobody to tell");
    }

    #[test]
    fn a_refused_record_is_left_out_until_its_time_or_a_change() {
        let root = Keypair::generate_ed25519();
        let members: Vec<_> = (0..2).map(|_| PeerId::random()).collect();
        let (refuser, other) = (members[0], members[1]);
        let mut ledger = Ledger::new();
        ledger.set_ring(ring(&root, 1, &members));
        ledger.put(record(1, 1));
        let without = ledger.digests(&refuser);
        ledger.put(record(2, 1));
        let with = ledger.digests(&refuser);
        let bucket = record(2, 1).task().bucket();
        let (now, minute) = (Instant::now(), std::time::Duration::from_secs(60));

        // What the scheduler has after a refusal is what the digests say, so nothing is told again.
        ledger.refuse(&refuser, &record(2, 1), now + minute);
        ledger.refuse(&refuser, &record(2, 1), now + minute);
        ledger.refuse(&refuser, &record(1, 9), now + minute);
        assert_eq!((ledger.digests(&refuser), ledger.bucket(&refuser, bucket).len()), (without.clone(), 0));
        assert_eq!(
            (ledger.digests(&other), ledger.bucket(&other, bucket).len()),
            (with.clone(), 1),
            "not refused there"
        );
        assert_eq!(ledger.share(&refuser), 2, "it is still the one to tell");
        ledger.readmit(&refuser, now);
        assert_eq!(ledger.digests(&refuser), without, "too early");
        ledger.readmit(&refuser, now + minute);
        assert_eq!((ledger.digests(&refuser), ledger.bucket(&refuser, bucket).len()), (with, 1));

        ledger.refuse(&refuser, &record(2, 1), now + minute);
        ledger.put(record(2, 2));
        let changed = ledger.digests(&refuser);
        assert_eq!((&changed, ledger.bucket(&refuser, bucket).len()), (&ledger.digests(&other), 1), "a change is told");
        ledger.refuse(&refuser, &record(2, 2), now + minute);
        ledger.remove(&record(2, 2).task());
        assert_eq!(ledger.digests(&refuser), without, "gone, and not twice");
        ledger.put(record(2, 2));
        assert_eq!(ledger.digests(&refuser), changed);
        ledger.refuse(&refuser, &record(2, 2), now + minute);
        ledger.set_ring(ring(&root, 2, &members));
        assert_eq!(ledger.digests(&refuser), changed, "another configuration");
    }

    #[test]
    fn digests_follow_the_records() {
        let root = Keypair::generate_ed25519();
        let member = PeerId::random();
        let mut ledger = Ledger::new();
        ledger.set_ring(ring(&root, 1, &[member]));
        let empty = ledger.digests(&member);
        ledger.put(record(1, 1));
        let one = ledger.digests(&member);
        assert_eq!(empty.mismatches(&one).len(), 1);
        ledger.put(record(1, 2));
        assert_ne!(ledger.digests(&member), one, "another generation");
        let bucket = record(1, 1).task().bucket();
        assert_eq!(ledger.bucket(&member, bucket).len(), 1);
        assert!(ledger.remove(&record(1, 1).task()));
        assert_eq!((ledger.digests(&member), ledger.share(&member)), (empty, 0));
    }
}
