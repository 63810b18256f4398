//! Where the socket is, and how a daemon takes it.

use std::ffi::OsString;
use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{Access, FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use super::error::{Code, Failure};

/// The environment variable that names the socket.
pub const SOCKET_VARIABLE: &str = "DFCACHE_SOCKET";
/// The socket of a daemon that serves the whole host.
pub const SYSTEM_SOCKET: &str = "/run/damselfly/dfdaemon.sock";

/// Owner and group may connect.
const SOCKET_MODE: u32 = 0o660;
const BACKLOG: i32 = 256;
/// A daemon that was killed keeps its lock for a moment after it can be seen no more.
const LOCK_WAIT: Duration = Duration::from_secs(1);

/// Where the daemon listens and clients look.
///
/// `explicit`, else `$DFCACHE_SOCKET`, else `$XDG_RUNTIME_DIR/damselfly/dfdaemon.sock`, else
/// [`SYSTEM_SOCKET`]. An empty variable counts as not set, and so does a runtime directory that is
/// not an absolute path.
///
/// A user without a runtime directory, as in a container or under cron, may not listen at [`SYSTEM_SOCKET`]. A daemon of
/// such a user listens at `$XDG_STATE_HOME/damselfly/dfdaemon.sock`, by default in `~/.local/state`, and a client looks
/// there first.
pub fn socket_path(explicit: Option<&Path>) -> PathBuf {
    choose(explicit, &Surroundings::of_client())
}

/// [`socket_path`] of a daemon.
pub fn daemon_socket_path() -> PathBuf {
    choose(None, &Surroundings::of_daemon())
}

/// What decides where the socket is.
#[derive(Debug, Default)]
struct Surroundings {
    named: Option<OsString>,
    runtime: Option<OsString>,
    /// The socket of this user's own daemon, unless that of the host is the one to use.
    own: Option<PathBuf>,
}

impl Surroundings {
    fn of_client() -> Self {
        Self { own: own_socket().filter(|socket| socket.exists()), ..Self::of_anybody() }
    }

    fn of_daemon() -> Self {
        let system = Path::new(SYSTEM_SOCKET).parent().unwrap_or(Path::new("/"));
        let may_listen = rustix::fs::access(system, Access::WRITE_OK).is_ok();
        Self { own: own_socket().filter(|_| !may_listen), ..Self::of_anybody() }
    }

    fn of_anybody() -> Self {
        Self { named: std::env::var_os(SOCKET_VARIABLE), runtime: std::env::var_os("XDG_RUNTIME_DIR"), own: None }
    }
}

/// Where a daemon of a user other than root listens when there is no runtime directory. In a home directory, because in
/// one that all may write to another user could be first.
fn own_socket() -> Option<PathBuf> {
    let absolute = |variable| std::env::var_os(variable).map(PathBuf::from).filter(|path| path.is_absolute());
    let state = absolute("XDG_STATE_HOME").or_else(|| absolute("HOME").map(|home| home.join(".local/state")));
    state.filter(|_| !rustix::process::geteuid().is_root()).map(|state| state.join("damselfly/dfdaemon.sock"))
}

fn choose(explicit: Option<&Path>, surroundings: &Surroundings) -> PathBuf {
    let Surroundings { named, runtime, own } = surroundings;
    if let Some(path) = explicit {
        return path.to_owned();
    }
    if let Some(path) = named.as_ref().filter(|path| !path.is_empty()) {
        return path.into();
    }
    match runtime.as_ref().map(PathBuf::from).filter(|dir| dir.is_absolute()) {
        Some(dir) => dir.join("damselfly/dfdaemon.sock"),
        None => own.clone().unwrap_or_else(|| SYSTEM_SOCKET.into()),
    }
}

/// The socket file of a running daemon; removes it when dropped.
#[derive(Debug)]
pub(super) struct SocketFile {
    path: PathBuf,
    /// Device and inode, so that only our own socket is removed.
    identity: (u64, u64),
    /// Held as long as we live, so that two daemons that start at once cannot both find a dead one.
    _lock: File,
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if identity(&self.path).is_ok_and(|now| now == self.identity) {
            // The process ends or stops listening; a file that stays is replaced at the next start.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Listens at `path`, replacing the socket of a daemon that is gone.
pub(super) fn bind(path: &Path) -> Result<(UnixListener, SocketFile), Failure> {
    let shown = path.display();
    let address = SocketAddrUnix::new(path).map_err(|_| {
        Failure::new(Code::Usage, format!("the socket path {shown} is too long"))
            .with_hint("a Unix socket path has at most 107 bytes; choose a shorter one")
    })?;
    create_parent(path)?;
    let lock = take_lock(path)?;
    remove_stale(path)?;
    let listener = listen(&address).map_err(|e| Failure::io(format!("cannot listen at {shown}"), &e))?;
    // Bound with the mode masked by umask; now exactly.
    std::fs::set_permissions(path, Permissions::from_mode(SOCKET_MODE))
        .and_then(|()| identity(path))
        .map(|identity| (listener, SocketFile { path: path.to_owned(), identity, _lock: lock }))
        .map_err(|e| Failure::io(format!("cannot set the mode of {shown}"), &e))
}

fn listen(address: &SocketAddrUnix) -> io::Result<UnixListener> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    // Linux gives the socket file the mode of the socket: there is no moment at which it is open to all.
    rustix::fs::fchmod(&socket, Mode::from_raw_mode(SOCKET_MODE))?;
    rustix::net::bind(&socket, address)?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(UnixListener::from(socket))
}

/// A directory made for root serves every user's group; one made for a user is that user's.
fn create_parent(path: &Path) -> Result<(), Failure> {
    let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) else {
        return Ok(());
    };
    let mode = if rustix::process::geteuid().is_root() { 0o755 } else { 0o700 };
    DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(parent)
        .map_err(|e| Failure::io(format!("cannot create the directory {}", parent.display()), &e))
}

/// Locks `<path>.lock`. The file stays: removing it would let two daemons lock two files.
fn take_lock(path: &Path) -> Result<File, Failure> {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    let lock = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(OFlags::NOFOLLOW.bits().cast_signed())
        .open(&name)
        .map_err(|e| Failure::io(format!("cannot open {}", Path::new(&name).display()), &e))?;
    let begun = Instant::now();
    loop {
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(lock),
            Err(Errno::WOULDBLOCK) if begun.elapsed() < LOCK_WAIT => std::thread::sleep(LOCK_WAIT / 100),
            Err(Errno::WOULDBLOCK) => return Err(in_use(path)),
            Err(e) => return Err(Failure::io(format!("cannot lock {}", Path::new(&name).display()), &e.into())),
        }
    }
}

