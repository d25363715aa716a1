// SPDX-License-Identifier: MIT OR Apache-2.0
//! Sessions follow each other without loss, and end when they must.

use std::{cell::Cell, rc::Rc};

use patchcord::internals::{
    proto::limits::SESSIONS_PER_PEER, stats::DropReason, wire::MessageType,
};

use crate::{
    host::Setup,
    net::{A, B, FIRST, Net, frame, millis, numbers, secs},
};

/// A session for a second.
fn brief() -> Setup {
    Setup {
        rekey_interval: secs(1),
        ..Setup::default()
    }
}

fn calling_each_other(setup: &Setup) -> Net {
    let with = |peer| Setup {
        peers: vec![(peer, true)],
        ..setup.clone()
    };
    Net::new(vec![with(B), with(A)])
}

/// Sends a frame every 5 ms in both directions for a while; every one must arrive once, in order.
fn stream(net: &mut Net, seconds: u64) {
    let count = seconds * 200;
    for number in 0..count {
        net.send(A, &frame(number, 1400)).unwrap();
        net.send(B, &frame(number, 60)).unwrap();
        net.run_for(millis(5));
    }
    net.run_for(secs(1));
    for at in [A, B] {
        let received = numbers(&net.take_received(at));
        let wrong = (0..count).zip(&received).find(|(sent, got)| sent != *got);
        assert_eq!((wrong, received.len()), (None, count as usize), "host {at}");
    }
}

#[test]
fn every_frame_arrives_once_and_in_order_over_rekeys() {
    for handshake_loss_percent in [0, 5] {
        let mut net = Net::pair_with(brief(), brief());
        net.start_all();
        net.run_for(secs(3));
        net.link.handshake_loss_percent = handshake_loss_percent;
        let before = net.view(A).handshakes;
        stream(&mut net, 20);
        let handshakes = net.view(A).handshakes - before;
        assert!((10..=25).contains(&handshakes), "{handshakes} handshakes");
    }
}

#[test]
fn every_frame_arrives_once_after_both_called_at_once() {
    let setup = Setup {
        rekey_interval: secs(20),
        ..Setup::default()
    };
    let mut net = calling_each_other(&setup);
    net.start_all();
    net.run_for(secs(1));
    stream(&mut net, 100);
}

#[test]
fn the_session_is_new_after_the_interval_and_not_before() {
    let mut net = Net::pair();
    net.start_all();
    net.run_for(secs(119));
    assert_eq!((net.view(A).handshakes, net.view(B).handshakes), (1, 1));
    net.run_for(secs(2));
    assert_eq!((net.view(A).handshakes, net.view(B).handshakes), (2, 2));
    net.run_for(secs(3600 - 121));
    assert_eq!((net.view(A).handshakes, net.view(B).handshakes), (30, 30));
}

#[test]
fn an_idle_link_stays_up_for_an_hour() {
    let mut net = Net::connected();
    net.take_events(A);
    net.take_events(B);
    net.run_for(secs(3600));
    assert_eq!((net.take_events(A), net.take_events(B)), (vec![], vec![]));
    assert_eq!(net.send(A, &frame(1, 60)), Ok(()));
    net.run_for(millis(10));
    assert_eq!(numbers(&net.take_received(B)), [1]);
}

#[test]
fn many_rekeys_leave_nothing_behind() {
    let mut net = Net::pair_with(brief(), brief());
    net.start_all();
    net.run_for(secs(1));
    let mut most = 0;
    while net.view(A).handshakes < 300 {
        net.run_for(secs(10));
        for host in &net.hosts {
            most = most.max(host.tables().sessions.len());
        }
    }
    assert!(most <= SESSIONS_PER_PEER, "{most} sessions at once");
}

#[test]
fn no_session_is_used_longer_than_180_seconds() {
    let mut net = Net::connected();
    let established = net.now();
    net.filter(|sent| !sent.is_handshake());
    let mut last = [secs(0); 2];
    for _ in 0..2500 {
        for (at, last) in [A, B].into_iter().zip(&mut last) {
            if net.send(at, &frame(1, 60)).is_ok() {
                *last = net.now() - established;
            }
        }
        net.run_for(millis(100));
    }
    for (at, last) in [A, B].into_iter().zip(last) {
        assert!(last <= millis(180_250), "host {at} sent after {last:?}");
        assert!(last >= secs(176), "host {at} stopped after {last:?}");
        assert!(!net.is_up(at), "host {at}");
        assert!(net.hosts[at].tables().sessions.is_empty(), "host {at}");
        assert_eq!(net.send(at, &frame(1, 60)), Err(DropReason::NoSession));
    }
    net.heal();
    assert!(net.run_until(secs(6), |net| net.is_up(A) && net.is_up(B)));
}

#[test]
fn a_response_that_comes_after_the_next_attempt_harms_nothing() {
    let mut net = Net::pair();
    let held = Rc::new(Cell::new(true));
    let holds = held.clone();
    net.records = true;
    net.filter(move |sent| !(holds.get() && sent.is(MessageType::Response)));
    net.start_all();
    net.run_for(millis(700));
    held.set(false);
    let late = net
        .recorded
        .iter()
        .find(|sent| sent.is(MessageType::Response))
        .unwrap()
        .clone();
    net.run_for(millis(1000));
    assert!(net.is_up(A) && net.is_up(B));
    let session = net.hosts[A].tables().route(FIRST).unwrap().session.clone();
    net.inject(late);
    net.run_for(millis(100));
    let now = net.hosts[A].tables().route(FIRST).unwrap().session.clone();
    assert_eq!(
        session.unwrap().agreement.local,
        now.unwrap().agreement.local
    );
    assert_eq!(net.hosts[A].dropped(DropReason::UnknownSession), 1);
}

#[test]
fn a_session_ends_in_time_though_the_control_thread_does_nothing() {
    let mut net = Net::connected();
    net.records = true;
    net.filter(|_| false);
    net.send(B, &frame(1, 60)).unwrap();
    let held_back = net.recorded.last().unwrap().clone();
    net.heal();
    for host in &mut net.hosts {
        host.is_stalled = true;
    }
    net.run_for(secs(170));
    net.send(A, &frame(2, 60)).unwrap();
    net.run_for(millis(20));
    assert_eq!(numbers(&net.take_received(B)), [2]);
    net.run_for(secs(10));
    assert_eq!(net.send(A, &frame(3, 60)), Err(DropReason::SessionExpired));
    net.inject(held_back);
    net.run_for(millis(20));
    assert_eq!(net.take_received(A).len(), 0);
    assert_eq!(net.hosts[A].dropped(DropReason::SessionExpired), 1);
}
