//! Who is on the other end of a connection.

use tokio::net::UnixStream;
use tonic::{Request, Status};

use super::calls::LocalConnection;

/// User, group and process of a caller, as the kernel noted them when it connected.
///
/// A service finds it in the extensions of every request; see [`PeerCredentials::of`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerCredentials {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Process id; not known for a process outside our namespace. For logs: it may be reused.
    pub pid: Option<i32>,
}

impl PeerCredentials {
    /// The credentials of the caller of `request`.
    ///
    /// # Errors
    /// The request did not come over a [`super::LocalStream`].
    pub fn of<T>(request: &Request<T>) -> Result<Self, Status> {
        let found = request.extensions().get::<LocalConnection>().map(|connection| connection.peer);
        found.ok_or_else(|| Status::internal("the connection has no peer credentials"))
    }

    /// Whether the daemon may open paths on behalf of this caller: it is root, or the daemon's user.
    pub fn may_name_paths(&self) -> bool {
        self.uid == 0 || self.uid == rustix::process::geteuid().as_raw()
    }

    pub(super) fn of_stream(stream: &UnixStream) -> std::io::Result<Self> {
        let cred = stream.peer_cred()?;
        Ok(Self { uid: cred.uid(), gid: cred.gid(), pid: cred.pid() })
    }
}
