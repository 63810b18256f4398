//! The local RPC: what programs on a host say to its daemon, and how descriptors travel with it.
//!
//! One Unix socket carries two kinds of connection, told apart by their first byte: gRPC
//! (`proto/dfdaemon.proto`), and *descriptor connections*, because gRPC cannot carry descriptors.
//!
//! A descriptor connection is one message each way:
//!
//! | direction | bytes | |
//! |---|---|---|
//! | → daemon | `0xDF`, version `1`, 16 random bytes; one descriptor (`SCM_RIGHTS`) | in one `sendmsg` |
//! | ← daemon | `0` | taken: the RPC may now name the 16 bytes |
//! | ← daemon | exit code, then up to 255 bytes of UTF-8 | refused, with the reason |
//!
//! The client keeps the connection open until its call has ended. A descriptor waits for its call for at
//! most 30 s, and only as long as the connection is open, so that a client that is gone holds no pipe
//! open. The daemon closes the connection when the call has taken the descriptor.
//!
//! The daemon calls [`LocalServer::bind`], gives [`LocalServer::descriptors`] to its service and
//! [`LocalServer::incoming`] to `tonic::transport::Server::serve_with_incoming_shutdown` of a server
//! with [`CallsLayer`]. A client uses [`client`]. Both say what went wrong with [`Failure`].

mod calls;
pub mod client;
mod credentials;
mod descriptors;
mod error;
mod filesystem;
mod gate;
mod handover;
mod newcomers;
mod permits;
mod server;
mod shares;
mod socket;
mod target;

pub use calls::{CallsLayer, CountCalls, LocalConnection};
pub use client::HandedOver;
pub use credentials::PeerCredentials;
pub use descriptors::{Access, Descriptor, Descriptors, Kind, TOKEN_BYTES, Token};
pub use error::{Code, Failure, is_limit};
pub use filesystem::is_made_up;
pub use server::{Incoming, LocalServer, LocalStream};
pub use socket::{SOCKET_VARIABLE, SYSTEM_SOCKET, daemon_socket_path, socket_path};
pub use target::Target;

/// The messages and stubs of `damselfly.v1`; the documentation is in `proto/dfdaemon.proto`.
#[allow(missing_docs, clippy::all, rust_2018_idioms)]
pub mod proto {
    tonic::include_proto!("damselfly.v1");
}

/// The most bytes of a request message.
pub const MAX_REQUEST_BYTES: usize = 64 * 1024;
/// The most bytes of a response message.
pub const MAX_RESPONSE_BYTES: usize = 1024 * 1024;
/// The most entries of one `ListTasksResponse`.
pub const MAX_ENTRIES: usize = 256;

/// The tonic service of a daemon, with the limits of this module set.
pub fn service<D: proto::daemon_server::Daemon>(daemon: D) -> proto::daemon_server::DaemonServer<D> {
    proto::daemon_server::DaemonServer::new(daemon)
        .max_decoding_message_size(MAX_REQUEST_BYTES)
        .max_encoding_message_size(MAX_RESPONSE_BYTES)
}
