//! The manager's side.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use async_trait::async_trait;
use damselfly_messages::{
    membership::{
        IssuerCertificate, Role, Verifier,
        join::{Answer, Greeting, NONCE_BYTES, Refusal, RefusalCode, Request, RequestBody, Welcome, is_proof},
    },
    wire::Wire as _,
};
use libp2p::{PeerId, core::upgrade::InboundConnectionUpgrade as _, identity::Keypair};
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::timeout,
};
use tokio_util::{compat::TokioAsyncReadCompatExt as _, sync::CancellationToken, sync::DropGuard};

use super::guests::{Guests, HasAsked};
use super::{ANSWER_BYTES_MAX, GREETING_BYTES_MAX, REQUEST_BYTES_MAX, TLS, WITHIN, receive, send};
use crate::{
    error_chain::chain,
    source::source_of,
    tls::{CertificateError, Tls},
};

/// Refused requests of one address within [`FAILURES_WITHIN`]; above it nothing is looked at. The /64 of an IPv6 address, which
/// may be one host or a whole network, has [`NETWORK_FACTOR`] times as many.
const FAILURES_MAX: u32 = 20;
const FAILURES_WITHIN: Duration = Duration::from_secs(60);
/// See [`FAILURES_MAX`].
const NETWORK_FACTOR: u32 = 16;
/// Addresses whose failures are counted; above it the oldest are forgotten.
const ADDRESSES_MAX: usize = 4096;
/// A listener that fails, for want of descriptors, is tried again after this.
const PAUSE: Duration = Duration::from_millis(100);

/// Who decides; the manager.
#[async_trait]
pub trait Authority: Send + Sync + 'static {
    /// That this manager speaks for the cluster.
    fn certificate(&self) -> IssuerCertificate;

    /// Makes a host a member, or keeps it one.
    ///
    /// # Errors
    /// [`Refusal`], which the host is told.
    async fn answer(&self, asked: Asked) -> Result<Welcome, Refusal>;
}

/// A request, and who asks.
#[derive(Debug)]
pub struct Asked {
    /// Who proved to be this host.
    pub peer: PeerId,
    /// From where.
    pub from: SocketAddr,
    /// What it asks.
    pub request: Request,
    manager: PeerId,
    nonce: [u8; NONCE_BYTES],
}

impl Asked {
    /// Whether `proof` shows that the host knows the secret behind `verifier`.
    pub fn proves(&self, verifier: &Verifier, proof: &[u8; 32], role: Role) -> bool {
        is_proof(proof, verifier, (&self.manager, &self.peer), &self.nonce, role)
    }
}

/// A running join listener; ends when it is dropped.
#[derive(Debug)]
pub struct JoinServer {
    address: SocketAddr,
    _stop: DropGuard,
}

struct Shared {
    manager: PeerId,
    tls: Tls,
    authority: Arc<dyn Authority>,
    failures: Failures,
}

impl JoinServer {
    /// Serves `listener` as the manager with this key.
    ///
    /// # Errors
    /// [`io::Error`] when the listener has no address.
    pub fn start(listener: TcpListener, keypair: &Keypair, authority: Arc<dyn Authority>) -> io::Result<Self> {
        let address = listener.local_addr()?;
        let tls = Tls::new(keypair).map_err(|error: CertificateError| io::Error::other(error))?;
        let manager = keypair.public().to_peer_id();
        let shared = Arc::new(Shared { manager, tls, authority, failures: Failures::default() });
        let stop = CancellationToken::new();
        tokio::spawn(stop.clone().run_until_cancelled_owned(accept(listener, shared)));
        Ok(Self { address, _stop: stop.drop_guard() })
    }

