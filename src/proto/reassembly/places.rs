// SPDX-License-Identifier: MIT OR Apache-2.0
//! The places of unfinished frames: as many as a budget of bytes holds.
//!
//! Buffers come in a few sizes, so that a small frame does not cost what the largest one would, and
//! go round: a place that was given back is taken again, the latest first, as it is still in the
//! cache. Only a lane that has never held so much before allocates.

use std::ops::{Index, IndexMut, Range};

use super::slot::Slot;
use crate::proto::limits::REASSEMBLY_PARTS;

/// Sizes of buffers but for the largest, which holds any frame.
const SIZES: [usize; 5] = [2 << 10, 4 << 10, 8 << 10, 16 << 10, 32 << 10];

/// Bytes of the account of a frame's parts.
const PARTS_BYTES: usize = REASSEMBLY_PARTS * size_of::<Range<u32>>();
// PROTOCOL.md says that a frame takes so much beside its buffer.
const _: () = assert!(size_of::<Slot>() + PARTS_BYTES <= 1536);

/// Places with and without a frame.
#[derive(Debug)]
pub(super) struct Places {
    budget: usize,
    /// Bytes of all slots, buffers and accounts of parts.
    held: usize,
    largest: usize,
    slots: Vec<Slot>,
    /// Those without a frame, by the size of their buffer.
    free: [Vec<usize>; SIZES.len() + 1],
    /// Those without a buffer.
    bare: Vec<usize>,
}

impl Places {
    /// Takes at most `budget` bytes, but has room for two frames of the `largest` size.
    pub(super) fn new(budget: usize, largest: usize) -> Self {
        let least = 2 * (size_of::<Slot>() + PARTS_BYTES + largest);
        Self {
            budget: budget.max(least),
            held: 0,
            largest,
            slots: Vec::new(),
            free: Default::default(),
            bare: Vec::new(),
        }
    }

    /// A place with a buffer of `len` bytes or more. None: another one must be given back first.
    pub(super) fn take(&mut self, len: usize) -> Option<usize> {
        let size = size_for(len);
        let place = self.free[size].pop();
        place
            .or_else(|| self.make(size))
            .or_else(|| self.free[size..].iter_mut().find_map(Vec::pop))
            .or_else(|| self.remake(size))
    }

    /// The frame is gone; its bytes stay until the place is taken.
    pub(super) fn give_back(&mut self, at: usize) {
        self.free[size_for(self.slots[at].bytes.len())].push(at);
    }

    /// A new buffer, if the budget allows for it.
    fn make(&mut self, size: usize) -> Option<usize> {
        let len = SIZES.get(size).copied().unwrap_or(self.largest);
        let cost = PARTS_BYTES + len;
        let slot_cost = if self.bare.is_empty() {
            size_of::<Slot>()
        } else {
            0
        };
        if self.held + slot_cost + cost > self.budget {
            return None;
        }
        self.held += slot_cost + cost;
        let at = self.bare.pop().unwrap_or_else(|| {
            self.slots.push(Slot::default());
            self.slots.len() - 1
        });
        self.slots[at].bytes = vec![0; len];
        self.slots[at].present = Vec::with_capacity(REASSEMBLY_PARTS);
        Some(at)
    }

    /// The same in exchange for smaller ones.
    fn remake(&mut self, size: usize) -> Option<usize> {
        for smaller in (0..size).rev() {
            while let Some(at) = self.free[smaller].pop() {
                self.held -= PARTS_BYTES + self.slots[at].bytes.len();
                self.slots[at] = Slot::default();
                self.bare.push(at);
                let made = self.make(size);
                if made.is_some() {
                    return made;
                }
            }
        }
        None
    }

    /// Bytes that are held.
    #[cfg(test)]
    pub(super) fn held(&self) -> usize {
        let bytes = |slot: &Slot| size_of::<Slot>() + slot.bytes.capacity() + slot.parts_bytes();
        assert_eq!(self.held, self.slots.iter().map(bytes).sum::<usize>());
        assert!(self.held <= self.budget);
        self.held
    }
}

impl Index<usize> for Places {
    type Output = Slot;

    fn index(&self, at: usize) -> &Slot {
        &self.slots[at]
    }
}

impl IndexMut<usize> for Places {
    fn index_mut(&mut self, at: usize) -> &mut Slot {
        &mut self.slots[at]
    }
}

/// The place in the list of sizes.
fn size_for(len: usize) -> usize {
    SIZES.partition_point(|&size| size < len)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LARGEST: usize = 65_565;

    #[test]
    fn a_place_that_is_given_back_is_taken_again() {
        let mut places = Places::new(1 << 20, LARGEST);
        let small = places.take(60).unwrap();
        let large = places.take(LARGEST).unwrap();
        let held = places.held();
        for _ in 0..100 {
            places.give_back(small);
            places.give_back(large);
            assert_eq!(places.take(LARGEST), Some(large));
            assert_eq!(places.take(2048), Some(small));
        }
        assert_eq!(places.held(), held);
        assert!(held < 75_000, "a small frame costs little: {held}");
    }

    #[test]
    fn what_all_places_take_is_bounded_and_goes_where_it_is_needed() {
        let mut places = Places::new(1 << 20, LARGEST);
        let mut take_all = |len: usize| {
            let taken: Vec<_> = std::iter::from_fn(|| places.take(len)).collect();
            places.held();
            for &at in &taken {
                assert!(places[at].bytes.len() >= len);
                places.give_back(at);
            }
            taken.len()
        };
        let (small, large) = (take_all(1500), take_all(60_000));
        assert!(small >= 250 && large >= 13, "{small} {large}");
        // What is large is used for small frames, too, before it is exchanged.
        assert!(take_all(1500) >= large);
    }

    #[test]
    fn the_smallest_budget_holds_two_frames() {
        let mut places = Places::new(0, LARGEST);
        assert!(places.take(LARGEST).is_some() && places.take(LARGEST).is_some());
        assert_eq!(places.take(1), None);
    }
}
