//! `/damselfly/join/1`: how a host becomes a member, on a listener of its own.
//!
//! TCP and TLS, so that both sides know each other's PeerId, then three frames: the manager's greeting, the host's request,
//! the manager's answer. There is no multiplexer and no other protocol: this is all that a stranger reaches.

use std::time::Duration;

use damselfly_messages::{config::CONFIGURATION_BYTES_MAX, membership::CREDENTIAL_BYTES_MAX, wire::Wire};
use futures::{AsyncRead, AsyncWrite, AsyncWriteExt as _};

use crate::frame::{self, FrameError};

mod client;
mod guests;
mod server;
#[cfg(test)]
mod tests;

pub use client::{Asking, JoinError, ask};
pub use server::{Asked, Authority, JoinServer};

/// From the first packet to the answer.
const WITHIN: Duration = Duration::from_secs(10);
/// The name of the upgrade before the frames, as both sides would negotiate it.
const TLS: &str = "/tls/1.0.0";

/// Longest greeting, in bytes.
const GREETING_BYTES_MAX: usize = 4 << 10;
/// Longest request, in bytes: a credential and some addresses.
const REQUEST_BYTES_MAX: usize = CREDENTIAL_BYTES_MAX + (8 << 10);
/// Longest answer, in bytes: a credential and the configuration.
const ANSWER_BYTES_MAX: usize = CONFIGURATION_BYTES_MAX + CREDENTIAL_BYTES_MAX + (4 << 10);

async fn send<C: AsyncWrite + Unpin>(to: &mut C, message: &impl Wire, max: usize) -> Result<(), FrameError> {
    frame::write(to, &message.to_bytes(), max).await?;
    Ok(to.flush().await?)
}

async fn receive<C: AsyncRead + Unpin>(from: &mut C, max: usize) -> Result<Vec<u8>, FrameError> {
    frame::read(from, max).await?.ok_or(FrameError::Truncated)
}
