// SPDX-License-Identifier: MIT OR Apache-2.0
//! Any frames for snooping, from any ports at any time.
//!
//! Bounds hold for any input; a port that has asked for a group gets it; our own queries are valid.
#![no_main]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use patchcord_bridge::inspect::{Content, inspect};
use patchcord_bridge::membership::{Handled, Querier, Snooping, SnoopingConfig};
use patchcord_bridge::{Headers, MacAddr, PortId, Vid};

#[path = "../frames.rs"]
mod frames;
use frames::Frame;

const MAX_GROUPS_PER_PORT: usize = 8;
const MAX_MEMBERS: usize = 20;

fuzz_target!(|input: Input| {
    let querier = Querier {
        mac: MacAddr([2, 0, 0, 0, 0, 0x99]),
        ipv4: [10, 0, 0, 99].into(),
        ipv6: Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0x99),
        vlans: vec![Vid::UNTAGGED],
        interval_s: u32::from(input.interval_s),
    };
    let config = SnoopingConfig {
        ports: 8,
        mesh: input.mesh,
        router_ports: Vec::new(),
        querier: input.asks.then_some(querier),
        max_groups_per_port: MAX_GROUPS_PER_PORT,
        max_members: MAX_MEMBERS,
    };
    let mut now_s = input.start_s;
    let mut snooping = Snooping::new(config, now_s);
    for event in &input.events {
        match event {
            Event::Frame { port, tags, frame } => {
                let bytes = frame.bytes(tags);
                let Ok(headers) = Headers::parse(&bytes) else {
                    continue;
                };
                let handled = snooping.handle(port_id(*port), Vid::UNTAGGED, &headers, now_s);
                if handled != Handled::Ignored {
                    assert_eq!(inspect(&bytes), Content::Membership);
                }
            }
            Event::FlushPort { port } => snooping.flush_port(port_id(*port)),
            Event::Wait { seconds } => {
                now_s = now_s.wrapping_add(u32::from(*seconds));
                for query in snooping.poll(now_s) {
                    assert_eq!(inspect(&query.frame), Content::Membership);
                    let mut other = Snooping::new(SnoopingConfig::default(), now_s);
                    let headers = Headers::parse(&query.frame).expect("a query is a frame");
                    let handled = other.handle(PortId(1), query.vid, &headers, now_s);
                    assert_eq!(handled, Handled::Query);
                }
            }
        }
        check(&snooping, now_s);
    }
});

fn check(snooping: &Snooping, now_s: u32) {
    let table = snooping.table();
    let mut members = 0;
    let mut by_port = [0; 8];
    for entry in snooping.groups(now_s) {
        members += entry.ports.len();
        let frame = match entry.group {
            IpAddr::V4(group) => to_group_v4(group),
            IpAddr::V6(group) => to_group_v6(group),
        };
        let headers = Headers::parse(&frame).expect("a frame with headers");
        let egress = table.egress(entry.vid, &headers);
        for (port, _) in entry.ports {
            by_port[usize::from(port.0)] += 1;
            assert!(egress.is_none_or(|ports| ports.contains(port)), "{port:?}");
        }
    }
    assert!(members <= MAX_MEMBERS);
    assert!(by_port.iter().all(|&groups| groups <= MAX_GROUPS_PER_PORT));
}

#[derive(Arbitrary, Debug)]
struct Input {
    start_s: u32,
    mesh: bool,
    asks: bool,
    interval_s: u16,
    events: Vec<Event>,
}

#[derive(Arbitrary, Debug)]
enum Event {
    Frame {
        port: u8,
        tags: Vec<[u8; 2]>,
        frame: Frame,
    },
    FlushPort {
        port: u8,
    },
    Wait {
        seconds: u16,
    },
}

fn port_id(port: u8) -> PortId {
    PortId(u16::from(port % 8))
}

/// A frame to a group.
fn to_group_v4(group: Ipv4Addr) -> Vec<u8> {
    let [_, b, c, d] = group.octets();
    let mut frame = vec![0x01, 0, 0x5e, b & 0x7f, c, d, 2, 0, 0, 0, 0, 1, 8, 0];
    frame.extend([0x45, 0, 0, 40, 0, 0, 0, 0, 8, 17, 0, 0, 10, 0, 0, 1]);
    frame.extend(group.octets());
    frame.resize(60, 0);
    frame
}

/// A frame to a group.
fn to_group_v6(group: Ipv6Addr) -> Vec<u8> {
    let [.., a, b, c, d] = group.octets();
    let mut frame = vec![0x33, 0x33, a, b, c, d, 2, 0, 0, 0, 0, 1, 0x86, 0xdd];
    frame.extend([0x60, 0, 0, 0, 0, 20, 17, 8]);
    frame.extend([0xfd; 16]);
    frame.extend(group.octets());
    frame.resize(74, 0);
    frame
}
