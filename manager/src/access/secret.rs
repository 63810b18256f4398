//! Random secrets, of which only hashes are kept.

use std::fmt;

use rand::Rng as _;
use sha2::{Digest as _, Sha256};

use crate::database::credentials::SecretHash;

const BYTES: usize = 32;

/// A secret as its owner has it. Never kept or logged.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// `prefix` and 32 random bytes in hex.
    pub fn generate(prefix: &str) -> Self {
        let mut bytes = [0; BYTES];
        rand::rng().fill(&mut bytes);
        Self(format!("{prefix}{}", hex::encode(bytes)))
    }

    /// As it is handed out.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// By which it is found again. A secret of 32 random bytes needs no salt and no slow hash.
    pub fn hash(text: &str) -> SecretHash {
        Sha256::digest(text).into()
    }

    /// A second secret that the first one gives, but that does not give the first one.
    pub fn derive(&self, purpose: &str) -> String {
        hex::encode(Sha256::new().chain_update(purpose).chain_update([0]).chain_update(&self.0).finalize())
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}
