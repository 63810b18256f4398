//! Who may do what: users, sessions, personal access tokens, and the first admin.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use damselfly_messages::record::UnixMillis;

mod admin_token;
mod limiter;
mod names;
mod passwords;
mod role;
mod scope;
mod secret;
mod setup;

pub use admin_token::{AdminToken, FILE as ADMIN_TOKEN};
pub use names::{check_label, check_name, check_password};
pub use passwords::{PasswordError, Passwords};
pub use role::Role;
pub use scope::{Scope, Scopes, scopes};
pub use secret::Secret;

use damselfly_transport::{program::metrics::Labelled, source::source_of};

use crate::database::{
    Database, DatabaseError,
    audit::Actor,
    users::{NewUser, User, UserError},
};
use limiter::Limiter;
use setup::Setup;

/// What every personal access token begins with.
pub const TOKEN_PREFIX: &str = "dfp_";
/// A session ends when it is not used for so long,
pub const SESSION_IDLE: Duration = Duration::from_secs(60 * 60);
/// and after so long in any case.
pub const SESSION_TOTAL: Duration = Duration::from_secs(12 * 60 * 60);
/// That a session is used is noted so often at most.
const TOUCH_INTERVAL: Duration = Duration::from_secs(60);
/// Logins of one name from one address: so many at once, and one more after each pause.
const NAME_AND_ADDRESS_TRIES: (u32, Duration) = (10, Duration::from_secs(6));
/// Logins of one name from all addresses; above it each is answered later, by [`NAME_DELAY`], but none is refused: else
/// anybody could keep the user out.
const NAME_TRIES: (u32, Duration) = (20, Duration::from_secs(6));
/// How much later.
const NAME_DELAY: Duration = Duration::from_secs(2);
/// Logins from one address, of any name.
const ADDRESS_TRIES: (u32, Duration) = (30, Duration::from_secs(2));
/// Confirmations of the password by one user who is logged in.
const CONFIRM_TRIES: (u32, Duration) = (10, Duration::from_secs(6));

/// A handle to what knows who may do what.
#[derive(Debug, Clone)]
pub struct Access {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    database: Database,
    data_dir: PathBuf,
    admin_token: AdminToken,
    passwords: Passwords,
    limits: Limits,
    logins: Labelled,
    /// While there was no user when the manager started.
    setup: Option<Setup>,
}

/// How often passwords may be tried.
#[derive(Debug)]
struct Limits {
    names_and_addresses: Limiter<(String, Option<IpAddr>)>,
    names: Limiter<String>,
    addresses: Limiter<IpAddr>,
    confirmations: Limiter<String>,
}

impl Limits {
    fn new() -> Self {
        Self {
            names_and_addresses: Limiter::new(NAME_AND_ADDRESS_TRIES.0, NAME_AND_ADDRESS_TRIES.1),
            names: Limiter::new(NAME_TRIES.0, NAME_TRIES.1),
            addresses: Limiter::new(ADDRESS_TRIES.0, ADDRESS_TRIES.1),
            confirmations: Limiter::new(CONFIRM_TRIES.0, CONFIRM_TRIES.1),
        }
    }

    /// Counts a login of `name` from `source`, and returns by how much its answer is delayed.
    ///
    /// # Errors
    /// How long to wait before the next try.
    fn log_in(&self, name: &str, source: Option<IpAddr>, now: Instant) -> Result<Duration, Duration> {
        if let Some(source) = &source {
            self.addresses.try_now(source, now)?;
        }
        self.names_and_addresses.try_now(&(name.to_owned(), source), now)?;
        let is_slow = self.names.try_now(&name.to_owned(), now).is_err();
        Ok(if is_slow { NAME_DELAY } else { Duration::ZERO })
    }
}

/// Who asks.
#[derive(Debug, Clone)]
pub struct Caller {
    /// What it may do.
    pub role: Role,
    /// What its token is limited to.
    pub scopes: Scopes,
    /// The user; `None` with the admin token.
    pub user: Option<String>,
    /// How it has shown who it is.
    pub credential: Credential,
}

/// How a caller has shown who it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Credential {
    /// The token in the data directory.
    AdminToken,
    /// A personal access token.
    AccessToken,
    /// A session of a browser.
    Session(Secret),
}

/// Why nobody may do anything.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// What was shown is nothing, or not good any more.
    #[error("this session or token is not known, has expired, or is revoked")]
    Unauthorized,
    /// It is not known.
    #[error(transparent)]
    Database(#[from] DatabaseError),
}

