// SPDX-License-Identifier: MIT OR Apache-2.0
//! Work that the kernel leaves to a network card: checksums and segmentation of TCP and UDP. It crosses
//! the tunnel undone, and the kernel or the network card at the far end does it.

use std::sync::Arc;

use etherparse::{PacketBuilder, SlicedPacket};

use crate::kit::frames::{BROADCAST, EXPERIMENTAL, Mac, frame};
use crate::kit::namespace::Namespace;
use crate::kit::packets::{pseudo_header, sum};
use crate::kit::pair::{Pair, Plan, Ports};
use crate::kit::process::{eventually, millis, secs};
use crate::kit::site::{DEVICE, Settings, Site};
use crate::kit::topology::Host;
use crate::kit::traffic::{
    BLOCK, DATAGRAMS_AT_ONCE, Ip, assert_checksums, assert_exact, assert_nothing_refused,
    has_udp_super_frames, iperf, nstat, packets, shower, transfer,
};
use crate::kit::vnet::Crafter;

/// Both sites, some of them with the plain back-end.
fn start_with_plain(a_is_plain: bool, b_is_plain: bool) -> Pair {
    let mut pair = Pair::prepare(Plan::default());
    let plain = Settings {
        device: "backend = \"plain\"",
        ..Settings::default()
    };
    for (is_plain, site, other) in [
        (a_is_plain, &pair.a, &pair.b),
        (b_is_plain, &pair.b, &pair.a),
    ] {
        if is_plain {
            let peer = other.as_peer(Some(other.uplink.v4.into()));
            site.configure(&plain, &[peer]);
        }
    }
    pair.up();
    pair.connect(secs(10));
    pair
}

/// The features of the tunnel's device that are on.
fn features(site: &Site) -> Vec<String> {
    let shown = site.ns.run(&["ethtool", "-k", DEVICE]);
    let is_on = |line: &str| {
        let (name, state) = line.trim().split_once(": ")?;
        state.starts_with("on").then(|| name.to_owned())
    };
    shown.lines().filter_map(is_on).collect()
}

const FEATURES: [&str; 3] = [
    "tx-checksumming",
    "tcp-segmentation-offload",
    "tx-udp-segmentation",
];

/// Whether the kernel can leave this to the tunnel.
fn can_be_on(feature: &str) -> bool {
    feature != "tx-udp-segmentation" || has_udp_super_frames()
}

/// The possible sets: segmentation needs checksums.
const SETS: [u8; 5] = [0b111, 0b011, 0b101, 0b001, 0b000];

/// Turns each feature on or off by its bit, the first one in bit 0.
fn set_features(ns: &Namespace, bits: u8) {
    let words: Vec<_> = ["tx", "tso", "tx-udp-segmentation"]
        .into_iter()
        .enumerate()
        .filter(|(_, feature)| can_be_on(feature))
        .flat_map(|(bit, feature)| [feature, ["off", "on"][usize::from(bits >> bit & 1)]])
        .collect();
    ns.run(&[&["ethtool", "-K", DEVICE], &words[..]].concat());
}

#[test]
fn the_device_takes_checksums_and_segments_unless_it_is_plain() {
    let pair = start_with_plain(false, true);
    for (site, is_on) in [(&pair.a, true), (&pair.b, false)] {
        let on = features(site);
        for feature in FEATURES {
            assert_eq!(
                on.iter().any(|it| it == feature),
                is_on && can_be_on(feature),
                "{feature}: {on:?}"
            );
        }
    }
}

#[test]
fn every_set_of_offloads_carries_every_byte() {
    let pair = Pair::start(Plan::default());
    let (a, b) = (pair.a.host(1), pair.b.host(1));
    for at_a in SETS {
        for at_b in SETS {
            set_features(&pair.a.ns, at_a);
            set_features(&pair.b.ns, at_b);
            assert_exact(&a, &b, 8);
        }
    }
    assert_checksums(&[&pair.a.ns, &pair.b.ns, &a.ns, &b.ns]);
    assert_nothing_refused(&[&pair.a, &pair.b]);
}

/// The site's own machine as a host, with the addresses on the tunnel's device.
fn at_home(site: &Site, n: u8) -> Host {
    site.ns.ip(&format!(
        "addr add 10.88.0.{n}/24 dev {DEVICE}\naddr add fd88::{n}/64 dev {DEVICE} nodad"
    ));
    Host {
        ns: Arc::clone(&site.ns),
        v4: [10, 88, 0, n].into(),
        v6: format!("fd88::{n}").parse().unwrap(),
        mac: [0; 6],
    }
}

