// SPDX-License-Identifier: MIT OR Apache-2.0
//! A node calls no more often than it should, whatever other nodes do and however many do not answer.

use patchcord::internals::{
    proto::limits::{INITIATION_BURST, INITIATION_RATE},
    wire::MessageType,
};

use crate::{
    host::Setup,
    net::{A, B, Net, millis, secs},
};

/// A node that calls dead hosts.
fn lonely(peers: usize) -> Net {
    let caller = Setup {
        peers: (1..=peers).map(|peer| (peer, true)).collect(),
        ..Setup::default()
    };
    let mut setups = vec![caller];
    setups.resize(1 + peers, Setup::default());
    let mut net = Net::new(setups);
    net.filter(|_| false);
    net.start(A);
    net
}

fn calls_within(net: &mut Net, duration: std::time::Duration) -> usize {
    net.records = true;
    net.recorded.clear();
    net.run_for(duration);
    net.recorded
        .iter()
        .filter(|sent| sent.is(MessageType::Initiation))
        .count()
}

#[test]
fn routes_that_change_all_the_time_do_not_make_it_call_more_than_once_in_five_seconds() {
    let mut net = lonely(20);
    net.run_for(secs(120));
    let idle = calls_within(&mut net, secs(20));
    assert!((60..=100).contains(&idle), "{idle} calls in 20 s");
    let mut flapping = 0;
    for _ in 0..20 * 13 {
        for port in 1..=20 {
            let port = patchcord_bridge::PortId(port);
            net.act(A, |host, now| host.node.handle_route_change(now, port));
        }
        flapping += calls_within(&mut net, millis(1000 / 13));
    }
    assert!(flapping <= 2 * 100, "{flapping} calls in 20 s");
}

#[test]
fn many_dead_peers_share_one_rate_fairly() {
    const PEERS: usize = 400;
    let mut net = lonely(PEERS);
    net.records = true;
    net.run_for(secs(20));
    let calls = net.recorded.len();
    let most = 20 * INITIATION_RATE + INITIATION_BURST;
    assert!(
        (most - 10..=most).contains(&(calls as u32)),
        "{calls} calls"
    );
    let mut each = std::collections::HashMap::new();
    for sent in &net.recorded {
        *each.entry(sent.to).or_insert(0) += 1;
    }
    assert_eq!(each.len(), PEERS, "all are called");
    let (least, most) = (each.values().min().unwrap(), each.values().max().unwrap());
    assert!(most - least <= 1, "{least} to {most} calls");
}

#[test]
fn a_living_peer_is_rekeyed_in_time_beside_many_dead_ones() {
    const PEERS: usize = 400;
    let living = || Setup {
        rekey_interval: secs(10),
        ..Setup::default()
    };
    let caller = Setup {
        peers: (1..=PEERS).map(|peer| (peer, true)).collect(),
        ..living()
    };
    let called = Setup {
        peers: vec![(A, true)],
        ..living()
    };
    let mut setups = vec![caller, called];
    setups.resize(1 + PEERS, Setup::default());
    let mut net = Net::new(setups);
    let b = net.hosts[B].address;
    let a = net.hosts[A].address;
    net.filter(move |sent| [a, b].contains(&sent.to));
    net.start(A);
    net.start(B);
    assert!(net.run_until(secs(5), |net| net.is_up(A) && net.is_up(B)));
    net.take_events(A);
    net.run_for(secs(60));
    let age = net.view(A).handshake_age.unwrap();
    assert!(age < secs(13), "{age:?}");
    let handshakes = net.view(A).handshakes;
    assert!((5..=7).contains(&handshakes), "{handshakes} handshakes");
}
