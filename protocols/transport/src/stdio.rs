//! Stdin and stdout, with the errors that `std::io` hides.
//!
//! Where one of them is closed, Rust's runtime opens `/dev/null` in its place before `main`: what is written is lost
//! without an error, and what is read ends at once. So they are looked at before the runtime starts. And `std::io::stdout`
//! takes a descriptor that cannot be written for one that nobody wants to read.

use std::{
    fs::File,
    io::{self, Write as _},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::atomic::{AtomicBool, Ordering},
};

use rustix::io::Errno;

static STDIN_WAS_CLOSED: AtomicBool = AtomicBool::new(false);
static STDOUT_WAS_CLOSED: AtomicBool = AtomicBool::new(false);

/// The system's loader calls what stands in this section before the runtime of Rust begins.
#[allow(unsafe_code, reason = "placing a function pointer in a section is unsafe; what it points to needs no runtime")]
#[used]
#[unsafe(link_section = ".init_array")]
static BEFORE_THE_RUNTIME: extern "C" fn() = note_what_is_closed;

extern "C" fn note_what_is_closed() {
    let is_closed = |fd: BorrowedFd<'_>| rustix::io::fcntl_getfd(fd) == Err(Errno::BADF);
    STDIN_WAS_CLOSED.store(is_closed(io::stdin().as_fd()), Ordering::Relaxed);
    STDOUT_WAS_CLOSED.store(is_closed(io::stdout().as_fd()), Ordering::Relaxed);
}

/// Whether the program was started without stdout.
pub fn stdout_is_closed() -> bool {
    STDOUT_WAS_CLOSED.load(Ordering::Relaxed)
}

/// Stdin.
///
/// # Errors
/// The program was started without it.
pub fn stdin() -> io::Result<OwnedFd> {
    if STDIN_WAS_CLOSED.load(Ordering::Relaxed) {
        return Err(io::Error::other("it is closed"));
    }
    io::stdin().as_fd().try_clone_to_owned()
}

/// Stdout.
///
/// # Errors
/// The program was started without it.
pub fn stdout() -> io::Result<OwnedFd> {
    if stdout_is_closed() {
        return Err(io::Error::other("it is closed"));
    }
    io::stdout().as_fd().try_clone_to_owned()
}

/// Writes a result to stdout, at once.
///
/// # Errors
/// It was not written: stdout is closed, or full, or cannot be written.
pub fn print(text: &str) -> io::Result<()> {
    // What a program wrote by other ways comes first.
    io::stdout().flush()?;
    File::from(stdout()?).write_all(text.as_bytes())
}
