//! What can still be read of a damaged index.
//!
//! The names of contents stand nowhere else on this host, so an index with one bad page must not lose all of them.
//! Rows of sound pages are taken as they are. A row of a damaged page, or of a page that no branch leads to, has to
//! prove itself: by its checksum, or, written by an older version, a task by its name's hash and by the content that it
//! names. Pages that no branch leads to may be old: their rows count only for keys that the damage hides.

use std::{collections::HashMap, sync::Arc};

use damselfly_messages::{
    id::{ContentId, TaskId},
    manifest::{Manifest, PieceDigest, digests_of},
    piece::PieceLayout,
    record::{Tombstone, UnixMillis},
};

use super::{
    disk::{Disk, Folder, parse_name},
    index::{CONTENTS, MANIFESTS, META, QUEUED_DELETES, TASKS, TOMBSTONES},
    now,
    pages::{End, Image, KEY_BYTES, KeyRange, Pointer, Tree, damaged_rows, is_empty_table, rows, table_root},
    record::{ContentRecord, Held, QueuedDelete, Row, TaskRecord, TaskState},
    state::{Content, Overlay, State},
};

type Key = [u8; KEY_BYTES];

/// What the last commit of a damaged index still says.
#[derive(Default)]
pub(super) struct Salvaged {
    /// Its rows, of which those of contents come with a sound manifest.
    pub rows: Overlay,
    /// Tasks of pages that may be older, when the header does not say which are not: of use where a content has no name.
    pub others: Vec<Arc<TaskRecord>>,
    /// Whether all of the last commit was sound, as far as it was looked at.
    is_sound: bool,
    /// What the last commit has cannot be told: the header or the tree of tables is damaged.
    is_unknown: bool,
    /// Tasks of which nothing would be known if there were one.
    task_gaps: Vec<KeyRange>,
}

impl Salvaged {
    /// Whether redb has opened the last commit, and not the one before it, with this result.
    pub fn is_all_of(&self, state: &State) -> bool {
        let tasks = self.rows.tasks.iter().all(|(task, record)| state.tasks.get(task) == record.as_ref());
        let tombstones = self.rows.tombstones.iter().all(|(task, old)| state.tombstones.get(task) == old.as_ref());
        let deletes = self.rows.queued_deletes.iter().all(|(task, old)| state.queued_deletes.get(task) == old.as_ref());
        self.is_sound
            && tasks
            && tombstones
            && deletes
            && self.rows.tasks.len() == state.tasks.len()
            && self.rows.tombstones.len() == state.tombstones.len()
            && self.rows.queued_deletes.len() == state.queued_deletes.len()
    }

    /// Whether the file of a content without a record may be that of an acknowledged import.
    pub fn may_hold(&self, content: ContentId) -> bool {
        self.is_unknown
            || self.rows.contents.contains_key(&content)
            || self.rows.tasks.values().flatten().any(|record| record.binding.content == content)
    }

    /// Whether the last commit holds no such task for certain.
    pub fn lacks(&self, task: &TaskId) -> bool {
        !self.rows.tasks.contains_key(task) && !self.task_gaps.iter().any(|gap| gap.contains(task.digest()))
    }
}

/// A kind of row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Kind {
    Content,
    Manifest,
    Task,
    Tombstone,
    QueuedDelete,
}

impl Kind {
    const ALL: [Self; 5] = [Self::Content, Self::Manifest, Self::Task, Self::Tombstone, Self::QueuedDelete];

    fn table(self) -> &'static str {
        use redb::TableHandle as _;
        match self {
            Self::Content => CONTENTS.name(),
            Self::Manifest => MANIFESTS.name(),
            Self::Task => TASKS.name(),
            Self::Tombstone => TOMBSTONES.name(),
            Self::QueuedDelete => QUEUED_DELETES.name(),
        }
    }
}

/// Reads every row of the index in `image` that is sound.
pub(super) fn salvage(disk: &Disk, image: &Image) -> Overlay {
    let mut search = Search { image, files: files(disk), found: Found::default(), gaps: HashMap::new() };
    search.last_commit(true);
    search.fill_gaps();
    search.found.into_rows()
}

