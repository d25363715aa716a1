// SPDX-License-Identifier: MIT OR Apache-2.0
//! Snooping on what hosts and routers say, from frames to the table that data threads read.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use patchcord_bridge::inspect::{Content, inspect};
use patchcord_bridge::membership::{
    Family, GroupTable, Handled, Querier, QueryFrame, Snooping, SnoopingConfig,
};
use patchcord_bridge::{Headers, MacAddr, PortId, PortSet, Vid};
use support::{ethernet, igmp, ip, ipv4, ipv6, mld, tagged, v4, v6};

const TAP: PortId = PortId::TAP;
const A: PortId = PortId(1);
const B: PortId = PortId(2);
const C: PortId = PortId(3);
const LAN: Vid = Vid::UNTAGGED;
/// Members stay members for this long, RFC 3376 section 8.4.
const MEMBERSHIP_S: u32 = 260;
/// Hosts have answered the first query or the second, and a bit.
const SETTLE_S: u32 = 14;

const GROUP: &str = "239.1.2.3";
const GROUP_6: &str = "ff05::1:2:3";

#[test]
fn multicast_goes_where_it_is_wanted_once_hosts_have_answered() {
    let mut net = Net::new(SnoopingConfig::default(), 0);
    assert_eq!(net.egress(&data(GROUP)), None, "nobody asks");
    net.hear(B, &join_v2(GROUP));
    assert_eq!(net.egress(&data(GROUP)), None, "nobody asks yet");
    net.hear(A, &query_v2());
    assert_eq!(net.egress(&data(GROUP)), None, "hosts may still answer");
    net.wait(SETTLE_S - 1);
    assert_eq!(net.egress(&data(GROUP)), None, "hosts may still answer");
    net.wait(1);
    assert_eq!(net.egress(&data(GROUP)), ports([A, B]));
    assert_eq!(net.egress(&data("239.9.9.9")), ports([A]), "only routers");
    assert_eq!(net.egress(&data(GROUP_6)), None, "nobody asks in IPv6");
    net.hear(C, &query_mld());
    net.hear(B, &join_mld(GROUP_6));
    net.wait(SETTLE_S);
    assert_eq!(net.egress(&data(GROUP_6)), ports([B, C]));
    net.wait(MEMBERSHIP_S);
    assert_eq!(net.egress(&data(GROUP)), None, "nobody asks any more");
    assert_eq!(net.egress(&data(GROUP_6)), None, "nobody asks any more");
    assert_eq!(net.snooping.vlans().count(), 0);
}

#[test]
fn every_version_says_it_in_its_way() {
    let record = |kind, sources: &[&str]| igmp_v3(&[(kind, GROUP, sources)]);
    let record_6 = |kind, sources: &[&str]| mld_v2(&[(kind, GROUP_6, sources)]);
    let (some, some_6) = (&["10.0.0.9"][..], &["2001:db8::9"][..]);
    for (name, frame, joined) in [
        ("IGMPv1", igmp("10.0.0.1", v4(GROUP), &single(0x12)), true),
        ("IGMPv2", join_v2(GROUP), true),
        ("IGMPv3: is to include some", record(1, some), true),
        ("IGMPv3: is to include nobody", record(1, &[]), false),
        ("IGMPv3: is to exclude nobody", record(2, &[]), true),
        ("IGMPv3: is to exclude some", record(2, some), true),
        ("IGMPv3: to include some", record(3, some), true),
        ("IGMPv3: to exclude nobody", record(4, &[]), true),
        ("IGMPv3: allows some", record(5, some), true),
        ("IGMPv3: blocks some", record(6, some), false),
        ("IGMPv3: something new", record(7, some), false),
        ("MLDv1", join_mld(GROUP_6), true),
        ("MLDv2: is to include some", record_6(1, some_6), true),
        ("MLDv2: is to exclude nobody", record_6(2, &[]), true),
        ("MLDv2: to include some", record_6(3, some_6), true),
        ("MLDv2: to exclude nobody", record_6(4, &[]), true),
        ("MLDv2: allows some", record_6(5, some_6), true),
        ("MLDv2: blocks some", record_6(6, some_6), false),
    ] {
        let mut net = Net::new(SnoopingConfig::default(), 0);
        net.hear(A, &frame);
        let groups: Vec<_> = net.snooping.groups(0).collect();
        assert_eq!(!groups.is_empty(), joined, "{name}");
        if let [group] = &groups[..] {
            assert!([ip(GROUP), ip(GROUP_6)].contains(&group.group), "{name}");
            assert_eq!(group.ports, [(A, MEMBERSHIP_S)], "{name}");
        }
    }
}

#[test]
fn a_report_may_have_many_records() {
    let mut net = Net::new(SnoopingConfig::default(), 0);
    let groups: Vec<String> = (0..100).map(|at| format!("239.0.1.{at}")).collect();
    let sources = ["10.0.0.9", "10.0.0.8"];
    let records: Vec<_> = groups
        .iter()
        .map(|group| (4, group.as_str(), &sources[..]))
        .collect();
    net.hear(A, &igmp_v3(&records));
    assert_eq!(net.snooping.groups(0).count(), 100);
    // Broken off in the middle: what is there counts.
    let mut message = vec![0x22, 0, 0, 0, 0, 0, 0, 9];
    message.extend([4, 0, 0, 0, 239, 0, 2, 1, 4, 0, 0, 9, 239, 0, 2, 2, 10, 0]);
    net.hear(A, &igmp("10.0.0.1", v4("224.0.0.22"), &message));
    assert_eq!(net.snooping.groups(0).count(), 101);
}

