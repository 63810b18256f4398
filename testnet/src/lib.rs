//! A whole cluster on one machine, for trying, testing and measuring.
//!
//! [`cluster`] starts and changes one, [`layout`] says where its files are, [`demo`] and [`mod@bench`] use one, and
//! [`docker`] is the same in containers.

pub mod args;
pub mod bench;
pub mod byzantine;
pub mod cargo;
pub mod cluster;
mod config;
pub mod demo;
pub mod docker;
pub mod http;
pub mod layout;
mod links;
mod listing;
pub mod ports;
pub mod process;
pub mod programs;
mod ready;
pub mod scenario;
pub mod units;
mod usage;
