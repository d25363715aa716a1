// SPDX-License-Identifier: MIT OR Apache-2.0
//! Pieces and offload descriptors of frames in any order, some of them wrong, through the reassembly
//! and through a simple model beside it.
//!
//! The output of a frame with correct descriptors are bytes of it that were sent, and each segment
//! comes once. Without evictions, no complete segment is withheld. Wrong pieces and descriptors may
//! cost their own frame, but no other one.
#![no_main]

#[path = "../checks.rs"]
mod checks;
#[path = "../original.rs"]
mod original;

use std::ops::Range;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use patchcord::internals::{
    proto::{
        limits::REASSEMBLY_LANE_BYTES,
        reassembly::{Reassembly, Run, Stations, Which, Whole},
        superframe::{HEADER_ROOM, Layout, MAX_SUPERFRAME},
    },
    stats::DropReason,
    wire::{
        chunk::{CutFrame, Fragment},
        offload::{Checksum, Offload, Segmentation, Transport},
    },
};

use checks::{has_right_pseudo_header, is_same};
use original::{Kind, Original};

/// More of the largest frames than the smallest budget holds.
const FRAMES: usize = 24;
/// The least budget of the reassembly.
const LEAST_BUDGET: usize = 2 * MAX_SUPERFRAME;
/// Fewer than the parts that a slot tracks.
const MAX_PIECES: usize = 120;

fuzz_target!(|input: Input| {
    if input.frames.is_empty() {
        return;
    }
    let max_frame = if input.is_jumbo { 9018 } else { 1518 };
    let budget = usize::from(input.budget_kib) << 10;
    let budget = budget.clamp(LEAST_BUDGET, REASSEMBLY_LANE_BYTES);
    let mut frames: Vec<_> = (0..)
        .zip(&input.frames)
        .take(FRAMES)
        .map(|(number, spec)| Frame::new(number, spec, max_frame))
        .collect();
    let mut bench = Bench {
        reassembly: Reassembly::with_budget(max_frame as u32, budget),
        max_frame,
        budget,
        sequence: 0,
        has_evicted: false,
    };
    for step in &input.steps {
        bench.take(step, &mut frames);
    }
    bench.poll(Which::All, &mut frames);
    assert!(!bench.reassembly.is_waiting());
    for frame in &frames {
        bench.is_up_to_date(frame);
    }
});

#[derive(Arbitrary, Debug)]
struct Input {
    is_jumbo: bool,
    budget_kib: u16,
    frames: Vec<Spec>,
    steps: Vec<Step>,
}

#[derive(Arbitrary, Debug)]
struct Spec {
    kind: Kind,
    len: u16,
    piece_len: u16,
}

#[derive(Arbitrary, Debug)]
enum Step {
    /// The offload descriptor and the headers; correct up to twice.
    Describe {
        frame: u8,
    },
    /// Pieces as a sender would make them, from `first` on.
    Send {
        frame: u8,
        first: u8,
        count: u8,
    },
    Poll(Poll),
    /// Time goes by.
    Skip(u16),
    Forget,
    LieWithPiece {
        frame: u8,
        total: Option<u32>,
        offset: u32,
        len: u16,
    },
    LieWithDescription {
        frame: u8,
        total: Option<u32>,
        checksum: Option<(u16, u16)>,
        segmentation: Option<(bool, u16, bool)>,
        head_len: u16,
        bytes: Vec<(u8, u8)>,
    },
}

#[derive(Arbitrary, Debug)]
enum Poll {
    Between(u8),
    LeftBehind(u16),
    All,
}

/// A frame at its sender, and its state at the receiver.
struct Frame {
    id: u32,
    original: Original,
    pieces: Vec<Range<usize>>,
    /// Bytes that were sent.
    sent: Vec<bool>,
    descriptions: usize,
    /// Segments that came out; of an ordinary frame, all of it.
    handed_out: Vec<bool>,
    /// It has begun, and has neither come out nor been refused since.
    is_live: bool,
    has_lies: bool,
}

