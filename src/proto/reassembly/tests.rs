// SPDX-License-Identifier: MIT OR Apache-2.0
//! Frames cut and shuffled, super-frames with holes, and peers that lie.

use proptest::prelude::*;

use super::*;
use crate::{
    proto::{
        superframe::MAX_SEGMENTS,
        testing::{Opened, Stream, pack},
        train::PendingOffload,
    },
    wire::chunk::Chunk,
};

fn at(frame_id: u32, total: u32, offset: u32) -> Fragment {
    Fragment {
        frame_id,
        total,
        offset,
    }
}

impl Reassembly {
    /// Adds a piece that was the latest to arrive; the frame if that completes it.
    fn add_piece(&mut self, fragment: Fragment, piece: &[u8]) -> Result<Option<&[u8]>, DropReason> {
        let is_whole = self.add(0, fragment, piece)?;
        let whole = self.take_whole();
        assert_eq!(whole.is_some(), is_whole);
        Ok(whole.map(|whole| whole.frame))
    }
}

#[test]
fn pieces_in_any_order_make_a_frame_once() {
    let mut reassembly = Reassembly::new(100);
    for order in [
        [0, 1, 2],
        [2, 1, 0],
        [1, 2, 0],
        [0, 2, 1],
        [2, 0, 1],
        [1, 0, 2],
    ] {
        for (step, piece) in order.into_iter().enumerate() {
            let (offset, bytes) = [(0, &b"abc"[..]), (3, b"de"), (5, b"fgh")][piece];
            let frame = reassembly.add_piece(at(1, 8, offset), bytes).unwrap();
            let expected = (step == 2).then_some(&b"abcdefgh"[..]);
            assert_eq!(frame, expected, "order {order:?}, step {step}");
        }
    }
    assert_eq!(reassembly.take_evicted(), 0);
}

#[test]
fn contradictions_are_malformed_and_forget_the_frame() {
    for (first, second) in [
        ((at(1, 8, 0), &b"abcd"[..]), (at(1, 8, 3), &b"xyz"[..])), // overlaps from below
        ((at(1, 8, 4), b"efgh"), (at(1, 8, 3), b"xyz")),           // overlaps from above
        ((at(1, 8, 2), b"cd"), (at(1, 8, 0), b"abcdef")),          // swallows
        ((at(1, 8, 0), b"abcd"), (at(1, 9, 4), b"efgh")),          // another length
    ] {
        let mut reassembly = Reassembly::new(100);
        assert_eq!(reassembly.add_piece(first.0, first.1), Ok(None));
        assert_eq!(
            reassembly.add_piece(second.0, second.1),
            Err(DropReason::Malformed),
            "{second:?}"
        );
        assert_eq!(
            reassembly.add_piece(at(1, 8, 4), b"efgh"),
            Ok(None),
            "begun anew"
        );
    }
    const OVER: u32 = MAX_SUPERFRAME as u32 + 1;
    let mut reassembly = Reassembly::new(100);
    for (fragment, piece, reason) in [
        (at(1, 8, 0), &b""[..], DropReason::Malformed),
        (at(1, 8, 6), b"abc", DropReason::Malformed),
        (at(1, 8, u32::MAX), b"abc", DropReason::Malformed),
        (at(1, OVER, 0), b"abc", DropReason::Oversize),
    ] {
        assert_eq!(
            reassembly.add_piece(fragment, piece),
            Err(reason),
            "{fragment:?}"
        );
    }
    assert_eq!(reassembly.live.len(), 0);
}

#[test]
fn a_frame_without_segments_is_as_large_as_it_is() {
    let mut reassembly = Reassembly::new(100);
    let frame = [7; 101];
    // A super-frame may be as long, and its offload chunk may come last.
    assert_eq!(reassembly.add_piece(at(1, 101, 0), &frame[..60]), Ok(None));
    assert_eq!(
        reassembly.add_piece(at(1, 101, 60), &frame[60..]),
        Err(DropReason::Oversize)
    );
    assert_eq!(reassembly.live.len(), 0);
}

#[test]
fn a_frame_in_crumbs_is_given_up() {
    let total = 65_535;
    let mut reassembly = Reassembly::new(total);
    let mut crumbs = (0..total).step_by(2);
    let refused = crumbs.find_map(|offset| reassembly.add_piece(at(1, total, offset), b"x").err());
    assert_eq!(refused, Some(DropReason::Malformed));
    reassembly.pool.held();
}