#[test]
fn link_local_groups_go_everywhere() {
    let mut net = Net::pruning();
    for group in [
        "224.0.0.1",
        "224.0.0.251",
        "ff02::1",
        "ff02::fb",
        "ff02::1:3",
        "ff02::1:ff12:3456",
        "ff02::db8:1234",
        "ff01::1",
    ] {
        assert_eq!(net.egress(&data(group)), None, "{group}");
        assert_ne!(net.egress(&data("239.1.1.1")), None);
        // Reported or not.
        match ip(group) {
            IpAddr::V4(_) => net.hear(B, &join_v2(group)),
            IpAddr::V6(_) => net.hear(B, &join_mld(group)),
        }
        assert_eq!(net.egress(&data(group)), None, "{group}, reported");
        let mac = MacAddr(*data(group).first_chunk().unwrap());
        assert_eq!(net.table().lookup(LAN, mac), None, "{group}, by address");
    }
    for (name, frame) in [
        (
            "no IP",
            ethernet([0x01, 0, 0x5e, 1, 2, 3], 0x88b5, &[0; 40]),
        ),
        (
            "STP",
            ethernet([0x01, 0x80, 0xc2, 0, 0, 0], 38, &[0x42; 40]),
        ),
        ("broadcast", ethernet([0xff; 6], 0x0800, &[0x45; 40])),
        (
            "PTP",
            ethernet([0x01, 0x1b, 0x19, 0, 0, 0], 0x88f7, &[0; 40]),
        ),
        ("a query", query_v2()),
        ("a query for a group", query_for(GROUP)),
        ("a router", pim_hello()),
    ] {
        assert_eq!(net.egress(&frame), None, "{name}");
    }
}

#[test]
fn groups_with_one_ethernet_address_share_their_ports() {
    let mut net = Net::pruning();
    net.hear(B, &join_v2("239.1.2.3"));
    net.hear(C, &join_v2("232.129.2.3"));
    assert_eq!(net.egress(&data("239.1.2.3")), ports([A, B, C]));
    assert_eq!(net.egress(&data("225.1.2.3")), ports([A, B, C]));
    // A link-local one among them makes it uncertain who wants what.
    net.hear(C, &join_mld("ff02::7777:1"));
    net.hear(B, &join_mld("ff0e::7777:1"));
    let mac = MacAddr([0x33, 0x33, 0x77, 0x77, 0, 1]);
    assert_eq!(net.table().lookup(LAN, mac), None);
}

#[test]
fn vlans_know_nothing_of_each_other() {
    let mut net = Net::pruning();
    let other = vid(7);
    let tag = [0x81, 0, 0, 7];
    assert_eq!(net.egress_in(other, &tagged(&data(GROUP), &tag)), None);
    net.hear_in(other, A, &tagged(&query_v2(), &tag));
    net.hear_in(other, C, &tagged(&join_v2(GROUP), &tag));
    net.hear(B, &join_v2(GROUP));
    net.wait(SETTLE_S);
    let seen = net.egress_in(other, &tagged(&data(GROUP), &tag));
    assert_eq!(seen, ports([A, C]));
    assert_eq!(net.egress(&data(GROUP)), ports([A, B]));
}

#[test]
fn reports_go_to_routers_and_in_a_mesh_to_every_peer() {
    for (mesh, expected) in [(true, ports([A, B, C])), (false, ports([A]))] {
        let mut net = Net::pruning_with(SnoopingConfig {
            ports: 4,
            mesh,
            ..SnoopingConfig::default()
        });
        for frame in [
            join_v2(GROUP),
            leave_v2(GROUP),
            igmp_v3(&[(4, GROUP, &[])]),
            join_mld(GROUP_6),
            join_mld("ff02::fb"),
            done_mld(GROUP_6),
            mld_v2(&[(4, GROUP_6, &[])]),
        ] {
            assert_eq!(inspect(&frame), Content::Membership);
            assert_eq!(net.egress(&frame), expected, "mesh {mesh}");
        }
    }
    let mut quiet = Net::new(SnoopingConfig::default(), 0);
    assert_eq!(quiet.egress(&join_v2(GROUP)), None, "nobody asks");
}

#[test]
fn routers_get_everything() {
    let mut net = Net::pruning_with(SnoopingConfig {
        router_ports: vec![TAP],
        ..SnoopingConfig::default()
    });
    assert_eq!(net.egress(&data(GROUP)), ports([TAP, A]));
    for (port, frame) in [
        (B, pim_hello()),
        (
            C,
            igmp("10.0.0.3", v4("224.0.0.106"), &[0x30, 20, 0, 0, 0, 0, 0, 0]),
        ),
    ] {
        assert_eq!(net.handle(port, &frame), Handled::Router);
        assert!(net.egress(&data(GROUP)).unwrap().contains(port));
    }
    // Whoever asks from the unspecified address is a switch that wants to hear reports as well.
    let mut net = Net::new(SnoopingConfig::default(), 0);
    net.hear(
        C,
        &igmp("0.0.0.0", v4("224.0.0.1"), &[0x11, 100, 0, 0, 0, 0, 0, 0]),
    );
    net.wait(SETTLE_S);
    assert_eq!(net.egress(&data(GROUP)), ports([C]));
}

