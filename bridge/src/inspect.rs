// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a frame carries, as far as a policy of a port or the slow path wants to know.
//!
//! Called by [`Switch`](crate::Switch) where a port has such a policy, and for what may be a loop
//! probe; a port without one costs nothing.

use crate::mac::MacAddr;
use crate::vlan::Tpid;

/// The group that loop probes are sent to, locally administered.
pub const PROBE_GROUP: MacAddr = MacAddr([0x03, 0x70, 0x63, 0x6c, 0x70, 0x01]);

/// The EtherType of loop probes: IEEE 802, local experimental EtherType 2.
pub const PROBE_ETHER_TYPE: u16 = 0x88b6;

/// What a frame is to a switch that looks behind its header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// A bridge protocol data unit: a spanning tree's, or one of its relatives'.
    Bpdu,
    /// From a DHCP server to a client: DHCPv4 from port 67 to 68, DHCPv6 from 547 to 546.
    DhcpServer,
    /// An IPv6 router advertisement.
    RouterAdvertisement,
    /// A first fragment that does not tell what it is a fragment of (RFC 7113, section 3).
    HidesUpperLayer,
    /// An ARP request.
    ArpRequest,
    /// An ARP reply.
    ArpReply,
    /// An IPv6 neighbour solicitation.
    NeighbourSolicitation,
    /// An IPv6 neighbour advertisement.
    NeighbourAdvertisement,
    /// IGMP or MLD.
    Membership,
    /// A loop probe, of this node or another.
    Probe,
    /// Anything else.
    Other,
}

/// What `frame` carries behind its tags. `after_addresses` is where the first of them begins, or the
/// EtherType if there is none.
pub fn inspect(frame: &[u8], after_addresses: usize) -> Content {
    let Some(dst) = frame.first_chunk().copied().map(MacAddr) else {
        return Content::Other;
    };
    if BPDU_GROUPS.contains(&dst) {
        return Content::Bpdu;
    }
    if dst == PROBE_GROUP && ether_type(frame, after_addresses) == Some(PROBE_ETHER_TYPE) {
        return Content::Probe;
    }
    Content::Other
}

/// Where bridges talk to bridges: customer and provider bridge group (IEEE 802.1Q, tables 8-1 and
/// 8-2), and Cisco's per-VLAN spanning tree.
const BPDU_GROUPS: [MacAddr; 3] = [
    MacAddr([0x01, 0x80, 0xc2, 0x00, 0x00, 0x00]),
    MacAddr([0x01, 0x80, 0xc2, 0x00, 0x00, 0x08]),
    MacAddr([0x01, 0x00, 0x0c, 0xcc, 0xcc, 0xcd]),
];

/// The EtherType behind all tags.
fn ether_type(frame: &[u8], mut at: usize) -> Option<u16> {
    loop {
        let ether_type = u16::from_be_bytes(*frame.get(at..)?.first_chunk()?);
        if Tpid::from_ether_type(ether_type).is_none() {
            return Some(ether_type);
        }
        at += 4;
    }
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use super::*;

    #[test]
    fn bridges_and_probes_are_known_by_their_groups() {
        let stp = [0x01, 0x80, 0xc2, 0, 0, 0];
        let lldp = [0x01, 0x80, 0xc2, 0, 0, 0x0e];
        let pvst = [0x01, 0x00, 0x0c, 0xcc, 0xcc, 0xcd];
        for (name, dst, after_addresses, content) in [
            ("STP", stp, &[0, 38, 0x42, 0x42, 3][..], Content::Bpdu),
            ("PVST+", pvst, &[0x81, 0, 0, 1, 0, 38], Content::Bpdu),
            ("LLDP", lldp, &[0x88, 0xcc], Content::Other),
            ("probe", PROBE_GROUP.0, &[0x88, 0xb6], Content::Probe),
            (
                "tagged probe",
                PROBE_GROUP.0,
                &[0x88, 0xa8, 0, 1, 0x81, 0, 0, 2, 0x88, 0xb6],
                Content::Probe,
            ),
            ("another protocol", PROBE_GROUP.0, &[8, 0], Content::Other),
            ("another group", [0xff; 6], &[0x88, 0xb6], Content::Other),
        ] {
            let frame: Vec<u8> = [&dst, &[2; 6], after_addresses].concat();
            assert_eq!(inspect(&frame, 12), content, "{name}");
            for len in 0..frame.len() {
                inspect(&frame[..len], 12); // no cut makes it panic
            }
        }
    }
}
