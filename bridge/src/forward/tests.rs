// SPDX-License-Identifier: MIT OR Apache-2.0
//! Where frames go, through the whole switch.

mod guards;

use std::vec;
use std::vec::Vec;

use super::DropReason::{
    BadSource, NoPort, PortBlocked, ProbeLimited, Runt, SamePort, SourceNotAllowed, SourceSpoofed,
    TaggedRefused, UntaggedRefused, VlanRefused,
};
use super::Egress::{Flood, Port};
use super::*;
use crate::config::Sources;
use crate::port_vlans::PortVlans;
use crate::vlan::TagEdit::{Keep, Pop};
use crate::vlan::Tpid;

const TAP: PortId = PortId::TAP;
const PEER_1: PortId = PortId(1);
const PEER_2: PortId = PortId(2);

// Stations are named by the last byte of their address and by where they live.
const ON_TAP: u8 = 10;
const ON_TAP_TOO: u8 = 11;
const ON_PEER_1: u8 = 20;
const ON_PEER_1_TOO: u8 = 21;
const ON_PEER_2: u8 = 30;
const NOWHERE: u8 = 99;

#[test]
fn forwards_by_where_the_destination_lives() {
    for (ingress, src, dst, mesh, hub) in [
        (TAP, ON_TAP, ON_PEER_1, Ok(Port(PEER_1)), Ok(Port(PEER_1))),
        (TAP, ON_TAP, ON_PEER_2, Ok(Port(PEER_2)), Ok(Port(PEER_2))),
        (TAP, ON_TAP, ON_TAP_TOO, Err(SamePort), Err(SamePort)),
        (TAP, ON_TAP, ON_TAP, Err(SamePort), Err(SamePort)), // to itself
        (TAP, ON_TAP, NOWHERE, Ok(Flood), Ok(Flood)),
        (PEER_1, ON_PEER_1, ON_TAP, Ok(Port(TAP)), Ok(Port(TAP))),
        (
            PEER_1,
            ON_PEER_1,
            ON_PEER_1_TOO,
            Err(SamePort),
            Err(SamePort),
        ),
        (PEER_1, ON_PEER_1, ON_PEER_2, Err(NoPort), Ok(Port(PEER_2))),
        (PEER_1, ON_PEER_1, NOWHERE, Ok(Port(TAP)), Ok(Flood)),
    ] {
        for (is_hub, verdict) in [(false, mesh), (true, hub)] {
            let switch = populated(is_hub);
            let frame = frame(station(dst), station(src), &[0x08, 0x00]);
            let seen = at(&switch, ingress, &frame, 0);
            assert_eq!(
                seen, verdict,
                "{src} to {dst} from {ingress:?}, hub {is_hub}"
            );
        }
    }
}

#[test]
fn floods_every_group() {
    for group in [
        [0xff; 6],                            // broadcast
        [0x01, 0x00, 0x5e, 0x00, 0x00, 0xfb], // mDNS
        [0x33, 0x33, 0x00, 0x00, 0x00, 0x01], // IPv6 all nodes
        [0x01, 0x80, 0xc2, 0x00, 0x00, 0x0e], // LLDP: a cable carries it, so do we
    ] {
        let frame = frame(group, station(NOWHERE), &[0x88, 0xcc]);
        for (ingress, mesh, hub) in [
            (TAP, Ok(Flood), Ok(Flood)),
            (PEER_1, Ok(Port(TAP)), Ok(Flood)),
        ] {
            assert_eq!(
                at(&populated(false), ingress, &frame, 0),
                mesh,
                "{group:02x?}"
            );
            assert_eq!(
                at(&populated(true), ingress, &frame, 0),
                hub,
                "{group:02x?}"
            );
        }
    }
}

#[test]
fn split_horizon_decides_by_port() {
    for (ingress, egress, mesh, hub) in [
        (TAP, TAP, false, false),
        (TAP, PEER_1, true, true),
        (PEER_1, TAP, true, true),
        (PEER_1, PEER_1, false, false),
        (PEER_1, PEER_2, false, true),
    ] {
        let seen = [false, true].map(|is_hub| populated(is_hub).may_egress(ingress, egress));
        assert_eq!(seen, [mesh, hub], "{ingress:?} to {egress:?}");
    }
}

