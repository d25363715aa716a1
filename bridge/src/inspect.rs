// SPDX-License-Identifier: MIT OR Apache-2.0
//! Classifies a frame's content for guards and the slow path.
//!
//! ```text
//!  frame ──> tags ──> EtherType ──> ARP | IPv4 | IPv6 ──> extension headers ──> UDP | ICMPv6 | …
//!            ≤ 3   └> LLC ──> BPDU | SNAP ──> EtherType
//! ```
//!
//! The frame may be cut after its headers, and its sender is not trusted. Content that is not
//! visible is [`Content::Other`]; content that was hidden from guards on purpose is
//! [`Content::HidesUpperLayer`].
//!
//! The data threads call it for frames of a port that has a guard, the control thread calls it too.
//! Nothing here allocates, and the time for a frame has a bound.

use crate::ether_type::{self, ARP, IPV4, IPV6};
use crate::ethernet::{Headers, Payload};
use crate::ip::{Chain, Ipv4, Ipv6, Upper};
use crate::ip_protocol::{ICMPV6, IGMP, PIM, UDP};
use crate::vlan::Tpid;

/// The content of a frame, behind its addresses and tags.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Content {
    /// A spanning tree message: IEEE 802.1D and 802.1Q, also of a provider's bridges (802.1ad), and
    /// Cisco's per VLAN.
    Bpdu,
    /// From a DHCP server to a client: UDP to port 68, or to port 546 in IPv6.
    ///
    /// Decided by the destination port alone, as clients accept an answer from any source port and
    /// RFC 7610 section 4 asks for: a guard that looked at the source port as well would be easy to
    /// evade.
    DhcpServer,
    /// An ICMPv6 router advertisement, RFC 4861 section 4.2.
    RouterAdvertisement,
    /// Something that a guard cannot see through and that no honest station sends: an IPv6 header
    /// chain that does not end within the packet, as in a first fragment without an upper-layer
    /// header (RFC 7112, RFC 7113 section 2.2, RFC 7610 section 4) or with too many headers; more
    /// than three tags, or tags behind SNAP (which hosts strip and which guards used to miss:
    /// CVE-2021-27853, CVE-2021-27861).
    HidesUpperLayer,
    /// An ARP request for IPv4 over Ethernet, RFC 826.
    ArpRequest,
    /// An ARP reply for IPv4 over Ethernet, RFC 826.
    ArpReply,
    /// An ICMPv6 neighbour solicitation, RFC 4861 section 4.3.
    NeighbourSolicitation,
    /// An ICMPv6 neighbour advertisement, RFC 4861 section 4.4.
    NeighbourAdvertisement,
    /// Messages that announce where multicast is wanted: IGMP, MLD, PIM, and multicast router
    /// discovery (RFC 4286).
    Membership,
    /// A loop probe, ours or that of another node, see [`crate::loops`].
    Probe,
    /// Anything else, or not visible.
    Other,
}

/// Destination of loop probes: a group in the locally administered range.
pub(crate) const PROBE_GROUP: [u8; 6] = [0x03, 0x70, 0x63, 0x6c, 0x70, 0x01];
/// First bytes of the sources of loop probes: locally administered, used by no station.
pub(crate) const PROBE_SOURCES: [u8; 2] = [0x02, 0x70];
pub(crate) const PROBE_ETHER_TYPE: u16 = ether_type::LOCAL_EXPERIMENTAL_2;

/// Classifies what `frame` carries. The content of a frame that ends within its headers is not
/// visible.
pub fn inspect(frame: &[u8]) -> Content {
    Headers::parse(frame).map_or(Content::Other, |headers| Content::of(&headers))
}

impl Content {
    /// Classifies what the frame with these headers carries.
    pub fn of(headers: &Headers<'_>) -> Self {
        let dst = headers.dst().0;
        match headers.payload() {
            Some(Payload::Typed(ether_type, payload)) => of_ether_type(dst, ether_type, payload),
            Some(Payload::Llc(payload)) => of_llc(dst, payload),
            Some(Payload::TooManyTags) => Self::HidesUpperLayer,
            None => Self::Other,
        }
    }
}

fn of_ether_type(dst: [u8; 6], ether_type: u16, payload: &[u8]) -> Content {
    match ether_type {
        ARP => of_arp(payload),
        IPV4 => Ipv4::parse(payload).map_or(Content::Other, |packet| of_ipv4(&packet)),
        IPV6 => Ipv6::parse(payload).map_or(Content::Other, |packet| of_ipv6(&packet)),
        PROBE_ETHER_TYPE if dst == PROBE_GROUP => Content::Probe,
        _ => Content::Other,
    }
}