#[test]
fn a_host_that_leaves_is_removed_when_no_other_answers() {
    let mut net = Net::pruning();
    for port in [B, C] {
        net.hear(port, &join_v2(GROUP));
        net.hear(port, &join_mld(GROUP_6));
    }
    net.hear(B, &leave_v2(GROUP));
    net.hear(B, &done_mld(GROUP_6));
    net.wait(10);
    assert_eq!(net.egress(&data(GROUP)), ports([A, B, C]), "not asked yet");

    net.hear(A, &query_for(GROUP));
    net.hear(A, &query_mld_for(GROUP_6));
    net.wait(2);
    assert_eq!(net.egress(&data(GROUP)), ports([A, B, C]), "may answer");
    net.hear(C, &join_v2(GROUP));
    net.hear(C, &join_mld(GROUP_6));
    net.wait(1);
    assert_eq!(net.egress(&data(GROUP)), ports([A, C]));
    assert_eq!(net.egress(&data(GROUP_6)), ports([A, C]));
}

#[test]
fn a_query_about_sources_or_for_routers_only_ends_nothing() {
    let about = |flags, sources: &[u8]| {
        let mut message = vec![0x11, 10, 0, 0];
        message.extend(v4(GROUP).octets());
        message.extend([flags, 125, 0, sources.len() as u8 / 4]);
        message.extend(sources);
        igmp("10.0.0.254", v4(GROUP), &message)
    };
    for (name, query, stays) in [
        ("of the group", about(2, &[]), false),
        ("of a source", about(2, &[10, 0, 0, 9]), true),
        ("with timers to be left alone", about(8 | 2, &[]), true),
    ] {
        let mut net = Net::pruning();
        net.hear(B, &join_v2(GROUP));
        net.hear(A, &query);
        net.wait(10);
        let members = ports([A])
            .into_iter()
            .chain(ports([A, B]))
            .nth(usize::from(stays));
        assert_eq!(net.egress(&data(GROUP)), members, "{name}");
    }
}

#[test]
fn a_slow_querier_does_not_lose_members_and_a_fast_one_gains_nothing() {
    let asks = |robustness: u8, interval: u8| {
        let message = [0x11, 100, 0, 0, 0, 0, 0, 0, robustness, interval, 0, 0];
        igmp("10.0.0.254", v4("224.0.0.1"), &message)
    };
    for (name, query, stays_s) in [
        ("each second", asks(1, 1), MEMBERSHIP_S),
        ("as usual", asks(2, 125), MEMBERSHIP_S),
        ("every 1,024 seconds", asks(2, 0xb0), 2058),
        ("hardly ever", asks(7, 255), 4 * 3600),
    ] {
        let mut net = Net::new(SnoopingConfig::default(), 0);
        net.hear(A, &query);
        net.hear(B, &join_v2(GROUP));
        let left: Vec<_> = net
            .snooping
            .groups(0)
            .flat_map(|group| group.ports)
            .collect();
        assert_eq!(left, [(B, stays_s)], "{name}");
    }
}

#[test]
fn queries_where_no_other_querier_does() {
    let mut net = Net::new(querier(&[LAN, vid(7)]), 1000);
    let mut asked = Vec::new();
    for now_s in 1000..1300 {
        let frames = net.snooping.poll(now_s);
        net.now_s = now_s;
        asked.extend((!frames.is_empty()).then_some((now_s, frames.len())));
    }
    let expected = [1000, 1002, 1033, 1158, 1283].map(|at_s| (at_s, 4));
    assert_eq!(asked, expected);
    // Its own question is enough to prune.
    assert_eq!(net.egress(&data(GROUP)), Some(PortSet::default()));
}

#[test]
fn asks_in_the_vlans_that_have_stations() {
    let mut net = Net::new(querier(&[LAN]), u32::MAX - 20);
    let ten = vid(10);
    let watch = |net: &mut Net, stations: &[(Vid, PortId)]| {
        let stations = stations.iter().copied().collect();
        net.snooping.watch(&stations, net.now_s);
        let frames = net.snooping.poll(net.now_s);
        let vids: Vec<_> = frames.iter().map(|query| query.vid).collect();
        assert!(frames.iter().all(|query| tag_of(&query.frame) == query.vid));
        vids
    };
    assert_eq!(watch(&mut net, &[(ten, B)]), [LAN, LAN, ten, ten]);
    for second in 1..SETTLE_S {
        net.now_s = net.now_s.wrapping_add(1);
        let asked = watch(&mut net, &[(ten, B)]);
        assert_eq!(asked.len(), if second == 2 { 4 } else { 0 }, "{second} s");
    }
    net.hear_in(ten, B, &join_v2(GROUP));
    assert_eq!(net.egress_in(ten, &data(GROUP)), None, "not yet");
    net.wait(1);
    assert_eq!(net.egress_in(ten, &data(GROUP)), ports([B]));
    assert_eq!(net.egress_in(vid(11), &data(GROUP)), None, "nobody there");

    // Stations that are silent for a while are asked on; memberships last as long.
    for at_s in 1..MEMBERSHIP_S - 1 {
        net.now_s = net.now_s.wrapping_add(1);
        let asked = watch(&mut net, &[]);
        let is_due = [19, 144].contains(&at_s);
        assert_eq!(asked.contains(&ten), is_due, "{at_s} s");
        net.hear_in(ten, B, &join_v2(GROUP));
        assert_eq!(net.egress_in(ten, &data(GROUP)), ports([B]));
    }
    for _ in 0..300 {
        net.now_s = net.now_s.wrapping_add(1);
        assert!(!watch(&mut net, &[]).contains(&ten));
    }
    assert_eq!(net.egress_in(ten, &data(GROUP)), None, "nobody asks there");
    assert_eq!(net.egress(&data(GROUP)), Some(PortSet::default()));
}

