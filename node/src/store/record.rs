//! What the index remembers, and how it is written there.
//!
//! Rows are protobuf messages private to the store, so a later version can add fields, with tags below [`CHECK_TAG`].
//! A row ends with a checksum over its table, its key and its bytes, so that it proves itself wherever it is found;
//! rows of older versions have none.

use damselfly_messages::{
    id::{ContentId, TaskId},
    name::Name,
    piece::CONTENT_BYTES_MAX,
    record::{Binding, Tombstone, UnixMillis},
    wire::Invalid,
};
use prost::Message;

/// A task as this host knows it. Its [`TaskId`] is that of its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskRecord {
    /// What users call it.
    pub name: Name,
    /// What it stands for.
    pub binding: Binding,
    /// Where it stands with its owners.
    pub state: TaskState,
    /// When it was imported or first exported here.
    pub imported: UnixMillis,
    /// When it was last read here; see [`super::Store::touch`].
    pub last_used: UnixMillis,
    /// Stays here when its binding expires.
    pub pinned: bool,
    /// Its bytes came from another host, and not from a user of this one.
    pub fetched: bool,
}

/// Where a task stands with its owners.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TaskState {
    /// No owner has acknowledged it yet.
    Queued,
    /// An owner has accepted it.
    Acknowledged,
    /// Another content won the name: never served or exported under it.
    Conflict {
        /// What the name stands for in the cluster.
        winner: Binding,
    },
    /// This host was away for so long that the task may have been deleted: not announced until an owner confirms it.
    Stale,
}

impl TaskRecord {
    /// The task this is.
    pub fn task_id(&self) -> TaskId {
        self.name.task_id()
    }
}

/// A delete that no owner has been told of yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueuedDelete {
    /// What to delete.
    pub name: Name,
    /// Since when it waits.
    pub queued: UnixMillis,
    /// Who wants it; `None` in what an older version has left.
    pub uid: Option<u32>,
}

/// A content as the index knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ContentRecord {
    pub bytes: u64,
    pub state: Held,
    pub added: UnixMillis,
    pub location: Location,
    /// Taken in after the index was lost, without the names that users knew it by.
    pub adopted: bool,
}

/// How much of a content the index vouches for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Held {
    Complete,
    /// The bitmap of pieces that were verified and synced, as [`super::PieceMap::to_bytes`] writes it.
    Partial(Vec<u8>),
    Damaged,
}

/// Where the bytes lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Location {
    /// In the store's own file.
    Store,
}

/// One kind of row: a value under a key of 32 bytes.
pub(super) trait Row: Sized {
    /// What errors call it. Part of the checksum, so it stays.
    const KIND: &'static str;

    /// The fields, without a checksum.
    fn fields(&self) -> Vec<u8>;

    /// Reads the fields; a checksum is not verified here.
    fn from_fields(key: [u8; 32], row: &[u8]) -> Result<Self, Invalid>;

    /// The row as it is written.
    fn to_row(&self, key: &[u8; 32]) -> Vec<u8> {
        let mut row = self.fields();
        let check = checksum(Self::KIND, key, &row);
        row.push(CHECK_KEY);
        row.extend_from_slice(&check);
        row
    }

    /// Reads a row, and verifies its checksum if it has one.
    fn from_row(key: [u8; 32], row: &[u8]) -> Result<Self, Invalid> {
        let read = Self::from_fields(key, row)?;
        if !Self::is_sealed(&key, row) && has_checksum(row) {
            return Err(Invalid::new(Self::KIND, "it does not match its checksum"));
        }
        Ok(read)
    }

    /// Whether the row ends with its checksum: then it is a sound row of this kind, wherever it was found.
    fn is_sealed(key: &[u8; 32], row: &[u8]) -> bool {
        row.split_last_chunk::<CHECK_BYTES>()
            .is_some_and(|(fields, check)| check[0] == CHECK_KEY && check[1..] == checksum(Self::KIND, key, fields))
    }

    /// Whether a row without a checksum is written exactly as this program would write it.
    fn is_canonical(&self, row: &[u8]) -> bool {
        self.fields() == row
    }
}

/// Field number of the checksum, the last field of each row.
const CHECK_TAG: u32 = 15;
/// The checksum's key in protobuf: its tag and the wire type of eight fixed bytes.
const CHECK_KEY: u8 = (CHECK_TAG << 3 | 1) as u8;
/// Bytes of the key and the checksum.
const CHECK_BYTES: usize = 9;

