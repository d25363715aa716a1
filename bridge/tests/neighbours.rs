// SPDX-License-Identifier: MIT OR Apache-2.0
//! Who has which address: learned from what stations say, and answered in their name.

mod support;

use std::net::Ipv6Addr;

use patchcord_bridge::inspect::{Content, inspect};
use patchcord_bridge::neighbours::{Learned, Neighbours, NeighboursConfig};
use patchcord_bridge::{Headers, MacAddr, PortId, Vid};
use proptest::prelude::*;
use support::{fold, headers, ip, ipv6, pseudo_header, sum, tagged, v4, v6, with_checksum};

const TAP: PortId = PortId::TAP;
const A: PortId = PortId(1);
const B: PortId = PortId(2);
const LAN: Vid = Vid::UNTAGGED;

const ALICE: [u8; 6] = [2, 0, 0, 0, 0, 0xa1];
const BOB: [u8; 6] = [2, 0, 0, 0, 0, 0xb0];
const EVE: [u8; 6] = [2, 0, 0, 0, 0, 0xee];
const NOBODY: [u8; 6] = [0; 6];
const EVERYONE: [u8; 6] = [0xff; 6];

const ALICE_V4: &str = "10.0.0.161";
const BOB_V4: &str = "10.0.0.176";
const ALICE_V6: &str = "fe80::a1";
const BOB_V6: &str = "2001:db8::b0";

#[test]
fn answers_for_a_station_beyond_the_tunnel() {
    let mut net = knows_bob();
    let question = arp_request(ALICE, ALICE_V4, BOB_V4);
    let answer = net.answer(TAP, LAN, &headers(&question), 1).unwrap();
    let mut expected = [&ALICE[..], &BOB, &[8, 6, 0, 1, 8, 0, 6, 4, 0, 2]].concat();
    expected.extend(
        [
            &BOB[..],
            &v4(BOB_V4).octets(),
            &ALICE,
            &v4(ALICE_V4).octets(),
        ]
        .concat(),
    );
    expected.resize(60, 0);
    assert_eq!(answer, expected);

    let question = solicitation(ALICE, ALICE_V6, BOB_V6);
    let answer = net.answer(TAP, LAN, &headers(&question), 1).unwrap();
    let mut expected = [
        &ALICE[..],
        &BOB,
        &[0x86, 0xdd, 0x60, 0, 0, 0, 0, 32, 58, 255],
    ]
    .concat();
    expected.extend([v6(BOB_V6).octets(), v6(ALICE_V6).octets()].concat());
    expected.extend([136, 0, answer[56], answer[57], 0x60, 0, 0, 0]);
    expected.extend(v6(BOB_V6).octets());
    expected.extend([2, 1]);
    expected.extend(BOB);
    assert_eq!(answer, expected);
    let pseudo = pseudo_header(v6(BOB_V6), v6(ALICE_V6), 58, 32);
    assert_eq!(fold(pseudo + sum(&answer[54..])), 0xffff);
    assert_eq!(net.counters().answered, 2);
}

#[test]
fn a_router_stays_a_router() {
    for (flags, expected) in [(0xa0, 0xe0), (0x20, 0x60), (0xe0, 0xe0)] {
        let mut net = Neighbours::new(NeighboursConfig::default());
        let claim = advertisement_with(BOB, BOB_V6, ALICE_V6, flags, &own(2, BOB));
        net.learn(A, LAN, &headers(&claim), 0);
        let question = solicitation(ALICE, ALICE_V6, BOB_V6);
        let answer = net.answer(TAP, LAN, &headers(&question), 1).unwrap();
        assert_eq!(answer[58], expected, "{flags:#x}");
    }
}