    /// Where it listens.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let mut guests = Guests::default();
    let mut meetings = JoinSet::new();
    loop {
        tokio::select! {
            Some(ended) = meetings.join_next_with_id() => {
                guests.leave(ended.map_or_else(|error| error.id(), |(id, ())| id));
            }
            accepted = listener.accept() => match accepted {
                Ok((socket, from)) => {
                    let source = source_of(from.ip());
                    if !guests.make_room(source) {
                        tracing::debug!(%from, "too many hosts ask at once");
                        continue;
                    }
                    let has_asked = HasAsked::default();
                    let task = meetings.spawn(meet(Arc::clone(&shared), socket, from, has_asked.clone()));
                    guests.enter(source, has_asked, task);
                }
                Err(error) => {
                    tracing::warn!(%error, "the join listener fails");
                    tokio::time::sleep(PAUSE).await;
                }
            },
        }
    }
}

async fn meet(shared: Arc<Shared>, socket: TcpStream, from: SocketAddr, has_asked: HasAsked) {
    match timeout(WITHIN, shared.meet(socket, from, has_asked)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%from, reason = chain(&*error), "a newcomer was lost"),
        Err(_) => tracing::debug!(%from, "a newcomer took too long"),
    }
}

impl Shared {
    async fn meet(
        &self,
        socket: TcpStream,
        from: SocketAddr,
        has_asked: HasAsked,
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let (peer, mut stream) = self.tls.clone().upgrade_inbound(socket.compat(), TLS).await?;
        let nonce = rand::random();
        let greeting = Greeting { issuer: self.authority.certificate(), nonce };
        send(&mut stream, &greeting, GREETING_BYTES_MAX).await?;
        let request = Request::from_bytes(&receive(&mut stream, REQUEST_BYTES_MAX).await?);
        has_asked.set();
        let ip = from.ip().to_canonical();
        let decided = match request {
            _ if self.failures.are_too_many(ip) => Err(Refusal::new(
                RefusalCode::TooMany,
                format!("too many refused requests from {ip}: try again in a minute"),
            )),
            Err(invalid) => Err(Refusal::new(RefusalCode::Malformed, invalid.to_string())),
            Ok(request) => {
                let is_join = matches!(request.body, RequestBody::Join { .. });
                tracing::debug!(%peer, %from, is_join, "a host asks");
                self.authority.answer(Asked { peer, from, request, manager: self.manager, nonce }).await
            }
        };
        let answer = match decided {
            Ok(welcome) => Answer::Welcome(welcome),
            Err(refusal) => {
                tracing::info!(%peer, %from, reason = refusal.reason, "refused to let a host join");
                if !refusal.code.is_temporary() {
                    self.failures.count(ip);
                }
                Answer::Refused(refusal)
            }
        };
        send(&mut stream, &answer, ANSWER_BYTES_MAX).await?;
        Ok(futures::AsyncWriteExt::close(&mut stream).await?)
    }
}

/// Refused requests per address.
#[derive(Debug, Default)]
struct Failures(Mutex<HashMap<IpAddr, (u32, Instant)>>);

impl Failures {
    fn are_too_many(&self, ip: IpAddr) -> bool {
        let counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let has = |party: &IpAddr, most: u32| {
            counts.get(party).is_some_and(|(count, since)| *count >= most && since.elapsed() < FAILURES_WITHIN)
        };
        let network = source_of(ip);
        has(&ip, FAILURES_MAX) || network != ip && has(&network, FAILURES_MAX * NETWORK_FACTOR)
    }

    fn count(&self, ip: IpAddr) {
        self.count_party(ip);
        let network = source_of(ip);
        if network != ip {
            self.count_party(network);
        }
    }

    fn count_party(&self, ip: IpAddr) {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if counts.len() >= ADDRESSES_MAX {
            counts.retain(|_, (_, since)| since.elapsed() < FAILURES_WITHIN);
        }
        if counts.len() >= ADDRESSES_MAX
            && let Some(oldest) = counts.iter().min_by_key(|(_, (_, since))| *since).map(|(ip, _)| *ip)
        {
            counts.remove(&oldest);
        }
        let (count, since) = counts.entry(ip).or_insert((0, Instant::now()));
        if since.elapsed() >= FAILURES_WITHIN {
            (*count, *since) = (0, Instant::now());
        }
        *count += 1;
    }
}
