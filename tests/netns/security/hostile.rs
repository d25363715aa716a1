// SPDX-License-Identifier: MIT OR Apache-2.0
//! An attacker on the path replays, mangles and floods; the link is not affected.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::thread;
use std::time::{Duration, Instant};

use crate::kit::frames::{EXPERIMENTAL, frame};
use crate::kit::load;
use crate::kit::pair::{Pair, Plan};
use crate::kit::process::{eventually, millis, secs};
use crate::kit::site::{Site, UDP_PORT};
use crate::kit::wiretap::{Datagram, Wiretap};

/// 100 frames from A to B arrive once each, and the datagrams that carried them.
fn exchange(pair: &Pair, wiretap: &Wiretap) -> Vec<Datagram> {
    let before = wiretap.from(pair.a.uplink.v4).len();
    let flow = pair.there();
    for number in 0..100 {
        pair.at_a.send(&flow.frame(number, 300));
        assert!(
            flow.wait_number(&pair.at_b, number, secs(20)),
            "frame {number} arrives"
        );
    }
    eventually(secs(20), "the wiretap has seen the datagrams", || {
        let seen = wiretap.from(pair.a.uplink.v4).split_off(before);
        (seen.len() >= 100).then_some(seen)
    })
}

/// A frame that was not sent before crosses, both ways, and each of the 100 came once.
fn assert_alive_and_nothing_twice(pair: &Pair, seed: u64) {
    for (from, to) in [(&pair.at_a, &pair.at_b), (&pair.at_b, &pair.at_a)] {
        let sent = frame(to.mac, from.mac, &[], EXPERIMENTAL, 200, seed);
        from.send(&sent);
        assert!(to.receives(&sent, secs(20)), "frames flow");
        assert_eq!(to.count(&sent), 1, "frames flow once");
    }
    let arrived = pair.there().count(&pair.at_b);
    assert_eq!(arrived, 100, "frames that came out of B");
}

/// Sends until `site` has counted `n` drops for `reason` more than `before`.
fn assert_counted(site: &Site, reason: &str, before: u64, n: u64) {
    let mut counted = 0;
    eventually(
        secs(5),
        &format!("{} counts {n} more of `{reason}`", site.tunnel),
        || {
            counted = site.drops(reason);
            (counted >= before + n).then_some(())
        },
    );
}

#[test]
fn a_replayed_datagram_is_delivered_once() {
    let pair = Pair::start(Plan::default());
    let mut wiretap = Wiretap::before(&pair.internet, &pair.b);
    let datagrams = exchange(&pair, &wiretap);
    let before = pair.b.drops("replayed");
    for datagram in datagrams.iter().chain(&datagrams) {
        wiretap.inject(datagram);
    }
    assert_counted(&pair.b, "replayed", before, 150);
    assert_alive_and_nothing_twice(&pair, 1);
}

#[test]
fn a_replay_from_another_address_does_not_move_the_endpoint() {
    let pair = Pair::start(Plan::default());
    let mut wiretap = Wiretap::before(&pair.internet, &pair.b);
    let datagrams = exchange(&pair, &wiretap);
    let (endpoint, before) = (pair.b.peer().endpoint, pair.b.drops("replayed"));
    for datagram in datagrams {
        wiretap.inject(&Datagram {
            src: SocketAddrV4::new(Ipv4Addr::new(198, 18, 9, 9), 999),
            ..datagram
        });
    }
    assert_counted(&pair.b, "replayed", before, 75);
    assert_eq!(pair.b.peer().endpoint, endpoint, "the endpoint of A");
    assert_alive_and_nothing_twice(&pair, 1);
}

