// SPDX-License-Identifier: MIT OR Apache-2.0
//! The switch's decision on a frame, and the time it was made.

use crate::port_id::PortId;
use crate::vlan::Inside;

/// The time at which a frame arrived, on monotonic clocks that all threads share. Threads may read
/// them at slightly different times. Read once per batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// For ageing. May wrap.
    pub seconds: u32,
    /// For limits. Must not wrap.
    pub micros: u64,
}

impl Now {
    /// The time this long after the start of the clock.
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
    /// The port or ports by which it leaves.
    pub egress: Egress,
    /// Its VLAN, for [`Switch::leave`](crate::Switch::leave).
    pub inside: Inside,
    /// Whether the slow path must receive it as well.
    pub kind: Kind,
}

/// The port or ports by which a frame leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Egress {
    /// This port.
    Port(PortId),
    /// Every port for which [`Switch::leave`](crate::Switch::leave) has no objection.
    Flood,
    /// None: the frame was addressed to this node.
    Nowhere,
}

/// The kind of a frame, which decides whether the slow path receives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Any other: the slow path does not receive it.
    Data,
    /// IGMP or MLD on a port with multicast snooping.
    Membership,
    /// ARP or neighbour discovery on a port with neighbour suppression.
    Neighbour,
    /// The same on a port without neighbour suppression, while another port has it: the slow path must
    /// learn the binding, or it would answer that port with an outdated one.
    Binding,
    /// A returned loop probe of this node, or a forgery of one: only the slow path receives it.
    OwnProbe,
    /// A loop probe of another node.
    Probe,
}
