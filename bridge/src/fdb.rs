// SPDX-License-Identifier: MIT OR Apache-2.0
//! The forwarding database: which port an address was last seen on.
//!
//! A hash table of fixed size with eight slots per bucket, made of atomics: data threads learn and
//! look up through `&self`, never wait for each other, and never allocate. An address that does not
//! fit is not learned, and frames to it are flooded, as in a hardware switch.
//!
//! The promise under all races: [`lookup`](Fdb::lookup) returns only a port on which this address,
//! in this VLAN, was learned (or to which it was assigned), no matter what other threads do.
//! Everything else may be approximate for a moment, and each such place says why that is harmless.
//!
//! A station is in one place. An address that moves more than 5 times in 10 seconds is in a loop,
//! or two stations have it, or one station alternates between two ports: the table *dampens* it.
//! From then on the address moves at most once a second (or as configured), until it has kept its
//! place for 10 seconds.
//!
//! [`Switch`](crate::Switch) calls it for each frame, the control thread calls it for the rest.

mod assign;
mod bucket;
mod entry;
mod flush;
mod hash;
mod history;
mod learn;
#[cfg(loom)]
pub mod models;
mod moves;
mod scan;
mod table;
#[cfg(test)]
mod tests;

pub use self::entry::{Entry, FdbCounters, InsertError, Learning, Occupancy, Origin};
pub use self::moves::Move;
pub use self::table::Fdb;
