//! Descriptors that clients have handed over and that wait for the RPC that names them.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::convert::Infallible;
use std::fmt;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::fs::{FileType, OFlags};
use tokio::sync::oneshot;

use super::error::{Code, Failure};
use super::filesystem::is_made_up;

/// Length of a [`Token`].
pub const TOKEN_BYTES: usize = 16;
/// Random bytes that name a descriptor in an RPC.
pub type Token = [u8; TOKEN_BYTES];

/// How long a descriptor waits for its RPC.
const LIFETIME: Duration = Duration::from_secs(30);
pub(super) const MAX_PER_UID: usize = 32;
pub(super) const MAX_IN_ALL: usize = 512;
/// File system of pipes from `pipe(2)`; a fifo with a name lies on another.
const PIPEFS_MAGIC: i64 = 0x5049_5045;

/// What a descriptor is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File,
    /// An end of a pipe from `pipe(2)`, without a name.
    Pipe,
}

/// What a descriptor was opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Reading.
    Read,
    /// Writing.
    Write,
    /// Both.
    ReadWrite,
}

/// A checked descriptor: a regular file or a pipe.
#[derive(Debug)]
pub struct Descriptor {
    /// The descriptor. A client may have set `O_NONBLOCK` on a pipe, or set it at any time.
    pub fd: OwnedFd,
    /// What it is.
    pub kind: Kind,
    /// What it was opened for.
    pub access: Access,
}

impl Descriptor {
    /// Looks at a descriptor.
    ///
    /// # Errors
    /// [`Code::Failed`], with the reason: not a regular file or pipe, opened for appending (a write
    /// at an offset would go elsewhere), only as a path, or a file that the kernel makes up (it would be read and
    /// written with the daemon's rights and not with those of who opened it).
    pub fn check(fd: OwnedFd) -> Result<Self, Failure> {
        let failed = |e: rustix::io::Errno| Failure::io("cannot look at a descriptor", &e.into());
        let refuse = |why: &str| Err(Failure::new(Code::Failed, why));
        let kind = match kind_of(&fd).map_err(failed)? {
            Some(kind) => kind,
            None => return refuse("the descriptor is neither a regular file nor a pipe"),
        };
        if kind == Kind::File && is_made_up(&fd).map_err(failed)? {
            return refuse("the kernel makes up the file of the descriptor, as in /proc: send a pipe");
        }
        let flags = rustix::fs::fcntl_getfl(&fd).map_err(failed)?;
        if flags.contains(OFlags::PATH) {
            return refuse("the descriptor is open neither for reading nor for writing");
        }
        let access = match flags & OFlags::RWMODE {
            OFlags::RDONLY => Access::Read,
            OFlags::WRONLY => Access::Write,
            _ => Access::ReadWrite,
        };
        if kind == Kind::File && access != Access::Read && flags.contains(OFlags::APPEND) {
            return refuse("the descriptor is open for appending");
        }
        Ok(Self { fd, kind, access })
    }

    /// The descriptor, when it can be read.
    ///
    /// # Errors
    /// [`Code::Usage`]: it was opened for writing only.
    pub fn for_reading(self) -> Result<OwnedFd, Failure> {
        match self.access {
            Access::Read | Access::ReadWrite => Ok(self.fd),
            Access::Write => Err(Failure::new(Code::Usage, "the descriptor cannot be read")),
        }
    }

    /// The descriptor, when it can be written.
    ///
    /// # Errors
    /// [`Code::Usage`]: it was opened for reading only.
    pub fn for_writing(self) -> Result<OwnedFd, Failure> {
        match self.access {
            Access::Write | Access::ReadWrite => Ok(self.fd),
            Access::Read => Err(Failure::new(Code::Usage, "the descriptor cannot be written")),
        }
    }
}

