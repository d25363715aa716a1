// SPDX-License-Identifier: MIT OR Apache-2.0
//! A peer behind a slow link does not slow down the others.

use std::time::Duration;

use crate::kit::cable::Cable;
use crate::kit::frames::{Flow, Tally};
use crate::kit::load;
use crate::kit::pair::{Pair, Plan, connect};
use crate::kit::process::{eventually, secs};
use crate::kit::site::{Peer, Settings, Site};

/// Two sites, and a third one at the far end of a second uplink of A.
struct Corner {
    at_c: Cable,
    _c: Site,
    pair: Pair,
}

impl Corner {
    fn start(settings: Settings) -> Self {
        let mut pair = Pair::prepare(Plan::default());
        let mut c = Site::new(&pair.sandbox, &pair.internet, 3, 1500);
        let pid = c.ns.pid();
        pair.a.ns.ip(&format!(
            "link add slow type veth peer name slow netns {pid}\naddr add 192.0.2.1/24 dev slow\nlink set slow up"
        ));
        c.ns.ip("addr add 192.0.2.2/24 dev slow\nlink set slow up");
        let there = Peer {
            endpoint: Some("192.0.2.2:51830".to_owned()),
            ..c.as_peer(None)
        };
        let b = pair.b.as_peer(Some(pair.b.uplink.v4.into()));
        pair.a.configure(&settings, &[there, b]);
        c.configure(&Settings::default(), &[pair.a.as_peer(None)]);
        let at_c = c.cable(1, 1500);
        c.up();
        pair.up();
        pair.connect(secs(20));
        connect(&at_c, &pair.at_a, secs(20));
        Self { at_c, _c: c, pair }
    }

    /// Makes the link to C slow.
    fn slow_down(&self) {
        self.pair.a.ns.run(&[
            "tc", "qdisc", "add", "dev", "slow", "root", "tbf", "rate", "1mbit", "burst", "32k",
            "limit", "200m",
        ]);
    }

    /// Sends far more than the link carries to C until the kernel refuses more, and goes on while
    /// all frames between A and B arrive.
    fn assert_others_lose_nothing(&self) {
        const AT_ONCE: u64 = 50;
        const FRAMES: u64 = 60 * AT_ONCE;
        let _turn = load::half();
        let pair = &self.pair;
        self.slow_down();
        let to_c = Flow::between(&pair.at_a, &self.at_c, 7);
        let flood = pair.at_a.stream(to_c, Duration::from_micros(200), |_| 1514);
        eventually(secs(60), "the way to C is full", || {
            (pair.a.drops("send-failed") > 0).then_some(())
        });
        let mut sent_to_c = flood.stop();
        let refused = pair.a.drops("send-failed");
        let ways = [
            (pair.there(), &pair.at_a, &pair.at_b),
            (pair.back(), &pair.at_b, &pair.at_a),
        ];
        for (flow, from, to) in ways {
            for number in 0..FRAMES {
                pair.at_a.send(&to_c.frame(sent_to_c, 1514));
                sent_to_c += 1;
                // Small enough to cause no standing queue.
                from.send(&flow.frame(number, 400));
                // The queue of a TAP holds some hundred frames, and its reader may not be scheduled
                // for long.
                if number % AT_ONCE == AT_ONCE - 1 {
                    assert!(flow.wait_number(to, number, secs(20)), "{number}");
                }
            }
            assert_eq!(flow.tally(to, FRAMES), Tally::perfect(FRAMES));
        }
        let still_refused = pair.a.drops("send-failed");
        assert!(still_refused > refused, "the way to C was full meanwhile");
    }
}

#[test]
fn a_slow_path_to_one_peer_takes_nothing_from_another() {
    Corner::start(Settings::default()).assert_others_lose_nothing();
}

#[test]
fn a_slow_path_to_one_peer_takes_nothing_from_another_on_several_lanes() {
    let settings = Settings {
        tunnel: "[pipeline]\nlanes = 3",
        ..Settings::default()
    };
    Corner::start(settings).assert_others_lose_nothing();
}

#[test]
fn a_slow_path_to_one_peer_takes_nothing_from_another_in_the_staged_plan() {
    let settings = Settings {
        tunnel: "[pipeline]\nplan = \"staged\"\nworkers = 2",
        ..Settings::default()
    };
    Corner::start(settings).assert_others_lose_nothing();
}
