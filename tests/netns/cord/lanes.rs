// SPDX-License-Identifier: MIT OR Apache-2.0
//! Several lanes: flows are spread over them, and nothing else differs.
//!
//! A flow here is a pair of Ethernet addresses, the hash input for frames that are not IP.

use std::collections::HashMap;
use std::io::IoSlice;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use nix::sys::socket::{ControlMessage, MsgFlags, SockaddrIn, sendmsg};

use crate::kit::cable::{Cable, Stream};
use crate::kit::frames::{Flow, Tally};
use crate::kit::load::{self, Turn};
use crate::kit::namespace::Namespace;
use crate::kit::pair::{Pair, Plan};
use crate::kit::process::{eventually, millis, secs};
use crate::kit::site::{Settings, UDP_PORT, assert_followed, move_to};
use crate::kit::topology::Host;
use crate::kit::traffic::{Ip, iperf, pings, transfer};
use crate::kit::wiretap::{Datagram, Wiretap};

/// Flows of each direction: enough that every lane has some.
const FLOWS: u8 = 12;

/// Both sides up, A with the first number of lanes, B with the second.
fn start(lanes: [usize; 2], tunnel: &str) -> Pair {
    let pair = start_with(lanes, tunnel, "");
    for (site, lanes) in [&pair.a, &pair.b].into_iter().zip(lanes) {
        assert_eq!(site.status().core_plan.lanes, lanes);
    }
    pair
}

/// As [`start`], with further lines in `[device]` at B.
fn start_with(lanes: [usize; 2], tunnel: &str, device: &'static str) -> Pair {
    let mut pair = Pair::prepare(Plan::default());
    let settings = lanes.map(|lanes| Settings {
        // `[tunnel]` is followed by `[device]`; a section of its own may stand in between.
        tunnel: format!("{tunnel}\n[pipeline]\nlanes = {lanes}").leak(),
        ..Settings::default()
    });
    let peers = [&pair.b, &pair.a].map(|site| site.as_peer(Some(site.uplink.v4.into())));
    pair.a.configure(&settings[0], &peers[..1]);
    let [_, settings] = settings;
    pair.b
        .configure(&Settings { device, ..settings }, &peers[1..]);
    pair.up();
    pair.connect(secs(10));
    pair
}

/// One flow from each of several stations behind `from`.
fn flows(from: &Cable, to: &Cable, first_id: u16) -> Vec<Flow> {
    let station = |number: u8| {
        let mut mac = from.mac;
        mac[4] = mac[4].wrapping_add(0x40);
        mac[3] = number;
        mac
    };
    (0..FLOWS)
        .map(|number| Flow {
            src: station(number),
            dst: to.mac,
            id: first_id + u16::from(number),
        })
        .collect()
}

/// Flows that are being sent.
struct Load<'a> {
    ways: Vec<(Flow, &'a Cable, Stream)>,
    _turn: Turn,
}

impl<'a> Load<'a> {
    fn start(pair: &'a Pair) -> Self {
        let turn = load::some();
        let sizes = |number: u64| [60, 1514, 300, 1514, 900, 64][number as usize % 6];
        let there = flows(&pair.at_a, &pair.at_b, 100);
        let back = flows(&pair.at_b, &pair.at_a, 200);
        let there = there.into_iter().map(|flow| (flow, &pair.at_a, &pair.at_b));
        let back = back.into_iter().map(|flow| (flow, &pair.at_b, &pair.at_a));
        let ways = there.chain(back).map(|(flow, from, to)| {
            let stream = from.stream_one_of(FLOWS, to, flow, millis(6), sizes);
            (flow, to, stream)
        });
        Self {
            ways: ways.collect(),
            _turn: turn,
        }
    }

    fn has_moved(&self, frames: u64) -> bool {
        self.ways
            .iter()
            .all(|(flow, to, _)| flow.count(to) >= frames)
    }

