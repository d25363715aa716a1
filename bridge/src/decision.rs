// SPDX-License-Identifier: MIT OR Apache-2.0
//! The switch's decision on a frame, and the time it was made.

use crate::port_id::PortId;
use crate::vlan::Inside;

/// The time a frame arrived, on monotonic clocks that all threads share. Threads may read them at
/// slightly different times. Read once per batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// For ageing. May wrap.
    pub seconds: u32,
    /// For limits. Must not wrap.
    pub micros: u64,
}

impl Now {
    /// So long after the start of the clock.
    pub const fn from_micros(micros: u64) -> Self {
        Self {
            seconds: (micros / 1_000_000) as u32,
            micros,
        }
    }
}

/// How to forward a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// The port or ports that it leaves by.
    pub egress: Egress,
    /// Its VLAN, for [`Switch::leave`](crate::Switch::leave).
    pub inside: Inside,
    /// Whether the slow path must see it as well.
    pub kind: Kind,
}

/// The port or ports that a frame leaves by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Egress {
    /// This port.
    Port(PortId),
    /// Every port for which [`Switch::leave`](crate::Switch::leave) has no objection.
    Flood,
    /// None: the frame was for this node.
    Nowhere,
}

/// The kind of a frame, by which the slow path sees it or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Any other: the slow path does not see it.
    Data,
    /// IGMP or MLD on a port with multicast snooping.
    Membership,
    /// ARP or neighbour discovery on a port with neighbour suppression.
    Neighbour,
    /// The same on a port without neighbour suppression, while another port has it: the slow path must
    /// learn the binding, or it would answer that port with an outdated one.
    Binding,
    /// A loop probe of this node that came back, or pretends to be one: the slow path alone sees it.
    OwnProbe,
    /// A loop probe of another node.
    Probe,
}
