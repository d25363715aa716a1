// SPDX-License-Identifier: MIT OR Apache-2.0
//! The cord stays up: addresses change, programs die, keys are renewed, and frames keep flowing.

use std::time::{Duration, Instant};

use crate::kit::cable::{Cable, Stream};
use crate::kit::frames::{Flow, Tally, longest_gap};
use crate::kit::load::{self, Turn};
use crate::kit::pair::{Pair, Plan};
use crate::kit::process::{eventually, millis, secs};
use crate::kit::site::{Settings, assert_followed, move_to};

/// The longest silence that a change may cause on a busy machine; on a quiet one it is below 2 s.
const GAP_MAX: Duration = secs(10);
/// A probe frame is sent this often, in each direction.
const PROBE_INTERVAL: Duration = millis(10);

/// Numbered frames every 10 ms both ways, and the gaps between their arrivals.
struct Probes<'a> {
    ways: [(Flow, &'a Cable, Stream); 2],
    since: Instant,
    _turn: Turn,
}

impl<'a> Probes<'a> {
    fn start(at_a: &'a Cable, at_b: &'a Cable) -> Self {
        let turn = load::half();
        let way = |from: &Cable, to: &'a Cable, id| {
            let flow = Flow::between(from, to, id);
            let stream = from.stream(flow, PROBE_INTERVAL, |_| 200);
            assert!(
                flow.wait_number(to, 20, secs(20)),
                "the probes of flow {id} arrive"
            );
            (flow, to, stream)
        };
        Self {
            ways: [way(at_a, at_b, 11), way(at_b, at_a, 12)],
            since: Instant::now(),
            _turn: turn,
        }
    }

    /// Waits until both directions have delivered 100 frames in a row that were sent after `since`,
    /// then names the longest gap of each.
    fn settle(self) -> [Duration; 2] {
        let now = Instant::now();
        for (flow, to, _) in &self.ways {
            eventually(secs(60), "the probes arrive again", || {
                let arrivals = flow.arrivals(to);
                let calm = arrivals.len().checked_sub(100)?;
                (arrivals[calm].0 > now).then_some(())
            });
        }
        let until = Instant::now();
        let gaps = self
            .ways
            .each_ref()
            .map(|(flow, to, _)| longest_gap(&flow.arrivals(to), self.since, until));
        for (_, _, stream) in self.ways {
            stream.stop();
        }
        gaps
    }

    fn assert_short_gaps(self, what: &str) {
        let [there, back] = self.settle();
        println!("{what}: longest gap {there:?} from A to B, {back:?} from B to A");
        assert!(
            there < GAP_MAX && back < GAP_MAX,
            "{what}: A to B {there:?}, B to A {back:?}"
        );
    }
}

#[test]
fn a_side_without_a_known_address_may_roam() {
    let pair = Pair::start(Plan {
        b_knows_a: false,
        ..Plan::default()
    });
    let probes = Probes::start(&pair.at_a, &pair.at_b);
    let address = move_to(&pair.a, 77);
    probes.assert_short_gaps("A moved");
    assert_followed(&pair.b, address);
}

#[test]
fn a_side_that_the_other_has_configured_may_roam() {
    let pair = Pair::start(Plan::default());
    let probes = Probes::start(&pair.at_a, &pair.at_b);
    let address = move_to(&pair.b, 88);
    probes.assert_short_gaps("B moved");
    assert_followed(&pair.a, address);
}

#[test]
fn both_sides_roam_one_after_the_other() {
    let pair = Pair::start(Plan::default());
    let probes = Probes::start(&pair.at_a, &pair.at_b);
    let at = move_to(&pair.a, 77);
    assert_followed(&pair.b, at);
    move_to(&pair.b, 88);
    probes.assert_short_gaps("A moved, then B");
}

#[test]
fn traffic_is_back_after_a_restart_of_the_side_that_calls() {
    let mut pair = Pair::start(Plan {
        b_knows_a: false,
        ..Plan::default()
    });
    let probes = Probes::start(&pair.at_a, &pair.at_b);
    pair.a.kill_9();
    pair.a.up();
    probes.assert_short_gaps("A was killed and started");
}

#[test]
fn traffic_is_back_after_a_restart_of_the_side_that_waits() {
    let mut pair = Pair::start(Plan {
        b_knows_a: false,
        ..Plan::default()
    });
    let probes = Probes::start(&pair.at_a, &pair.at_b);
    pair.b.kill_9();
    pair.b.up();
    probes.assert_short_gaps("B was killed and started");
}

#[test]
fn traffic_is_back_after_a_restart_when_both_know_each_other() {
    let mut pair = Pair::start(Plan::default());
    let probes = Probes::start(&pair.at_a, &pair.at_b);
    pair.b.kill_9();
    pair.b.up();
    probes.assert_short_gaps("B was killed and started");
}

#[test]
fn traffic_is_back_after_the_underlay_was_cut() {
    let pair = Pair::start(Plan::default());
    let probes = Probes::start(&pair.at_a, &pair.at_b);
    let (port, gateway) = (pair.a.uplink.router_port(), pair.a.uplink.other_v4(1));
    pair.internet.ns.ip(&format!("link set {port} down"));
    eventually(secs(15), "A notices that B is gone", || {
        (pair.a.peer().state != "up").then_some(())
    });
    // Arrivals from before the cut do not end a gap.
    for cable in [&pair.at_a, &pair.at_b] {
        cable.clear();
    }
    let cut_until = Instant::now();
    pair.internet.ns.ip(&format!("link set {port} up"));
    pair.a
        .ns
        .ip(&format!("route replace default via {gateway}"));
    let [there, back] = Probes {
        since: cut_until,
        ..probes
    }
    .settle();
    assert!(
        there < secs(3) && back < secs(3),
        "after the cut: A to B {there:?}, B to A {back:?}"
    );
}

#[test]
fn rekeying_under_load_loses_nothing() {
    rekeys_under_load(false);
}

#[test]
fn sides_that_called_each_other_at_once_rekey_in_time() {
    rekeys_under_load(true);
}

fn rekeys_under_load(b_knows_a: bool) {
    let settings = Settings {
        tunnel: "rekey-interval = \"1s\"",
        ..Settings::default()
    };
    let pair = Pair::start(Plan {
        settings,
        b_knows_a,
        ..Plan::default()
    });
    let _turn = load::some();
    let before = pair.a.peer().handshakes;
    let sizes = |number: u64| [60, 1514, 500, 1514][number as usize % 4];
    let ways = [
        (pair.there(), &pair.at_a, &pair.at_b),
        (pair.back(), &pair.at_b, &pair.at_a),
    ];
    let streams = ways.map(|(flow, from, to)| from.stream_to(to, flow, millis(1), sizes));
    eventually(secs(12), "five handshakes under load", || {
        (pair.a.peer().handshakes >= before + 5).then_some(())
    });
    for ((flow, _, to), stream) in ways.into_iter().zip(streams) {
        let sent = stream.stop();
        flow.wait_number(to, sent - 1, secs(20));
        assert_eq!(flow.tally(to, sent), Tally::perfect(sent));
    }
}