#[test]
fn addresses_on_the_device_carry_every_byte() {
    let mut pair = Pair::prepare(Plan::default());
    pair.a.leave_bridge_out();
    pair.b.leave_bridge_out();
    pair.up();
    for site in [&pair.a, &pair.b] {
        site.wait_state("up", secs(20));
        site.ns.run(&[
            "sysctl",
            "-qw",
            &format!("net.ipv6.conf.{DEVICE}.disable_ipv6=0"),
        ]);
    }
    let (a, b) = (at_home(&pair.a, 1), at_home(&pair.b, 2));
    for bits in SETS {
        set_features(&pair.a.ns, bits);
        assert_exact(&a, &b, 8);
    }
    assert_checksums(&[&a.ns, &b.ns]);
    assert_nothing_refused(&[&pair.a, &pair.b]);
}

#[test]
fn a_plain_back_end_finishes_partial_checksums_and_segments() {
    for (a_is_plain, b_is_plain) in [(true, false), (false, true)] {
        let pair = start_with_plain(a_is_plain, b_is_plain);
        let (a, b) = (pair.a.host(1), pair.b.host(1));
        assert_exact(&a, &b, 16);
        assert_checksums(&[&pair.a.ns, &pair.b.ns, &a.ns, &b.ns]);
        assert_nothing_refused(&[&pair.a, &pair.b]);
    }
}

#[test]
fn a_tunnel_may_do_without_the_offloads_of_udp() {
    let mut plan = Plan::default();
    plan.settings.device = "[pipeline]\nudp-gso = \"off\"\nudp-gro = \"off\"";
    let pair = Pair::start(plan);
    for site in [&pair.a, &pair.b] {
        let status = site.status();
        assert!(!status.udp_gso && !status.udp_gro);
    }
    let (a, b) = (pair.a.host(1), pair.b.host(1));
    assert_exact(&a, &b, 32);
    assert_nothing_refused(&[&pair.a, &pair.b]);
}

/// A card, or its driver, that drops large trains: here the router does, which receives the trains
/// whole.
const NO_TRAINS: &str = "table ip trains { chain forward { type filter hook forward priority 0; \
                         meta length > 1600 udp dport 51830 drop; }; }";

#[test]
fn an_interface_that_could_merge_single_datagrams_and_does_not_is_named() {
    let pair = Pair::start(Plan::default());
    let (from, to) = (pair.a.host(1), pair.b.host(1));
    let set = |site: &Site, feature, state| {
        site.ns.run(&["ethtool", "-K", "wan", feature, state]);
    };
    let remedies_after_bulk = || {
        iperf(pair.sandbox.path(), &from, &to, &[]);
        pair.b.peer().remedies.join("\n")
    };
    for _ in 0..2 {
        assert_eq!(remedies_after_bulk(), "", "trains cross whole, without GRO");
    }
    set(&pair.a, "tx-udp-segmentation", "off");
    let named = "GRO is off at wan; `ethtool -K wan gro on`";
    eventually(secs(60), "show names the interface", || {
        remedies_after_bulk().contains(named).then_some(())
    });
    assert!(pair.b.ran(&["show", &pair.b.tunnel]).1.contains(named));
    set(&pair.b, "gro", "on");
    eventually(secs(20), "the remedy helps", || {
        pair.b.peer().remedies.is_empty().then_some(())
    });
    for _ in 0..2 {
        assert_eq!(remedies_after_bulk(), "", "GRO is on");
    }
}

#[test]
fn where_trains_do_not_arrive_datagrams_leave_one_by_one() {
    let mut pair = Pair::prepare(Plan::default());
    pair.internet.ns.nft(NO_TRAINS);
    pair.up();
    pair.connect(secs(20));
    let flows = [(pair.there(), &pair.at_a), (pair.back(), &pair.at_b)];
    let streams = flows.map(|(flow, from)| from.stream(flow, millis(20), |_| 200));
    for site in [&pair.a, &pair.b] {
        eventually(secs(40), "it is noticed", || {
            let peer = site.try_status()?.peers.into_iter().next()?;
            (peer.last_error?.cause == "lost-trains").then_some(())
        });
    }
    let log = pair.a.process().log();
    assert!(log.contains("udp-gso = \"off\""), "{log}");
    let (a, b) = (pair.a.host(1), pair.b.host(1));
    assert_exact(&a, &b, 32);
    pair.internet.ns.nft("delete table ip trains");
    let again = "trains of datagrams arrive at the peer again";
    pair.a.process().wait_for(again, secs(150));
    for stream in streams {
        stream.stop();
    }
    assert_exact(&a, &b, 32);
}

