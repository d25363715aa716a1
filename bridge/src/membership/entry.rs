// SPDX-License-Identifier: MIT OR Apache-2.0
//! The output of snooping: queries to send, the type of a frame, and the state.

use alloc::vec::Vec;
use core::net::IpAddr;

use super::family::Family;
use crate::port_id::PortId;
use crate::port_set::PortSet;
use crate::vlan::Vid;

/// A query to flood in a VLAN.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueryFrame {
    /// The VLAN. If it is not `UNTAGGED`, the frame has a tag that says so; the port's tag edit on
    /// egress is still to be applied.
    pub vid: Vid,
    /// The frame, without its frame check sequence.
    pub frame: Vec<u8>,
}

/// The type of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handled {
    /// A query.
    Query,
    /// A report, a leave, or both.
    Report,
    /// A sign of a router that does not query.
    Router,
    /// No membership message, or a broken one.
    Ignored,
}

/// A group and the ports that want it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupEntry {
    /// VLAN.
    pub vid: Vid,
    /// Address.
    pub group: IpAddr,
    /// Its ports, and for how many more seconds each stays without a report.
    pub ports: Vec<(PortId, u32)>,
}

/// The state of a VLAN.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VlanEntry {
    /// VLAN.
    pub vid: Vid,
    /// Family.
    pub family: Family,
    /// The querier; `None` if there is none, or it is this node.
    pub querier: Option<IpAddr>,
    /// Whether multicast goes only where it is wanted; it is flooded otherwise.
    pub is_pruned: bool,
    /// Ports with routers.
    pub routers: PortSet,
    /// Ports that want more groups than fit, and get all.
    pub overflowed: PortSet,
}

/// The counters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SnoopingCounters {
    /// Queries heard.
    pub queries: u64,
    /// Reports and leaves heard.
    pub reports: u64,
    /// Frames that were no message, or a broken one.
    pub ignored: u64,
    /// Groups that did not fit: local limits.
    pub overflowed: u64,
}
