//! How Damselfly's programs talk.
//!
//! - [`protocol`]: every protocol name, with its limits
//! - [`connection`]: the one transport, from TCP by way of [`tls`] and [`admission`] to the [`muxer`]
//! - [`rpc`] and [`streams`]: what runs over a connection, in [`frame`]s
//! - [`clock`]: the wall time that decisions go by
//! - [`network`]: the worker that drives it, and the handle to it
//! - [`trace`]: spans that follow an export over all of that, for who collects them

pub mod addresses;
pub mod admission;
pub mod clock;
pub mod connection;
mod deferred_accept;
pub mod dialing;
mod dns;
pub mod error_chain;
pub mod frame;
mod handshakes;
pub mod join;
pub mod local;
pub mod muxer;
pub mod network;
pub mod program;
pub mod protocol;
pub mod rpc;
pub mod source;
pub mod stdio;
pub mod streams;
mod tcp_keepalive;
#[cfg(test)]
mod testing;
pub mod tls;
pub mod trace;
mod verifier;

/// What the programs use, so that measurements in tests are theirs.
#[cfg(test)]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;