fn of_llc(dst: [u8; 6], payload: &[u8]) -> Content {
    match (dst, payload) {
        // Bridge group address, and provider bridge group address: IEEE 802.1Q section 8.13.5.
        ([0x01, 0x80, 0xc2, 0, 0, 0x00 | 0x08], [0x42, 0x42, ..]) => Content::Bpdu,
        // Shared spanning tree protocol: Cisco's group and SNAP protocol.
        (
            [0x01, 0x00, 0x0c, 0xcc, 0xcc, 0xcd],
            [0xaa, 0xaa, 0x03, 0x00, 0x00, 0x0c, 0x01, 0x0b, ..],
        ) => Content::Bpdu,
        // RFC 1042, and IEEE 802.1H, which Wi-Fi turns into plain Ethernet (CVE-2021-27854).
        (
            _,
            [
                0xaa,
                0xaa,
                0x03,
                0x00,
                0x00,
                0x00 | 0xf8,
                high,
                low,
                payload @ ..,
            ],
        ) => match u16::from_be_bytes([*high, *low]) {
            tag if Tpid::from_ether_type(tag).is_some() => Content::HidesUpperLayer,
            ether_type => of_ether_type(dst, ether_type, payload),
        },
        _ => Content::Other,
    }
}

fn of_arp(payload: &[u8]) -> Content {
    match payload.first_chunk::<ARP_LEN>() {
        Some([0, 1, 8, 0, 6, 4, 0, 1, ..]) => Content::ArpRequest,
        Some([0, 1, 8, 0, 6, 4, 0, 2, ..]) => Content::ArpReply,
        _ => Content::Other,
    }
}

/// The length of an ARP message for IPv4 over Ethernet.
pub(crate) const ARP_LEN: usize = 28;

fn of_ipv4(packet: &Ipv4<'_>) -> Content {
    // A first fragment cannot hide a UDP header: its length is a multiple of 8 bytes, and at least
    // 8.
    match packet.protocol() {
        _ if packet.is_later_fragment() => Content::Other,
        UDP if udp_destination(packet.payload) == Some(68) => Content::DhcpServer,
        IGMP | PIM => Content::Membership,
        _ => Content::Other,
    }
}

fn of_ipv6(packet: &Ipv6<'_>) -> Content {
    match packet.chain() {
        Chain::Hidden => Content::HidesUpperLayer,
        Chain::LaterFragment => Content::Other,
        Chain::Upper(upper) => of_upper(&upper),
    }
}

fn of_upper(upper: &Upper<'_>) -> Content {
    let seen = match upper.protocol {
        ICMPV6 => upper.payload.first().map(|&kind| of_icmpv6(kind)),
        UDP => udp_destination(upper.payload).map(|udp_port| match udp_port {
            546 => Content::DhcpServer,
            _ => Content::Other,
        }),
        PIM => Some(Content::Membership),
        _ => Some(Content::Other),
    };
    // Without extension headers nothing was moved out of sight: the frame is cut, or broken.
    seen.unwrap_or(if upper.is_extended {
        Content::HidesUpperLayer
    } else {
        Content::Other
    })
}

/// ICMPv6 types, IANA "ICMPv6 Parameters".
fn of_icmpv6(kind: u8) -> Content {
    match kind {
        134 => Content::RouterAdvertisement,
        135 => Content::NeighbourSolicitation,
        136 => Content::NeighbourAdvertisement,
        // MLDv1 query, report, done; MLDv2 report; multicast router advertisement to termination.
        130..=132 | 143 | 151..=153 => Content::Membership,
        _ => Content::Other,
    }
}

