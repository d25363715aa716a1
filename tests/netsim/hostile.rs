// SPDX-License-Identifier: MIT OR Apache-2.0
//! An attacker who can read, repeat, mangle and forge datagrams gains nothing.

use std::net::SocketAddr;

use patchcord::internals::{
    crypto::mac,
    proto::{limits::SESSIONS_PER_PEER, node::Event},
    stats::DropReason,
    wire::{Initiation, MessageType, SessionIndex},
};
use zerocopy::IntoBytes;

use crate::{
    host::Setup,
    net::{A, B, FIRST, Net, Sent, frame, millis, numbers, secs},
};

fn eve() -> SocketAddr {
    "203.0.113.66:666".parse().unwrap()
}

/// A connected pair, and every datagram until then.
fn overheard() -> Net {
    let mut net = Net::pair();
    net.records = true;
    net.start_all();
    net.run_for(secs(1));
    for number in 0..10 {
        net.send(A, &frame(number, 200)).unwrap();
        net.send(B, &frame(number, 200)).unwrap();
        net.run_for(millis(10));
    }
    net.run_for(secs(2));
    assert!(net.is_up(A) && net.is_up(B));
    net.take_events(A);
    net.take_events(B);
    net.records = false;
    // A probe that was too big for the path never came: its replay would be new.
    let mtu = usize::from(net.link.mtu);
    net.recorded.retain(|sent| sent.packet_len() <= mtu);
    net
}

/// The events of a host, without the refusals.
fn changes(net: &mut Net, at: usize) -> Vec<Event> {
    let mut told = net.take_events(at);
    told.retain(|event| !matches!(event, Event::Refused(_)));
    told
}

fn assert_unmoved(net: &mut Net) {
    for (at, peer) in [(A, B), (B, A)] {
        assert_eq!(net.view(at).endpoint, Some(net.hosts[peer].address));
        assert_eq!(changes(net, at), [], "host {at}");
    }
    net.take_received(A);
    net.take_received(B);
    for (from, to) in [(A, B), (B, A)] {
        net.send(from, &frame(99, 60)).unwrap();
        net.run_for(millis(20));
        assert_eq!(numbers(&net.take_received(to)), [99]);
    }
}

#[test]
fn replays_from_elsewhere_change_nothing() {
    let mut net = overheard();
    net.take_received(A);
    net.take_received(B);
    for sent in net.recorded.clone() {
        net.inject(Sent {
            from: eve(),
            ..sent
        });
    }
    net.run_for(secs(1));
    assert_eq!(net.take_received(A).len() + net.take_received(B).len(), 0);
    assert_eq!(net.hosts[B].dropped(DropReason::ReplayedHandshake), 1);
    assert!(net.hosts[B].dropped(DropReason::Replayed) >= 10);
    assert_unmoved(&mut net);
}

#[test]
fn an_initiation_replayed_after_a_restart_leads_nowhere() {
    let mut net = overheard();
    let initiation = net.recorded[0].clone();
    assert!(initiation.is(MessageType::Initiation));
    net.start(B);
    net.inject(Sent {
        from: eve(),
        ..initiation.clone()
    });
    net.run_for(millis(20));
    assert!(!net.is_up(B));
    assert_eq!(net.view(B).endpoint, None);
    net.run_until(secs(15), |net| net.is_up(B));
    net.take_events(A);
    net.take_events(B);
    net.inject(Sent {
        from: eve(),
        ..initiation
    });
    net.run_for(secs(1));
    assert_eq!(net.hosts[B].dropped(DropReason::ReplayedHandshake), 1);
    assert_unmoved(&mut net);
}

#[test]
fn mangled_datagrams_change_nothing() {
    let mut net = overheard();
    for sent in net.recorded.clone() {
        for _ in 0..20 {
            let mut mangled = sent.clone();
            mangled.from = eve();
            let at = net.random() as usize % mangled.bytes.len();
            mangled.bytes[at] ^= 1 << (net.random() % 8);
            if net.random().is_multiple_of(8) {
                mangled.bytes.truncate(at);
            }
            net.inject(mangled);
        }
        net.run_for(millis(20));
    }
    net.run_for(secs(2));
    // A repeated initiation with a changed mac2 is a replay, and refused as one.
    assert_unmoved(&mut net);
}

