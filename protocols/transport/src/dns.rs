//! How names of hosts are resolved.
//!
//! [`Resolving`] dials by IP without any resolver. For a name it asks the servers of `/etc/resolv.conf`, and looks at each
//! dial whether that file or `/etc/hosts` is another one than before: a host may get its name servers after its programs
//! have started, or lose them.

use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use hickory_resolver::{
    config::{NameServerConfig, ResolverConfig, ResolverOpts},
    system_conf,
};
use libp2p::{
    Multiaddr, Transport,
    core::transport::{DialOpts, ListenerId, TransportError, TransportEvent},
    dns,
};

/// So long an answer is remembered, whatever the server says.
///
/// A name is resolved when its host is dialled, which is often because the host has come back with another address. The name
/// server of Docker lets its answers be remembered for ten minutes all the same.
const REMEMBERED: Duration = Duration::from_secs(1);

/// The servers to ask, and how.
type Servers = (ResolverConfig, ResolverOpts);

/// Device, inode, length and time of change of both files; none of a file that is not there.
type Stamp = [Option<(u64, u64, u64, i64, i64)>; 2];

/// The files that say how names are resolved.
#[derive(Debug, Clone)]
pub(crate) struct System {
    servers: PathBuf,
    hosts: PathBuf,
    read: fn(&Path) -> io::Result<Servers>,
}

impl Default for System {
    fn default() -> Self {
        Self { servers: "/etc/resolv.conf".into(), hosts: "/etc/hosts".into(), read }
    }
}

impl System {
    fn stamp(&self) -> Stamp {
        [&self.servers, &self.hosts].map(|path| {
            let found = fs::metadata(path).ok()?;
            Some((found.dev(), found.ino(), found.len(), found.mtime(), found.mtime_nsec()))
        })
    }

    /// The servers in the file; without any, the one of this host, which is what the C library does.
    fn servers(&self) -> (Servers, Option<io::Error>) {
        match (self.read)(&self.servers) {
            Ok(servers) => (servers, None),
            Err(error) => {
                let local = NameServerConfig::udp_and_tcp(IpAddr::from(Ipv4Addr::LOCALHOST));
                ((ResolverConfig::from_parts(None, vec![], vec![local]), ResolverOpts::default()), Some(error))
            }
        }
    }
}

fn read(path: &Path) -> io::Result<Servers> {
    system_conf::parse_resolv_conf(fs::read(path)?).map_err(|error| io::Error::other(error.to_string()))
}

fn forgetful(mut options: ResolverOpts) -> ResolverOpts {
    options.positive_max_ttl = Some(REMEMBERED);
    options.negative_max_ttl = Some(REMEMBERED);
    options
}

/// A transport that dials names too, over one that dials IP addresses.
pub(crate) struct Resolving<T> {
    inner: Shared<T>,
    dns: dns::tokio::Transport<Shared<T>>,
    system: System,
    stamp: Stamp,
    /// The last reading of the servers failed, and the log says so.
    has_failed: bool,
}

impl<T: Transport + Unpin> Resolving<T> {
    /// Over `inner`, as the files of `system` say. Must be called inside of a tokio runtime.
    pub(crate) fn new(inner: T, system: System) -> Self {
        let inner = Shared(Arc::new(Mutex::new(inner)));
        let stamp = system.stamp();
        let (servers, error) = system.servers();
        let mut this = Self { dns: resolver(&inner, servers), inner, system, stamp, has_failed: false };
        this.report(error.as_ref());
        this
    }

    /// Reads the files again if they are others now.
    fn refresh(&mut self) {
        let stamp = self.system.stamp();
        if stamp == self.stamp {
            return;
        }
        self.stamp = stamp;
        let (servers, error) = self.system.servers();
        self.dns = resolver(&self.inner, servers);
        self.report(error.as_ref());
    }

