//! Who may use the API.

use std::{fmt, fs, io, path::Path, sync::Arc};

use axum::{
    extract::{Request, State},
    http::{HeaderMap, header},
    middleware::Next,
    response::Response,
};
use damselfly_transport::program::durable;
use rand::Rng as _;
use subtle::ConstantTimeEq as _;

use super::Problem;

const FILE: &str = "admin_token";
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
    fn admits(&self, headers: &HeaderMap) -> bool {
        let Some(value) = headers.get(header::AUTHORIZATION) else { return false };
        let Some((scheme, token)) = value.to_str().ok().and_then(|value| value.split_once(' ')) else { return false };
        scheme.eq_ignore_ascii_case("bearer") && token.trim().as_bytes().ct_eq(self.0.as_bytes()).into()
    }
}

impl fmt::Debug for AdminToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AdminToken")
    }
}

/// Lets only requests with the token through.
pub(super) async fn require(
    State(token): State<AdminToken>,
    request: Request,
    next: Next,
) -> Result<Response, Problem> {
    if token.admits(request.headers()) { Ok(next.run(request).await) } else { Err(Problem::unauthorized()) }
}
