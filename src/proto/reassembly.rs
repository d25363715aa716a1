// SPDX-License-Identifier: MIT OR Apache-2.0
//! Puts frames together that came in pieces (PROTOCOL.md, "Fragments" and "Offloads").
//!
//! One for each session, lane and receiving thread. Memory is bounded: a fixed number of slots, each
//! as large as the largest frame that was begun in it, in a fixed number of parts. Every piece comes
//! from an authentic datagram that the replay window let through once, so what remains to be handled
//! is loss, reordering, and a peer that lies about its own frames.
//!
//! An ordinary frame with a hole is lost. A super-frame with holes is handed out as the runs of
//! segments that are whole ([`Reassembly::poll_run`]): when a later frame between the same stations
//! is about to overtake it, when much has arrived since, or when nothing arrives any more. Pieces
//! that come even later are handed out in the same way.

use std::ops::Range;

use super::{
    limits::{REASSEMBLY_PARTS, REASSEMBLY_SLOTS, REORDERING, REPLAY_WINDOW},
    superframe::{self, Layout, MAX_HEADERS, MAX_SEGMENTS, MAX_SUPERFRAME},
};
use crate::{
    stats::DropReason,
    wire::{
        chunk::{CutFrame, Fragment},
        offload::Offload,
    },
};

/// Destination and source address: frames with the same pair stay in order.
pub type Stations = [u8; 12];

/// A frame in the making.
#[derive(Debug, Default)]
struct Slot {
    /// `None` when the slot is free.
    frame_id: Option<u32>,
    /// Length of the whole frame.
    total: usize,
    /// At least `total` of them.
    bytes: Vec<u8>,
    /// The parts that are here: sorted, apart from each other, never empty.
    present: Vec<Range<u32>>,
    /// When the frame was begun, in frames.
    begun: u64,
    /// The sequence number of the datagram that brought the latest piece.
    newest: u64,
    /// What is open in the frame; `None` until its offload chunk has come, and in finished frames.
    offload: Option<Offload>,
    /// Of a super-frame whose offload chunk has come.
    layout: Option<Layout>,
    /// Segments were handed out before the frame was whole.
    is_broken: bool,
    /// Something came since all whole segments were handed out.
    has_news: bool,
    handed_out: Segments,
}

/// A set of segments of one super-frame.
#[derive(Debug)]
struct Segments([u64; MAX_SEGMENTS / 64]);

impl Default for Segments {
    fn default() -> Self {
        Self([0; MAX_SEGMENTS / 64])
    }
}

impl Segments {
    fn has(&self, segment: usize) -> bool {
        self.0[segment / 64] >> (segment % 64) & 1 == 1
    }

    fn insert(&mut self, segments: Range<usize>) {
        for segment in segments {
            self.0[segment / 64] |= 1 << (segment % 64);
        }
    }

    fn len(&self) -> usize {
        self.0.iter().map(|word| word.count_ones() as usize).sum()
    }
}

impl Slot {
    fn is_complete(&self) -> bool {
        matches!(&self.present[..], [only] if only.start == 0 && only.end as usize == self.total)
    }

    fn is_unfinished_super(&self) -> bool {
        self.frame_id.is_some() && self.layout.is_some()
    }

    fn begin(&mut self, frame: CutFrame, begun: u64) {
        self.frame_id = Some(frame.frame_id);
        self.begun = begun;
        self.present.clear();
        self.offload = None;
        self.layout = None;
        self.has_news = false;
        if std::mem::take(&mut self.is_broken) {
            self.handed_out = Segments::default();
        }
        // Bytes of an earlier frame may stay in the buffer: those are handed out only which were
        // written for this one.
        self.total = frame.total as usize;
        if self.bytes.len() < self.total {
            self.bytes.resize(self.total, 0);
        }
    }

    /// Files the range as present.
    fn insert(&mut self, piece: Range<u32>) -> Result<(), DropReason> {
        let at = self
            .present
            .partition_point(|range| range.end < piece.start);
        let is_full = self.present.len() == REASSEMBLY_PARTS;
        match self.present.get_mut(at) {
            Some(next) if next.end == piece.start => {
                next.end = piece.end;
                self.join_with_following(at)
            }
            Some(next) if next.start < piece.end => Err(DropReason::Malformed),
            Some(next) if next.start == piece.end => {
                next.start = piece.start;
                Ok(())
            }
            _ if is_full => Err(DropReason::Malformed),
            _ => {
                self.present.insert(at, piece);
                Ok(())
            }
        }
    }

