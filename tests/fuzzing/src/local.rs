//! The daemon's socket: whatever a local program sends, the connection ends and the next one is served.

use std::{
    io::IoSlice,
    mem::MaybeUninit,
    net::Shutdown,
    os::{fd::AsFd as _, unix::net::UnixStream},
    sync::OnceLock,
    time::Duration,
};

use damselfly_transport::local::LocalServer;
use futures::StreamExt as _;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use tempfile::TempDir;
use tokio::runtime::{Builder, Runtime};

use crate::head;

/// A server that takes every connection, and closes those that speak gRPC.
struct Served {
    folder: TempDir,
    _runtime: Runtime,
}

fn served() -> &'static Served {
    static SERVED: OnceLock<Served> = OnceLock::new();
    SERVED.get_or_init(|| {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
        let path = folder.path().join("socket");
        let server = runtime.block_on(async { LocalServer::bind(&path).expect("listens") });
        runtime.spawn(async move {
            let mut incoming = server.incoming();
            while let Some(stream) = incoming.next().await {
                drop(stream);
            }
        });
        Served { folder, _runtime: runtime }
    })
}

/// The first byte says how many descriptors go with the message, and whether the marker of a descriptor connection and its
/// version stand before the others.
pub(crate) fn run(bytes: &[u8]) {
    let ([how], body) = head(bytes);
    let mut message = if how & 0x80 == 0 { vec![0xDF, 1] } else { Vec::new() };
    message.extend_from_slice(body);
    if message.is_empty() {
        return;
    }
    let stream = UnixStream::connect(served().folder.path().join("socket")).expect("the daemon still listens");
    stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a deadline");
    send(&stream, &message, usize::from(how & 0x03));
    // Refused by then, it is an error of the sender's.
    let _ = stream.shutdown(Shutdown::Write);
    let mut answer = [0; 512];
    // Nothing, a reason, or a reset: anything but silence.
    let read = rustix::io::read(&stream, &mut answer);
    assert!(!matches!(read, Err(rustix::io::Errno::AGAIN)), "no answer and no end within a minute");
}

fn send(stream: &UnixStream, message: &[u8], descriptors: usize) {
    let file = tempfile::tempfile().expect("a temporary file");
    let fds = vec![file.as_fd(); descriptors];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if descriptors > 0 {
        assert!(control.push(SendAncillaryMessage::ScmRights(&fds)), "there is room for four");
    }
    // What the other side does not want any more is its decision.
    let _ = rustix::net::sendmsg(stream, &[IoSlice::new(message)], &mut control, SendFlags::NOSIGNAL);
}
