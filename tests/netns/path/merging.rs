// SPDX-License-Identifier: MIT OR Apache-2.0
//! Small UDP frames of a flow leave a site as super-frames, and the kernel cuts them into the frames
//! that were sent, byte for byte and in their order. A kernel without UDP super-frames gets each frame.

use std::collections::HashMap;
use std::net::{SocketAddr, UdpSocket};

use etherparse::PacketBuilder;
use nix::sys::signal::Signal;
use nix::sys::socket::{setsockopt, sockopt};

use crate::kit::frames::{DOT1AD, DOT1Q, EXPERIMENTAL, Mac, fill};
use crate::kit::packets::{pseudo_header, sum};
use crate::kit::pair::{Pair, Plan};
use crate::kit::process::{eventually, secs};
use crate::kit::topology::Host;
use crate::kit::traffic::{
    assert_checksums, assert_nothing_refused, has_udp_super_frames, packets, pings,
};
use crate::kit::vnet::Crafter;

/// A flow, by its tags, its version of IP and its source port.
type Kind = (&'static [(u16, u16)], bool, u16);

const KINDS: [Kind; 6] = [
    (&[], false, 1),
    (&[], false, 2),
    (&[], true, 3),
    (&[(DOT1Q, 42)], false, 4),
    (&[(DOT1Q, 42)], true, 5),
    (&[(DOT1AD, 7), (DOT1Q, 42)], false, 6),
];
const EACH: u16 = 40;
/// Of UDP payload.
const SIZES: [usize; 5] = [9, 18, 99, 700, 1400];

/// A frame whose UDP checksum holds the sum of the pseudo-header.
struct Open {
    bytes: Vec<u8>,
    network: usize,
    transport: usize,
}

fn open(kind: Kind, [dst, src]: [Mac; 2], number: u16, size: usize) -> Open {
    let (tags, is_ipv6, port) = kind;
    let mut payload = Vec::new();
    fill(
        &mut payload,
        size,
        u64::from(port) << 32 | u64::from(number),
    );
    let mut packet = Vec::new();
    let ethernet = PacketBuilder::ethernet2(src, dst);
    match is_ipv6 {
        true => ethernet.ipv6([0xfd; 16], [0xfc; 16], 64).udp(port, 9),
        false => ethernet.ipv4([10, 1, 0, 1], [10, 1, 0, 2], 64).udp(port, 9),
    }
    .write(&mut packet, &payload)
    .unwrap();
    let mut packet = packet.split_off(12);
    // IPv4 starts at 2.
    if !is_ipv6 {
        let id = 0xfff0_u16.wrapping_add(number);
        packet[6..8].copy_from_slice(&id.to_be_bytes());
    }
    let tags = tags
        .iter()
        .flat_map(|(tpid, tci)| [tpid.to_be_bytes(), tci.to_be_bytes()].concat());
    let tags: Vec<u8> = tags.collect();
    let network = 14 + tags.len();
    let transport = network + if is_ipv6 { 40 } else { 20 };
    let bytes = [&dst[..], &src, &tags, &packet].concat();
    let mut open = Open {
        bytes,
        network,
        transport,
    };
    open.close_header();
    open.put_pseudo_header();
    open
}

impl Open {
    fn ip(&self) -> &[u8] {
        &self.bytes[self.network..]
    }

    fn close_header(&mut self) {
        if self.ip()[0] >> 4 == 4 {
            let at = self.network + 10;
            self.bytes[at..at + 2].fill(0);
            let checksum = !sum(&self.bytes[self.network..self.transport]);
            self.bytes[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
        }
    }

    fn put_pseudo_header(&mut self) {
        let len = self.bytes.len() - self.transport;
        let open = match self.ip()[0] >> 4 {
            4 => sum(&pseudo_header(self.ip(), len)),
            _ => sum(&[&self.ip()[8..40], &[0, 17], &(len as u16).to_be_bytes()].concat()),
        };
        let at = self.transport + 6;
        self.bytes[at..at + 2].copy_from_slice(&open.to_be_bytes());
    }

    fn finished(&self) -> Vec<u8> {
        let mut bytes = self.bytes.clone();
        let checksum = match !sum(&bytes[self.transport..]) {
            0 => 0xffff,
            checksum => checksum,
        };
        let at = self.transport + 6;
        bytes[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
        bytes
    }

    /// The same, but some numbers break a rule of merging.
    fn broken(mut self, number: u16) -> Vec<u8> {
        let is_ipv4 = self.ip()[0] >> 4 == 4;
        match number % 16 {
            1 => self.bytes[self.network + if is_ipv4 { 8 } else { 7 }] = 63,
            3 if is_ipv4 => self.bytes[self.network + 4] ^= 0x40,
            7 => self.bytes[self.network + 1] ^= 0x20,
            _ => {}
        }
        self.close_header();
        let mut bytes = self.finished();
        match number % 16 {
            9 => bytes[self.transport + 6] ^= 1,
            11 => bytes[self.transport + 6..self.transport + 8].fill(0),
            13 => bytes.extend([0; 4]),
            _ => {}
        }
        bytes
    }
}

/// Sends rounds of frames that `make` makes, each with its form at the far end, until some were merged.
/// Each round arrives as expected, flow by flow in its order.
fn assert_merged<T>(
    pair: &mut Pair,
    make: impl Fn(Kind, u16) -> (T, Vec<u8>),
    mut send: impl FnMut(&T),
) {
    let numbers = (0..EACH).flat_map(|number| KINDS.map(|kind| (kind, number)));
    let made: Vec<_> = numbers
        .map(|(kind, number)| (make(kind, number), (kind.2, number)))
        .collect();
    let numbers: HashMap<_, _> = made
        .iter()
        .map(|((_, expected), number)| (expected.clone(), *number))
        .collect();
    assert_eq!(numbers.len(), made.len(), "each frame is another");
    let mac = pair.at_b.mac;
    let is_ours = |bytes: &[u8]| bytes[12..14] != EXPERIMENTAL.to_be_bytes() && bytes[..6] == mac;
    eventually(secs(60), "frames are merged", || {
        pair.at_b.clear();
        let before = packets(&pair.b, "rx_packets");
        // All of them wait for it.
        pair.a.process().signal(Signal::SIGSTOP);
        for ((frame, _), _) in &made {
            send(frame);
        }
        pair.a.process().signal(Signal::SIGCONT);
        pair.at_b.wait(secs(20), |all| {
            all.iter().filter(|it| is_ours(&it.bytes)).count() >= made.len()
        });
        let came: Vec<_> = pair.at_b.with_arrivals(|all| {
            let bytes = all.iter().map(|arrival| arrival.bytes.clone());
            bytes.filter(|bytes| is_ours(bytes)).collect()
        });
        let number = |bytes: &Vec<u8>| {
            let number = numbers.get(bytes);
            *number.unwrap_or_else(|| panic!("nobody sent {bytes:02x?}"))
        };
        let came: Vec<_> = came.iter().map(number).collect();
        for (_, _, port) in KINDS {
            let of_flow = came.iter().filter(|(of, _)| *of == port);
            assert!(
                of_flow.map(|(_, number)| *number).eq(0..EACH),
                "flow {port}: {came:?}"
            );
        }
        let writes = packets(&pair.b, "rx_packets") - before;
        println!("{} frames in {writes} writes", came.len());
        let is_merged = writes * 4 < 3 * came.len() as u64;
        (is_merged || !has_udp_super_frames()).then_some(())
    });
}

fn lens(number: u16, size: usize) -> usize {
    match number % 10 {
        9 => size.div_ceil(2),
        _ => size,
    }
}

#[test]
fn finished_frames_arrive_as_they_were_sent() {
    let mut pair = Pair::start(Plan::default());
    let (macs, tap) = ([pair.at_b.mac, pair.at_a.mac], pair.at_a.tap());
    for size in SIZES {
        let make = |kind, number| {
            let frame = open(kind, macs, number, lens(number, size)).finished();
            (frame.clone(), frame)
        };
        assert_merged(&mut pair, make, |frame| tap.send(frame));
    }
    assert_nothing_refused(&[&pair.a, &pair.b]);
}

#[test]
fn frames_that_break_a_rule_arrive_as_they_were_sent() {
    let mut pair = Pair::start(Plan::default());
    let (macs, tap) = ([pair.at_b.mac, pair.at_a.mac], pair.at_a.tap());
    for size in [18, 700] {
        let make = |kind, number| {
            let frame = open(kind, macs, number, lens(number, size));
            let frame = match number < 16 {
                true => frame.broken(number),
                false => frame.finished(),
            };
            (frame.clone(), frame)
        };
        assert_merged(&mut pair, make, |frame| tap.send(frame));
    }
    assert_nothing_refused(&[&pair.a, &pair.b]);
}

#[test]
fn frames_with_partial_checksums_arrive_finished() {
    let mut pair = Pair::start(Plan::default());
    let host = pair.a.host(1);
    let macs = [pair.at_b.mac, host.mac];
    let mut crafter = Crafter::on(&host.ns, "eth0");
    for size in SIZES {
        let make = |kind, number| {
            let frame = open(kind, macs, number, lens(number, size));
            let finished = frame.finished();
            (frame, finished)
        };
        assert_merged(&mut pair, make, |frame| {
            crafter.send(0, (frame.transport, 6), 0, &frame.bytes);
        });
    }
    assert_nothing_refused(&[&pair.a, &pair.b]);
}

/// Datagrams from one host to another, all sizes, without UDP_GRO at the receiver.
fn converse(from: &Host, to: &Host, [local, remote]: [SocketAddr; 2]) {
    let receiver = to.ns.enter(|| UdpSocket::bind(remote).unwrap());
    setsockopt(&receiver, sockopt::RcvBufForce, &(16 << 20)).unwrap();
    receiver.set_read_timeout(Some(secs(20))).unwrap();
    let sender = from.ns.enter(|| UdpSocket::bind(local).unwrap());
    sender.connect(remote).unwrap();
    let datagram = |number: u64| {
        let mut bytes = Vec::new();
        fill(&mut bytes, 1 + (number as usize / 16 * 31) % 1400, number);
        bytes
    };
    let mut buffer = [0; 2048];
    for first in (0..1600).step_by(100) {
        for number in first..first + 100 {
            sender.send(&datagram(number)).unwrap();
        }
        for number in first..first + 100 {
            let len = receiver.recv(&mut buffer).expect("each datagram arrives");
            assert!(buffer[..len] == datagram(number), "datagram {number}");
        }
    }
}

#[test]
fn datagrams_of_hosts_arrive_in_order() {
    let pair = Pair::start(Plan::default());
    let (a, b) = (pair.a.host(1), pair.b.host(1));
    let before = packets(&pair.b, "rx_packets");
    for [from, to] in [[a.v4.into(), b.v4.into()], [a.v6.into(), b.v6.into()]] {
        let to: std::net::IpAddr = to;
        pings(&a, &to.to_string(), 1, 56);
        converse(
            &a,
            &b,
            [SocketAddr::new(from, 7400), SocketAddr::new(to, 7400)],
        );
    }
    let writes = packets(&pair.b, "rx_packets") - before;
    let is_merged = writes < 3200;
    assert!(
        is_merged || !has_udp_super_frames(),
        "{writes} for 3200 datagrams"
    );
    assert_checksums(&[&a.ns, &b.ns]);
    assert_nothing_refused(&[&pair.a, &pair.b]);
}
