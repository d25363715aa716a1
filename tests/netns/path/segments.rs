// SPDX-License-Identifier: MIT OR Apache-2.0
//! Super-frames and partial checksums of every kind that a kernel may hand over: of tunnels, longer than
//! 64 KiB, with lengths that a guest left to its card, and of transports that are neither TCP nor UDP.

use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use etherparse::{IpNumber, Ipv4Header, PacketBuilder, TcpHeader, UdpHeader};
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};

use crate::kit::cable::Cable;
use crate::kit::frames::{EXPERIMENTAL, Mac, frame};
use crate::kit::mesh::wait_forwarding;
use crate::kit::namespace::Namespace;
use crate::kit::packets::{pseudo_header, sum};
use crate::kit::pair::{Pair, Plan};
use crate::kit::process::{eventually, millis, secs};
use crate::kit::site::Site;
use crate::kit::topology::Host;
use crate::kit::traffic::{Ip, assert_checksums, assert_nothing_refused, nstat, transfer};
use crate::kit::vnet::{Crafter, Source};
use crate::kit::wire::{NIC, Wire, hosts};

/// The host, with its addresses inside a tunnel between the hosts of a wire.
fn inside(host: &Host, n: u8) -> Host {
    Host {
        ns: host.ns.clone(),
        v4: Ipv4Addr::new(10, 78, 0, n),
        v6: format!("fd78::{n}").parse().unwrap(),
        mac: host.mac,
    }
}

#[test]
fn vxlan_of_hosts_crosses_a_wire() {
    let wire = hosts("");
    let [a, b] = &wire.at;
    let (inner_a, inner_b) = (inside(a, 1), inside(b, 2));
    for (id, is_ipv6, options) in [
        (1, false, "noudpcsum"),
        (2, false, "udpcsum"),
        (3, true, "noudp6zerocsumtx noudp6zerocsumrx"),
        (4, true, "udp6zerocsumtx udp6zerocsumrx"),
    ] {
        // A kernel that does not know yet that there may be no checksum counts the first of them as
        // wrong.
        if id == 4 {
            assert_checksums(&[&a.ns, &b.ns]);
        }
        for (host, other, inner) in [(a, b, &inner_a), (b, a, &inner_b)] {
            let (local, remote) = match is_ipv6 {
                true => (host.v6.to_string(), other.v6.to_string()),
                false => (host.v4.to_string(), other.v4.to_string()),
            };
            host.ns.ip(&format!(
                "link add vx type vxlan id {id} local {local} remote {remote} dstport 4789 dev eth0 {options}\n\
                 link set vx mtu 1400 up\n\
                 addr add {}/24 dev vx\n\
                 addr add {}/64 dev vx nodad",
                inner.v4, inner.v6
            ));
        }
        for (from, to) in [(&inner_a, &inner_b), (&inner_b, &inner_a)] {
            for ip in [Ip::V4, Ip::V6] {
                transfer(from, to, ip, 60);
            }
        }
        for host in [a, b] {
            host.ns.ip("link del vx");
        }
    }
    for host in [a, b] {
        assert_eq!(nstat(&host.ns, &["TcpInCsumErrors"])["TcpInCsumErrors"], 0);
    }
    for reason in ["bad-offload", "nic-mtu", "oversize", "tap-write-failed"] {
        assert_eq!(wire.drops(reason), 0, "{reason}");
    }
}

#[test]
fn packets_of_more_than_64_kib_cross_a_wire() {
    let wire = hosts("");
    let [a, b] = &wire.at;
    for host in [a, b] {
        host.ns
            .ip("link set eth0 gso_max_size 260000 gro_max_size 260000");
        // Larger windows, so that enough is sent at once.
        host.ns
            .run(&["sysctl", "-qw", "net.ipv4.tcp_wmem=4096 4000000 8000000"]);
        host.ns
            .run(&["sysctl", "-qw", "net.ipv4.tcp_rmem=4096 4000000 8000000"]);
    }
    for (from, to) in [(a, b), (b, a)] {
        let site = wire.sites.iter().find(|site| site.n == from.v4.octets()[2]);
        let longest = longest_packet(&site.unwrap().ns, || transfer(from, to, Ip::V6, 512));
        assert!(longest > 70_000, "{longest}");
    }
    assert_checksums(&[&a.ns, &b.ns]);
    for reason in ["bad-offload", "nic-mtu", "oversize", "tap-write-failed"] {
        assert_eq!(wire.drops(reason), 0, "{reason}");
    }
}

