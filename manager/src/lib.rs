//! dfmanager: signs and publishes the cluster's configuration.
//!
//! [`database`] keeps everything but the [`keys`], [`history`] signs and keeps configurations, [`state`] decides about
//! changes, [`membership`] about hosts, [`access`] about who may ask for them, [`http`] is how they are asked for,
//! [`cluster_view`] is what the schedulers tell of the cluster, with [`rates`] and [`alerts`] that follow from it,
//! [`server`] puts it together, `maintenance` clears it up, [`backup`] copies it, and [`join_token_cmd`] is a client of it.

pub mod access;
pub mod alerts;
pub mod backup;
pub mod cluster_view;
pub mod command;
pub mod config;
pub mod console;
pub mod database;
mod failure_detector;
pub mod history;
pub mod http;
pub mod join_token_cmd;
pub mod keys;
mod maintenance;
pub mod membership;
pub mod metrics;
pub mod rates;
pub mod server;
pub mod state;