impl Frame {
    fn new(id: u32, spec: &Spec, max_frame: usize) -> Self {
        let len = match spec.kind {
            Kind::Super { .. } => usize::from(spec.len),
            _ => usize::from(spec.len) % max_frame,
        };
        let original = Original::new(id as u8, spec.kind, len, max_frame);
        let total = original.frame.len();
        let begin = original.pending.map_or(0, |pending| pending.headers_len);
        let piece_len = usize::from(spec.piece_len).max(total / MAX_PIECES + 1);
        let pieces = (begin..total)
            .step_by(piece_len)
            .map(|at| at..(at + piece_len).min(total))
            .collect();
        let segments = segment_len(&original).map_or(1, |size| (total - begin).div_ceil(size));
        Self {
            id,
            pieces,
            sent: vec![false; total],
            descriptions: 0,
            handed_out: vec![false; segments],
            is_live: false,
            has_lies: false,
            original,
        }
    }

    fn bytes(&self) -> &[u8] {
        &self.original.frame
    }

    fn stations(&self) -> Option<Stations> {
        self.bytes().first_chunk().copied()
    }

    fn cut_frame(&self) -> CutFrame {
        CutFrame {
            frame_id: self.id,
            total: self.bytes().len() as u32,
        }
    }

    fn layout(&self) -> Option<Layout> {
        let pending = self.original.pending?;
        pending.offload.segmentation?;
        let (frame, len) = (self.bytes(), self.bytes().len());
        Some(Layout::parse(frame, len, &pending.offload, usize::MAX).expect("it is valid"))
    }

    fn is_known(&self) -> bool {
        self.original.pending.is_none() || self.descriptions > 0
    }

    /// All of it has arrived, and none of it has come out yet.
    fn should_be_whole(&self) -> bool {
        self.is_known()
            && self.sent.iter().all(|&is_sent| is_sent)
            && !self.handed_out.contains(&true)
    }

    /// Segments that could come out.
    fn ready(&self) -> impl Iterator<Item = usize> {
        let layout = self.layout().filter(|_| self.is_known());
        layout.into_iter().flat_map(move |layout| {
            (0..layout.segments()).filter(move |&segment| {
                let payload = layout.payload(segment..segment + 1);
                !self.handed_out[segment] && !self.sent[payload].contains(&false)
            })
        })
    }

    fn hand_out(&mut self, segments: Range<usize>) {
        for segment in segments {
            assert!(!self.handed_out[segment], "segment {segment} comes twice");
            self.handed_out[segment] = true;
        }
        if !self.handed_out.contains(&false) {
            self.is_live = false;
        }
    }

    fn check_whole(&mut self, whole: Whole<'_>) {
        assert!(whole.frame == self.bytes(), "the frame is another one");
        assert!(!self.sent.contains(&false));
        assert_eq!(
            whole.offload,
            self.original.pending.map(|pending| pending.offload)
        );
        assert_eq!(whole.layout, self.layout());
        self.hand_out(0..self.handed_out.len());
    }

    fn check_run(&mut self, run: &Run<'_>) {
        let layout = self.layout().expect("only super-frames have runs");
        let segments = self.segments_of(&layout, run.payload);
        let payload = layout.payload(segments.clone());
        assert!(!self.sent[payload].contains(&false), "it was not sent");
        let mut headers = [0; HEADER_ROOM];
        let (offload, of_run) = layout.emit_headers(self.bytes(), segments.clone(), &mut headers);
        assert_eq!(run.headers, &headers[..layout.headers_len()]);
        assert_eq!((run.offload, run.layout), (offload, of_run));
        let frame = [run.headers, run.payload].concat();
        assert!(has_right_pseudo_header(&frame, offload.checksum));
        self.hand_out(segments);
    }

    /// The position of the payload in the original.
    fn segments_of(&self, layout: &Layout, payload: &[u8]) -> Range<usize> {
        let size = segment_len(&self.original).expect("it has segments");
        let count = payload.len().div_ceil(size);
        let last = layout.segments() - count;
        let is_here =
            |&first: &usize| self.bytes()[layout.payload(first..first + count)] == *payload;
        // A run that ends with a short segment fits at one place only.
        let first = if payload.len().is_multiple_of(size) {
            0
        } else {
            last
        };
        let first = (first..=last).find(is_here).expect("it is of this frame");
        first..first + count
    }
}

fn segment_len(original: &Original) -> Option<usize> {
    let segmentation = original.pending?.offload.segmentation?;
    Some(segmentation.size.into())
}

struct Bench {
    reassembly: Reassembly,
    max_frame: usize,
    budget: usize,
    sequence: u64,
    /// The model never evicts: from then on it is less exact.
    has_evicted: bool,
}

