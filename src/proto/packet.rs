// SPDX-License-Identifier: MIT OR Apache-2.0
//! An IP packet that fills its frame, as far as its transport header.

use patchcord_bridge::{
    Headers, ether_type,
    ethernet::Network,
    ip_protocol::{DESTINATION, HOP_BY_HOP, ROUTING},
};

use super::field::try_read;

/// Offset of the checksum in a TCP header.
pub(super) const TCP_CHECKSUM: u16 = 16;
/// Offset of the checksum in a UDP header.
pub(super) const UDP_CHECKSUM: u16 = 6;

const MAX_EXTENSIONS: usize = 8;

/// The position of a transport header.
#[derive(Clone, Copy, Debug)]
pub(super) struct TransportHeader {
    pub(super) network: usize,
    pub(super) is_ipv6: bool,
    pub(super) protocol: u8,
    pub(super) at: usize,
}

/// Finds the transport header of a frame of `total` bytes, of which the first are given. `None` for
/// fragments, and if the packet does not fill the frame.
pub(super) fn transport(headers: &Headers<'_>, total: usize) -> Option<TransportHeader> {
    let Network {
        ether_type,
        at: network,
    } = headers.network()?;
    let is_ipv6 = ether_type == ether_type::IPV6;
    let (protocol, at) = match ether_type {
        ether_type::IPV4 => ipv4(headers.frame(), network, total)?,
        ether_type::IPV6 => ipv6(headers.frame(), network, total)?,
        _ => return None,
    };
    Some(TransportHeader {
        network,
        is_ipv6,
        protocol,
        at,
    })
}

/// Protocol and transport header of an unfragmented IPv4 packet that fills the frame.
fn ipv4(head: &[u8], network: usize, total: usize) -> Option<(u8, usize)> {
    let version_and_length = *head.get(network)?;
    let header = usize::from(version_and_length & 15) * 4;
    let is_whole = version_and_length >> 4 == 4
        && header >= 20
        && usize::from(try_read(head, network + 2)?) + network == total
        && try_read(head, network + 6)? & 0x3fff == 0;
    is_whole.then_some((*head.get(network + 9)?, network + header))
}

/// Protocol and transport header of an IPv6 packet that fills the frame.
fn ipv6(head: &[u8], network: usize, total: usize) -> Option<(u8, usize)> {
    if head.get(network)? >> 4 != 6
        || usize::from(try_read(head, network + 4)?) + network + 40 != total
    {
        return None;
    }
    let (mut protocol, mut at) = (*head.get(network + 6)?, network + 40);
    for _ in 0..MAX_EXTENSIONS {
        if ![HOP_BY_HOP, ROUTING, DESTINATION].contains(&protocol) {
            return Some((protocol, at));
        }
        protocol = *head.get(at)?;
        at += (usize::from(*head.get(at + 1)?) + 1) * 8;
    }
    None
}
