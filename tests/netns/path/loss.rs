// SPDX-License-Identifier: MIT OR Apache-2.0
//! A path that loses, reorders, repeats and delays: frames arrive unchanged, and once.

use std::time::{Duration, Instant};

use patchcord_relay::{Harm, Relay, Report};

use crate::kit::cable::Cable;
use crate::kit::frames::{BROADCAST, EXPERIMENTAL, Flow, Tally, frame};
use crate::kit::load;
use crate::kit::pair::{Pair, Plan, connect};
use crate::kit::process::{eventually, secs};
use crate::kit::site::Settings;
use crate::kit::splice::Splice;
use crate::kit::topology::Sandbox;
use crate::kit::traffic::{DATAGRAMS_AT_ONCE, Ip, assert_checksums, nstat, shower, transfer};

/// Two sites on a bad path.
struct Bad {
    splice: Splice,
    pair: Pair,
}

impl Bad {
    fn start(harm: &Harm) -> Self {
        Self::with(Settings::default(), harm)
    }

    fn with(settings: Settings, harm: &Harm) -> Self {
        let mut pair = Pair::prepare(Plan {
            settings,
            ..Plan::default()
        });
        let splice = Splice::into(&pair.sandbox, &pair.internet, &pair.a, harm);
        pair.up();
        pair.connect(secs(20));
        Self { splice, pair }
    }

    /// Thousands of frames of all sizes both ways. Panics if one of them is changed on its way.
    fn exchange(&self) -> [Tally; 2] {
        let sizes = u64::from(self.pair.settings.overlay_mtu) + 14 - 59;
        self.exchange_of(move |number| {
            60 + usize::try_from(number * 769 % sizes).expect("a frame size")
        })
    }

    /// The same, with a size that follows from the number of each frame.
    fn exchange_of(&self, size: impl Fn(u64) -> usize + Copy + Send + 'static) -> [Tally; 2] {
        let pair = &self.pair;
        let ways = [
            (pair.there(), &pair.at_a, &pair.at_b),
            (pair.back(), &pair.at_b, &pair.at_a),
        ];
        let is_jumbo = pair.settings.overlay_mtu > 1500;
        let _turn = if is_jumbo { load::half() } else { load::some() };
        let streams =
            ways.map(|(flow, from, to)| from.stream_to(to, flow, Duration::from_micros(500), size));
        eventually(secs(120), "enough was sent", || {
            let is_enough = streams.iter().all(|stream| stream.sent() >= 6000);
            is_enough.then_some(())
        });
        let sent = streams.map(|stream| stream.stop());
        [0, 1].map(|way| {
            let ((flow, from, to), sent) = (ways[way], sent[way]);
            settle(flow, from, to, sent);
            flow.tally(to, sent)
        })
    }
}

/// Waits until every frame that is not lost has come out: nothing more comes.
fn settle(flow: Flow, from: &Cable, to: &Cable, sent: u64) {
    connect(from, to, secs(20));
    let (mut arrived, mut last) = (0, Instant::now());
    eventually(secs(60), "frames settle", || {
        let count = flow.count(to);
        if count != arrived {
            (arrived, last) = (count, Instant::now());
        }
        (count >= sent || last.elapsed() > secs(2)).then_some(())
    });
}

/// At least one frame was lost, at most `most_percent` of them, and none was repeated or reordered.
fn assert_only_lost(tally: Tally, most_percent: u64) {
    assert!(tally.lost > 0, "{tally:?}");
    assert!(tally.lost * 100 < tally.sent * most_percent, "{tally:?}");
    assert_eq!((tally.duplicates, tally.reordered), (0, 0), "{tally:?}");
}

fn sum(report: &Report, count: impl Fn(&patchcord_relay::Counters) -> u64) -> u64 {
    count(&report.a_to_b) + count(&report.b_to_a)
}

