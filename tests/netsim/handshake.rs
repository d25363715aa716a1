// SPDX-License-Identifier: MIT OR Apache-2.0
//! How sessions are established, and why they fail.

use std::{cell::Cell, rc::Rc, time::Instant};

use patchcord::internals::{
    crypto::aead::{Cipher, CipherOffer},
    proto::{
        node::{Event, Refused},
        trouble::{Refusal, Trouble, Unreachable},
    },
    stats::DropReason,
    wire::MessageType,
};

use crate::{
    host::Setup,
    net::{A, B, C, FIRST, Net, address, frame, millis, numbers, secs},
};

/// A filter's budget: the first `n` matching datagrams are lost.
fn lose_first(net: &mut Net, n: u32, matches: impl Fn(&crate::net::Sent) -> bool + 'static) {
    let left = Rc::new(Cell::new(n));
    net.filter(move |sent| {
        let lost = left.get() > 0 && matches(sent);
        left.set(left.get() - u32::from(lost));
        !lost
    });
}

#[test]
fn one_round_trip_lets_both_send() {
    let mut net = Net::pair();
    net.start_all();
    net.run_for(millis(20));
    assert!(net.is_up(A), "the initiator: after one round trip");
    assert_eq!(net.send(A, &frame(1, 60)), Ok(()));
    assert_eq!(net.send(B, &frame(2, 60)), Err(DropReason::NoSession));
    net.run_for(millis(10));
    assert!(net.is_up(B), "the responder: once it heard from us");
    assert_eq!(net.send(B, &frame(3, 60)), Ok(()));
    net.run_for(millis(10));
    assert_eq!(numbers(&net.take_received(B)), [1]);
    assert_eq!(numbers(&net.take_received(A)), [3]);
}

#[test]
fn the_responder_sends_nothing_before_it_is_confirmed() {
    let mut net = Net::pair();
    net.records = true;
    net.filter(|sent| sent.is_handshake());
    net.start_all();
    net.run_for(millis(400));
    assert!(net.is_up(A) && !net.is_up(B));
    assert_eq!(net.send(B, &frame(1, 60)), Err(DropReason::NoSession));
    let b = net.hosts[B].address;
    let by_b: Vec<_> = net.recorded.iter().filter(|sent| sent.from == b).collect();
    assert!(
        by_b.iter().all(|sent| sent.is(MessageType::Response)),
        "{by_b:?}"
    );
}

#[test]
fn lost_handshake_messages_are_made_up_for() {
    for lost in [
        MessageType::Initiation,
        MessageType::Response,
        MessageType::Chunks,
    ] {
        let mut net = Net::pair();
        lose_first(&mut net, 1, move |sent| sent.is(lost));
        net.start_all();
        let both_up = net.run_until(millis(1500), |net| net.is_up(A) && net.is_up(B));
        assert!(both_up, "{lost:?} lost once");
    }
}

#[test]
fn data_confirms_as_well_as_an_echo() {
    let mut net = Net::pair();
    lose_first(&mut net, u32::MAX, |sent| sent.is(MessageType::Chunks));
    net.start_all();
    net.run_for(millis(20));
    net.send(A, &frame(1, 60)).unwrap();
    net.run_for(millis(270));
    assert!(net.is_up(B));
    assert_eq!(net.send(B, &frame(2, 60)), Ok(()));
}

#[test]
fn calling_each_other_at_once_converges() {
    let setup = |peer| Setup {
        peers: vec![(peer, true)],
        ..Setup::default()
    };
    let mut net = Net::new(vec![setup(B), setup(A)]);
    net.records = true;
    net.start_all();
    net.run_for(secs(60));
    assert!(net.is_up(A) && net.is_up(B));
    let handshakes = net.recorded.iter().filter(|sent| sent.is_handshake());
    assert_eq!(handshakes.count(), 4, "each initiation is answered once");
    for (from, to) in [(A, B), (B, A)] {
        net.send(from, &frame(5, 60)).unwrap();
        net.run_for(millis(20));
        assert_eq!(numbers(&net.take_received(to)), [5]);
    }
}

#[test]
fn both_ends_use_the_same_session_after_calling_each_other_at_once() {
    let setup = |peer| Setup {
        peers: vec![(peer, true)],
        ..Setup::default()
    };
    let mut net = Net::new(vec![setup(B), setup(A)]);
    net.start_all();
    net.run_for(secs(1));
    let indices = |at: usize| {
        let route = net.hosts[at].tables().route(FIRST).unwrap().clone();
        let agreement = &route.session.as_ref().unwrap().agreement;
        (agreement.local, agreement.remote)
    };
    let ((a_local, a_remote), b) = (indices(A), indices(B));
    assert_eq!((a_remote, a_local), b);
}

