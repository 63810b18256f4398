//! The caller's end of the socket.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio::time::{Instant, sleep, timeout};
use tonic::transport::{Channel, Endpoint};

use super::descriptors::{Kind, Token, kind_of};
use super::error::{Code, Failure, root_cause};
use super::proto::daemon_client::DaemonClient;
use super::socket::SYSTEM_SOCKET;
use super::{MAX_REQUEST_BYTES, MAX_RESPONSE_BYTES, handover};

/// Until the socket is connected, and until a descriptor is taken.
const DEADLINE: Duration = Duration::from_secs(10);
/// Between two tries to connect while the daemon's queue is full.
const QUEUE_PAUSE: Duration = Duration::from_millis(20);
/// A daemon that is stopped or stuck is noticed after twice this.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// Connects to the daemon that listens at `path`.
///
/// # Errors
/// [`Code::Unreachable`]: nobody listens there. [`Code::Permission`]: the socket is not open to us.
pub async fn connect(path: &Path) -> Result<DaemonClient<Channel>, Failure> {
    let first = open(path).await?;
    let path = Arc::new(path.to_owned());
    // The first connection is made here, where its error still says what happened.
    let first = Arc::new(Mutex::new(Some(first)));
    let connector = tower::service_fn(move |_: http::Uri| {
        let (path, first) = (path.clone(), first.clone());
        async move {
            let first = first.lock().unwrap_or_else(PoisonError::into_inner).take();
            let stream = match first {
                Some(stream) => stream,
                None => UnixStream::connect(path.as_path()).await?,
            };
            Ok::<_, io::Error>(TokioIo::new(stream))
        }
    });
    let channel = Endpoint::from_static("http://localhost")
        .connect_timeout(DEADLINE)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE)
        .connect_with_connector(connector)
        .await
        .map_err(|e| {
            let cause = root_cause(&e);
            Failure::new(Code::Unreachable, format!("cannot speak with the daemon: {cause}"))
        })?;
    Ok(DaemonClient::new(channel)
        .max_encoding_message_size(MAX_REQUEST_BYTES)
        .max_decoding_message_size(MAX_RESPONSE_BYTES))
}

/// A descriptor that the daemon has, for as long as this is kept, and the call that takes it goes on.
#[derive(Debug)]
pub struct HandedOver {
    /// The name that an RPC gives it.
    pub token: Token,
    _connection: UnixStream,
}

/// Hands a descriptor to the daemon. Returns when the daemon has it, so the caller may close its own.
/// What is returned is kept until the call has ended; dropped earlier, the daemon may forget it.
///
/// # Errors
/// As [`connect`]; or the daemon's reason to refuse it.
pub async fn send_descriptor(path: &Path, fd: BorrowedFd<'_>) -> Result<HandedOver, Failure> {
    let token: Token = rand::random();
    let mut stream = open(path).await?;
    let exchange = async {
        match handover::send(&stream, &token, fd).await {
            // A daemon without a place for us closes first; the answer says so, or its absence.
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => {}
            Err(e) => return Err(Failure::io("cannot hand over a descriptor", &e)),
        }
        handover::read_answer(&mut stream).await
    };
    match timeout(DEADLINE, exchange).await {
        Ok(done) => done.map(|()| HandedOver { token, _connection: stream }),
        Err(_) => Err(stuck(path)),
    }
}

/// Whether the daemon takes this descriptor: a regular file, or a pipe without a name.
///
/// # Errors
/// The descriptor cannot be looked at.
pub fn passable(fd: impl AsFd) -> io::Result<Option<Kind>> {
    Ok(kind_of(fd)?)
}

async fn open(path: &Path) -> Result<UnixStream, Failure> {
    let until = Instant::now() + DEADLINE;
    loop {
        match timeout(DEADLINE, UnixStream::connect(path)).await {
            Ok(Ok(stream)) => return Ok(stream),
            // Its queue is full. Nothing tells when there is room again.
            Ok(Err(error)) if error.kind() == io::ErrorKind::WouldBlock && Instant::now() < until => {
                sleep(QUEUE_PAUSE).await;
            }
            Ok(Err(error)) => return Err(not_connected(path, &error)),
            Err(_) => return Err(stuck(path)),
        }
    }
}

fn not_connected(path: &Path, error: &io::Error) -> Failure {
    let shown = path.display();
    match error.kind() {
        // The kernel refuses a connection to any file in this way.
        io::ErrorKind::ConnectionRefused if is_no_socket(path) => {
            Failure::new(Code::Unreachable, format!("{shown} is not a socket")).with_hint(how_to_reach(path))
        }
        io::ErrorKind::PermissionDenied => {
            Failure::new(Code::Permission, format!("not permitted to connect to {shown}"))
                .with_hint("join the group of the socket, or run this as its owner")
        }
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
            Failure::new(Code::Unreachable, format!("no daemon listens at {shown}")).with_hint(how_to_reach(path))
        }
        io::ErrorKind::WouldBlock => {
            Failure::new(Code::NoSpace, format!("the daemon at {shown} is busy: too many wait to connect"))
                .with_hint("try again in a moment, or run fewer commands at a time")
        }
        _ => {
            Failure::new(Code::Unreachable, format!("cannot connect to {shown}: {error}")).with_hint(how_to_reach(path))
        }
    }
}

fn is_no_socket(path: &Path) -> bool {
    path.metadata().is_ok_and(|there| !there.file_type().is_socket())
}

fn how_to_reach(path: &Path) -> String {
    if path != Path::new(SYSTEM_SOCKET) && Path::new(SYSTEM_SOCKET).exists() {
        return format!("this host has a daemon at {SYSTEM_SOCKET}: use --socket {SYSTEM_SOCKET}");
    }
    "start `dfdaemon`, or name the socket of a running one with --socket or DFCACHE_SOCKET".into()
}

fn stuck(path: &Path) -> Failure {
    Failure::new(Code::Unreachable, format!("the daemon at {} does not answer", path.display()))
        .with_hint("look at its log; it may be overloaded or stopped")
}