#[test]
fn learns_nothing_from_a_frame_that_no_station_sent() {
    let multicast = [0x03, 0, 0, 0, 0, 1];
    for (frame, reason) in [
        (frame([0xff; 6], [0; 6], &[8, 6]), BadSource),
        (frame([0xff; 6], [0xff; 6], &[8, 6]), BadSource),
        (frame([0xff; 6], multicast, &[8, 6]), BadSource),
        (frame([0xff; 6], station(1), &[8]), Runt),
        (frame([0xff; 6], station(1), &[0x81, 0x00, 0, 1]), Runt),
    ] {
        let switch = Switch::new(SwitchConfig::default(), [0, 0]);
        assert_eq!(at(&switch, TAP, &frame, 0), Err(reason), "{frame:02x?}");
        assert_eq!(switch.fdb().entries(0).count(), 0, "{frame:02x?}");
    }
}

#[test]
fn an_address_is_known_in_its_own_vlan_only() {
    let (tag_7, tag_8): (&[u8], &[u8]) =
        (&[0x81, 0, 0, 7, 0x88, 0xb5], &[0x81, 0, 0, 8, 0x88, 0xb5]);
    let (priority_tag, untagged): (&[u8], &[u8]) = (&[0x81, 0, 0xe0, 0, 0x88, 0xb5], &[0x88, 0xb5]);
    for (learned_in, sent_in, verdict) in [
        (tag_7, tag_7, Ok(Port(PEER_1))),
        (tag_7, tag_8, Ok(Flood)),
        (tag_7, untagged, Ok(Flood)),
        (untagged, tag_7, Ok(Flood)),
        (untagged, priority_tag, Ok(Port(PEER_1))),
        (priority_tag, untagged, Ok(Port(PEER_1))),
    ] {
        let switch = Switch::new(SwitchConfig::default(), [0, 0]);
        at(
            &switch,
            PEER_1,
            &frame([0xff; 6], station(1), learned_in),
            0,
        )
        .unwrap();
        let seen = at(&switch, TAP, &frame(station(1), station(2), sent_in), 0);
        assert_eq!(
            seen, verdict,
            "learned in {learned_in:02x?}, sent in {sent_in:02x?}"
        );
    }
}

#[test]
fn follows_a_station_that_moves_and_forgets_one_that_is_silent() {
    let switch = populated(false);
    let roaming = frame([0xff; 6], station(ON_PEER_1), &[8, 6]);
    let to_it = frame(station(ON_PEER_1), station(ON_TAP), &[8, 0]);

    assert_eq!(at(&switch, TAP, &to_it, 1), Ok(Port(PEER_1)));
    at(&switch, PEER_2, &roaming, 2).unwrap();
    assert_eq!(at(&switch, TAP, &to_it, 301), Ok(Port(PEER_2)));
    assert_eq!(at(&switch, TAP, &to_it, 302), Ok(Flood));
}

#[test]
fn a_frame_crosses_ports_that_show_its_vlan_in_different_ways() {
    let vid = Vid::new(10).unwrap();
    let trunk = PortVlans::trunk([vid].into_iter().collect(), None, &[]).unwrap();
    let access = PortVlans::access(vid).unwrap();
    let switch = switch(
        [PortVlans::transparent(), trunk, access].map(|vlans| PortConfig {
            vlans,
            ..PortConfig::default()
        }),
    );
    let (untagged, tagged) = (&[8, 0][..], &[0x81, 0, 0, 10, 8, 0][..]);
    for (ingress, after_addresses, vid, edits) in [
        (
            PEER_2,
            untagged,
            Ok(10),
            [Some(PUSH_10), Some(PUSH_10), None],
        ),
        (PEER_2, tagged, Err(TaggedRefused), [None; 3]),
        (PEER_1, tagged, Ok(10), [Some(Keep), None, Some(Pop)]),
        (PEER_1, untagged, Err(UntaggedRefused), [None; 3]),
        (TAP, tagged, Ok(10), [None, Some(Keep), Some(Pop)]),
        (TAP, untagged, Ok(0), [None; 3]),
    ] {
        let frame = frame([0xff; 6], station(1), after_addresses);
        let decision = switch.forward_frame(ingress, &frame, 1, Now::default());
        let inside = decision.map(|decision| decision.inside);
        let seen = inside.map(|inside| inside.vid.value());
        assert_eq!(seen, vid, "{after_addresses:02x?} from {ingress:?}");
        let left = inside.map_or([None; 3], |inside| {
            [TAP, PEER_1, PEER_2].map(|egress| switch.leave(ingress, inside, egress).ok())
        });
        assert_eq!(left, edits, "{after_addresses:02x?} from {ingress:?}");
    }
    let answer = frame(station(1), station(2), tagged);
    assert_eq!(at(&switch, PEER_1, &answer, 0), Ok(Port(TAP)));
    let elsewhere = frame(station(1), station(2), &[0x81, 0, 0, 20, 8, 0]);
    assert_eq!(at(&switch, PEER_1, &elsewhere, 0), Err(VlanRefused));
}

