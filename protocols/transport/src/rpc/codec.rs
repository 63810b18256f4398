//! Frames of control protocols: bounded, not decoded.

use std::{
    io,
    marker::PhantomData,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures::{AsyncRead, AsyncWrite};
use libp2p::{PeerId, StreamProtocol, request_response};

use super::{Frame, FrameBudget, budget::Share};
use crate::{frame, protocol::Protocol};

const OK: u8 = 0;
const BUSY: u8 = 1;
const REFUSED: u8 = 2;

/// Longer reasons are cut, in bytes.
const REASON_BYTES_MAX: usize = 1024;

/// The longest pause a peer can ask for; a longer one is cut.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(3600);

/// A response as it is on the wire.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Done.
    Ok {
        /// The response, encoded.
        body: Vec<u8>,
    },
    /// Not now.
    Busy {
        /// When to ask again.
        retry_after: Duration,
    },
    /// Not at all.
    Refused {
        /// Why, for a person.
        reason: String,
    },
}

impl Answer {
    pub(super) fn to_frame(&self) -> Vec<u8> {
        match self {
            Self::Ok { body } => [&[OK], &body[..]].concat(),
            Self::Busy { retry_after } => {
                let milliseconds = u32::try_from(retry_after.as_millis()).unwrap_or(u32::MAX);
                [&[BUSY], &milliseconds.to_be_bytes()[..]].concat()
            }
            Self::Refused { reason } => {
                let end = reason.floor_char_boundary(REASON_BYTES_MAX);
                [&[REFUSED], &reason.as_bytes()[..end]].concat()
            }
        }
    }

    pub(super) fn from_frame(mut frame: Vec<u8>) -> Result<Self, &'static str> {
        match frame.first() {
            Some(&OK) => {
                frame.remove(0);
                Ok(Self::Ok { body: frame })
            }
            Some(&BUSY) => {
                let milliseconds = frame[1..].try_into().map_err(|_| "busy without a time")?;
                let retry_after = Duration::from_millis(u32::from_be_bytes(milliseconds).into()).min(RETRY_AFTER_MAX);
                Ok(Self::Busy { retry_after })
            }
            Some(&REFUSED) => {
                let reason = String::from_utf8_lossy(&frame[1..]);
                Ok(Self::Refused { reason: reason[..reason.floor_char_boundary(REASON_BYTES_MAX)].to_owned() })
            }
            Some(_) => Err("unknown status"),
            None => Err("empty response"),
        }
    }
}

/// Reads and writes the frames of one protocol.
///
/// The behaviour has one; a clone of that is for a connection, and a clone of a connection's is for one of its streams.
/// This is how request-response uses them. It does not tell a codec whose connection it is for, so the behaviour's owner
/// calls [`Codecs::next_is_for`] before each new connection.
pub struct Codec<P> {
    codecs: Codecs,
    share: Option<Share>,
    protocol: PhantomData<fn() -> P>,
}

/// What tells the codecs of a behaviour whose connections they are for.
#[derive(Debug, Clone)]
pub(super) struct Codecs {
    budget: FrameBudget,
    next: Arc<Mutex<Option<Share>>>,
}

impl Codecs {
    pub(super) fn new(budget: FrameBudget) -> Self {
        Self { budget, next: Arc::default() }
    }

    /// The behaviour's codec.
    pub(super) fn codec<P>(&self) -> Codec<P> {
        Codec { codecs: self.clone(), share: None, protocol: PhantomData }
    }

    /// The next connection is one with `peer`, and counts for it.
    pub(super) fn next_is_for(&self, peer: PeerId) {
        *self.next.lock().unwrap_or_else(PoisonError::into_inner) = Some(self.budget.share(peer));
    }

