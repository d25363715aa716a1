// SPDX-License-Identifier: MIT OR Apache-2.0
//! The path of a frame allocates nothing: its pure stages run in both directions under an allocator
//! that counts. It sees Rust code only; the ciphers' assembly and C have no use for an allocator
//! either.
#![allow(
    unsafe_code,
    reason = "an allocator is an unsafe trait; this one hands on to the system's"
)]

#[path = "../benches/path/mod.rs"]
mod path;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::hint::black_box;

use etherparse::PacketBuilder;
use patchcord::internals::crypto::aead::Cipher;
use patchcord::internals::proto::merge::{Merge, Mergeable};
use patchcord::internals::proto::train::{PendingOffload, TRAIN_BYTES, Train};
use patchcord_bridge::{Egress, Headers, Now, PortId, Switch, SwitchConfig};

use path::{
    Delivered, HEADERS_LEN, Receiver, SEGMENT_LEN, SEGMENTS, Sender, datagrams, sessions,
    superframe,
};

/// The frames of one turn each way: small frames that share datagrams, tagged and full ones, large ones
/// in pieces, which span trains, and at the end a super-frame.
const FRAME_LENS: [usize; 10] = [60, 60, 64, 1514, 90, 1522, 60, 9014, 800, 65_535];
/// By then, every reassembly slot has held the largest frame, and as many parts as it ever will.
const WARM_UP_TURNS: usize = 100;
const TURNS: usize = 1000;

#[test]
fn the_path_of_a_frame_does_not_allocate() {
    for cipher in Cipher::available() {
        let mut frames: Vec<_> = FRAME_LENS.map(|len| (vec![0x5a; len], None)).into();
        frames.push(open_superframe());
        let delivered = count_turns(Pair::new(cipher, frames, None));
        assert_eq!(delivered, 2 * TURNS * (FRAME_LENS.len() + SEGMENTS));
    }
}

#[test]
fn super_frames_with_holes_do_not_allocate() {
    // Neither a divisor nor a multiple of the datagrams of a turn: every part of a frame is missing
    // once.
    for lost in [7, 101] {
        let frames = vec![open_superframe(), (vec![0x5a; 60], None), open_superframe()];
        let sent = 2 * TURNS * (2 * SEGMENTS + 1);
        let delivered = count_turns(Pair::new(Cipher::Aes256Gcm, frames, Some(lost)));
        // A datagram has parts of two segments, or of three.
        let share = delivered as f64 / sent as f64;
        let least = 1.0 - 3.5 / lost as f64;
        assert!((least..1.0).contains(&share), "every {lost}th: {share}");
    }
}

/// The segments that are delivered, and no allocation, once all buffers have grown.
fn count_turns(mut pair: Pair) -> usize {
    for _ in 0..WARM_UP_TURNS {
        pair.turn();
    }
    let (before, delivered) = (allocations(), pair.delivered);
    for _ in 0..TURNS {
        pair.turn();
    }
    assert_eq!(allocations() - before, 0);
    pair.delivered - delivered
}

fn open_superframe() -> Frame {
    let (frame, pending) = superframe();
    (frame, Some(pending))
}

#[test]
fn merging_frames_does_not_allocate() {
    let frame = |payload: usize| {
        let mut frame = Vec::new();
        let packet = PacketBuilder::ethernet2([2; 6], [4; 6]).ipv6([1; 16], [2; 16], 64);
        let packet = packet.udp(7, 8);
        packet.write(&mut frame, &vec![0x5a; payload]).unwrap();
        frame
    };
    // More than a super-frame holds of either size.
    let frames = [vec![frame(20); 100], vec![frame(1400); 100]].concat();
    let (mut merge, mut merged) = (Merge::default(), 0);
    let before = allocations();
    for _ in 0..TURNS {
        for frame in &frames {
            let headers = Headers::parse(frame).unwrap();
            let frame = Mergeable::of(&headers, &[], None).unwrap();
            if !(merge.has_flow_of(&frame) && merge.join(&frame)) {
                merged += merge.finish().map_or(0, |merged| merged.frames);
                merge.begin(&frame);
            }
        }
        merged += merge.finish().map_or(0, |merged| merged.frames);
    }
    assert_eq!(allocations() - before, 0);
    assert_eq!(merged, TURNS * frames.len());
}

#[test]
fn an_allocation_is_counted() {
    let before = allocations();
    let mut bytes = black_box(Vec::<u8>::with_capacity(1));
    bytes.reserve(black_box(1000));
    let zeroed = black_box(vec![0_u8; 10]);
    drop((bytes, zeroed));
    assert_eq!(allocations() - before, 3);
}

/// A frame, and what is open in it.
type Frame = (Vec<u8>, Option<PendingOffload>);

/// Two ends, each with its switch, and the wire between them.
struct Pair {
    ends: [End; 2],
    frames: Vec<Frame>,
    wire: Wire,
    /// A frame counts as one segment.
    delivered: usize,
}

