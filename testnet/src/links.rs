//! Links between the programs of a cluster that can be slow, stalled or cut.
//!
//! Each program is reached through a proxy on a port of its own. Who has dialled is known from the kernel, so a link is
//! told by the names at its two ends, and the programs take no part in it. `wire` is one direction of a link, `passage` a
//! connection through a proxy, `dialler` tells who it is of, `hub` has all links, and `control` is how others order it.

pub(crate) mod control;
mod dialler;
pub(crate) mod proxy;
pub(crate) mod proxy_connection;
pub(crate) mod wire;