    fn next(&self) -> Option<Share> {
        self.next.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl<P> Clone for Codec<P> {
    fn clone(&self) -> Self {
        let share = self.share.clone().or_else(|| self.codecs.next());
        Self { codecs: self.codecs.clone(), share, protocol: PhantomData }
    }
}

/// The longest response frame: the status byte, and a body or a reason.
const fn response_frame_max<P: Protocol>() -> usize {
    let body = if P::RESPONSE_BYTES_MAX > REASON_BYTES_MAX { P::RESPONSE_BYTES_MAX } else { REASON_BYTES_MAX };
    1 + body
}

impl<P: Protocol> request_response::Codec for Codec<P> {
    type Protocol = StreamProtocol;
    type Request = Frame;
    type Response = Answer;

    async fn read_request<T: AsyncRead + Unpin + Send>(
        &mut self,
        _: &StreamProtocol,
        stream: &mut T,
    ) -> io::Result<Frame> {
        let share = self.share.as_ref().ok_or_else(|| io::Error::other("a connection without a share"))?;
        share.read(stream, P::REQUEST_BYTES_MAX).await
    }

    async fn read_response<T: AsyncRead + Unpin + Send>(
        &mut self,
        _: &StreamProtocol,
        stream: &mut T,
    ) -> io::Result<Answer> {
        let frame = frame::read(stream, response_frame_max::<P>()).await?;
        let frame = frame.ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))?;
        Answer::from_frame(frame).map_err(|reason| io::Error::new(io::ErrorKind::InvalidData, reason))
    }

    async fn write_request<T: AsyncWrite + Unpin + Send>(
        &mut self,
        _: &StreamProtocol,
        stream: &mut T,
        request: Frame,
    ) -> io::Result<()> {
        Ok(frame::write(stream, request.bytes(), P::REQUEST_BYTES_MAX).await?)
    }

    async fn write_response<T: AsyncWrite + Unpin + Send>(
        &mut self,
        _: &StreamProtocol,
        stream: &mut T,
        answer: Answer,
    ) -> io::Result<()> {
        Ok(frame::write(stream, &answer.to_frame(), response_frame_max::<P>()).await?)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn answers() {
        // (frame, answer, why)
        let table: &[(&[u8], Result<Answer, &str>, &str)] = &[
            (&[], Err("empty response"), "no status"),
            (&[0], Ok(Answer::Ok { body: vec![] }), "an empty body is a body"),
            (&[0, 9], Ok(Answer::Ok { body: vec![9] }), "a body"),
            (&[1, 0, 0, 1, 0], Ok(Answer::Busy { retry_after: Duration::from_millis(256) }), "big-endian"),
            (
                &[1, 0xff, 0xff, 0xff, 0xff],
                Ok(Answer::Busy { retry_after: RETRY_AFTER_MAX }),
                "no peer stops us for days",
            ),
            (&[1, 0], Err("busy without a time"), "too short"),
            (&[2, b'n', b'o'], Ok(Answer::Refused { reason: "no".into() }), "a reason"),
            (&[2, 0xff], Ok(Answer::Refused { reason: "\u{fffd}".into() }), "reasons are shown, not parsed"),
            (&[3], Err("unknown status"), "of a later version"),
        ];
        for (frame, expected, why) in table {
            assert_eq!(&Answer::from_frame(frame.to_vec()), expected, "{why}");
        }
    }

    proptest! {
        #[test]
        fn answers_round_trip(body in prop::collection::vec(any::<u8>(), 0..100), ms in 0..3_600_000_u64, reason in ".{0,100}") {
            let retry_after = Duration::from_millis(ms);
            for answer in [Answer::Ok { body }, Answer::Busy { retry_after }, Answer::Refused { reason }] {
                prop_assert_eq!(Answer::from_frame(answer.to_frame()), Ok(answer));
            }
        }

        #[test]
        fn reasons_are_cut(reason in "[aä€]{900,2000}") {
            let frame = Answer::Refused { reason }.to_frame();
            prop_assert!(frame.len() <= 1 + REASON_BYTES_MAX);
        }
    }
}