#[test]
fn super_frames_cross_whole() {
    let pair = Pair::start(Plan::default());
    let (a, b) = (pair.a.host(1), pair.b.host(1));
    for ip in [Ip::V4, Ip::V6] {
        let counts = || {
            [
                packets(&pair.a, "tx_packets"),
                packets(&pair.b, "rx_packets"),
            ]
        };
        let before = counts();
        transfer(&a, &b, ip, 256);
        let segments = 256 * BLOCK as u64 / 1448;
        let after = counts();
        let [went, came] = [after[0] - before[0], after[1] - before[1]];
        println!("{segments} segments of TCP went in {went} packets, and came in {came}");
        // TCP makes the smaller super-frames the slower it is.
        assert!(went * 4 < 3 * segments, "{went} of {segments}");
        // But for what is left of one after a loss, and for other frames that went just before.
        assert!(came <= went + went / 10 + 10, "{came} of {went}");

        let before = packets(&pair.b, "rx_packets");
        shower(&a, &b, ip, 50);
        let came = packets(&pair.b, "rx_packets") - before;
        let expected = match has_udp_super_frames() {
            true => 50..100,
            false => 50 * DATAGRAMS_AT_ONCE..51 * DATAGRAMS_AT_ONCE,
        };
        assert!(expected.contains(&came), "{came} for 50 super-frames");
    }
    assert_nothing_refused(&[&pair.a, &pair.b]);
}

#[test]
fn segments_that_a_port_joined_cross_as_one() {
    let pair = Pair::start(Plan::default());
    let (a, b) = (pair.a.host(1), pair.b.host(1));
    // As from a network card that only receives: finished segments, joined by the bridge's port.
    a.ns.turn_offloads_off("eth0");
    pair.a.ns.run(&["ethtool", "-K", "host1", "gro", "on"]);
    let before = packets(&pair.a, "tx_packets");
    transfer(&a, &b, Ip::V4, 256);
    transfer(&a, &b, Ip::V6, 256);
    let segments = 512 * BLOCK as u64 / 1448;
    let left = packets(&pair.a, "tx_packets") - before;
    println!("{segments} segments left in {left} packets");
    assert!(left * 2 < segments, "{left} of {segments}");
    assert_exact(&a, &b, 16);
    assert_checksums(&[&pair.a.ns, &pair.b.ns, &a.ns, &b.ns]);
    assert_nothing_refused(&[&pair.a, &pair.b]);
}

#[test]
fn congestion_marks_cross() {
    let pair = Pair::start(Plan::default());
    let (a, b) = (pair.a.host(1), pair.b.host(1));
    for host in [&a, &b] {
        host.ns.run(&["sysctl", "-qw", "net.ipv4.tcp_ecn=1"]);
    }
    a.ns.nft(
        "table inet marks {\n  chain out {\n    type filter hook output priority 0;\n    \
         ip ecn ect0 limit rate 50/second burst 5 packets ip ecn set ce\n  }\n}",
    );
    b.ns.nft(
        "table inet counts {\n  counter reduced { }\n  chain in {\n    type filter hook input priority 0;\n    \
         tcp flags & (cwr | syn) == cwr counter name reduced\n  }\n}",
    );
    transfer(&a, &b, Ip::V4, 512);
    let marked = nstat(&b.ns, &["IpExtInCEPkts", "IpExtInECT0Pkts"]);
    assert!(marked["IpExtInCEPkts"] > 0, "{marked:?}");
    assert!(
        marked["IpExtInECT0Pkts"] > marked["IpExtInCEPkts"],
        "{marked:?}"
    );
    let reduced =
        b.ns.run(&["nft", "list", "counter", "inet", "counts", "reduced"]);
    assert!(!reduced.contains("packets 0 "), "{reduced}");
    assert_checksums(&[&a.ns, &b.ns]);
    assert_nothing_refused(&[&pair.a, &pair.b]);
}

#[test]
fn segments_with_tags_are_cut_as_the_kernel_cuts_them() {
    let pair = Pair::start(Plan::default());
    assert_segments(&pair, &[0x81, 0, 0, 42]);
}

#[test]
fn segments_whose_tag_changes_are_cut_as_the_kernel_cuts_them() {
    let device = |device| Ports { device, peer: "" };
    let peer = |peer| Ports { device: "", peer };
    let dot1ad: &[u8] = &[0x88, 0xa8, 0, 200, 0x81, 0, 0, 42];
    for (ports, tags) in [
        (
            device("trunk = 110\ntranslate = { 42 = 110 }"),
            &[0x81, 0, 0, 110][..],
        ),
        (device("tunnel = 200"), dot1ad),
        (peer("access = 42"), &[]),
        (peer("trunk = 42\ntranslate = { 7 = 42 }"), &[0x81, 0, 0, 7]),
    ] {
        for ports in [
            [ports, Ports::default()],
            [
                Ports::default(),
                Ports {
                    device: ports.peer,
                    peer: ports.device,
                },
            ],
        ] {
            println!("{ports:?}");
            let pair = Pair::start_with_ports(ports);
            assert_segments(&pair, tags);
        }
    }
}