#[test]
fn a_blocked_port_takes_and_gives_nothing_but_own_probes() {
    let config = SwitchConfig {
        hub: true,
        own_probe_mac: Some(MacAddr(node(77))),
        ..SwitchConfig::with_ports(3)
    };
    let (switch, own_probe) = (populate(config), probe(node(77)));
    let to_peer = frame(station(ON_PEER_1), station(ON_TAP), &[8, 0]);
    let from_peer = frame(station(ON_TAP), station(ON_PEER_1), &[8, 0]);
    let probe = probe(node(NOWHERE));
    for (blocked, to_it, from_it, leaves) in [
        (false, Ok(Port(PEER_1)), Ok(Port(TAP)), Ok(Keep)),
        // The addresses that were learned there are removed, and with them the route for frames to
        // them.
        (true, Ok(Flood), Err(PortBlocked), Err(PortBlocked)),
        (false, Ok(Flood), Ok(Port(TAP)), Ok(Keep)),
    ] {
        switch.set_blocked(PEER_1, blocked).unwrap();
        assert_eq!(switch.blocks(PEER_1).by_order, blocked);
        assert_eq!(at(&switch, TAP, &to_peer, 0), to_it, "{blocked}");
        assert_eq!(at(&switch, PEER_1, &from_peer, 0), from_it, "{blocked}");
        let inside = Inside::untagged(Vid::UNTAGGED);
        assert_eq!(switch.leave(TAP, inside, PEER_1), leaves, "{blocked}");

        let probed = if blocked { Egress::Nowhere } else { Flood };
        assert_eq!(at(&switch, PEER_1, &probe, 0), Ok(probed), "{blocked}");
        let decision = switch
            .forward_frame(TAP, &probe, 1, Now::default())
            .unwrap();
        let left = switch.leave(TAP, decision.inside, PEER_1);
        assert_eq!(left, leaves, "{blocked}");
        let mine = switch.forward_frame(PEER_1, &own_probe, 1, Now::default());
        let kind = mine.map(|decision| decision.kind);
        assert_eq!(kind, Ok(Kind::OwnProbe), "{blocked}");
        let own = switch.originate(Inside::probe(Vid::UNTAGGED), PEER_1);
        assert_eq!(own, Ok(Keep), "{blocked}");
    }
}

#[test]
fn there_are_no_ports_but_those_configured() {
    let switch = populated(true);
    let (beyond, frame) = (PortId(3), frame([0xff; 6], station(1), &[8, 6]));
    assert_eq!(at(&switch, beyond, &frame, 0), Err(NoPort));
    assert_eq!(switch.set_blocked(beyond, true), Err(NoPort));
    let inside = Inside::untagged(Vid::UNTAGGED);
    assert_eq!(switch.leave(TAP, inside, beyond), Err(NoPort));
    assert!(switch.ports().eq([TAP, PEER_1, PEER_2]));
    assert_eq!(switch.refusals(beyond).count(), 0);
}

#[test]
fn stations_of_the_configuration_are_where_it_says() {
    let ten = Vid::new(10).unwrap();
    let port = |stations: &[(Vid, MacAddr)]| PortConfig {
        stations: stations.to_vec(),
        ..PortConfig::default()
    };
    let mac = |name| MacAddr(station(name));
    let switch = switch([
        port(&[(ten, mac(1))]),
        port(&[(Vid::UNTAGGED, mac(1)), (Vid::UNTAGGED, mac(2))]),
        port(&[]),
    ]);
    assert_eq!(switch.stations_left_out(), 0);
    let homes = |switch: &Switch| {
        let entries = switch.fdb().entries(1_000_000);
        let mut homes: Vec<_> = entries
            .map(|it| (it.vid, it.mac, it.port, it.origin))
            .collect();
        homes.sort_unstable_by_key(|&(vid, mac, ..)| (vid, mac));
        homes
    };
    let expected = [
        (Vid::UNTAGGED, mac(1), PEER_1, Origin::Static),
        (Vid::UNTAGGED, mac(2), PEER_1, Origin::Static),
        (ten, mac(1), TAP, Origin::Static),
    ];
    assert_eq!(homes(&switch), expected);
    // Frames do not move them, and a flush does not remove them.
    at(&switch, TAP, &frame([0xff; 6], station(2), &[8, 6]), 0).unwrap();
    let to_two = frame(station(2), station(9), &[8, 6]);
    assert_eq!(at(&switch, TAP, &to_two, 0), Ok(Port(PEER_1)));
    switch.set_blocked(PEER_1, true).unwrap();
    switch.set_blocked(PEER_1, false).unwrap();
    switch.fdb().remove(Vid::UNTAGGED, mac(9));
    assert_eq!(homes(&switch), expected);
}

