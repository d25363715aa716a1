// SPDX-License-Identifier: MIT OR Apache-2.0
//! The path MTU is found, and lowered only when the path shrinks.

use patchcord::internals::proto::{node::Event, trouble::Trouble};

use crate::net::{A, B, FIRST, Net, Sent, frame, millis, secs};

fn path_mtus(net: &Net) -> [Option<u16>; 2] {
    [A, B].map(|at| net.view(at).path_mtu)
}

/// Some traffic both ways, so that the path is confirmed.
fn talk(net: &mut Net, seconds: u64) {
    for _ in 0..seconds * 10 {
        for at in [A, B] {
            let _ = net.send(at, &frame(1, 60));
        }
        net.run_for(millis(100));
    }
}

#[test]
fn the_mtu_of_the_path_is_found_both_ways() {
    for (carries, found) in [
        (1280, 1280),
        (1400, 1400),
        (1500, 1500),
        (9000, 9000),
        (65_535, 9216),
    ] {
        let mut net = Net::pair();
        net.link.mtu = carries;
        net.start_all();
        net.run_for(secs(5));
        assert_eq!(path_mtus(&net), [Some(found); 2], "a path of {carries}");
        net.send(A, &frame(1, 9000)).unwrap();
        net.run_for(millis(50));
        let received = net.take_received(B);
        assert_eq!(received, [frame(1, 9000)], "a path of {carries}");
    }
}

#[test]
fn a_path_below_the_base_is_found_while_there_is_traffic() {
    let mut net = Net::pair();
    net.link.mtu = 1100;
    net.start_all();
    talk(&mut net, 15);
    assert_eq!(path_mtus(&net), [Some(1100); 2]);
}

#[test]
fn a_path_that_shrinks_is_noticed() {
    let mut net = Net::connected();
    talk(&mut net, 3);
    assert_eq!(path_mtus(&net), [Some(1500); 2]);
    net.link.mtu = 1400;
    talk(&mut net, 7);
    assert_eq!(path_mtus(&net), [Some(1400); 2]);
}

#[test]
fn emsgsize_is_an_answer() {
    let mut net = Net::connected();
    net.hosts[A].interface_mtu = 1400;
    net.send(A, &frame(1, 3000)).unwrap();
    assert_eq!(net.view(A).path_mtu, Some(1280));
    net.run_for(secs(3));
    assert_eq!(net.view(A).path_mtu, Some(1400));
    assert_eq!(net.view(B).path_mtu, Some(1500));
    net.send(A, &frame(2, 3000)).unwrap();
    net.run_for(millis(20));
    assert_eq!(net.take_received(B), [frame(2, 3000)]);
}

#[test]
fn an_mtu_of_the_own_link_is_found_without_waiting_both_ways() {
    let mut net = Net::connected();
    for mtu in [700, 1337, 1500, 999] {
        net.hosts[A].interface_mtu = mtu;
        net.act(A, |host, now| host.node.handle_link_mtu_change(now, FIRST));
        net.run_for(secs(5));
        assert_eq!(path_mtus(&net), [Some(mtu), Some(1500)]);
    }
}

#[test]
fn a_dip_of_the_path_is_over_soon() {
    for dip in [1, 3, 30, 200] {
        let mut net = Net::connected();
        talk(&mut net, 3);
        net.link.mtu = 576;
        talk(&mut net, dip);
        net.link.mtu = 1500;
        talk(&mut net, dip + 12);
        assert_eq!(path_mtus(&net), [Some(1500); 2], "after {dip} s");
    }
}

#[test]
fn a_path_or_link_without_room_for_frames_is_reported() {
    for (link, interface) in [(575, u16::MAX), (u16::MAX, 575), (u16::MAX, 150)] {
        let mut net = Net::pair();
        (net.link.mtu, net.hosts[A].interface_mtu) = (link, interface);
        net.start_all();
        net.hosts[A].interface_mtu = interface;
        talk(&mut net, 30);
        let view = net.view(A);
        let trouble = view.last_trouble.expect("it is told").trouble;
        assert_eq!(trouble, Trouble::NarrowPath, "{link}, {interface}");
        assert!(net.take_events(A).contains(&Event::Trouble(FIRST)));
        assert_eq!((view.is_up, view.path_mtu), (interface > 500, None));
        (net.link.mtu, net.hosts[A].interface_mtu) = (1500, 1500);
        talk(&mut net, 20);
        assert_eq!(path_mtus(&net), [Some(1500); 2]);
    }
}

/// A peer that ends its sessions and calls again gets no burst of probes each time.
#[test]
fn a_peer_that_comes_and_goes_is_not_probed_each_time() {
    let mut net = Net::connected();
    net.run_for(secs(10));
    net.records = true;
    for _ in 0..20 {
        net.act(A, |host, _| host.node.close());
        net.start(A);
        net.run_for(millis(500));
    }
    let to = net.hosts[A].address;
    let is_probe = |sent: &&Sent| sent.to == to && sent.packet_len() >= 576;
    let probes = net.recorded.iter().filter(is_probe).count();
    // Three searches, each up to the largest size, with three rounds of lost probes.
    assert!(probes <= 3 * 50, "{probes} probes in 10 s");
}

#[test]
fn a_path_that_moves_is_searched_anew() {
    let mut net = Net::connected();
    net.hosts[A].address = "198.51.100.77:4711".parse().unwrap();
    net.link.mtu = 1400;
    talk(&mut net, 4);
    assert_eq!(net.view(B).path_mtu, Some(1400));
}

#[test]
fn an_outage_says_nothing_about_the_size() {
    for outage in [2, 4, 8, 30] {
        let mut net = Net::connected();
        talk(&mut net, 3);
        net.filter(|_| false);
        talk(&mut net, outage);
        net.heal();
        talk(&mut net, 10);
        assert_eq!(path_mtus(&net), [Some(1500); 2], "after {outage} s");
    }
}

#[test]
fn a_lossy_path_is_not_a_narrow_one() {
    let mut net = Net::connected();
    talk(&mut net, 3);
    net.link.loss_percent = 5;
    talk(&mut net, 60);
    net.link.loss_percent = 0;
    talk(&mut net, 3);
    assert_eq!(path_mtus(&net), [Some(1500); 2]);
}

#[test]
fn a_long_path_keeps_its_size() {
    let mut net = Net::pair();
    net.link.latency = millis(300);
    net.start_all();
    talk(&mut net, 30);
    assert_eq!(path_mtus(&net), [Some(1500); 2]);
    let route = net.hosts[A].tables().route(FIRST).unwrap();
    assert_eq!(route.datagram_len, 1500 - 28, "the data threads know");
}
