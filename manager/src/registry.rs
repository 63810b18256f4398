//! Join tokens and members, in one file that is replaced as a whole.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use damselfly_messages::{
    membership::{JoinToken, Role, Roles, Tags, TokenId, Verifier},
    record::UnixMillis,
};
use damselfly_transport::program::durable;
use libp2p::{Multiaddr, PeerId};
use serde::{Deserialize, Serialize};

const FILE: &str = "registry.json";
/// Tokens that are kept; expired ones make room.
const TOKENS_MAX: usize = 10_000;

/// What the manager knows of who belongs to the cluster.
#[derive(Debug)]
pub struct Registry {
    path: PathBuf,
    book: Mutex<Book>,
}

/// Everything that is kept.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Book {
    /// The highest serial of a credential.
    serial: u64,
    tokens: BTreeMap<String, TokenRecord>,
    members: BTreeMap<PeerId, Member>,
}

/// A join token, without its secret.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenRecord {
    /// What it makes a host.
    pub roles: Vec<Role>,
    /// What it says of a host.
    pub tags: Tags,
    /// How many hosts may use it.
    pub uses: u32,
    /// How many more.
    pub uses_left: u32,
    /// Until when.
    pub expires_unix_ms: u64,
    /// Since when.
    pub created_unix_ms: u64,
    /// It was taken back.
    pub withdrawn: bool,
    /// In hex; what proves that somebody knows the secret.
    verifier: String,
}

/// A host of the cluster.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Member {
    /// What it is.
    pub roles: Vec<Role>,
    /// What its token says of it.
    pub tags: Tags,
    /// Where it can be dialled, as it was seen last.
    pub addresses: Vec<Multiaddr>,
    /// The version of its program.
    pub version: String,
    /// When it joined.
    pub joined_unix_ms: u64,
    /// When its credential was issued.
    pub renewed_unix_ms: u64,
    /// Until when that holds.
    pub expires_unix_ms: u64,
    /// Its serial.
    pub serial: u64,
    /// When it was put out.
    pub revoked_unix_ms: Option<u64>,
    /// Why.
    pub revoked_because: Option<String>,
}

/// Why a token does not let a host in.
#[derive(Debug, thiserror::Error)]
pub enum NotLetIn {
    /// It is not known, or the secret is wrong.
    #[error("there is no such token, or this is not its secret")]
    Unknown,
    /// It was taken back.
    #[error("the token was withdrawn")]
    Withdrawn,
    /// Its time is over.
    #[error("the token has expired")]
    Expired,
    /// It was used up.
    #[error("the token was good for {uses} hosts, and so many have used it")]
    UsedUp {
        /// How often it could be used.
        uses: u32,
    },
    /// It does not make a host that.
    #[error("the token makes a host {granted}, not {asked}")]
    Role {
        /// What it makes a host.
        granted: Roles,
        /// What the host wants to be.
        asked: Role,
    },
    /// Nothing can be kept.
    #[error("the manager cannot store it")]
    Io(#[from] io::Error),
}

impl TokenRecord {
    fn verifier(&self) -> Option<Verifier> {
        let mut key = [0; 32];
        hex::decode_to_slice(&self.verifier, &mut key).ok()?;
        Some(Verifier(key))
    }
}

impl Registry {
    /// Reads what is kept in `data_dir`.
    ///
    /// # Errors
    /// [`io::Error`] when the file is damaged: it is never replaced by an empty one.
    pub fn open(data_dir: &Path) -> io::Result<Self> {
        let path = data_dir.join(FILE);
        let book = match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Book::default(),
            Err(error) => return Err(error),
        };
        Ok(Self { path, book: Mutex::new(book) })
    }

