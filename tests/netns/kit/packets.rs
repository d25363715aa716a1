// SPDX-License-Identifier: MIT OR Apache-2.0
//! ARP and ICMPv6 packets that tests write by hand, and Internet checksums.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::frames::{BROADCAST, Mac, frame};

const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ALL_NODES_MAC: Mac = [0x33, 0x33, 0, 0, 0, 1];

/// An ARP request, RFC 826.
pub(crate) fn arp(source: Mac, sender: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    let mut bytes = frame(BROADCAST, source, &[], 0x0806, 14, 0);
    bytes.extend([0, 1, 8, 0, 6, 4, 0, 1]);
    bytes.extend(source);
    bytes.extend(sender.octets());
    bytes.extend([0; 6]);
    bytes.extend(target.octets());
    bytes.resize(60, 0);
    bytes
}

/// An ARP reply (RFC 826) of `owner`.
pub(crate) fn is_answer(frame: &[u8], owner: Ipv4Addr) -> bool {
    frame.len() >= 42
        && frame[12..14] == [0x08, 0x06]
        && frame[20..22] == [0, 2]
        && frame[28..32] == owner.octets()
}

/// An ICMPv6 message with hop limit 255, RFC 4861 section 4. Fills in its checksum.
fn icmpv6(dst_mac: Mac, source: Mac, src: Ipv6Addr, dst: Ipv6Addr, message: &[u8]) -> Vec<u8> {
    let len = message.len() as u16;
    let both = [&src.octets()[..], &dst.octets(), message].concat();
    let checksum = !sum(&[&both[..], &[0, 58], &len.to_be_bytes()].concat());
    let mut bytes = frame(dst_mac, source, &[], 0x86dd, 14, 0);
    bytes.extend([0x60, 0, 0, 0]);
    bytes.extend(len.to_be_bytes());
    bytes.extend([58, 255]);
    bytes.extend(both);
    let at = bytes.len() - message.len() + 2;
    bytes[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
    bytes
}

/// A neighbour solicitation for `target` to its solicited-node group.
pub(crate) fn solicitation(source: Mac, src: Ipv6Addr, target: Ipv6Addr) -> Vec<u8> {
    let [.., x, y, z] = target.octets();
    let group = Ipv6Addr::from([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, x, y, z]);
    let mut message = vec![135, 0, 0, 0, 0, 0, 0, 0];
    message.extend(target.octets());
    if !src.is_unspecified() {
        message.extend([1, 1]);
        message.extend(source);
    }
    icmpv6([0x33, 0x33, 0xff, x, y, z], source, src, group, &message)
}

/// An unsolicited advertisement with the override flag, to all nodes.
pub(crate) fn advertisement(source: Mac, target: Ipv6Addr) -> Vec<u8> {
    let mut message = vec![136, 0, 0, 0, 0x20, 0, 0, 0];
    message.extend(target.octets());
    message.extend([2, 1]);
    message.extend(source);
    icmpv6(ALL_NODES_MAC, source, target, ALL_NODES, &message)
}

/// A router advertisement (RFC 4861, section 4.2) of fe80::bad: a default route for so many seconds, and
/// a prefix to make addresses of.
pub(crate) fn router_advertisement(lifetime_s: u16) -> Vec<u8> {
    let mut message = vec![134, 0, 0, 0, 64, 0];
    message.extend(lifetime_s.to_be_bytes());
    message.extend([0; 8]);
    // Prefix information: on-link, autonomous, for an hour.
    message.extend([
        3, 4, 64, 0xc0, 0, 0, 0x0e, 0x10, 0, 0, 0x0e, 0x10, 0, 0, 0, 0,
    ]);
    message.extend([0xfd, 0xba, 0xdb, 0xad, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    let router = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0x0bad);
    icmpv6(
        ALL_NODES_MAC,
        [2, 0xba, 0xd0, 0, 0, 1],
        router,
        ALL_NODES,
        &message,
    )
}

/// The sum of the 16-bit words, folded.
pub(crate) fn sum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|word| {
        let low = word.get(1).copied().unwrap_or(0);
        u64::from(u16::from_be_bytes([word[0], low]))
    });
    let mut sum: u64 = words.sum();
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    sum as u16
}

/// Of TCP or UDP over IPv4.
pub(crate) fn pseudo_header(ip: &[u8], len: usize) -> Vec<u8> {
    let len = (len as u16).to_be_bytes();
    [&ip[12..20], &[0, ip[9]], &len].concat()
}
