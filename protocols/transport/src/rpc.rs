//! One request, one response, for every control protocol alike.
//!
//! A response frame begins with a status byte: `0` and the body, `1` and how long to wait as a big-endian `u32` of
//! milliseconds, or `2` and a reason in UTF-8. So *busy* and *refused* need no place in the messages themselves.

use std::{fmt, marker::PhantomData, time::Duration};

use damselfly_messages::wire::{Invalid, Wire};
use libp2p::PeerId;
use tokio::sync::oneshot;

use crate::protocol::Protocol;

mod behaviour;
mod budget;
mod codec;
#[cfg(test)]
mod tests;

pub use behaviour::Rpc;
pub use budget::{Frame, FrameBudget};
pub use codec::Answer;

/// Why a request has no response.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// The peer (or this host's queue to it) is full; the caller asks again later.
    #[error("the peer is busy, retry after {} ms", retry_after.as_millis())]
    Busy {
        /// How long the peer asks to be left alone.
        retry_after: Duration,
    },
    /// The peer understood and does not want to; asking again gives the same.
    #[error("the peer refused: {reason}")]
    Refused {
        /// What the peer said, for a person.
        reason: String,
    },
    /// No answer in time; whether the request took effect is not known.
    #[error("no answer in time")]
    Timeout,
    /// There is no connection, or it ended meanwhile; the caller connects again or asks another peer.
    #[error("the peer is not reachable: {reason}")]
    Unreachable {
        /// What happened to the connection.
        reason: String,
    },
    /// One side does not keep to the protocol, or does not serve it; asking again is of no use.
    #[error("protocol error: {reason}")]
    Protocol {
        /// What is wrong.
        reason: String,
    },
}

impl RequestError {
    /// Whether another try at the same peer can help.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Busy { .. } | Self::Timeout | Self::Unreachable { .. } => true,
            Self::Refused { .. } | Self::Protocol { .. } => false,
        }
    }
}

/// A request on its way to the swarm.
#[derive(Debug)]
pub(crate) struct Outgoing {
    pub(crate) peer: PeerId,
    pub(crate) bytes: Vec<u8>,
    /// As [`Protocol::is_slow`] says.
    pub(crate) slow: bool,
    pub(crate) reply: oneshot::Sender<Result<Answer, RequestError>>,
}

/// A request of a peer, not decoded yet, with the place for its answer.
///
/// Dropping it answers with a refusal, so a peer never waits for an answer that nobody will give.
pub struct Inbound<P: Protocol> {
    peer: PeerId,
    frame: Frame,
    reply: oneshot::Sender<Answer>,
    protocol: PhantomData<fn() -> P>,
}

impl<P: Protocol> Inbound<P> {
    fn new(peer: PeerId, frame: Frame, reply: oneshot::Sender<Answer>) -> Self {
        Self { peer, frame, reply, protocol: PhantomData }
    }

    /// Who asks, as proved by its key.
    pub fn peer(&self) -> PeerId {
        self.peer
    }

    /// What is asked; runs in the caller's task, after the caller has checked that `peer` may ask.
    ///
    /// # Errors
    /// [`Invalid`]: the peer is at fault; the caller [refuses](Self::refuse) with it.
    pub fn decode(&self) -> Result<P::Request, Invalid> {
        P::Request::from_bytes(self.frame.bytes())
    }

    /// Whether the peer still waits.
    pub fn is_waiting(&self) -> bool {
        !self.reply.is_closed()
    }

    /// Answers; without effect when the peer has left.
    pub fn respond(self, response: P::Response) {
        let body = response.to_bytes();
        if body.len() > P::RESPONSE_BYTES_MAX {
            let reason = format!("the answer has {} bytes, more than {}", body.len(), P::RESPONSE_BYTES_MAX);
            tracing::warn!(protocol = P::NAME, peer = %self.peer, reason, "response not sent");
            return self.answer(Answer::Refused { reason });
        }
        self.answer(Answer::Ok { body });
    }

    /// Answers that this will not be done, with a reason for a person.
    pub fn refuse(self, reason: impl Into<String>) {
        self.answer(Answer::Refused { reason: reason.into() });
    }

    /// Answers that the peer should ask again after a time.
    pub fn busy(self, retry_after: Duration) {
        self.answer(Answer::Busy { retry_after });
    }

    fn answer(self, answer: Answer) {
        if self.reply.send(answer).is_err() {
            tracing::debug!(protocol = P::NAME, peer = %self.peer, "the asker left");
        }
    }
}

impl<P: Protocol> fmt::Debug for Inbound<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} from {} ({} bytes)", P::NAME, self.peer, self.frame.bytes().len())
    }
}

/// Makes of an answer what the caller gets.
///
/// # Errors
/// What the peer answered instead of a response, or [`RequestError::Protocol`] when the response is none.
pub(crate) fn response<P: Protocol>(answer: Answer) -> Result<P::Response, RequestError> {
    match answer {
        Answer::Ok { body } => P::Response::from_bytes(&body)
            .map_err(|invalid| RequestError::Protocol { reason: format!("response: {invalid}") }),
        Answer::Busy { retry_after } => Err(RequestError::Busy { retry_after }),
        Answer::Refused { reason } => Err(RequestError::Refused { reason }),
    }
}
