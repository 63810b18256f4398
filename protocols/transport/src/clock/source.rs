//! Where a [`super::Clock`] reads the time.

use std::{
    env,
    fmt::Debug,
    fs::{self, File, OpenOptions},
    io::{self, Read as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use damselfly_messages::record::UnixMillis;
use rustix::fs::OFlags;

/// For tests of whole programs: names a file that holds milliseconds, with a sign, by which the wall clock of the process
/// is moved. It is read again whenever the time is, so a test moves the clock of a running program by writing the file.
///
/// Whoever can set a variable of a daemon's environment can also replace its program, so this gives nobody a new right.
/// The file counts only while it is a regular file of the daemon's own user that nobody else may write; the program warns
/// at its start that its clock is moved. The monotonic clock is not.
pub const SHIFT_VARIABLE: &str = "DAMSELFLY_TEST_CLOCK_SHIFT_FILE";

/// The seconds since the boot, sleep included.
const UPTIME: &str = "/proc/uptime";
/// The kernel is asked for them so often.
const UPTIME_EVERY: Duration = Duration::from_secs(1);
/// Longest such file.
const SHIFT_BYTES_MAX: u64 = 32;

/// A wall clock and a monotonic clock.
pub trait TimeSource: Debug + Send + Sync {
    /// The wall clock, which may be wrong and may be moved.
    fn wall(&self) -> UnixMillis;
    /// The time since the boot of the machine, which never goes back and counts sleep.
    fn elapsed(&self) -> Duration;
}

/// The clocks of the machine.
#[derive(Debug)]
pub(super) struct System {
    shift: Option<PathBuf>,
    uptime: Mutex<Uptime>,
}

/// The time since the boot, as the kernel has told it lately.
#[derive(Debug)]
struct Uptime {
    told: Duration,
    at: Instant,
}

impl Uptime {
    /// Between two questions the process's own monotonic clock goes on, which does not count sleep.
    fn now(&mut self) -> Duration {
        let since = self.at.elapsed();
        if since < UPTIME_EVERY {
            return self.told + since;
        }
        let known = self.told + since;
        *self = Self { told: read_uptime().map_or(known, |told| told.max(known)), at: Instant::now() };
        self.told
    }
}

fn read_uptime() -> Option<Duration> {
    let text = fs::read_to_string(UPTIME).ok()?;
    Duration::try_from_secs_f64(text.split_whitespace().next()?.parse().ok()?).ok()
}

/// The clocks of the machine, moved if [`SHIFT_VARIABLE`] says so.
pub(super) fn configured() -> System {
    let shift = env::var_os(SHIFT_VARIABLE).filter(|path| !path.is_empty()).map(PathBuf::from);
    if let Some(path) = &shift {
        match read_shift(path) {
            Ok(shift_ms) => tracing::warn!(path = %path.display(), shift_ms, "the wall clock is moved, for a test"),
            Err(error) => tracing::warn!(path = %path.display(), %error, "{SHIFT_VARIABLE} is not used"),
        }
    }
    let uptime = Uptime { told: read_uptime().unwrap_or_default(), at: Instant::now() };
    System { shift, uptime: Mutex::new(uptime) }
}

impl TimeSource for System {
    fn wall(&self) -> UnixMillis {
        let wall = UnixMillis::from(SystemTime::now());
        let shift = self.shift.as_ref().and_then(|path| read_shift(path).ok()).unwrap_or(0);
        UnixMillis(wall.0.saturating_add_signed(shift))
    }

    fn elapsed(&self) -> Duration {
        self.uptime.lock().unwrap_or_else(PoisonError::into_inner).now()
    }
}

pub(super) fn read_shift(path: &Path) -> io::Result<i64> {
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits() as i32;
    let file: File = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    let metadata = file.metadata()?;
    let is_own = metadata.uid() == rustix::process::geteuid().as_raw() && metadata.mode() & 0o022 == 0;
    if !metadata.is_file() || !is_own {
        let reason = "it must be a regular file of this user that nobody else may write";
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, reason));
    }
    let mut text = String::new();
    file.take(SHIFT_BYTES_MAX).read_to_string(&mut text)?;
    text.trim().parse().map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "it holds no number of milliseconds"))
}

/// Clocks that stand still until a test moves them.
#[derive(Debug, Clone, Default)]
pub struct Manual {
    wall: Arc<AtomicI64>,
    elapsed_ms: Arc<AtomicU64>,
}

impl Manual {
    /// The wall clock shows `wall`, and the machine has just booted.
    pub fn new(wall: UnixMillis) -> Self {
        let this = Self::default();
        this.wall.store(wall.0 as i64, Ordering::SeqCst);
        this
    }

    /// Time passes.
    pub fn pass(&self, time: Duration) {
        self.wall.fetch_add(time.as_millis() as i64, Ordering::SeqCst);
        self.elapsed_ms.fetch_add(time.as_millis() as u64, Ordering::SeqCst);
    }

    /// Somebody sets the wall clock to `wall`.
    pub fn set(&self, wall: UnixMillis) {
        self.wall.store(wall.0 as i64, Ordering::SeqCst);
    }

    /// Somebody moves the wall clock.
    pub fn shift(&self, milliseconds: i64) {
        self.wall.fetch_add(milliseconds, Ordering::SeqCst);
    }
}

impl TimeSource for Manual {
    fn wall(&self) -> UnixMillis {
        UnixMillis(self.wall.load(Ordering::SeqCst).max(0).unsigned_abs())
    }

    fn elapsed(&self) -> Duration {
        Duration::from_millis(self.elapsed_ms.load(Ordering::SeqCst))
    }
}
