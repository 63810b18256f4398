//! What Damselfly's programs say to each other.
//!
//! Identifiers, the piece layout, manifests, the hash ring, the signed configuration and every message, with the limits
//! that are checked before anything is allocated. There is no I/O here and no clock.

pub mod config;
pub mod hasher;
pub mod id;
pub mod info;
pub mod manifest;
pub mod membership;
pub mod name;
pub mod notify;
mod pb;
pub mod piece;
pub mod record;
pub mod ring;
pub mod scheduler;
pub mod trace;
pub mod transfer;
pub mod units;
pub mod wire;
