// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which queue of a TAP a frame is read from: always the same one for a flow.
//!
//! By default the kernel moves a flow to the queue to which its answers were last written. When
//! both ends of a tunnel do that, a flow may change its queue again and again, and its frames
//! overtake each other each time. So the TAP gets a program that looks at the frame alone:
//!
//! | frame | queue by |
//! |---|---|
//! | TCP and UDP over IPv4 or IPv6 | addresses and ports |
//! | other IPv4 and IPv6, fragments | addresses |
//! | anything else | Ethernet addresses |
//!
//! behind up to two VLAN tags. The kernel runs it for each frame. With an express queue, flows that
//! send little go there: see [`express`].

pub(super) mod express;

use patchcord_bridge::{ether_type, ip_protocol};

use super::sys::ebpf::{
    Instruction, add, add_register, and, copy, end, load_word_at, set, shift_left, shift_right,
    skip, skip_if, skip_unless,
};

// Registers. Loads put their result into R0 and want the frame in R6; R7 to R9 survive them.
const R0: u8 = 0;
const R1: u8 = 1;
const R6: u8 = 6;
/// Where the EtherType is, and later the last two bytes before the transport header.
const AT: u8 = 7;
const HASH: u8 = 8;
const TRANSPORT: u8 = 9;

const VLAN_TAGS: [u32; 2] = [
    ether_type::CUSTOMER_TAG as u32,
    ether_type::SERVICE_TAG as u32,
];
const IPV4: u32 = ether_type::IPV4 as u32;
const IPV6: u32 = ether_type::IPV6 as u32;
const TCP: u32 = ip_protocol::TCP as u32;
const UDP: u32 = ip_protocol::UDP as u32;
/// "More fragments", and the offset.
const FRAGMENT_BITS: u32 = 0x3fff;
/// 2^32 divided by the golden ratio.
const MULTIPLIER: u32 = 0x9e37_79b1;

/// The program. It returns any number; the kernel takes it modulo the number of queues. A frame
/// that is too short for its apparent type goes to the first queue.
pub(super) fn program() -> Vec<Instruction> {
    let mut program = hash_of_flow();
    // The upper bits of a product are the better ones.
    program.extend([copy(R0, HASH), shift_right(R0, 16), end()]);
    program
}

/// Leaves the hash of the frame's flow in [`HASH`], and the frame in R6.
fn hash_of_flow() -> Vec<Instruction> {
    let ethernet = [set(TRANSPORT, 0)]
        .into_iter()
        .chain(mix(load_word_at(2)))
        .chain(mix(load_word_at(8)));
    let ethernet: Vec<_> = ethernet.collect();

    let mut ipv4 = vec![
        load_byte(2 + 9),
        copy(TRANSPORT, R0),
        load_half(2 + 6),
        and(R0, FRAGMENT_BITS),
        skip_if(R0, 0, 1),
        set(TRANSPORT, 0),
    ];
    ipv4.extend([12, 16].into_iter().flat_map(|at| mix(load_word(2 + at))));
    // The length of the header, in words.
    ipv4.extend([
        load_byte(2),
        and(R0, 0xf),
        shift_left(R0, 2),
        add_register(AT, R0),
    ]);

    let mut ipv6 = vec![load_byte(2 + 6), copy(TRANSPORT, R0)];
    let words = (8..40).step_by(4);
    ipv6.extend(words.flat_map(|at| mix(load_word(2 + at))));
    ipv6.push(add(AT, 40));

    let ports = mix(load_word(2));

    let mut program = vec![copy(R6, R1), set(HASH, 0), set(AT, 12)];
    for _ in 0..2 {
        program.extend([
            load_half(0),
            skip_if(R0, VLAN_TAGS[0], 2),
            skip_if(R0, VLAN_TAGS[1], 1),
            skip(1),
            add(AT, 4),
        ]);
    }
    program.extend([
        load_half(0),
        skip_if(R0, IPV4, 1 + ethernet.len() + 1),
        skip_if(R0, IPV6, ethernet.len() + 1 + ipv4.len() + 1),
    ]);
    program.extend(ethernet);
    program.push(skip(ipv4.len() + 1 + ipv6.len()));
    program.extend(ipv4);
    program.push(skip(ipv6.len()));
    program.extend(ipv6);
    program.extend([
        skip_if(TRANSPORT, TCP, 1),
        skip_unless(TRANSPORT, UDP, ports.len()),
    ]);
    program.extend(ports);
    program
}

/// Mixes the result of `load` into the hash.
fn mix(load: Instruction) -> [Instruction; 3] {
    [
        load,
        Instruction::new(0xac, HASH, R0, 0, 0), // 32-bit xor
        Instruction::new(0x24, HASH, 0, 0, MULTIPLIER), // 32-bit product
    ]
}

/// Loads from the frame, `offset` bytes behind [`AT`].
const fn load_byte(offset: u32) -> Instruction {
    Instruction::new(0x50, 0, AT, 0, offset)
}

const fn load_half(offset: u32) -> Instruction {
    Instruction::new(0x48, 0, AT, 0, offset)
}

const fn load_word(offset: u32) -> Instruction {
    Instruction::new(0x40, 0, AT, 0, offset)
}