#[test]
fn the_querier_is_elected_in_each_vlan() {
    let query = |of: &str| igmp(of, v4("224.0.0.1"), &[0x11, 100, 0, 0, 0, 0, 0, 0]);
    let stations = [(vid(10), A), (vid(11), A), (vid(12), A)].into();
    for heard_before in [true, false] {
        let mut net = Net::new(querier(&[LAN]), 0);
        if !heard_before {
            net.snooping.watch(&stations, 0);
        }
        // Ours is 10.0.0.99.
        net.hear_in(vid(10), A, &query("10.0.0.98"));
        net.hear_in(vid(11), A, &query("10.0.0.100"));
        net.snooping.watch(&stations, 0);
        let asked = net.snooping.poll(0);
        let asked = asked.iter().filter(|query| query.frame[0] == 1);
        let asked: Vec<_> = asked.map(|query| query.vid).collect();
        assert_eq!(
            asked,
            [LAN, vid(11), vid(12)],
            "heard before {heard_before}"
        );
    }
}

#[test]
fn many_vlans_are_asked_by_turns_and_forged_ones_keep_no_others_out() {
    let mut net = Net::new(querier(&[LAN]), 0);
    let forged = |port| (1..4095).map(move |number| (vid(number), port));
    let mut stations: BTreeSet<_> = forged(A).collect();
    let mut asked = BTreeMap::<_, u32>::new();
    for now_s in 0..125 {
        if now_s == 60 {
            // Two of them are those of others as well.
            stations.extend([(vid(4000), B), (vid(4001), TAP)]);
        }
        net.snooping.watch(&stations, now_s);
        let frames = net.snooping.poll(now_s);
        let again = net.snooping.poll(now_s);
        assert!(frames.len() + again.len() <= 32, "{now_s} s");
        for query in frames.iter().chain(&again) {
            *asked.entry((query.vid, query.frame[0])).or_default() += 1;
        }
    }
    // 128, the two, and the one that is given.
    assert_eq!(asked.len(), 2 * (128 + 2 + 1));
    assert!(asked.contains_key(&(vid(4000), 1)) && asked.contains_key(&(vid(4001), 0x33)));
    assert!(asked.values().all(|&times| times >= 2), "{asked:?}");

    // From every port at once there are no more than 512, and the first ones stay.
    stations.extend(forged(B).chain(forged(C)).chain(forged(TAP)));
    net.snooping.watch(&stations, 125);
    let own = net.snooping.vlans().count();
    assert_eq!(own, 2 * (512 + 1));

    // Ports that come and go all the time do not keep the last of them from being asked.
    asked.clear();
    for now_s in 126..126 + 100 {
        net.snooping.port_up(B, now_s);
        for query in net.snooping.poll(now_s) {
            *asked.entry((query.vid, query.frame[0])).or_default() += 1;
        }
    }
    assert_eq!(asked.len(), own);
}

#[test]
fn a_port_that_comes_up_gets_everything_until_it_was_asked() {
    for (name, config) in [
        ("asks", querier(&[LAN])),
        ("hears who asks", SnoopingConfig::default()),
    ] {
        let asks = config.querier.is_some();
        let mut net = Net::new(config, 0);
        let ask = |net: &mut Net| match asks {
            true => assert!(!net.snooping.poll(net.now_s).is_empty(), "{name}: at once"),
            false => net.hear(A, &query_v2()),
        };
        let routers: &[PortId] = if asks { &[] } else { &[A] };
        let with = |others: &[PortId]| -> Option<PortSet> {
            Some(routers.iter().chain(others).copied().collect())
        };
        ask(&mut net);
        net.wait(SETTLE_S);
        net.hear(B, &join_v2(GROUP));
        assert_eq!(net.egress(&data(GROUP)), with(&[B]), "{name}");

        net.snooping.flush_port(B);
        assert_eq!(net.egress(&data(GROUP)), with(&[]), "{name}: down");
        net.snooping.port_up(B, net.now_s);
        assert_eq!(net.egress(&data(GROUP)), with(&[B]), "{name}: up");
        if !asks {
            net.wait(60);
            assert_eq!(net.egress(&data(GROUP)), with(&[B]), "{name}: not asked");
        }
        ask(&mut net);
        net.wait(SETTLE_S - 1);
        assert_eq!(net.egress(&data("239.9.9.9")), with(&[B]), "{name}");
        net.hear(B, &join_v2(GROUP));
        net.wait(1);
        assert_eq!(net.egress(&data("239.9.9.9")), with(&[]), "{name}: settled");
        assert_eq!(net.egress(&data(GROUP)), with(&[B]), "{name}: and known");
    }
}

#[test]
fn its_queries_are_what_others_understand() {
    let mut net = Net::new(querier(&[LAN, vid(7)]), 0);
    let frames = net.snooping.poll(0);
    let expected = [
        (LAN, "01005e000001", "0800", 60),
        (LAN, "333300000001", "86dd", 90),
        (vid(7), "01005e000001", "810000070800", 60),
        (vid(7), "333300000001", "8100000786dd", 94),
    ];
    for (QueryFrame { vid, frame }, (in_vlan, dst, behind, len)) in frames.iter().zip(expected) {
        let hex: String = frame.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!((*vid, frame.len()), (in_vlan, len));
        assert!(
            hex.starts_with(&format!("{dst}020000000099{behind}")),
            "{hex}"
        );
        assert_eq!(inspect(frame), Content::Membership);

        let mut hears = Net::new(SnoopingConfig::default(), 0);
        assert_eq!(hears.handle_in(*vid, A, frame), Handled::Query);
        let entry = hears.snooping.vlans().next().unwrap();
        let asker = match entry.family {
            Family::V4 => ip("10.0.0.99"),
            Family::V6 => ip("fe80::99"),
        };
        assert_eq!((entry.vid, entry.querier), (*vid, Some(asker)));
    }
    // Byte for byte, RFC 3376 section 4.1: 10 s, robustness 2, every 125 s, no sources.
    let message = [0x11, 100, 0, 0, 0, 0, 0, 0, 2, 125, 0, 0];
    let message = support::with_checksum(&message, 0);
    let packet = ipv4(v4("10.0.0.99"), v4("224.0.0.1"), 2, &message);
    assert_eq!(frames[0].frame[14..20], packet[..6]);
    assert_eq!(frames[0].frame[26..50], packet[12..36]);
}

