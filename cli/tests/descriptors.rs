//! Descriptors over the real socket, with friendly and hostile clients.

mod common;

use std::fs::{File, OpenOptions};
use std::io::{IoSlice, Read, Seek, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use common::Served;
use damselfly_transport::local::proto::CheckHealthRequest;
use damselfly_transport::local::{Access, Code, Failure, Kind, LocalServer, client};
use futures::StreamExt;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};

fn uid() -> u32 {
    rustix::process::geteuid().as_raw()
}

fn file(dir: &Path) -> File {
    let path = dir.join("file");
    OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path).expect("a file")
}

/// Sends bytes and descriptors as a program could that is not ours; returns the answer and the connection.
fn send_raw(socket: &Path, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> (Vec<u8>, UnixStream) {
    let mut stream = UnixStream::connect(socket).expect("connects");
    let mut space = [MaybeUninit::uninit(); 256];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        assert!(control.push(SendAncillaryMessage::ScmRights(fds)));
    }
    rustix::net::sendmsg(&stream, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL).expect("sends");
    let mut answer = vec![0; 256];
    stream.set_read_timeout(Some(Duration::from_secs(10))).expect("sets");
    // A connection that is closed with unread bytes is reset; what came before counts.
    let read = stream.read(&mut answer).unwrap_or(0);
    answer.truncate(read);
    (answer, stream)
}

