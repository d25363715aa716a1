// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which of many sources have something for one thread, which serves them in turn.

use std::sync::atomic::Ordering;

use super::sync::AtomicU64;

/// A bit for each. The thread that takes a bit sees what was written before the bit was set.
#[derive(Debug)]
pub(crate) struct Pending {
    words: Box<[AtomicU64]>,
    places: usize,
}

impl Pending {
    /// For `places`, none of which has anything.
    pub(crate) fn new(places: usize) -> Self {
        Self {
            words: (0..places.div_ceil(64))
                .map(|_| AtomicU64::new(0))
                .collect(),
            places,
        }
    }

    /// This place has something now. True if it had nothing before, so that the owner must be
    /// notified.
    pub(crate) fn set(&self, place: usize) -> bool {
        let bit = 1 << (place % 64);
        // Release: the thread that takes the bit sees what it stands for.
        self.words[place / 64].fetch_or(bit, Ordering::Release) & bit == 0
    }

    /// Takes the bit of the first place that has one, from `turn` on and then from the start. Only
    /// the owner does.
    pub(crate) fn take(&self, turn: usize) -> Option<usize> {
        let words = self.words.len();
        let (first, bit) = if turn < self.places {
            (turn / 64, turn % 64)
        } else {
            (0, 0)
        };
        // The first word is repeated at the end, for the bits below `bit`.
        (0..=words).find_map(|step| {
            let at = (first + step) % words;
            let wanted = if step == 0 { !0 << bit } else { !0 };
            let set = self.words[at].load(Ordering::Relaxed) & wanted;
            let bit = (set != 0).then(|| set.trailing_zeros() as usize)?;
            self.words[at].fetch_and(!(1 << bit), Ordering::Acquire);
            Some(at * 64 + bit)
        })
    }
}
