//! How one daemon and its command line behave: what goes in comes out, and whatever is wrong is said.

mod alone;
mod digests;
mod holes;
mod input;
mod interrupt;
mod ipv6;
mod kills;
mod limits;
mod names;
mod python;
mod reload;
mod rot;
mod sizes;
mod sources;
mod space;
mod stdio;
mod support;
mod targets;
mod usage;
mod variables;