#[test]
fn the_lower_address_asks() {
    for (name, other, gives_way) in [
        ("lower", "10.0.0.98", true),
        ("higher", "10.0.0.100", false),
        ("none", "0.0.0.0", false),
    ] {
        let mut net = Net::new(querier(&[LAN]), 0);
        net.snooping.poll(0);
        let query = igmp(other, v4("224.0.0.1"), &[0x11, 100, 0, 0, 0, 0, 0, 0]);
        net.hear(A, &query);
        let asked = (1..MEMBERSHIP_S).map(|now_s| net.snooping.poll(now_s));
        let igmp_asked = asked
            .flatten()
            .filter(|query| query.frame[12] == 0x08)
            .count();
        assert_eq!(igmp_asked == 0, gives_way, "{name}");
        let again = net.snooping.poll(MEMBERSHIP_S);
        let asks_again = again.iter().any(|query| query.frame[12] == 0x08);
        assert_eq!(asks_again, gives_way, "{name} is gone");
    }
}

#[test]
fn a_forged_querier_does_not_have_members_removed() {
    // Of the lowest address, and as if it asked every four hours.
    let slow = |group: &str, to: &str| {
        let message = [&[0x11, 100, 0, 0], &v4(group).octets()[..], &[7, 255, 0, 0]].concat();
        igmp("10.0.0.1", v4(to), &message)
    };
    for (name, query, lost_s) in [
        // Those who do not hear him report when they are asked again.
        ("asks all", slow("0.0.0.0", "224.0.0.1"), MEMBERSHIP_S - 125),
        ("asks for a group", slow("239.9.9.9", "239.9.9.9"), 0),
    ] {
        let mut net = Net::new(querier(&[LAN]), 0);
        let mut lost = 0;
        for now_s in 0..3000 {
            net.now_s = now_s;
            let asked = net.snooping.poll(now_s);
            if asked.iter().any(|query| query.frame[12] == 0x08) {
                net.hear(B, &join_v2(GROUP));
            }
            if now_s == 40 {
                net.hear(A, &query);
            }
            let egress = net.egress(&data(GROUP));
            lost += u32::from(egress.is_some_and(|ports| !ports.contains(B)));
        }
        assert!(lost <= lost_s, "{name}: for {lost} s");
    }
}

#[test]
fn a_former_querier_does_not_silence_it_for_longer() {
    let mut net = Net::new(querier(&[LAN]), 0);
    let slow = [0x11, 100, 0, 0, 0, 0, 0, 0, 7, 255, 0, 0];
    net.hear_in(vid(7), A, &igmp("10.0.0.1", v4("224.0.0.1"), &slow));
    let asks = |net: &mut Net, now_s: u32| {
        net.snooping.watch(&[(vid(7), A)].into(), now_s);
        let frames = net.snooping.poll(now_s);
        let igmp = |query: &QueryFrame| query.vid == vid(7) && query.frame[16] == 0x08;
        frames.iter().any(igmp)
    };
    let first = (1..5000).find(|&now_s| asks(&mut net, now_s));
    assert_eq!(first, Some(1 + MEMBERSHIP_S));
}

#[test]
fn the_querier_queries_once_more_when_a_host_leaves() {
    let mut net = Net::new(querier(&[LAN]), 0);
    net.wait(50);
    net.hear(B, &join_v2(GROUP));
    net.hear(C, &join_v2(GROUP));
    net.hear(B, &leave_v2(GROUP));
    net.hear(B, &leave_v2("239.9.9.9")); // he was not there
    let mut asked = Vec::new();
    for now_s in 50..60 {
        for query in net.snooping.poll(now_s) {
            assert_eq!(query.frame[..6], [0x01, 0, 0x5e, 1, 2, 3]);
            // For the group, to be answered within a second.
            assert_eq!(query.frame[38..40], [0x11, 10]);
            assert_eq!(query.frame[42..46], v4(GROUP).octets());
            asked.push(now_s);
        }
    }
    assert_eq!(asked, [50, 51]);
    net.now_s = 59;
    // C was not the one who left.
    assert_eq!(net.egress(&data(GROUP)), ports([C]));
}

#[test]
fn a_port_that_wants_too_much_gets_everything_and_others_do_not() {
    let mut net = Net::pruning_with(SnoopingConfig {
        max_groups_per_port: 100,
        ..SnoopingConfig::default()
    });
    net.hear(C, &join_v2(GROUP));
    for name in 0..1_000_000_u32 {
        let group = Ipv4Addr::from(0xe800_0000 + name);
        net.hear(B, &join_v2(&group.to_string()));
    }
    assert_eq!(net.snooping.groups(0).count(), 101);
    assert_eq!(net.snooping.counters().overflowed, 999_900);
    assert_eq!(net.egress(&data("239.200.0.1")), ports([A, B]));
    assert_eq!(net.egress(&data(GROUP)), ports([A, B, C]));
    let overflowed: Vec<_> = net.snooping.vlans().map(|vlan| vlan.overflowed).collect();
    assert!(overflowed.contains(&ports([B]).unwrap()));

    // All of it passes.
    net.wait(100);
    net.hear(A, &query_v2());
    net.wait(MEMBERSHIP_S - 100);
    assert_eq!(net.snooping.groups(0).count(), 0);
    assert_eq!(net.egress(&data("239.200.0.1")), ports([A]));
    net.hear(B, &join_v2(GROUP));
    assert_eq!(net.snooping.groups(0).count(), 1);
}