    /// Logs once that no servers are known, and once that they are again.
    fn report(&mut self, error: Option<&io::Error>) {
        let file = self.system.servers.display();
        match error {
            Some(error) if !self.has_failed => tracing::warn!(
                %file, %error,
                "no name servers are known: hosts are found by IP address and in the hosts file only until the file is right"
            ),
            None if self.has_failed => tracing::info!(%file, "name servers are known again"),
            _ => {}
        }
        self.has_failed = error.is_some();
    }
}

fn resolver<T>(inner: &Shared<T>, (servers, options): Servers) -> dns::tokio::Transport<Shared<T>> {
    dns::tokio::Transport::custom(inner.clone(), servers, forgetful(options))
}

impl<T> Transport for Resolving<T>
where
    T: Transport + Send + Unpin + 'static,
    T::Error: Send,
    T::Dial: Send,
{
    type Output = <dns::tokio::Transport<Shared<T>> as Transport>::Output;
    type Error = <dns::tokio::Transport<Shared<T>> as Transport>::Error;
    type ListenerUpgrade = <dns::tokio::Transport<Shared<T>> as Transport>::ListenerUpgrade;
    type Dial = <dns::tokio::Transport<Shared<T>> as Transport>::Dial;

    fn listen_on(&mut self, id: ListenerId, address: Multiaddr) -> Result<(), TransportError<Self::Error>> {
        self.dns.listen_on(id, address)
    }

    fn remove_listener(&mut self, id: ListenerId) -> bool {
        self.dns.remove_listener(id)
    }

    fn dial(&mut self, address: Multiaddr, opts: DialOpts) -> Result<Self::Dial, TransportError<Self::Error>> {
        self.refresh();
        self.dns.dial(address, opts)
    }

    fn poll(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<TransportEvent<Self::ListenerUpgrade, Self::Error>> {
        Pin::new(&mut self.dns).poll(cx)
    }
}

/// A transport that outlives the resolver above it.
pub(crate) struct Shared<T>(Arc<Mutex<T>>);

impl<T> Shared<T> {
    fn lock(&self) -> MutexGuard<'_, T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> Clone for Shared<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T: Transport + Unpin> Transport for Shared<T> {
    type Output = T::Output;
    type Error = T::Error;
    type ListenerUpgrade = T::ListenerUpgrade;
    type Dial = T::Dial;

    fn listen_on(&mut self, id: ListenerId, address: Multiaddr) -> Result<(), TransportError<T::Error>> {
        self.lock().listen_on(id, address)
    }

    fn remove_listener(&mut self, id: ListenerId) -> bool {
        self.lock().remove_listener(id)
    }

    fn dial(&mut self, address: Multiaddr, opts: DialOpts) -> Result<T::Dial, TransportError<T::Error>> {
        self.lock().dial(address, opts)
    }

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<TransportEvent<T::ListenerUpgrade, T::Error>> {
        Pin::new(&mut *self.lock()).poll(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::future::{Ready, ready};

    use hickory_resolver::{TokioResolver, config::ConnectionConfig, net::runtime::TokioRuntimeProvider};
    use libp2p::core::{Endpoint, transport::PortUse};
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

    /// Says at which IP address it is to dial.
    struct Dialled;

    impl Transport for Dialled {
        type Output = Multiaddr;
        type Error = io::Error;
        type ListenerUpgrade = Ready<io::Result<Multiaddr>>;
        type Dial = Ready<io::Result<Multiaddr>>;

        fn listen_on(&mut self, _: ListenerId, _: Multiaddr) -> Result<(), TransportError<io::Error>> {
            Ok(())
        }

        fn remove_listener(&mut self, _: ListenerId) -> bool {
            false
        }

        fn dial(&mut self, address: Multiaddr, _: DialOpts) -> Result<Self::Dial, TransportError<io::Error>> {
            Ok(ready(Ok(address)))
        }

        fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<TransportEvent<Self::ListenerUpgrade, io::Error>> {
            Poll::Pending
        }
    }

    /// As [`read`], but the file has the port of the server too, because nobody else may take port 53 in a test.
    fn with_port(path: &Path) -> io::Result<Servers> {
        let text = fs::read_to_string(path)?;
        let Some((text, port)) = text.split_once('#') else { return Err(io::Error::other("no port")) };
        system_conf::parse_resolv_conf(text).map_err(|error| io::Error::other(error.to_string()))?;
        let mut connection = ConnectionConfig::udp();
        connection.port = port.trim().parse().map_err(io::Error::other)?;
        let server = NameServerConfig::new(IpAddr::from(Ipv4Addr::LOCALHOST), true, vec![connection]);
        Ok((ResolverConfig::from_parts(None, vec![], vec![server]), ResolverOpts::default()))
    }

    async fn server(address: [u8; 4]) -> (String, watch::Sender<Ipv4Addr>) {
        let socket = UdpSocket::bind("127.0.0.1:0").await.expect("bound");
        let port = socket.local_addr().expect("bound").port();
        let (moved, address) = watch::channel(Ipv4Addr::from(address));
        tokio::spawn(serve(socket, address));
        (format!("nameserver 127.0.0.1\n#{port}\n"), moved)
    }

    #[tokio::test]
    async fn the_file_with_the_servers_may_be_missing_and_change_later() {
        let folder = tempfile::tempdir().expect("a folder");
        let system =
            System { servers: folder.path().join("resolv.conf"), hosts: folder.path().join("hosts"), read: with_port };
        let file = system.servers.clone();
        let mut transport = Resolving::new(Dialled, system);
        let by_name: Multiaddr = "/dns4/scheduler-1.example/tcp/4600".parse().expect("an address");
        let opts = DialOpts { role: Endpoint::Dialer, port_use: PortUse::New };
        let mut dial = async |address: &Multiaddr| {
            let found = transport.dial(address.clone(), opts).expect("dialled").await;
            (found.ok().map(|found| found.to_string()), transport.has_failed)
        };

        let by_ip: Multiaddr = "/ip6/2001:db8::7/tcp/4600".parse().expect("an address");
        assert_eq!(dial(&by_ip).await, (Some(by_ip.to_string()), true), "an IP address needs no resolver");
        let one = server([10, 0, 0, 1]).await;
        let other = server([10, 0, 0, 2]).await;
        for (text, expected, reason) in [
            ("", None, "an empty file"),
            (&*one.0, Some("/ip4/10.0.0.1/tcp/4600"), "a right one"),
            ("nameserver", None, "a wrong one"),
            (&*other.0, Some("/ip4/10.0.0.2/tcp/4600"), "another server"),
        ] {
            // As resolvers' own tools do: a new file in place of the old one.
            fs::write(folder.path().join("new"), text).expect("written");
            fs::rename(folder.path().join("new"), &file).expect("renamed");
            let is_wrong = expected.is_none();
            match expected {
                Some(_) => {
                    let found = dial(&by_name).await;
                    assert_eq!(found, (expected.map(str::to_owned), is_wrong), "{reason}");
                }
                None => assert!(dial(&by_ip).await.1, "{reason} is known to be wrong"),
            }
        }
        assert!(System::default().stamp()[1].is_some(), "the hosts file is looked at");
    }

    #[test]
    fn a_file_without_servers_is_no_failure() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("resolv.conf");
        let system = System { servers: path.clone(), ..System::default() };
        for text in [None, Some(""), Some("# nothing\n"), Some("nameserver nowhere\n")] {
            text.into_iter().for_each(|text| fs::write(&path, text).expect("written"));
            let (servers, error) = system.servers();
            assert!(error.is_some(), "{text:?}");
            assert_eq!(servers.0.name_servers().len(), 1, "the local one, as the C library asks: {text:?}");
        }
    }
}
