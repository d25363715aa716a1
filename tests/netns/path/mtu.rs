// SPDX-License-Identifier: MIT OR Apache-2.0
//! No MTU setting: full frames cross whatever the path carries, also when that changes without notice.

use std::time::Duration;

use crate::kit::cable::Cable;
use crate::kit::frames::{EXPERIMENTAL, Flow, Tally, frame};
use crate::kit::pair::{Pair, Plan};
use crate::kit::process::{eventually, millis, secs};
use crate::kit::site::{Settings, Site};

/// A search that waits out a few lost probes.
const SEARCH: Duration = secs(10);

fn settles_at(site: &Site, mtu: u32) {
    let mut seen = None;
    eventually(
        SEARCH,
        &format!("{} finds a path MTU of {mtu}", site.tunnel),
        || {
            seen = site.peer().path_mtu;
            (seen == Some(mtu)).then_some(())
        },
    );
}

/// Frames of the largest and of small sizes, tagged and not, cross in both directions.
fn assert_full_frames_cross(pair: &Pair, seed: u64) {
    let mtu = pair.settings.overlay_mtu as usize;
    for (from, to) in [(&pair.at_a, &pair.at_b), (&pair.at_b, &pair.at_a)] {
        let shapes: [(&[(u16, u16)], usize); 4] = [
            (&[], 60),
            (&[], mtu + 14),
            (&[(0x8100, 42)], mtu + 18),
            (&[(0x88a8, 7), (0x8100, 42)], mtu + 22),
        ];
        for (seed, (tags, len)) in (seed..).zip(shapes) {
            let sent = frame(to.mac, from.mac, tags, EXPERIMENTAL, len, seed);
            from.send(&sent);
            assert!(
                to.receives(&sent, secs(20)),
                "{len} bytes, {} tags",
                tags.len()
            );
        }
    }
}

fn full_frames_cross_an_underlay_of(underlay_mtu: u32, overlay_mtu: u32) -> Pair {
    let settings = Settings {
        overlay_mtu,
        ..Settings::default()
    };
    let pair = Pair::start(Plan {
        underlay_mtu,
        settings,
        ..Plan::default()
    });
    assert_full_frames_cross(&pair, 1);
    settles_at(&pair.a, underlay_mtu);
    settles_at(&pair.b, underlay_mtu);
    assert_full_frames_cross(&pair, 100);
    pair
}

#[test]
fn full_frames_cross_an_underlay_of_1280() {
    full_frames_cross_an_underlay_of(1280, 1500);
}

#[test]
fn full_frames_cross_an_underlay_of_1400() {
    full_frames_cross_an_underlay_of(1400, 1500);
}

#[test]
fn full_frames_cross_an_underlay_of_1500() {
    full_frames_cross_an_underlay_of(1500, 1500);
}

#[test]
fn a_jumbo_underlay_is_used_for_jumbo_frames() {
    let pair = full_frames_cross_an_underlay_of(9000, 9000);
    let before = pair.a.peer().counters.outbound_datagrams;
    for number in 0..100 {
        pair.at_a.send(&pair.there().frame(number, 8900));
    }
    assert!(
        pair.there().wait_number(&pair.at_b, 99, secs(20)),
        "the frames arrive"
    );
    let datagrams = pair.a.peer().counters.outbound_datagrams - before;
    assert!(
        (100..150).contains(&datagrams),
        "100 frames of 8900 bytes took {datagrams} datagrams"
    );
}

#[test]
fn an_odd_path_mtu_is_found_exactly() {
    let pair = Pair::start(Plan {
        underlay_mtu: 1337,
        ..Plan::default()
    });
    assert_full_frames_cross(&pair, 1);
    settles_at(&pair.a, 1337);
    assert_full_frames_cross(&pair, 100);
}

#[test]
fn a_path_of_700_bytes_is_used_in_full() {
    let mut pair = Pair::prepare(Plan::default());
    for site in [&pair.a, &pair.b] {
        site.ns.ip("link set wan mtu 700");
    }
    pair.up();
    pair.connect(secs(10));
    settles_at(&pair.a, 700);
    settles_at(&pair.b, 700);
    assert_full_frames_cross(&pair, 1);
}

/// Full-size numbered frames every 2 ms in both directions while `change` happens; afterwards, all
/// frames cross again.
fn survives(pair: &Pair, change: impl FnOnce(&Pair)) {
    let ways: [(Flow, &Cable, &Cable); 2] = [
        (pair.there(), &pair.at_a, &pair.at_b),
        (pair.back(), &pair.at_b, &pair.at_a),
    ];
    let streams = ways.map(|(flow, from, _)| from.stream(flow, millis(2), |_| 1514));
    for (flow, _, to) in ways {
        assert!(
            flow.wait_number(to, 50, secs(20)),
            "frames flow before the change"
        );
    }
    change(pair);
    for (flow, _, to) in ways {
        let seen = flow.count(to);
        eventually(SEARCH, "full frames flow after the change", || {
            (flow.count(to) > seen + 200).then_some(())
        });
    }
    // From here on, no frame may be lost any more.
    for ((flow, from, to), stream) in ways.into_iter().zip(streams) {
        let sent = stream.stop();
        let tally = flow.tally(to, sent);
        println!("flow {}: {tally:?}", flow.id);
        assert_eq!(tally.duplicates, 0, "nothing arrives twice");
        let calm = Flow {
            id: flow.id + 100,
            ..flow
        };
        for number in 0..200 {
            from.send(&calm.frame(number, 1514));
            calm.wait_number(to, number, millis(500));
        }
        assert_eq!(calm.tally(to, 200), Tally::perfect(200), "after the change");
    }
}