/// The relay itself: tags come out in their place, and only IP is harmed.
#[test]
fn a_relay_carries_frames_of_any_kind_and_loses_ip_only() {
    let sandbox = Sandbox::new();
    let ns = sandbox.namespace("relay");
    let [near, far] = ["near", "far"].map(|name| {
        let bridge = format!("br-{name}");
        ns.ip(&format!(
            "link add {bridge} type bridge mcast_snooping 0\nlink set {bridge} addrgenmode none\nlink set {bridge} up"
        ));
        Cable::plug(&ns, &bridge, name, [0x02, 0xca, 0, 0, 0, 1], 1500)
    });
    let harm = Harm {
        loss_percent: 50.0,
        ..Harm::default()
    };
    let relay = ns.enter(|| Relay::start("near", "far", &harm)).unwrap();
    let tags: [&[(u16, u16)]; 4] = [
        &[],
        &[(0x8100, 0x602a)],
        &[(0x88a8, 7), (0x8100, 42)],
        &[(0x8100, 1), (0x8100, 2)],
    ];
    for (from, to) in [(&near, &far), (&far, &near)] {
        for seed in 0..40 {
            let tags = tags[seed % tags.len()];
            let untouched = frame(BROADCAST, from.mac, tags, EXPERIMENTAL, 60 + seed * 37, 1);
            from.send(&untouched);
            assert!(to.receives(&untouched, secs(20)), "{untouched:x?}");
            from.send(&frame(BROADCAST, from.mac, tags, 0x0800, 60 + seed * 37, 2));
        }
    }
    let report = relay.stop().unwrap();
    for counters in [report.a_to_b, report.b_to_a] {
        assert_eq!(counters.untouched, 40, "{counters:?}");
        assert!((5..35).contains(&counters.fates.lost), "{counters:?}");
    }
}

#[test]
fn lost_datagrams_cost_their_own_frames_and_change_no_order() {
    let bad = Bad::start(&Harm {
        loss_percent: 1.0,
        ..Harm::default()
    });
    // A frame in two datagrams can be lost with either.
    for tally in bad.exchange() {
        assert_only_lost(tally, 4);
    }
    assert!(sum(&bad.splice.cut(), |counters| counters.fates.lost) > 20);
}

#[test]
fn bursts_of_lost_datagrams_cost_their_own_frames_and_change_no_order() {
    let bad = Bad::start(&Harm {
        loss_percent: 5.0,
        loss_burst: Some(5.0),
        ..Harm::default()
    });
    for tally in bad.exchange() {
        assert_only_lost(tally, 12);
    }
    assert!(sum(&bad.splice.cut(), |counters| counters.fates.lost) > 100);
}

#[test]
fn jumbo_frames_in_many_pieces_come_whole_or_not_at_all() {
    let settings = Settings {
        overlay_mtu: 9000,
        ..Settings::default()
    };
    let harm = Harm {
        loss_percent: 1.0,
        ..Harm::default()
    };
    // Up to seven pieces, each of which may be lost.
    for tally in Bad::with(settings, &harm).exchange() {
        assert_only_lost(tally, 9);
    }
}

#[test]
fn the_staged_plan_keeps_the_order_of_delivered_frames() {
    let settings = Settings {
        tunnel: "[pipeline]\nplan = \"staged\"\nworkers = 3",
        ..Settings::default()
    };
    let harm = Harm {
        loss_percent: 5.0,
        loss_burst: Some(5.0),
        ..Harm::default()
    };
    for tally in Bad::with(settings, &harm).exchange() {
        assert_only_lost(tally, 12);
    }
}

#[test]
fn reordered_datagrams_lose_and_repeat_nothing() {
    let bad = Bad::start(&Harm {
        reorder_percent: 2.0,
        reorder_by: 3,
        ..Harm::default()
    });
    for tally in bad.exchange() {
        assert_eq!((tally.lost, tally.duplicates), (0, 0), "{tally:?}");
        assert!(tally.reordered > 0, "the path reorders: {tally:?}");
    }
    bad.splice.cut();
}