    /// Ends it; returns each flow and its tally.
    fn stop(self) -> Vec<(Flow, Tally)> {
        let tally = |(flow, to, stream): (Flow, &Cable, Stream)| {
            let sent = stream.stop();
            flow.wait_number(to, sent - 1, secs(20));
            (flow, flow.tally(to, sent))
        };
        self.ways.into_iter().map(tally).collect()
    }
}

/// The lanes of the data from a side, and a datagram of each.
pub(super) fn lanes_of(datagrams: &[Datagram]) -> HashMap<u8, Datagram> {
    let data = datagrams
        .iter()
        .filter(|datagram| matches!(datagram.payload.first(), Some(0x14 | 0x15)));
    data.map(|datagram| (datagram.payload[4], datagram.clone()))
        .filter(|&(lane, _)| lane > 0)
        .collect()
}

fn assert_every_flow_in_order(lanes: [usize; 2]) {
    assert_in_order(&start(lanes, ""));
}

fn assert_in_order(pair: &Pair) {
    let load = Load::start(pair);
    eventually(secs(30), "300 frames of each flow arrive", || {
        load.has_moved(300).then_some(())
    });
    for (flow, tally) in load.stop() {
        assert_eq!(tally, Tally::perfect(tally.sent), "flow {}", flow.id);
    }
}

#[test]
fn flows_keep_their_order_over_two_lanes() {
    assert_every_flow_in_order([2, 2]);
}

#[test]
fn flows_keep_their_order_over_four_lanes() {
    assert_every_flow_in_order([4, 4]);
}

#[test]
fn flows_keep_their_order_between_different_numbers_of_lanes() {
    assert_every_flow_in_order([4, 1]);
    assert_every_flow_in_order([2, 3]);
}

#[test]
fn a_device_with_one_queue_gives_one_lane_and_gets_along_with_four() {
    let pair = start_with([4, 4], "", "backend = \"plain\"");
    assert_eq!(pair.a.status().core_plan.lanes, 4);
    let plan = pair.b.status().core_plan;
    let names: Vec<_> = plan.threads.iter().map(|thread| &thread.name[..]).collect();
    assert_eq!((plan.lanes, &names[..2]), (1, &["outbound", "inbound"][..]));
    assert_in_order(&pair);
}

#[test]
fn every_lane_carries_some_of_the_flows() {
    let pair = start([4, 2], "");
    let wiretap = Wiretap::before(&pair.internet, &pair.b);
    let load = Load::start(&pair);
    for (site, lanes) in [(&pair.a, 1..=4), (&pair.b, 1..=2)] {
        eventually(secs(10), "every lane is used", || {
            let seen = lanes_of(&wiretap.from(site.uplink.v4));
            lanes
                .clone()
                .all(|lane| seen.contains_key(&lane))
                .then_some(())
        });
    }
    load.stop();
}

#[test]
fn rekeying_under_load_over_several_lanes_loses_nothing() {
    let pair = start([4, 3], "rekey-interval = \"1s\"");
    let before = pair.a.peer().handshakes;
    let load = Load::start(&pair);
    eventually(secs(15), "five handshakes under load", || {
        (pair.a.peer().handshakes >= before + 5).then_some(())
    });
    for (flow, tally) in load.stop() {
        assert_eq!(tally, Tally::perfect(tally.sent), "flow {}", flow.id);
    }
}

#[test]
fn a_killed_side_with_several_lanes_comes_back() {
    let mut pair = start([2, 4], "");
    pair.b.kill_9();
    pair.b.up();
    pair.connect(secs(10));
    let load = Load::start(&pair);
    eventually(secs(15), "every flow moves again", || {
        load.has_moved(50).then_some(())
    });
    load.stop();
    pair.b.terminate();
}