#[test]
fn a_mangled_datagram_is_dropped() {
    let pair = Pair::start(Plan::default());
    let mut wiretap = Wiretap::before(&pair.internet, &pair.b);
    let datagrams = exchange(&pair, &wiretap);
    let before = pair.b.drops("bad-tag");
    for (n, datagram) in datagrams.iter().enumerate() {
        let mut mangled = datagram.clone();
        // In the payload or the tag, never in the header: that would be an unknown session.
        let at = 16 + n * 7 % (mangled.payload.len() - 16);
        mangled.payload[at] ^= 1 << (n % 8);
        // For half of them far ahead in the counter as well: a forgery must not move the window.
        if n % 2 == 0 {
            mangled.payload[10] ^= 0x20;
        }
        wiretap.inject(&mangled);
    }
    assert_counted(&pair.b, "bad-tag", before, 25);
    assert_alive_and_nothing_twice(&pair, 1);
}

#[test]
fn every_header_bit_may_be_flipped() {
    let pair = Pair::start(Plan::default());
    let mut wiretap = Wiretap::before(&pair.internet, &pair.b);
    let datagrams = exchange(&pair, &wiretap);
    let sample = datagrams.last().expect("datagrams were seen");
    let before: u64 = pair.b.status().drops.values().sum();
    for bit in 0..16 * 8 {
        let mut mangled = sample.clone();
        mangled.payload[bit / 8] ^= 1 << (bit % 8);
        wiretap.inject(&mangled);
    }
    for len in 0..sample.payload.len() {
        let payload = sample.payload[..len].to_vec();
        wiretap.inject(&Datagram { payload, ..*sample });
    }
    eventually(secs(20), "they are counted as drops", || {
        (pair.b.status().drops.values().sum::<u64>() > before + 100).then_some(())
    });
    assert_alive_and_nothing_twice(&pair, 1);
}

#[test]
fn a_replayed_handshake_opens_no_session() {
    let mut pair = Pair::prepare(Plan {
        b_knows_a: false,
        ..Plan::default()
    });
    let mut wiretap = Wiretap::before(&pair.internet, &pair.b);
    pair.b.up().wait_for("ready", secs(20));
    pair.a.up();
    pair.connect(secs(10));
    let initiation = wiretap
        .from(pair.a.uplink.v4)
        .into_iter()
        .next()
        .expect("A called");
    exchange(&pair, &wiretap);
    let (before, handshakes) = (pair.b.drops("replayed-handshake"), pair.b.peer().handshakes);
    for _ in 0..10 {
        wiretap.inject(&initiation);
    }
    assert_counted(&pair.b, "replayed-handshake", before, 1);
    assert_eq!(pair.b.peer().handshakes, handshakes, "handshakes");
    assert_alive_and_nothing_twice(&pair, 1);
}

/// The sources of a flood: many addresses and ports, none of them A's.
fn stranger(n: u32) -> SocketAddrV4 {
    let [_, _, c, d] = n.to_be_bytes();
    SocketAddrV4::new(
        Ipv4Addr::new(203, 0, 113 ^ c, d),
        1024 + (n % 50_000) as u16,
    )
}

/// The size of a burst, and the interval between two.
const FLOOD_BURST: u32 = 100;
const FLOOD_INTERVAL: Duration = millis(20);

/// Sends a burst of datagrams that `make` makes from a number, each from another stranger.
fn flood(wiretap: &mut Wiretap, to: Ipv4Addr, round: u32, make: impl Fn(u32) -> Vec<u8>) {
    for n in round * FLOOD_BURST..(round + 1) * FLOOD_BURST {
        wiretap.inject(&Datagram {
            src: stranger(n % 4096),
            dst: SocketAddrV4::new(to, UDP_PORT),
            payload: make(n),
        });
    }
}

fn noise(seed: u32, len: usize) -> Vec<u8> {
    frame([0; 6], [0; 6], &[], 0, 14 + len, seed.into()).split_off(14)
}

/// A has called B; the wiretap has A's initiation.
fn connected_and_overheard() -> (Pair, Wiretap, Vec<u8>) {
    let mut pair = Pair::prepare(Plan {
        b_knows_a: false,
        ..Plan::default()
    });
    let wiretap = Wiretap::before(&pair.internet, &pair.b);
    pair.b.up().wait_for("ready", secs(20));
    pair.a.up();
    pair.connect(secs(10));
    let calls = wiretap.from(pair.a.uplink.v4);
    let initiation = calls.into_iter().next().expect("A called").payload;
    (pair, wiretap, initiation)
}