/// Each of these frames is in two datagrams, which are delayed by up to so many milliseconds.
fn assert_survives_jitter(most_ms: f64) {
    let bad = Bad::start(&Harm {
        delay_ms: most_ms / 2.0,
        jitter_ms: most_ms / 2.0,
        overtake: true,
        ..Harm::default()
    });
    for tally in bad.exchange_of(|_| 1514) {
        assert_eq!((tally.lost, tally.duplicates), (0, 0), "{tally:?}");
        assert!(tally.reordered > 0, "the path reorders: {tally:?}");
    }
    for site in [&bad.pair.a, &bad.pair.b] {
        assert_eq!(site.drops("reassembly-evicted"), 0);
    }
    bad.splice.cut();
}

#[test]
fn frames_in_pieces_survive_datagrams_that_overtake_each_other_by_40_ms() {
    assert_survives_jitter(40.0);
}

#[test]
fn frames_in_pieces_survive_datagrams_that_overtake_each_other_by_200_ms() {
    assert_survives_jitter(200.0);
}

#[test]
fn repeated_datagrams_do_not_surface() {
    let bad = Bad::start(&Harm {
        duplicate_percent: 1.0,
        ..Harm::default()
    });
    for tally in bad.exchange() {
        assert_eq!(tally, Tally::perfect(tally.sent));
    }
    let repeated = sum(&bad.splice.cut(), |counters| counters.fates.duplicated);
    let refused = bad.pair.a.drops("replayed") + bad.pair.b.drops("replayed");
    assert!(repeated > 20, "the path repeats: {repeated}");
    // Some repeated datagrams are handshake messages, which have a counter of their own.
    assert!(
        refused <= repeated && refused + 5 >= repeated,
        "{refused} of {repeated}"
    );
}

#[test]
fn a_long_path_delays_and_loses_nothing() {
    let bad = Bad::start(&Harm {
        delay_ms: 20.0,
        ..Harm::default()
    });
    for tally in bad.exchange() {
        assert_eq!(tally, Tally::perfect(tally.sent));
    }
    let rtt_us = eventually(secs(60), "an echo comes back", || bad.pair.a.peer().rtt_us);
    assert!(rtt_us >= 40_000, "the path is long: {rtt_us} µs");
    bad.splice.cut();
}

/// All at once.
fn everything(delay_ms: f64) -> Harm {
    Harm {
        loss_percent: 1.0,
        loss_burst: Some(3.0),
        reorder_percent: 2.0,
        reorder_by: 3,
        duplicate_percent: 1.0,
        delay_ms,
        jitter_ms: delay_ms / 10.0,
        ..Harm::default()
    }
}

#[test]
fn everything_at_once_changes_and_repeats_nothing() {
    let bad = Bad::start(&everything(20.0));
    for tally in bad.exchange() {
        assert!(
            tally.lost > 0 && tally.lost * 100 < tally.sent * 5,
            "{tally:?}"
        );
        assert_eq!(tally.duplicates, 0, "{tally:?}");
    }
    bad.splice.cut();
}

#[test]
fn tcp_retransmits_about_as_much_as_is_lost() {
    for loss_percent in [1, 5] {
        assert_retransmits(loss_percent);
    }
}

fn assert_retransmits(loss_percent: u32) {
    let bad = Bad::start(&Harm {
        loss_percent: loss_percent.into(),
        ..Harm::default()
    });
    let (a, b) = (bad.pair.a.host(1), bad.pair.b.host(1));
    for (from, to) in [(&a, &b), (&b, &a)] {
        transfer(from, to, Ip::V4, 256);
        let names = ["TcpOutSegs", "TcpRetransSegs"];
        let segments = nstat(&from.ns, &names);
        let (out, again) = (segments["TcpOutSegs"], segments["TcpRetransSegs"]);
        // The loss of one datagram of a super-frame must not cost the whole super-frame.
        println!("{again} of {out} segments were sent again");
        let most = u64::from(loss_percent) * 3 + 5;
        assert!(again > 0 && again * 100 < out * most, "{again} of {out}");
    }
    assert_checksums(&[&bad.pair.a.ns, &bad.pair.b.ns, &a.ns, &b.ns]);
    assert!(sum(&bad.splice.cut(), |counters| counters.fates.lost) > 20);
}

