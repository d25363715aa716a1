// SPDX-License-Identifier: MIT OR Apache-2.0
//! Where multicast goes: the part of the snooping state that data threads read.

use alloc::vec::Vec;

use super::family::Family;
use super::message::Message;
use crate::ether_type::{IPV4, IPV6};
use crate::ethernet::{Headers, Payload};
use crate::ip::{Ipv4, Ipv6};
use crate::mac::MacAddr;
use crate::port_set::PortSet;
use crate::vlan::Vid;

/// A snapshot of the state of [`Snooping`](super::Snooping); it does not change.
///
/// An empty one, the default, floods everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GroupTable {
    /// By VLAN and address, ascending. Without a set: to be flooded.
    groups: Vec<(u64, Option<PortSet>)>,
    /// By VLAN and family, ascending; those in which multicast is pruned.
    vlans: Vec<((Vid, Family), FloodPorts)>,
}

/// The egress ports of a VLAN's multicast that no group has asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct FloodPorts {
    /// For data to groups that no host has reported.
    pub(super) unregistered: PortSet,
    /// For reports of hosts.
    pub(super) reports: PortSet,
}

impl GroupTable {
    pub(super) fn new(
        mut groups: Vec<(u64, Option<PortSet>)>,
        vlans: Vec<((Vid, Family), FloodPorts)>,
    ) -> Self {
        // Groups with one Ethernet address share an entry.
        groups.sort_unstable_by_key(|&(key, _)| key);
        groups.dedup_by(|dropped, kept| {
            let is_same = dropped.0 == kept.0;
            if is_same {
                kept.1 = kept.1.take().zip(dropped.1.take()).map(|(mut both, set)| {
                    both.extend(set.iter());
                    both
                });
            }
            is_same
        });
        Self { groups, vlans }
    }

    /// The ports by which a frame to a group may leave, `None` for all of them. Its ingress port
    /// may be among them; [`Switch::may_egress`](crate::Switch::may_egress) has the last word.
    ///
    /// Reports of hosts go to routers only: a host elsewhere that received them would not report
    /// itself (RFC 4541 section 2.1.1). Link-local groups go everywhere, by their addresses
    /// (section 2.1.2), as do queries and non-IP frames.
    pub fn egress(&self, vid: Vid, headers: &Headers<'_>) -> Option<&PortSet> {
        let mac = headers.dst();
        let family = Family::of_mac(mac)?;
        let flood_ports = self.flood_ports(vid, family)?;
        let is_link_local = match headers.payload()? {
            Payload::Typed(IPV4, packet) => is_link_local_v4(&Ipv4::parse(packet)?),
            Payload::Typed(IPV6, packet) => is_link_local_v6(&Ipv6::parse(packet)?),
            _ => return None,
        };
        match Message::parse(headers) {
            Some(Message::Single(_) | Message::Records(_)) => Some(&flood_ports.reports),
            Some(Message::Query(_) | Message::Router(_)) => None,
            _ if is_link_local => None,
            _ => self.lookup(vid, mac),
        }
    }

    /// The ports that want frames to this Ethernet address, `None` for all of them.
    ///
    /// Addresses do not tell whether a group is link-local. Frames to well-known groups are
    /// flooded, those to others go where hosts report them; [`egress`](Self::egress) knows for
    /// certain.
    pub fn lookup(&self, vid: Vid, mac: MacAddr) -> Option<&PortSet> {
        let flood_ports = self.flood_ports(vid, Family::of_mac(mac)?)?;
        if is_well_known(mac) {
            return None;
        }
        match self
            .groups
            .binary_search_by_key(&key(vid, mac), |&(key, _)| key)
        {
            Ok(at) => self.groups[at].1.as_ref(),
            Err(_) => Some(&flood_ports.unregistered),
        }
    }

    /// The VLAN's sets, if multicast is pruned in it.
    fn flood_ports(&self, vid: Vid, family: Family) -> Option<&FloodPorts> {
        let at = self
            .vlans
            .binary_search_by_key(&(vid, family), |&(key, _)| key);
        at.ok().map(|at| &self.vlans[at].1)
    }
}

pub(super) fn key(vid: Vid, mac: MacAddr) -> u64 {
    u64::from(vid.value()) << 48 | mac.to_bits()
}

/// 224.0.0.0/24, ff02::/120, ff02::1:0/120 and the solicited-node groups, as far as addresses tell.
fn is_well_known(mac: MacAddr) -> bool {
    matches!(
        mac.0,
        [0x01, 0x00, 0x5e, 0, 0, _] | [0x33, 0x33, 0, 0 | 1, 0, _] | [0x33, 0x33, 0xff, ..]
    )
}

fn is_link_local_v4(packet: &Ipv4<'_>) -> bool {
    matches!(packet.dst().octets(), [224, 0, 0, _])
}

/// Scopes up to link-local, RFC 4291 section 2.7.
fn is_link_local_v6(packet: &Ipv6<'_>) -> bool {
    packet.dst().octets()[1] & 0x0f <= 2
}
