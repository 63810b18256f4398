//! TCP listeners for both kinds of IP.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
};

use rustix::net::sockopt::set_ipv6_v6only;
use tokio::net::{TcpListener, TcpSocket};

use crate::dialing::is_without_ipv6;

/// Connections that wait to be accepted.
const BACKLOG: u32 = 1024;

/// Listens on `address`; `[::]` is every address of this host, IPv4 too, and on a system without IPv6 those of IPv4.
///
/// Must be called inside of a tokio runtime.
///
/// # Errors
/// [`io::Error`]: the system refuses.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    match listen(address) {
        Err(error) if address.is_ipv6() && address.ip().is_unspecified() && is_without_ipv6(&error) => {
            listen(SocketAddr::from((Ipv4Addr::UNSPECIFIED, address.port())))
        }
        other => other,
    }
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv6() { TcpSocket::new_v6()? } else { TcpSocket::new_v4()? };
    if address.is_ipv6() {
        // Whatever net.ipv6.bindv6only says.
        set_ipv6_v6only(&socket, !address.ip().is_unspecified())?;
    }
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;

    use tokio::net::TcpStream;

    use super::*;

    #[tokio::test]
    async fn one_listener_for_all_addresses_is_reached_by_both_kinds() {
        let listener = bind(SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0))).expect("bound");
        let port = listener.local_addr().expect("bound").port();
        drop(TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.expect("over IPv4"));
        // A machine may have no IPv6.
        if std::net::UdpSocket::bind((Ipv6Addr::LOCALHOST, 0)).is_ok() {
            drop(TcpStream::connect((Ipv6Addr::LOCALHOST, port)).await.expect("over IPv6"));
        }
        let taken = bind(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port))).expect_err("it is taken");
        assert_eq!(taken.kind(), io::ErrorKind::AddrInUse);
    }
}