fn message(token: u8) -> Vec<u8> {
    [&[0xDF, 1][..], &[token; 16]].concat()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_arrives_and_is_the_same_file() {
    let served = Served::start();
    let mut ours = file(served.dir.path());
    let handed = client::send_descriptor(&served.socket, ours.as_fd()).await.expect("is taken");

    let taken = served.descriptors.take(uid(), &handed.token).expect("waits");
    assert_eq!((taken.kind, taken.access), (Kind::File, Access::ReadWrite));
    File::from(taken.for_writing().expect("writable")).write_all(b"from the daemon").expect("writes");
    let mut text = String::new();
    ours.rewind().and_then(|()| ours.read_to_string(&mut text)).expect("reads");
    assert_eq!(text, "from the daemon");

    let again = served.descriptors.take(uid(), &handed.token).expect_err("was taken");
    assert_eq!(again.code, Code::Usage);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_ends_of_a_pipe_say_what_they_are_for() {
    let served = Served::start();
    let (read, write) = rustix::pipe::pipe().expect("a pipe");
    let handed = client::send_descriptor(&served.socket, read.as_fd()).await.expect("is taken");
    let taken = served.descriptors.take(uid(), &handed.token).expect("waits");
    assert_eq!((taken.kind, taken.access), (Kind::Pipe, Access::Read));
    assert_eq!(taken.for_writing().expect_err("cannot be written").code, Code::Usage);
    let handed = client::send_descriptor(&served.socket, write.as_fd()).await.expect("is taken");
    let taken = served.descriptors.take(uid(), &handed.token).expect("waits");
    assert_eq!(taken.access, Access::Write);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_user_does_not_get_it() {
    let served = Served::start();
    let handed = client::send_descriptor(&served.socket, file(served.dir.path()).as_fd()).await.expect("is taken");
    assert!(served.descriptors.take(uid() + 1, &handed.token).is_err(), "theirs is another");
    assert!(served.descriptors.take(uid(), &handed.token[..15]).is_err(), "part of a name");
    assert!(served.descriptors.take(uid(), &handed.token).is_ok(), "and it still waits for its owner");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_kinds_are_refused_with_the_reason() {
    let served = Served::start();
    let path = served.dir.path().join("file");
    file(served.dir.path());
    let fifo = served.dir.path().join("fifo");
    rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, rustix::fs::Mode::RWXU).expect("a fifo");
    let open = |options: &mut OpenOptions, path: &Path| options.open(path).expect("opens");
    let only_path = rustix::fs::open(&path, rustix::fs::OFlags::PATH, rustix::fs::Mode::empty()).expect("opens");
    let (socket, _other) = UnixStream::pair().expect("sockets");
    let rows = [
        (
            File::open("/proc/self/status").expect("opens"),
            "kernel makes up",
            "it would be read with the daemon's rights",
        ),
        (open(OpenOptions::new().write(true), Path::new("/proc/self/comm")), "kernel makes up", "and written"),
        (File::open(served.dir.path()).expect("opens"), "neither", "a directory"),
        (File::open("/dev/null").expect("opens"), "neither", "a device"),
        (open(OpenOptions::new().read(true).write(true), &fifo), "neither", "a fifo with a name"),
        (File::from(std::os::fd::OwnedFd::from(socket)), "neither", "a socket"),
        (open(OpenOptions::new().append(true), &path), "appending", "offsets do not count"),
        (File::from(only_path), "neither for reading nor", "only a path"),
    ];
    for (fd, expected, reason) in rows {
        let failure = client::send_descriptor(&served.socket, fd.as_fd()).await.expect_err(reason);
        assert_eq!(failure.code, Code::Failed, "{reason}");
        assert!(failure.message.contains(expected), "{reason}: {}", failure.message);
    }
    assert!(served.descriptors.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn malformed_messages_are_refused_and_leak_nothing() {
    let served = Served::start();
    let (read, write) = rustix::pipe::pipe().expect("a pipe");
    let one = [write.as_fd()];
    let many = [write.as_fd(); 20];
    let rows: [(Vec<u8>, &[BorrowedFd<'_>], &str, &str); 7] = [
        (message(1), &[], "no descriptor", "none at all"),
        (message(1), &many[..2], "more than one", "two may fit where one is expected"),
        (message(1), &many, "more than one", "many"),
        (message(1)[..17].to_vec(), &one, "too short", "cut off"),
        (vec![0xDF, 2, 0], &one, "version 2", "of tomorrow"),
        (vec![0x00; 18], &one, "", "neither protocol: closed without a word"),
        (b"PRI * HTTP/1.1".to_vec(), &one, "", "a descriptor on a gRPC connection"),
    ];
    for (bytes, fds, expected, reason) in rows {
        let (answer, _) = send_raw(&served.socket, &bytes, fds);
        let text = String::from_utf8_lossy(answer.get(1..).unwrap_or_default());
        assert!(text.contains(expected), "{reason}: {text}");
        if !expected.is_empty() {
            assert_eq!(answer[0], Code::Usage.exit(), "{reason}");
        }
    }
    assert!(served.descriptors.is_empty());
    drop(write);
    // It ends when nobody has its other end any more, and the daemon is in this process.
    let ended = tokio::task::spawn_blocking(move || File::from(read).read(&mut [0]));
    let ended = tokio::time::timeout(Duration::from_secs(10), ended).await.expect("every copy is closed");
    assert_eq!(ended.expect("runs").expect("reads"), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_descriptors_is_refused_and_the_first_stay() {
    let served = Served::start();
    let file = file(served.dir.path());
    let mut kept = Vec::new();
    for token in 0..32 {
        let (answer, connection) = send_raw(&served.socket, &message(token), &[file.as_fd()]);
        assert_eq!(answer, [0], "{token}");
        kept.push(connection);
        let (twice, _) = send_raw(&served.socket, &message(0), &[file.as_fd()]);
        assert_ne!(twice[0], 0, "the name is taken");
    }
    let refused = client::send_descriptor(&served.socket, file.as_fd()).await.expect_err("too many");
    assert_eq!(refused.code, Code::NoSpace, "{refused:?}");
    assert_eq!(served.descriptors.len(), 32);
    assert!(served.descriptors.take(uid(), &[0; 16]).is_ok());
    assert!(client::send_descriptor(&served.socket, file.as_fd()).await.is_ok(), "there is room again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_is_gone_holds_no_pipe_open() {
    let served = Served::start();
    let (read, write) = rustix::pipe::pipe().expect("a pipe");
    let handed = client::send_descriptor(&served.socket, write.as_fd()).await.expect("is taken");
    drop(write);
    drop(handed);
    let ended = tokio::task::spawn_blocking(move || File::from(read).read(&mut [0]));
    let ended = tokio::time::timeout(Duration::from_secs(5), ended).await.expect("in time");
    assert_eq!(ended.expect("runs").expect("reads"), 0, "the end of the pipe");
    assert!(served.descriptors.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_ends_when_its_descriptor_is_taken() {
    let served = Served::start();
    let file = file(served.dir.path());
    let (_, mut connection) = send_raw(&served.socket, &message(7), &[file.as_fd()]);
    served.descriptors.take(uid(), &[7; 16]).expect("waits");
    let ended = tokio::task::spawn_blocking(move || connection.read(&mut [0]));
    assert_eq!(ended.await.expect("runs").expect("is closed, not silent"), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silent_connections_are_closed_and_hold_up_nobody() {
    let served = Served::start();
    let silent: Vec<_> = (0..100).map(|_| UnixStream::connect(&served.socket).expect("connects")).collect();
    let mut daemon = client::connect(&served.socket).await.expect("connects");
    let health = daemon.check_health(CheckHealthRequest {}).await.expect("answers").into_inner();
    assert_eq!(health.epoch, u64::from(uid()), "the service knows who asks");
    // More of one user than fit are turned away, and those that said nothing give up their places.
    let flood: Vec<_> = (0..100).map(|_| UnixStream::connect(&served.socket).expect("connects")).collect();
    let started = Instant::now();
    let closed = tokio::task::spawn_blocking(move || {
        silent.into_iter().chain(flood).all(|mut stream| {
            stream.set_read_timeout(Some(Duration::from_secs(20))).expect("sets");
            matches!(stream.read(&mut [0]), Ok(0))
        })
    });
    assert!(closed.await.expect("runs"), "every silent connection is closed");
    assert!(started.elapsed() < Duration::from_secs(15));
    client::connect(&served.socket).await.expect("there is room again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_socket_of_a_living_daemon_is_not_taken() {
    let served = Served::start();
    let metadata = std::fs::metadata(&served.socket).expect("metadata");
    assert!(metadata.file_type().is_socket());
    assert_eq!(metadata.permissions().mode() & 0o777, 0o660);
    let failure = LocalServer::bind(&served.socket).expect_err("in use");
    assert_eq!(failure.code, Code::Conflict);
    client::connect(&served.socket).await.expect("the first one still serves");

    let socket = served.socket.clone();
    let _dir = served.stop().await;
    assert!(!socket.exists(), "a daemon that ends removes its socket");
    // One that was killed did not: a socket that nobody listens at.
    drop(std::os::unix::net::UnixListener::bind(&socket).expect("binds"));
    let failure = client::connect(&socket).await.expect_err("dead");
    assert_eq!(failure.code, Code::Unreachable);
    LocalServer::bind(&socket).expect("replaces the socket of the dead");

    std::fs::write(&socket, "a file").expect("writes");
    assert!(LocalServer::bind(&socket).is_err(), "a file is not a socket");
    assert_eq!(std::fs::read_to_string(&socket).expect("reads"), "a file", "and is not removed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_breaks_is_not_the_clusters_fault() {
    let dir = tempfile::tempdir().expect("a directory");
    let socket = dir.path().join("sock");
    let mut incoming = LocalServer::bind(&socket).expect("binds").incoming();
    let mut daemon = client::connect(&socket).await.expect("connects");
    let accepted = incoming.next().await.expect("a connection");
    let call = tokio::spawn(async move { daemon.check_health(CheckHealthRequest {}).await });
    tokio::time::sleep(Duration::from_millis(100)).await;
    drop(accepted);
    drop(incoming);
    let status = call.await.expect("runs").expect_err("broken");
    assert_eq!(Failure::from(status).code, Code::Unreachable, "exit 4, not 8");
}
