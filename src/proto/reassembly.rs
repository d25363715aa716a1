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
    superframe::{self, HEADER_ROOM, Layout, MAX_SEGMENTS, MAX_SUPERFRAME},
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
    /// Whether `ready` is kept up to date, which begins when segments are first asked for.
    is_tracked: bool,
    /// Segments that are whole and were not handed out.
    ready: Segments,
    /// How many were handed out.
    handed_out: usize,
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
        self.0
            .get(segment / 64)
            .is_some_and(|word| word >> (segment % 64) & 1 == 1)
    }

    fn insert(&mut self, segment: usize) {
        self.0[segment / 64] |= 1 << (segment % 64);
    }

    fn remove(&mut self, segments: Range<usize>) {
        for segment in segments {
            self.0[segment / 64] &= !(1 << (segment % 64));
        }
    }

    /// The first segments in a row.
    fn first_run(&self) -> Option<Range<usize>> {
        let word = self.0.iter().position(|&word| word != 0)?;
        let first = word * 64 + self.0[word].trailing_zeros() as usize;
        let end = (first..).find(|&segment| !self.has(segment))?;
        Some(first..end)
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
        self.is_broken = false;
        self.handed_out = 0;
        if std::mem::take(&mut self.is_tracked) {
            self.ready = Segments::default();
        }
        // Bytes of an earlier frame may stay in the buffer: those are handed out only which were
        // written for this one.
        self.total = frame.total as usize;
        if self.bytes.len() < self.total {
            self.bytes.reserve_exact(self.total - self.bytes.len());
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
        if let Some(layout) = self.layout {
            if self.is_tracked {
                self.track(layout, layout.segments_of(offset as usize..end as usize));
            } else {
                self.has_news = true;
            }
        }
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
                superframe::check_checksum(head, self.total, offload.checksum)?;
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
        self.has_news = layout.is_some();
        Ok(())
    }

    /// Notes which of these segments are whole. No piece is filed twice, so none is noted again
    /// after it was handed out.
    fn track(&mut self, layout: Layout, segments: Range<usize>) {
        for segment in segments {
            let bytes = layout.payload(segment..segment + 1);
            let at = self
                .present
                .partition_point(|part| (part.end as usize) < bytes.end);
            let part = self.present.get(at);
            if part.is_some_and(|part| part.start as usize <= bytes.start) {
                self.ready.insert(segment);
                self.has_news = true;
            }
        }
    }

    /// The first segments that are whole and were not handed out.
    fn next_run(&mut self) -> Option<(Layout, Range<usize>)> {
        let layout = self.layout?;
        if !std::mem::replace(&mut self.is_tracked, true) {
            self.track(layout, 0..layout.segments());
        }
        Some((layout, self.ready.first_run()?))
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
    /// The latest super-frames that were handed out to the end: their headers may come once more.
    finished: [Option<CutFrame>; REASSEMBLY_SLOTS],
    /// Where the next one goes.
    next_finished: usize,
    headers: [u8; HEADER_ROOM],
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
            finished: [None; REASSEMBLY_SLOTS],
            next_finished: 0,
            headers: [0; HEADER_ROOM],
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
        let has_slot = |slot: &Slot| slot.frame_id == Some(frame.frame_id);
        if self.finished.contains(&Some(frame)) && !self.slots.iter().any(has_slot) {
            return Ok(false);
        }
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
        self.finish(at);
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
        slot.handed_out += run.len();
        slot.ready.remove(run.clone());
        let (offload, of_run) = layout.emit_headers(&slot.bytes, run.clone(), &mut self.headers);
        if slot.handed_out == layout.segments() {
            self.finish(at);
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
            && self
                .whole
                .is_none_or(|whole| slot.begun < self.slots[whole].begun)
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

    /// Frees the slot of a frame that was handed out to the end.
    fn finish(&mut self, at: usize) {
        let slot = &self.slots[at];
        if let (Some(frame_id), Some(_)) = (slot.frame_id, slot.layout) {
            let total = slot.total as u32;
            self.finished[self.next_finished] = Some(CutFrame { frame_id, total });
            self.next_finished = (self.next_finished + 1) % REASSEMBLY_SLOTS;
        }
        self.free(at);
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
                self.lost_segments += (layout.segments() - slot.handed_out) as u64;
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
    use crate::{
        proto::{
            testing::{Opened, Stream, pack},
            train::Open,
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

    /// What came out: a frame that was not cut, or segments of the super-frame of this number.
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
                    let (frame, offload, layout) =
                        (whole.frame.to_vec(), whole.offload, whole.layout);
                    let number = self.number_of(&frame);
                    let stream = &self.streams[number];
                    assert_eq!(frame, stream.whole());
                    assert_eq!(offload, Some(stream.open().offload));
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

        /// Nothing comes any more, and then very much.
        fn end(&mut self) {
            self.poll(Which::All);
            assert!(!self.reassembly.is_waiting());
            self.reassembly.forget(self.newest + REPLAY_WINDOW + 1);
            assert_eq!(self.reassembly.occupied, 0);
        }

        /// Streams are told apart by the upper half of their sequence numbers.
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

    /// Bytes of each stream that these datagrams bring, and whether an offload chunk is among them.
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
                [(stream.whole(), Some(stream.open())), (small, None)]
            })
            .collect();
        let (datagrams, _) = pack(
            frames.iter().map(|(frame, open)| (&frame[..], *open)),
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
        fn what_survives_loss_comes_out_once_and_in_order(
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
            let (whole, open) = (stream.whole(), stream.open());
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
                        let head = &whole[..open.headers_len - other as usize / 2];
                        let _ = reassembly.describe(sequence, frame, open.offload, head);
                    }
                    _ => {
                        let _ = reassembly.add(sequence, at(frame_id, total, offset), piece);
                    }
                }
                reassembly.take_whole();
                let slots = &reassembly.slots;
                let occupied = slots.iter().filter(|slot| slot.frame_id.is_some()).count();
                prop_assert_eq!(reassembly.occupied, occupied);
                prop_assert!(slots.iter().all(|slot| slot.bytes.len() <= MAX_SUPERFRAME));
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
        assert_eq!(receiver.reassembly.occupied, 0);
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
        let (whole, open) = (stream.whole(), stream.open());
        let head = &whole[..open.headers_len];
        let frame = CutFrame {
            frame_id: 1,
            total: whole.len() as u32,
        };
        let mut other = open.offload;
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
            (frame, open.offload, &head[1..], DropReason::BadOffload),
            (
                frame,
                open.offload,
                &whole[..head.len() + 1],
                DropReason::BadOffload,
            ),
            (shorter, open.offload, head, DropReason::BadOffload),
            (frame, outside, head, DropReason::BadOffload),
            (frame, plain, &[], DropReason::BadOffload),
        ] {
            let mut reassembly = Reassembly::new(1522);
            assert_eq!(reassembly.describe(0, frame, offload, head), Err(reason));
            assert_eq!(reassembly.occupied, 0);
        }
        let mut reassembly = Reassembly::new(1522);
        assert_eq!(reassembly.describe(0, frame, open.offload, head), Ok(false));
        let over = at(1, frame.total, 10);
        assert_eq!(reassembly.add(0, over, b"x"), Err(DropReason::Malformed));
        assert_eq!(reassembly.occupied, 0, "headers are not written twice");
        let mut reassembly = Reassembly::new(1400);
        let described = reassembly.describe(0, frame, open.offload, head);
        assert_eq!(described, Err(DropReason::Oversize), "of its segments");
    }

    #[test]
    fn an_open_frame_in_pieces_comes_with_what_is_open() {
        let stream = stream(0, 1448, 1448);
        let (whole, offload) = (stream.whole(), stream.offload(0..1));
        let open = Open {
            offload,
            headers_len: 52,
        };
        let (datagrams, _) = pack([(&whole[..], Some(open))].into_iter(), 1472);
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
}