    fn join_with_following(&mut self, at: usize) -> Result<(), DropReason> {
        let end = self.present[at].end;
        match self.present.get(at + 1) {
            Some(following) if following.start < end => Err(DropReason::Malformed),
            Some(following) if following.start == end => {
                self.present[at].end = following.end;
                self.present.remove(at + 1);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn write(&mut self, offset: u32, piece: &[u8]) -> Result<(), DropReason> {
        let end = offset
            .checked_add(piece.len() as u32)
            .ok_or(DropReason::Malformed)?;
        if piece.is_empty() || end as usize > self.total {
            return Err(DropReason::Malformed);
        }
        self.insert(offset..end)?;
        self.bytes[offset as usize..end as usize].copy_from_slice(piece);
        self.has_news = true;
        Ok(())
    }

    /// Notes what is open in the frame, and its first bytes. Says the same when it comes again.
    fn describe(
        &mut self,
        offload: Offload,
        head: &[u8],
        max_frame: u32,
    ) -> Result<(), DropReason> {
        if self.offload.is_some() {
            return Ok(());
        }
        let layout = match offload.segmentation {
            None => {
                superframe::check_checksum(offload.checksum, self.total)?;
                None
            }
            Some(_) => {
                let layout = Layout::parse(head, self.total, &offload, max_frame as usize)?;
                Some(layout)
            }
        };
        if layout.is_some_and(|layout| layout.headers_len() != head.len()) {
            return Err(DropReason::BadOffload);
        }
        self.write(0, head)?;
        self.offload = Some(offload);
        self.layout = layout;
        Ok(())
    }

    /// The first segments that are whole and were not handed out.
    fn next_run(&self) -> Option<(Layout, Range<usize>)> {
        let layout = self.layout?;
        let is_ready = |&segment: &usize| {
            let bytes = layout.payload(segment..segment + 1);
            let at = self
                .present
                .partition_point(|part| (part.end as usize) < bytes.end);
            let is_here = self
                .present
                .get(at)
                .is_some_and(|part| part.start as usize <= bytes.start);
            is_here && !self.handed_out.has(segment)
        };
        let first = (0..layout.segments()).find(is_ready)?;
        let rest = (first + 1..layout.segments()).take_while(is_ready).count();
        Some((layout, first..first + 1 + rest))
    }
}

/// A frame that is whole.
#[derive(Clone, Copy, Debug)]
pub struct Whole<'a> {
    /// All of it.
    pub frame: &'a [u8],
    /// What is open in it.
    pub offload: Option<Offload>,
    /// Of a super-frame.
    pub layout: Option<Layout>,
}

/// Segments of a super-frame that are whole.
#[derive(Debug)]
pub struct Run<'a> {
    /// The headers of these segments alone.
    pub headers: &'a [u8],
    /// Their payload.
    pub payload: &'a [u8],
    /// What is open in them.
    pub offload: Offload,
    /// Of more than one segment.
    pub layout: Option<Layout>,
}

/// Which broken super-frames [`Reassembly::poll_run`] looks at.
#[derive(Clone, Copy, Debug)]
pub enum Which<'a> {
    /// Those that a frame between these stations is about to overtake.
    Between(&'a Stations),
    /// Those that the datagrams up to this sequence number have left behind, and those of which
    /// something was handed out before.
    LeftBehind(u64),
    /// All of them.
    All,
}

/// Frames of one lane that are not complete yet.
#[derive(Debug)]
pub struct Reassembly {
    max_frame: u32,
    slots: [Slot; REASSEMBLY_SLOTS],
    /// Slots that are not free.
    occupied: usize,
    /// Frames begun so far; tells which slot is the oldest.
    begun: u64,
    /// The slot that is complete and was not taken yet.
    whole: Option<usize>,
    headers: [u8; MAX_HEADERS],
    evicted: u64,
    lost_segments: u64,
}

impl Reassembly {
    /// `max_frame`: bytes of the largest frame or segment that is accepted.
    pub fn new(max_frame: u32) -> Self {
        Self {
            max_frame,
            slots: Default::default(),
            occupied: 0,
            begun: 0,
            whole: None,
            headers: [0; MAX_HEADERS],
            evicted: 0,
            lost_segments: 0,
        }
    }