/// Found in every row that has a checksum.
#[derive(Clone, PartialEq, Message)]
struct CheckedRow {
    #[prost(fixed64, optional, tag = "15")]
    check: Option<u64>,
}

fn has_checksum(row: &[u8]) -> bool {
    CheckedRow::decode(row).is_ok_and(|row| row.check.is_some())
}

fn checksum(kind: &str, key: &[u8; 32], fields: &[u8]) -> [u8; 8] {
    let mut bytes = Vec::with_capacity(kind.len() + 1 + key.len() + fields.len());
    bytes.extend_from_slice(kind.as_bytes());
    bytes.push(0);
    bytes.extend_from_slice(key);
    bytes.extend_from_slice(fields);
    xxhash_rust::xxh3::xxh3_64(&bytes).to_le_bytes()
}

#[derive(Clone, PartialEq, Message)]
struct ContentRow {
    #[prost(uint64, tag = "1")]
    bytes: u64,
    #[prost(uint32, tag = "2")]
    state: u32,
    #[prost(uint64, tag = "3")]
    added: u64,
    #[prost(bytes = "vec", tag = "4")]
    held: Vec<u8>,
    #[prost(uint32, tag = "5")]
    location: u32,
    #[prost(bool, tag = "6")]
    adopted: bool,
}

#[derive(Clone, PartialEq, Message)]
struct BindingRow {
    #[prost(bytes = "vec", tag = "1")]
    content: Vec<u8>,
    #[prost(uint64, tag = "2")]
    content_bytes: u64,
    #[prost(uint64, tag = "3")]
    generation: u64,
    #[prost(uint64, optional, tag = "4")]
    accepted: Option<u64>,
}

#[derive(Clone, PartialEq, Message)]
struct TaskRow {
    #[prost(string, tag = "1")]
    cid: String,
    #[prost(string, tag = "2")]
    tag: String,
    #[prost(message, optional, tag = "3")]
    binding: Option<BindingRow>,
    #[prost(uint32, tag = "4")]
    state: u32,
    #[prost(message, optional, tag = "5")]
    winner: Option<BindingRow>,
    #[prost(uint64, tag = "6")]
    imported: u64,
    #[prost(uint64, tag = "7")]
    last_used: u64,
    #[prost(bool, tag = "8")]
    pinned: bool,
    #[prost(uint64, optional, tag = "9")]
    expires: Option<u64>,
    // A program that does not know it drops it: then it counts as imported, and stays.
    #[prost(bool, tag = "10")]
    fetched: bool,
}

#[derive(Clone, PartialEq, Message)]
struct TombstoneRow {
    #[prost(uint64, tag = "1")]
    generation: u64,
    #[prost(uint64, tag = "2")]
    deleted: u64,
}

#[derive(Clone, PartialEq, Message)]
struct QueuedDeleteRow {
    #[prost(string, tag = "1")]
    cid: String,
    #[prost(string, tag = "2")]
    tag: String,
    #[prost(uint64, tag = "3")]
    queued: u64,
    #[prost(uint32, optional, tag = "4")]
    uid: Option<u32>,
}

// Numbers on disk; 0 is never written, so an empty row is refused.
const COMPLETE: u32 = 1;
const PARTIAL: u32 = 2;
const DAMAGED: u32 = 3;
const IN_STORE: u32 = 1;
const QUEUED: u32 = 1;
const ACKNOWLEDGED: u32 = 2;
const CONFLICT: u32 = 3;
const STALE: u32 = 4;

impl Row for ContentRecord {
    const KIND: &'static str = "content record";

    fn fields(&self) -> Vec<u8> {
        let (state, held) = match &self.state {
            Held::Complete => (COMPLETE, Vec::new()),
            Held::Partial(held) => (PARTIAL, held.clone()),
            Held::Damaged => (DAMAGED, Vec::new()),
        };
        let location = match self.location {
            Location::Store => IN_STORE,
        };
        ContentRow { bytes: self.bytes, state, added: self.added.0, held, location, adopted: self.adopted }
            .encode_to_vec()
    }

