// SPDX-License-Identifier: MIT OR Apache-2.0
//! The forwarding database: which port an address was last seen on.
//!
//! A hash table of fixed size, eight places to a bucket, made of atomics: data threads learn and
//! look up through `&self`, never wait for each other, and never allocate. What does not fit is not
//! learned, and then flooded, as in a switch made of hardware.
//!
//! The promise under all races: [`lookup`](Fdb::lookup) returns only a port on which this address,
//! in this VLAN, was learned (or to which it was assigned), no matter what other threads do. The
//! rest may be approximate for a moment, and each place says why that is harmless.
//!
//! A station lives in one place. An address that moves more than 5 times in 10 seconds is in a loop,
//! or two stations have it, or a station cannot decide: it is *dampened*. From then on it follows what
//! is seen of it at most once a second (or as configured), until it has kept its place for 10 seconds.
//!
//! Called by [`Switch`](crate::Switch) for each frame, and by the control thread for the rest.

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