#[test]
fn the_answer_is_tagged_like_the_question() {
    for tags in [
        &[0x81, 0, 0, 7][..],
        &[0x81, 0, 0xf0, 7],
        &[0x81, 0, 0xe0, 0],
        &[0x88, 0xa8, 0, 9, 0x81, 0, 0, 7],
    ] {
        let vid = Vid::new(7).unwrap();
        let mut net = Neighbours::new(NeighboursConfig::default());
        net.learn(A, vid, &headers(&tagged(&arp_reply(BOB, BOB_V4), tags)), 0);
        net.learn(
            A,
            vid,
            &headers(&tagged(&advertisement(BOB, BOB_V6), tags)),
            0,
        );
        for (question, content) in [
            (arp_request(ALICE, ALICE_V4, BOB_V4), Content::ArpReply),
            (
                solicitation(ALICE, ALICE_V6, BOB_V6),
                Content::NeighbourAdvertisement,
            ),
        ] {
            let question = tagged(&question, tags);
            let answer = net.answer(TAP, vid, &headers(&question), 0).unwrap();
            assert_eq!(answer[12..12 + tags.len()], *tags);
            assert_eq!(inspect(&answer), content);
        }
    }
}

#[test]
fn leaves_to_others_what_it_is_not_sure_of() {
    let asks = arp_request(ALICE, ALICE_V4, BOB_V4);
    let asks_6 = solicitation(ALICE, ALICE_V6, BOB_V6);
    let to = |dst: [u8; 6], frame: &[u8]| [&dst[..], &frame[6..]].concat();
    for (name, port, frame, now_s) in [
        ("where Bob hears it", A, asks.clone(), 1),
        ("where Bob hears it", A, asks_6.clone(), 1),
        ("a peer that can ask there", B, asks.clone(), 1),
        ("a peer that can ask there", B, asks_6.clone(), 1),
        ("too late", TAP, asks.clone(), 300),
        ("too late", TAP, asks_6.clone(), 300),
        ("unknown", TAP, arp_request(ALICE, ALICE_V4, "10.0.0.9"), 1),
        ("unknown", TAP, solicitation(ALICE, ALICE_V6, "fe80::9"), 1),
        ("to Bob alone", TAP, to(BOB, &asks), 1),
        ("to Bob alone", TAP, to(BOB, &asks_6), 1),
        (
            "from Bob himself",
            TAP,
            arp_request(BOB, ALICE_V4, BOB_V4),
            1,
        ),
        (
            "from Bob himself",
            TAP,
            solicitation(BOB, ALICE_V6, BOB_V6),
            1,
        ),
        ("a probe", TAP, arp_request(ALICE, "0.0.0.0", BOB_V4), 1),
        (
            "a probe",
            TAP,
            solicitation_with(ALICE, "::", BOB_V6, &[]),
            1,
        ),
        (
            "a probe with an address",
            TAP,
            solicitation(ALICE, "::", BOB_V6),
            1,
        ),
        ("an announcement", TAP, arp_request(EVE, BOB_V4, BOB_V4), 1),
        ("a reply", TAP, arp_reply(ALICE, ALICE_V4), 1),
        (
            "in the name of another",
            TAP,
            to(EVERYONE, &arp(EVERYONE, EVE, 1, ALICE, ALICE_V4, BOB_V4)),
            1,
        ),
        (
            "in the name of another",
            TAP,
            solicitation_with(EVE, ALICE_V6, BOB_V6, &own(1, ALICE)),
            1,
        ),
        (
            "without an own address",
            TAP,
            solicitation_with(ALICE, ALICE_V6, BOB_V6, &[]),
            1,
        ),
        (
            "signed",
            TAP,
            solicitation_with(
                ALICE,
                ALICE_V6,
                BOB_V6,
                &[own(1, ALICE), vec![12, 1, 0, 0, 0, 0, 0, 0]].concat(),
            ),
            1,
        ),
        (
            "an option of no length",
            TAP,
            solicitation_with(
                ALICE,
                ALICE_V6,
                BOB_V6,
                &[own(1, ALICE), vec![14, 0, 0, 0, 0, 0, 0, 0]].concat(),
            ),
            1,
        ),
        (
            "an option behind the end",
            TAP,
            solicitation_with(
                ALICE,
                ALICE_V6,
                BOB_V6,
                &[own(1, ALICE), vec![14, 2, 0, 0, 0, 0, 0, 0]].concat(),
            ),
            1,
        ),
        (
            "half an option",
            TAP,
            solicitation_with(
                ALICE,
                ALICE_V6,
                BOB_V6,
                &[&own(1, ALICE)[..], &[14]].concat(),
            ),
            1,
        ),
    ] {
        let mut net = knows_bob();
        assert_eq!(
            net.answer(port, LAN, &headers(&frame), now_s),
            None,
            "{name}"
        );
        assert_eq!(net.counters().answered, 0);
    }
    let mut net = knows_bob();
    let other = Vid::new(7).unwrap();
    assert_eq!(
        net.answer(TAP, other, &headers(&asks), 1),
        None,
        "another VLAN"
    );
}

