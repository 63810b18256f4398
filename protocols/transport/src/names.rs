//! How names of hosts are resolved.

use std::{io, time::Duration};

use hickory_resolver::{
    config::{ResolverConfig, ResolverOpts},
    system_conf,
};

/// So long an answer is remembered, whatever the server says.
///
/// A name is resolved when its host is dialled, which is often because the host has come back with another address. The name
/// server of Docker lets its answers be remembered for ten minutes all the same.
const REMEMBERED: Duration = Duration::from_secs(1);

/// The system's servers.
///
/// # Errors
/// [`io::Error`]: the system's configuration cannot be read.
pub(crate) fn system() -> io::Result<(ResolverConfig, ResolverOpts)> {
    let (servers, options) = system_conf::read_system_conf().map_err(|error| io::Error::other(error.to_string()))?;
    Ok((servers, forgetful(options)))
}

fn forgetful(mut options: ResolverOpts) -> ResolverOpts {
    options.positive_max_ttl = Some(REMEMBERED);
    options.negative_max_ttl = Some(REMEMBERED);
    options
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use hickory_resolver::{
        TokioResolver,
        config::{ConnectionConfig, NameServerConfig},
        net::runtime::TokioRuntimeProvider,
    };
    use tokio::{net::UdpSocket, sync::watch, time::timeout};

    use super::*;

    /// Answers each question with the present address, to be remembered for ten minutes.
    async fn serve(socket: UdpSocket, address: watch::Receiver<Ipv4Addr>) {
        let mut question = [0; 512];
        while let Ok((length, from)) = socket.recv_from(&mut question).await {
            // The question goes from the head to its type and class; what follows, such as EDNS, is left out.
            let name = 12 + question[12..length].iter().position(|byte| *byte == 0).expect("a name") + 1;
            let mut answer = question[..name + 4].to_vec();
            answer[2..12].copy_from_slice(&[0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0]);
            answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 2, 0x58, 0, 4]);
            answer.extend(address.borrow().octets());
            socket.send_to(&answer, from).await.expect("sent");
        }
    }

    #[tokio::test]
    async fn a_host_with_a_new_address_is_found_at_once() {
        let socket = UdpSocket::bind("127.0.0.1:0").await.expect("bound");
        let (port, (moved, address)) =
            (socket.local_addr().expect("bound").port(), watch::channel([10, 0, 0, 1].into()));
        let server = tokio::spawn(serve(socket, address));
        let mut connection = ConnectionConfig::udp();
        connection.port = port;
        let server_config = NameServerConfig::new(IpAddr::from(Ipv4Addr::LOCALHOST), true, vec![connection]);
        let config = ResolverConfig::from_parts(None, vec![], vec![server_config]);
        let resolver = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
            .with_options(forgetful(ResolverOpts::default()))
            .build()
            .expect("a resolver");
        let find = async || {
            let found = resolver.ipv4_lookup("scheduler-1.example.").await.expect("an answer");
            found.answers().iter().find_map(|record| record.data.ip_addr()).expect("an address")
        };
        assert_eq!(find().await, Ipv4Addr::new(10, 0, 0, 1));
        moved.send_replace([10, 0, 0, 2].into());
        let found = async {
            while find().await != Ipv4Addr::new(10, 0, 0, 2) {
                tokio::task::yield_now().await;
            }
        };
        timeout(Duration::from_secs(10), found).await.expect("the new address is not found within ten seconds");
        server.abort();
    }
}