#[test]
fn every_second_piece_of_the_largest_frame_may_be_late() {
    let frame = vec![7; 65_535];
    // The bytes of a frame that the narrowest path carries in one datagram.
    let pieces: Vec<_> = frame.chunks(576 - 48 - 28 - 13).enumerate().collect();
    let (late, early): (Vec<_>, Vec<_>) = pieces.into_iter().partition(|(n, _)| n % 2 == 0);
    let mut reassembly = Reassembly::new(65_535);
    let mut done = 0;
    for (n, piece) in early.into_iter().chain(late) {
        let fragment = at(1, 65_535, n as u32 * 487);
        done += usize::from(reassembly.add_piece(fragment, piece).unwrap().is_some());
    }
    assert_eq!(done, 1);
}

#[test]
fn the_oldest_frame_makes_room() {
    let mut reassembly = Reassembly::with_budget(100, 0);
    let mut begun = 0;
    while reassembly.take_evicted() == 0 {
        assert_eq!(reassembly.add_piece(at(begun, 4, 0), b"ab"), Ok(None));
        begun += 1;
    }
    assert!(begun > 16, "{begun}");
    assert_eq!(
        reassembly.add_piece(at(1, 4, 2), b"cd"),
        Ok(Some(&b"abcd"[..])),
        "still there"
    );
    assert_eq!(
        reassembly.add_piece(at(0, 4, 2), b"cd"),
        Ok(None),
        "its first half is gone"
    );
}

#[test]
fn as_many_full_frames_are_unfinished_as_come_within_a_tenth_of_a_second() {
    // 2000 frames in a second, half of each late by up to 200 ms.
    let frame = [7; 1442];
    let mut reassembly = Reassembly::new(1522);
    let pieces = |frame_id: u32| {
        let late = frame_id.wrapping_mul(2_654_435_761) % 400;
        [
            (frame_id, at(frame_id, 1442, 0), &frame[..1400]),
            (frame_id + late, at(frame_id, 1442, 1400), &frame[1400..]),
        ]
    };
    let mut arrivals: Vec<_> = (0..10_000).flat_map(pieces).collect();
    arrivals.sort_by_key(|&(when, fragment, _)| (when, fragment.frame_id));
    let mut whole = 0;
    for (_, fragment, piece) in arrivals {
        whole += usize::from(reassembly.add_piece(fragment, piece).unwrap().is_some());
    }
    assert_eq!((whole, reassembly.take_evicted()), (10_000, 0));
    let held = reassembly.pool.held();
    assert!(held < 2 << 20, "{held}");
}

#[test]
fn frames_that_a_lying_peer_leaves_unfinished_are_bounded_in_bytes() {
    for (total, least) in [
        (2, 1000),
        (1500, 1000),
        (9000, 200),
        (MAX_SUPERFRAME as u32, 60),
    ] {
        let mut reassembly = Reassembly::new(65_535);
        for frame_id in 0..5000 {
            assert_eq!(reassembly.add_piece(at(frame_id, total, 0), b"a"), Ok(None));
        }
        assert!(reassembly.pool.held() <= REASSEMBLY_LANE_BYTES);
        let live = reassembly.live.len();
        assert!(live >= least, "{live} frames of {total} bytes");
        assert_eq!(reassembly.take_evicted(), 5000 - live as u64);
    }
}

proptest! {
    #[test]
    fn shuffled_cuts_give_the_frame_back(
        frame in proptest::collection::vec(any::<u8>(), 1..2000),
        cuts in proptest::collection::vec(16_usize..400, 1..20),
        seed: u64,
    ) {
        let mut pieces = Vec::new();
        let (mut offset, mut cuts) = (0, cuts.iter().cycle());
        while offset < frame.len() {
            let end = (offset + cuts.next().unwrap()).min(frame.len());
            pieces.push(offset..end);
            offset = end;
        }
        let count = pieces.len();
        for step in 0..count {
            pieces.swap(step, (seed as usize).wrapping_mul(step + 7) % count);
        }
        let mut reassembly = Reassembly::new(2000);
        for (step, piece) in pieces.into_iter().enumerate() {
            let fragment = at(3, frame.len() as u32, piece.start as u32);
            let done = reassembly.add_piece(fragment, &frame[piece]).unwrap();
            prop_assert_eq!(done, (step + 1 == count).then_some(&frame[..]));
        }
    }
}

