// SPDX-License-Identifier: MIT OR Apache-2.0
//! Every frame that enters one end of the cord leaves the other, byte for byte, once, and in order.

use crate::kit::cable::Cable;
use crate::kit::frames::{BROADCAST, DOT1AD, DOT1Q, EXPERIMENTAL, Tally, frame};
use crate::kit::pair::{Pair, Plan};
use crate::kit::process::{eventually, millis, secs};
use crate::kit::site::Settings;

const OLD_QINQ: u16 = 0x9100;

/// Tags, EtherType (or 802.3 length) and frame length of one frame.
type Shape<'a> = (&'a str, &'a [(u16, u16)], u16, usize);

/// Sends every shape from `from` to `to`; returns the names of those that did not come out once and
/// unchanged.
fn damaged<'a>(from: &Cable, to: &Cable, shapes: &[Shape<'a>]) -> Vec<&'a str> {
    let frames: Vec<_> = shapes
        .iter()
        .zip(1..)
        .map(|(&(_, tags, ethertype, len), seed)| {
            frame(to.mac, from.mac, tags, ethertype, len, seed)
        })
        .collect();
    for frame in &frames {
        from.send(frame);
    }
    // A second copy arrives right behind the first: the wait for the others shows it.
    to.wait(secs(20), |all| {
        frames
            .iter()
            .all(|frame| all.iter().any(|arrival| arrival.bytes == *frame))
    });
    let bad = |(shape, frame): (&Shape<'a>, &Vec<u8>)| (to.count(frame) != 1).then_some(shape.0);
    shapes.iter().zip(&frames).filter_map(bad).collect()
}

