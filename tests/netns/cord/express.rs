// SPDX-License-Identifier: MIT OR Apache-2.0
//! The express lane: flows that send little have a lane of their own, and each flow keeps its order
//! when it changes its lane.

use std::thread;

use crate::kit::frames::{DOT1Q, Flow, Tally};
use crate::kit::load;
use crate::kit::pair::{Pair, Plan};
use crate::kit::process::{eventually, millis, secs};
use crate::kit::site::Settings;
use crate::kit::traffic::{iperf, pings};
use crate::kit::wiretap::Wiretap;

use super::lanes::lanes_of;

const EXPRESS: u8 = 9;
/// A flow that is silent for longer sends little again.
const SILENCE: std::time::Duration = millis(510);

/// Both sides up, with these lines in their section `[pipeline]`.
fn start(pipelines: [&'static str; 2]) -> Pair {
    let mut pair = Pair::prepare(Plan::default());
    let settings = pipelines.map(|pipeline| Settings {
        tunnel: format!("[pipeline]\n{pipeline}").leak(),
        ..Settings::default()
    });
    let peers = [&pair.b, &pair.a].map(|site| site.as_peer(Some(site.uplink.v4.into())));
    pair.a.configure(&settings[0], &peers[..1]);
    pair.b.configure(&settings[1], &peers[1..]);
    pair.up();
    pair.connect(secs(30));
    // B learns where the destination of the flows is, and does not limit them as unknown.
    let back = Flow {
        src: pair.at_b.mac,
        dst: pair.at_a.mac,
        id: 99,
    };
    pair.at_b.send(&back.frame(0, 60));
    assert!(back.wait_number(&pair.at_a, 0, secs(20)));
    pair
}

/// This many flows from A to B, each of its own station.
fn flows(pair: &Pair, count: u8) -> Vec<Flow> {
    let station = |number: u8| {
        let mut mac = pair.at_a.mac;
        mac[4] = mac[4].wrapping_add(0x40);
        mac[3] = number;
        mac
    };
    let flow = |number: u8| Flow {
        src: station(number),
        dst: pair.at_b.mac,
        id: 100 + u16::from(number),
    };
    (0..count).map(flow).collect()
}

/// The frame with this number, perhaps with a VLAN tag.
fn frame(flow: &Flow, number: u64, len: usize, is_tagged: bool) -> Vec<u8> {
    let mut frame = flow.frame(number, len);
    if is_tagged {
        let [high, low] = DOT1Q.to_be_bytes();
        frame.splice(12..12, [high, low, 0, 7]);
    }
    frame
}

/// The numbers of the flow's frames in the order in which they came out at B.
fn numbers(pair: &Pair, flow: &Flow, is_tagged: bool) -> Vec<u64> {
    pair.at_b.with_arrivals(|all| {
        let number = |bytes: &[u8]| {
            let mut bytes = bytes.to_vec();
            if is_tagged && bytes.len() > 16 {
                bytes.drain(12..16);
            }
            flow.number(&bytes)
        };
        all.iter()
            .filter_map(|arrival| number(&arrival.bytes))
            .collect()
    })
}

/// A round of each flow: a few frames, then many at once, that make it change its lane.
fn send_round(pair: &Pair, flows: &[Flow], sent: u64, is_tagged: bool) -> u64 {
    const FEW: u64 = 3;
    const MANY: u64 = 16;
    let sizes = [60, 1500, 300, 1514, 900, 64];
    for number in sent..sent + FEW {
        for flow in flows {
            pair.at_a.send(&frame(flow, number, 60, is_tagged));
        }
    }
    for flow in flows {
        for number in sent + FEW..sent + FEW + MANY {
            let len = sizes[number as usize % sizes.len()];
            let len = if is_tagged { len.min(1510) } else { len };
            pair.at_a.send(&frame(flow, number, len, is_tagged));
        }
    }
    sent + FEW + MANY
}

fn assert_order_across_changes(pair: &Pair, rounds: usize) {
    for is_tagged in [false, true] {
        pair.at_b.clear();
        let _turn = load::some();
        let flows = flows(pair, 8);
        let mut sent = 0;
        for _ in 0..rounds {
            sent = send_round(pair, &flows, sent, is_tagged);
            for flow in &flows {
                eventually(secs(20), "the round arrives", || {
                    let last = numbers(pair, flow, is_tagged).len() as u64;
                    (last >= sent).then_some(())
                });
            }
            thread::sleep(SILENCE);
        }
        for flow in &flows {
            let arrived = numbers(pair, flow, is_tagged);
            let mut pairs = arrived.iter().zip(0..);
            if let Some(place) = pairs.position(|(&number, expected)| number != expected) {
                let around = &arrived[place.saturating_sub(3)..(place + 20).min(arrived.len())];
                panic!("flow {}, tagged {is_tagged}: {around:?}", flow.id);
            }
            assert_eq!(arrived.len() as u64, sent);
        }
    }
}

#[test]
fn a_flow_keeps_its_order_when_it_changes_its_lane() {
    for lanes in ["lanes = 1\nexpress = true", "lanes = 3\nexpress = true"] {
        let pair = start([lanes; 2]);
        let wiretap = Wiretap::before(&pair.internet, &pair.b);
        assert_order_across_changes(&pair, 12);
        let carried = [&pair.a, &pair.b].map(|site| site.status().core_plan.express);
        let [Some(a), Some(b)] = carried else {
            panic!("both have an express lane: {carried:?}")
        };
        assert!(a.outbound_frames > 0 && b.inbound_frames > 0, "{carried:?}");
        let lanes = lanes_of(&wiretap.from(pair.a.uplink.v4));
        assert!(
            lanes.contains_key(&EXPRESS) && lanes.len() > 1,
            "{:?}",
            lanes.keys()
        );
    }
}

#[test]
fn ends_with_and_without_an_express_lane_get_along() {
    for pipelines in [
        ["lanes = 1\nexpress = true", "lanes = 1"],
        ["lanes = 2", "lanes = 1\nexpress = true"],
        [
            "lanes = 3\nexpress = true",
            "plan = \"staged\"\nexpress = true",
        ],
    ] {
        let pair = start(pipelines);
        for (site, pipeline) in [&pair.a, &pair.b].into_iter().zip(pipelines) {
            let plan = site.status().core_plan;
            let threads = plan.threads;
            let has_express = ["express-out", "express-in"]
                .map(|name| threads.iter().any(|thread| thread.name == name));
            let expected = pipeline.contains("express") && !pipeline.contains("staged");
            assert_eq!(has_express, [expected; 2], "{pipeline}");
            assert_eq!(plan.express.is_some(), expected, "{pipeline}");
        }
        assert_order_across_changes(&pair, 3);
        let (a, b) = (pair.a.host(2), pair.b.host(2));
        for (from, to) in [(&a, &b), (&b, &a)] {
            pings(from, &to.v4.to_string(), 5, 56);
            let rate = iperf(pair.sandbox.path(), from, to, &["--parallel", "2"]);
            assert!(rate > 1e6, "{pipelines:?}: {rate}");
        }
    }
}

#[test]
fn a_flow_that_sends_little_is_express_and_one_that_sends_much_is_not() {
    let pair = start(["lanes = 1\nexpress = true"; 2]);
    let wiretap = Wiretap::before(&pair.internet, &pair.b);
    let lane_of = |payload: usize| {
        let seen = wiretap.from(pair.a.uplink.v4);
        let found = seen
            .iter()
            .find(|datagram| datagram.payload.len() == payload + 28);
        found.map(|datagram| datagram.payload[4])
    };
    let [sparse, bulk] = flows(&pair, 2)[..] else {
        unreachable!("there are two")
    };
    pair.at_a.send(&sparse.frame(0, 333));
    let lane = eventually(secs(20), "it is on its way", || lane_of(333));
    assert_eq!(lane, EXPRESS);
    let sent = eventually(secs(20), "bulk leaves by lane 1", || {
        for number in 0..20 {
            pair.at_a.send(&bulk.frame(number, 1400));
        }
        pair.at_a.send(&bulk.frame(20, 222));
        eventually(secs(20), "it is on its way", || lane_of(222));
        let lanes = lanes_of(&wiretap.from(pair.a.uplink.v4));
        lanes.contains_key(&1).then_some(20)
    });
    pair.at_a.send(&sparse.frame(1, 334));
    let lane = eventually(secs(20), "it is on its way", || lane_of(334));
    assert_eq!((lane, sent), (EXPRESS, 20));
}

#[test]
fn a_flood_of_short_flows_takes_nothing_from_others() {
    const STATIONS: u8 = 200;
    const ROUNDS: u64 = 20;
    let pair = start(["lanes = 1\nexpress = true"; 2]);
    let _turn = load::some();
    let wiretap = Wiretap::before(&pair.internet, &pair.b);
    let flows = flows(&pair, STATIONS);
    let [short @ .., sparse, bulk] = &flows[..] else {
        unreachable!("there are more")
    };
    let mut sent_of_bulk = 0;
    for number in 0..ROUNDS {
        // A full queue of the device would drop: these are fewer frames.
        for flow in short {
            pair.at_a.send(&flow.frame(number, 60));
        }
        pair.at_a.send(&sparse.frame(number, 60));
        for _ in 0..20 {
            pair.at_a.send(&bulk.frame(sent_of_bulk, 1400));
            sent_of_bulk += 1;
        }
        let sent = sent_of_bulk + (number + 1) * (u64::from(STATIONS) - 1);
        eventually(secs(20), "the round arrives", || {
            let arrived: u64 = flows.iter().map(|flow| flow.count(&pair.at_b)).sum();
            (arrived >= sent).then_some(())
        });
    }
    for flow in short.iter().chain([sparse]) {
        assert_eq!(
            flow.tally(&pair.at_b, ROUNDS),
            Tally::perfect(ROUNDS),
            "flow {}",
            flow.id
        );
    }
    assert_eq!(
        bulk.tally(&pair.at_b, sent_of_bulk),
        Tally::perfect(sent_of_bulk)
    );
    let lanes = lanes_of(&wiretap.from(pair.a.uplink.v4));
    assert!(lanes.contains_key(&1), "{:?}", lanes.keys());
}