impl Bench {
    fn take(&mut self, step: &Step, frames: &mut [Frame]) {
        let at = |number: u8| usize::from(number) % frames.len();
        match step {
            Step::Describe { frame } => self.describe(at(*frame), frames),
            Step::Send {
                frame,
                first,
                count,
            } => {
                let at = at(*frame);
                let first = usize::from(*first) % frames[at].pieces.len();
                let last = (first + usize::from(*count)).min(frames[at].pieces.len() - 1);
                for piece in first..=last {
                    self.send(at, piece, frames);
                }
            }
            Step::Poll(Poll::Between(frame)) => {
                let at = at(*frame);
                if let Some(stations) = frames[at].stations() {
                    self.poll(Which::Between(&stations), frames);
                    self.is_up_to_date(&frames[at]);
                }
            }
            Step::Poll(Poll::LeftBehind(ahead)) => {
                let sequence = self.sequence + u64::from(*ahead);
                self.poll(Which::LeftBehind(sequence), frames);
            }
            Step::Poll(Poll::All) => {
                self.poll(Which::All, frames);
                for frame in frames.iter() {
                    self.is_up_to_date(frame);
                }
            }
            Step::Skip(datagrams) => self.sequence += u64::from(*datagrams),
            Step::Forget => {
                self.reassembly.forget(self.sequence);
                self.note_evicted();
            }
            Step::LieWithPiece {
                frame,
                total,
                offset,
                len,
            } => {
                let at = at(*frame);
                frames[at].has_lies = true;
                let CutFrame { frame_id, total } = lied(total, &frames[at]);
                let fragment = Fragment {
                    frame_id,
                    total,
                    offset: offset % (1 << 24),
                };
                let piece = vec![0x11; usize::from(*len)];
                let added = self.reassembly.add(self.sequence, fragment, &piece);
                self.after_lie(at, total, added, frames);
            }
            Step::LieWithDescription {
                frame,
                total,
                checksum,
                segmentation,
                head_len,
                bytes,
            } => {
                let at = at(*frame);
                frames[at].has_lies = true;
                let cut_frame = lied(total, &frames[at]);
                let offload = lied_offload(&frames[at], *checksum, *segmentation);
                let mut head = frames[at].bytes().to_vec();
                let headers_len = frames[at]
                    .original
                    .pending
                    .map_or(0, |pending| pending.headers_len);
                head.truncate(match head_len {
                    0 => headers_len,
                    len => usize::from(*len),
                });
                for &(place, byte) in bytes {
                    // The addresses identify the frame.
                    if let Some(place) = head.get_mut(usize::from(place).max(12)) {
                        *place = byte;
                    }
                }
                let sequence = self.sequence;
                let added = self
                    .reassembly
                    .describe(sequence, cut_frame, offload, &head);
                self.after_lie(at, cut_frame.total, added, frames);
            }
        }
    }

    fn describe(&mut self, at: usize, frames: &mut [Frame]) {
        let frame = &mut frames[at];
        let Some(pending) = frame.original.pending else {
            return;
        };
        frame.descriptions += 1;
        let honest = if pending.offload.segmentation.is_some() {
            2
        } else {
            1
        };
        frame.has_lies |= frame.descriptions > honest;
        frame.sent[..pending.headers_len].fill(true);
        let head = &frame.original.frame[..pending.headers_len];
        let cut_frame = frame.cut_frame();
        let added = self
            .reassembly
            .describe(self.sequence, cut_frame, pending.offload, head);
        self.after_chunk(at, added, frames);
    }

    fn send(&mut self, at: usize, piece: usize, frames: &mut [Frame]) {
        let frame = &mut frames[at];
        let place = frame.pieces[piece].clone();
        // The replay window passes nothing twice.
        frame.has_lies |= frame.sent[place.start];
        frame.sent[place.clone()].fill(true);
        let CutFrame { frame_id, total } = frame.cut_frame();
        let fragment = Fragment {
            frame_id,
            total,
            offset: place.start as u32,
        };
        let added = self
            .reassembly
            .add(self.sequence, fragment, &frame.bytes()[place]);
        self.sequence += 1;
        self.after_chunk(at, added, frames);
    }