    fn from_fields(_key: [u8; 32], row: &[u8]) -> Result<Self, Invalid> {
        let row = ContentRow::decode(row).map_err(|error| Invalid::new("content record", error.to_string()))?;
        if row.bytes > CONTENT_BYTES_MAX {
            return Err(Invalid::new("content record", format!("{} bytes", row.bytes)));
        }
        let state = match row.state {
            COMPLETE => Held::Complete,
            PARTIAL => Held::Partial(row.held),
            DAMAGED => Held::Damaged,
            other => return Err(Invalid::new("content record", format!("state {other}"))),
        };
        let location = match row.location {
            IN_STORE => Location::Store,
            other => return Err(Invalid::new("content record", format!("location {other}"))),
        };
        let added = UnixMillis(row.added);
        Ok(Self { bytes: row.bytes, state, added, location, adopted: row.adopted })
    }
}

impl Row for TaskRecord {
    const KIND: &'static str = "task record";

    fn fields(&self) -> Vec<u8> {
        let (state, winner) = match &self.state {
            TaskState::Queued => (QUEUED, None),
            TaskState::Acknowledged => (ACKNOWLEDGED, None),
            TaskState::Conflict { winner } => (CONFLICT, Some(binding_row(winner))),
            TaskState::Stale => (STALE, None),
        };
        TaskRow {
            cid: self.name.cid().to_owned(),
            tag: self.name.tag().to_owned(),
            binding: Some(binding_row(&self.binding)),
            state,
            winner,
            imported: self.imported.0,
            last_used: self.last_used.0,
            pinned: self.pinned,
            expires: self.binding.expires.map(|at| at.0),
            fetched: self.fetched,
        }
        .encode_to_vec()
    }

    fn from_fields(key: [u8; 32], row: &[u8]) -> Result<Self, Invalid> {
        let row = TaskRow::decode(row).map_err(|error| Invalid::new("task record", error.to_string()))?;
        let name = Name::parse(&row.cid, &row.tag)?;
        if *name.task_id().digest() != key {
            return Err(Invalid::new("task record", format!("{:?} stands under another task", row.cid)));
        }
        let state = match row.state {
            QUEUED => TaskState::Queued,
            ACKNOWLEDGED => TaskState::Acknowledged,
            CONFLICT => TaskState::Conflict { winner: binding(row.winner)? },
            STALE => TaskState::Stale,
            other => return Err(Invalid::new("task record", format!("state {other}"))),
        };
        Ok(Self {
            name,
            binding: Binding { expires: row.expires.map(UnixMillis), ..binding(row.binding)? },
            state,
            imported: UnixMillis(row.imported),
            last_used: UnixMillis(row.last_used),
            pinned: row.pinned,
            fetched: row.fetched,
        })
    }
}

impl Row for Tombstone {
    const KIND: &'static str = "tombstone";

    fn fields(&self) -> Vec<u8> {
        TombstoneRow { generation: self.generation, deleted: self.deleted.0 }.encode_to_vec()
    }

    fn from_fields(key: [u8; 32], row: &[u8]) -> Result<Self, Invalid> {
        let row = TombstoneRow::decode(row).map_err(|error| Invalid::new("tombstone", error.to_string()))?;
        Ok(Self { task: TaskId::from_bytes(&key)?, generation: row.generation, deleted: UnixMillis(row.deleted) })
    }
}

impl Row for QueuedDelete {
    const KIND: &'static str = "queued delete";

    fn fields(&self) -> Vec<u8> {
        let (cid, tag) = (self.name.cid().to_owned(), self.name.tag().to_owned());
        QueuedDeleteRow { cid, tag, queued: self.queued.0, uid: self.uid }.encode_to_vec()
    }

    fn from_fields(_key: [u8; 32], row: &[u8]) -> Result<Self, Invalid> {
        let row = QueuedDeleteRow::decode(row).map_err(|error| Invalid::new("queued delete", error.to_string()))?;
        Ok(Self { name: Name::parse(&row.cid, &row.tag)?, queued: UnixMillis(row.queued), uid: row.uid })
    }
}

fn binding_row(binding: &Binding) -> BindingRow {
    BindingRow {
        content: binding.content.digest().to_vec(),
        content_bytes: binding.content_bytes,
        generation: binding.generation,
        accepted: binding.accepted.map(|at| at.0),
    }
}

fn binding(row: Option<BindingRow>) -> Result<Binding, Invalid> {
    let row = row.ok_or_else(|| Invalid::new("task record", "it is bound to nothing"))?;
    Ok(Binding {
        content: ContentId::from_bytes(&row.content)?,
        content_bytes: row.content_bytes,
        generation: row.generation,
        accepted: row.accepted.map(UnixMillis),
        expires: None,
    })
}