#[test]
fn a_side_with_several_lanes_may_roam() {
    let pair = start([2, 4], "");
    let load = Load::start(&pair);
    eventually(secs(10), "every flow moves", || {
        load.has_moved(50).then_some(())
    });
    let address = move_to(&pair.a, 77);
    assert_followed(&pair.b, address);
    let moved = load.ways[0].0.count(&pair.at_b);
    eventually(secs(10), "every flow moves again", || {
        load.has_moved(moved + 100).then_some(())
    });
    for (flow, tally) in load.stop() {
        assert_eq!(
            (tally.duplicates, tally.reordered),
            (0, 0),
            "flow {}",
            flow.id
        );
    }
    assert_followed(&pair.b, address);
}

/// Sends datagrams of the same size as one train, which the kernels on the path do not segment: it
/// arrives at the socket of the first one's lane.
fn send_merged(from: &Namespace, to: SocketAddr, datagrams: &[&Datagram]) {
    let size = datagrams[0].payload.len() as u16;
    let train = datagrams.iter().map(|datagram| &datagram.payload[..]);
    let train: Vec<u8> = train.collect::<Vec<_>>().concat();
    assert_eq!(train.len(), usize::from(size) * datagrams.len());
    let SocketAddr::V4(to) = to else {
        unreachable!("the underlay is IPv4")
    };
    from.enter(|| {
        let socket = UdpSocket::bind("0.0.0.0:0").expect("a port is free");
        let segments = [ControlMessage::UdpGsoSegments(&size)];
        let sent = sendmsg(
            socket.as_raw_fd(),
            &[IoSlice::new(&train)],
            &segments,
            MsgFlags::empty(),
            Some(&SockaddrIn::from(to)),
        );
        assert_eq!(sent.expect("a train can be sent"), train.len());
    });
}

/// Frames of 300 bytes, one of each flow from A to B, and the datagrams that carried them by lane.
fn recorded(pair: &Pair, wiretap: &Wiretap, number: u64) -> HashMap<u8, Datagram> {
    let alone = |datagram: &Datagram| datagram.payload.len() == 300 + 28;
    let seen = || {
        let mut seen = wiretap.from(pair.a.uplink.v4);
        seen.retain(alone);
        seen
    };
    let before = seen().len();
    for (flow, sent) in flows(&pair.at_a, &pair.at_b, 300).iter().zip(1..) {
        pair.at_a.send(&flow.frame(number, 300));
        // Each leaves alone, or they share datagrams.
        eventually(secs(20), "the frame is on its way", || {
            (seen().len() >= before + sent).then_some(())
        });
    }
    let lanes = lanes_of(&seen()[before..]);
    assert_eq!(lanes.len(), 2);
    lanes
}

#[test]
fn a_replayed_datagram_is_refused_at_every_socket() {
    let pair = start([2, 2], "");
    let wiretap = Wiretap::before(&pair.internet, &pair.a);
    let lanes = recorded(&pair, &wiretap, 0);
    let arrived = || -> u64 {
        let flows = flows(&pair.at_a, &pair.at_b, 300);
        flows.iter().map(|flow| flow.count(&pair.at_b)).sum()
    };
    eventually(secs(20), "they arrive", || {
        (arrived() == u64::from(FLOWS)).then_some(())
    });
    let to = (pair.b.uplink.v4, UDP_PORT).into();
    for train in [[1, 2], [2, 1], [2, 2]] {
        let before = pair.b.drops("replayed");
        send_merged(&pair.internet.ns, to, &train.map(|lane| &lanes[&lane]));
        eventually(secs(20), "both are refused", || {
            (pair.b.drops("replayed") == before + 2).then_some(())
        });
    }
    assert_eq!(arrived(), u64::from(FLOWS), "none came twice");
}

