// SPDX-License-Identifier: MIT OR Apache-2.0
//! Headers as long as those of a super-frame may be, and longer.

use crate::chunk;
use crate::kit::frames::{BROADCAST, Mac};
use crate::kit::process::secs;
use crate::packet::Packet;
use crate::stage::{Mode, Stage};

/// UDP over IPv6 whose headers, up to the checksum, are longer than a datagram of a path of 1280 bytes,
/// or of 1500. The frame is as large as a LAN takes.
fn long(src: Mac, dst: Mac, options: usize) -> Packet<'static> {
    let headers = 14 + 40 + options + 8;
    Packet {
        dst,
        src,
        vlans: &[],
        options,
        payload: 1514 - headers,
        seed: options as u64,
    }
}

#[test]
fn headers_of_any_length_cross_a_hub() {
    let mut stage = Stage::start(&Mode::HUB, 2);
    for options in [0, 192, 200, 448, 1136, 1192, 1392, 1400, 1448] {
        for to_all in [true, false] {
            let [rogue, other] = stage.rogues() else {
                unreachable!("there are two")
            };
            let dst = if to_all { BROADCAST } else { other.mac };
            let packet = long(rogue.mac, dst, options);
            rogue.send(&chunk::partial_checksum_frame(
                packet.checksum(),
                &packet.with_partial_checksum(),
            ));
            let arrives = other.receives(&packet.finished(), secs(20));
            assert!(arrives, "{options} bytes of options to {dst:x?}");
            if to_all {
                let arrives = stage.cable.receives(&packet.finished(), secs(20));
                assert!(arrives, "{options} bytes of options at the cable");
            }
        }
    }
    stage.assert_well();
}

const SEGMENT: usize = 100;
/// More segments than a kernel makes of a super-frame of UDP.
const SEGMENTS: usize = 200;

#[test]
fn a_tag_is_put_in_front_of_the_longest_headers_of_a_super_frame() {
    for mode in [Mode::ACCESS, Mode::ACCESS_PLAIN] {
        let mut stage = Stage::start(&mode, 1);
        let rogue = &stage.rogues()[0];
        let packet = Packet {
            dst: BROADCAST,
            src: rogue.mac,
            vlans: &[],
            options: 192,
            payload: SEGMENTS * SEGMENT,
            seed: 1,
        };
        assert_eq!(packet.headers_len(), 254, "256 is the most there may be");
        let open = (packet.open_segments(SEGMENT as u16), packet.headers_len());
        for chunk in chunk::cut(&packet.with_partial_checksum(), 1, Some(open), 1200) {
            rogue.send(&chunk);
        }
        let tagged = Packet {
            vlans: &[10],
            ..packet
        };
        for (at, segment) in tagged.segments(SEGMENT).iter().enumerate() {
            let arrives = stage.cable.receives(segment, secs(20));
            assert!(arrives, "{}: segment {at}", mode.name);
        }
        stage.assert_well();
    }
}