#[test]
fn all_members_together_have_a_bound() {
    let mut net = Net::pruning_with(SnoopingConfig {
        max_members: 50,
        ..SnoopingConfig::default()
    });
    for name in 0..60 {
        net.hear(PortId(10 + name), &join_v2(GROUP));
    }
    let group = net.snooping.groups(0).next().unwrap();
    assert_eq!(group.ports.len(), 50);
    let wanted = net.egress(&data(GROUP)).unwrap();
    assert!((10..70).all(|port| wanted.contains(PortId(port))));
}

#[test]
fn a_vlan_with_routers_everywhere_is_flooded() {
    let mut net = Net::pruning();
    for port in 1..=64 {
        net.hear(PortId(port), &query_v2());
    }
    assert!(net.egress(&data(GROUP)).is_some());
    net.hear(PortId(65), &query_v2());
    assert_eq!(net.egress(&data(GROUP)), None);
    net.wait(MEMBERSHIP_S - 1);
    net.hear(A, &query_v2());
    net.wait(1);
    assert_eq!(net.egress(&data(GROUP)), ports([A]));
}

#[test]
fn a_port_that_is_gone_wants_nothing() {
    let mut net = Net::pruning();
    net.hear(B, &join_v2(GROUP));
    net.hear(C, &join_v2(GROUP));
    net.snooping.flush_port(B);
    assert_eq!(net.egress(&data(GROUP)), ports([A, C]));
    net.snooping.flush_port(A);
    assert_eq!(net.egress(&data(GROUP)), ports([C]));
}

#[test]
fn a_query_that_no_host_receives_does_not_count() {
    let to = |mac: [u8; 6], mut query: Vec<u8>| {
        query[..6].copy_from_slice(&mac);
        query
    };
    let (group, group_6) = (v4(GROUP).octets(), single_6(130, GROUP_6));
    let about = [&[0x11, 10, 0, 0], &group[..]].concat();
    let other = [0x01, 0, 0x5e, 9, 9, 9];
    let other_6 = [0x33, 0x33, 0, 9, 0, 9];
    for (name, query) in [
        ("to a station", to([2, 0, 0, 0, 0, 9], query_for(GROUP))),
        ("to the members of another", to(other, query_for(GROUP))),
        ("likewise", to(other_6, query_mld_for(GROUP_6))),
        ("in another family", to(other_6, query_for(GROUP))),
        (
            "IP says another",
            igmp("10.0.0.254", v4("239.9.9.9"), &about),
        ),
        ("likewise", mld("fe80::254", v6("ff05::9:9"), &group_6)),
        ("all are asked by another group", to(other, query_v2())),
        ("likewise", to(other_6, query_mld())),
        (
            "IP says a group",
            mld("fe80::254", v6(GROUP_6), &single_6(130, "::")),
        ),
    ] {
        let mut net = Net::pruning();
        net.hear(B, &join_v2(GROUP));
        net.hear(B, &join_mld(GROUP_6));
        assert_eq!(net.handle(C, &query), Handled::Ignored, "{name}");
        net.wait(30);
        assert_eq!(net.egress(&data(GROUP)), ports([A, B]), "{name}");
        assert_eq!(net.egress(&data(GROUP_6)), ports([A, B]), "{name}");
    }
    // An access point may make a broadcast of it: all members hear that, too.
    let mut net = Net::pruning();
    net.hear(B, &join_v2(GROUP));
    net.hear(A, &to([0xff; 6], query_for(GROUP)));
    net.wait(3);
    assert_eq!(net.egress(&data(GROUP)), ports([A]));
}

#[test]
fn the_table_is_made_when_something_has_changed() {
    let mut net = Net::pruning();
    net.snooping.take_changed();
    for (name, port, frame, changes) in [
        ("new", B, join_v2(GROUP), true),
        ("the same", B, join_v2(GROUP), false),
        ("another port", C, join_v2(GROUP), true),
        ("a leave, not asked about", C, leave_v2(GROUP), false),
        ("the same router", A, query_v2(), false),
        ("another router", B, query_v2(), true),
        ("nothing", B, data(GROUP), false),
    ] {
        net.hear(port, &frame);
        assert_eq!(net.snooping.take_changed(), changes, "{name}");
    }
}

#[test]
fn broken_messages_say_nothing() {
    for frame in messages() {
        let mut net = Net::new(SnoopingConfig::default(), 0);
        // The last bytes are padding in some: the packets say how long they are.
        let len = 14 + packet_len(&frame);
        assert_ne!(net.handle(A, &frame[..len]), Handled::Ignored);
        for cut in 0..len {
            let mut net = Net::new(SnoopingConfig::default(), 0);
            assert_eq!(
                net.handle(A, &frame[..cut]),
                Handled::Ignored,
                "{cut} bytes"
            );
        }
        // Every bit is under some checksum, or else does not matter.
        let mut accepted = Vec::new();
        for bit in 14 * 8..len * 8 {
            let mut altered = frame[..len].to_vec();
            altered[bit / 8] ^= 1 << (bit % 8);
            let mut net = Net::new(SnoopingConfig::default(), 0);
            if net.handle(A, &altered) != Handled::Ignored {
                accepted.push(bit / 8);
            }
        }
        // Traffic class and flow label, payload length of IPv6; hop-by-hop option padding.
        let is_ipv6 = frame[12] == 0x86;
        let may = |at: &usize| is_ipv6 && [14, 15, 16, 17, 18, 19, 58, 59, 60, 61].contains(at);
        assert!(accepted.iter().all(may), "{accepted:?} of {frame:02x?}");
    }
}

