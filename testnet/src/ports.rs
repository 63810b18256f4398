//! Ports for the programs of a cluster.

use std::{
    fs,
    net::{Ipv4Addr, TcpListener},
    os::{
        linux::net::SocketAddrExt as _,
        unix::net::{SocketAddr, UnixListener},
    },
    sync::{Mutex, PoisonError},
};

use anyhow::Context as _;

/// Free loopback ports, all different.
///
/// They lie below those that the system gives to outgoing connections, so that a program finds its own port free when
/// it is started again. For the same reason other clusters leave them alone as long as this process lives.
///
/// # Errors
/// When there are not so many.
pub fn free(count: usize) -> anyhow::Result<Vec<u16>> {
    let range = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let low = range.split_whitespace().next().and_then(|low| low.parse().ok()).unwrap_or(32_768_u16);
    let candidates = if low > 12_000 { 10_000..low } else { 49_152..65_535 };
    // Kept open until all are found.
    let mut found = Vec::with_capacity(count);
    for _ in 0..100 * (count + 1) {
        if found.len() == count {
            break;
        }
        let port = rand::random_range(candidates.clone());
        if let Ok(listener) = TcpListener::bind((Ipv4Addr::LOCALHOST, port))
            && claim(port)
        {
            found.push(listener);
        }
    }
    anyhow::ensure!(found.len() == count, "there are not {count} free ports on 127.0.0.1");
    found.iter().map(|listener| Ok(listener.local_addr().context("no address")?.port())).collect()
}

/// Takes a port until this process ends, so that a program which is down for a while does not lose it to another cluster.
fn claim(port: u16) -> bool {
    /// Names that nobody ever connects to.
    static CLAIMED: Mutex<Vec<UnixListener>> = Mutex::new(Vec::new());
    let name = SocketAddr::from_abstract_name(format!("damselfly testnet port {port}"));
    let Ok(claim) = name.and_then(|name| UnixListener::bind_addr(&name)) else { return false };
    CLAIMED.lock().unwrap_or_else(PoisonError::into_inner).push(claim);
    true
}
