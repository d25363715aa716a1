// SPDX-License-Identifier: MIT OR Apache-2.0
//! Snooping against a model that does the same in the obvious way, without bounds, and on a clock
//! that does not wrap.

mod support;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use patchcord_bridge::membership::{Snooping, SnoopingConfig};
use patchcord_bridge::{PortId, PortSet, Vid};
use proptest::prelude::*;
use support::{ethernet, headers, igmp, ipv4, tagged, v4};

const PORTS: u16 = 4;
const GROUPS: u8 = 5;
const VLANS: u16 = 2;
const MEMBERSHIP_S: u64 = 260;
const SETTLE_S: u64 = 14;

proptest! {
    #[test]
    fn multicast_goes_where_the_model_says(
        start_s in prop_oneof![Just(0), Just(u64::from(u32::MAX) - 400)],
        events in prop::collection::vec(any_event(), 1..120),
    ) {
        let mut pair = Pair::new(start_s);
        for event in events {
            pair.handle(event);
            pair.compare();
        }
    }
}

#[derive(Clone, Debug)]
enum Event {
    Join {
        vlan: u16,
        port: u16,
        group: u8,
    },
    Records {
        vlan: u16,
        port: u16,
        kinds: Vec<u8>,
    },
    Leave {
        vlan: u16,
        port: u16,
        group: u8,
    },
    Query {
        vlan: u16,
        port: u16,
    },
    QueryGroup {
        vlan: u16,
        port: u16,
        group: u8,
    },
    FlushPort {
        port: u16,
    },
    Wait {
        seconds: u64,
    },
}

fn any_event() -> impl Strategy<Value = Event> {
    let (vlan, port, group) = (|| 0..VLANS, || 0..PORTS, || 0..GROUPS);
    prop_oneof![
        6 => (vlan(), port(), group())
            .prop_map(|(vlan, port, group)| Event::Join { vlan, port, group }),
        3 => (vlan(), port(), prop::collection::vec(0..8u8, 0..5))
            .prop_map(|(vlan, port, kinds)| Event::Records { vlan, port, kinds }),
        2 => (vlan(), port(), group())
            .prop_map(|(vlan, port, group)| Event::Leave { vlan, port, group }),
        4 => (vlan(), port()).prop_map(|(vlan, port)| Event::Query { vlan, port }),
        2 => (vlan(), port(), group())
            .prop_map(|(vlan, port, group)| Event::QueryGroup { vlan, port, group }),
        1 => port().prop_map(|port| Event::FlushPort { port }),
        4 => prop_oneof![0..5u64, 0..200u64].prop_map(|seconds| Event::Wait { seconds }),
    ]
}

struct Pair {
    snooping: Snooping,
    now_s: u64,
    /// When each expires.
    members: BTreeMap<(u16, u8, u16), u64>,
    routers: BTreeMap<(u16, u16), u64>,
    /// When the querier expires, and when its VLAN is pruned: not before there was a general query.
    asked: BTreeMap<u16, (u64, Option<u64>)>,
}

