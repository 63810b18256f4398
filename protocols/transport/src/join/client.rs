//! The host's side.

use std::io;

use damselfly_messages::{
    id::ClusterId,
    membership::{
        JoinToken, Role, Roots, SignedCredential,
        join::{Answer, Greeting, Refusal, Request, RequestBody, Welcome, proof},
    },
    wire::{Invalid, Wire as _},
};
use libp2p::{
    Multiaddr, PeerId, core::upgrade::OutboundConnectionUpgrade as _, identity::Keypair, multiaddr::Protocol,
};
use tokio::{net::TcpStream, time::timeout};
use tokio_util::compat::TokioAsyncReadCompatExt as _;

use super::{ANSWER_BYTES_MAX, GREETING_BYTES_MAX, REQUEST_BYTES_MAX, TLS, WITHIN, receive, send};
use crate::{
    frame::FrameError,
    tls::{CertificateError, HandshakeError, Tls},
};

/// What is asked of the manager.
#[derive(Debug, Clone, Copy)]
pub enum Asking<'a> {
    /// To become a member.
    Join {
        /// By what right.
        token: &'a JoinToken,
        /// As what.
        role: Role,
    },
    /// To stay one.
    Renew(&'a SignedCredential),
}

/// Why a host has not become or stayed a member.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// The address is none that can be connected to.
    #[error("the manager's address {0} is no /ip4, /ip6 or /dns address with a TCP port")]
    Address(Multiaddr),
    /// Nobody is there.
    #[error("the manager at {address} cannot be reached")]
    Unreachable {
        /// Where.
        address: Multiaddr,
        /// Why.
        source: io::Error,
    },
    /// This host's key is of no use.
    #[error(transparent)]
    Key(#[from] CertificateError),
    /// Its key was not proved.
    #[error("no encrypted connection with the manager")]
    Handshake(#[from] HandshakeError),
    /// Another host is there.
    #[error("{found} answers at the manager's address, and not {expected}")]
    OtherPeer {
        /// Whom the token names.
        expected: PeerId,
        /// Who is there.
        found: PeerId,
    },
    /// It does not speak for the cluster.
    #[error(
        "the manager does not prove that it speaks for cluster {cluster}, so the token is of another one: {reason}"
    )]
    NotTheCluster {
        /// Whose token it is.
        cluster: ClusterId,
        /// What is missing.
        reason: Invalid,
    },
    /// It has a reason.
    #[error("the manager refuses: {0}")]
    Refused(#[source] Refusal),
    /// What it says cannot be understood.
    #[error("the manager's answer cannot be understood")]
    Invalid(#[from] Invalid),
    /// The connection failed.
    #[error("the connection with the manager failed")]
    Frame(#[from] FrameError),
    /// Its clock is wrong.
    #[error(
        "the manager's credential is valid only in {} s by the time that this host's clock and others agree on: check \
         the manager's clock",
        .by.as_secs()
    )]
    FromTheFuture {
        /// How far its time is ahead.
        by: std::time::Duration,
    },
    /// It took too long.
    #[error("no answer of the manager within {} s", WITHIN.as_secs())]
    Timeout,
}

impl JoinError {
    /// Whether the manager has decided, so that nobody else need be asked.
    pub fn is_final(&self) -> bool {
        matches!(self, Self::Refused(refusal) if !refusal.code.is_temporary())
    }
}

/// Asks one manager of the cluster of `roots`; `addresses` are where this host can be dialled.
///
/// # Errors
/// [`JoinError`]
pub async fn ask(
    keypair: &Keypair,
    roots: &Roots,
    (manager, at): (PeerId, &Multiaddr),
    asking: Asking<'_>,
    addresses: &[Multiaddr],
) -> Result<Welcome, JoinError> {
    let (host, port) = socket(at).ok_or_else(|| JoinError::Address(at.clone()))?;
    let meeting = async {
        let socket = TcpStream::connect((host.as_str(), port)).await;
        let socket = socket.map_err(|source| JoinError::Unreachable { address: at.clone(), source })?;
        let (found, mut stream) = Tls::new(keypair)?.upgrade_outbound(socket.compat(), TLS).await?;
        if found != manager {
            return Err(JoinError::OtherPeer { expected: manager, found });
        }
        let greeting = Greeting::from_bytes(&receive(&mut stream, GREETING_BYTES_MAX).await?)?;
        let proved = greeting.issuer.proves(&manager, roots);
        proved.map_err(|reason| JoinError::NotTheCluster { cluster: roots.cluster(), reason })?;
        let body = match asking {
            Asking::Renew(credential) => RequestBody::Renew(credential.clone()),
            Asking::Join { token, role } => {
                let us = keypair.public().to_peer_id();
                let proof = proof(&token.secret.verifier(), (&manager, &us), &greeting.nonce, role);
                RequestBody::Join { token: token.id, proof, role }
            }
        };
        let request = Request { body, addresses: addresses.to_vec(), version: env!("CARGO_PKG_VERSION").into() };
        send(&mut stream, &request, REQUEST_BYTES_MAX).await?;
        match Answer::from_bytes(&receive(&mut stream, ANSWER_BYTES_MAX).await?)? {
            Answer::Welcome(welcome) => Ok(welcome),
            Answer::Refused(refusal) => Err(JoinError::Refused(refusal)),
        }
    };
    timeout(WITHIN, meeting).await.unwrap_or(Err(JoinError::Timeout))
}

/// What the system can connect to.
fn socket(address: &Multiaddr) -> Option<(String, u16)> {
    let mut parts = address.iter();
    let host = match parts.next()? {
        Protocol::Ip4(ip) => ip.to_string(),
        Protocol::Ip6(ip) => ip.to_string(),
        Protocol::Dns(name) | Protocol::Dns4(name) | Protocol::Dns6(name) => name.into_owned(),
        _ => return None,
    };
    match parts.next()? {
        Protocol::Tcp(port) => Some((host, port)),
        _ => None,
    }
}
