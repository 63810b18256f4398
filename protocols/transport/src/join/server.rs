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
    sync::Semaphore,
    task::JoinSet,
    time::timeout,
};
use tokio_util::{compat::TokioAsyncReadCompatExt as _, sync::CancellationToken, sync::DropGuard};

use super::{ANSWER_BYTES_MAX, GREETING_BYTES_MAX, REQUEST_BYTES_MAX, TLS, WITHIN, receive, send};
use crate::{
    reason::chain,
    tls::{CertificateError, Tls},
};

/// Connections at once; more wait in the system's queue.
const CONCURRENT: usize = 64;
/// Of these, connections of one address; of loopback, where a whole testnet may be, all.
const CONCURRENT_PER_IP: u32 = 8;
/// Refused requests of one address within [`FAILURES_WITHIN`]; above it nothing is looked at.
const FAILURES_MAX: u32 = 20;
const FAILURES_WITHIN: Duration = Duration::from_secs(60);
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
    let places = Arc::new(Semaphore::new(CONCURRENT));
    let mut meetings = JoinSet::new();
    let present = Present::default();
    loop {
        // Never closed.
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let (socket, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "the join listener fails");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        while meetings.try_join_next().is_some() {}
        let Some(guest) = present.enter(from.ip().to_canonical()) else {
            tracing::debug!(%from, "too many connections of one address");
            continue;
        };
        let shared = Arc::clone(&shared);
        meetings.spawn(async move {
            let met = timeout(WITHIN, shared.meet(socket, from)).await;
            match met {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::debug!(%from, reason = chain(&*error), "a newcomer was lost"),
                Err(_) => tracing::debug!(%from, "a newcomer took too long"),
            }
            drop((place, guest));
        });
    }
}

impl Shared {
    async fn meet(&self, socket: TcpStream, from: SocketAddr) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let (peer, mut stream) = self.tls.clone().upgrade_inbound(socket.compat(), TLS).await?;
        let nonce = rand::random();
        let greeting = Greeting { issuer: self.authority.certificate(), nonce };
        send(&mut stream, &greeting, GREETING_BYTES_MAX).await?;
        let request = Request::from_bytes(&receive(&mut stream, REQUEST_BYTES_MAX).await?);
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

/// How many are there, per address.
#[derive(Debug, Clone, Default)]
struct Present(Arc<Mutex<HashMap<IpAddr, u32>>>);

/// One of them; leaves when it is dropped.
#[derive(Debug)]
struct Guest(Present, IpAddr);

impl Present {
    fn enter(&self, ip: IpAddr) -> Option<Guest> {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(ip).or_default();
        if *count >= CONCURRENT_PER_IP && !ip.is_loopback() {
            return None;
        }
        *count += 1;
        Some(Guest(self.clone(), ip))
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let mut counts = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.1) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.1);
            }
        }
    }
}

/// Refused requests per address.
#[derive(Debug, Default)]
struct Failures(Mutex<HashMap<IpAddr, (u32, Instant)>>);

impl Failures {
    fn are_too_many(&self, ip: IpAddr) -> bool {
        let counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        counts.get(&ip).is_some_and(|(count, since)| *count >= FAILURES_MAX && since.elapsed() < FAILURES_WITHIN)
    }

    fn count(&self, ip: IpAddr) {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_does_not_take_every_place() {
        let (present, ip) = (Present::default(), IpAddr::from([10, 0, 0, 1]));
        let mut guests: Vec<_> = (0..CONCURRENT_PER_IP).filter_map(|_| present.enter(ip)).collect();
        assert!(guests.len() == 8 && present.enter(ip).is_none() && present.enter([10, 0, 0, 2].into()).is_some());
        guests.pop();
        assert!(present.enter(ip).is_some(), "a place became free");
        drop(guests);
        assert!(present.0.lock().expect("sound").is_empty(), "nobody is remembered");
    }
}
