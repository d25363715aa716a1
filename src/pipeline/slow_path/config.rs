// SPDX-License-Identifier: MIT OR Apache-2.0
//! The tasks of the slow path, and the identity that it uses.

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, Ipv6Addr},
};

use patchcord_bridge::{
    MacAddr, PortConfig, PortId, SwitchConfig, Vid,
    loops::{self, NodeId},
    membership::{Querier, SnoopingConfig},
    neighbours::NeighboursConfig,
};

use crate::crypto;

/// The marks by which loop probes are recognised.
pub(in crate::pipeline) struct Probes {
    pub(super) node: NodeId,
    /// Their source.
    pub(in crate::pipeline) source: MacAddr,
}

impl Probes {
    /// Of a node that is new to all others.
    pub(in crate::pipeline) fn random() -> Self {
        Self {
            node: NodeId(u64::from_ne_bytes(random())),
            source: loops::source(random()),
        }
    }
}

/// The configuration of the slow path.
#[derive(Default)]
pub(in crate::pipeline) struct SlowPathConfig {
    /// Look for loops.
    pub(in crate::pipeline) loops: Option<Probes>,
    /// Learn which ports want which multicast groups.
    pub(super) snooping: Option<SnoopingConfig>,
    /// Answer ARP and neighbour discovery for known stations.
    pub(super) neighbours: Option<NeighboursConfig>,
    /// VLANs without queries of this node.
    pub(super) customers: BTreeSet<Vid>,
    /// Ports that refuse addresses of stations behind other ports.
    pub(super) confined: Vec<PortId>,
}

impl SlowPathConfig {
    /// The tasks that the ports of a switch ask for, loops aside.
    pub(in crate::pipeline) fn of(
        switch: &SwitchConfig,
        is_querier: bool,
        has_switch: bool,
    ) -> Self {
        if !has_switch {
            return Self::default();
        }
        let ports = || (0..).map(PortId).zip(&switch.ports);
        let is_snooping = is_querier || ports().any(|(_, port)| port.multicast_snooping);
        let suppresses = ports().any(|(_, port)| port.neighbour_suppression);
        // Hosts behind a tunnel get no queries from this node.
        let is_deaf =
            |port: &PortConfig| !port.multicast_snooping || port.vlans.as_tunnel().is_some();
        let deaf = ports().filter(|(_, port)| is_deaf(port));
        let snooping = SnoopingConfig {
            ports: switch.ports.len() as u16,
            mesh: !switch.hub,
            // No report arrives from there, so the port gets all groups.
            router_ports: deaf.map(|(port, _)| port).collect(),
            querier: is_querier.then(querier),
            ..SnoopingConfig::default()
        };
        let neighbours = NeighboursConfig {
            mesh: !switch.hub,
            ageing_s: switch.ageing_s,
            ..NeighboursConfig::default()
        };
        Self {
            loops: None,
            snooping: is_snooping.then_some(snooping),
            neighbours: suppresses.then_some(neighbours),
            customers: ports()
                .filter_map(|(_, port)| port.vlans.as_tunnel())
                .collect(),
            confined: ports()
                .filter(|(_, port)| port.spoof_guard)
                .map(|(id, _)| id)
                .collect(),
        }
    }
}

/// Queries from no IPv4 address, so that any other querier is preferred (RFC 4541 section 2.1.1),
/// and from the link-local IPv6 address of a station with an address of its own (RFC 4291 appendix
/// A).
fn querier() -> Querier {
    let MacAddr([a, b, c, d, e, f]) = random_mac();
    let interface = [a ^ 0x02, b, c, 0xff, 0xfe, d, e, f];
    let link_local = 0xfe80_u128 << 112 | u128::from(u64::from_be_bytes(interface));
    Querier {
        mac: MacAddr([a, b, c, d, e, f]),
        ipv4: Ipv4Addr::UNSPECIFIED,
        ipv6: Ipv6Addr::from_bits(link_local),
        vlans: vec![Vid::UNTAGGED],
        interval_s: 125,
    }
}

/// Locally administered, and an individual address.
fn random_mac() -> MacAddr {
    let mut mac: [u8; 6] = random();
    mac[0] = mac[0] & 0xfc | 0x02;
    MacAddr(mac)
}

fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    crypto::random(&mut bytes);
    bytes
}
