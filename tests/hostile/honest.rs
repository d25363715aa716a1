// SPDX-License-Identifier: MIT OR Apache-2.0
//! The kit itself: as long as a rogue behaves, it is a peer like any other.

use patchcord::internals::wire::Lane;
use patchcord::internals::wire::chunk::ControlChunk;

use crate::chunk;
use crate::kit::frames::{BROADCAST, EXPERIMENTAL, frame};
use crate::kit::process::{eventually, secs};
use crate::rogue::Sealed;
use crate::stage::{Mode, Stage};

#[test]
fn a_rogue_that_behaves_is_a_peer_in_every_mode() {
    for mode in [Mode::TAP, Mode::PLAIN, Mode::HUB, Mode::WIRE, Mode::ACCESS] {
        let mut stage = Stage::start(&mode, 1);
        stage.assert_well();
    }
}

#[test]
fn a_rogue_sends_on_any_lane_from_anywhere_and_comes_and_goes() {
    let mut stage = Stage::start(&Mode::TAP, 1);
    let rogue = &stage.rogues()[0];
    let sent = frame(BROADCAST, rogue.mac, &[], EXPERIMENTAL, 80, 1);
    let datagram = rogue.seal(Sealed {
        lane: Lane(3),
        sequence: Some(7),
        ..Sealed::chunks(&chunk::frame(&sent))
    });
    let source = rogue.source(200);
    source.send(&datagram);
    rogue.send_datagram(&datagram);
    assert!(stage.cable.receives(&sent, secs(20)), "from the source");
    stage.wait_counted("replayed", 0);
    rogue.mute();
    rogue.send_control(&[ControlChunk::Close]);
    eventually(secs(20), "the rogue is gone", || {
        (stage.site.peer().state != "up").then_some(())
    });
    rogue.send_datagram(&rogue.initiation());
    rogue.restart();
    stage.assert_well();
}