/// Reads the rows of the last commit that lie on sound pages, and nothing of pages that may be older.
pub(super) fn last_commit(disk: &Disk, image: &Image) -> Salvaged {
    let mut search = Search { image, files: files(disk), found: Found::default(), gaps: HashMap::new() };
    let header_is_damaged = image.last_commit().is_none_or(|commit| commit.is_damaged);
    // A page that does not verify may be an older one, which a power loss has kept in its place.
    let is_sound = search.last_commit(false);
    let task_gaps = search.gaps.get(&Kind::Task).cloned().unwrap_or_default();
    let all = |kind: &Kind| search.gaps.get(kind).is_some_and(|gaps| gaps.contains(&KeyRange::default()));
    let is_unknown = header_is_damaged || all(&Kind::Task) && all(&Kind::Content);
    let files = std::mem::take(&mut search.files);
    let rows = std::mem::take(&mut search.found).into_rows();
    let mut others = Vec::new();
    if header_is_damaged {
        search.files = files;
        search.gaps = Kind::ALL.map(|kind| (kind, vec![KeyRange::default()])).into();
        search.fill_gaps();
        others = search.found.into_rows().tasks.into_values().flatten().collect();
    }
    Salvaged { rows, others, is_sound, is_unknown, task_gaps }
}

/// What only the index has, and memory does not.
pub(super) struct Kept {
    pub manifests: HashMap<ContentId, Manifest>,
    pub meta: HashMap<String, Option<Vec<u8>>>,
}

/// The sound manifests of `contents`, given with their lengths, and what the daemon keeps.
pub(super) fn kept(image: &Image, contents: impl Iterator<Item = (ContentId, u64)>) -> Kept {
    let mut search = Search { image, files: HashMap::new(), found: Found::default(), gaps: HashMap::new() };
    search.last_commit(true);
    // The last commit may be the one that failed: what it has removed lies in pages that it does not name.
    search.gaps.insert(Kind::Manifest, vec![KeyRange::default()]);
    search.fill_gaps();
    let claimed = &search.found.manifests;
    let sound = contents.filter_map(|(id, bytes)| Some((id, manifest(id, bytes, claimed.get(id.digest()))?)));
    let manifests = sound.collect();
    Kept { manifests, meta: search.found.meta.into_iter().map(|(key, value)| (key, Some(value))).collect() }
}

/// The files of contents, complete or not, with their lengths.
fn files(disk: &Disk) -> HashMap<ContentId, u64> {
    let mut files = HashMap::new();
    for folder in [Folder::Partial, Folder::Damaged, Folder::Contents] {
        for entry in disk.list(folder).unwrap_or_default() {
            if let (Some(id), Some(bytes)) = (parse_name(&entry.name), entry.bytes) {
                files.insert(id, bytes);
            }
        }
    }
    files
}

struct Search<'a> {
    image: &'a Image,
    files: HashMap<ContentId, u64>,
    found: Found<'a>,
    /// Keys that the last commit may have had without their being found.
    gaps: HashMap<Kind, Vec<KeyRange>>,
}

/// Rows before they are put together.
#[derive(Default)]
struct Found<'a> {
    contents: HashMap<Key, ContentRecord>,
    /// Digests that are claimed for contents.
    manifests: HashMap<Key, Vec<&'a [u8]>>,
    tasks: HashMap<Key, TaskRecord>,
    tombstones: HashMap<Key, Tombstone>,
    queued_deletes: HashMap<Key, QueuedDelete>,
    meta: HashMap<String, Vec<u8>>,
}

impl<'a> Search<'a> {
    /// Takes the rows of the last commit, with `damaged` also those of damaged pages. Whether all of it is sound.
    fn last_commit(&mut self, damaged: bool) -> bool {
        let commit = self.image.last_commit();
        let mut is_sound = commit.is_some_and(|commit| commit.is_sound);
        let root = commit.and_then(|commit| commit.tables);
        let tables = self.tables(root, damaged, &mut is_sound);
        for kind in Kind::ALL {
            let Some(definition) = tables.get(kind.table()) else {
                is_sound = false;
                self.gaps.insert(kind, vec![KeyRange::default()]);
                continue;
            };
            let tree = self.tree(definition);
            is_sound &= tree.gaps.is_empty();
            for leaf in &tree.leaves {
                let page = self.image.bytes(leaf.at.clone());
                if leaf.is_sound {
                    for (key, row) in rows(page) {
                        if let Ok(key) = key.try_into() {
                            self.found.take(kind, key, row);
                        }
                    }
                } else if damaged {
                    damaged_rows(page, |key, row, end| {
                        let proved = proves(kind, key, row, end, &self.files);
                        if proved && leaf.range.contains(key) {
                            self.found.take(kind, key, row);
                        }
                        proved
                    });
                }
            }
            self.gaps.insert(kind, tree.gaps);
        }
        if let Some(definition) = tables.get(redb::TableHandle::name(&META)) {
            self.meta(definition);
        }
        is_sound
    }