#[test]
fn a_hub_answers_for_peers_among_each_other() {
    let config = NeighboursConfig {
        mesh: false,
        ..NeighboursConfig::default()
    };
    let mut net = Neighbours::new(config);
    net.learn(A, LAN, &headers(&arp_reply(BOB, BOB_V4)), 0);
    let question = arp_request(ALICE, ALICE_V4, BOB_V4);
    assert!(net.answer(B, LAN, &headers(&question), 0).is_some());
    assert_eq!(
        net.answer(A, LAN, &headers(&question), 0),
        None,
        "Bob hears it"
    );
}

#[test]
fn learns_what_stations_say_of_themselves() {
    let reply = arp_reply(BOB, BOB_V4);
    for (name, frame, learned) in [
        ("an ARP reply", reply.clone(), Some(BOB_V4)),
        (
            "an ARP request",
            arp_request(BOB, BOB_V4, ALICE_V4),
            Some(BOB_V4),
        ),
        (
            "an announcement",
            arp_request(BOB, BOB_V4, BOB_V4),
            Some(BOB_V4),
        ),
        ("an advertisement", advertisement(BOB, BOB_V6), Some(BOB_V6)),
        (
            "to everyone",
            advertisement_with(BOB, BOB_V6, "ff02::1", 0x20, &own(2, BOB)),
            Some(BOB_V6),
        ),
        (
            "with other options",
            advertisement_with(
                BOB,
                BOB_V6,
                ALICE_V6,
                0x60,
                &[vec![99, 2], vec![0; 14], own(2, BOB)].concat(),
            ),
            Some(BOB_V6),
        ),
        ("a probe", arp_request(BOB, "0.0.0.0", BOB_V4), None),
        ("a solicitation", solicitation(BOB, BOB_V6, ALICE_V6), None),
        (
            "for another",
            arp(ALICE, EVE, 2, BOB, BOB_V4, ALICE_V4),
            None,
        ),
        (
            "for another",
            advertisement_with(EVE, BOB_V6, ALICE_V6, 0x60, &own(2, BOB)),
            None,
        ),
        (
            "without an address",
            advertisement_with(BOB, BOB_V6, ALICE_V6, 0x60, &[]),
            None,
        ),
        (
            "shared with others",
            advertisement_with(BOB, BOB_V6, ALICE_V6, 0x40, &own(2, BOB)),
            None,
        ),
        (
            "solicited by everyone",
            advertisement_with(BOB, BOB_V6, "ff02::1", 0x60, &own(2, BOB)),
            None,
        ),
        ("everyone's", arp_reply(BOB, "255.255.255.255"), None),
        ("a group's", arp_reply(BOB, "224.0.0.1"), None),
        ("its own", arp_reply(BOB, "127.0.0.1"), None),
        ("a group's", advertisement(BOB, "ff02::1"), None),
        ("nobody's", advertisement(BOB, "::"), None),
        ("from a group", arp_reply(EVERYONE, BOB_V4), None),
        ("from nobody", arp_reply(NOBODY, BOB_V4), None),
        (
            "from far away",
            hops(&advertisement(BOB, BOB_V6), 254),
            None,
        ),
        ("RARP", arp(EVERYONE, BOB, 3, BOB, BOB_V4, BOB_V4), None),
    ] {
        let mut net = Neighbours::new(NeighboursConfig::default());
        let became = net.learn(A, LAN, &headers(&frame), 0);
        let expected = learned.map_or(Learned::Nothing, |_| Learned::New);
        assert_eq!(became, expected, "{name}");
        let entry = net.entries(0).next();
        let seen = entry.map(|entry| (entry.address, entry.mac, entry.port));
        assert_eq!(seen, learned.map(|of| (ip(of), MacAddr(BOB), A)), "{name}");
    }
}

