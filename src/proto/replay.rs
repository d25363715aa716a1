// SPDX-License-Identifier: MIT OR Apache-2.0
//! The replay window of one lane: each sequence number is accepted once (RFC 6479's bitmap).
//!
//! Owned by the one thread that accepts the lane's datagrams; consulted only after the tag was
//! checked, so that a forger cannot move it.

use super::limits::REPLAY_WINDOW;
use crate::stats::DropReason;

const WORD_BITS: u64 = u64::BITS as u64;
/// One word more than the window: the newest word is only partly filled.
const WORDS: usize = (REPLAY_WINDOW / WORD_BITS) as usize + 1;

/// Records which of the last [`REPLAY_WINDOW`] sequence numbers were accepted.
#[derive(Clone, Debug)]
pub struct ReplayWindow {
    /// One more than the highest accepted number; zero when none was.
    next: u64,
    /// A ring of words; number `n` is bit `n % 64` of word `n / 64 % WORDS`.
    seen: Box<[u64; WORDS]>,
}

impl Default for ReplayWindow {
    fn default() -> Self {
        Self {
            next: 0,
            seen: Box::new([0; WORDS]),
        }
    }
}

impl ReplayWindow {
    /// Accepts `sequence`, once. `Ok(true)` means that it is the newest so far.
    ///
    /// # Errors
    /// [`DropReason::Replayed`] or [`DropReason::TooOld`].
    pub fn accept(&mut self, sequence: u64) -> Result<bool, DropReason> {
        let newest = sequence >= self.next;
        if newest {
            self.clear_words_between(sequence);
            self.next = sequence + 1;
        } else if self.next - sequence > REPLAY_WINDOW {
            return Err(DropReason::TooOld);
        }
        let word = &mut self.seen[(sequence / WORD_BITS) as usize % WORDS];
        let bit = 1 << (sequence % WORD_BITS);
        if *word & bit != 0 {
            return Err(DropReason::Replayed);
        }
        *word |= bit;
        Ok(newest)
    }

    /// The highest number that was accepted, 0 before the first.
    pub fn newest(&self) -> u64 {
        self.next.saturating_sub(1)
    }

    /// Clears the words that the window enters when `sequence` becomes the newest number.
    fn clear_words_between(&mut self, sequence: u64) {
        let Some(newest) = self.next.checked_sub(1) else {
            return;
        };
        let entered = (sequence / WORD_BITS - newest / WORD_BITS).min(WORDS as u64);
        for step in 1..=entered {
            self.seen[(newest / WORD_BITS + step) as usize % WORDS] = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    const WINDOW: u64 = REPLAY_WINDOW;

    #[test]
    fn accepts_each_sequence_once_within_the_window() {
        let mut window = ReplayWindow::default();
        for (sequence, verdict) in [
            (0, Ok(true)),
            (0, Err(DropReason::Replayed)),
            (9, Ok(true)),  // a gap is loss, not an attack
            (8, Ok(false)), // late, but inside the window
            (8, Err(DropReason::Replayed)),
            (9 + WINDOW, Ok(true)),
            (9, Err(DropReason::TooOld)),
            (10, Ok(false)),
            (9 + WINDOW, Err(DropReason::Replayed)),
            (1 << 40, Ok(true)), // a leap clears everything
            ((1 << 40) - WINDOW + 1, Ok(false)),
            ((1 << 40) - WINDOW, Err(DropReason::TooOld)),
            ((1 << 56) - 1, Ok(true)),
        ] {
            assert_eq!(window.accept(sequence), verdict, "sequence {sequence}");
        }
    }

    proptest! {
        #[test]
        fn agrees_with_a_set_of_all_numbers_seen(
            steps in proptest::collection::vec((0_u64..3 * WINDOW, any::<bool>()), 1..400)
        ) {
            let (mut window, mut seen, mut highest) = (ReplayWindow::default(), HashSet::new(), None);
            let mut base = 0;
            for (offset, advance) in steps {
                let sequence = base + offset;
                if advance {
                    base += offset / 2;
                }
                let expected = match highest {
                    Some(highest) if sequence + WINDOW <= highest => Err(DropReason::TooOld),
                    _ if seen.contains(&sequence) => Err(DropReason::Replayed),
                    _ => Ok(highest.is_none_or(|highest| sequence > highest)),
                };
                prop_assert_eq!(window.accept(sequence), expected);
                if expected.is_ok() {
                    seen.insert(sequence);
                    highest = highest.max(Some(sequence));
                }
            }
        }
    }
}
