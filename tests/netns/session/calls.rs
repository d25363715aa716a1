// SPDX-License-Identifier: MIT OR Apache-2.0
//! How often peers that do not answer are called (PROTOCOL.md, "Sessions"), counted where the calls
//! leave: no change of this machine's addresses and routes makes it call more often.

use std::thread;
use std::time::{Duration, Instant};

use patchcord::internals::proto::limits::{
    EARLY_ATTEMPTS, HANDSHAKE_RETRY_MAX, INITIATION_BURST, INITIATION_RATE,
    ROUTE_INITIATION_INTERVAL,
};
use patchcord::keys::PrivateKey;

use crate::kit::namespace::Namespace;
use crate::kit::packets::router_advertisement;
use crate::kit::pair::{Pair, Plan};
use crate::kit::process::{eventually, millis, secs};
use crate::kit::site::{BRIDGE, Peer, Site, UDP_PORT};
use crate::kit::traffic::pings;

/// A network that drops every datagram.
const NOWHERE: &str = "203.0.113";

/// A and B, and so many dead peers of A.
fn with_dead_peers(peers: u8) -> Pair {
    let pair = Pair::prepare(Plan::default());
    let mut all = vec![pair.b.as_peer(Some(pair.b.uplink.v4.into()))];
    all.extend((1..=peers).map(|n| Peer {
        name: format!("dead{n}"),
        public_key: PrivateKey::generate().public_key().to_string(),
        endpoint: Some(format!("{NOWHERE}.{n}:{UDP_PORT}")),
        ..Peer::default()
    }));
    pair.a.configure(&pair.settings, &all);
    let swallow = format!("route add blackhole {NOWHERE}.0/24");
    pair.internet.ns.ip(&swallow);
    pair.a.ns.nft(&format!(
        "table ip calls {{\n  counter made {{ }}\n  chain out {{\n    type filter hook output priority 0;\n    \
         ip daddr {NOWHERE}.0/24 udp dport {UDP_PORT} counter name made\n  }}\n}}"
    ));
    pair
}

/// Calls of dead peers that have left so far. A sends nothing else to them.
fn calls(site: &Site) -> u64 {
    let shown = site
        .ns
        .run(&["nft", "list", "counter", "ip", "calls", "made"]);
    let (_, rest) = shown.split_once("packets ").expect("a counter");
    let number = rest.split(' ').next().and_then(|word| word.parse().ok());
    number.expect("a number")
}

/// The most that a node may send in `time`, however many peers it has.
fn rate(time: Duration) -> u64 {
    let rate = f64::from(INITIATION_RATE) * time.as_secs_f64();
    rate.ceil() as u64 + u64::from(INITIATION_BURST)
}

/// The most calls of one peer in `time`, with this distance between two.
fn once_in(distance: Duration, time: Duration) -> u64 {
    time.div_duration_f64(distance).ceil() as u64 + 1
}

#[test]
fn a_node_with_many_dead_peers_calls_at_one_rate() {
    const PEERS: u8 = 200;
    let mut pair = with_dead_peers(PEERS);
    let begun = Instant::now();
    pair.up();
    let enough = u64::from(PEERS) * 3;
    eventually(secs(120), "each is called", || {
        let made = calls(&pair.a);
        let most = rate(begun.elapsed());
        assert!(made <= most, "{made} calls, not more than {most}");
        (made >= enough).then_some(())
    });
    pair.connect(secs(20));
}

/// Runs `what` 200 times, within seconds.
fn often(ns: &Namespace, what: &str) {
    let script = format!("for i in $(seq 200); do {what}; sleep 0.02; done");
    ns.run(&["sh", "-ec", &script]);
}

/// Calls of dead peers while `f` runs, and how long it took.
fn calls_while(site: &Site, f: impl FnOnce()) -> (u64, Duration) {
    let begun = Instant::now();
    let before = calls(site);
    f();
    let made = calls(site) - before;
    (made, begun.elapsed())
}

#[test]
fn a_node_whose_addresses_and_routes_change_all_the_time_does_not_call_more_often() {
    const PEERS: u64 = 20;
    let mut pair = with_dead_peers(PEERS as u8);
    pair.up();
    pair.connect(secs(20));
    let early = PEERS * u64::from(EARLY_ATTEMPTS);
    eventually(secs(120), "the calls are far apart", || {
        (calls(&pair.a) > early + 4 * PEERS).then_some(())
    });
    let (site, a, b) = (&pair.a.ns, pair.a.host(1), pair.b.host(1));
    let wan = pair.a.uplink;
    let (gateway, second) = (wan.other_v4(1), wan.other_v4(7));
    site.ip(&format!("addr add {second}/24 dev wan"));
    let answers = || pings(&a, &b.v4.to_string(), 20, 1000);

    let ways_of_others = || {
        let events = format!(
            "ip route add 192.0.2.0/24 via {gateway}; ip addr add 10.9.9.9/32 dev lo; \
             ip route del 192.0.2.0/24; ip addr del 10.9.9.9/32 dev lo"
        );
        thread::scope(|scope| {
            scope.spawn(|| often(site, &events));
            answers();
        });
    };
    let stations_advertise = || {
        let accept = format!("echo 2 > /proc/sys/net/ipv6/conf/{BRIDGE}/accept_ra");
        site.run(&["sh", "-c", &accept]);
        let routes = || site.run(&["ip", "-6", "route", "show", "proto", "ra"]);
        for number in 0..200 {
            let lifetime = if number % 2 == 0 { 0 } else { 1800 };
            pair.at_b.send(&router_advertisement(lifetime));
            thread::sleep(millis(60));
        }
        eventually(secs(20), "they were accepted", || {
            routes().contains("via fe80::bad").then_some(())
        });
    };
    let events: [(&str, &dyn Fn()); 2] = [
        ("routes of others", &ways_of_others),
        ("router advertisements", &stations_advertise),
    ];
    for (what, events) in events {
        let (made, time) = calls_while(&pair.a, events);
        let most = PEERS * once_in(HANDSHAKE_RETRY_MAX, time);
        println!("{what}: {made} calls in {time:?}, {most} are allowed");
        assert!(made <= most, "{what}: {made} calls in {time:?}");
    }

    // Changes the route to the dead peers back and forth, slowly enough that each change is
    // noticed.
    let way_to_them = || {
        let way = format!("{NOWHERE}.0/24 via {gateway} src {second}");
        for _ in 0..10 {
            for verb in ["add", "del"] {
                site.ip(&format!("route {verb} {way}"));
                thread::sleep(millis(1200));
            }
        }
    };
    let (made, time) = calls_while(&pair.a, way_to_them);
    let most =
        PEERS * (once_in(HANDSHAKE_RETRY_MAX, time) + once_in(ROUTE_INITIATION_INTERVAL, time));
    println!("their own: {made} calls in {time:?}, {most} are allowed");
    assert!(made <= most, "their own route: {made} calls in {time:?}");
    answers();
    let status = pair.a.status();
    let living = status.peers.iter().find(|peer| peer.state == "up");
    assert_eq!(living.map(|peer| peer.name.as_str()), Some("site2"));
}
