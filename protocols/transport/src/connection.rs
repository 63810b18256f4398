//! The one transport: TCP, DNS, TLS, admission, multiplexer. There is no way around it to a protocol.

use std::{iter, net::IpAddr, time::Duration};

use futures::{AsyncRead, AsyncWrite, FutureExt, future::BoxFuture, io::BufReader};
use libp2p::{
    Multiaddr, PeerId, Transport,
    core::{
        UpgradeInfo,
        muxing::StreamMuxerBox,
        transport::Boxed,
        upgrade::{InboundConnectionUpgrade, OutboundConnectionUpgrade, Version},
    },
    identity, multiaddr, tcp,
};
use yamux::Mode;

use crate::{
    admission::{Admission, NotAdmitted},
    deferred_accept::DeferredAccept,
    dialing::{DialPolicy, Policed},
    dns::{Resolving, System},
    muxer::{GrowthBudget, Muxer},
    protocol::MUXER,
    tcp_keepalive,
    tls::{CertificateError, Tls},
};

/// From the first packet to the multiplexer; a host that does not answer costs a caller this long.
pub const SETUP_TIMEOUT: Duration = Duration::from_secs(15);

/// The same for a connection from outside, which may be a stranger's.
pub const INBOUND_SETUP_TIMEOUT: Duration = Duration::from_millis(4_500);

/// How much is read at a time from a socket on which contents move. rustls asks for 4 KiB, and a system call for each made
/// a transfer a quarter slower.
pub const READ_BYTES: usize = 128 << 10;

/// The same of a program that serves no contents, and has thousands of connections.
pub const READ_BYTES_OF_HUBS: usize = 16 << 10;

/// Why a transport could not be made.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// This host's key is of no use for TLS.
    #[error("no TLS with this host's key")]
    Certificate(#[from] CertificateError),
}

/// Makes the transport of this host, which reads `read_bytes` at a time; must be called inside of a tokio runtime.
///
/// # Errors
/// [`TransportError`]: the program cannot start.
pub fn transport(
    keypair: &identity::Keypair,
    admission: Admission,
    policy: DialPolicy,
    budget: GrowthBudget,
    read_bytes: usize,
) -> Result<Boxed<(PeerId, StreamMuxerBox)>, TransportError> {
    let tls = Tls::new(keypair)?;
    let tcp = tcp::tokio::Transport::new(tcp::Config::new().nodelay(true));
    let tcp = DeferredAccept::new(tcp).map(move |stream, _| {
        tcp_keepalive::watch(&stream.0);
        BufReader::with_capacity(read_bytes, stream)
    });
    // Inside of DNS, so that a name cannot stand for an address that the policy refuses.
    let tcp = Resolving::new(Policed::new(tcp, policy), System::default());
    Ok(tcp
        .upgrade(Version::V1Lazy)
        .authenticate(tls)
        .multiplex_ext(move |peer, _| Admitted { peer: *peer, admission: admission.clone(), budget: budget.clone() })
        .outbound_timeout(SETUP_TIMEOUT)
        .inbound_timeout(INBOUND_SETUP_TIMEOUT)
        .boxed())
}

/// How much more of what one address may take loopback may: a whole testnet may be there.
pub(crate) const LOOPBACK_FACTOR: u32 = 3;

/// The IP address in front of an address, of a mapped one the IPv4 address.
pub(crate) fn ip_of(address: &Multiaddr) -> Option<IpAddr> {
    match address.iter().next()? {
        multiaddr::Protocol::Ip4(ip) => Some(ip.into()),
        multiaddr::Protocol::Ip6(ip) => Some(IpAddr::from(ip).to_canonical()),
        _ => None,
    }
}

/// The upgrade from an authenticated stream to a multiplexer, by way of admission.
#[derive(Debug, Clone)]
struct Admitted {
    peer: PeerId,
    admission: Admission,
    budget: GrowthBudget,
}

impl Admitted {
    async fn upgrade<C: AsyncRead + AsyncWrite + Unpin>(
        self,
        mut stream: C,
        mode: Mode,
    ) -> Result<Muxer<C>, NotAdmitted> {
        self.admission.admit(self.peer, &mut stream).await?;
        Ok(Muxer::new(stream, self.peer, mode, &self.budget))
    }
}

impl UpgradeInfo for Admitted {
    type Info = &'static str;
    type InfoIter = iter::Once<Self::Info>;

    fn protocol_info(&self) -> Self::InfoIter {
        iter::once(MUXER)
    }
}

impl<C: AsyncRead + AsyncWrite + Send + Unpin + 'static> InboundConnectionUpgrade<C> for Admitted {
    type Output = Muxer<C>;
    type Error = NotAdmitted;
    type Future = BoxFuture<'static, Result<Self::Output, Self::Error>>;

    fn upgrade_inbound(self, stream: C, _: Self::Info) -> Self::Future {
        self.upgrade(stream, Mode::Server).boxed()
    }
}

impl<C: AsyncRead + AsyncWrite + Send + Unpin + 'static> OutboundConnectionUpgrade<C> for Admitted {
    type Output = Muxer<C>;
    type Error = NotAdmitted;
    type Future = BoxFuture<'static, Result<Self::Output, Self::Error>>;

    fn upgrade_outbound(self, stream: C, _: Self::Info) -> Self::Future {
        self.upgrade(stream, Mode::Client).boxed()
    }
}
