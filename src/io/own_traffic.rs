// SPDX-License-Identifier: MIT OR Apache-2.0
//! Keeps the datagrams of a tunnel out of the tunnel. Once inside, each would be carried in further
//! ones, which are carried again, without end.
//!
//! They enter where the route to a peer leads through the tunnel itself, or over the NIC that a
//! wire carries: by a route, by addresses that cover the peer's, or by a bridge that has learned
//! the peer behind the tunnel. A filter on the device makes the kernel leave them out (socket(7)).

use patchcord_bridge::{ether_type, ip_protocol};

use super::mark::Mark;
use super::sys::bpf::{self, Instruction};

/// For a TAP: passes all frames except those with a UDP datagram from this port of this machine,
/// recognised by the [`Mark::BYPASS`] of its socket. Another tunnel on this machine has another
/// port, and may go through this one.
pub(super) fn all_but_datagrams_from(port: u16) -> Vec<Instruction> {
    let Mark { value, mask } = Mark::BYPASS;
    let from_here = [
        bpf::load_mark(),
        bpf::keep_bits(mask),
        bpf::skip_if(value, 1, 0),
        bpf::answer_with(u32::MAX),
    ];
    [&from_here[..], &all_but_datagrams(port, SOURCE_PORT)].concat()
}

/// For a NIC: passes all frames except those to this machine with a UDP datagram to this port. A
/// frame to this machine that is too short for its own headers does not pass either.
pub(super) fn all_but_datagrams_to(port: u16) -> Vec<Instruction> {
    let to_here = [
        bpf::load_packet_type(),
        bpf::skip_if(bpf::TO_THIS_MACHINE, 1, 0),
        bpf::answer_with(u32::MAX),
    ];
    [&to_here[..], &all_but_datagrams(port, DESTINATION_PORT)].concat()
}

/// Offsets in a UDP header (RFC 768).
const SOURCE_PORT: u32 = 0;
const DESTINATION_PORT: u32 = 2;

fn all_but_datagrams(port: u16, port_at: u32) -> [Instruction; 16] {
    const IPV4: u32 = ether_type::IPV4 as u32;
    const IPV6: u32 = ether_type::IPV6 as u32;
    const UDP: u32 = ip_protocol::UDP as u32;
    const IP: u32 = 14;
    // Of an IPv4 header (RFC 791, section 3.1): all fragments but the first have no UDP header.
    const FRAGMENT_OFFSET: u32 = 0x1fff;
    let port = u32::from(port);
    [
        bpf::load_u16(12),
        bpf::skip_if(IPV4, 0, 7),
        bpf::load_byte(IP + 9),
        bpf::skip_if(UDP, 0, 10),
        bpf::load_u16(IP + 6),
        bpf::skip_if_any(FRAGMENT_OFFSET, 8, 0),
        bpf::measure_ipv4_header(IP),
        bpf::load_u16_further_on(IP + port_at),
        bpf::skip_if(port, 6, 5),
        bpf::skip_if(IPV6, 0, 4),
        bpf::load_byte(IP + 6),
        bpf::skip_if(UDP, 0, 2),
        bpf::load_u16(IP + 40 + port_at),
        bpf::skip_if(port, 1, 0),
        bpf::answer_with(u32::MAX),
        bpf::answer_with(0),
    ]
}