/// The length of the longest packet on the NIC while `f` runs.
fn longest_packet(ns: &Namespace, f: impl FnOnce()) -> usize {
    let socket = ns.enter(|| {
        let all = i32::from((libc::ETH_P_ALL as u16).to_be());
        // SAFETY: takes no pointers; the descriptor that it returns has no other owner.
        unsafe { OwnedFd::from_raw_fd(libc::socket(libc::AF_PACKET, libc::SOCK_RAW, all)) }
    });
    let patience = TimeVal::milliseconds(100);
    setsockopt(&socket, sockopt::ReceiveTimeout, &patience).unwrap();
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let (mut longest, mut byte) = (0, [0_u8]);
            while !is_over.load(Ordering::Relaxed) {
                // SAFETY: pointer and length describe `byte`, which is live and exclusive.
                let len = unsafe {
                    libc::recv(
                        socket.as_raw_fd(),
                        byte.as_mut_ptr().cast(),
                        1,
                        libc::MSG_TRUNC,
                    )
                };
                longest = longest.max(usize::try_from(len).unwrap_or(0));
            }
            longest
        });
        f();
        is_over.store(true, Ordering::Relaxed);
        reader.join().unwrap()
    })
}

/// The equipment at the NICs of a wire: at A the NIC is a TAP into which the test writes the frames
/// that a kernel would pass on, at B there is a cable.
enum Plug {
    Source(Source),
    Cable(Cable),
}

const OURS: Mac = [2, 0, 0, 0, 0, 1];
const THEIRS: Mac = [2, 0, 0, 0, 0, 2];

/// A wire that carries the frames of a [`Source`].
fn from_a_source() -> Wire<Plug> {
    let plug = |site: &Site| match site.uplink.v4.octets()[2] {
        1 => Plug::Source(Source::new(&site.ns, NIC)),
        _ => Plug::Cable(Cable::to_nic(&site.ns, NIC, THEIRS, 1500)),
    };
    let wire = Wire::start(plug);
    let sent = frame(THEIRS, OURS, &[], EXPERIMENTAL, 100, 1);
    let (source, cable) = ends(&wire);
    eventually(secs(10), "a frame crosses", || {
        source.send_plain(&sent);
        cable.receives(&sent, millis(50)).then_some(())
    });
    wire
}

fn ends(wire: &Wire<Plug>) -> (&Source, &Cable) {
    match &wire.at {
        [Plug::Source(source), Plug::Cable(cable)] => (source, cable),
        _ => unreachable!("each has its place"),
    }
}

/// Waits until these frames, and no others of ours, came out of the cable in this order.
fn assert_arrive(cable: &Cable, expected: &[Vec<u8>], what: &str) {
    // Without the frames of the first test of the wire, of which one may still be on its way.
    let ours = |bytes: &[u8]| bytes[6..12] == OURS && bytes[12..14] != EXPERIMENTAL.to_be_bytes();
    cable.wait(secs(20), |all| {
        all.iter().filter(|it| ours(&it.bytes)).count() >= expected.len()
    });
    let came: Vec<_> = cable.with_arrivals(|all| {
        let bytes = all.iter().map(|arrival| arrival.bytes.clone());
        bytes.filter(|bytes| ours(bytes)).collect()
    });
    assert_eq!(came.len(), expected.len(), "{what}");
    for (number, (came, expected)) in came.iter().zip(expected).enumerate() {
        assert!(came == expected, "{what}: frame {number}");
    }
}