    fn lock(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes a copy, and takes it over when it is durable. Blocks for the time of a sync.
    fn change<T, E: From<io::Error>>(&self, change: impl FnOnce(&mut Book) -> Result<T, E>) -> Result<T, E> {
        let mut book = self.lock();
        let mut changed = book.clone();
        let result = change(&mut changed)?;
        let bytes = serde_json::to_vec(&changed).map_err(io::Error::from)?;
        durable::replace(&self.path, &bytes, 0o600)?;
        *book = changed;
        Ok(result)
    }

    /// Keeps a new token.
    ///
    /// # Errors
    /// [`io::Error`] when it cannot be kept, also when there are too many.
    pub fn add_token(&self, token: &JoinToken, tags: Tags, uses: u32, now: UnixMillis) -> io::Result<TokenRecord> {
        let record = TokenRecord {
            roles: token.roles.iter().collect(),
            tags,
            uses,
            uses_left: uses,
            expires_unix_ms: token.expires.0,
            created_unix_ms: now.0,
            withdrawn: false,
            verifier: hex::encode(token.secret.verifier().0),
        };
        let (id, kept) = (token.id.to_string(), record.clone());
        self.change(|book| {
            if book.tokens.len() >= TOKENS_MAX {
                book.tokens.retain(|_, token| token.expires_unix_ms > now.0);
            }
            if book.tokens.len() >= TOKENS_MAX {
                return Err(io::Error::other(format!("there are {TOKENS_MAX} join tokens: withdraw some")));
            }
            book.tokens.insert(id, kept);
            Ok(())
        })?;
        Ok(record)
    }

    /// All tokens after `after`, by their names.
    pub fn tokens(&self, after: &str, limit: usize) -> Vec<(String, TokenRecord)> {
        let book = self.lock();
        let later = book.tokens.range::<str, _>((std::ops::Bound::Excluded(after), std::ops::Bound::Unbounded));
        later.take(limit).map(|(id, token)| (id.clone(), token.clone())).collect()
    }

    /// Takes a token back. Returns whether there is one.
    ///
    /// # Errors
    /// [`io::Error`]: it is still good.
    pub fn withdraw(&self, id: TokenId) -> io::Result<bool> {
        self.change(|book| Ok(book.tokens.get_mut(&id.to_string()).map(|token| token.withdrawn = true).is_some()))
    }

    /// Makes a host a member by a token: checks it, uses it, and keeps what `issue` makes of roles, tags and serial, all
    /// or nothing.
    ///
    /// # Errors
    /// [`NotLetIn`]; only who proves to know the secret learns more than that.
    pub fn let_in<T>(
        &self,
        (id, peer, asked): (TokenId, PeerId, Role),
        proves: impl FnOnce(&Verifier) -> bool,
        now: UnixMillis,
        issue: impl FnOnce(Roles, &Tags, u64) -> Result<(T, Member), io::Error>,
    ) -> Result<T, NotLetIn> {
        self.change(|book| {
            let token = book.tokens.get_mut(&id.to_string()).ok_or(NotLetIn::Unknown)?;
            if !token.verifier().as_ref().is_some_and(proves) {
                return Err(NotLetIn::Unknown);
            }
            let granted = Roles::of(token.roles.iter().copied());
            if token.withdrawn {
                return Err(NotLetIn::Withdrawn);
            } else if token.expires_unix_ms <= now.0 {
                return Err(NotLetIn::Expired);
            } else if token.uses_left == 0 {
                return Err(NotLetIn::UsedUp { uses: token.uses });
            } else if !granted.contains(asked) {
                return Err(NotLetIn::Role { granted, asked });
            }
            token.uses_left -= 1;
            book.serial += 1;
            let (issued, member) = issue(granted, &token.tags, book.serial)?;
            book.members.insert(peer, member);
            Ok(issued)
        })
    }

    /// Keeps what `issue` makes of a member and a new serial.
    ///
    /// # Errors
    /// [`io::Error`]: nothing has changed.
    pub fn renew<T>(
        &self,
        peer: PeerId,
        issue: impl FnOnce(Option<&Member>, u64) -> Result<(T, Member), io::Error>,
    ) -> io::Result<T> {
        self.change(|book| {
            book.serial += 1;
            let (issued, member) = issue(book.members.get(&peer), book.serial)?;
            book.members.insert(peer, member);
            Ok(issued)
        })
    }

    /// A member.
    pub fn member(&self, peer: &PeerId) -> Option<Member> {
        self.lock().members.get(peer).cloned()
    }

    /// All members after `after`, by their PeerIds.
    pub fn members(&self, after: Option<PeerId>, limit: usize) -> Vec<(PeerId, Member)> {
        let book = self.lock();
        let begin = after.map_or(std::ops::Bound::Unbounded, std::ops::Bound::Excluded);
        let later = book.members.range((begin, std::ops::Bound::Unbounded));
        later.take(limit).map(|(peer, member)| (*peer, member.clone())).collect()
    }

    /// Notes that a member was put out, and why.
    ///
    /// # Errors
    /// [`io::Error`]: nothing has changed.
    pub fn revoke(&self, peer: &PeerId, because: &str, now: UnixMillis) -> io::Result<()> {
        self.change(|book| {
            if let Some(member) = book.members.get_mut(peer) {
                (member.revoked_unix_ms, member.revoked_because) = (Some(now.0), Some(because.to_owned()));
            }
            Ok(())
        })
    }
}