/// An output: a frame that was not cut, or segments of the super-frame of this number.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Out {
    Small(u8),
    Segments(usize, Range<usize>),
}

/// A receiver of super-frames between two stations, and small frames between them.
struct Receiver<'a> {
    reassembly: Reassembly,
    streams: &'a [Stream],
    newest: u64,
    out: Vec<Out>,
}

impl<'a> Receiver<'a> {
    fn new(streams: &'a [Stream]) -> Self {
        Self {
            reassembly: Reassembly::new(65_535),
            streams,
            newest: 0,
            out: Vec::new(),
        }
    }

    fn take(&mut self, datagram: &Opened) {
        self.newest = self.newest.max(datagram.sequence);
        for chunk in datagram.chunks() {
            let is_whole = match chunk {
                Chunk::Frame(frame) => {
                    self.poll(Which::Between(frame.first_chunk().unwrap()));
                    self.out.push(Out::Small(frame[14]));
                    false
                }
                Chunk::Fragment(fragment, piece) => self
                    .reassembly
                    .add(datagram.sequence, fragment, piece)
                    .unwrap(),
                Chunk::Offload(frame, offload, head) => self
                    .reassembly
                    .describe(datagram.sequence, frame, offload, head)
                    .unwrap(),
                other => panic!("{other:?}"),
            };
            if is_whole {
                let stations = self.reassembly.whole_stations().unwrap();
                self.poll(Which::Between(&stations));
                let whole = self.reassembly.take_whole().unwrap();
                let (frame, offload, layout) = (whole.frame.to_vec(), whole.offload, whole.layout);
                let number = self.number_of(&frame);
                let stream = &self.streams[number];
                assert_eq!(frame, stream.whole());
                assert_eq!(offload, Some(stream.pending().offload));
                assert_eq!(layout, Some(stream.layout()));
                self.out.push(Out::Segments(number, 0..stream.segments()));
            }
        }
    }

    fn poll(&mut self, which: Which<'_>) {
        while let Some(run) = self.reassembly.poll_run(which) {
            let frame = [run.headers, run.payload].concat();
            let (offload, layout) = (run.offload, run.layout);
            let number = self.number_of(&frame);
            let stream = &self.streams[number];
            let first = self.sequence_of(&frame).wrapping_sub(stream.sequence) as usize
                / usize::from(stream.size);
            let payload = frame.len() - stream.headers_len();
            let segments = first..first + payload.div_ceil(stream.size.into());
            assert!(
                frame == stream.frame(segments.clone(), false),
                "{segments:?}"
            );
            assert_eq!(offload, stream.offload(segments.clone()));
            assert_eq!(layout.is_some(), segments.len() > 1);
            self.out.push(Out::Segments(number, segments));
        }
    }

    fn end_batch(&mut self) {
        self.poll(Which::LeftBehind(self.newest));
        self.reassembly.forget(self.newest);
    }

    /// Nothing arrives any more, and then very much.
    fn end(&mut self) {
        self.poll(Which::All);
        assert!(!self.reassembly.is_waiting());
        self.reassembly.forget(self.newest + REPLAY_WINDOW + 1);
        assert_eq!(self.reassembly.live.len(), 0);
    }

    /// The upper half of their sequence numbers tells streams apart.
    fn number_of(&self, frame: &[u8]) -> usize {
        (self.sequence_of(frame) >> 20) as usize
    }

    fn sequence_of(&self, frame: &[u8]) -> u32 {
        let at = self.streams[0].transport_at() + 4;
        u32::from_be_bytes(*frame[at..].first_chunk().unwrap())
    }

    fn small(&self) -> Vec<u8> {
        let small = |out: &Out| match out {
            Out::Small(number) => Some(*number),
            Out::Segments(..) => None,
        };
        self.out.iter().filter_map(small).collect()
    }

    fn segments(&self) -> Vec<(usize, usize)> {
        let segments = |out: &Out| match out {
            Out::Small(_) => Vec::new(),
            Out::Segments(number, run) => run.clone().map(|at| (*number, at)).collect(),
        };
        self.out.iter().flat_map(segments).collect()
    }
}

