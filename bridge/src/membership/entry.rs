// SPDX-License-Identifier: MIT OR Apache-2.0
//! What snooping tells: queries to send, what a frame was, and what is known.

use alloc::vec::Vec;
use core::net::IpAddr;

use super::family::Family;
use crate::port_id::PortId;
use crate::port_set::PortSet;
use crate::vlan::Vid;

/// A query to flood in a VLAN.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueryFrame {
    /// The VLAN. If it is one, the frame has a tag that says so, and what a port makes of tags when
    /// frames leave is still to be done.
    pub vid: Vid,
    /// The frame, without its frame check sequence.
    pub frame: Vec<u8>,
}

/// What a frame was.
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

/// A group and who wants it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupEntry {
    /// VLAN.
    pub vid: Vid,
    /// Address.
    pub group: IpAddr,
    /// Its ports, and for how many more seconds without a report.
    pub ports: Vec<(PortId, u32)>,
}

/// What is known of a VLAN.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VlanEntry {
    /// VLAN.
    pub vid: Vid,
    /// Family.
    pub family: Family,
    /// Who asks hosts for their groups; `None` if nobody does, or this node.
    pub querier: Option<IpAddr>,
    /// Whether multicast goes only where it is wanted; it is flooded otherwise.
    pub is_pruned: bool,
    /// Ports with routers.
    pub routers: PortSet,
    /// Ports that want more groups than there is room for, and get all.
    pub overflowed: PortSet,
}

/// What was counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SnoopingCounters {
    /// Queries heard.
    pub queries: u64,
    /// Reports and leaves heard.
    pub reports: u64,
    /// Frames that were no message, or a broken one.
    pub ignored: u64,
    /// Groups that there was no room for: local limits.
    pub overflowed: u64,
}
