//! How a whole cluster of real processes behaves.

mod broken;
mod browser;
mod clocks;
mod conflict;
mod console;
mod delete;
mod eyes;
mod healthy;
mod limits;
mod manager;
mod membership;
mod metrics;
mod out_of_ring;
mod parents;
mod quota;
mod ready;
mod restore;
mod ring;
mod roots;
mod schedulers;
mod slow;
mod support;
mod traces;
mod ttl;
mod two_managers;