#[test]
fn each_mismatch_is_refused_by_name() {
    let base = Setup::default;
    let only = |cipher| Setup {
        ciphers: CipherOffer::only(cipher),
        ..base()
    };
    let psk = |byte| Setup {
        preshared_key: Some([byte; 32]),
        ..base()
    };
    let network = |network_id| Setup {
        network_id,
        ..base()
    };
    for (name, a, b, at, reason, trouble) in [
        (
            "preshared keys",
            psk(1),
            psk(2),
            A,
            DropReason::BadHandshake,
            Trouble::UnreadableAnswer,
        ),
        (
            "one preshared key",
            psk(1),
            base(),
            A,
            DropReason::BadHandshake,
            Trouble::UnreadableAnswer,
        ),
        (
            "network ids",
            network(1),
            network(2),
            B,
            DropReason::Incompatible,
            Trouble::Refused(Refusal::NetworkId),
        ),
        (
            "ciphers",
            only(Cipher::Aes256Gcm),
            only(Cipher::ChaCha20Poly1305),
            B,
            DropReason::Incompatible,
            Trouble::Refused(Refusal::Cipher),
        ),
        (
            "ciphers, one of which an old node does not know",
            only(Cipher::Aegis128X4),
            old_node(),
            B,
            DropReason::Incompatible,
            Trouble::Refused(Refusal::Cipher),
        ),
    ] {
        let mut net = Net::pair_with(a, b);
        net.start_all();
        net.run_for(secs(10));
        assert!(!net.is_up(A) && !net.is_up(B), "{name}");
        assert!(net.hosts[at].dropped(reason) > 5, "{name}");
        let known = net.view(A).last_trouble.map(|last| last.trouble);
        assert_eq!(known, Some(trouble), "{name}: the caller knows why");
        assert!(
            net.take_events(A).contains(&Event::Trouble(FIRST)),
            "{name}"
        );
        if at == B {
            let key = net.hosts[A].node.public_key();
            let expected = Event::Refused(Refused {
                reason,
                from: address(A),
                key: Some(key),
                port: Some(FIRST),
            });
            assert!(
                net.take_events(B).contains(&expected),
                "{name}: and B whose it is"
            );
        }
        assert_eq!(net.send(A, &frame(1, 60)), Err(DropReason::NoSession));
    }
}

#[test]
fn a_key_that_nobody_knows_is_refused() {
    let calls_b = || Setup {
        peers: vec![(B, true)],
        ..Setup::default()
    };
    let b = Setup {
        peers: vec![(A, false)],
        ..Setup::default()
    };
    let mut net = Net::new(vec![calls_b(), b, calls_b()]);
    net.start_all();
    net.run_for(secs(5));
    assert!(net.is_up(A) && net.is_up(B) && !net.is_up(C));
    assert!(net.hosts[B].dropped(DropReason::UnknownPeer) > 5);
}

#[test]
fn matching_settings_connect() {
    let psk = Setup {
        preshared_key: Some([9; 32]),
        ciphers: CipherOffer::auto(Instant::now),
        ..Setup::default()
    };
    let mut net = Net::pair_with(psk.clone(), psk);
    net.start_all();
    net.run_for(secs(1));
    assert!(net.is_up(A) && net.is_up(B));
    assert_eq!(net.view(A).cipher, net.view(B).cipher);
}

/// A node of before AEGIS: it knows two ciphers and one flag.
fn old_node() -> Setup {
    Setup {
        ciphers: CipherOffer::from_wire(3, 1),
        ..Setup::default()
    }
}

#[test]
fn both_ends_agree_on_a_cipher_whichever_calls() {
    let offer = |allowed, flags| Setup {
        ciphers: CipherOffer::from_wire(allowed, flags),
        ..Setup::default()
    };
    for (a, b, chosen) in [
        (offer(7, 3), offer(7, 3), Cipher::Aegis128X4),
        (offer(7, 3), offer(7, 1), Cipher::Aes256Gcm),
        (offer(7, 1), offer(7, 3), Cipher::Aes256Gcm),
        (offer(7, 3), offer(4, 3), Cipher::Aegis128X4),
        (offer(7, 3), old_node(), Cipher::Aes256Gcm),
        (old_node(), offer(7, 3), Cipher::Aes256Gcm),
    ] {
        let mut net = Net::pair_with(a.clone(), b.clone());
        net.start_all();
        net.run_for(secs(1));
        let offers = (a.ciphers, b.ciphers);
        assert!(net.is_up(A) && net.is_up(B), "{offers:?}");
        for at in [A, B] {
            assert_eq!(net.view(at).cipher, Some(chosen), "{offers:?}");
        }
    }
}

#[test]
fn a_slow_path_connects() {
    let mut net = Net::pair();
    net.link.latency = millis(400);
    net.start_all();
    let both_up = net.run_until(secs(8), |net| net.is_up(A) && net.is_up(B));
    assert!(
        both_up,
        "a satellite's round trip is longer than the first retries"
    );
}