    fn after_chunk(&mut self, at: usize, added: Result<bool, DropReason>, frames: &mut [Frame]) {
        self.note_evicted();
        let frame = &mut frames[at];
        if frame.has_lies {
            let total = frame.cut_frame().total;
            return self.after_lie(at, total, added, frames);
        }
        frame.is_live = true;
        let is_whole = added.expect("it is honest");
        if !self.has_evicted {
            assert_eq!(is_whole, frame.should_be_whole());
        }
        if is_whole {
            self.take_whole(at, frames);
        }
        if !self.has_evicted {
            let live = frames
                .iter()
                .filter(|frame| frame.is_live && !frame.has_lies);
            let bytes: usize = live.map(|frame| frame.bytes().len()).sum();
            assert!(bytes <= self.budget + LEAST_BUDGET);
        }
    }

    fn after_lie(
        &mut self,
        at: usize,
        total: u32,
        added: Result<bool, DropReason>,
        frames: &mut [Frame],
    ) {
        self.note_evicted();
        if total as usize > MAX_SUPERFRAME {
            assert_eq!(added, Err(DropReason::Oversize));
        }
        if added == Ok(true) {
            self.take_whole(at, frames);
        }
    }

    /// As the pipeline does: frames that this one would overtake leave first.
    fn take_whole(&mut self, at: usize, frames: &mut [Frame]) {
        if let Some(stations) = self.reassembly.whole_stations() {
            self.poll(Which::Between(&stations), frames);
        }
        let whole = self.reassembly.take_whole().expect("it was announced");
        if frames[at].has_lies {
            let is_small = whole.frame.len() <= self.max_frame;
            assert!(is_small || whole.layout.is_some());
            check_valid(whole.frame, whole.frame.len(), whole.offload, whole.layout);
        } else {
            frames[at].check_whole(whole);
        }
        assert!(self.reassembly.take_whole().is_none());
    }

    fn poll(&mut self, which: Which<'_>, frames: &mut [Frame]) {
        while let Some(run) = self.reassembly.poll_run(which) {
            if let Which::Between(stations) = which {
                assert!(run.headers.starts_with(stations));
            }
            let segment = run
                .layout
                .map_or(run.payload.len(), |layout| layout.payload(0..1).len());
            assert!(segment > 0 && run.headers.len() + segment <= self.max_frame);
            let frame = &mut frames[usize::from(run.headers[11])];
            if frame.has_lies {
                let total = run.headers.len() + run.payload.len();
                check_valid(run.headers, total, Some(run.offload), run.layout);
            } else {
                frame.check_run(&run);
            }
        }
    }

    /// No segment that could come out was withheld.
    fn is_up_to_date(&self, frame: &Frame) {
        if !self.has_evicted && !frame.has_lies {
            assert_eq!(frame.ready().next(), None, "frame {}", frame.id);
        }
    }

    fn note_evicted(&mut self) {
        let lost = self.reassembly.take_evicted() + self.reassembly.take_lost_segments();
        self.has_evicted |= lost > 0;
    }
}

/// The offload descriptor for the kernel is valid even for a frame with wrong pieces.
fn check_valid(head: &[u8], total: usize, offload: Option<Offload>, layout: Option<Layout>) {
    let Some(offload) = offload else {
        return assert_eq!(layout, None);
    };
    assert!(usize::from(offload.checksum.start + offload.checksum.offset) + 2 <= total);
    assert_eq!(offload.segmentation.is_some(), layout.is_some());
    if let Some(layout) = layout {
        let parsed = Layout::parse(head, total, &offload, usize::MAX);
        assert!(parsed.is_ok_and(|parsed| is_same(&parsed, &layout)));
    }
}

fn lied(total: &Option<u32>, frame: &Frame) -> CutFrame {
    let true_total = frame.cut_frame().total;
    CutFrame {
        frame_id: frame.id,
        total: total.map_or(true_total, |total| total % (1 << 24)),
    }
}

fn lied_offload(
    frame: &Frame,
    checksum: Option<(u16, u16)>,
    segmentation: Option<(bool, u16, bool)>,
) -> Offload {
    let honest = frame.original.pending.map(|pending| pending.offload);
    let none = Checksum {
        start: 0,
        offset: 0,
    };
    let honest_checksum = honest.map_or(none, |offload| offload.checksum);
    Offload {
        checksum: checksum.map_or(honest_checksum, |(start, offset)| Checksum {
            start,
            offset,
        }),
        segmentation: match segmentation {
            None => honest.and_then(|offload| offload.segmentation),
            Some((is_tcp, size, cwr)) => Some(Segmentation {
                transport: if is_tcp {
                    Transport::Tcp
                } else {
                    Transport::Udp
                },
                size,
                cwr,
            }),
        },
    }
}
