//! The one message of a descriptor connection, and its answer.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::UnixStream;

use super::descriptors::{TOKEN_BYTES, Token};
use super::error::{Code, Failure};

/// First byte of a descriptor connection. An HTTP/2 preface begins with `P`.
pub(super) const MAGIC: u8 = 0xDF;
const VERSION: u8 = 1;
const HEADER_BYTES: usize = 2;
const MESSAGE_BYTES: usize = HEADER_BYTES + TOKEN_BYTES;

const TAKEN: u8 = 0;
const MAX_REASON_BYTES: usize = 255;

/// The first byte of a connection, left where it is; `None` when the other side has closed it.
pub(super) async fn peek(stream: &UnixStream) -> io::Result<Option<u8>> {
    let read = || {
        let mut byte = [0];
        let (read, _) = rustix::net::recv(stream, &mut byte, RecvFlags::PEEK)?;
        Ok((read == 1).then_some(byte[0]))
    };
    stream.async_io(Interest::READABLE, read).await
}

/// Sends the message, all of it in one.
pub(super) async fn send(stream: &UnixStream, token: &Token, fd: BorrowedFd<'_>) -> io::Result<()> {
    let mut message = [0; MESSAGE_BYTES];
    message[..HEADER_BYTES].copy_from_slice(&[MAGIC, VERSION]);
    message[HEADER_BYTES..].copy_from_slice(token);
    let fds = [fd];
    let send = || {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !control.push(SendAncillaryMessage::ScmRights(&fds)) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let bytes = [IoSlice::new(&message)];
        Ok(rustix::net::sendmsg(stream, &bytes, &mut control, SendFlags::NOSIGNAL)?)
    };
    match stream.async_io(Interest::WRITABLE, send).await? {
        MESSAGE_BYTES => Ok(()),
        _ => Err(io::ErrorKind::WriteZero.into()),
    }
}

/// Receives the message. Descriptors that a refused message carried are closed.
pub(super) async fn receive(stream: &UnixStream) -> Result<(Token, OwnedFd), Failure> {
    let received = stream.async_io(Interest::READABLE, || receive_now(stream)).await;
    let (message, mut fds, complete) = received.map_err(|e| Failure::io("cannot receive", &e))?;
    let refuse = |why: &str| Err(Failure::new(Code::Usage, why));
    if !complete && fds.is_empty() {
        // There was room for one, so it is the kernel that had no number left for it.
        return Err(Failure::io("cannot take a descriptor", &Errno::MFILE.into()));
    }
    if !complete || fds.len() > 1 {
        return refuse("more than one descriptor");
    }
    let Some(fd) = fds.pop() else {
        return refuse("no descriptor");
    };
    match message.as_slice() {
        [MAGIC, VERSION, token @ ..] => match Token::try_from(token) {
            Ok(token) => Ok((token, fd)),
            Err(_) => refuse("the message is too short"),
        },
        [MAGIC, version, ..] => refuse(&format!("unknown version {version} of the message")),
        _ => refuse("not a descriptor message"),
    }
}

/// The bytes, the descriptors, and whether all descriptors found room.
fn receive_now(stream: &UnixStream) -> io::Result<(Vec<u8>, Vec<OwnedFd>, bool)> {
    let mut bytes = [0; MESSAGE_BYTES];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    // What does not fit into the space, the kernel closes, and says so.
    let received =
        rustix::net::recvmsg(stream, &mut [IoSliceMut::new(&mut bytes)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    let complete = !received.flags.contains(ReturnFlags::CTRUNC);
    Ok((bytes[..received.bytes].to_vec(), fds, complete))
}

/// Refuses the connection without looking at the message. It is read all the same: the kernel resets a connection that is
/// closed with unread bytes, and the client would not see the answer. Without room for the descriptor the kernel drops it,
/// which does not wait for a file system as closing does.
pub(super) async fn refuse(stream: &mut UnixStream, reason: &Failure) -> io::Result<()> {
    let discard = || Ok(rustix::net::recv(&*stream, &mut [0; MESSAGE_BYTES], RecvFlags::empty())?);
    stream.async_io(Interest::READABLE, discard).await?;
    answer(stream, Some(reason)).await
}

/// Tells the client whether its descriptor was taken.
pub(super) async fn answer(stream: &mut UnixStream, refused: Option<&Failure>) -> io::Result<()> {
    let bytes = match refused {
        None => vec![TAKEN],
        Some(failure) => {
            let end = failure.message.floor_char_boundary(MAX_REASON_BYTES);
            let mut bytes = vec![failure.code.exit()];
            bytes.extend_from_slice(&failure.message.as_bytes()[..end]);
            bytes
        }
    };
    stream.write_all(&bytes).await
}

/// Reads the daemon's answer.
pub(super) async fn read_answer(stream: &mut UnixStream) -> Result<(), Failure> {
    let lost = |e: io::Error| Failure::io("the daemon did not take the descriptor", &e);
    let code = match stream.read_u8().await {
        Ok(TAKEN) => return Ok(()),
        Ok(code) => code,
        Err(e) if is_end(&e) => return Err(closed()),
        Err(e) => return Err(lost(e)),
    };
    let mut reason = Vec::new();
    stream.take(MAX_REASON_BYTES as u64).read_to_end(&mut reason).await.map_err(lost)?;
    let reason = String::from_utf8_lossy(&reason);
    let code = Code::from_exit(code).unwrap_or(Code::Failed);
    Err(Failure::new(code, format!("the daemon refused the descriptor: {reason}")))
}

fn is_end(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset)
}

fn closed() -> Failure {
    Failure::new(Code::Unreachable, "the daemon closed the connection without an answer")
        .with_hint("it ended, or it has too many local connections; try again")
}
