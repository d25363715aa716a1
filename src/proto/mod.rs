// SPDX-License-Identifier: MIT OR Apache-2.0
//! The protocol without sockets, threads or clocks (PROTOCOL.md).
pub(crate) mod checksum;
pub(crate) mod codel;
pub(crate) mod cut;
mod flaps;
pub(crate) mod flow;
pub mod guard;
mod headers;
pub mod limits;
mod liveness;
mod moves;
pub mod node;
pub(crate) mod path_mtu;
pub mod peer;
pub mod reassembly;
pub mod replay;
pub mod session;
pub mod superframe;
mod tai64n;
#[cfg(test)]
pub(crate) mod testing;
pub mod train;
pub mod trouble;
#[cfg(test)]
mod vectors;
