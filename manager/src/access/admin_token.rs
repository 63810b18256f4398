//! The token in the data directory, for programs on the manager's own host.

use std::{fmt, fs, io, path::Path, sync::Arc};

use damselfly_transport::program::durable;
use rand::Rng as _;
use subtle::ConstantTimeEq as _;

/// Its file in the data directory.
pub const FILE: &str = "admin_token";
const TOKEN_BYTES: usize = 32;

/// The token that may do everything; it lies in `admin_token` in the data directory.
#[derive(Clone)]
pub struct AdminToken(Arc<str>);

impl AdminToken {
    /// Reads the token, or makes one at the first start.
    ///
    /// # Errors
    /// [`io::Error`], also when the file is empty.
    pub fn load_or_create(data_dir: &Path) -> io::Result<Self> {
        let path = data_dir.join(FILE);
        match fs::read_to_string(&path) {
            Ok(text) if text.trim().is_empty() => {
                Err(io::Error::new(io::ErrorKind::InvalidData, format!("{} is empty", path.display())))
            }
            Ok(text) => Ok(Self(text.trim().into())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let mut bytes = [0; TOKEN_BYTES];
                rand::rng().fill(&mut bytes);
                let token = hex::encode(bytes);
                durable::create(&path, token.as_bytes(), 0o600)?;
                Ok(Self(token.into()))
            }
            Err(error) => Err(error),
        }
    }

    /// Takes the same time for every wrong token of the right length.
    pub(super) fn is(&self, token: &str) -> bool {
        token.as_bytes().ct_eq(self.0.as_bytes()).into()
    }
}

impl fmt::Debug for AdminToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AdminToken")
    }
}