fn remove_stale(path: &Path) -> Result<(), Failure> {
    let shown = path.display();
    let metadata = match std::fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(Failure::io(format!("cannot look at {shown}"), &e)),
    };
    if !metadata.file_type().is_socket() {
        return Err(Failure::new(Code::Failed, format!("{shown} exists and is not a socket"))
            .with_hint("remove it, or choose another socket path"));
    }
    match UnixStream::connect(path) {
        Ok(_) => Err(in_use(path)),
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).map_err(|e| Failure::io(format!("cannot remove the old socket {shown}"), &e))
        }
        Err(e) => Err(Failure::io(format!("cannot tell whether {shown} is in use"), &e)),
    }
}

fn in_use(path: &Path) -> Failure {
    Failure::new(Code::Conflict, format!("another daemon listens at {}", path.display()))
        .with_hint("end it first, or give this one another socket path")
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    std::fs::symlink_metadata(path).map(|metadata| (metadata.dev(), metadata.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_socket_is_where_the_first_of_four_says() {
        let some = |text: &str| Some(OsString::from(text));
        let rows = [
            (Some("/a"), some("/b"), some("/c"), "/a", "the flag wins"),
            (None, some("/b"), some("/c"), "/b", "then the variable"),
            (None, None, some("/c"), "/c/damselfly/dfdaemon.sock", "then the runtime directory"),
            (None, None, None, SYSTEM_SOCKET, "then the host's"),
            (None, some(""), some(""), SYSTEM_SOCKET, "empty is not set"),
            (None, None, some("run"), SYSTEM_SOCKET, "a relative directory is ignored"),
        ];
        for (explicit, named, runtime, expected, reason) in rows {
            let surroundings = Surroundings { named, runtime, own: None };
            assert_eq!(choose(explicit.map(Path::new), &surroundings), Path::new(expected), "{reason}");
            let own = Some(PathBuf::from("/own"));
            let expected = if expected == SYSTEM_SOCKET { "/own" } else { expected };
            assert_eq!(
                choose(explicit.map(Path::new), &Surroundings { own, ..surroundings }),
                Path::new(expected),
                "{reason}"
            );
        }
    }
}