#[test]
fn a_mangled_datagram_counts_as_lost() {
    let mut net = Net::pair();
    net.start_all();
    net.link.loss_percent = 20;
    let up = net.run_until(secs(10), |net| net.is_up(A) && net.is_up(B));
    assert!(up);
}

/// An initiation of an unknown node that passes mac1.
fn forged_initiation(net: &mut Net, from: SocketAddr) -> Sent {
    let index = SessionIndex::from_low_bits(net.random() as u32);
    let mut message = Initiation::new(index, [0; _]);
    let noise: Vec<u8> = (0..message.noise.len())
        .map(|_| net.random() as u8)
        .collect();
    message.noise.copy_from_slice(&noise);
    let covered = message.as_bytes().len() - 32;
    let key = mac::mac1_key(&net.hosts[B].node.public_key());
    message.mac1 = mac::mac(&key, &message.as_bytes()[..covered]);
    Sent {
        from,
        to: net.hosts[B].address,
        bytes: message.as_bytes().to_vec(),
    }
}

#[test]
fn a_flood_is_answered_with_less_and_lets_the_peer_in() {
    let mut net = Net::pair();
    net.start(B);
    net.records = true;
    let mut flooded = 0;
    for step in 0..500_u16 {
        for n in 0..4 {
            let from = SocketAddr::from(([203, 0, 113, n], step));
            let sent = forged_initiation(&mut net, from);
            flooded += sent.bytes.len();
            net.inject(sent);
        }
        if step == 200 {
            net.start(A);
        }
        net.run_for(millis(5));
    }
    assert!(net.is_up(A) && net.is_up(B), "with a cookie");
    let (a, b) = (net.hosts[A].address, net.hosts[B].address);
    let answers = || {
        net.recorded
            .iter()
            .filter(|sent| sent.from == b && sent.to != a)
    };
    assert!(answers().all(|sent| sent.is(MessageType::CookieReply)));
    let answered: usize = answers().map(|sent| sent.bytes.len()).sum();
    assert!(
        answered > 0 && answered < flooded / 2,
        "{answered} of {flooded}"
    );
    assert!(net.hosts[B].dropped(DropReason::CookieRequired) > 1000);
    assert!(net.hosts[B].tables().sessions.len() <= SESSIONS_PER_PEER);
}

#[test]
fn a_live_session_rekeys_under_a_flood() {
    let setup = Setup {
        rekey_interval: secs(2),
        ..Setup::default()
    };
    let mut net = Net::pair_with(setup.clone(), setup);
    net.start_all();
    net.run_for(secs(1));
    net.take_events(B);
    for step in 0..4000_u16 {
        let from = SocketAddr::from(([203, 0, 113, 9], step));
        let sent = forged_initiation(&mut net, from);
        net.inject(sent);
        net.run_for(millis(5));
    }
    let handshakes = net.view(B).handshakes;
    assert!((8..=12).contains(&handshakes), "{handshakes} handshakes");
    assert_eq!(changes(&mut net, B), []);
}

#[test]
fn a_forged_cookie_reply_is_not_believed() {
    let mut net = Net::pair();
    net.records = true;
    net.filter(|_| false);
    net.start(A);
    net.run_for(millis(1));
    let initiation = net.recorded[0].clone();
    let sender = Initiation::parse(&initiation.bytes).unwrap().sender;
    let reply = patchcord::internals::wire::CookieReply::new(sender, [1; 24], [2; 32]);
    net.inject(Sent {
        from: initiation.to,
        to: initiation.from,
        bytes: reply.as_bytes().to_vec(),
    });
    net.run_for(millis(20));
    assert_eq!(net.hosts[A].dropped(DropReason::BadMac), 1);
    assert_eq!(net.recorded.len(), 1, "no new attempt");
}

#[test]
fn a_close_cannot_be_forged_or_repeated() {
    let mut net = overheard();
    net.records = true;
    net.recorded.clear();
    net.act(B, |host, _| host.node.close());
    let close = net.recorded.last().unwrap().clone();
    net.run_for(millis(10));
    net.start(B);
    assert!(net.run_until(secs(5), |net| net.is_up(A) && net.is_up(B)));
    net.inject(close);
    net.run_for(millis(100));
    assert!(net.is_up(A));
    assert!(!net.take_events(A).ends_with(&[Event::PeerDown(FIRST)]));
}