    /// The descriptions of all tables, by name, with `damaged` also those of a damaged page.
    fn tables(&self, root: Option<Pointer>, damaged: bool, is_sound: &mut bool) -> HashMap<&'a str, &'a [u8]> {
        let Some(root) = root else { return HashMap::new() };
        let tree = self.image.tree(root);
        *is_sound &= tree.gaps.is_empty();
        let leaves = tree.leaves.iter().filter(|leaf| damaged || leaf.is_sound);
        let pages = leaves.flat_map(|leaf| rows(self.image.bytes(leaf.at.clone())));
        pages.filter_map(|(name, definition)| Some((str::from_utf8(name).ok()?, definition))).collect()
    }

    fn tree(&self, definition: &[u8]) -> Tree {
        match table_root(definition) {
            Some(root) => self.image.tree(root),
            None if is_empty_table(definition) => Tree::default(),
            None => Tree { gaps: vec![KeyRange::default()], ..Tree::default() },
        }
    }

    /// What the daemon keeps: rows that cannot prove themselves, so only of sound pages.
    fn meta(&mut self, definition: &[u8]) {
        for leaf in self.tree(definition).leaves.iter().filter(|leaf| leaf.is_sound) {
            for (key, value) in rows(self.image.bytes(leaf.at.clone())) {
                if let Ok(key) = str::from_utf8(key) {
                    self.found.meta.insert(key.to_owned(), value.to_vec());
                }
            }
        }
    }

    /// Takes rows of other pages for keys that the damage hides.
    fn fill_gaps(&mut self) {
        if self.gaps.values().all(Vec::is_empty) {
            return;
        }
        let mut others = Found::default();
        for page in self.image.pages() {
            damaged_rows(page, |key, row, end| {
                let proved = |kind: &Kind| proves(*kind, key, row, end, &self.files);
                let Some(kind) = Kind::ALL.into_iter().find(proved) else { return false };
                if self.gaps.get(&kind).is_some_and(|gaps| gaps.iter().any(|gap| gap.contains(key))) {
                    others.take_newer(kind, key, row);
                }
                true
            });
        }
        let files = &self.files;
        others.tasks.retain(|_, record| files.get(&record.binding.content) == Some(&record.binding.content_bytes));
        others.contents.retain(|id, record| files.get(&ContentId::from_digest(*id)) == Some(&record.bytes));
        self.found.add(others);
    }
}

/// Whether a row that was found anywhere is one of this kind. `end`: how it is known where it ends.
fn proves(kind: Kind, key: &Key, row: &[u8], end: End, files: &HashMap<ContentId, u64>) -> bool {
    match kind {
        Kind::Content => proves_as::<ContentRecord>(key, row, end, |record| {
            files.get(&ContentId::from_digest(*key)) == Some(&record.bytes)
        }),
        Kind::Task => proves_as::<TaskRecord>(key, row, end, |record| {
            files.get(&record.binding.content) == Some(&record.binding.content_bytes)
        }),
        Kind::Tombstone => proves_as::<Tombstone>(key, row, end, |tombstone| {
            tombstone.deleted > UnixMillis(EARLIEST) && tombstone.deleted.0 <= now().0.saturating_add(DAY)
        }),
        Kind::QueuedDelete => proves_as::<QueuedDelete>(key, row, end, |delete| delete.name.task_id().digest() == key),
        // Verified with its content.
        Kind::Manifest => {
            let digest = size_of::<PieceDigest>();
            end == End::Said && row.len() > digest && row.len().is_multiple_of(digest)
        }
    }
}

/// The year 2020: no tombstone is older.
const EARLIEST: u64 = 1_577_836_800_000;
const DAY: u64 = 24 * 3600 * 1000;

fn proves_as<R: Row>(key: &Key, row: &[u8], end: End, is_plausible: impl FnOnce(&R) -> bool) -> bool {
    // One of an older version has no checksum. A part of a newer one may look like it.
    let is_old = || R::from_fields(*key, row).is_ok_and(|read| read.is_canonical(row) && is_plausible(&read));
    R::is_sealed(key, row) || end == End::Said && is_old()
}

