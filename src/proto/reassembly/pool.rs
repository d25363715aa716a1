// SPDX-License-Identifier: MIT OR Apache-2.0
//! The buffers of unfinished frames: as many as a budget of bytes holds.
//!
//! Buffers have a few sizes, so that a small frame does not cost as much as the largest one, and
//! are reused: a buffer that was given back is taken again, the latest first, as it is still in the
//! cache. Only a lane that has never held this much before allocates.

use std::ops::{Index, IndexMut, Range};

use super::buffer::Buffer;
use crate::proto::limits::REASSEMBLY_PARTS;

/// Sizes of buffers except for the largest, which holds any frame.
const SIZES: [usize; 5] = [2 << 10, 4 << 10, 8 << 10, 16 << 10, 32 << 10];

/// Bytes of the list of a frame's parts.
const PARTS_BYTES: usize = REASSEMBLY_PARTS * size_of::<Range<u32>>();
// PROTOCOL.md says that a frame takes this much beside its buffer.
const _: () = assert!(size_of::<Buffer>() + PARTS_BYTES <= 1536);

/// Buffers with and without a frame.
#[derive(Debug)]
pub(super) struct BufferPool {
    budget: usize,
    /// Bytes of all buffers: the structures, their bytes and their lists of parts.
    held: usize,
    largest: usize,
    buffers: Vec<Buffer>,
    /// Buffers without a frame, by size.
    free: [Vec<usize>; SIZES.len() + 1],
    /// Entries without bytes.
    bare: Vec<usize>,
}

impl BufferPool {
    /// Takes at most `budget` bytes, but always enough for two frames of the `largest` size.
    pub(super) fn new(budget: usize, largest: usize) -> Self {
        let least = 2 * (size_of::<Buffer>() + PARTS_BYTES + largest);
        Self {
            budget: budget.max(least),
            held: 0,
            largest,
            buffers: Vec::new(),
            free: Default::default(),
            bare: Vec::new(),
        }
    }

    /// A buffer of `len` bytes or more. `None`: another one must be given back first.
    pub(super) fn take(&mut self, len: usize) -> Option<usize> {
        let size = size_for(len);
        let place = self.free[size].pop();
        place
            .or_else(|| self.make(size))
            .or_else(|| self.free[size..].iter_mut().find_map(Vec::pop))
            .or_else(|| self.remake(size))
    }

    /// The frame is gone; its bytes stay until the buffer is taken.
    pub(super) fn give_back(&mut self, at: usize) {
        self.free[size_for(self.buffers[at].bytes.len())].push(at);
    }

    /// A new buffer, if the budget allows it.
    fn make(&mut self, size: usize) -> Option<usize> {
        let len = SIZES.get(size).copied().unwrap_or(self.largest);
        let cost = PARTS_BYTES + len;
        let buffer_cost = if self.bare.is_empty() {
            size_of::<Buffer>()
        } else {
            0
        };
        if self.held + buffer_cost + cost > self.budget {
            return None;
        }
        self.held += buffer_cost + cost;
        let at = self.bare.pop().unwrap_or_else(|| {
            self.buffers.push(Buffer::default());
            self.buffers.len() - 1
        });
        self.buffers[at].bytes = vec![0; len];
        self.buffers[at].present = Vec::with_capacity(REASSEMBLY_PARTS);
        Some(at)
    }

    /// A new buffer in exchange for smaller ones.
    fn remake(&mut self, size: usize) -> Option<usize> {
        for smaller in (0..size).rev() {
            while let Some(at) = self.free[smaller].pop() {
                self.held -= PARTS_BYTES + self.buffers[at].bytes.len();
                self.buffers[at] = Buffer::default();
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
        let bytes =
            |buffer: &Buffer| size_of::<Buffer>() + buffer.bytes.capacity() + buffer.parts_bytes();
        assert_eq!(self.held, self.buffers.iter().map(bytes).sum::<usize>());
        assert!(self.held <= self.budget);
        self.held
    }
}

impl Index<usize> for BufferPool {
    type Output = Buffer;

    fn index(&self, at: usize) -> &Buffer {
        &self.buffers[at]
    }
}

impl IndexMut<usize> for BufferPool {
    fn index_mut(&mut self, at: usize) -> &mut Buffer {
        &mut self.buffers[at]
    }
}

/// The position in the list of sizes.
fn size_for(len: usize) -> usize {
    SIZES.partition_point(|&size| size < len)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LARGEST: usize = 65_565;

    #[test]
    fn a_buffer_that_is_given_back_is_taken_again() {
        let mut pool = BufferPool::new(1 << 20, LARGEST);
        let small = pool.take(60).unwrap();
        let large = pool.take(LARGEST).unwrap();
        let held = pool.held();
        for _ in 0..100 {
            pool.give_back(small);
            pool.give_back(large);
            assert_eq!(pool.take(LARGEST), Some(large));
            assert_eq!(pool.take(2048), Some(small));
        }
        assert_eq!(pool.held(), held);
        assert!(held < 75_000, "a small frame costs little: {held}");
    }

    #[test]
    fn the_pool_is_bounded_and_serves_any_size() {
        let mut pool = BufferPool::new(1 << 20, LARGEST);
        let mut take_all = |len: usize| {
            let taken: Vec<_> = std::iter::from_fn(|| pool.take(len)).collect();
            pool.held();
            for &at in &taken {
                assert!(pool[at].bytes.len() >= len);
                pool.give_back(at);
            }
            taken.len()
        };
        let (small, large) = (take_all(1500), take_all(60_000));
        assert!(small >= 250 && large >= 13, "{small} {large}");
        // A large buffer serves small frames, too, before it is exchanged.
        assert!(take_all(1500) >= large);
    }

    #[test]
    fn the_smallest_budget_holds_two_frames() {
        let mut pool = BufferPool::new(0, LARGEST);
        assert!(pool.take(LARGEST).is_some() && pool.take(LARGEST).is_some());
        assert_eq!(pool.take(1), None);
    }
}