#[test]
fn a_flood_of_garbage_and_handshakes_does_no_harm() {
    let (mut pair, mut wiretap, initiation) = connected_and_overheard();
    let b = pair.b.uplink.v4;
    let memory_before = pair.b.process().memory_kib();

    let probes = [
        (pair.there(), &pair.at_a, &pair.at_b),
        (pair.back(), &pair.at_b, &pair.at_a),
    ];
    let turn = load::some();
    let streams = probes.map(|(flow, from, _)| from.stream(flow, millis(5), |_| 200));
    let begun = Instant::now();
    // Long enough to reveal a table without a bound, or an answer per datagram; and at a rate that
    // does not depend on how fast this machine can send.
    for round in 0..200 {
        // An honest initiation from strange addresses: replayed.
        flood(&mut wiretap, b, round, |_| initiation.clone());
        // With a flipped bit anywhere, so mostly with a wrong mac1.
        flood(&mut wiretap, b, round, |n| {
            let mut payload = initiation.clone();
            let bit = n as usize % (payload.len() * 8);
            payload[bit / 8] ^= 1 << (bit % 8);
            payload
        });
        // Of the right type and size, otherwise noise; and plain noise of many sizes.
        flood(&mut wiretap, b, round, |n| {
            let mut payload = noise(n, initiation.len());
            payload[..4].copy_from_slice(&initiation[..4]);
            payload
        });
        flood(&mut wiretap, b, round, |n| noise(n, n as usize % 1400));
        let due = begun + FLOOD_INTERVAL * (round + 1);
        thread::sleep(due.saturating_duration_since(Instant::now()));
    }
    drop(turn);
    // Frames kept flowing meanwhile. A flooded queue may lose some of them.
    for ((flow, _, to), stream) in probes.into_iter().zip(streams) {
        let sent = stream.stop();
        flow.wait_number(to, sent - 1, secs(1));
        let tally = flow.tally(to, sent);
        println!("flow {} under flood: {tally:?}", flow.id);
        assert!(
            tally.lost * 20 <= sent && tally.duplicates == 0,
            "{tally:?}"
        );
    }
    assert_no_amplification(&wiretap, b);
    let memory = pair.b.process().memory_kib();
    assert!(
        memory < memory_before + 16 * 1024,
        "memory grew from {memory_before} to {memory} KiB"
    );
    assert_eq!(pair.b.peer().state, "up", "state of the real peer");
}

/// No address but A's may get more from B than was sent to B in its name.
fn assert_no_amplification(wiretap: &Wiretap, b: Ipv4Addr) {
    for (stranger, (sent, got)) in wiretap.exchanged_with(b) {
        if stranger.ip().octets()[0] == 203 {
            assert!(got <= sent, "{stranger} sent {sent} bytes and got {got}");
        }
    }
}

#[test]
fn a_restarted_peer_connects_during_a_flood() {
    let (mut pair, mut wiretap, initiation) = connected_and_overheard();
    let b = pair.b.uplink.v4;
    pair.a.kill_9();
    (0..20).for_each(|round| flood(&mut wiretap, b, round, |_| initiation.clone()));
    pair.at_b.clear();
    let begun = Instant::now();
    pair.a.up();
    let mut n = 20;
    eventually(secs(20), "A is back", || {
        n += 1;
        flood(&mut wiretap, b, n, |_| initiation.clone());
        let hello = frame(
            pair.at_b.mac,
            pair.at_a.mac,
            &[],
            EXPERIMENTAL,
            100,
            n.into(),
        );
        pair.at_a.send(&hello);
        pair.at_b.receives(&hello, millis(20)).then_some(())
    });
    println!("A was back {:?} after its start", begun.elapsed());
}