fn assert_transparent(pair: &Pair, shapes: &[Shape<'_>]) {
    let none: [&str; 0] = [];
    assert_eq!(damaged(&pair.at_a, &pair.at_b, shapes), none, "from A to B");
    assert_eq!(damaged(&pair.at_b, &pair.at_a, shapes), none, "from B to A");
}

#[test]
fn vlan_tags_arrive_in_their_place() {
    let pair = Pair::start(Plan::default());
    assert_transparent(
        &pair,
        &[
            ("802.1Q", &[(DOT1Q, 42)], EXPERIMENTAL, 100),
            (
                "802.1Q with priority and DEI",
                &[(DOT1Q, 0xf000 | 4094)],
                EXPERIMENTAL,
                100,
            ),
            ("802.1Q, smallest", &[(DOT1Q, 42)], EXPERIMENTAL, 60),
            ("802.1Q, full size", &[(DOT1Q, 42)], EXPERIMENTAL, 1518),
            ("priority tag, VID 0", &[(DOT1Q, 0xa000)], EXPERIMENTAL, 100),
            ("802.1ad", &[(DOT1AD, 7)], EXPERIMENTAL, 100),
            ("QinQ", &[(DOT1AD, 7), (DOT1Q, 42)], EXPERIMENTAL, 100),
            (
                "QinQ, full size",
                &[(DOT1AD, 7), (DOT1Q, 42)],
                EXPERIMENTAL,
                1522,
            ),
            (
                "802.1Q twice",
                &[(DOT1Q, 7), (DOT1Q, 42)],
                EXPERIMENTAL,
                1522,
            ),
            (
                "old QinQ",
                &[(OLD_QINQ, 7), (DOT1Q, 42)],
                EXPERIMENTAL,
                1500,
            ),
        ],
    );
}

#[test]
fn frames_that_are_not_ip_arrive_unchanged() {
    let pair = Pair::start(Plan::default());
    assert_transparent(
        &pair,
        &[
            ("experimental", &[], EXPERIMENTAL, 60),
            ("LLDP to a unicast address", &[], 0x88cc, 120),
            ("802.1X", &[], 0x888e, 64),
            ("PROFINET", &[], 0x8892, 64),
            ("ATA over Ethernet", &[], 0x88a2, 1100),
            ("PPPoE session", &[], 0x8864, 1514),
            ("MPLS", &[], 0x8847, 400),
            ("802.3 with an LLC length", &[], 46, 60),
            ("802.3, longest length", &[], 1500, 1514),
        ],
    );
}

#[test]
fn group_addressed_frames_arrive_unchanged() {
    let pair = Pair::start(Plan::default());
    let groups = [
        BROADCAST,
        [0x01, 0x00, 0x5e, 0x00, 0x00, 0x05], // OSPF
        [0x33, 0x33, 0x00, 0x00, 0x00, 0x01],
        [0x01, 0x80, 0xc2, 0x00, 0x00, 0x0e], // LLDP; the bridges are told to let it pass
        [0x01, 0x00, 0x0c, 0xcc, 0xcc, 0xcc], // CDP
    ];
    for (from, to) in [(&pair.at_a, &pair.at_b), (&pair.at_b, &pair.at_a)] {
        for (group, seed) in groups.into_iter().zip(1..) {
            let sent = frame(group, from.mac, &[], EXPERIMENTAL, 200, seed);
            from.send(&sent);
            assert!(to.receives(&sent, secs(20)), "a frame to {group:02x?}");
            assert_eq!(to.count(&sent), 1, "a frame to {group:02x?}");
        }
    }
}

#[test]
fn a_frame_to_an_unknown_address_is_flooded() {
    let pair = Pair::start(Plan::default());
    let sent = frame(
        [0x02, 0xde, 0xad, 0xbe, 0xef, 0x00],
        pair.at_a.mac,
        &[],
        EXPERIMENTAL,
        100,
        1,
    );
    pair.at_a.send(&sent);
    assert!(pair.at_b.receives(&sent, secs(20)), "the frame arrives");
    assert_eq!(pair.at_b.count(&sent), 1, "once");
}

#[test]
fn every_frame_size_arrives_unchanged() {
    let pair = Pair::start(Plan::default());
    assert_every_size(&pair, 60..=1514);
}

#[test]
fn jumbo_frames_cross_a_narrow_underlay() {
    let settings = Settings {
        overlay_mtu: 9000,
        ..Settings::default()
    };
    let pair = Pair::start(Plan {
        settings,
        ..Plan::default()
    });
    assert_transparent(
        &pair,
        &[
            ("9014", &[], EXPERIMENTAL, 9014),
            ("9018 tagged", &[(DOT1Q, 42)], EXPERIMENTAL, 9018),
            (
                "9022 tagged twice",
                &[(DOT1AD, 7), (DOT1Q, 42)],
                EXPERIMENTAL,
                9022,
            ),
            ("small among them", &[], EXPERIMENTAL, 60),
        ],
    );
    assert_every_size(&pair, (60..=9014).step_by(61));
}

/// One numbered frame of each size in both directions; all arrive once and in order.
fn assert_every_size(pair: &Pair, sizes: impl Iterator<Item = usize>) {
    let sizes: Vec<_> = sizes.collect();
    let sent = sizes.len() as u64;
    for (flow, from, to) in [
        (pair.there(), &pair.at_a, &pair.at_b),
        (pair.back(), &pair.at_b, &pair.at_a),
    ] {
        for (number, &len) in sizes.iter().enumerate() {
            let number = number as u64;
            from.send(&flow.frame(number, len));
            // A few at a time: this tests sizes, not the depth of queues.
            if number % 32 == 31 {
                flow.wait_number(to, number, secs(20));
            }
        }
        flow.wait_number(to, sent - 1, secs(20));
        assert_eq!(flow.tally(to, sent), Tally::perfect(sent));
    }
}

#[test]
fn a_flow_keeps_its_order() {
    let pair = Pair::start(Plan::default());
    let sizes = [60, 1514, 300, 64, 1514, 1514, 900];
    let (there, back) = (pair.there(), pair.back());
    let streams = [
        pair.at_a
            .stream_to(&pair.at_b, there, millis(1), move |number| {
                sizes[number as usize % sizes.len()]
            }),
        pair.at_b
            .stream_to(&pair.at_a, back, millis(1), move |number| {
                sizes[(number as usize + 3) % sizes.len()]
            }),
    ];
    eventually(secs(20), "3000 frames arrive", || {
        (there.count(&pair.at_b) >= 3000).then_some(())
    });
    let [sent_there, sent_back] = streams.map(|stream| stream.stop());
    for (flow, to, sent) in [
        (there, &pair.at_b, sent_there),
        (back, &pair.at_a, sent_back),
    ] {
        flow.wait_number(to, sent - 1, secs(20));
        assert_eq!(flow.tally(to, sent), Tally::perfect(sent));
    }
}