#[test]
fn tcp_crosses_a_path_that_does_everything() {
    for (delay_ms, blocks) in [(0.0, 128), (20.0, 16)] {
        let bad = Bad::start(&everything(delay_ms));
        let (a, b) = (bad.pair.a.host(1), bad.pair.b.host(1));
        transfer(&a, &b, Ip::V4, blocks);
        transfer(&b, &a, Ip::V4, blocks);
        assert_checksums(&[&bad.pair.a.ns, &bad.pair.b.ns, &a.ns, &b.ns]);
        bad.splice.cut();
    }
}

#[test]
fn udp_loses_only_datagrams_that_the_path_loses() {
    for loss_percent in [1, 5] {
        assert_only_datagrams_lost(loss_percent);
    }
}

fn assert_only_datagrams_lost(loss_percent: u32) {
    let bad = Bad::start(&Harm {
        loss_percent: loss_percent.into(),
        ..Harm::default()
    });
    let (a, b) = (bad.pair.a.host(1), bad.pair.b.host(1));
    for (from, to) in [(&a, &b), (&b, &a)] {
        let numbers = shower(from, to, Ip::V4, 100);
        let lost = 100 * DATAGRAMS_AT_ONCE - numbers.len() as u64;
        let most = 4 * DATAGRAMS_AT_ONCE * u64::from(loss_percent);
        assert!(lost > 0 && lost < most, "{lost} were lost");
        assert!(
            numbers.windows(2).all(|pair| pair[0] < pair[1]),
            "in order, each once"
        );
    }
    assert_checksums(&[&bad.pair.a.ns, &bad.pair.b.ns, &a.ns, &b.ns]);
    bad.splice.cut();
}

#[test]
fn udp_datagrams_come_once_on_a_path_that_does_everything() {
    let bad = Bad::start(&everything(20.0));
    let (a, b) = (bad.pair.a.host(1), bad.pair.b.host(1));
    for (from, to) in [(&a, &b), (&b, &a)] {
        let mut numbers = shower(from, to, Ip::V4, 100);
        let came = numbers.len();
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), came, "each once");
        assert!(came as u64 > 95 * DATAGRAMS_AT_ONCE, "only {came} came");
    }
    assert_checksums(&[&bad.pair.a.ns, &bad.pair.b.ns, &a.ns, &b.ns]);
    bad.splice.cut();
}

#[test]
fn a_plain_back_end_cuts_super_frames_with_holes() {
    let mut pair = Pair::prepare(Plan::default());
    let plain = Settings {
        device: "backend = \"plain\"",
        ..Settings::default()
    };
    let peer = pair.a.as_peer(Some(pair.a.uplink.v4.into()));
    pair.b.configure(&plain, &[peer]);
    let harm = Harm {
        loss_percent: 5.0,
        ..Harm::default()
    };
    let splice = Splice::into(&pair.sandbox, &pair.internet, &pair.a, &harm);
    pair.up();
    pair.connect(secs(20));
    let (a, b) = (pair.a.host(1), pair.b.host(1));
    for ip in [Ip::V4, Ip::V6] {
        transfer(&a, &b, ip, 64);
        let numbers = shower(&a, &b, ip, 50);
        let sent = 50 * DATAGRAMS_AT_ONCE;
        let lost = sent - numbers.len() as u64;
        assert!(lost > 0 && lost * 5 < sent, "{lost} of {sent} were lost");
        assert!(numbers.is_sorted_by(|a, b| a < b), "in order, each once");
    }
    assert!(pair.b.drops("segment-lost") > 0, "super-frames were cut");
    assert_eq!(pair.b.drops("bad-offload"), 0);
    assert_checksums(&[&pair.a.ns, &pair.b.ns, &a.ns, &b.ns]);
    splice.cut();
}
