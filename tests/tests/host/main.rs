//! How one daemon and its command line behave: what goes in comes out, and whatever is wrong is said.

mod alone;
mod digests;
mod input;
mod interrupt;
mod kills;
mod names;
mod python;
mod rot;
mod sizes;
mod space;
mod stdio;
mod support;
mod targets;
mod usage;
