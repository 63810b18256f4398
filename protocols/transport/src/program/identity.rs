//! The key that a host's PeerId is made of, and the directory it lies in.

use std::{
    fs::{self, DirBuilder, File},
    io::{self, Read as _},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _},
    path::{Path, PathBuf},
};

use libp2p::identity::Keypair;

use super::durable;

/// A key file is shorter by far.
const KEY_BYTES_MAX: u64 = 4096;

/// The name of the key file in a data directory.
pub const KEY_FILE: &str = "identity.key";

/// Why there is no usable key or directory.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The system refuses.
    #[error("cannot use {}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another user may read or change it.
    #[error("{} {problem}", path.display())]
    Exposed {
        /// The file or directory.
        path: PathBuf,
        /// What is wrong, and what to do.
        problem: String,
    },
    /// The file holds no key.
    #[error("{} is no ed25519 key: {reason}", path.display())]
    NoKey {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

/// Reads the key at `path`, or makes one there when there is none.
///
/// # Errors
/// [`IdentityError`]: a key that is there is never replaced.
pub fn load_or_create(path: &Path) -> Result<Keypair, IdentityError> {
    if let Some(key) = load(path)? {
        return Ok(key);
    }
    let key = Keypair::generate_ed25519();
    let bytes = key
        .to_protobuf_encoding()
        .map_err(|error| IdentityError::NoKey { path: path.into(), reason: error.to_string() })?;
    durable::create(path, &bytes, 0o600).map_err(|source| IdentityError::Io { path: path.into(), source })?;
    Ok(key)
}

/// Reads the key at `path`; `None` when there is no such file.
///
/// # Errors
/// [`IdentityError::Exposed`] when others may read it.
pub fn load(path: &Path) -> Result<Option<Keypair>, IdentityError> {
    let failed = |source| IdentityError::Io { path: path.into(), source };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let metadata = file.metadata().map_err(failed)?;
    check(path, &metadata, 0o077, "chmod 600")?;
    let mut bytes = Vec::new();
    file.take(KEY_BYTES_MAX).read_to_end(&mut bytes).map_err(failed)?;
    Keypair::from_protobuf_encoding(&bytes)
        .map(Some)
        .map_err(|error| IdentityError::NoKey { path: path.into(), reason: error.to_string() })
}

/// Makes the data directory if it is missing, readable by its owner only; checks it if it is there.
///
/// # Errors
/// [`IdentityError::Exposed`] when it belongs to somebody else or is open to others.
pub fn prepare_data_dir(path: &Path) -> Result<(), IdentityError> {
    let failed = |source| IdentityError::Io { path: path.into(), source };
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed)?;
    let metadata = fs::metadata(path).map_err(failed)?;
    if !metadata.is_dir() {
        return Err(failed(io::ErrorKind::NotADirectory.into()));
    }
    let inside = path.join("damselfly");
    let remedy = format!("chmod 700 it, or name a folder inside it, such as {}", inside.display());
    check(path, &metadata, 0o027, &remedy)?;
    for risk in risks_above(path).map_err(failed)? {
        tracing::warn!(data_dir = %path.display(), "others can replace the data directory: {risk}");
    }
    Ok(())
}

/// The directories above `path` whose owner, or whom they are open to, could put another directory in its place.
fn risks_above(path: &Path) -> io::Result<Vec<String>> {
    let us = rustix::process::geteuid().as_raw();
    let written = std::path::absolute(path)?;
    let real = fs::canonicalize(path)?;
    let mut risks = Vec::new();
    // Both: a link on the way can be replaced too.
    for above in real.ancestors().skip(1).chain(written.ancestors().skip(1)) {
        let metadata = fs::symlink_metadata(above)?;
        let shown = above.display();
        // A user's private group has the user's number, and only that user in it.
        let open_to = if metadata.gid() == metadata.uid() { 0o002 } else { 0o022 };
        let is_shared = metadata.mode() & open_to != 0 && metadata.mode() & 0o1000 == 0;
        let risk = match metadata.uid() {
            owner if owner != us && owner != 0 => format!("{shown} belongs to user {owner}"),
            _ if !metadata.is_symlink() && is_shared => {
                format!(
                    "{shown} is open to other users (mode {:03o}): chmod go-w, or chmod +t",
                    metadata.mode() & 0o7777
                )
            }
            _ => continue,
        };
        if !risks.contains(&risk) {
            risks.push(risk);
        }
    }
    Ok(risks)
}

/// The file is ours, and has none of the `forbidden` permissions.
fn check(path: &Path, metadata: &fs::Metadata, forbidden: u32, remedy: &str) -> Result<(), IdentityError> {
    let exposed = |problem| Err(IdentityError::Exposed { path: path.into(), problem });
    let us = rustix::process::geteuid().as_raw();
    if metadata.uid() != us {
        return exposed(format!("belongs to user {}, but this program runs as user {us}", metadata.uid()));
    }
    let mode = metadata.mode() & 0o777;
    if mode & forbidden != 0 {
        return exposed(format!("is open to other users (mode {mode:03o}): {remedy}"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_key_is_made_once_and_kept_private() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join(KEY_FILE);
        let key = load_or_create(&path).expect("made");
        assert_eq!(fs::metadata(&path).expect("there").mode() & 0o777, 0o600);
        assert_eq!(load_or_create(&path).expect("read").public(), key.public());
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).expect("chmod");
        assert!(matches!(load_or_create(&path), Err(IdentityError::Exposed { .. })));
    }

    #[test]
    fn who_can_replace_a_data_directory_is_told() {
        let folder = tempfile::tempdir().expect("a folder");
        let above = folder.path().join("above");
        let data = above.join("data");
        prepare_data_dir(&data).expect("made");
        let metadata = fs::metadata(&above).expect("made");
        // A private group has its user's number.
        let is_shared_group = metadata.gid() != metadata.uid();
        for (mode, is_risk) in [(0o755, false), (0o777, true), (0o775, is_shared_group), (0o1777, false)] {
            fs::set_permissions(&above, fs::Permissions::from_mode(mode)).expect("chmod");
            let risks = risks_above(&data).expect("looked");
            let told = risks.iter().any(|risk| risk.starts_with(&above.display().to_string()));
            assert_eq!(told, is_risk, "{mode:o}: {risks:?}");
        }
        fs::set_permissions(&data, fs::Permissions::from_mode(0o777)).expect("chmod");
        let refused = prepare_data_dir(&data).expect_err("open").to_string();
        assert!(refused.contains("above/data/damselfly"), "{refused}");
        prepare_data_dir(&data.join("damselfly")).expect("a folder inside it is good");
    }

    #[test]
    fn damaged_keys_and_open_directories_are_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join(KEY_FILE);
        durable::create(&path, b"no key", 0o600).expect("written");
        assert!(matches!(load_or_create(&path), Err(IdentityError::NoKey { .. })));
        assert_eq!(fs::read(&path).expect("read"), b"no key", "it is not replaced");
        let data = folder.path().join("a/b");
        prepare_data_dir(&data).expect("made");
        fs::set_permissions(&data, fs::Permissions::from_mode(0o755)).expect("chmod");
        assert!(matches!(prepare_data_dir(&data), Err(IdentityError::Exposed { .. })));
    }
}
