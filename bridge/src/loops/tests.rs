// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a guard sends, and the memory it takes; what guards do together is in the tests of the
//! crate.

use std::vec::Vec;

use super::hearing::MAX_OTHERS;
use super::message::Message;
use super::timing::S;
use super::*;
use crate::port_id::PortId;
use crate::vlan::Vid;

#[test]
fn a_probe_has_one_layout() {
    let tag = |bytes: &[u8]| [bytes.len() as u8; 16];
    let mut guard = LoopGuard::new(NodeId(0x0102_0304_0506_0708), MacAddr([2; 6]), tag);
    guard.watch(PortId(0x0a0b), 0, [Vid::UNTAGGED, Vid::from_tci(0x0064)]);
    let [untagged, tagged] = &guard.due(0)[..] else {
        panic!("one for each VLAN");
    };
    let addresses = [3, 0x70, 0x63, 0x6c, 0x70, 1, 2, 2, 2, 2, 2, 2];
    let body = |vid: u8| {
        let fields = [
            1, 0, 0x0a, 0x0b, 0, vid, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 1, 0, 0,
        ];
        [&fields[..], &[20; 16]].concat()
    };
    assert_eq!(
        untagged.frame,
        [&addresses[..], &[0x88, 0xb6], &body(0), &[0; 10]].concat()
    );
    assert_eq!(
        tagged.frame,
        [
            &addresses[..],
            &[0x81, 0, 0, 0x64, 0x88, 0xb6],
            &body(0x64),
            &[0; 6]
        ]
        .concat()
    );
    for probe in [untagged, tagged] {
        let message = Message::parse(&probe.frame).unwrap();
        assert_eq!((message.port, message.vid), (probe.port, probe.vid));
        assert_eq!(Some(message), guard.authentic(&probe.frame));
    }
}

#[test]
fn vlans_take_turns() {
    let mut guard = LoopGuard::new(NodeId(1), MacAddr([2; 6]), |_| [0; 16]);
    guard.watch(PortId::TAP, 0, (0..40).map(Vid::from_tci));
    for (at_s, count, second, last) in [
        (0, 16, 1, 15),
        (1, 17, 16, 31),
        (2, 16, 1, 39),
        (3, 17, 8, 23),
    ] {
        let probes = guard.due(at_s * S);
        let vids: Vec<_> = probes.iter().map(|probe| probe.vid.value()).collect();
        assert_eq!(vids[..2], [0, second], "round {at_s}: untagged in each");
        assert_eq!(
            (vids.len(), vids.last()),
            (count, Some(&last)),
            "round {at_s}"
        );
    }
}

#[test]
fn among_many_nodes_fewer_vlans_are_probed_at_a_time() {
    let mut guard = LoopGuard::new(NodeId(0), MacAddr([2; 6]), |_| [0; 16]);
    guard.watch(PortId::TAP, 0, (1..41).map(Vid::from_tci));
    let mut other = LoopGuard::new(NodeId(0), MacAddr([4; 6]), |_| [0; 16]);
    other.watch(PortId::TAP, 0, []);
    let probe = other.due(0).remove(0);
    for (nodes, at_s, probes) in [(1, 0, 16), (8, 1, 16), (9, 2, 14), (33, 3, 3), (500, 4, 1)] {
        for node in 1..nodes {
            let mut frame = probe.frame.clone();
            frame[20..28].copy_from_slice(&u64::to_be_bytes(node));
            frame[28..32].copy_from_slice(&u32::to_be_bytes(at_s));
            guard.heard(PortId::TAP, Vid::UNTAGGED, &frame, u64::from(at_s) * S);
        }
        let sent = guard.due(u64::from(at_s) * S).len();
        assert_eq!(sent, probes, "{nodes} nodes");
    }
    assert_eq!(guard.due(100 * S).len(), 16, "the others are gone");
}

#[test]
fn many_nodes_take_no_more_than_their_room() {
    let mut guard = LoopGuard::new(NodeId(u64::MAX), MacAddr([2; 6]), |_| [0; 16]);
    guard.watch(PortId::TAP, 0, []);
    let mut others = LoopGuard::new(NodeId(0), MacAddr([4; 6]), |_| [0; 16]);
    others.watch(PortId::TAP, 0, []);
    let probe = others.due(0).remove(0);
    for node in 0..1_000_000_u64 {
        let mut frame = probe.frame.clone();
        frame[20..28].copy_from_slice(&node.to_be_bytes());
        guard.heard(PortId::TAP, Vid::UNTAGGED, &frame, node);
    }
    assert_eq!(guard.others.len(), MAX_OTHERS);
    // They make room when they are silent.
    let mut frame = probe.frame;
    frame[20] = 0xff;
    guard.heard(PortId::TAP, Vid::UNTAGGED, &frame, 60 * S);
    assert_eq!(guard.others.len(), 1);
}