/// What the daemon takes `fd` for; `None` when it refuses it, such as a device or a named fifo.
pub(super) fn kind_of(fd: impl AsFd) -> rustix::io::Result<Option<Kind>> {
    Ok(match FileType::from_raw_mode(rustix::fs::fstat(&fd)?.st_mode) {
        FileType::RegularFile => Some(Kind::File),
        FileType::Fifo => {
            // The type of this field differs between architectures.
            #[allow(clippy::unnecessary_cast, clippy::cast_possible_wrap)]
            let magic = rustix::fs::fstatfs(&fd)?.f_type as i64;
            (magic == PIPEFS_MAGIC).then_some(Kind::Pipe)
        }
        _ => None,
    })
}

struct Waiting {
    descriptor: Descriptor,
    since: Instant,
    /// Dropped with the entry: the connection it came over may close.
    _wanted: oneshot::Sender<Infallible>,
}

/// Ends, with an error, when the descriptor no longer waits.
pub(super) type Gone = oneshot::Receiver<Infallible>;

/// The descriptors that wait, by user and token. A handle: clones share them.
///
/// At most 32 per user and 512 in all, each for at most 30 seconds, and only while its client is there.
#[derive(Clone, Default)]
pub struct Descriptors {
    waiting: Arc<Mutex<HashMap<(u32, Token), Waiting>>>,
}

impl fmt::Debug for Descriptors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not the tokens: they are as good as the descriptors.
        f.debug_struct("Descriptors").field("waiting", &self.lock().len()).finish()
    }
}

impl Descriptors {
    /// Takes the descriptor that this user sent under this token.
    ///
    /// # Errors
    /// [`Code::Usage`]: the token does not have 16 bytes, or no such descriptor waits, be it that it
    /// expired, was taken before, that its connection was closed, or that another user sent it.
    pub fn take(&self, uid: u32, token: &[u8]) -> Result<Descriptor, Failure> {
        let token = Token::try_from(token)
            .map_err(|_| Failure::new(Code::Usage, "a descriptor is named by exactly 16 bytes"))?;
        let now = Instant::now();
        let found = self.lock().remove(&(uid, token));
        match found.filter(|waiting| waiting.is_fresh(now)) {
            Some(waiting) => Ok(waiting.descriptor),
            None => Err(Failure::new(Code::Usage, "no descriptor waits under this name")
                .with_hint("send it as the same user, at most 30 s before the call, and keep that connection open")),
        }
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.lock().len()
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(super) fn insert(&self, uid: u32, token: Token, descriptor: Descriptor) -> Result<Gone, Failure> {
        let (_wanted, gone) = oneshot::channel();
        let since = Instant::now();
        let expired = self.drain_expired(since);
        let mut waiting = self.lock();
        let of_user = waiting.keys().filter(|(owner, _)| *owner == uid).count();
        let full = waiting.len() >= MAX_IN_ALL;
        let refused = match waiting.entry((uid, token)) {
            _ if of_user >= MAX_PER_UID => {
                Some((Code::NoSpace, "too many descriptors of this user wait for their calls"))
            }
            _ if full => Some((Code::NoSpace, "too many descriptors wait for their calls")),
            Entry::Occupied(_) => Some((Code::Usage, "a descriptor waits under this name already")),
            Entry::Vacant(place) => {
                place.insert(Waiting { descriptor, since, _wanted });
                None
            }
        };
        drop(waiting);
        drop(expired);
        refused.map_or(Ok(gone), |(code, why)| Err(Failure::new(code, why)))
    }

    /// Closes a descriptor whose client is gone.
    pub(super) fn forget(&self, uid: u32, token: Token) {
        let forgotten = self.lock().remove(&(uid, token));
        drop(forgotten);
    }

    /// Closes what has waited too long.
    pub(super) fn expire(&self, now: Instant) {
        drop(self.drain_expired(now));
    }

    /// Closing may block on some file systems, so it is left to the caller, outside the lock.
    fn drain_expired(&self, now: Instant) -> Vec<Waiting> {
        let mut waiting = self.lock();
        waiting.extract_if(|_, one| !one.is_fresh(now)).map(|(_, one)| one).collect()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<(u32, Token), Waiting>> {
        // Nothing that holds the lock can leave the map half changed.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiting {
    fn is_fresh(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.since) < LIFETIME
    }
}
