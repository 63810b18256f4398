//! dfmanager: signs and publishes the cluster's configuration.
//!
//! [`database`] keeps everything but the [`keys`], [`store`] signs and keeps configurations, [`state`] decides about
//! changes, [`membership`] about hosts, [`access`] about who may ask for them, [`http`] is how they are asked for,
//! [`picture`] is what the schedulers tell of the cluster, with [`rates`] and [`alerts`] that follow from it,
//! [`server`] puts it together, `upkeep` clears it up, [`backup`] copies it, and [`invite`] is a client of it.

pub mod access;
pub mod alerts;
pub mod backup;
pub mod command;
pub mod config;
pub mod console;
pub mod database;
pub mod http;
pub mod invite;
pub mod keys;
pub mod membership;
pub mod metrics;
pub mod picture;
pub mod rates;
mod reach;
pub mod server;
pub mod state;
pub mod store;
mod upkeep;