impl<'a> Found<'a> {
    fn take(&mut self, kind: Kind, key: &Key, row: &'a [u8]) {
        match kind {
            Kind::Content => put(&mut self.contents, key, row),
            Kind::Manifest => self.manifests.entry(*key).or_default().push(row),
            Kind::Task => put(&mut self.tasks, key, row),
            Kind::Tombstone => put(&mut self.tombstones, key, row),
            Kind::QueuedDelete => put(&mut self.queued_deletes, key, row),
        }
    }

    /// Takes a row unless a later one of the same key is here.
    fn take_newer(&mut self, kind: Kind, key: &Key, row: &'a [u8]) {
        let age = |task: &TaskRecord| (task.binding.generation, task.last_used, task.binding.accepted);
        let is_older = match kind {
            Kind::Task => TaskRecord::from_row(*key, row)
                .is_ok_and(|task| self.tasks.get(key).is_some_and(|known| age(known) >= age(&task))),
            Kind::Tombstone => Tombstone::from_row(*key, row).is_ok_and(|tombstone| {
                self.tombstones.get(key).is_some_and(|known| known.generation >= tombstone.generation)
            }),
            // A content is one or the other, and whether it is complete its file says.
            Kind::Content => ContentRecord::from_row(*key, row).is_ok_and(|record| record.state != Held::Complete),
            Kind::Manifest | Kind::QueuedDelete => false,
        };
        if !is_older {
            self.take(kind, key, row);
        }
    }

    /// Adds what is missing here. A task of it may be out of date, so it is announced again before it counts.
    fn add(&mut self, others: Self) {
        for (key, mut task) in others.tasks {
            if task.state == TaskState::Acknowledged {
                task.state = TaskState::Queued;
            }
            self.tasks.entry(key).or_insert(task);
        }
        for (key, record) in others.contents {
            self.contents.entry(key).or_insert(record);
        }
        for (key, tombstone) in others.tombstones {
            self.tombstones.entry(key).or_insert(tombstone);
        }
        for (key, delete) in others.queued_deletes {
            self.queued_deletes.entry(key).or_insert(delete);
        }
        for (key, claimed) in others.manifests {
            self.manifests.entry(key).or_default().extend(claimed);
        }
    }

    fn into_rows(self) -> Overlay {
        let mut rows = Overlay::default();
        for (key, record) in self.contents {
            let id = ContentId::from_digest(key);
            match (&record.state, manifest(id, record.bytes, self.manifests.get(&key))) {
                (Held::Partial(_), _) | (Held::Complete, None) => continue,
                (Held::Damaged, None) => {}
                (Held::Complete | Held::Damaged, Some(manifest)) => drop(rows.manifests.insert(id, manifest)),
            }
            rows.contents.insert(id, Some(Content { record, serial: 0 }));
        }
        for tombstone in self.tombstones.into_values() {
            rows.tombstones.insert(tombstone.task, Some(tombstone));
        }
        for task in self.tasks.into_values() {
            let buried = rows.tombstones.get(&task.task_id()).copied().flatten();
            if !buried.is_some_and(|tombstone| tombstone.buries(&task.binding)) {
                rows.tasks.insert(task.task_id(), Some(Arc::new(task)));
            }
        }
        for delete in self.queued_deletes.into_values() {
            rows.queued_deletes.insert(delete.name.task_id(), Some(delete));
        }
        rows.meta = self.meta.into_iter().map(|(key, value)| (key, Some(value))).collect();
        rows
    }
}

fn put<R: Row>(rows: &mut HashMap<Key, R>, key: &Key, row: &[u8]) {
    if let Ok(read) = R::from_row(*key, row) {
        rows.insert(*key, read);
    }
}

/// The manifest of a content, if one of those that are claimed is sound.
fn manifest(id: ContentId, bytes: u64, claimed: Option<&Vec<&[u8]>>) -> Option<Manifest> {
    let layout = PieceLayout::new(bytes).ok()?;
    if digests_of(&layout) == 0 {
        return Manifest::new(id, bytes, Vec::new()).ok();
    }
    claimed?.iter().find_map(|row| Manifest::new(id, bytes, row.as_chunks().0.to_vec()).ok())
}
