//! dfdaemon: one on each host; keeps, serves, fetches and announces contents.
//!
//! An import goes `rpc` → `import` → `store` → `announcer` → `schedulers`. An export goes `rpc` → `export` →
//! `store`, or `schedulers` → `download` → `store` and the output. Peers are served by `upload`.

mod announcer;
mod blocking;
mod buffers;
pub mod command;
pub mod config;
pub mod daemon;
mod download;
mod export;
mod failure;
mod gate;
mod health;
mod host;
mod import;
mod limiter;
mod limits;
mod metrics;
mod notifications;
mod permits;
mod pipes;
mod rpc;
mod schedulers;
mod settings;
pub mod store;
mod tasks;
#[cfg(test)]
mod testing;
mod upload;