#[test]
fn a_datagram_that_arrives_at_the_socket_of_another_lane_is_delivered() {
    let pair = start([2, 2], "");
    let wiretap = Wiretap::before(&pair.internet, &pair.a);
    let to = (pair.b.uplink.v4, UDP_PORT).into();
    for (number, train) in (0..).zip([[1, 2], [2, 1]]) {
        // They are recorded on their way, and then dropped.
        pair.b.ns.nft(
            "table ip lost { chain in { type filter hook input priority 0; iifname wan drop; }; }",
        );
        let lanes = recorded(&pair, &wiretap, number);
        pair.b.ns.nft("delete table ip lost");
        let arrived = || {
            let flows = flows(&pair.at_a, &pair.at_b, 300);
            let count = |flow: &Flow| flow.arrivals(&pair.at_b).iter().any(|&(_, n)| n == number);
            flows.iter().filter(|flow| count(flow)).count()
        };
        assert_eq!(arrived(), 0);
        send_merged(&pair.internet.ns, to, &train.map(|lane| &lanes[&lane]));
        eventually(secs(20), "both are delivered", || {
            (arrived() == 2).then_some(())
        });
    }
}

#[test]
fn hosts_talk_over_any_numbers_of_lanes() {
    for lanes in [[2, 2], [4, 4], [4, 1], [2, 3]] {
        let pair = start(lanes, "");
        let (a, b) = (pair.a.host(2), pair.b.host(2));
        for (from, to) in [(&a, &b), (&b, &a)] {
            for target in [to.v4.to_string(), to.v6.to_string()] {
                pings(from, &target, 10, 56);
            }
            let tcp = iperf(pair.sandbox.path(), from, to, &["--parallel", "8"]);
            let udp = ["--udp", "--parallel", "4", "--bitrate", "2M"];
            let udp = iperf(pair.sandbox.path(), from, to, &udp);
            println!("{lanes:?}: TCP {tcp:.2e} bit/s, UDP {udp:.2e} bit/s");
            assert!(tcp > 1e6 && udp > 1e6, "{lanes:?}: TCP {tcp}, UDP {udp}");
        }
    }
}

/// Data without a session: for each lane, more than a socket's buffer holds.
fn send_junk(from: &Namespace, to: SocketAddr, lanes: u8) {
    const EACH: u32 = 10_000;
    let socket = from.enter(|| UdpSocket::bind("0.0.0.0:0").expect("a port"));
    let mut junk = vec![0; 1400];
    for lane in 1..=lanes {
        for nth in 0..EACH {
            junk[..4].copy_from_slice(&nth.to_be_bytes());
            (junk[0], junk[4]) = (0x15, lane);
            // The kernel drops the excess already when it is sent.
            let _ = socket.send_to(&junk, to);
        }
    }
}

/// Numbered frames of many flows from A, while B is stopped, as a thread is that is not scheduled for a while,
/// and junk fills its buffers. None if that takes so long that A gives B up.
fn send_to_stopped(pair: &mut Pair, stranger: &Namespace, lanes: u8, id: u16) -> Option<Vec<Flow>> {
    const PATIENCE: Duration = secs(3);
    let to = SocketAddr::new(pair.b.uplink.v4.into(), UDP_PORT);
    let flows = flows(&pair.at_a, &pair.at_b, id);
    let _turn = load::some();
    let before = pair.a.peer().counters.outbound_frames;
    pair.b.process().signal(Signal::SIGSTOP);
    let stopped = Instant::now();
    send_junk(stranger, to, lanes);
    for number in 0..FRAMES {
        flows
            .iter()
            .for_each(|flow| pair.at_a.send(&flow.frame(number, 200)));
    }
    let sent = FRAMES * flows.len() as u64;
    let mut has_sent = false;
    while !has_sent && stopped.elapsed() < PATIENCE {
        has_sent = pair.a.peer().counters.outbound_frames >= before + sent;
    }
    pair.b.process().signal(Signal::SIGCONT);
    has_sent.then_some(flows)
}

/// The frames of each flow to a process that is stopped.
const FRAMES: u64 = 20;

