//! Every protocol name of the network, with its limits. There is no other file with one.

use std::time::Duration;

use damselfly_messages::{
    membership::{Role, Roles},
    wire::Wire,
};
use libp2p::StreamProtocol;

/// What identify tells of us; a peer with another one is of another generation of Damselfly.
pub const IDENTIFY: &str = "/damselfly/1";

/// Names the step after authentication: admission, then the multiplexer.
pub const MUXER: &str = "/damselfly/muxer/1";

/// Long-lived substreams that carry pieces and manifests.
pub const PIECE: StreamProtocol = StreamProtocol::new("/damselfly/piece/1");

/// Long-lived substreams that tell which pieces of a content a parent has.
pub const HAVE: StreamProtocol = StreamProtocol::new("/damselfly/have/1");

/// Who may open piece and have streams; those of others are closed.
pub const STREAMS_OPENED_BY: Roles = Roles::NODES;

/// The longest control frame on a piece or have stream, in bytes.
pub const STREAM_CONTROL_BYTES_MAX: usize = 64 * 1024;

/// The longest frame with a manifest, in bytes: 262,144 digests of 32 bytes are 8 MiB, the rest is slack for its header.
pub const MANIFEST_BYTES_MAX: usize = 9 * 1024 * 1024;

/// The longest gossip message, in bytes, with its signature.
pub const GOSSIP_BYTES_MAX: usize = 64 * 1024;

/// A control protocol: one request, one response, on a substream of its own.
pub trait Protocol: Send + Sync + 'static {
    /// The name both sides negotiate.
    const NAME: &'static str;
    /// The longest request, in bytes; a longer one is not read.
    const REQUEST_BYTES_MAX: usize;
    /// The longest response, in bytes; a longer one is not sent.
    const RESPONSE_BYTES_MAX: usize;
    /// After this time an exchange has failed, whatever the caller's own deadline was.
    const TIMEOUT: Duration;
    /// Who may ask; others are refused before anything is decoded.
    const ASKED_BY: Roles;
    /// How many requests of one peer are answered at once; above it the answer is *busy*.
    const CONCURRENT: usize;
    /// What is asked.
    type Request: Wire;
    /// What is answered.
    type Response: Wire;

    /// Whether the answer takes as long as other hosts like. Such requests get a part of [`Self::CONCURRENT`] only, so
    /// that none of the others ever waits behind them.
    fn is_slow(_: &Self::Request) -> bool {
        false
    }
}

/// How many [slow](Protocol::is_slow) requests one host has with a peer at once; more wait at the asker.
pub(crate) const fn slow_concurrent<P: Protocol>() -> usize {
    let part = P::CONCURRENT / 4;
    if part == 0 { 1 } else { part }
}

/// A protocol that the network worker of every program knows.
pub trait Control: Protocol {
    /// Which one it is, for the worker.
    const KIND: ControlKind;
}

/// The control protocols of [`crate::network::Network`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ControlKind {
    /// [`SchedulerProtocol`].
    Scheduler,
    /// [`NotifyProtocol`].
    Notify,
    /// [`ConfigProtocol`].
    Config,
    /// [`InfoProtocol`].
    Info,
}

/// Node to scheduler: who has what, and from whom to fetch.
#[derive(Debug, Clone, Copy)]
pub enum SchedulerProtocol {}

impl Protocol for SchedulerProtocol {
    const NAME: &'static str = "/damselfly/scheduler/1";
    const REQUEST_BYTES_MAX: usize = 1024 * 1024;
    const RESPONSE_BYTES_MAX: usize = 1024 * 1024;
    const TIMEOUT: Duration = Duration::from_secs(30);
    /// A manager only deletes, for an operator.
    const ASKED_BY: Roles = Roles::NODES.and(Role::Manager);
    /// Below [`crate::muxer::OUTBOUND_STREAMS_MAX`], for gossip and the other protocols need streams too.
    const CONCURRENT: usize = 32;
    type Request = damselfly_messages::scheduler::Request;
    type Response = damselfly_messages::scheduler::Response;

    /// A delete is answered when every holder has dropped the task, or is known not to answer.
    fn is_slow(request: &Self::Request) -> bool {
        matches!(request.body, damselfly_messages::scheduler::RequestBody::DeleteTask(_))
    }
}

impl Control for SchedulerProtocol {
    const KIND: ControlKind = ControlKind::Scheduler;
}

/// Scheduler to node: what the node should drop or know.
#[derive(Debug, Clone, Copy)]
pub enum NotifyProtocol {}

impl Protocol for NotifyProtocol {
    const NAME: &'static str = "/damselfly/notify/1";
    const REQUEST_BYTES_MAX: usize = 256 * 1024;
    const RESPONSE_BYTES_MAX: usize = 256 * 1024;
    const TIMEOUT: Duration = Duration::from_secs(15);
    const ASKED_BY: Roles = Roles::just(Role::Scheduler);
    const CONCURRENT: usize = 16;
    type Request = damselfly_messages::notify::Request;
    type Response = damselfly_messages::notify::Response;
}

impl Control for NotifyProtocol {
    const KIND: ControlKind = ControlKind::Notify;
}

/// Anyone to any member: the newest signed configuration and revocations.
#[derive(Debug, Clone, Copy)]
pub enum ConfigProtocol {}

impl Protocol for ConfigProtocol {
    const NAME: &'static str = "/damselfly/config/1";
    const REQUEST_BYTES_MAX: usize = 1024 * 1024;
    const RESPONSE_BYTES_MAX: usize = 1024 * 1024;
    const TIMEOUT: Duration = Duration::from_secs(10);
    const ASKED_BY: Roles = Roles::ANY;
    const CONCURRENT: usize = 4;
    type Request = damselfly_messages::config::Request;
    type Response = damselfly_messages::config::Response;
}

impl Control for ConfigProtocol {
    const KIND: ControlKind = ControlKind::Config;
}

/// Manager to scheduler: what an operator sees.
#[derive(Debug, Clone, Copy)]
pub enum InfoProtocol {}

impl Protocol for InfoProtocol {
    const NAME: &'static str = "/damselfly/info/1";
    const REQUEST_BYTES_MAX: usize = 4 * 1024;
    const RESPONSE_BYTES_MAX: usize = 1024 * 1024;
    const TIMEOUT: Duration = Duration::from_secs(10);
    const ASKED_BY: Roles = Roles::just(Role::Manager);
    const CONCURRENT: usize = 8;
    type Request = damselfly_messages::info::Request;
    type Response = damselfly_messages::info::Response;
}

impl Control for InfoProtocol {
    const KIND: ControlKind = ControlKind::Info;
}
