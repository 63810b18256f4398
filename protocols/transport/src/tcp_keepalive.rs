//! How soon the kernel takes note of a peer that has vanished without a word: a cut cable, a host that lost its power.
//!
//! Only the kernel is asked to look: a probe of it costs a scheduler with thousands of connections nearly nothing, while a
//! ping every few seconds on each would not. A program that is there and hangs is found by ping.

use std::{io, os::fd::AsFd, time::Duration};

use rustix::net::sockopt;

/// An idle connection is probed after this time, and then every [`PROBE_EVERY`].
const IDLE: Duration = Duration::from_secs(4);

const PROBE_EVERY: Duration = Duration::from_secs(2);

/// So many probes without an answer end an idle connection.
const PROBES: u32 = 3;

/// A connection ends when what was sent has not been confirmed for so long. The kernel's own patience is a quarter of an
/// hour.
const UNCONFIRMED_MAX: Duration = Duration::from_secs(10);

/// Has the kernel watch over a connection.
pub(crate) fn watch(socket: impl AsFd) {
    // A kernel that has no such options still carries connections; ping ends the dead ones later.
    if let Err(error) = set(&socket) {
        tracing::debug!(%error, "the kernel does not watch over this connection");
    }
}

fn set(socket: &impl AsFd) -> io::Result<()> {
    sockopt::set_socket_keepalive(socket, true)?;
    sockopt::set_tcp_keepidle(socket, IDLE)?;
    sockopt::set_tcp_keepintvl(socket, PROBE_EVERY)?;
    sockopt::set_tcp_keepcnt(socket, PROBES)?;
    let unconfirmed = u32::try_from(UNCONFIRMED_MAX.as_millis()).unwrap_or(u32::MAX);
    Ok(sockopt::set_tcp_user_timeout(socket, unconfirmed)?)
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn the_kernel_looks_within_ten_seconds() {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("bound");
        let stream = TcpStream::connect(listener.local_addr().expect("an address")).expect("connected");
        assert!(!sockopt::socket_keepalive(&stream).expect("known"), "not by itself");
        watch(&stream);
        assert!(sockopt::socket_keepalive(&stream).expect("known"));
        assert_eq!(sockopt::tcp_user_timeout(&stream).expect("known"), 10_000);
        let probed = sockopt::tcp_keepintvl(&stream).expect("known") * sockopt::tcp_keepcnt(&stream).expect("known");
        assert_eq!(sockopt::tcp_keepidle(&stream).expect("known") + probed, Duration::from_secs(10));
    }
}