    /// Adds a piece, which datagram number `sequence` brought. True when its frame is whole: then
    /// [`Self::take_whole`] has it.
    ///
    /// # Errors
    /// [`DropReason::Malformed`] for a piece that contradicts itself or an earlier one, or leaves too
    /// many gaps (the frame is forgotten then), [`DropReason::Oversize`] for a frame larger than
    /// allowed.
    pub fn add(
        &mut self,
        sequence: u64,
        fragment: Fragment,
        piece: &[u8],
    ) -> Result<bool, DropReason> {
        let Fragment {
            frame_id,
            total,
            offset,
        } = fragment;
        let frame = CutFrame { frame_id, total };
        self.file(sequence, frame, |slot, _| slot.write(offset, piece))
    }

    /// Adds an offload chunk: what is open in a frame, and its first bytes.
    ///
    /// # Errors
    /// As [`Self::add`], and [`DropReason::BadOffload`].
    pub fn describe(
        &mut self,
        sequence: u64,
        frame: CutFrame,
        offload: Offload,
        head: &[u8],
    ) -> Result<bool, DropReason> {
        self.file(sequence, frame, |slot, max_frame| {
            slot.describe(offload, head, max_frame)
        })
    }

    fn file(
        &mut self,
        sequence: u64,
        frame: CutFrame,
        add: impl FnOnce(&mut Slot, u32) -> Result<(), DropReason>,
    ) -> Result<bool, DropReason> {
        if frame.total as usize > MAX_SUPERFRAME.max(self.max_frame as usize) {
            return Err(DropReason::Oversize);
        }
        let max_frame = self.max_frame;
        let at = self.slot_for(frame);
        let slot = &mut self.slots[at];
        slot.newest = slot.newest.max(sequence);
        let added = if slot.total == frame.total as usize {
            add(slot, max_frame)
        } else {
            Err(DropReason::Malformed)
        };
        if let Err(reason) = added {
            self.free(at);
            return Err(reason);
        }
        let slot = &self.slots[at];
        if slot.is_broken || !slot.is_complete() {
            return Ok(false);
        }
        if slot.layout.is_none() && slot.total > max_frame as usize {
            self.free(at);
            return Err(DropReason::Oversize);
        }
        self.whole = Some(at);
        Ok(true)
    }

    /// The stations of the frame that is whole.
    pub fn whole_stations(&self) -> Option<Stations> {
        self.slots[self.whole?].bytes.first_chunk().copied()
    }

    /// The frame that is whole; once.
    pub fn take_whole(&mut self) -> Option<Whole<'_>> {
        let at = self.whole.take()?;
        self.free(at);
        let slot = &self.slots[at];
        Some(Whole {
            frame: &slot.bytes[..slot.total],
            offload: slot.offload,
            layout: slot.layout,
        })
    }

    /// Whether a super-frame waits for its missing pieces: [`Self::poll_run`] should be asked for
    /// all when nothing comes for a while.
    pub fn is_waiting(&self) -> bool {
        let waits = |slot: &Slot| slot.is_unfinished_super() && slot.has_news;
        self.occupied > 0 && self.slots.iter().any(waits)
    }