/// The bytes of each stream that these datagrams bring, and whether an offload chunk is among them.
struct Brought {
    bytes: Vec<Vec<bool>>,
    is_described: Vec<bool>,
    is_begun: Vec<bool>,
}

impl Brought {
    fn by(datagrams: &[Opened], streams: &[Stream]) -> Self {
        let mut brought = Self {
            bytes: streams
                .iter()
                .map(|it| vec![false; it.whole().len()])
                .collect(),
            is_described: vec![false; streams.len()],
            is_begun: vec![false; streams.len()],
        };
        for chunk in datagrams.iter().flat_map(Opened::chunks) {
            let (frame_id, range) = match chunk {
                Chunk::Fragment(fragment, piece) => {
                    let offset = fragment.offset as usize;
                    (fragment.frame_id, offset..offset + piece.len())
                }
                Chunk::Offload(frame, _, head) => (frame.frame_id, 0..head.len()),
                _ => continue,
            };
            // Small frames have the odd ids.
            let number = frame_id as usize / 2;
            brought.is_described[number] |= range.start == 0;
            brought.is_begun[number] = true;
            brought.bytes[number][range].fill(true);
        }
        brought
    }

    fn survivors(&self, streams: &[Stream]) -> Vec<(usize, usize)> {
        let survives = |&(number, segment): &(usize, usize)| {
            let payload = streams[number].layout().payload(segment..segment + 1);
            self.is_described[number] && self.bytes[number][payload].iter().all(|&it| it)
        };
        (0..streams.len())
            .flat_map(|number| (0..streams[number].segments()).map(move |at| (number, at)))
            .filter(survives)
            .collect()
    }
}

/// Super-frames, each with a small frame behind it, in datagrams.
fn sent(streams: &[Stream], datagram_len: usize) -> Vec<Opened> {
    let frames: Vec<_> = (0..)
        .zip(streams)
        .flat_map(|(number, stream)| {
            let mut small = stream.whole()[..60].to_vec();
            small[14] = number;
            [(stream.whole(), Some(stream.pending())), (small, None)]
        })
        .collect();
    let (datagrams, _) = pack(
        frames.iter().map(|(frame, pending)| (&frame[..], *pending)),
        datagram_len,
    );
    Opened::all(&datagrams)
}

fn stream(number: usize, size: u16, payload_len: usize) -> Stream {
    Stream {
        sequence: (number as u32) << 20,
        ..Stream::tcp_v4(size, payload_len)
    }
}

prop_compose! {
    fn any_streams()(
        shapes in prop::collection::vec(
            (prop_oneof![100..1461_u16, 1..9000_u16], 1..=64_000_usize), 1..5),
    ) -> Vec<Stream> {
        let stream = |(number, (size, len)): (usize, (u16, usize))| {
            // Two segments at least.
            let len = len.clamp(usize::from(size) + 1, usize::from(size) * MAX_SEGMENTS);
            stream(number, size, len)
        };
        shapes.into_iter().enumerate().map(stream).collect()
    }
}