#[test]
fn a_binding_follows_its_station_and_ages() {
    let mut net = Neighbours::new(NeighboursConfig::default());
    let start_s = u32::MAX - 100; // the clock wraps under way
    for (after_s, port, mac, learned) in [
        (0, A, BOB, Learned::New),
        (10, A, BOB, Learned::Known),
        (20, B, BOB, Learned::Moved { from: A }),
        (319, B, BOB, Learned::Known),
        (619, B, BOB, Learned::New),
        (620, A, EVE, Learned::Changed { from: MacAddr(BOB) }),
        (1000, B, BOB, Learned::New),
    ] {
        let now_s = start_s.wrapping_add(after_s);
        let became = net.learn(port, LAN, &headers(&arp_reply(mac, BOB_V4)), now_s);
        assert_eq!(became, learned, "after {after_s} s");
        let entry = net.entries(now_s).next().unwrap();
        assert_eq!((entry.mac, entry.port), (MacAddr(mac), port));
        let later_s = now_s.wrapping_add(299);
        assert_eq!(net.entries(later_s).next().unwrap().age_s, 299);
        assert_eq!(net.entries(later_s.wrapping_add(1)).count(), 0);
    }
    assert_eq!(net.counters().learned, 3);
    assert_eq!(net.counters().changed, 1);
}

#[test]
fn an_address_that_goes_back_and_forth_has_no_owner() {
    let mut net = knows_bob();
    let question = arp_request(ALICE, ALICE_V4, BOB_V4);
    let claim = |net: &mut Neighbours, mac, now_s| {
        net.learn(A, LAN, &headers(&arp_reply(mac, BOB_V4)), now_s)
    };
    for (now_s, mac) in [(10, EVE), (20, BOB), (30, EVE), (40, BOB)] {
        assert!(matches!(
            claim(&mut net, mac, now_s),
            Learned::Changed { .. }
        ));
        assert!(net.answer(TAP, LAN, &headers(&question), now_s).is_some());
    }
    assert_eq!(claim(&mut net, EVE, 50), Learned::Contested);
    for now_s in [50, 100, 349] {
        assert!(net.entries(now_s).any(|entry| entry.is_contested));
        assert_eq!(net.answer(TAP, LAN, &headers(&question), now_s), None);
        claim(&mut net, EVE, now_s);
    }
    assert_eq!(claim(&mut net, EVE, 350), Learned::Known);
    assert!(net.answer(TAP, LAN, &headers(&question), 350).is_some());
    assert_eq!(net.counters().contested, 1);
    assert_eq!(net.counters().flooded, 3);

    // Slowly is how addresses change hands.
    let mut net = knows_bob();
    for turn in 1..50 {
        let mac = if turn % 2 == 0 { BOB } else { EVE };
        let became = claim(&mut net, mac, turn * 60);
        assert!(matches!(became, Learned::Changed { .. }), "{turn}");
    }
}

#[test]
fn an_address_shared_by_design_is_nobodys() {
    let mut net = knows_bob();
    let shared = advertisement_with(EVE, BOB_V6, ALICE_V6, 0x40, &own(2, EVE));
    assert_eq!(net.learn(B, LAN, &headers(&shared), 1), Learned::Doubted);
    let entry = net.entries(1).find(|entry| entry.address == ip(BOB_V6));
    assert_eq!(entry.unwrap().mac, MacAddr(BOB));
}

