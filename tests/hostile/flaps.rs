// SPDX-License-Identifier: MIT OR Apache-2.0
//! A peer that comes and goes, or moves, as fast as it can: the log, the carrier and the other peers do
//! not follow every change.

use patchcord::internals::wire::chunk::ControlChunk;

use crate::chunk;
use crate::kit::frames::{BROADCAST, EXPERIMENTAL, frame};
use crate::kit::process::{eventually, secs};
use crate::rogue::{Rogue, Sealed};
use crate::stage::{Mode, Stage};

fn carrier_changes(stage: &Stage) -> u32 {
    let changes = stage
        .site
        .ns
        .output(&["cat", "/sys/class/net/pc0/carrier_changes"]);
    let text = String::from_utf8(changes.stdout).unwrap();
    text.trim().parse().expect("the device is there")
}

fn flap(rogue: &Rogue) {
    rogue.send_control(&[ControlChunk::Close]);
    rogue.restart();
    rogue.connect();
}

#[test]
fn a_peer_that_comes_and_goes_changes_the_carrier_a_few_times_and_fills_no_log() {
    let mut stage = Stage::start(&Mode::TAP, 1);
    let before = carrier_changes(&stage);
    for _ in 0..60 {
        flap(&stage.rogues()[0]);
    }
    let changes = carrier_changes(&stage) - before;
    // Five times down and up before the hold-down, and then once for each 4 s of the test.
    assert!(changes <= 40, "{changes} changes of the carrier");
    let log = stage.site.process().log();
    assert_eq!(log.matches("peer flaps").count(), 1, "{log}");
    let lines = log.lines().filter(|line| line.contains("peer is")).count();
    assert!(lines <= 40, "{lines} lines: {log}");
    eventually(secs(60), "a peer that stays is up", || {
        (stage.site.peer().state == "up").then_some(())
    });
    stage.assert_well();
}

#[test]
fn a_peer_that_moves_with_each_datagram_keeps_neither_calls_nor_others_out() {
    let mut stage = Stage::start(&Mode::HUB, 2);
    let [rogue, other] = stage.rogues() else {
        panic!("two rogues");
    };
    let sources: Vec<_> = (128..160).map(|last| rogue.source(last)).collect();
    let lost = stage.site.drops("control-queue-full");
    let sent = frame(BROADCAST, rogue.mac, &[], EXPERIMENTAL, 80, 1);
    for round in 0..200 {
        for source in &sources {
            source.send(&rogue.seal(Sealed::chunks(&chunk::frame(&sent))));
        }
        if round % 50 == 0 {
            // Another peer makes a handshake meanwhile.
            other.restart();
            other.connect();
        }
    }
    assert_eq!(stage.site.drops("control-queue-full"), lost);
    let log = stage.site.process().log();
    let moves = log.matches("moved to another address").count();
    assert!(moves <= 3, "{moves} lines: {log}");
    stage.assert_well();
}
