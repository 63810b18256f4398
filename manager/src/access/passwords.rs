//! Passwords, hashed with argon2id.

use std::{sync::Arc, time::Duration};

use argon2::{
    Argon2,
    password_hash::{PasswordHasher as _, PasswordVerifier as _, phc::PasswordHash},
};
use rand::Rng as _;
use tokio::{sync::Semaphore, task::spawn_blocking, time::timeout};

/// Hashes at once; each takes 19 MiB and a processor for tens of milliseconds.
const PLACES: usize = 2;
/// Who gets no place by then is told to come back.
const WAIT: Duration = Duration::from_secs(3);
const SALT_BYTES: usize = 16;

/// Hashes and compares passwords, so many at a time.
#[derive(Debug, Clone)]
pub struct Passwords {
    places: Arc<Semaphore>,
    /// The hash of a password that nobody has, for names that nobody has.
    nobodys: Arc<str>,
}

/// Why a password was not hashed or compared.
#[derive(Debug, thiserror::Error)]
pub enum PasswordError {
    /// Too many others are.
    #[error("too many passwords are being checked")]
    Busy,
    /// Only a defect gets here.
    #[error("the password cannot be hashed")]
    Failed,
}

impl Passwords {
    /// Ready for passwords; takes as long as one.
    ///
    /// # Errors
    /// [`PasswordError::Failed`].
    pub async fn new() -> Result<Self, PasswordError> {
        let mut passwords = Self { places: Arc::new(Semaphore::new(PLACES)), nobodys: "".into() };
        passwords.nobodys = passwords.hash(hex::encode(rand::random::<[u8; 32]>())).await?.into();
        Ok(passwords)
    }

    /// The hash that is kept.
    ///
    /// # Errors
    /// [`PasswordError`].
    pub async fn hash(&self, password: String) -> Result<String, PasswordError> {
        self.work(move || {
            let mut salt = [0; SALT_BYTES];
            rand::rng().fill(&mut salt);
            let hash: Result<PasswordHash, _> = Argon2::default().hash_password_with_salt(password.as_bytes(), &salt);
            hash.map(|hash| hash.to_string()).map_err(|_| PasswordError::Failed)
        })
        .await?
    }

    /// Whether `password` is the one that `hash` was made of. Takes as long when there is no hash: then it is not.
    ///
    /// # Errors
    /// [`PasswordError`].
    pub async fn is(&self, password: String, hash: Option<String>) -> Result<bool, PasswordError> {
        let nobodys = Arc::clone(&self.nobodys);
        self.work(move || {
            let (hash, is_somebodys) = match &hash {
                Some(hash) => (hash.as_str(), true),
                None => (&*nobodys, false),
            };
            let parsed = PasswordHash::new(hash).map_err(|_| PasswordError::Failed)?;
            Ok(Argon2::default().verify_password(password.as_bytes(), &parsed).is_ok() && is_somebodys)
        })
        .await?
    }

    async fn work<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, PasswordError> {
        let place = timeout(WAIT, Arc::clone(&self.places).acquire_owned()).await;
        let place = place.map_err(|_| PasswordError::Busy)?.map_err(|_| PasswordError::Busy)?;
        // The place goes along: who leaves does not make room before the work is done.
        let done = spawn_blocking(move || {
            let _place = place;
            work()
        });
        done.await.map_err(|_| PasswordError::Failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_password_is_recognised_and_nothing_else() {
        let passwords = Passwords::new().await.expect("ready");
        let hash = passwords.hash("correct horse".to_owned()).await.expect("hashed");
        assert!(hash.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{hash}");
        assert_ne!(hash, passwords.hash("correct horse".to_owned()).await.expect("hashed"), "salted");
        for (password, kept, expected) in [
            ("correct horse", Some(hash.clone()), true),
            ("correct house", Some(hash.clone()), false),
            ("", Some(hash), false),
            ("correct horse", None, false),
        ] {
            assert_eq!(passwords.is(password.to_owned(), kept).await.expect("compared"), expected, "{password:?}");
        }
    }
}