#[test]
fn a_doubted_binding_is_not_used_until_its_owner_sends() {
    let signed = [own(2, EVE), vec![12, 1, 0, 0, 0, 0, 0, 0]].concat();
    let reply = arp_reply(BOB, BOB_V4);
    for (name, doubt, owner, question) in [
        (
            "a question by another station",
            solicitation(EVE, BOB_V6, ALICE_V6),
            advertisement(EVE, BOB_V6),
            solicitation(ALICE, ALICE_V6, BOB_V6),
        ),
        (
            "an address that others share",
            advertisement_with(EVE, BOB_V6, ALICE_V6, 0x40, &own(2, EVE)),
            advertisement(BOB, BOB_V6),
            solicitation(ALICE, ALICE_V6, BOB_V6),
        ),
        (
            "a signed message",
            advertisement_with(EVE, BOB_V6, ALICE_V6, 0x60, &signed),
            advertisement(BOB, BOB_V6),
            solicitation(ALICE, ALICE_V6, BOB_V6),
        ),
        (
            "a word of a third station",
            advertisement_with(ALICE, BOB_V6, ALICE_V6, 0x60, &own(2, EVE)),
            advertisement(EVE, BOB_V6),
            solicitation(ALICE, ALICE_V6, BOB_V6),
        ),
        (
            "a word of a third station",
            arp(EVERYONE, ALICE, 2, EVE, BOB_V4, BOB_V4),
            reply,
            arp_request(ALICE, ALICE_V4, BOB_V4),
        ),
    ] {
        let mut net = knows_bob();
        assert!(
            net.answer(TAP, LAN, &headers(&question), 1).is_some(),
            "{name}"
        );
        for port in [A, B, TAP] {
            let became = net.learn(port, LAN, &headers(&doubt), 2);
            assert_eq!(became, Learned::Doubted, "{name}");
            assert!(became.is_news());
            assert!(net.entries(2).any(|entry| entry.is_doubted), "{name}");
            assert_eq!(net.answer(TAP, LAN, &headers(&question), 2), None, "{name}");
        }
        // Bob asking is no proof: the two may ask in turns.
        let asks = solicitation(BOB, BOB_V6, ALICE_V6);
        assert_eq!(
            net.learn(A, LAN, &headers(&asks), 3),
            Learned::Known,
            "{name}"
        );
        assert_eq!(net.answer(TAP, LAN, &headers(&question), 3), None, "{name}");
        net.learn(A, LAN, &headers(&owner), 4);
        let answer = net.answer(TAP, LAN, &headers(&question), 4).unwrap();
        assert_eq!(answer[6..12], owner[6..12], "{name}");
        assert_eq!(net.entries(4).filter(|entry| entry.is_doubted).count(), 0);
        assert_eq!(net.counters().doubted, 3, "{name}");
    }
}

#[test]
fn messages_that_agree_with_a_binding_leave_it_unchanged() {
    let mut net = Neighbours::new(NeighboursConfig::default());
    let router = advertisement_with(BOB, BOB_V6, ALICE_V6, 0xa0, &own(2, BOB));
    assert_eq!(net.learn(A, LAN, &headers(&router), 0), Learned::New);
    let asks = solicitation(BOB, BOB_V6, ALICE_V6);
    assert_eq!(net.learn(A, LAN, &headers(&asks), 200), Learned::Known);
    assert_eq!(
        net.learn(B, LAN, &headers(&asks), 200),
        Learned::Moved { from: A }
    );
    let told = advertisement_with(ALICE, BOB_V6, ALICE_V6, 0x60, &own(2, BOB));
    assert_eq!(net.learn(A, LAN, &headers(&told), 200), Learned::Nothing);
    let question = solicitation(ALICE, ALICE_V6, BOB_V6);
    let answer = net.answer(TAP, LAN, &headers(&question), 400).unwrap();
    assert_eq!(answer[58], 0xe0, "still a router, and still there");
}

#[test]
fn a_question_that_tells_where_the_asker_is_now_is_news() {
    let mut net = knows_bob();
    let asks = |mac| arp_request(mac, ALICE_V4, BOB_V4);
    for (port, mac, is_news) in [
        (TAP, ALICE, true),
        (TAP, ALICE, false),
        (B, ALICE, true),
        (B, ALICE, false),
        (B, EVE, true),
        (B, EVE, false),
    ] {
        let learned = net.learn(port, LAN, &headers(&asks(mac)), 1);
        assert_eq!(learned.is_news(), is_news, "{learned:?}");
    }
}

