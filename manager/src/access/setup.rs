//! The first admin: made by who can read a file of the manager's.

use std::{
    fs,
    io::{self, IsTerminal as _},
    path::{Path, PathBuf},
};

use damselfly_transport::program::durable;
use subtle::ConstantTimeEq as _;

use super::Secret;

/// The file with the link, in the data directory, while there is no user.
pub const FILE: &str = "setup_link";
const PARAMETER: &str = "#secret=";

/// The secret for the first admin.
#[derive(Debug)]
pub struct Setup {
    path: PathBuf,
    secret: Secret,
    is_new: bool,
}

impl Setup {
    /// The secret of an earlier start that nobody has used, or a new one.
    ///
    /// # Errors
    /// [`io::Error`] when the file cannot be read.
    pub fn prepare(data_dir: &Path) -> io::Result<Self> {
        let path = data_dir.join(FILE);
        let kept = match fs::read_to_string(&path) {
            Ok(link) => link.trim().split_once(PARAMETER).map(|(_, secret)| secret.to_owned()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        let kept = kept.filter(|secret| secret.len() == 64);
        let is_new = kept.is_none();
        Ok(Self { path, secret: kept.map_or_else(|| Secret::generate(""), Secret::from), is_new })
    }

    /// Writes the link, and shows it the first time to who sits before a terminal: logs are read by more people, and told
    /// only where it is.
    ///
    /// # Errors
    /// [`io::Error`] when the file cannot be written.
    pub fn announce(&self, http: &str) -> io::Result<()> {
        let link = format!("{http}/setup{PARAMETER}{}", self.secret.reveal());
        durable::replace(&self.path, link.as_bytes(), 0o600)?;
        if self.is_new {
            match io::stderr().is_terminal() {
                true => eprintln!("dfmanager: make the first admin at {link}\n(also in {})", self.path.display()),
                false => {
                    tracing::info!(file = %self.path.display(), "there is no user yet: the file has the link for the first admin")
                }
            }
        }
        Ok(())
    }

    /// Whether `secret` is the one.
    pub fn is(&self, secret: &str) -> bool {
        secret.as_bytes().ct_eq(self.secret.reveal().as_bytes()).into()
    }

    /// Removes the file: there is an admin.
    pub fn done(data_dir: &Path) {
        let path = data_dir.join(FILE);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(path = %path.display(), %error, "the used link for the set-up is still there");
            }
            _ => {}
        }
    }
}