fn udp_destination(header: &[u8]) -> Option<u16> {
    match header {
        [_, _, high, low, ..] => Some(u16::from_be_bytes([*high, *low])),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::vec;
    use std::vec::Vec;

    use proptest::prelude::*;

    use super::Content::*;
    use super::*;

    const BROADCAST: [u8; 6] = [0xff; 6];
    const BRIDGES: [u8; 6] = [0x01, 0x80, 0xc2, 0, 0, 0];

    #[test]
    fn tells_what_a_frame_carries() {
        for (name, dst, behind, content) in cases() {
            for (tags, tag_bytes) in [
                ("untagged", &[][..]),
                ("802.1Q", &[0x81, 0, 0, 7]),
                ("QinQ", &[0x88, 0xa8, 0, 9, 0x81, 0, 0, 7]),
                (
                    "three tags with VID 0",
                    &[0x81, 0, 0, 0, 0x81, 0, 0, 0, 0x81, 0, 0, 0],
                ),
            ] {
                let frame = [&dst[..], &[2, 0, 0, 0, 0, 1], tag_bytes, &behind].concat();
                assert_eq!(inspect(&frame), content, "{name}, {tags}");
            }
        }
    }

    #[test]
    fn a_frame_cut_anywhere_is_itself_or_nothing_known() {
        for (name, dst, behind, content) in cases() {
            let frame = [&dst[..], &[2, 0, 0, 0, 0, 1], &behind].concat();
            for len in 0..frame.len() {
                let seen = inspect(&frame[..len]);
                // A chain of headers that is cut is hidden; a frame without a chain is other.
                let hidden = seen == HidesUpperLayer && behind[..2] == [0x86, 0xdd];
                assert!(
                    seen == content || seen == Other || hidden,
                    "{name}, {len} bytes: {seen:?}"
                );
            }
        }
    }

    #[test]
    fn bytes_behind_the_packet_are_padding() {
        // A first fragment of one options header, whose upper layer is in the next fragment. The
        // padding looks like an echo request.
        let options = [58, 0, 1, 4, 0, 0, 0, 0];
        let first = fragment(60, 0, true, &options);
        let mut frame = ipv6(44, &first);
        frame.extend([128, 0, 0, 0, 0, 0, 0, 0]);
        let frame = [&BROADCAST[..], &[2, 0, 0, 0, 0, 1], &frame].concat();
        assert_eq!(inspect(&frame), HidesUpperLayer);
    }

    #[test]
    fn headers_without_end_are_hidden() {
        for (headers, content) in [
            (1, RouterAdvertisement),
            (MAX_CHAIN, RouterAdvertisement),
            (MAX_CHAIN + 1, HidesUpperLayer),
            (1000, HidesUpperLayer),
        ] {
            let mut chain = [60, 0, 1, 4, 0, 0, 0, 0].repeat(headers);
            let last = chain.len() - 8;
            chain[last] = 58;
            chain.extend([134, 0, 0, 0]);
            let frame = [&BROADCAST[..], &[2, 0, 0, 0, 0, 1], &ipv6(60, &chain)].concat();
            assert_eq!(inspect(&frame), content, "{headers} headers");
        }
    }

    proptest! {
        #[test]
        fn never_panics(
            start in prop::sample::select(cases()),
            at in 0..100usize,
            noise in prop::collection::vec(any::<u8>(), 0..40),
            len in 0..300usize,
        ) {
            let (_, dst, behind, _) = start;
            let mut frame = [&dst[..], &[2, 0, 0, 0, 0, 1], &behind].concat();
            for (byte, noise) in frame.iter_mut().skip(at).zip(noise) {
                *byte = noise;
            }
            frame.truncate(len);
            inspect(&frame);
        }
    }

    /// As many options headers as the parser walks, before the upper layer's.
    const MAX_CHAIN: usize = 16;

    type Case = (&'static str, [u8; 6], Vec<u8>, Content);

    fn cases() -> Vec<Case> {
        let v4 = |protocol, payload: &[u8]| ipv4(protocol, 0, payload);
        let group = [0x33, 0x33, 0, 0, 0, 1];
        let alert = |kind| [&[58, 0, 5, 2, 0, 0, 1, 0][..], &icmp(kind)].concat();
        let options = |next: u8, rest: &[u8]| [&[next, 0, 1, 4, 0, 0, 0, 0][..], rest].concat();
        vec![
            ("STP", BRIDGES, vec![0, 38, 0x42, 0x42, 3, 0, 0], Bpdu),
            (
                "STP of a provider",
                [0x01, 0x80, 0xc2, 0, 0, 8],
                vec![0, 38, 0x42, 0x42, 3],
                Bpdu,
            ),
            ("PVST+", PVST, llc_snap([0, 0, 0x0c], 0x010b, &[0; 4]), Bpdu),
            ("CDP", PVST, llc_snap([0, 0, 0x0c], 0x2000, &[0; 4]), Other),
            ("LLDP", BRIDGES, vec![0x88, 0xcc, 2, 7], Other),
            (
                "LLC to a station",
                [2; 6],
                vec![0, 38, 0x42, 0x42, 3],
                Other,
            ),
            ("other LLC", BRIDGES, vec![0, 38, 0xfe, 0xfe, 3], Other),
            ("ARP request", BROADCAST, typed(0x0806, &arp(1)), ArpRequest),
            ("ARP reply", BROADCAST, typed(0x0806, &arp(2)), ArpReply),
            ("RARP", BROADCAST, typed(0x0806, &arp(3)), Other),
            (
                "ARP in SNAP",
                BROADCAST,
                llc_snap([0; 3], 0x0806, &arp(1)),
                ArpRequest,
            ),
            (
                "ARP over another medium",
                BROADCAST,
                typed(0x0806, &[&[0, 6], &arp(1)[2..]].concat()),
                Other,
            ),
            ("DHCP offer", BROADCAST, v4(17, &udp(67, 68)), DhcpServer),
            (
                "DHCP offer from any port",
                BROADCAST,
                v4(17, &udp(4000, 68)),
                DhcpServer,
            ),
            (
                "DHCP offer with IP options",
                BROADCAST,
                {
                    let mut packet = v4(17, &[&[1; 40][..], &udp(67, 68)].concat());
                    packet[2] = 0x4f;
                    packet
                },
                DhcpServer,
            ),
            (
                "DHCP offer in SNAP",
                BROADCAST,
                llc_snap([0, 0, 0xf8], 0x0800, &v4(17, &udp(67, 68))[2..]),
                DhcpServer,
            ),
            ("DHCP discover", BROADCAST, v4(17, &udp(68, 67)), Other),
            (
                "DHCP first fragment",
                BROADCAST,
                ipv4(17, 0x2000, &udp(67, 68)),
                DhcpServer,
            ),
            (
                "UDP later fragment",
                BROADCAST,
                ipv4(17, 0x2001, &udp(67, 68)),
                Other,
            ),
            ("TCP", BROADCAST, v4(6, &udp(67, 68)), Other),
            ("IGMP", BROADCAST, v4(2, &[0x11, 0, 0, 0]), Membership),
            ("PIM", BROADCAST, v4(103, &[0x20, 0, 0, 0]), Membership),
            ("DHCPv6 reply", group, ipv6(17, &udp(547, 546)), DhcpServer),
            (
                "DHCPv6 reply behind options",
                group,
                ipv6(60, &options(17, &udp(547, 546))),
                DhcpServer,
            ),
            ("DHCPv6 solicit", group, ipv6(17, &udp(546, 547)), Other),
            ("RA", group, ipv6(58, &icmp(134)), RouterAdvertisement),
            (
                "RA in SNAP",
                group,
                llc_snap([0; 3], 0x86dd, &ipv6(58, &icmp(134))[2..]),
                RouterAdvertisement,
            ),
            (
                "RA behind options, routing, AH, HIP",
                group,
                ipv6(
                    60,
                    &options(
                        43,
                        &options(
                            51,
                            &[
                                &[139, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0][..],
                                &options(58, &icmp(134)),
                            ]
                            .concat(),
                        ),
                    ),
                ),
                RouterAdvertisement,
            ),
            (
                "RA in an atomic fragment",
                group,
                ipv6(44, &fragment(58, 0, false, &icmp(134))),
                RouterAdvertisement,
            ),
            (
                "RA in a first fragment",
                group,
                ipv6(44, &fragment(58, 0, true, &icmp(134))),
                RouterAdvertisement,
            ),
            (
                "first fragment without an upper layer",
                group,
                ipv6(44, &fragment(60, 0, true, &[58, 3, 1, 30])),
                HidesUpperLayer,
            ),
            (
                "first fragment with nothing",
                group,
                ipv6(44, &fragment(58, 0, true, &[])),
                HidesUpperLayer,
            ),
            (
                "first fragment of UDP without ports",
                group,
                ipv6(44, &fragment(17, 0, true, &[2, 0])),
                HidesUpperLayer,
            ),
            (
                "first fragment of TCP",
                group,
                ipv6(44, &fragment(6, 0, true, &[])),
                Other,
            ),
            (
                "later fragment",
                group,
                ipv6(44, &fragment(58, 1, false, &icmp(134))),
                Other,
            ),
            (
                "options without end",
                group,
                ipv6(60, &[58, 200, 0, 0, 0, 0, 0, 0]),
                HidesUpperLayer,
            ),
            ("ESP", group, ipv6(50, &[0; 16]), Other),
            ("no next header", group, ipv6(59, &[]), Other),
            ("ICMPv6 of no length", group, ipv6(58, &[]), Other),
            ("NS", group, ipv6(58, &icmp(135)), NeighbourSolicitation),
            ("NA", group, ipv6(58, &icmp(136)), NeighbourAdvertisement),
            ("RS", group, ipv6(58, &icmp(133)), Other),
            ("MLD query", group, ipv6(0, &alert(130)), Membership),
            ("MLDv1 report", group, ipv6(0, &alert(131)), Membership),
            ("MLD done", group, ipv6(0, &alert(132)), Membership),
            ("MLDv2 report", group, ipv6(0, &alert(143)), Membership),
            (
                "multicast router advertisement",
                group,
                ipv6(0, &alert(151)),
                Membership,
            ),
            ("PIM for IPv6", group, ipv6(103, &[0x20, 0]), Membership),
            ("probe", PROBE_GROUP, vec![0x88, 0xb6, 1, 0], Probe),
            (
                "the experiment of another",
                BROADCAST,
                vec![0x88, 0xb6, 1, 0],
                Other,
            ),
            (
                "IPv4 that says it is IPv6",
                BROADCAST,
                typed(0x86dd, &v4(17, &udp(67, 68))[2..]),
                Other,
            ),
            (
                "a tag behind SNAP",
                BROADCAST,
                llc_snap([0; 3], 0x8100, &[0; 20]),
                HidesUpperLayer,
            ),
        ]
    }

    #[test]
    fn a_deep_stack_of_tags_hides_what_is_in_it() {
        let tags = [0x81, 0, 0, 0].repeat(4);
        let addresses = [2; 12];
        let frame = [&addresses[..], &tags, &ipv6(58, &icmp(134))].concat();
        assert_eq!(inspect(&frame), HidesUpperLayer);
    }

    const PVST: [u8; 6] = [0x01, 0x00, 0x0c, 0xcc, 0xcc, 0xcd];

    fn typed(ether_type: u16, payload: &[u8]) -> Vec<u8> {
        [&ether_type.to_be_bytes()[..], payload].concat()
    }

    fn llc_snap([a, b, c]: [u8; 3], ether_type: u16, payload: &[u8]) -> Vec<u8> {
        let len = (payload.len() as u16 + 8).to_be_bytes();
        let head = [&len[..], &[0xaa, 0xaa, 3, a, b, c]].concat();
        [head, typed(ether_type, payload)].concat()
    }

    fn arp(operation: u8) -> Vec<u8> {
        let mut message = vec![0, 1, 8, 0, 6, 4, 0, operation];
        message.resize(28, 0x11);
        message
    }

    fn ipv4(protocol: u8, flags_and_offset: u16, payload: &[u8]) -> Vec<u8> {
        let len = (20 + payload.len() as u16).to_be_bytes();
        let [flags, offset] = flags_and_offset.to_be_bytes();
        let head = [
            0x45, 0, len[0], len[1], 0, 0, flags, offset, 64, protocol, 0, 0,
        ];
        typed(
            0x0800,
            &[&head[..], &[10, 0, 0, 1, 10, 0, 0, 2], payload].concat(),
        )
    }

    fn ipv6(next: u8, payload: &[u8]) -> Vec<u8> {
        let len = (payload.len() as u16).to_be_bytes();
        let head = [0x60, 0, 0, 0, len[0], len[1], next, 255];
        typed(0x86dd, &[&head[..], &[0xfe; 32], payload].concat())
    }

    fn fragment(next: u8, offset: u16, more: bool, payload: &[u8]) -> Vec<u8> {
        let [high, low] = (offset << 3 | u16::from(more)).to_be_bytes();
        [&[next, 0, high, low, 0, 0, 0, 1][..], payload].concat()
    }

    fn udp(src: u16, dst: u16) -> Vec<u8> {
        let (src, dst) = (src.to_be_bytes(), dst.to_be_bytes());
        [&src[..], &dst, &[0, 8, 0, 0]].concat()
    }

    fn icmp(kind: u8) -> Vec<u8> {
        let mut message = vec![kind, 0, 0, 0];
        message.resize(24, 0);
        message
    }
}