#[test]
fn stations_without_a_place_are_counted() {
    let stations = (0..20).map(|name| (Vid::UNTAGGED, MacAddr(station(name))));
    let config = SwitchConfig {
        ports: [PortConfig {
            stations: stations.collect(),
            ..PortConfig::default()
        }]
        .into(),
        fdb_capacity: 8,
        ..SwitchConfig::default()
    };
    let switch = Switch::new(config, [3, 4]);
    assert_eq!(switch.stations_left_out(), 12);
    assert_eq!(switch.fdb().entries(0).count(), 8);
}

#[test]
fn own_probes_come_home_and_those_of_others_pass() {
    let own = MacAddr(node(1));
    for (hub, ingress, src, egress, kind) in [
        (true, PEER_1, own.0, Egress::Nowhere, Kind::OwnProbe),
        (false, TAP, own.0, Egress::Nowhere, Kind::OwnProbe),
        (true, PEER_1, node(2), Flood, Kind::Probe),
        (false, PEER_1, node(2), Port(TAP), Kind::Probe),
        (false, TAP, node(2), Flood, Kind::Probe),
    ] {
        let config = SwitchConfig {
            hub,
            own_probe_mac: Some(own),
            ..SwitchConfig::with_ports(3)
        };
        let switch = Switch::new(config, [0, 0]);
        let send = || switch.forward_frame(ingress, &probe(src), 1, Now::default());
        let decision = send().unwrap();
        assert_eq!(
            (decision.egress, decision.kind),
            (egress, kind),
            "{src:?}, {ingress:?}"
        );
        assert_eq!(switch.fdb().entries(0).count(), 0, "nothing is learned");
        let passed = 1 + (0..1000).take_while(|_| send().is_ok()).count();
        assert_eq!(passed, 200, "as many as all nodes send at once, and some");
        assert_eq!(send(), Err(ProbeLimited));
        let other = if src == own.0 { node(2) } else { own.0 };
        let passes = switch.forward_frame(ingress, &probe(other), 1, Now::default());
        assert!(passes.is_ok(), "each has a limit of its own");
    }
    let unknown = at(&populated(false), TAP, &probe(own.0), 0);
    assert_eq!(
        unknown,
        Ok(Flood),
        "a node without probes knows none as its own"
    );
}

#[test]
fn a_port_that_opens_is_another_way_to_stations_that_were_learned_elsewhere() {
    let switch = populated(false);
    let to_peer = frame(station(ON_PEER_1), station(ON_TAP), &[8, 0]);
    let from_peer = frame(station(ON_TAP), station(ON_PEER_1), &[8, 0]);
    switch.set_blocked(PEER_1, false).unwrap();
    assert_eq!(
        at(&switch, TAP, &to_peer, 0),
        Ok(Port(PEER_1)),
        "it was open"
    );
    switch.set_blocked(PEER_1, true).unwrap();
    // By the cable that made the loop; it is unplugged then.
    assert_eq!(at(&switch, TAP, &from_peer, 0), Err(SamePort));
    assert_eq!(at(&switch, TAP, &to_peer, 0), Err(SamePort));
    switch.set_blocked(PEER_1, false).unwrap();
    assert_eq!(at(&switch, TAP, &to_peer, 0), Ok(Flood));
}

#[test]
fn names_of_reasons_are_unique_and_for_machines() {
    let mut names: Vec<_> = DropReason::ALL.iter().map(|reason| reason.name()).collect();
    for name in &names {
        let is_kebab = name
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte == b'-');
        assert!(is_kebab, "{name}");
    }
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), DropReason::ALL.len());
}

#[test]
fn ports_that_have_all_they_may_leave_room_for_others() {
    let config = SwitchConfig::with_ports(4);
    let most = config.max_per_port;
    let switch = Switch::new(config, [3, 4]);
    let learn = |port: u16, number: usize| {
        let [.., a, b, c] = number.to_be_bytes();
        let mac = MacAddr([2, 0, port as u8, a, b, c]);
        switch.fdb().learn(Vid::UNTAGGED, mac, PortId(port), 0) == Learning::New
    };
    for hostile in [1, 2] {
        let learned = (0..10 * most).filter(|&number| learn(hostile, number));
        assert_eq!(learned.count(), most);
    }
    assert!(learn(3, 0), "the first station of the third");
    let learned = (1..most).filter(|&number| learn(3, number)).count();
    assert!(learned > most - most / 50, "{learned} of {most}");
}

