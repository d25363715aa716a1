// SPDX-License-Identifier: MIT OR Apache-2.0
//! Several flows of random sizes both ways for a while: all frames arrive, once, in order, unchanged,
//! whatever the core plan and the back-end of the device.

use std::time::Instant;

use crate::kit::cable::Cable;
use crate::kit::frames::{Flow, Tally};
use crate::kit::load;
use crate::kit::pair::{Pair, Plan};
use crate::kit::process::{eventually, millis, secs};
use crate::kit::site::Settings;

/// A size from 60 to `max` that depends on the number only.
fn size(number: u64, salt: u64, max: u64) -> usize {
    let mut state =
        (number + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ salt.wrapping_mul(0xd134_2543_de82_ef95);
    state ^= state >> 29;
    state = state.wrapping_mul(0xbf58_476d_1ce4_e5b9);
    state ^= state >> 32;
    usize::try_from(60 + state % (max - 59)).expect("a frame size")
}

/// Returns the core plan and the back-end in use.
fn soak(max: u64, interval_ms: u64, settings: Settings) -> (String, String) {
    let overlay_mtu = u32::try_from(max - 14).expect("an MTU");
    let settings = Settings {
        overlay_mtu,
        ..settings
    };
    let pair = Pair::start(Plan {
        settings,
        ..Plan::default()
    });
    let pid_before = pair.a.status().pid;
    let way = |id: u16| -> (Flow, &Cable, &Cable) {
        let (from, to) = if id.is_multiple_of(2) {
            (&pair.at_a, &pair.at_b)
        } else {
            (&pair.at_b, &pair.at_a)
        };
        (Flow::between(from, to, 50 + id), from, to)
    };
    let ways = [0, 1, 2, 3].map(way);
    let _turn = load::all();
    let begun = Instant::now();
    let streams = ways.map(|(flow, from, to)| {
        from.stream_one_of(2, to, flow, millis(interval_ms), move |number| {
            size(number, flow.id.into(), max)
        })
    });
    eventually(secs(20), "the soak has run", || {
        (begun.elapsed() > secs(6)).then_some(())
    });
    for ((flow, _, to), stream) in ways.into_iter().zip(streams) {
        eventually(secs(60), "1000 frames have crossed", || {
            (flow.count(to) >= 1000).then_some(())
        });
        let sent = stream.stop();
        flow.wait_number(to, sent - 1, secs(20));
        assert_eq!(
            flow.tally(to, sent),
            Tally::perfect(sent),
            "flow {}",
            flow.id
        );
    }
    let status = pair.a.status();
    assert_eq!(status.pid, pid_before, "the same process serves");
    (status.core_plan.plan, status.device.backend)
}

#[test]
fn frames_of_random_sizes_all_arrive() {
    soak(1514, 2, Settings::default());
}

#[test]
fn jumbo_frames_of_random_sizes_all_arrive() {
    soak(9014, 4, Settings::default());
}

#[test]
fn the_staged_plan_keeps_every_frame_and_its_order() {
    let settings = Settings {
        // `[tunnel]` is followed by `[device]`; a section of its own may stand in between.
        tunnel: "[pipeline]\nplan = \"staged\"\nworkers = 3",
        ..Settings::default()
    };
    assert_eq!(soak(1514, 2, settings).0, "staged");
}

#[test]
fn the_plain_back_end_carries_everything_too() {
    let settings = Settings {
        device: "backend = \"plain\"",
        ..Settings::default()
    };
    assert_eq!(soak(1514, 2, settings).1, "plain");
}