    /// Segments to hand out from super-frames that are not whole, the oldest first.
    pub fn poll_run(&mut self, which: Which<'_>) -> Option<Run<'_>> {
        if self.occupied == usize::from(self.whole.is_some()) {
            return None;
        }
        let (at, layout, run) = loop {
            let at = (0..REASSEMBLY_SLOTS)
                .filter(|&at| self.concerns(at, which))
                .min_by_key(|&at| self.slots[at].begun)?;
            match self.slots[at].next_run() {
                Some((layout, run)) => break (at, layout, run),
                None => self.slots[at].has_news = false,
            }
        };
        let slot = &mut self.slots[at];
        slot.is_broken = true;
        slot.handed_out.insert(run.clone());
        let (offload, of_run) = layout.emit_headers(&slot.bytes, run.clone(), &mut self.headers);
        if slot.handed_out.len() == layout.segments() {
            self.free(at);
        }
        Some(Run {
            headers: &self.headers[..layout.headers_len()],
            payload: &self.slots[at].bytes[layout.payload(run)],
            offload,
            layout: of_run,
        })
    }

    fn concerns(&self, at: usize, which: Which<'_>) -> bool {
        let slot = &self.slots[at];
        slot.is_unfinished_super()
            && slot.has_news
            && self.whole != Some(at)
            && match which {
                Which::Between(stations) => slot.bytes.starts_with(stations),
                Which::LeftBehind(sequence) => {
                    slot.is_broken || slot.newest + REORDERING < sequence
                }
                Which::All => true,
            }
    }

    /// Gives up what the datagrams up to this sequence number have left far behind.
    pub fn forget(&mut self, sequence: u64) {
        if self.occupied == 0 {
            return;
        }
        for at in 0..REASSEMBLY_SLOTS {
            let slot = &self.slots[at];
            if slot.frame_id.is_some() && slot.newest + REPLAY_WINDOW < sequence {
                self.give_up(at);
            }
        }
    }

    /// Frames given up since the last call because their pieces were lost.
    pub fn take_evicted(&mut self) -> u64 {
        std::mem::take(&mut self.evicted)
    }

    /// Segments given up since the last call, of super-frames of which others were handed out.
    pub fn take_lost_segments(&mut self) -> u64 {
        std::mem::take(&mut self.lost_segments)
    }

    fn free(&mut self, at: usize) {
        self.slots[at].frame_id = None;
        self.occupied -= 1;
    }

    /// The slot of the frame, or the one that it gets: a free one, else that of the oldest frame.
    fn slot_for(&mut self, frame: CutFrame) -> usize {
        let same = |slot: &Slot| slot.frame_id == Some(frame.frame_id);
        if let Some(at) = self.slots.iter().position(same) {
            return at;
        }
        let at = (0..REASSEMBLY_SLOTS)
            .min_by_key(|&at| (self.slots[at].frame_id.is_some(), self.slots[at].begun))
            .expect("there are slots");
        if self.slots[at].frame_id.is_some() {
            self.give_up(at);
        }
        self.begun += 1;
        self.occupied += 1;
        let slot = &mut self.slots[at];
        slot.newest = 0;
        slot.begin(frame, self.begun);
        at
    }

    fn give_up(&mut self, at: usize) {
        let slot = &self.slots[at];
        match slot.layout {
            Some(layout) if slot.is_broken => {
                self.lost_segments += (layout.segments() - slot.handed_out.len()) as u64;
            }
            _ => self.evicted += 1,
        }
        self.free(at);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(frame_id: u32, total: u32, offset: u32) -> Fragment {
        Fragment {
            frame_id,
            total,
            offset,
        }
    }

    impl Reassembly {
        /// Adds a piece that was the latest to arrive; the frame if that completes it.
        fn add_piece(
            &mut self,
            fragment: Fragment,
            piece: &[u8],
        ) -> Result<Option<&[u8]>, DropReason> {
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
        assert_eq!(reassembly.occupied, 0);
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
        assert_eq!(reassembly.occupied, 0);
    }

    #[test]
    fn a_frame_in_crumbs_is_given_up() {
        let total = 65_535;
        let mut reassembly = Reassembly::new(total);
        let mut crumbs = (0..total).step_by(2);
        let refused =
            crumbs.find_map(|offset| reassembly.add_piece(at(1, total, offset), b"x").err());
        assert_eq!(refused, Some(DropReason::Malformed));
        assert!(reassembly.slots[0].present.capacity() <= REASSEMBLY_PARTS);
    }

    #[test]
    fn every_second_piece_of_the_largest_frame_may_be_late() {
        let frame = vec![7; 65_535];
        // What the narrowest path carries of a frame in one datagram.
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
    fn frames_of_changing_length_do_not_clear_the_buffer_again_and_again() {
        let mut reassembly = Reassembly::new(65_535);
        for frame_id in 0..REASSEMBLY_SLOTS as u32 {
            assert_eq!(
                reassembly.add_piece(at(frame_id, 65_535, 0), b"ab"),
                Ok(None)
            );
        }
        for frame_id in 100..100 + REASSEMBLY_SLOTS as u32 {
            assert_eq!(reassembly.add_piece(at(frame_id, 4, 0), b"ab"), Ok(None));
        }
        assert!(
            reassembly
                .slots
                .iter()
                .all(|slot| slot.bytes.len() == 65_535)
        );
        assert_eq!(
            reassembly.add_piece(at(100, 4, 2), b"cd"),
            Ok(Some(&b"abcd"[..]))
        );
    }

    #[test]
    fn the_oldest_frame_makes_room() {
        let mut reassembly = Reassembly::new(100);
        for frame_id in 0..=REASSEMBLY_SLOTS as u32 {
            assert_eq!(reassembly.add_piece(at(frame_id, 4, 0), b"ab"), Ok(None));
        }
        assert_eq!(reassembly.take_evicted(), 1);
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
}