#[test]
fn messages_from_afar_say_nothing() {
    let report = single_6(131, GROUP_6);
    let from = |src: &str, hops: u8, alert: bool| {
        let (src, dst) = (v6(src), v6(GROUP_6));
        let pseudo = support::pseudo_header(src, dst, 58, report.len());
        let message = support::with_checksum(&report, pseudo);
        let options: &[u8] = if alert {
            &[58, 0, 5, 2, 0, 0, 1, 0]
        } else {
            &[58, 0, 1, 4, 0, 0, 0, 0]
        };
        let packet = ipv6(src, dst, 0, hops, &[options, &message].concat());
        ethernet([0x33, 0x33, 0, 2, 0, 3], 0x86dd, &packet)
    };
    for (name, frame, expected) in [
        ("a neighbour", from("fe80::1", 1, true), Handled::Report),
        ("a newcomer", from("::", 1, true), Handled::Report),
        (
            "a far address",
            from("2001:db8::1", 1, true),
            Handled::Ignored,
        ),
        ("a far hop", from("fe80::1", 64, true), Handled::Ignored),
        ("no alert", from("fe80::1", 1, false), Handled::Ignored),
        (
            "a query to one station",
            igmp("10.0.0.1", v4("10.0.0.2"), &[0x11, 100, 0, 0, 0, 0, 0, 0]),
            Handled::Ignored,
        ),
        (
            "a general query to a group",
            igmp("10.0.0.1", v4(GROUP), &[0x11, 100, 0, 0, 0, 0, 0, 0]),
            Handled::Ignored,
        ),
        (
            "a query of no version",
            igmp(
                "10.0.0.1",
                v4("224.0.0.1"),
                &[0x11, 100, 0, 0, 0, 0, 0, 0, 2, 125],
            ),
            Handled::Ignored,
        ),
    ] {
        let mut net = Net::new(SnoopingConfig::default(), 0);
        assert_eq!(net.handle(A, &frame), expected, "{name}");
    }
    // Nobody is in a group that is none.
    let mut net = Net::new(SnoopingConfig::default(), 0);
    for group in ["0.0.0.0", "10.0.0.1", "224.0.0.1"] {
        let mut message = vec![0x16, 0, 0, 0];
        message.extend(v4(group).octets());
        net.hear(A, &igmp("10.0.0.1", v4("224.0.0.2"), &message));
    }
    assert_eq!(net.snooping.groups(0).count(), 0);
}

/// Snooping, and the time.
struct Net {
    snooping: Snooping,
    now_s: u32,
}

impl Net {
    fn new(config: SnoopingConfig, now_s: u32) -> Self {
        Self {
            snooping: Snooping::new(config, now_s),
            now_s,
        }
    }

    /// With routers on port A, which ask in both families, and settled.
    fn pruning() -> Self {
        Self::pruning_with(SnoopingConfig::default())
    }

    fn pruning_with(config: SnoopingConfig) -> Self {
        let mut net = Self::new(config, u32::MAX - 5);
        net.hear(A, &query_v2());
        net.hear(A, &query_mld());
        net.wait(SETTLE_S);
        net
    }

    fn hear(&mut self, port: PortId, frame: &[u8]) {
        self.hear_in(LAN, port, frame);
    }

    fn hear_in(&mut self, vid: Vid, port: PortId, frame: &[u8]) {
        self.handle_in(vid, port, frame);
    }

    fn handle(&mut self, port: PortId, frame: &[u8]) -> Handled {
        self.handle_in(LAN, port, frame)
    }

    fn handle_in(&mut self, vid: Vid, port: PortId, frame: &[u8]) -> Handled {
        let Ok(headers) = Headers::parse(frame) else {
            return Handled::Ignored;
        };
        self.snooping.handle(port, vid, &headers, self.now_s)
    }

    fn wait(&mut self, seconds: u32) {
        for _ in 0..seconds {
            self.now_s = self.now_s.wrapping_add(1);
            self.snooping.poll(self.now_s);
        }
    }

    fn egress(&mut self, frame: &[u8]) -> Option<PortSet> {
        self.egress_in(LAN, frame)
    }

    fn egress_in(&mut self, vid: Vid, frame: &[u8]) -> Option<PortSet> {
        let table = self.table();
        let headers = Headers::parse(frame).ok();
        let egress = headers.and_then(|headers| table.egress(vid, &headers));
        if inspect(frame) == Content::Other && egress.is_some() {
            // By the address alone it is the same, but for link-local groups.
            let mac = MacAddr(*frame.first_chunk().expect("an address"));
            assert_eq!(table.lookup(vid, mac), egress);
        }
        egress.cloned()
    }

    fn table(&self) -> GroupTable {
        self.snooping.table()
    }
}

/// The VLAN that a frame says it is in.
fn tag_of(frame: &[u8]) -> Vid {
    match frame[12..16] {
        [0x81, 0, high, low] => vid(u16::from_be_bytes([high, low])),
        _ => LAN,
    }
}

