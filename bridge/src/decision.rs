// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the switch says of a frame, and when that was.

use crate::port_id::PortId;
use crate::vlan::Inside;

/// When a frame came, on any monotonic clocks, the same for all threads; threads that read them at
/// slightly different times do no harm. Read once per batch.
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

/// What is to be done with a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Where it leaves.
    pub egress: Egress,
    /// In which VLAN, for [`Switch::leave`](crate::Switch::leave).
    pub inside: Inside,
    /// Who else must see it.
    pub kind: Kind,
}

/// Where a frame leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Egress {
    /// By this port.
    Port(PortId),
    /// By every port for which [`Switch::leave`](crate::Switch::leave) has no objection.
    Flood,
    /// By none: it was for this node.
    Nowhere,
}

/// What a frame is to the slow path, which sees it as well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Nothing.
    Data,
    /// IGMP or MLD on a port with multicast snooping.
    Membership,
    /// ARP or neighbour discovery on a port with neighbour suppression.
    Neighbour,
    /// The same on a port without, while another one has it: who has which address must be noted, or
    /// that one would be told what is past.
    Binding,
    /// A loop probe of this node that came back, or pretends to be one: the slow path alone sees it.
    OwnProbe,
    /// A loop probe of another node.
    Probe,
}