#[test]
fn the_peers_of_a_hub_have_nothing_to_do_with_each_other() {
    let hub = Setup {
        peers: vec![(B, false), (C, false)],
        ..Setup::default()
    };
    let spoke = || Setup {
        peers: vec![(A, true)],
        ..Setup::default()
    };
    let mut net = Net::new(vec![hub, spoke(), spoke()]);
    net.start_all();
    net.run_for(secs(2));
    for (port, to) in [(1, B), (2, C)] {
        net.send_to(A, patchcord_bridge::PortId(port), &frame(port.into(), 60))
            .unwrap();
        net.run_for(millis(20));
        assert_eq!(numbers(&net.take_received(to)), [u64::from(port)]);
    }
    net.send(B, &frame(7, 60)).unwrap();
    net.act(C, |host, _| host.node.close());
    net.run_for(millis(20));
    assert_eq!(net.hosts[A].received, [(FIRST, frame(7, 60))]);
    assert!(net.is_up(B) && net.view(A).is_up, "B stays");
    assert!(!net.hosts[A].view(2, net.now()).is_up, "C is gone");
}

/// The last trouble of a host with its peer, and the number of its reports.
fn trouble(net: &mut Net, at: usize) -> (Option<Trouble>, usize) {
    let told = net.take_events(at);
    let told = told.iter().filter(|event| **event == Event::Trouble(FIRST));
    let last = net.view(at).last_trouble;
    (last.map(|last| last.trouble), told.count())
}

#[test]
fn a_stranger_is_refused_in_silence_and_the_caller_sees_no_answer() {
    let mut net = Net::pair();
    net.setups[B].peers = vec![(B, false)];
    net.records = true;
    net.start_all();
    net.run_for(secs(10));
    let b = net.hosts[B].address;
    assert!(net.recorded.iter().all(|sent| sent.from != b), "not a byte");
    assert_eq!(trouble(&mut net, A), (Some(Trouble::NoAnswer), 1));
    let expected = Event::Refused(Refused {
        reason: DropReason::UnknownPeer,
        from: address(A),
        key: Some(net.hosts[A].node.public_key()),
        port: None,
    });
    assert!(net.take_events(B).contains(&expected));
}

#[test]
fn an_error_of_the_kernel_or_a_router_replaces_the_missing_answer() {
    let mut net = Net::pair();
    net.filter(|_| false);
    net.start_all();
    let router = Some([198, 51, 100, 1].into());
    let why = Trouble::Unreachable(Unreachable::PortClosed, router);
    net.run_for(secs(1));
    let report = |net: &mut Net, to| {
        net.act(A, |host, now| {
            let closed = Unreachable::PortClosed;
            host.node.handle_unreachable(now, to, closed, router);
        });
    };
    report(&mut net, "192.0.2.99:51830".parse().unwrap());
    assert_eq!(trouble(&mut net, A), (None, 0), "no peer is called there");
    report(&mut net, address(B));
    assert_eq!(trouble(&mut net, A), (Some(why.clone()), 0), "too early");
    net.run_for(secs(10));
    assert_eq!(trouble(&mut net, A), (Some(why.clone()), 1), "told once");
    net.run_for(secs(20));
    assert_eq!(trouble(&mut net, A), (Some(Trouble::NoAnswer), 1), "stale");
    report(&mut net, address(B));
    assert_eq!(trouble(&mut net, A), (Some(why), 1), "again");
    net.heal();
    net.run_until(secs(10), |net| net.is_up(A));
    report(&mut net, address(B));
    let last = net.view(A).last_trouble.unwrap();
    assert!(last.last < net.now() - secs(1), "nobody calls any more");
}

#[test]
fn a_caller_whose_answers_do_not_arrive_is_reported_at_the_responder() {
    let mut net = Net::pair();
    net.filter(|sent| !sent.is(MessageType::Response));
    net.start_all();
    net.run_for(secs(30));
    assert_eq!(trouble(&mut net, B), (Some(Trouble::Unconfirmed), 1));
    assert_eq!(trouble(&mut net, A), (Some(Trouble::NoAnswer), 1));
}

#[test]
fn a_caller_whose_clock_went_back_gets_in_again() {
    let mut net = Net::connected();
    net.set_wall_back(secs(3600));
    // A restart: the state of the earlier run is lost.
    net.start(A);
    net.run_for(secs(3));
    assert!(net.is_up(A) && net.is_up(B));
    assert!(net.hosts[B].dropped(DropReason::ReplayedHandshake) > 0);
    assert_eq!(trouble(&mut net, A), (None, 0), "there is nothing to tell");
    net.send(A, &frame(1, 60)).unwrap();
    net.run_for(millis(20));
    assert_eq!(numbers(&net.take_received(B)), [1]);
}