#[test]
fn a_partial_checksum_of_another_transport_crosses_a_wire() {
    let wire = from_a_source();
    let (source, cable) = ends(&wire);
    let packet = |protocol: u8, payload: &[u8]| {
        let mut bytes = Vec::new();
        PacketBuilder::ethernet2(OURS, THEIRS)
            .ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
            .write(&mut bytes, IpNumber(protocol), payload)
            .unwrap();
        bytes
    };
    // SCTP, ports 1 and 2, tag 3, COOKIE ACK.
    let mut sctp = [
        [0, 1, 0, 2, 0, 0, 0, 3, 0, 0, 0, 0, 11, 0, 0, 4].to_vec(),
        vec![0; 20],
    ]
    .concat();
    cable.clear();
    source.send(0, (34, 8), 0, &packet(132, &sctp));
    let crc = crc32c(&sctp);
    sctp[8..12].copy_from_slice(&crc.to_le_bytes());
    assert_arrive(cable, &[packet(132, &sctp)], "SCTP");
    // A protocol that no host here knows.
    let unknown = packet(253, &[7; 40]);
    cable.clear();
    source.send(0, (34, 12), 0, &unknown);
    assert_arrive(cable, &[unknown], "an unknown transport");
    assert_eq!(wire.drops("bad-offload"), 0);
}

/// Bit by bit (RFC 9260, appendix A).
fn crc32c(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for &byte in bytes {
        crc ^= u32::from(byte);
        for _ in 0..8 {
            crc = crc >> 1 ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 };
        }
    }
    !crc
}

#[derive(Clone, Copy, Debug)]
enum Tunnel {
    IpInIp,
    Gre,
    GreWithSum,
    VxlanWithSum,
    Mpls,
}

const PAYLOAD: usize = 20_007;
const SIZE: usize = 1000;

/// An IPv4 packet with the TCP payload from `first` on, its checksum finished or partial.
fn tcp(payload: &[u8], first: usize, is_last: bool, is_open: bool) -> Vec<u8> {
    let tcp = TcpHeader {
        sequence_number: 0xffff_f000_u32.wrapping_add(first as u32),
        ack: true,
        psh: is_last,
        ..TcpHeader::new(7, 8, 0, 1024)
    };
    let ip = ipv4(6, 500 + (first / SIZE) as u16, 20 + payload.len());
    let mut packet = [&ip[..], &tcp.to_bytes(), payload].concat();
    let open = sum(&pseudo_header(&packet, packet.len() - 20));
    packet[36..38].copy_from_slice(&open.to_be_bytes());
    if !is_open {
        let finished = !sum(&packet[20..]);
        packet[36..38].copy_from_slice(&finished.to_be_bytes());
    }
    packet
}

fn ipv4(protocol: u8, id: u16, len: usize) -> Vec<u8> {
    let mut header = Ipv4Header {
        identification: id,
        total_len: (20 + len) as u16,
        time_to_live: 64,
        protocol: IpNumber(protocol),
        source: [10, 0, 0, 1],
        destination: [10, 0, 0, 2],
        ..Ipv4Header::default()
    };
    header.header_checksum = header.calc_header_checksum();
    header.to_bytes().to_vec()
}

/// The frame with this packet in a tunnel.
fn wrapped(tunnel: Tunnel, packet: &[u8], number: u16) -> Vec<u8> {
    let ethernet = |ethertype: [u8; 2]| [&THEIRS[..], &OURS, &ethertype].concat();
    let ip = |protocol, parts: &[&[u8]]| {
        let payload = parts.concat();
        [
            ethernet([8, 0]),
            ipv4(protocol, number, payload.len()),
            payload,
        ]
        .concat()
    };
    match tunnel {
        Tunnel::IpInIp => ip(4, &[packet]),
        Tunnel::Gre => ip(47, &[&[0x20, 0, 8, 0, 0, 0, 0, 9], packet]),
        Tunnel::GreWithSum => {
            let mut gre = [&[0x80, 0, 8, 0, 0, 0, 0, 0], packet].concat();
            let checksum = (!sum(&gre)).to_be_bytes();
            gre[4..6].copy_from_slice(&checksum);
            ip(47, &[&gre])
        }
        Tunnel::VxlanWithSum => {
            let vxlan = [&[8, 0, 0, 0, 0, 0, 9, 0], &ethernet([8, 0])[..], packet].concat();
            let mut udp = UdpHeader {
                source_port: 50_000,
                destination_port: 4789,
                length: (8 + vxlan.len()) as u16,
                checksum: 0,
            };
            let outer = Ipv4Header::from_slice(&ipv4(17, number, 8 + vxlan.len()))
                .unwrap()
                .0;
            udp.checksum = udp.calc_checksum_ipv4(&outer, &vxlan).unwrap();
            ip(17, &[&udp.to_bytes(), &vxlan])
        }
        Tunnel::Mpls => [ethernet([0x88, 0x47]), vec![0, 1, 1, 64], packet.to_vec()].concat(),
    }
}