/// Why there is no session or user.
#[derive(Debug, thiserror::Error)]
pub enum LoginError {
    /// Name or password or both; which of them is not told.
    #[error("there is no such user with this password")]
    Wrong,
    /// Too many tries.
    #[error("too many tries")]
    Limited {
        /// By then there may be another one.
        retry_after: Duration,
    },
    /// Not the secret, or it was used.
    #[error("this is not the secret of the set-up link, or it was used")]
    Secret,
    /// The first user could not be made.
    #[error(transparent)]
    User(#[from] UserError),
    /// The password could not be compared.
    #[error(transparent)]
    Password(#[from] PasswordError),
    /// It is not known.
    #[error(transparent)]
    Database(#[from] DatabaseError),
}

impl Caller {
    /// As the audit has it; `address` is where the request came from.
    pub fn actor(&self, address: Option<SocketAddr>) -> Actor {
        let name = self.user.clone().unwrap_or_else(|| "(admin token)".to_owned());
        Actor { name, address: address.map(|address| address.ip().to_string()) }
    }

    /// Whether it is the user `name`.
    pub fn is(&self, name: &str) -> bool {
        self.user.as_deref() == Some(name)
    }
}

impl Credential {
    /// What a request that changes something must carry beside the cookie.
    pub fn csrf_token(&self) -> Option<String> {
        match self {
            Self::Session(secret) => Some(secret.derive("csrf")),
            Self::AdminToken | Self::AccessToken => None,
        }
    }
}

impl Access {
    /// Opens what lies in `data_dir` and `database`.
    ///
    /// # Errors
    /// [`io::Error`], also of the database.
    pub async fn open(data_dir: &Path, database: Database) -> io::Result<Self> {
        let admin_token = AdminToken::load_or_create(data_dir)?;
        let setup = match database.has_no_users().await.map_err(io::Error::other)? {
            true => Some(Setup::prepare(data_dir)?),
            false => None,
        };
        if setup.is_none() {
            Setup::done(data_dir);
        }
        let passwords = Passwords::new().await.map_err(io::Error::other)?;
        let limits = Limits::new();
        let data_dir = data_dir.to_owned();
        let logins = Labelled::new("result", &["failed", "limited", "ok", "wrong"]);
        Ok(Self { inner: Arc::new(Inner { database, data_dir, admin_token, passwords, limits, logins, setup }) })
    }

    /// Tells where the first admin is made, if there is none.
    ///
    /// # Errors
    /// [`io::Error`] when the link cannot be written.
    pub fn announce(&self, http: &str) -> io::Result<()> {
        self.inner.setup.as_ref().map_or(Ok(()), |setup| setup.announce(http))
    }

    /// The database.
    pub fn database(&self) -> &Database {
        &self.inner.database
    }

    /// Counts logins.
    pub fn logins(&self) -> &Labelled {
        &self.inner.logins
    }

    /// For passwords of users.
    pub fn passwords(&self) -> &Passwords {
        &self.inner.passwords
    }

    /// Who has `token`, the admin token or a personal access token.
    ///
    /// # Errors
    /// [`AccessError`].
    pub async fn of_token(&self, token: &str) -> Result<Caller, AccessError> {
        if self.inner.admin_token.is(token) {
            return Ok(Caller { role: Role::Admin, scopes: None, user: None, credential: Credential::AdminToken });
        }
        let known = match token.starts_with(TOKEN_PREFIX) {
            true => self.database().access_token(&Secret::hash(token)).await?,
            false => None,
        };
        let token = known.filter(|token| token.expires > self.database().now()).ok_or(AccessError::Unauthorized)?;
        Ok(Caller {
            role: token.role,
            scopes: token.scopes,
            user: Some(token.user),
            credential: Credential::AccessToken,
        })
    }

    /// Whose session `secret` is.
    ///
    /// # Errors
    /// [`AccessError`].
    pub async fn of_session(&self, secret: Secret) -> Result<Caller, AccessError> {
        let (hash, now) = (Secret::hash(secret.reveal()), self.database().now());
        let session = self.database().session(&hash).await?.ok_or(AccessError::Unauthorized)?;
        if session.used < before(now, SESSION_IDLE) || session.created < before(now, SESSION_TOTAL) {
            return Err(AccessError::Unauthorized);
        }
        if session.used < before(now, TOUCH_INTERVAL) {
            self.database().touch_session(&hash, now).await?;
        }
        Ok(Caller {
            role: session.role,
            scopes: None,
            user: Some(session.user),
            credential: Credential::Session(secret),
        })
    }

    /// Begins a session. Takes as long for a name that nobody has as for a wrong password.
    ///
    /// # Errors
    /// [`LoginError`].
    pub async fn log_in(
        &self,
        name: &str,
        password: String,
        address: Option<SocketAddr>,
    ) -> Result<Caller, LoginError> {
        let result = self.try_log_in(name, password, address).await;
        let counted = match &result {
            Ok(_) => "ok",
            Err(LoginError::Wrong) => "wrong",
            Err(LoginError::Limited { .. }) => "limited",
            Err(_) => "failed",
        };
        self.inner.logins.of(counted).inc();
        result
    }

    async fn try_log_in(
        &self,
        name: &str,
        password: String,
        address: Option<SocketAddr>,
    ) -> Result<Caller, LoginError> {
        let source = address.map(|address| source_of(address.ip()));
        let limited = |retry_after| LoginError::Limited { retry_after };
        let delay = self.inner.limits.log_in(name, source, Instant::now()).map_err(limited)?;
        tokio::time::sleep(delay).await;
        let known = self.database().user(name).await?.filter(|(user, _)| !user.is_disabled);
        let (user, hash) = known.map_or((None, None), |(user, hash)| (Some(user), Some(hash)));
        let is_right = self.passwords().is(password, hash).await?;
        let user = user.filter(|_| is_right).ok_or(LoginError::Wrong)?;
        self.inner.limits.names_and_addresses.forgive(&(user.name.clone(), source));
        let secret = Secret::generate("");
        let (hash, now) = (Secret::hash(secret.reveal()), self.database().now());
        let caller =
            Caller { role: user.role, scopes: None, user: Some(user.name), credential: Credential::Session(secret) };
        let (idle, total) = (before(now, SESSION_IDLE), before(now, SESSION_TOTAL));
        self.database().begin_session(&hash, &caller.actor(address), now, idle, total).await?;
        Ok(caller)
    }

    /// Whether `password` is that of `user`, who is logged in. Counted apart from logins, which strangers may try too.
    ///
    /// # Errors
    /// [`LoginError`].
    pub async fn confirm(&self, user: &str, password: String) -> Result<(), LoginError> {
        let limited = |retry_after| LoginError::Limited { retry_after };
        self.inner.limits.confirmations.try_now(&user.to_owned(), Instant::now()).map_err(limited)?;
        let hash = self.database().user(user).await?.map(|(_, hash)| hash);
        if self.passwords().is(password, hash).await? { Ok(()) } else { Err(LoginError::Wrong) }
    }

    /// Makes the first admin for who has the secret of the link.
    ///
    /// # Errors
    /// [`LoginError`].
    pub async fn set_up(
        &self,
        secret: &str,
        name: &str,
        password: String,
        address: Option<SocketAddr>,
    ) -> Result<User, LoginError> {
        if !self.inner.setup.as_ref().is_some_and(|setup| setup.is(secret)) {
            return Err(LoginError::Secret);
        }
        let password = self.passwords().hash(password).await?;
        let user = NewUser { name, role: Role::Admin, password: &password };
        let actor = Actor { name: "(set-up)".to_owned(), address: address.map(|address| address.ip().to_string()) };
        let made = self.database().create_first_user(user, &actor, self.database().now()).await?;
        Setup::done(&self.inner.data_dir);
        Ok(made)
    }
}

fn before(now: UnixMillis, time: Duration) -> UnixMillis {
    UnixMillis(now.0.saturating_sub(u64::try_from(time.as_millis()).unwrap_or(u64::MAX)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> Option<IpAddr> {
        Some(source_of(text.parse().expect("an address")))
    }

    #[test]
    fn a_stranger_who_guesses_keeps_no_user_out() {
        let limits = Limits::new();
        let start = Instant::now();
        let (stranger, user) = (address("203.0.113.9"), address("10.0.0.5"));
        let mut refused = 0;
        for second in 0..600 {
            let now = start + Duration::from_secs(second);
            refused += usize::from(limits.log_in("ada", stranger, now).is_err());
        }
        let now = start + Duration::from_secs(600);
        assert!(refused > 400, "the stranger has one try per six seconds: {refused} refused");
        assert!(limits.log_in("ada", user, now).is_ok(), "the right user gets in from elsewhere");
        assert_eq!(limits.log_in("bob", user, now), Ok(Duration::ZERO), "other names are as quick as ever");
    }

    #[test]
    fn many_strangers_make_a_name_slow_and_refuse_nobody() {
        let limits = Limits::new();
        let now = Instant::now();
        let mut slow = 0;
        for host in 0..100 {
            let delay = limits.log_in("ada", address(&format!("203.0.113.{host}")), now).expect("not refused");
            slow += usize::from(delay == NAME_DELAY);
        }
        assert_eq!(slow, 80, "all but the first twenty wait for their answer");
        assert_eq!(limits.log_in("ada", address("10.0.0.5"), now), Ok(NAME_DELAY), "the right user waits, and gets in");
    }

    #[test]
    fn a_host_with_a_whole_ipv6_network_counts_once() {
        let limits = Limits::new();
        let now = Instant::now();
        let tries = |host| limits.log_in("ada", address(&format!("2001:db8::{host:x}")), now);
        assert_eq!((0..100).filter(|host| tries(*host).is_ok()).count(), NAME_AND_ADDRESS_TRIES.0 as usize);
    }
}