fn querier(vlans: &[Vid]) -> SnoopingConfig {
    SnoopingConfig {
        querier: Some(Querier {
            mac: MacAddr([2, 0, 0, 0, 0, 0x99]),
            ipv4: v4("10.0.0.99"),
            ipv6: v6("fe80::99"),
            vlans: vlans.to_vec(),
            interval_s: 125,
        }),
        ..SnoopingConfig::default()
    }
}

fn messages() -> Vec<Vec<u8>> {
    vec![
        query_v2(),
        query_for(GROUP),
        join_v2(GROUP),
        leave_v2(GROUP),
        igmp_v3(&[(4, GROUP, &[]), (1, "239.4.5.6", &["10.0.0.9"])]),
        pim_hello(),
        query_mld(),
        query_mld_for(GROUP_6),
        join_mld(GROUP_6),
        done_mld(GROUP_6),
        mld_v2(&[(4, GROUP_6, &[]), (1, "ff05::9", &["2001:db8::1"])]),
    ]
}

fn packet_len(frame: &[u8]) -> usize {
    let at = |at| usize::from(u16::from_be_bytes([frame[at], frame[at + 1]]));
    match frame[12] {
        0x08 => at(16),
        _ => 40 + at(18),
    }
}

/// Something that is sent to a group.
fn data(group: &str) -> Vec<u8> {
    match ip(group) {
        IpAddr::V4(dst) => {
            let [_, b, c, d] = dst.octets();
            let packet = ipv4(v4("10.0.0.1"), dst, 17, &[0; 40]);
            ethernet([0x01, 0, 0x5e, b & 0x7f, c, d], 0x0800, &packet)
        }
        IpAddr::V6(dst) => {
            let [.., a, b, c, d] = dst.octets();
            let packet = ipv6(v6("2001:db8::1"), dst, 17, 8, &[0; 40]);
            ethernet([0x33, 0x33, a, b, c, d], 0x86dd, &packet)
        }
    }
}

fn query_v2() -> Vec<u8> {
    igmp(
        "10.0.0.254",
        v4("224.0.0.1"),
        &[0x11, 100, 0, 0, 0, 0, 0, 0],
    )
}

/// From a querier, when someone has left: version 2.
fn query_for(group: &str) -> Vec<u8> {
    let message = [&[0x11, 10, 0, 0], &v4(group).octets()[..]].concat();
    igmp("10.0.0.254", v4(group), &message)
}

fn single(kind: u8) -> Vec<u8> {
    [&[kind, 0, 0, 0], &v4(GROUP).octets()[..]].concat()
}

fn join_v2(group: &str) -> Vec<u8> {
    let message = [&[0x16, 0, 0, 0], &v4(group).octets()[..]].concat();
    igmp("10.0.0.1", v4(group), &message)
}

fn leave_v2(group: &str) -> Vec<u8> {
    let message = [&[0x17, 0, 0, 0], &v4(group).octets()[..]].concat();
    igmp("10.0.0.1", v4("224.0.0.2"), &message)
}

fn igmp_v3(records: &[(u8, &str, &[&str])]) -> Vec<u8> {
    let mut message = vec![0x22, 0, 0, 0, 0, 0, 0, records.len() as u8];
    for (kind, group, sources) in records {
        message.extend([*kind, 0, 0, sources.len() as u8]);
        message.extend(v4(group).octets());
        message.extend(sources.iter().flat_map(|source| v4(source).octets()));
    }
    igmp("10.0.0.1", v4("224.0.0.22"), &message)
}

fn pim_hello() -> Vec<u8> {
    let message = support::with_checksum(&[0x20, 0, 0, 0, 0, 1, 0, 2, 0, 105], 0);
    let packet = ipv4(v4("10.0.0.3"), v4("224.0.0.13"), 103, &message);
    ethernet([0x01, 0, 0x5e, 0, 0, 13], 0x0800, &packet)
}

fn single_6(kind: u8, group: &str) -> Vec<u8> {
    [&[kind, 0, 0, 0, 0, 0, 0, 0], &v6(group).octets()[..]].concat()
}

fn query_mld() -> Vec<u8> {
    let mut message = single_6(130, "::");
    message[4..6].copy_from_slice(&10_000_u16.to_be_bytes());
    mld("fe80::254", v6("ff02::1"), &message)
}

fn query_mld_for(group: &str) -> Vec<u8> {
    let mut message = single_6(130, group);
    message[4..6].copy_from_slice(&1000_u16.to_be_bytes());
    message.extend([2, 125, 0, 0]);
    mld("fe80::254", v6(group), &message)
}

fn join_mld(group: &str) -> Vec<u8> {
    mld("fe80::1", v6(group), &single_6(131, group))
}

fn done_mld(group: &str) -> Vec<u8> {
    mld("fe80::1", v6("ff02::2"), &single_6(132, group))
}

fn mld_v2(records: &[(u8, &str, &[&str])]) -> Vec<u8> {
    let mut message = vec![143, 0, 0, 0, 0, 0, 0, records.len() as u8];
    for (kind, group, sources) in records {
        message.extend([*kind, 0, 0, sources.len() as u8]);
        message.extend(v6(group).octets());
        message.extend(sources.iter().flat_map(|source| v6(source).octets()));
    }
    mld("fe80::1", v6("ff02::16"), &message)
}

fn ports<const N: usize>(ports: [PortId; N]) -> Option<PortSet> {
    Some(ports.into_iter().collect())
}

fn vid(value: u16) -> Vid {
    Vid::new(value).expect("12 bits")
}