/// Super-frames of VLAN 42 from A arrive at B as segments with these `tags`.
fn assert_segments(pair: &Pair, tags: &[u8]) {
    const SIZE: usize = 1000;
    const TRANSPORT: usize = 18 + 20;

    let ip_at = 14 + tags.len();
    let transport_at = ip_at + 20;
    let host = pair.a.host(1);
    let mut crafter = Crafter::on(&host.ns, "eth0");
    let payload: Vec<u8> = (0..20 * SIZE as u32 + 7)
        .map(|at| ((at * 7919) >> 5) as u8)
        .collect();
    for (is_tcp, fin_and_cwr) in [(true, false), (true, true), (false, false)] {
        let mut frame = Vec::new();
        let untagged = PacketBuilder::ethernet2(host.mac, pair.at_b.mac)
            .single_vlan(42.try_into().unwrap())
            .ipv4([10, 1, 0, 1], [10, 1, 0, 2], 64);
        let header = if is_tcp {
            let mut tcp = untagged.tcp(7, 8, 0xffff_f000, 1024).ack(5).psh();
            if fin_and_cwr {
                tcp = tcp.fin().cwr();
            }
            tcp.write(&mut frame, &payload).unwrap();
            20
        } else {
            untagged.udp(7, 8).write(&mut frame, &payload).unwrap();
            8
        };
        frame[22..24].copy_from_slice(&0xfffe_u16.to_be_bytes());
        frame[28..30].fill(0);
        let checksum = (!sum(&frame[18..TRANSPORT])).to_be_bytes();
        frame[28..30].copy_from_slice(&checksum);
        let (gso_type, offset) = match (is_tcp, fin_and_cwr) {
            (true, false) => (1, 16),
            (true, true) => (0x81, 16),
            (false, _) => (5, 6),
        };
        let at = TRANSPORT + usize::from(offset);
        let open = sum(&pseudo_header(&frame[18..], frame.len() - TRANSPORT));
        frame[at..at + 2].copy_from_slice(&open.to_be_bytes());
        connect_tagged(pair, &mut crafter, host.mac, tags);
        pair.at_b.clear();
        crafter.send(gso_type, (TRANSPORT, offset), SIZE as u16, &frame);

        let front = [tags, &[8, 0]].concat();
        let is_segment = |bytes: &[u8]| bytes[6..12] == host.mac && bytes[12..].starts_with(&front);
        pair.at_b.wait(secs(20), |all| {
            all.iter().filter(|it| is_segment(&it.bytes)).count() == 21
        });
        let segments: Vec<_> = pair.at_b.with_arrivals(|all| {
            let bytes = all.iter().map(|arrival| arrival.bytes.clone());
            bytes.filter(|bytes| is_segment(bytes)).collect()
        });
        assert_eq!(segments.len(), 21);
        for (number, segment) in segments.iter().enumerate() {
            SlicedPacket::from_ethernet(segment).unwrap();
            let ip = &segment[ip_at..];
            let id = u16::from_be_bytes([ip[4], ip[5]]);
            assert_eq!(id, 0xfffe_u16.wrapping_add(number as u16), "IP ID");
            assert_eq!(sum(&ip[..20]), 0xffff, "IP checksum");
            let transport = &segment[transport_at..];
            let all = [&pseudo_header(ip, transport.len())[..], transport].concat();
            assert_eq!(sum(&all), 0xffff, "checksum of segment {number}");
            let sent = payload.chunks(SIZE).nth(number).unwrap();
            assert!(transport[header..] == *sent, "payload of segment {number}");
            if is_tcp {
                let sequence = u32::from_be_bytes(*transport[4..].first_chunk().unwrap());
                assert_eq!(
                    sequence,
                    0xffff_f000_u32.wrapping_add((number * SIZE) as u32)
                );
                let (first, last) = (number == 0, number == 20);
                let flag = |is_set: bool, bit| if is_set { bit } else { 0 };
                let expected = 0x10
                    | flag(last, 0x08)
                    | flag(last && fin_and_cwr, 0x01)
                    | flag(first && fin_and_cwr, 0x80);
                assert_eq!(transport[13], expected, "flags of segment {number}");
            }
        }
    }
    assert_nothing_refused(&[&pair.a, &pair.b]);
}

/// Waits until a frame of VLAN 42 from a host at A arrives at B with these `tags`.
fn connect_tagged(pair: &Pair, crafter: &mut Crafter, src: Mac, tags: &[u8]) {
    let sent = frame(BROADCAST, src, &[(0x8100, 42)], EXPERIMENTAL, 100, 1);
    let came = [&sent[..12], tags, &sent[16..]].concat();
    eventually(secs(10), "a tagged frame crosses", || {
        crafter.send_plain(&sent);
        pair.at_b.receives(&came, millis(50)).then_some(())
    });
}
