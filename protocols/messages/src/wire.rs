//! The border between bytes and domain types.

use std::borrow::Cow;

/// A message that can be sent as one bounded frame.
///
/// Decoding validates: a value that exists obeys every limit stated on its type.
pub trait Wire: Sized + Send + 'static {
    /// The bytes of one frame's body.
    fn to_bytes(&self) -> Vec<u8>;

    /// Reads a frame's body.
    ///
    /// # Errors
    /// [`Invalid`] when the bytes are not such a message or break one of its limits; the sender is at fault.
    fn from_bytes(bytes: &[u8]) -> Result<Self, Invalid>;
}

/// Why a message from outside was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid {what}: {reason}")]
pub struct Invalid {
    /// The part of the message that is wrong.
    pub what: Cow<'static, str>,
    /// What is wrong with it.
    pub reason: String,
}

impl Invalid {
    /// A refusal of `what`, because of `reason`.
    pub fn new(what: impl Into<Cow<'static, str>>, reason: impl Into<String>) -> Self {
        Self { what: what.into(), reason: reason.into() }
    }
}
