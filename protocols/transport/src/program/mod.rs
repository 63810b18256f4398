//! What the main function of every daemon needs.
//!
//! - [`config`]: a TOML file, environment and flags, each value with its source
//! - [`cluster`] and [`follower`]: which cluster the program belongs to, and its newest signed configuration
//! - [`http`] and [`metrics`]: `/metrics`, `/healthz`, `/readyz`
//! - [`listener`]: TCP listeners over IPv4 and IPv6
//! - [`identity`] and [`durable`]: key files, the data directory, files that survive a power loss
//! - [`logging`], [`lifecycle`] and [`reload`]: standard error, signals, the service manager

pub mod cluster;
pub mod config;
pub mod durable;
pub mod follower;
pub mod http;
pub mod identity;
pub mod lifecycle;
pub mod listener;
pub mod logging;
pub mod membership;
pub mod metrics;
pub mod reload;
