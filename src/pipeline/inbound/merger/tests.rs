// SPDX-License-Identifier: MIT OR Apache-2.0

use std::os::fd::AsFd;

use nix::errno::Errno;

use super::*;
use crate::{
    io::{
        tap::{Backend, Tap, TapOptions, VnetHeader},
        waker,
    },
    pipeline::clock,
    proto::testing::{Network, Stream},
    testing::{
        assert_all_refused, eventually, in_namespace, ip, refuse_super_frames, wait_for_carrier,
    },
    wire::offload::Transport,
};

const SOURCE: [u8; 6] = [2, 0, 0, 0, 0, 2];

/// A merger whose frames cross a bridge to a reader of finished frames.
struct Bench {
    merger: Merger,
    reader: TapQueue,
    _taps: [Tap; 2],
}

impl Bench {
    fn new() -> Self {
        ip("link add br0 type bridge mcast_snooping 0");
        ip("link set br0 up");
        let [(near, from), (far, reader)] = ["near", "far"].map(|name| {
            let (tap, queue) = tap(name);
            ip(&format!("link set {name} mtu 9000 master br0 up"));
            tap.set_carrier(true).unwrap();
            wait_for_carrier(name);
            (tap, queue)
        });
        Self {
            merger: merger(from),
            reader,
            _taps: [near, far],
        }
    }

    fn write(&mut self, frames: &[Vec<u8>]) {
        for frame in frames {
            let frame = EgressFrame::finished(frame);
            self.merger.write(&frame).unwrap();
        }
    }

    /// How often the TAP was written to since it was made.
    fn writes(&self) -> u64 {
        let shown = ip("-s -j link show near");
        let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
        shown[0]["stats64"]["rx"]["packets"].as_u64().unwrap()
    }

    /// The frames that came out of the bridge, as soon as there are so many.
    fn read(&self, frames: usize) -> Vec<Vec<u8>> {
        let (mut buf, mut came) = (vec![0; 70_000], Vec::new());
        let all = eventually(|| {
            waker::wait(&[self.reader.as_fd()], Some(Duration::from_millis(10))).unwrap();
            while let Some((vnet, at)) = self.reader.try_read(&mut buf).unwrap() {
                let frame = &buf[at];
                if frame[6..12] == SOURCE {
                    assert_eq!(vnet, VnetHeader::NONE);
                    came.push(frame.to_vec());
                }
            }
            (came.len() >= frames).then_some(())
        });
        all.expect("all frames arrive");
        came
    }

    fn written(&self) -> u64 {
        self.merger.shared.tap.inbound.frames()
    }
}

fn tap(name: &str) -> (Tap, TapQueue) {
    let options = TapOptions {
        name: name.to_owned(),
        backend: Backend::Vnet,
        express: false,
    };
    let (tap, mut queues) = Tap::open(&options, 1).unwrap();
    (tap, queues.remove(0))
}

fn merger(queue: TapQueue) -> Merger {
    let shared = Shared::alone();
    let drops = shared.new_drops();
    Merger::new(shared, drops, Arc::new(queue), clock::now())
}

/// So many frames of a flow, finished.
fn flow(id: u16, is_ipv6: bool, frames: usize) -> Vec<Vec<u8>> {
    let network = match is_ipv6 {
        true => Network::V6(Vec::new()),
        false => Network::V4(id, true, 0),
    };
    let stream = Stream {
        tags: vec![(0x8100, id)],
        network,
        transport: Transport::Udp,
        ..Stream::tcp_v4(100, 100 * frames)
    };
    (0..frames)
        .map(|at| stream.frame(at..at + 1, true))
        .collect()
}

/// One that cannot be merged.
fn experimental(to: u8) -> Vec<u8> {
    [&[2, 0, 0, 0, 0, to][..], &SOURCE, &[0x88, 0xb5], &[7; 60]].concat()
}

