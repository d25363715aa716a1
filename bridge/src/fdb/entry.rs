// SPDX-License-Identifier: MIT OR Apache-2.0
//! Entries of the forwarding database, its counters, and the outcomes of requests.

use core::error::Error;
use core::fmt;

use crate::mac::MacAddr;
use crate::port_id::PortId;
use crate::vlan::Vid;

/// The source of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Origin {
    /// The configuration: neither ages nor moves.
    Static,
    /// A frame: ages, and moves with its station.
    Learned,
    /// A control plane: does not age, but a frame from another port moves it, since the station is
    /// then here, and the controller must tell the other nodes so under a higher sequence number
    /// ([`Entry::sequence`]).
    Controller,
}

/// An address in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// VLAN.
    pub vid: Vid,
    /// Address.
    pub mac: MacAddr,
    /// The port behind which it is.
    pub port: PortId,
    /// Seconds since it was last seen, or assigned.
    pub age_s: u32,
    /// The source of the entry.
    pub origin: Origin,
    /// The number under which a controller last advertised it, even if it has moved since.
    pub sequence: Option<u32>,
    /// Whether it has moved too often, and moves at a lower rate for now.
    pub dampened: bool,
    /// Whether its port is down, so that frames to it are flooded; the entry only keeps the address
    /// from ports that guard against forged sources.
    pub bound: bool,
}

/// How much of the table is in use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Occupancy {
    /// The largest number of addresses that it can hold.
    pub places: usize,
    /// Addresses that were learned and are not too old.
    pub learned: usize,
    /// Addresses that the configuration assigned, [`Origin::Static`].
    pub fixed: usize,
    /// Addresses that a controller assigned and that no frame has moved.
    pub controller: usize,
}

/// The outcome of learning an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Learning {
    /// It was unknown, or had expired.
    New,
    /// It was known on this port.
    Known,
    /// It was known on another port.
    Moved {
        /// The port it left.
        from: PortId,
    },
    /// The configuration assigns it to another port, where it stays.
    Pinned,
    /// It is known behind another port, and the ingress port guards against that.
    Elsewhere {
        /// The port behind which it is known.
        on: PortId,
    },
    /// It has moved too often, and stays where it is for now.
    Dampened,
    /// The port is at its limit of addresses.
    Limited,
    /// The bucket has no free slot.
    Full,
    /// Another thread changed the entry at this moment; the next frame tries again.
    Raced,
}

/// The counters of the table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FdbCounters {
    /// Addresses learned that were not known.
    pub learned: u64,
    /// Addresses that were seen on another port than before.
    pub moved: u64,
    /// How often an address began to move too often: a loop, two stations with one address, or a
    /// station that alternates between two ports.
    pub dampened: u64,
    /// Frames whose source was not learned: local limit, too many addresses on the port.
    pub limited: u64,
    /// Frames whose source was not learned: local limit, no free slot in the bucket.
    pub full: u64,
}

/// Why an address cannot be assigned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum InsertError {
    /// Assigned addresses hold all its slots.
    Full,
    /// The configuration assigns it, and overrides every other origin.
    Static,
    /// It was advertised under this number, which is higher, or the same for another port.
    Outdated {
        /// The number.
        known: u32,
    },
}

impl fmt::Display for InsertError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full => {
                out.write_str("other assigned addresses hold every slot for this address")
            }
            Self::Static => out.write_str("the configuration assigns this address"),
            Self::Outdated { known } => {
                write!(
                    out,
                    "this address was advertised under number {known} before"
                )
            }
        }
    }
}

impl Error for InsertError {}
