// SPDX-License-Identifier: MIT OR Apache-2.0
//! Clocks that disagree end no link, and do not make replays succeed.

use std::net::SocketAddr;

use patchcord::internals::{proto::node::Event, stats::DropReason, wire::MessageType};

use crate::net::{A, B, FIRST, Net, Sent, frame, millis, numbers, secs};

fn eve() -> SocketAddr {
    "203.0.113.66:666".parse().unwrap()
}

/// The caller restarts with a clock that is a year behind. B waits for calls.
fn set_back(net: &mut Net) {
    net.set_wall_back(secs(365 * 24 * 3600));
    net.start(A);
}

/// The events, without those about refusals.
fn take_states(net: &mut Net, at: usize) -> Vec<Event> {
    let mut events = net.take_events(at);
    events.retain(|event| !matches!(event, Event::Refused(_) | Event::Trouble(_)));
    events
}

#[test]
fn rekeys_of_a_caller_whose_clock_went_back_go_on_and_lose_nothing() {
    let mut net = Net::connected();
    set_back(&mut net);
    net.run_for(secs(3));
    take_states(&mut net, B);
    let handshakes = net.view(A).handshakes;
    for number in 0..1000 {
        net.send(A, &frame(number, 60)).unwrap();
        net.run_for(secs(1));
    }
    assert!(net.view(A).handshakes >= handshakes + 7);
    let received = numbers(&net.take_received(B));
    assert_eq!(received, (0..1000).collect::<Vec<_>>());
    assert_eq!(take_states(&mut net, B), [], "never down");
}

/// A pair, and every datagram from before and after a clock was set back.
fn overheard() -> Net {
    let mut net = Net::pair();
    net.records = true;
    net.start_all();
    net.run_for(secs(3));
    for _ in 0..3 {
        // Times between the first and the newest.
        net.start(A);
        net.run_for(secs(3));
    }
    set_back(&mut net);
    net.run_for(secs(3));
    assert!(net.is_up(A) && net.is_up(B));
    take_states(&mut net, A);
    take_states(&mut net, B);
    net
}

fn sessions(net: &Net) -> Vec<u32> {
    let sessions = net.hosts[B].tables().sessions.keys();
    let mut indices: Vec<_> = sessions.map(|index| index.value()).collect();
    indices.sort_unstable();
    indices
}

#[test]
fn no_initiation_is_taken_twice_whatever_the_clock_said() {
    let mut net = overheard();
    let recorded = std::mem::take(&mut net.recorded);
    let is_initiation = |sent: &Sent| sent.is(MessageType::Initiation);
    let initiations: Vec<_> = recorded.into_iter().filter(is_initiation).collect();
    assert_eq!(initiations.len(), 6);
    let before = sessions(&net);
    let refused = net.hosts[B].dropped(DropReason::ReplayedHandshake);
    for _ in 0..20 {
        for initiation in &initiations {
            net.inject(Sent {
                from: eve(),
                ..initiation.clone()
            });
            net.run_for(millis(100));
        }
    }
    assert_eq!(sessions(&net), before);
    assert_eq!(net.view(B).endpoint, Some(net.hosts[A].address));
    let replayed = net.hosts[B].dropped(DropReason::ReplayedHandshake);
    assert_eq!(replayed - refused, 120);
    let to_eve: Vec<_> = net
        .recorded
        .iter()
        .filter(|sent| sent.to == eve())
        .collect();
    assert!(!to_eve.is_empty());
    for answer in to_eve {
        assert!(answer.bytes.len() <= initiations[0].bytes.len());
    }
    assert_eq!(take_states(&mut net, B), []);
}

#[test]
fn repeated_initiations_do_not_keep_the_caller_out() {
    let mut net = overheard();
    let old = net.recorded.first().unwrap().clone();
    assert!(old.is(MessageType::Initiation));
    for _ in 0..5 {
        let before = net.view(B).handshakes;
        set_back(&mut net);
        let began = net.elapsed();
        while net.view(B).handshakes == before {
            net.inject(Sent {
                from: eve(),
                ..old.clone()
            });
            net.run_for(millis(20));
            assert!(net.elapsed() - began < secs(2), "kept out");
        }
    }
    assert_eq!(net.view(A).endpoint, Some(net.hosts[B].address));
    assert!(net.run_until(secs(30), |net| net.hosts[B].view(FIRST.0, net.now()).is_up));
}
