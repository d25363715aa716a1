// SPDX-License-Identifier: MIT OR Apache-2.0
//! The protocol without sockets, threads or clocks (PROTOCOL.md).
pub(crate) mod codel;
pub(crate) mod cut;
pub(crate) mod ecn;
mod encapsulation;
mod field;
mod flaps;
pub(crate) mod flow;
pub mod guard;
pub mod limits;
mod liveness;
pub mod merge;
mod moves;
pub(crate) mod mss;
pub mod node;
mod packet;
pub mod partial_checksum;
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
pub(crate) mod trains;
pub mod trouble;
#[cfg(test)]
mod vectors;
