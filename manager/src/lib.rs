//! dfmanager: signs and publishes the cluster's configuration.
//!
//! [`store`] keeps the root key and the history, [`state`] decides about changes, [`membership`] about hosts, [`http`] is how they are asked for,
//! and [`server`] puts it together.

pub mod config;
pub mod http;
pub mod membership;
pub mod picture;
pub mod registry;
pub mod server;
pub mod state;
pub mod store;