struct End {
    switch: Switch,
    sender: Sender,
    receiver: Receiver,
}

/// Datagrams in flight, as a socket's buffers hold them.
struct Wire {
    bytes: Box<[u8]>,
    /// Where each datagram ends.
    ends: Vec<usize>,
    /// One of so many is lost.
    lost: Option<usize>,
    arrived: usize,
}

impl Pair {
    fn new(cipher: Cipher, frames: Vec<Frame>, lost: Option<usize>) -> Self {
        let (a, b) = sessions(cipher);
        let ends = [a, b].map(|session| End {
            switch: Switch::new(SwitchConfig::with_ports(2), [1, 2]),
            sender: Sender::new(session.clone()),
            receiver: Receiver::new(session),
        });
        Self {
            ends,
            frames,
            wire: Wire {
                bytes: vec![0; TRAIN_BYTES].into(),
                ends: Vec::with_capacity(64),
                lost,
                arrived: 0,
            },
            delivered: 0,
        }
    }

    /// Every frame crosses once in each direction.
    fn turn(&mut self) {
        self.cross(0, 1);
        self.cross(1, 0);
    }

    fn cross(&mut self, from: usize, to: usize) {
        let Self {
            ends,
            frames,
            wire,
            delivered,
        } = self;
        let [near, far] = ends.get_disjoint_mut([from, to]).expect("two ends");
        let mut deliver = |frame: Delivered<'_>| {
            let now = Now::default();
            let decision = far.switch.forward_frame(PortId(1), frame.head, 1, now);
            let egress = decision.map(|decision| decision.egress);
            assert_eq!(egress, Ok(Egress::Port(PortId::TAP)));
            let payload = frame.segments * SEGMENT_LEN;
            assert!(frame.segments == 1 || frame.len() == HEADERS_LEN + payload);
            *delivered += frame.segments;
        };
        let mut depart = |train: &mut Train| {
            train.seal();
            wire.carry(train);
            wire.arrive(|datagram| far.receiver.receive(datagram, &mut deliver));
            far.receiver.end_batch(false, &mut deliver);
        };
        for (frame, pending) in frames {
            frame[..6].copy_from_slice(&station(to));
            frame[6..12].copy_from_slice(&station(from));
            // The first one is flooded, as the switch knows no station yet.
            let decision = near
                .switch
                .forward_frame(PortId::TAP, frame, 1, Now::default());
            let egress = decision.map(|decision| decision.egress);
            assert!(matches!(
                egress,
                Ok(Egress::Port(PortId(1)) | Egress::Flood)
            ));
            near.sender.push(frame, *pending, &mut depart);
        }
        near.sender.flush(&mut depart);
        far.receiver.end_batch(true, &mut deliver);
    }
}

fn station(end: usize) -> [u8; 6] {
    [2, 0, 0, 0, 0, end as u8]
}

impl Wire {
    fn carry(&mut self, train: &Train) {
        self.ends.clear();
        let mut begin = 0;
        for datagram in datagrams(train) {
            let end = begin + datagram.len();
            self.bytes[begin..end].copy_from_slice(datagram);
            self.ends.push(end);
            begin = end;
        }
    }

    /// Every second pair of datagrams arrives in reverse order, and some are lost.
    fn arrive(&mut self, mut receive: impl FnMut(&mut [u8])) {
        for at in 0..self.ends.len() {
            let at = match at % 4 {
                2 if at + 1 < self.ends.len() => at + 1,
                3 => at - 1,
                _ => at,
            };
            self.arrived += 1;
            if self
                .lost
                .is_some_and(|lost| self.arrived.is_multiple_of(lost))
            {
                continue;
            }
            let begin = at.checked_sub(1).map_or(0, |before| self.ends[before]);
            receive(&mut self.bytes[begin..self.ends[at]]);
        }
    }
}

/// The system's allocator, with a count of its calls on each thread.
struct Counting;

#[global_allocator]
static COUNTING: Counting = Counting;

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

/// Allocations of this thread so far; the harness and other tests have threads of their own.
fn allocations() -> usize {
    ALLOCATIONS.get()
}

fn count() {
    // A thread that ends allocates after its variables are gone; no test reads the count then.
    let _ = ALLOCATIONS.try_with(|allocations| allocations.set(allocations.get() + 1));
}

// SAFETY: every call goes to `System` with the arguments that came, which keeps the contract;
// counting touches a thread-local integer that needs neither allocation nor destructor.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: as promised by the caller.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: as promised by the caller.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        count();
        // SAFETY: as promised by the caller; `memory` came from `System`.
        unsafe { System.realloc(memory, layout, new_size) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: as promised by the caller; `memory` came from `System`.
        unsafe { System.dealloc(memory, layout) }
    }
}