#[test]
fn the_underlay_may_shrink_under_traffic() {
    let pair = Pair::start(Plan::default());
    settles_at(&pair.a, 1500);
    survives(&pair, |pair| {
        // The kernel of A knows (EMSGSIZE); the router refuses B's datagrams.
        let port = pair.a.uplink.router_port();
        pair.a.ns.ip("link set wan mtu 1400");
        pair.internet.ns.ip(&format!("link set {port} mtu 1400"));
    });
    settles_at(&pair.a, 1400);
    settles_at(&pair.b, 1400);
}

/// A smaller MTU of the own link for some seconds does not last for minutes, even on an idle tunnel.
#[test]
fn a_dip_of_the_own_link_is_over_soon() {
    let pair = Pair::start(Plan::default());
    settles_at(&pair.a, 1500);
    for has_traffic in [true, false] {
        pair.a.ns.ip("link set wan mtu 600");
        if has_traffic {
            pair.at_a.send(&pair.there().frame(0, 1514));
        }
        settles_at(&pair.a, 600);
        pair.a.ns.ip("link set wan mtu 1500");
        settles_at(&pair.a, 1500);
        assert_full_frames_cross(&pair, 100);
    }
}

/// Nor does one of a router on the path.
#[test]
fn a_dip_of_the_path_is_over_soon() {
    let pair = Pair::start(Plan::default());
    settles_at(&pair.a, 1500);
    let stream = pair.at_a.stream(pair.there(), millis(10), |_| 1514);
    narrow_one_way(&pair, 1300);
    settles_at(&pair.a, 1300);
    // Longer than the search.
    std::thread::sleep(secs(3));
    pair.internet.ns.nft("delete table ip narrow");
    eventually(secs(60), "the path MTU is what it was", || {
        (pair.a.peer().path_mtu == Some(1500)).then_some(())
    });
    stream.stop();
    assert_full_frames_cross(&pair, 100);
}

#[test]
fn a_path_that_carries_only_small_frames_is_reported() {
    let mut pair = Pair::prepare(Plan::default());
    narrow_one_way(&pair, 500);
    pair.up();
    eventually(secs(40), "the cause is shown", || {
        let peer = pair.a.try_status()?.peers.into_iter().next()?;
        let is_told = peer.last_error?.cause == "narrow-path" && peer.path_mtu.is_none();
        is_told.then_some(())
    });
    let told = "the path to it carries no packets of 576 bytes";
    pair.a.process().wait_for(told, secs(20));
    let shown = pair.a.patchcord(&["show", &pair.a.tunnel]).stdout;
    let shown = String::from_utf8_lossy(&shown).into_owned();
    assert!(
        shown.contains(told) && shown.contains("below 576 bytes"),
        "{shown}"
    );
    // The other direction has the full MTU.
    settles_at(&pair.b, 1500);
    pair.internet.ns.nft("delete table ip narrow");
    eventually(secs(60), "the path MTU is found", || {
        (pair.a.peer().path_mtu == Some(1500)).then_some(())
    });
    assert_full_frames_cross(&pair, 100);
}

#[test]
fn a_router_that_drops_large_datagrams_in_silence_is_survived() {
    let pair = Pair::start(Plan::default());
    settles_at(&pair.a, 1500);
    settles_at(&pair.b, 1500);
    survives(&pair, |pair| {
        // The router sends no "too big" messages, and also drops large packets that enter on its
        // narrow side.
        pair.internet.ns.nft(
            "table inet rude {
                chain out {
                    type filter hook output priority 0
                    meta l4proto { icmp, icmpv6 } drop
                }
            }",
        );
        let port = pair.b.uplink.router_port();
        pair.internet.ns.ip(&format!("link set {port} mtu 1300"));
    });
    settles_at(&pair.a, 1300);
    // A veth pair has room for a tag.
    settles_at(&pair.b, 1304);
}

#[test]
fn each_direction_has_a_path_mtu_of_its_own() {
    let mut pair = Pair::prepare(Plan::default());
    narrow_one_way(&pair, 1420);
    pair.up();
    pair.connect(secs(10));
    assert_full_frames_cross(&pair, 1);
    settles_at(&pair.a, 1420);
    settles_at(&pair.b, 1500);
    assert_full_frames_cross(&pair, 100);
}

/// Drops larger packets on the path from A to B, in silence.
fn narrow_one_way(pair: &Pair, mtu: u32) {
    // A train of datagrams would look like one large packet to the filter, so A's kernel cuts it first.
    pair.a
        .ns
        .run(&["ethtool", "-K", "wan", "tx-udp-segmentation", "off"]);
    let port = pair.b.uplink.router_port();
    pair.internet.ns.nft(&format!(
        "table ip narrow {{
            chain through {{
                type filter hook forward priority 0
                oifname {port} ip length > {mtu} drop
            }}
        }}"
    ));
}
