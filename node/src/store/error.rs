//! What can go wrong in the store, one enum per operation.

use std::{io, path::PathBuf, sync::Arc};

use damselfly_messages::{id::ContentId, record::Tombstone, wire::Invalid};

use super::record::TaskRecord;

/// Why a store directory was not opened. Nothing in it was changed.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another daemon works on it.
    #[error("another daemon holds the store {}; stop it, or give this one another directory", .0.display())]
    Locked(PathBuf),
    /// The directory belongs to somebody else.
    #[error(
        "the store {} belongs to uid {owner}, but this daemon runs as uid {daemon}; name a folder inside it, such as {}",
        .directory.display(), .directory.join("damselfly").display()
    )]
    Owner {
        /// The directory.
        directory: PathBuf,
        /// Whose it is.
        owner: u32,
        /// Who we are.
        daemon: u32,
    },
    /// Others can get at it.
    #[error(
        "the store {} has mode {mode:o} and is open to others; chmod it to 700, or name a folder inside it, such as {}",
        .directory.display(), .directory.join("damselfly").display()
    )]
    Mode {
        /// The directory.
        directory: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// There is something else at that path.
    #[error("{} is not a directory", .0.display())]
    NotADirectory(PathBuf),
    /// A newer program wrote it.
    #[error("the store has format {found}, this program knows formats up to {known}; use a newer dfdaemon")]
    Newer {
        /// The format in the index.
        found: u64,
        /// The newest format this program knows.
        known: u64,
    },
    /// The file system or the index refused something; neither is known to be damaged.
    #[error("the store cannot be opened")]
    Store(#[from] StoreError),
}

/// Why an operation of the store failed. Unless it says otherwise, nothing changed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Writing would leave less than the free-space floor, or the disk is full.
    #[error("no space: {needed} bytes needed, {free} free, of which {floor} are to stay free")]
    NoSpace {
        /// Bytes about to be written; 0 when unknown.
        needed: u64,
        /// Bytes free for this daemon.
        free: u64,
        /// The configured floor in bytes.
        floor: u64,
    },
    /// The store would hold more than its quota, also without the copies that may be removed.
    #[error("the store's quota of {quota} bytes has no room for {needed} more: {used} are used and cannot be removed")]
    OverQuota {
        /// Bytes about to be written.
        needed: u64,
        /// Bytes that the store holds.
        used: u64,
        /// The quota in bytes.
        quota: u64,
    },
    /// The name is bound to another content here, in the same or a later generation.
    #[error("{}: this name is bound to other bytes, {}", .0.name.cid(), .0.binding)]
    Bound(Box<TaskRecord>),
    /// The task was deleted in the record's generation or a later one.
    #[error("the task {} was deleted in generation {}", .0.task, .0.generation)]
    Buried(Tombstone),
    /// A record names a content that is not held complete.
    #[error("the content {0} is not held")]
    NotHeld(ContentId),
    /// The file system refused.
    #[error("cannot {action} {what}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file, relative to the store.
        what: String,
        /// Why it failed.
        source: io::Error,
    },
    /// The index refused.
    #[error("the index of the store failed")]
    Index(#[source] Box<redb::Error>),
    /// A record of the index is not what it should be.
    #[error("a record in the index of the store is damaged")]
    Record(#[from] Invalid),
    /// The commit that this change shared with others failed. Whether it lasts is known after the next opening.
    #[error("the change could not be made durable")]
    Commit(#[source] Arc<StoreError>),
}

impl StoreError {
    pub(super) fn index(error: impl Into<redb::Error>) -> Self {
        Self::Index(Box::new(error.into()))
    }

    /// The error of the file system, if it is why this failed.
    pub fn io_error(&self) -> Option<&io::Error> {
        match self {
            Self::Io { source, .. } => Some(source),
            Self::Index(error) => match &**error {
                redb::Error::Io(source) => Some(source),
                _ => None,
            },
            Self::Commit(error) => error.io_error(),
            Self::NoSpace { .. }
            | Self::OverQuota { .. }
            | Self::Bound(_)
            | Self::Buried(_)
            | Self::NotHeld(_)
            | Self::Record(_) => None,
        }
    }

    /// Whether the disk is full or would be fuller than allowed: the user's `no space` (exit 10).
    pub fn is_no_space(&self) -> bool {
        match self {
            Self::NoSpace { .. } | Self::OverQuota { .. } => true,
            other => other.io_error().is_some_and(out_of_space),
        }
    }
}

pub(super) fn out_of_space(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Why bytes were not imported. Nothing is kept.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The store could not take them.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The source could not be read.
    #[error("cannot read the source")]
    Source(#[source] io::Error),
    /// The source is neither a regular file nor a pipe.
    #[error("the source is {0}; only regular files and pipes can be imported")]
    SourceKind(&'static str),
    /// The source changed while it was read.
    #[error("the source changed while it was read")]
    SourceChanged,
    /// Longer than 4 TiB.
    #[error(transparent)]
    TooLong(Invalid),
    /// The progress callback asked to stop.
    #[error("stopped")]
    Stopped,
}

/// Why a piece could not be read. The buffer then holds nothing that may be used.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The bytes on disk are not those of the content. It has been marked: fetch it again.
    #[error("piece {piece} of {content} is damaged on disk")]
    Damaged {
        /// The content.
        content: ContentId,
        /// The piece that did not verify.
        piece: u32,
    },
    /// The piece has not been downloaded yet.
    #[error("piece {0} is not held")]
    NotHeld(u32),
    /// The file system refused; the content may be sound.
    #[error("cannot read a piece")]
    Io(#[source] io::Error),
}

/// Why a download could not begin.
#[derive(Debug, thiserror::Error)]
pub enum DownloadError {
    /// There is one already: share it.
    #[error("this content is being downloaded already")]
    AlreadyUnderWay,
    /// Nothing to do: the content is here.
    #[error("this content is complete already")]
    AlreadyComplete,
    /// The store could not take it.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why a download could not be finished. It stays resumable.
#[derive(Debug, thiserror::Error)]
pub enum FinishError {
    /// Pieces are missing.
    #[error("{missing} pieces are missing")]
    Incomplete {
        /// How many.
        missing: u32,
    },
    /// The store could not take it.
    #[error(transparent)]
    Store(#[from] StoreError),
}