#[test]
fn a_million_addresses_on_one_port_take_its_share_only() {
    let config = NeighboursConfig {
        max: 1000,
        max_per_port: 600,
        ..NeighboursConfig::default()
    };
    let mut net = Neighbours::new(config);
    let mut forged = arp_reply(EVE, "10.0.0.1");
    let mut flood = |net: &mut Neighbours, port, now_s| {
        for name in 0..1_000_000_u32 {
            forged[28..32].copy_from_slice(&(0x0b00_0000 + name).to_be_bytes());
            net.learn(port, LAN, &headers(&forged), now_s);
        }
    };
    flood(&mut net, A, 0);
    assert_eq!(net.entries(0).count(), 600);
    assert_eq!(net.counters().full, 999_400);
    assert_eq!(
        net.learn(B, LAN, &headers(&arp_reply(BOB, BOB_V4)), 1),
        Learned::New
    );
    flood(&mut net, B, 1);
    // Those that are known already move to where they are claimed, which takes no room.
    assert_eq!(net.entries(1).count(), 601);
    net.flush_port(B);
    assert_eq!(net.entries(1).count(), 0);
    flood(&mut net, A, 2);
    assert_eq!(net.entries(301).count(), 600);
    let claim = arp_reply(BOB, BOB_V4);
    assert_eq!(net.learn(A, LAN, &headers(&claim), 301), Learned::Full);
    assert_eq!(net.learn(A, LAN, &headers(&claim), 302), Learned::New);
    net.clear();
    assert_eq!(net.entries(302).count(), 0);
}

#[test]
fn cut_or_altered_messages_are_not_trusted() {
    for frame in [
        advertisement(BOB, BOB_V6),
        arp_reply(BOB, BOB_V4)[..42].to_vec(),
    ] {
        for len in 14..frame.len() {
            let mut net = Neighbours::new(NeighboursConfig::default());
            let became = net.learn(A, LAN, &headers(&frame[..len]), 0);
            assert_eq!(became, Learned::Nothing, "{len} bytes");
        }
    }
    for frame in [
        solicitation(ALICE, ALICE_V6, BOB_V6),
        arp_request(ALICE, ALICE_V4, BOB_V4)[..42].to_vec(),
    ] {
        for len in 14..frame.len() {
            let answer = knows_bob().answer(TAP, LAN, &headers(&frame[..len]), 1);
            assert_eq!(answer, None, "{len} bytes");
        }
    }
    let frame = advertisement(BOB, BOB_V6);
    for bit in 14 * 8..frame.len() * 8 {
        let mut altered = frame.clone();
        altered[bit / 8] ^= 1 << (bit % 8);
        let mut net = Neighbours::new(NeighboursConfig::default());
        let believed = net.learn(A, LAN, &headers(&altered), 0) != Learned::Nothing;
        // Traffic class, flow label, and a length that is longer than the frame.
        let may = (14..20).contains(&(bit / 8));
        assert!(!believed || may, "bit {bit}");
    }
}

proptest! {
    #[test]
    fn every_answer_teaches_the_truth(
        start in prop::sample::select(vec![
            arp_request(ALICE, ALICE_V4, BOB_V4),
            tagged(&arp_request(ALICE, ALICE_V4, BOB_V4), &[0x81, 0, 0x20, 0]),
            solicitation(ALICE, ALICE_V6, BOB_V6),
        ]),
        at in 0..90usize,
        noise in prop::collection::vec(any::<u8>(), 0..4),
        len in prop_oneof![4 => Just(200usize), 1 => 0..100usize],
    ) {
        let mut question = start;
        for (byte, noise) in question.iter_mut().skip(at).zip(noise) {
            *byte = noise;
        }
        question.truncate(len);
        let Ok(asked) = Headers::parse(&question) else {
            return Ok(());
        };
        let mut net = knows_bob();
        if let Some(answer) = net.answer(TAP, LAN, &asked, 0) {
            let mut asker = Neighbours::new(NeighboursConfig::default());
            prop_assert_eq!(asker.learn(A, LAN, &headers(&answer), 0), Learned::New);
            let learned = asker.entries(0).next().unwrap();
            prop_assert_eq!(learned.mac, MacAddr(BOB));
            prop_assert!([ip(BOB_V4), ip(BOB_V6)].contains(&learned.address));
            prop_assert_eq!(&answer[..6], &question[6..12]);
        }
        net.learn(B, LAN, &asked, 0);
    }
}

