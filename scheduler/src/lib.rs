//! `dfscheduler`: owns a part of the hash ring; who holds which task, and which parents a host should fetch from.
//!
//! - [`state`] knows and decides, without I/O; `placement` ranks parents
//! - `service` is the shell around it that talks to the network
//! - [`config`] and [`program`] make a program of it

pub mod command;
pub mod config;
mod metrics;
mod notifier;
mod placement;
pub mod program;
mod service;
pub mod state;