fn any_datagram_len() -> impl Strategy<Value = usize> {
    prop_oneof![Just(548_usize), 1300_usize..1480, Just(8972)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn surviving_segments_are_delivered_once_and_in_order(
        streams in any_streams(),
        datagram_len in any_datagram_len(),
        lost in prop::collection::vec(0..100_u8, 64),
        loss_percent in prop_oneof![Just(0_u8), 1..10_u8, 10..60_u8],
        batch in 1..200_usize,
    ) {
        let mut datagrams = sent(&streams, datagram_len);
        let mut fates = lost.iter().cycle();
        datagrams.retain(|_| *fates.next().unwrap() >= loss_percent);
        let mut receiver = Receiver::new(&streams);
        for datagrams in datagrams.chunks(batch) {
            for datagram in datagrams {
                receiver.take(datagram);
            }
            receiver.end_batch();
        }
        receiver.end();
        let brought = Brought::by(&datagrams, &streams);
        let survivors = brought.survivors(&streams);
        prop_assert_eq!(receiver.segments(), survivors.clone());
        prop_assert!(receiver.small().is_sorted());
        // A small frame overtakes nothing.
        for (at, out) in receiver.out.iter().enumerate() {
            if let Out::Small(number) = *out {
                let has_passed = |out: &Out| {
                    matches!(out, Out::Segments(later, _) if *later <= usize::from(number))
                };
                prop_assert!(!receiver.out[at..].iter().any(has_passed));
            }
        }
        let lost_of = |number: usize| {
            let came = survivors.iter().filter(|(of, _)| *of == number).count();
            match streams[number].segments() - came {
                0 => (0, 0),
                _ if came == 0 => (u64::from(brought.is_begun[number]), 0),
                lost => (0, lost as u64),
            }
        };
        let (evicted, lost): (Vec<_>, Vec<_>) = (0..streams.len()).map(lost_of).unzip();
        prop_assert_eq!(receiver.reassembly.take_evicted(), evicted.iter().sum::<u64>());
        prop_assert_eq!(receiver.reassembly.take_lost_segments(), lost.iter().sum::<u64>());
    }

    #[test]
    fn in_any_order_every_segment_comes_out_once(
        streams in any_streams(),
        datagram_len in any_datagram_len(),
        delays in prop::collection::vec(0..60_u64, 64),
        lost in prop::option::of(any::<prop::sample::Index>()),
        batch in 1..100_usize,
    ) {
        let mut datagrams = sent(&streams, datagram_len);
        if let Some(lost) = lost {
            datagrams.remove(lost.index(datagrams.len()));
        }
        let mut delays = delays.iter().cycle();
        datagrams.sort_by_cached_key(|datagram| datagram.sequence + delays.next().unwrap());
        let mut receiver = Receiver::new(&streams);
        for datagrams in datagrams.chunks(batch) {
            for datagram in datagrams {
                receiver.take(datagram);
            }
            receiver.end_batch();
        }
        receiver.end();
        let survivors = Brought::by(&datagrams, &streams).survivors(&streams);
        let mut segments = receiver.segments();
        segments.sort_unstable();
        prop_assert_eq!(&segments, &survivors);
        if lost.is_none() {
            prop_assert_eq!(receiver.reassembly.take_evicted(), 0);
            prop_assert_eq!(receiver.reassembly.take_lost_segments(), 0);
        }
    }
}

proptest! {
    #[test]
    fn whatever_a_peer_sends_is_handled_and_bounded(
        steps in prop::collection::vec(
            (0..8_u8, 0..40_u32, 0..4000_u32, 1..600_usize, 0..3_u32), 1..400),
    ) {
        let stream = stream(0, 100, 3000);
        let (whole, pending) = (stream.whole(), stream.pending());
        let mut reassembly = Reassembly::new(1522);
        for (sequence, (action, frame_id, offset, len, other)) in (0..).zip(steps) {
            let total = whole.len() as u32 + other / 2 * MAX_SUPERFRAME as u32;
            let frame = CutFrame { frame_id, total };
            let piece = &whole[..len];
            match action {
                0 => drop(reassembly.poll_run(Which::All)),
                1 => drop(reassembly.poll_run(Which::LeftBehind(sequence))),
                2 => reassembly.forget(sequence + REPLAY_WINDOW * u64::from(other / 2)),
                3 | 4 => {
                    let head = &whole[..pending.headers_len - other as usize / 2];
                    let _ = reassembly.describe(sequence, frame, pending.offload, head);
                }
                _ => {
                    let _ = reassembly.add(sequence, at(frame_id, total, offset), piece);
                }
            }
            reassembly.take_whole();
            reassembly.pool.held();
            let supers = reassembly.live.iter().filter(|live| live.is_super).count();
            prop_assert_eq!(reassembly.supers, supers);
        }
    }
}

#[test]
fn headers_that_come_again_leave_nothing_behind() {
    let streams = [stream(0, 1448, 60_000)];
    let datagrams = sent(&streams, 1472);
    let mut receiver = Receiver::new(&streams);
    for datagram in &datagrams {
        receiver.take(datagram);
    }
    assert_eq!(receiver.reassembly.live.len(), 0);
    assert!(!receiver.reassembly.is_waiting());
    receiver.end();
    assert_eq!(receiver.reassembly.take_evicted(), 0);
}

#[test]
fn headers_that_were_lost_come_again() {
    let streams = [stream(0, 1448, 60_000)];
    let datagrams = sent(&streams, 1472);
    let mut receiver = Receiver::new(&streams);
    for datagram in &datagrams[1..] {
        receiver.take(datagram);
    }
    receiver.end();
    assert_eq!(receiver.out[0], Out::Segments(0, 1..42));
    assert_eq!(receiver.reassembly.take_lost_segments(), 1);
}

#[test]
fn a_super_frame_waits_for_what_is_late_and_no_longer() {
    let streams = [stream(0, 1448, 60_000)];
    let datagrams = sent(&streams, 1472);
    let (late, rest) = (
        &datagrams[20],
        [&datagrams[..20], &datagrams[21..]].concat(),
    );
    for (newer, expected) in [(REORDERING, 0), (REORDERING + 1, 40)] {
        let mut receiver = Receiver::new(&streams);
        for datagram in &rest[..40] {
            receiver.take(datagram);
        }
        receiver.newest += newer;
        receiver.end_batch();
        assert!(receiver.reassembly.is_waiting() == (expected == 0));
        assert_eq!(receiver.segments().len().min(1), expected.min(1));
        let before = receiver.out.len();
        receiver.take(late);
        receiver.end_batch();
        assert_eq!(receiver.out.len() > before, expected > 0, "{newer}");
        for datagram in &rest[40..] {
            receiver.take(datagram);
        }
        receiver.end();
        let mut segments = receiver.segments();
        segments.sort_unstable();
        assert_eq!(segments, (0..42).map(|at| (0, at)).collect::<Vec<_>>());
    }
}

#[test]
fn metadata_that_is_wrong_costs_its_own_frame() {
    let stream = stream(0, 1448, 60_000);
    let (whole, pending) = (stream.whole(), stream.pending());
    let head = &whole[..pending.headers_len];
    let frame = CutFrame {
        frame_id: 1,
        total: whole.len() as u32,
    };
    let mut other = pending.offload;
    other.checksum.start += 1;
    let plain = Offload {
        segmentation: None,
        ..other
    };
    let outside = Offload {
        checksum: crate::wire::offload::Checksum {
            start: 60_060,
            offset: 16,
        },
        segmentation: None,
    };
    let shorter = CutFrame {
        total: 2000,
        ..frame
    };
    for (frame, offload, head, reason) in [
        (frame, other, head, DropReason::BadOffload),
        (frame, pending.offload, &head[1..], DropReason::BadOffload),
        (
            frame,
            pending.offload,
            &whole[..head.len() + 1],
            DropReason::BadOffload,
        ),
        (shorter, pending.offload, head, DropReason::BadOffload),
        (frame, outside, head, DropReason::BadOffload),
        (frame, plain, &[], DropReason::BadOffload),
    ] {
        let mut reassembly = Reassembly::new(1522);
        assert_eq!(reassembly.describe(0, frame, offload, head), Err(reason));
        assert_eq!(reassembly.live.len(), 0);
    }
    let mut reassembly = Reassembly::new(1522);
    assert_eq!(
        reassembly.describe(0, frame, pending.offload, head),
        Ok(false)
    );
    let over = at(1, frame.total, 10);
    assert_eq!(reassembly.add(0, over, b"x"), Err(DropReason::Malformed));
    assert_eq!(reassembly.live.len(), 0, "headers are not written twice");
    let mut reassembly = Reassembly::new(1400);
    let described = reassembly.describe(0, frame, pending.offload, head);
    assert_eq!(described, Err(DropReason::Oversize), "of its segments");
}

#[test]
fn a_fragmented_frame_arrives_with_its_pending_offload() {
    let stream = stream(0, 1448, 1448);
    let (whole, offload) = (stream.whole(), stream.offload(0..1));
    let pending = PendingOffload {
        offload,
        headers_len: 52,
    };
    let (datagrams, _) = pack([(&whole[..], Some(pending))].into_iter(), 1472);
    let mut reassembly = Reassembly::new(1522);
    let mut frames = Vec::new();
    for datagram in Opened::all(&datagrams) {
        for chunk in datagram.chunks() {
            match chunk {
                Chunk::Fragment(fragment, piece) => {
                    reassembly.add(datagram.sequence, fragment, piece).unwrap()
                }
                Chunk::Offload(frame, offload, head) => reassembly
                    .describe(datagram.sequence, frame, offload, head)
                    .unwrap(),
                other => panic!("{other:?}"),
            };
            let whole = reassembly.take_whole();
            frames.extend(whole.map(|it| (it.frame.to_vec(), it.offload, it.layout)));
        }
    }
    assert_eq!(frames, [(whole, Some(offload), None)]);
}