impl Pair {
    fn new(now_s: u64) -> Self {
        let config = SnoopingConfig {
            ports: PORTS,
            mesh: false,
            ..SnoopingConfig::default()
        };
        Self {
            snooping: Snooping::new(config, now_s as u32),
            now_s,
            members: BTreeMap::new(),
            routers: BTreeMap::new(),
            asked: BTreeMap::new(),
        }
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Join { vlan, port, group } => {
                self.hear(vlan, port, &message(0x16, 0, group));
                self.join(vlan, port, group);
            }
            Event::Records { vlan, port, kinds } => {
                self.hear(vlan, port, &records(&kinds));
                for (group, kind) in (0..).zip(kinds) {
                    if [2, 4].contains(&kind) {
                        self.join(vlan, port, group);
                    }
                }
            }
            // Whoever asks will ask, and is heard.
            Event::Leave { vlan, port, group } => self.hear(vlan, port, &message(0x17, 0, group)),
            Event::Query { vlan, port } => {
                let general = [0x11, 100, 0, 0, 0, 0, 0, 0];
                let general = igmp("10.0.0.9", v4("224.0.0.1"), &general);
                self.hear(vlan, port, &general);
                self.query(vlan, port, Some(self.now_s + SETTLE_S));
            }
            Event::QueryGroup { vlan, port, group } => {
                self.hear(vlan, port, &message(0x11, 10, group));
                self.query(vlan, port, None);
                let soon_s = self.now_s + 3;
                for ((in_vlan, of, _), at_s) in &mut self.members {
                    if (*in_vlan, *of) == (vlan, group) {
                        *at_s = soon_s.min(*at_s);
                    }
                }
            }
            Event::FlushPort { port } => {
                self.snooping.flush_port(PortId(port));
                self.members.retain(|&(_, _, on), _| on != port);
                self.routers.retain(|&(_, on), _| on != port);
            }
            Event::Wait { seconds } => self.wait(seconds),
        }
    }

    fn hear(&mut self, vlan: u16, port: u16, frame: &[u8]) {
        let now_s = self.now_s as u32;
        let frame = in_vlan(vlan, frame);
        self.snooping
            .handle(PortId(port), vid(vlan), &headers(&frame), now_s);
    }

    fn join(&mut self, vlan: u16, port: u16, group: u8) {
        let until_s = self.now_s + MEMBERSHIP_S;
        self.members.insert((vlan, group, port), until_s);
    }

    fn query(&mut self, vlan: u16, port: u16, prunes_from_s: Option<u64>) {
        let until_s = self.now_s + MEMBERSHIP_S;
        self.routers.insert((vlan, port), until_s);
        let asked = self.asked.entry(vlan).or_insert((until_s, prunes_from_s));
        asked.0 = until_s;
        asked.1 = asked.1.or(prunes_from_s);
    }

    fn wait(&mut self, seconds: u64) {
        for _ in 0..seconds {
            self.now_s += 1;
            self.snooping.poll(self.now_s as u32);
        }
        let now_s = self.now_s;
        self.members.retain(|_, at_s| *at_s > now_s);
        self.routers.retain(|_, at_s| *at_s > now_s);
        self.asked.retain(|_, (at_s, _)| *at_s > now_s);
    }

    fn compare(&self) {
        let table = self.snooping.table();
        for vlan in 0..VLANS {
            let report = in_vlan(vlan, &message(0x16, 0, 0));
            assert_eq!(
                table.egress(vid(vlan), &headers(&report)).cloned(),
                self.ports(vlan, None)
            );
            for group in 0..GROUPS {
                let frame = in_vlan(vlan, &data(group));
                assert_eq!(
                    table.egress(vid(vlan), &headers(&frame)).cloned(),
                    self.ports(vlan, Some(group)),
                    "group {group} in {vlan}"
                );
            }
        }
        assert!(self.members.len() >= self.snooping.groups(0).count());
    }

    fn ports(&self, vlan: u16, group: Option<u8>) -> Option<PortSet> {
        let prunes_from_s = self.asked.get(&vlan)?.1?;
        if self.now_s < prunes_from_s {
            return None;
        }
        let routers = self.routers.keys().filter(|(at, _)| *at == vlan);
        let members = self
            .members
            .keys()
            .filter(|(at, of, _)| (*at, Some(*of)) == (vlan, group));
        let ports = routers
            .map(|&(_, port)| port)
            .chain(members.map(|&(_, _, port)| port));
        Some(ports.map(PortId).collect())
    }
}

fn address(group: u8) -> Ipv4Addr {
    Ipv4Addr::new(239, 1, 1, group)
}

fn message(kind: u8, response: u8, group: u8) -> Vec<u8> {
    let message = [&[kind, response, 0, 0], &address(group).octets()[..]].concat();
    igmp("10.0.0.1", address(group), &message)
}

/// A record of each kind, for one group after the other, without sources.
fn records(kinds: &[u8]) -> Vec<u8> {
    let mut message = vec![0x22, 0, 0, 0, 0, 0, 0, kinds.len() as u8];
    for (group, &kind) in (0..).zip(kinds) {
        message.extend([kind, 0, 0, 0]);
        message.extend(address(group).octets());
    }
    igmp("10.0.0.1", v4("224.0.0.22"), &message)
}

fn data(group: u8) -> Vec<u8> {
    let packet = ipv4(v4("10.0.0.1"), address(group), 17, &[0; 40]);
    ethernet([0x01, 0, 0x5e, 1, 1, group], 0x0800, &packet)
}

fn in_vlan(vlan: u16, frame: &[u8]) -> Vec<u8> {
    match vlan {
        0 => frame.to_vec(),
        _ => tagged(frame, &[0x81, 0, 0, vlan as u8]),
    }
}

fn vid(value: u16) -> Vid {
    Vid::new(value).expect("12 bits")
}