/// Bob lives behind port A, and was heard at the start.
fn knows_bob() -> Neighbours {
    let mut net = Neighbours::new(NeighboursConfig::default());
    for claim in [arp_reply(BOB, BOB_V4), advertisement(BOB, BOB_V6)] {
        assert_eq!(net.learn(A, LAN, &headers(&claim), 0), Learned::New);
    }
    net
}

fn arp_request(mac: [u8; 6], sender: &str, target: &str) -> Vec<u8> {
    arp(EVERYONE, mac, 1, mac, sender, target)
}

fn arp_reply(mac: [u8; 6], sender: &str) -> Vec<u8> {
    arp(ALICE, mac, 2, mac, sender, ALICE_V4)
}

fn arp(
    dst: [u8; 6],
    src: [u8; 6],
    operation: u8,
    sender_mac: [u8; 6],
    sender: &str,
    target: &str,
) -> Vec<u8> {
    let octets = |address: &str| -> [u8; 4] { v4(address).octets() };
    let mut message = vec![0, 1, 8, 0, 6, 4, 0, operation];
    message.extend(sender_mac);
    message.extend(octets(sender));
    message.extend(NOBODY);
    message.extend(octets(target));
    ethernet(dst, src, 0x0806, &message)
}

fn solicitation(mac: [u8; 6], src: &str, target: &str) -> Vec<u8> {
    solicitation_with(mac, src, target, &own(1, mac))
}

fn solicitation_with(mac: [u8; 6], src: &str, target: &str, options: &[u8]) -> Vec<u8> {
    let [.., a, b, c] = v6(target).octets();
    let group: Ipv6Addr = format!("ff02::1:ff{a:02x}:{b:02x}{c:02x}")
        .parse()
        .expect("a group");
    let message = [
        &[135, 0, 0, 0, 0, 0, 0, 0],
        &v6(target).octets()[..],
        options,
    ]
    .concat();
    neighbour([0x33, 0x33, 0xff, a, b, c], mac, src, group, &message)
}

fn advertisement(mac: [u8; 6], target: &str) -> Vec<u8> {
    advertisement_with(mac, target, ALICE_V6, 0x60, &own(2, mac))
}

fn advertisement_with(mac: [u8; 6], target: &str, dst: &str, flags: u8, options: &[u8]) -> Vec<u8> {
    let message = [
        &[136, 0, 0, 0, flags, 0, 0, 0],
        &v6(target).octets()[..],
        options,
    ]
    .concat();
    let src = if v6(target).is_multicast() || v6(target).is_unspecified() {
        BOB_V6
    } else {
        target
    };
    neighbour(ALICE, mac, src, v6(dst), &message)
}

fn neighbour(dst_mac: [u8; 6], mac: [u8; 6], src: &str, dst: Ipv6Addr, message: &[u8]) -> Vec<u8> {
    let message = with_checksum(message, pseudo_header(v6(src), dst, 58, message.len()));
    ethernet(dst_mac, mac, 0x86dd, &ipv6(v6(src), dst, 58, 255, &message))
}

fn own(kind: u8, mac: [u8; 6]) -> Vec<u8> {
    [&[kind, 1], &mac[..]].concat()
}

fn hops(frame: &[u8], hops: u8) -> Vec<u8> {
    let mut frame = frame.to_vec();
    frame[21] = hops;
    frame
}

fn ethernet(dst: [u8; 6], src: [u8; 6], ether_type: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = support::ethernet(dst, ether_type, payload);
    frame[6..12].copy_from_slice(&src);
    frame
}