#[test]
fn a_frame_from_a_stations_address_is_no_probe() {
    let mut ports = [(); 3].map(|()| PortConfig::default());
    ports[1].spoof_guard = true;
    ports[2].allowed_sources = Some(Sources::new(vec![MacAddr(station(3))]).unwrap());
    let switch = switch(ports);
    let first = at(&switch, TAP, &probe(station(1)), 0);
    assert_eq!((first, switch.fdb().entries(0).count()), (Ok(Flood), 1));
    for (port, name, expected) in [
        (PEER_1, 1, Err(SourceSpoofed)),
        (PEER_1, 2, Ok(Flood)),
        (PEER_2, 2, Err(SourceNotAllowed)),
        (PEER_2, 3, Ok(Flood)),
    ] {
        let seen = at(&switch, port, &probe(station(name)), 0);
        assert_eq!(seen, expected, "{name} from {port:?}");
    }
    // Nodes are not known before they send a probe, and must not be shut out.
    for port in [TAP, PEER_1, PEER_2] {
        let probe = probe(node(1));
        let decision = switch.forward_frame(port, &probe, 1, Now::default());
        assert_eq!(decision.map(|it| it.kind), Ok(Kind::Probe), "{port:?}");
    }
}

const PUSH_10: TagEdit = TagEdit::Push {
    tpid: Tpid::Customer,
    tci: 10,
};

fn switch(ports: [PortConfig; 3]) -> Switch {
    let config = SwitchConfig {
        ports: ports.into(),
        hub: true,
        ..SwitchConfig::default()
    };
    Switch::new(config, [3, 4])
}

fn probe(src: [u8; 6]) -> Vec<u8> {
    frame(PROBE_DESTINATION.0, src, &[0x88, 0xb6])
}

fn populated(hub: bool) -> Switch {
    populate(SwitchConfig {
        hub,
        ..SwitchConfig::with_ports(3)
    })
}

fn populate(config: SwitchConfig) -> Switch {
    let switch = Switch::new(config, [3, 4]);
    for (name, port) in [
        (ON_TAP, TAP),
        (ON_TAP_TOO, TAP),
        (ON_PEER_1, PEER_1),
        (ON_PEER_1_TOO, PEER_1),
        (ON_PEER_2, PEER_2),
    ] {
        at(&switch, port, &frame([0xff; 6], station(name), &[8, 6]), 0).unwrap();
    }
    switch
}

/// Where the switch sends a frame that arrives at `now_s`.
fn at(switch: &Switch, ingress: PortId, frame: &[u8], now_s: u32) -> Result<Egress, DropReason> {
    let now = Now::from_micros(u64::from(now_s) * 1_000_000);
    let decision = switch.forward_frame(ingress, frame, 1, now)?;
    Ok(decision.egress)
}

fn station(name: u8) -> [u8; 6] {
    [2, 0, 0, 0, 0, name]
}

/// The source of a node's loop probes.
fn node(name: u8) -> [u8; 6] {
    [0x02, 0x70, 0, 0, 0, name]
}

fn frame(dst: [u8; 6], src: [u8; 6], after_addresses: &[u8]) -> Vec<u8> {
    [&dst, &src, after_addresses].concat()
}

#[test]
fn a_port_that_changes_counts_on_and_the_others_are_as_they_were() {
    let config = SwitchConfig::with_ports(3);
    let mut ports = config.ports.clone();
    let switch = Switch::new(config, [0; 2]);
    let now = Now::default();
    let runt = switch.forward_frame(PortId(1), &[0; 5], 1, now);
    assert_eq!(runt, Err(Runt));
    switch.set_blocked(PortId(1), true).unwrap();

    ports[1].vlans = PortVlans::access(Vid::new(10).unwrap()).unwrap();
    ports[2].spoof_guard = true;
    let changed = switch.with_ports(ports);
    assert_eq!(changed.refusals(PortId(1)).collect::<Vec<_>>(), [(Runt, 1)]);
    assert!(changed.blocks(PortId(1)).by_order);
    changed.set_blocked(PortId(1), false).unwrap();
    let inside = Inside::untagged(Vid::UNTAGGED);
    assert!(
        changed.originate(inside, PortId(1)).is_err(),
        "another VLAN"
    );
    assert!(switch.originate(inside, PortId(2)).is_ok());
    // Both have one FDB, and a guard against spoofed sources begins with the switch.
    assert!(core::ptr::eq(switch.fdb(), changed.fdb()));
    assert!(!changed.ports[2].guards_sources());
}
