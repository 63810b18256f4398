//! Inbound connections are looked at when the other side has said something.
//!
//! Whoever dials speaks first. A connection that stays silent takes none of the places for connections that are being set
//! up; it is closed after [`SILENT_MAX`], or when newer ones need its place here. So idle connections, however many, keep
//! nobody out.

use std::{
    collections::VecDeque,
    future::ready,
    io,
    net::IpAddr,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use futures::{
    FutureExt as _, StreamExt as _,
    future::{AbortHandle, BoxFuture, abortable},
    stream::FuturesUnordered,
};
use libp2p::{
    Multiaddr, Transport,
    core::transport::{DialOpts, ListenerId, TransportError, TransportEvent},
    tcp::tokio::{TcpStream, Transport as Tcp},
};
use tokio::time::timeout;

use crate::connection::{LOOPBACK_FACTOR, ip_of};

/// The first byte must have arrived by then.
pub(crate) const SILENT_MAX: Duration = Duration::from_secs(3);

/// Silent connections kept at once; above it the oldest is closed.
const SILENT_CONNECTIONS: usize = 256;

/// Those of one IP address; above it the oldest of this address is closed.
const SILENT_PER_IP: usize = 32;

/// Where a connection came in and who is on it.
struct Arrival {
    number: u64,
    listener: ListenerId,
    local: Multiaddr,
    remote: Multiaddr,
}

/// An arrival and, if it spoke in time, its stream.
type Waited = BoxFuture<'static, (Arrival, Option<TcpStream>)>;

/// A silent connection's place.
#[derive(Debug)]
struct PendingConnection {
    number: u64,
    ip: Option<IpAddr>,
    close: AbortHandle,
}

/// TCP whose listeners report a connection when its first byte is there.
pub(crate) struct DeferredAccept {
    tcp: Tcp,
    waiting: FuturesUnordered<Waited>,
    /// Oldest first.
    places: VecDeque<PendingConnection>,
    next: u64,
}

impl DeferredAccept {
    pub(crate) fn new(tcp: Tcp) -> Self {
        Self { tcp, waiting: FuturesUnordered::new(), places: VecDeque::new(), next: 0 }
    }

    fn wait(&mut self, listener: ListenerId, local: Multiaddr, remote: Multiaddr, stream: TcpStream) {
        let ip = ip_of(&remote);
        self.make_room(ip);
        let number = self.next;
        self.next += 1;
        let (spoken, close) = abortable(async move {
            let first = timeout(SILENT_MAX, stream.0.peek(&mut [0])).await;
            matches!(first, Ok(Ok(1..))).then_some(stream)
        });
        self.places.push_back(PendingConnection { number, ip, close });
        let arrival = Arrival { number, listener, local, remote };
        self.waiting.push(async move { (arrival, spoken.await.ok().flatten()) }.boxed());
    }

    /// Closes an old one when there are too many: whoever has just come may be about to speak.
    fn make_room(&mut self, ip: Option<IpAddr>) {
        let factor = if ip.is_some_and(|ip| ip.is_loopback()) { LOOPBACK_FACTOR as usize } else { 1 };
        let of_ip = self.places.iter().filter(|place| place.ip == ip).count();
        let oldest = match () {
            () if of_ip >= SILENT_PER_IP * factor => self.places.iter().position(|place| place.ip == ip),
            () if self.places.len() >= SILENT_CONNECTIONS => Some(0),
            () => None,
        };
        if let Some(place) = oldest.and_then(|oldest| self.places.remove(oldest)) {
            tracing::debug!(ip = ?place.ip, "a silent connection is closed for a newer one");
            place.close.abort();
        }
    }

    /// The next connection whose other side spoke.
    fn poll_spoken(&mut self, cx: &mut Context<'_>) -> Poll<(Arrival, TcpStream)> {
        while let Poll::Ready(Some((arrival, stream))) = self.waiting.poll_next_unpin(cx) {
            self.places.retain(|place| place.number != arrival.number);
            match stream {
                Some(stream) => return Poll::Ready((arrival, stream)),
                None => tracing::debug!(from = %arrival.remote, "closed: it said nothing"),
            }
        }
        Poll::Pending
    }
}

impl Transport for DeferredAccept {
    type Output = TcpStream;
    type Error = io::Error;
    type ListenerUpgrade = std::future::Ready<io::Result<TcpStream>>;
    type Dial = <Tcp as Transport>::Dial;

    fn listen_on(&mut self, id: ListenerId, address: Multiaddr) -> Result<(), TransportError<io::Error>> {
        self.tcp.listen_on(id, address)
    }

    fn remove_listener(&mut self, id: ListenerId) -> bool {
        self.tcp.remove_listener(id)
    }

    fn dial(&mut self, address: Multiaddr, opts: DialOpts) -> Result<Self::Dial, TransportError<io::Error>> {
        self.tcp.dial(address, opts)
    }

    fn poll(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<TransportEvent<Self::ListenerUpgrade, Self::Error>> {
        let this = &mut *self;
        while let Poll::Ready(event) = Pin::new(&mut this.tcp).poll(cx) {
            match event {
                TransportEvent::Incoming { listener_id, upgrade, local_addr, send_back_addr } => {
                    match upgrade.into_inner() {
                        Ok(stream) => this.wait(listener_id, local_addr, send_back_addr, stream),
                        Err(error) => tracing::debug!(from = %send_back_addr, %error, "not accepted"),
                    }
                }
                other => return Poll::Ready(other.map_upgrade(|_| ready(Err(io::ErrorKind::Unsupported.into())))),
            }
        }
        this.poll_spoken(cx).map(|(arrival, stream)| {
            let Arrival { listener: listener_id, local: local_addr, remote: send_back_addr, .. } = arrival;
            TransportEvent::Incoming { listener_id, upgrade: ready(Ok(stream)), local_addr, send_back_addr }
        })
    }
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, net::SocketAddr};

    use libp2p::tcp;
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net,
        sync::mpsc,
    };

    use super::*;

    /// A listener that tells who has spoken.
    async fn listening() -> (SocketAddr, mpsc::Receiver<Multiaddr>) {
        let mut transport = DeferredAccept::new(Tcp::new(tcp::Config::new()));
        let any = "/ip4/127.0.0.1/tcp/0".parse().expect("an address");
        transport.listen_on(ListenerId::next(), any).expect("listening");
        let (sender, receiver) = mpsc::channel(100);
        let (bound, address) = tokio::sync::oneshot::channel();
        tokio::spawn(async move {
            let (mut bound, mut kept) = (Some(bound), Vec::new());
            loop {
                match poll_fn(|cx| Pin::new(&mut transport).poll(cx)).await {
                    TransportEvent::NewAddress { listen_addr, .. } => {
                        let port = listen_addr.iter().find_map(|part| match part {
                            libp2p::multiaddr::Protocol::Tcp(port) => Some(port),
                            _ => None,
                        });
                        bound.take().expect("one address").send(port.expect("a port")).expect("awaited");
                    }
                    TransportEvent::Incoming { upgrade, send_back_addr, .. } => {
                        kept.push(upgrade.await);
                        sender.send(send_back_addr).await.expect("read");
                    }
                    _ => {}
                }
            }
        });
        (SocketAddr::from(([127, 0, 0, 1], address.await.expect("bound"))), receiver)
    }

    #[tokio::test]
    async fn idle_connections_keep_nobody_out_and_are_closed() {
        let (address, mut spoken) = listening().await;
        let mut idle = Vec::new();
        for _ in 0..2 * SILENT_CONNECTIONS {
            idle.push(net::TcpStream::connect(address).await.expect("connected"));
        }
        let mut talker = net::TcpStream::connect(address).await.expect("connected");
        talker.write_all(b"x").await.expect("sent");
        let heard = timeout(Duration::from_secs(2), spoken.recv()).await.expect("at once").expect("lives");
        assert_eq!(ip_of(&heard), Some(address.ip()));

        for (number, within) in [(0, Duration::from_secs(1)), (idle.len() - 1, SILENT_MAX + Duration::from_secs(2))] {
            let mut byte = [0];
            let ended = timeout(within, idle[number].read(&mut byte)).await.expect("closed: the oldest ones at once");
            assert!(!matches!(ended, Ok(1..)), "without an answer");
        }
        assert!(spoken.try_recv().is_err(), "nobody else has spoken");
    }
}