#[test]
fn frames_of_several_flows_leave_at_the_end_of_a_batch() {
    in_namespace(|| {
        let mut bench = Bench::new();
        let flows = [flow(1, false, 9), flow(2, true, 9), flow(3, false, 9)];
        for at in 0..9 {
            bench.write(&flows.each_ref().map(|flow| flow[at].clone()));
        }
        assert_eq!((bench.written(), bench.writes()), (0, 0));
        bench.merger.flush();
        assert_eq!((bench.written(), bench.writes()), (27, 3));
        assert_eq!(bench.read(27), flows.concat());
        bench.merger.flush();
        assert_eq!(bench.writes(), 3);
    });
}

#[test]
fn frames_between_two_stations_stay_in_order() {
    in_namespace(|| {
        let mut bench = Bench::new();
        let flow = flow(1, false, 6);
        let same = [experimental(1)];
        // It ends the first part of the flow; one to another station overtakes the second.
        let other = [experimental(9)];
        bench.write(&flow[..3]);
        bench.write(&same);
        bench.write(&flow[3..]);
        bench.write(&other);
        bench.merger.flush();
        let expected = [&flow[..3], &same, &other, &flow[3..]].concat();
        assert_eq!(bench.read(8), expected);
        assert_eq!(bench.writes(), 4);
    });
}

#[test]
fn more_flows_than_places_take_turns() {
    in_namespace(|| {
        let mut bench = Bench::new();
        let flows: Vec<_> = (0..FLOWS as u16 + 3)
            .map(|id| flow(id, id % 2 == 0, 4))
            .collect();
        for at in 0..4 {
            for flow in &flows {
                bench.write(&flow[at..=at]);
            }
        }
        bench.merger.flush();
        let came = bench.read(4 * flows.len());
        for flow in &flows {
            let came = came.iter().filter(|frame| flow[0][..18] == frame[..18]);
            assert!(came.eq(flow));
        }
    });
}

#[test]
fn no_frame_waits_for_more_than_a_train_of_others() {
    in_namespace(|| {
        let mut bench = Bench::new();
        let first = flow(1, true, 1);
        bench.write(&first);
        let waits = |merger: &Merger| {
            let frame = EgressFrame::finished(&first[0]).mergeable().unwrap();
            merger.flows.iter().any(|flow| flow.has_flow_of(&frame))
        };
        let mut others = 0;
        while waits(&bench.merger) {
            // The same identification keeps each apart from the one before it.
            bench.write(&flow(2 + others % 2, false, 1));
            others += 1;
        }
        let each = flow(2, false, 1)[0].len() + PER_FRAME;
        assert!(usize::from(others) * each <= PATIENCE + each, "{others}");
    });
}

#[test]
fn a_super_frame_that_the_kernel_refuses_leaves_in_frames() {
    in_namespace(|| {
        let mut bench = Bench::new();
        let frames = flow(1, false, 9);
        refuse_super_frames(&[Errno::EINVAL as i32]);
        bench.write(&frames[..3]);
        bench.merger.flush();
        assert_all_refused();
        assert_eq!(bench.read(3), frames[..3]);
        assert_eq!((bench.written(), bench.writes()), (3, 3));
        // No other is tried for a while.
        bench.write(&frames[3..6]);
        assert_eq!(bench.writes(), 6);
        bench.merger.begin(clock::now() + REST);
        bench.write(&frames[6..]);
        bench.merger.flush();
        assert_eq!((bench.written(), bench.writes()), (9, 7));
        assert_eq!(bench.read(6), frames[3..]);
    });
}

#[test]
fn a_device_that_is_down_costs_each_frame() {
    in_namespace(|| {
        let (_tap, queue) = tap("near");
        let mut merger = merger(queue);
        for frame in flow(1, false, 5) {
            merger.write(&EgressFrame::finished(&frame)).unwrap();
        }
        merger.flush();
        assert_eq!(merger.shared.tap.inbound.frames(), 0);
        assert_eq!(merger.drops.total(DropReason::TapWriteFailed), 5);
        // It is no reason to stop merging.
        assert_eq!(merger.rests_until, None);
    });
}