#[test]
fn segments_in_a_tunnel_that_a_nic_has_joined_are_cut_as_the_kernel_cuts_them() {
    let wire = from_a_source();
    let (source, cable) = ends(&wire);
    let payload: Vec<u8> = (0..PAYLOAD as u32)
        .map(|at| ((at * 7919) >> 5) as u8)
        .collect();
    for tunnel in [
        Tunnel::IpInIp,
        Tunnel::Gre,
        Tunnel::GreWithSum,
        Tunnel::VxlanWithSum,
        Tunnel::Mpls,
    ] {
        let whole = wrapped(tunnel, &tcp(&payload, 0, true, true), 100);
        let transport = whole.len() - PAYLOAD - 20;
        cable.clear();
        source.send(1, (transport, 16), SIZE as u16, &whole);
        let segments = payload.chunks(SIZE).enumerate().map(|(number, part)| {
            let is_last = number == PAYLOAD / SIZE;
            let packet = tcp(part, number * SIZE, is_last, false);
            wrapped(tunnel, &packet, 100 + number as u16)
        });
        assert_arrive(cable, &segments.collect::<Vec<_>>(), &format!("{tunnel:?}"));
    }
    assert_eq!(wire.drops("bad-offload"), 0);
}

#[test]
fn segments_whose_lengths_a_guest_left_to_its_card_are_cut_as_the_kernel_cuts_them() {
    let pair = Pair::start(Plan::default());
    let host = pair.a.host(1);
    wait_forwarding(&pair.a.ns, "host1");
    let mut crafter = Crafter::on(&host.ns, "eth0");
    let payload: Vec<u8> = (0..5 * SIZE as u32)
        .map(|at| ((at * 7919) >> 5) as u8)
        .collect();
    for (is_tcp, length) in [(true, 0_u16), (false, 0), (false, 8 + SIZE as u16)] {
        let mut whole = Vec::new();
        let packet = PacketBuilder::ethernet2(host.mac, pair.at_b.mac).ipv4(
            [10, 1, 0, 1],
            [10, 1, 0, 2],
            64,
        );
        match is_tcp {
            true => packet.tcp(7, 8, 9, 1024).ack(5).write(&mut whole, &payload),
            false => packet.udp(7, 8).write(&mut whole, &payload),
        }
        .unwrap();
        let (gso_type, offset, len) = match is_tcp {
            true => (1, 16, whole.len() - 34),
            false => (5, 6, usize::from(length)),
        };
        let open = sum(&pseudo_header(&whole[14..], len));
        let at = 34 + usize::from(offset);
        whole[at..at + 2].copy_from_slice(&open.to_be_bytes());
        match is_tcp {
            true => whole[16..18].fill(0),
            false => whole[38..40].copy_from_slice(&length.to_be_bytes()),
        }
        pair.at_b.clear();
        crafter.send(gso_type, (34, offset), SIZE as u16, &whole);
        let is_segment = |bytes: &[u8]| bytes[6..12] == host.mac && bytes[12..14] == [8, 0];
        pair.at_b.wait(secs(20), |all| {
            all.iter().filter(|it| is_segment(&it.bytes)).count() == 5
        });
        let segments: Vec<_> = pair.at_b.with_arrivals(|all| {
            let bytes = all.iter().map(|arrival| arrival.bytes.clone());
            bytes.filter(|bytes| is_segment(bytes)).collect()
        });
        assert_eq!(segments.len(), 5, "TCP: {is_tcp}, length {length}");
        for (number, segment) in segments.iter().enumerate() {
            let (ip, transport) = (&segment[14..34], &segment[34..]);
            assert_eq!(
                usize::from(u16::from_be_bytes([ip[2], ip[3]])),
                segment.len() - 14
            );
            assert_eq!(sum(ip), 0xffff, "IP checksum");
            let all = [&pseudo_header(ip, transport.len())[..], transport].concat();
            assert_eq!(sum(&all), 0xffff, "checksum of segment {number}");
            assert!(transport.ends_with(&payload[number * SIZE..][..SIZE]));
            if !is_tcp {
                assert_eq!(transport[4..6], (8 + SIZE as u16).to_be_bytes());
            }
        }
    }
    assert_nothing_refused(&[&pair.a, &pair.b]);
}
