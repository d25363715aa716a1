// SPDX-License-Identifier: MIT OR Apache-2.0
//! The configuration of snooping.

use alloc::vec::Vec;
use core::net::{Ipv4Addr, Ipv6Addr};

use crate::mac::MacAddr;
use crate::port_id::PortId;
use crate::vlan::Vid;

/// How to snoop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnoopingConfig {
    /// How many ports there are, the TAP included.
    pub ports: u16,
    /// Whether peers do not forward frames of one peer to another; the opposite of
    /// [`SwitchConfig::hub`](crate::SwitchConfig::hub).
    pub mesh: bool,
    /// Ports with a router, whether it is heard or not.
    pub router_ports: Vec<PortId>,
    /// Queries hosts for their groups, where no other querier does.
    pub querier: Option<Querier>,
    /// How many groups a port may want at a time; beyond that, it gets all multicast of the VLAN.
    pub max_groups_per_port: usize,
    /// How many members all groups may have together; beyond that, likewise.
    pub max_members: usize,
}

impl Default for SnoopingConfig {
    fn default() -> Self {
        Self {
            ports: 0,
            mesh: true,
            router_ports: Vec::new(),
            querier: None,
            max_groups_per_port: 4096,
            max_members: 65_536,
        }
    }
}

/// The querier of this node: the VLANs in which it queries hosts, and its source addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Querier {
    /// Source of the queries.
    pub mac: MacAddr,
    /// Likewise; unspecified if there is none, in which case any other querier is preferred.
    pub ipv4: Ipv4Addr,
    /// Likewise; must be link-local, or hosts do not answer.
    pub ipv6: Ipv6Addr,
    /// The VLANs in which it always queries; for others see
    /// [`Snooping::watch`](super::Snooping::watch).
    pub vlans: Vec<Vid>,
    /// From one query to the next: 125 in RFC 3376 section 8.2 and RFC 3810 section 9.2.
    pub interval_s: u32,
}