#[test]
fn unauthenticated_datagrams_take_no_room_from_those_of_peers() {
    for lanes in [1, 2] {
        let mut pair = start([lanes; 2], "");
        let stranger = pair.sandbox.namespace("stranger");
        pair.internet.attach(&stranger, 3, 1500);
        let mut attempts = 0;
        let flows = eventually(secs(120), "A sends while B is stopped", || {
            pair.a.wait_state("up", secs(60));
            attempts += 1;
            send_to_stopped(&mut pair, &stranger, lanes as u8, attempts * 100)
        });
        for flow in &flows {
            eventually(secs(20), "every frame arrives, once and in order", || {
                (flow.tally(&pair.at_b, FRAMES) == Tally::perfect(FRAMES)).then_some(())
            });
        }
        eventually(secs(20), "those of the stranger are counted", || {
            (pair.b.drops("unknown-session") > 0).then_some(())
        });
    }
}

/// Whether all data threads of both sides have this niceness.
fn all_have_niceness(pair: &mut Pair, nice: i32) -> bool {
    [&mut pair.a, &mut pair.b].into_iter().all(|site| {
        let threads = site.process().niceness();
        let of_data = |name: &str| name.starts_with("outbound") || name.starts_with("inbound");
        let mut data = threads.iter().filter(|(name, _)| of_data(name));
        assert!(data.clone().count() >= 2, "{threads:?}");
        data.all(|&(_, its)| its == nice)
    })
}

/// Transfers from A to B until this is so.
fn transfer_until(
    pair: &mut Pair,
    [a, b]: &[Host; 2],
    what: &str,
    mut is_so: impl FnMut(&mut Pair) -> bool,
) {
    // One turn for all transfers, which are too short to wait for one of their own.
    let _turn = load::some();
    let is_seen = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !is_seen.load(Ordering::Relaxed) {
                transfer(a, b, Ip::V4, 63);
            }
        });
        let deadline = Instant::now() + secs(60);
        let mut so = false;
        while !so && Instant::now() < deadline {
            thread::sleep(millis(1));
            so = is_so(pair);
        }
        is_seen.store(true, Ordering::Relaxed);
        assert!(so, "{what}");
    });
}

#[test]
fn bulk_in_one_direction_raises_the_threads_of_both() {
    let mut pair = start([1, 1], "");
    let usual = pair.a.process().niceness()[0].1;
    eventually(secs(20), "all begin at the usual priority", || {
        all_have_niceness(&mut pair, usual).then_some(())
    });
    let hosts = [pair.a.host(2), pair.b.host(2)];
    transfer_until(&mut pair, &hosts, "all threads are raised", |pair| {
        all_have_niceness(pair, -20)
    });
    let [a, b] = &hosts;
    eventually(secs(20), "with small flows alone all are as before", || {
        pings(a, &b.v4.to_string(), 1, 56);
        all_have_niceness(&mut pair, usual).then_some(())
    });
}

/// The niceness of a process's autogroup; `None` in the session of init, which has no autogroup.
fn autogroup_niceness(pid: u32) -> Option<i32> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/autogroup"));
    let text = text.expect("the kernel has autogroups");
    let (_, nice) = text.trim_end().rsplit_once(" nice ")?;
    Some(nice.parse().expect("a number"))
}

#[test]
fn bulk_raises_a_service_and_no_session_that_it_shares() {
    let mut pair = Pair::prepare(Plan::default());
    pair.a.up_in_own_session();
    pair.b.up();
    pair.connect(secs(20));
    let service = pair.a.status().pid;
    let shared = pair.b.status().pid;
    let usual = autogroup_niceness(shared);
    assert_eq!(autogroup_niceness(service), Some(0));
    let hosts = [pair.a.host(2), pair.b.host(2)];
    transfer_until(&mut pair, &hosts, "the service is raised", |_| {
        assert_eq!(autogroup_niceness(shared), usual);
        autogroup_niceness(service) == Some(-20)
    });
    eventually(secs(20), "without bulk it is as before", || {
        (autogroup_niceness(service) == Some(0)).then_some(())
    });
}
