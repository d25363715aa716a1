// SPDX-License-Identifier: MIT OR Apache-2.0
//! A peer that goes, comes back, restarts or moves is noticed in time.

use patchcord::internals::{proto::node::Event, stats::DropReason};

use crate::{
    host::Setup,
    net::{A, B, FIRST, Net, address, frame, millis, numbers, secs},
};

/// Sends a frame from each end every 50 ms, until both arrive; returns how long that took.
fn time_until_frames_pass(net: &mut Net) -> std::time::Duration {
    let began = net.elapsed();
    net.take_received(A);
    net.take_received(B);
    loop {
        for at in [A, B] {
            // Before there is a session: lost, as any frame.
            let _ = net.send(at, &frame(1, 60));
        }
        net.run_for(millis(50));
        if [A, B].iter().all(|&at| !net.hosts[at].received.is_empty()) {
            return net.elapsed() - began;
        }
        assert!(net.elapsed() - began < secs(60), "they never got through");
    }
}

#[test]
fn a_restarted_peer_is_back_within_two_seconds() {
    for (who, name) in [(A, "the caller"), (B, "the one that is called")] {
        let mut net = Net::connected();
        net.start(who);
        let took = time_until_frames_pass(&mut net);
        assert!(took < secs(2), "{name} took {took:?}");
    }
}

#[test]
fn a_restart_is_noticed_without_traffic_too() {
    let mut net = Net::connected();
    net.start(B);
    let back = net.run_until(secs(15), |net| net.is_up(B));
    assert!(back, "the keepalive finds out");
}

#[test]
fn close_takes_the_peer_down_at_once() {
    let mut net = Net::connected();
    net.act(B, |host, _| host.node.close());
    net.run_for(millis(10));
    assert!(!net.is_up(A));
    assert!(net.take_events(A).contains(&Event::PeerDown(FIRST)));
    assert_eq!(net.send(A, &frame(1, 60)), Err(DropReason::NoSession));
    assert!(net.hosts[A].tables().sessions.is_empty());
}

#[test]
fn a_peer_that_closes_a_new_session_is_not_called_at_once() {
    let mut net = Net::connected();
    net.records = true;
    net.act(B, |host, _| host.node.close());
    let initiations = |net: &Net| {
        net.recorded
            .iter()
            .filter(|sent| sent.is_handshake())
            .count()
    };
    net.run_for(millis(90));
    assert_eq!(initiations(&net), 0);
    assert!(net.run_until(millis(250), |net| net.is_up(A)));
}

#[test]
fn a_cut_link_is_down_after_seconds_and_up_soon_after_it_heals() {
    for outage in [1, 3, 10, 100, 300] {
        let mut net = Net::connected();
        net.filter(|_| false);
        let mut down_after = None;
        for tenth in 0..outage * 10 {
            let _ = net.send(A, &frame(1, 60));
            net.run_for(millis(100));
            if !net.is_up(A) {
                down_after.get_or_insert(tenth * 100);
            }
        }
        match down_after {
            Some(after) => assert!((5000..=6000).contains(&after), "down after {after} ms"),
            None => assert!(outage <= 5, "never down in {outage} s"),
        }
        net.heal();
        let took = time_until_frames_pass(&mut net);
        assert!(took < secs(6), "{took:?} after {outage} s");
        net.run_until(secs(1), |net| net.is_up(A) && net.is_up(B));
        assert!(net.is_up(A) && net.is_up(B), "after {outage} s");
    }
}

#[test]
fn an_authentic_datagram_moves_the_endpoint() {
    for sends_data in [false, true] {
        let mut net = Net::connected();
        let elsewhere = "198.51.100.77:4711".parse().unwrap();
        net.hosts[A].address = elsewhere;
        if sends_data {
            net.send(A, &frame(1, 60)).unwrap();
        } else {
            net.act(A, |host, now| host.node.handle_route_change(now, FIRST));
        }
        net.run_for(millis(10));
        assert_eq!(net.view(B).endpoint, Some(elsewhere));
        let moved = Event::PeerMoved {
            port: FIRST,
            from: address(A),
            to: elsewhere,
        };
        assert!(net.take_events(B).contains(&moved));
        net.send(B, &frame(2, 60)).unwrap();
        net.run_for(millis(10));
        assert_eq!(numbers(&net.take_received(A)), [2]);
    }
}

#[test]
fn the_one_that_is_called_may_move_too() {
    let mut net = Net::connected();
    let elsewhere = "198.51.100.77:4711".parse().unwrap();
    net.hosts[B].address = elsewhere;
    let took = time_until_frames_pass(&mut net);
    assert!(took < millis(200), "{took:?}");
    assert_eq!(net.view(A).endpoint, Some(elsewhere));
    net.run_for(secs(600));
    assert_eq!(net.view(A).endpoint, Some(elsewhere), "rekeys go there too");
    assert!(net.is_up(A) && net.is_up(B));
}

#[test]
fn a_peer_that_comes_home_is_found_at_its_configured_address() {
    let mut net = Net::connected();
    net.hosts[B].address = "198.51.100.77:4711".parse().unwrap();
    time_until_frames_pass(&mut net);
    net.hosts[B].address = address(B);
    net.start(B);
    let took = time_until_frames_pass(&mut net);
    assert!(took < secs(3), "{took:?}");
}

#[test]
fn a_restart_alone_is_no_replay() {
    let mut net = Net::connected();
    net.start(A);
    net.run_for(secs(1));
    assert!(net.is_up(A));
    assert_eq!(net.hosts[B].dropped(DropReason::ReplayedHandshake), 0);
}

#[test]
fn keepalives_are_as_far_apart_as_configured() {
    let setup = Setup {
        keepalive: secs(25),
        ..Setup::default()
    };
    let mut net = Net::pair_with(setup.clone(), setup);
    net.start_all();
    net.run_for(secs(4));
    net.records = true;
    net.run_for(secs(100));
    let datagrams = net.recorded.len();
    // Requests and replies of both ends, and a proof of the path with each.
    assert!((8..=40).contains(&datagrams), "{datagrams} datagrams");
}

#[test]
fn a_peer_that_comes_and_goes_is_down_until_it_stays() {
    let setup = |peer| Setup {
        peers: vec![(peer, true)],
        ..Setup::default()
    };
    let mut net = Net::new(vec![setup(B), setup(A)]);
    net.start_all();
    net.run_for(secs(3));
    net.take_events(A);
    for _ in 0..160 {
        net.act(B, |host, _| host.node.close());
        net.run_for(millis(20));
        net.start(B);
        net.run_for(millis(30));
    }
    let events = net.take_events(A);
    let count = |event| events.iter().filter(|&seen| *seen == event).count();
    assert_eq!(count(Event::PeerFlaps(FIRST)), 1, "{events:?}");
    assert!(count(Event::PeerDown(FIRST)) <= 5, "{events:?}");
    assert!(count(Event::PeerUp(FIRST)) <= 5, "{events:?}");
    assert!(!net.is_up(A) && net.view(A).is_held_down);
    assert_eq!(net.send(A, &frame(1, 60)), Ok(()), "frames are not held up");
    net.run_for(secs(15));
    assert_eq!(net.take_events(A), []);
    net.run_for(secs(7));
    assert_eq!(net.take_events(A), [Event::PeerUp(FIRST)]);
    assert!(net.is_up(A) && !net.view(A).is_held_down);
}
