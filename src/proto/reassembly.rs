// SPDX-License-Identifier: MIT OR Apache-2.0
//! Puts frames together that came in pieces (PROTOCOL.md, "Fragments").
//!
//! One for each session and receiving thread. Memory is bounded: a fixed number of slots, each as
//! large as the largest frame that was begun in it, in a fixed number of parts. Every piece comes from an authentic datagram
//! that the replay window let through once, so what remains to be handled is loss, reordering, and
//! a peer that lies about its own frames.

use std::ops::Range;

use super::limits::{REASSEMBLY_PARTS, REASSEMBLY_SLOTS};
use crate::{stats::DropReason, wire::chunk::Fragment};

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
}

impl Slot {
    fn is_complete(&self) -> bool {
        matches!(&self.present[..], [only] if only.start == 0 && only.end as usize == self.total)
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
}

/// Frames of one lane that are not complete yet.
#[derive(Debug)]
pub struct Reassembly {
    max_frame: u32,
    slots: [Slot; REASSEMBLY_SLOTS],
    /// Frames begun so far; tells which slot is the oldest.
    begun: u64,
    evicted: u64,
}

impl Reassembly {
    /// `max_frame`: bytes of the largest frame that is accepted.
    pub fn new(max_frame: u32) -> Self {
        Self {
            max_frame,
            slots: Default::default(),
            begun: 0,
            evicted: 0,
        }
    }

    /// Adds a piece; returns the frame when it was the last one that was missing.
    ///
    /// # Errors
    /// [`DropReason::Malformed`] for a piece that contradicts itself or an earlier one, or leaves too
    /// many gaps (the frame is forgotten then), [`DropReason::Oversize`] for a frame larger than
    /// allowed.
    pub fn add(&mut self, fragment: Fragment, piece: &[u8]) -> Result<Option<&[u8]>, DropReason> {
        let Fragment {
            frame_id,
            total,
            offset,
        } = fragment;
        if total > self.max_frame {
            return Err(DropReason::Oversize);
        }
        let end = offset
            .checked_add(piece.len() as u32)
            .ok_or(DropReason::Malformed)?;
        if piece.is_empty() || end > total {
            return Err(DropReason::Malformed);
        }
        let slot = self.slot_for(frame_id, total);
        let filed = if slot.total == total as usize {
            slot.insert(offset..end)
        } else {
            Err(DropReason::Malformed)
        };
        if let Err(reason) = filed {
            slot.frame_id = None;
            return Err(reason);
        }
        slot.bytes[offset as usize..end as usize].copy_from_slice(piece);
        if !slot.is_complete() {
            return Ok(None);
        }
        slot.frame_id = None;
        Ok(Some(&slot.bytes[..slot.total]))
    }

    /// Frames given up since the last call because their pieces were lost.
    pub fn take_evicted(&mut self) -> u64 {
        std::mem::take(&mut self.evicted)
    }

    /// The slot of the frame, or the one that it gets: a free one, else that of the oldest frame.
    fn slot_for(&mut self, frame_id: u32, total: u32) -> &mut Slot {
        if let Some(at) = self
            .slots
            .iter()
            .position(|slot| slot.frame_id == Some(frame_id))
        {
            return &mut self.slots[at];
        }
        let at = (0..REASSEMBLY_SLOTS)
            .min_by_key(|&at| (self.slots[at].frame_id.is_some(), self.slots[at].begun))
            .expect("there are slots");
        self.evicted += u64::from(self.slots[at].frame_id.is_some());
        self.begun += 1;
        let slot = &mut self.slots[at];
        slot.frame_id = Some(frame_id);
        slot.begun = self.begun;
        slot.present.clear();
        // Bytes of an earlier frame may stay in the buffer: it is handed out only once every byte
        // was written for this one.
        slot.total = total as usize;
        if slot.bytes.len() < slot.total {
            slot.bytes.resize(slot.total, 0);
        }
        slot
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
                let frame = reassembly.add(at(1, 8, offset), bytes).unwrap();
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
            assert_eq!(reassembly.add(first.0, first.1), Ok(None));
            assert_eq!(
                reassembly.add(second.0, second.1),
                Err(DropReason::Malformed),
                "{second:?}"
            );
            assert_eq!(reassembly.add(at(1, 8, 4), b"efgh"), Ok(None), "begun anew");
        }
        let mut reassembly = Reassembly::new(100);
        for (fragment, piece, reason) in [
            (at(1, 8, 0), &b""[..], DropReason::Malformed),
            (at(1, 8, 6), b"abc", DropReason::Malformed),
            (at(1, 8, u32::MAX), b"abc", DropReason::Malformed),
            (at(1, 101, 0), b"abc", DropReason::Oversize),
        ] {
            assert_eq!(reassembly.add(fragment, piece), Err(reason), "{fragment:?}");
        }
    }

    #[test]
    fn a_frame_in_crumbs_is_given_up() {
        let total = 65_535;
        let mut reassembly = Reassembly::new(total);
        let mut crumbs = (0..total).step_by(2);
        let refused = crumbs.find_map(|offset| reassembly.add(at(1, total, offset), b"x").err());
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
            done += usize::from(reassembly.add(fragment, piece).unwrap().is_some());
        }
        assert_eq!(done, 1);
    }

    #[test]
    fn frames_of_changing_length_do_not_clear_the_buffer_again_and_again() {
        let mut reassembly = Reassembly::new(65_535);
        for frame_id in 0..REASSEMBLY_SLOTS as u32 {
            assert_eq!(reassembly.add(at(frame_id, 65_535, 0), b"ab"), Ok(None));
        }
        for frame_id in 100..100 + REASSEMBLY_SLOTS as u32 {
            assert_eq!(reassembly.add(at(frame_id, 4, 0), b"ab"), Ok(None));
        }
        assert!(
            reassembly
                .slots
                .iter()
                .all(|slot| slot.bytes.len() == 65_535)
        );
        assert_eq!(reassembly.add(at(100, 4, 2), b"cd"), Ok(Some(&b"abcd"[..])));
    }

    #[test]
    fn the_oldest_frame_makes_room() {
        let mut reassembly = Reassembly::new(100);
        for frame_id in 0..=REASSEMBLY_SLOTS as u32 {
            assert_eq!(reassembly.add(at(frame_id, 4, 0), b"ab"), Ok(None));
        }
        assert_eq!(reassembly.take_evicted(), 1);
        assert_eq!(
            reassembly.add(at(1, 4, 2), b"cd"),
            Ok(Some(&b"abcd"[..])),
            "still there"
        );
        assert_eq!(
            reassembly.add(at(0, 4, 2), b"cd"),
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
                let done = reassembly.add(fragment, &frame[piece]).unwrap();
                prop_assert_eq!(done, (step + 1 == count).then_some(&frame[..]));
            }
        }
    }
}
