// SPDX-License-Identifier: MIT OR Apache-2.0
//! What is known of an address beyond where it lives: how it moved of late, and the number under
//! which a controller advertised it.
//!
//! Each slot of a bucket has two words here, in an array of their own: a frame from a station that
//! stays where it is never touches them.
//!
//! ```text
//! history   | since (32)    | first port (16) | generation (13) | moves (3); 7: dampened |
//! sequence  | number (32)   | 0 (16)          | generation (13) | 1 (3)                  |
//! ```
//!
//! The generation is that of the slot's value, so a note about an address is never taken for one
//! about the next address in the slot. Notes are written after the value they belong to. If another
//! thread comes in between, a move more or less is counted: the limit is no exact science.
//!
//! Called by [`Fdb`](super::Fdb) only.

use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::Relaxed;

use super::bucket::{Value, WAYS};
use super::elapsed_s;
use crate::port::PortId;

/// A station may move so often within [`WINDOW_S`]: one that roams, or a machine that migrates.
const MAX_MOVES: u8 = 5;
/// Seconds from the first move to the last that counts with it.
const WINDOW_S: u32 = 10;
/// For how many seconds an address stays where it was before it began to move.
const DAMPENED_S: u32 = 60;

/// The notes on one bucket.
#[derive(Debug, Default)]
#[repr(align(64))]
pub(super) struct Notes {
    histories: [AtomicU64; WAYS],
    sequences: [AtomicU64; WAYS],
}

impl Notes {
    /// How the address in `slot` moved of late.
    pub(super) fn history(&self, slot: usize) -> History {
        History(self.histories[slot].load(Relaxed))
    }

    /// Puts `new` in the place of `old`, unless the note has changed.
    pub(super) fn replace_history(&self, slot: usize, old: History, new: History) -> bool {
        self.histories[slot]
            .compare_exchange(old.0, new.0, Relaxed, Relaxed)
            .is_ok()
    }

    /// The number under which the address in `slot`, whose value is `held`, was advertised.
    pub(super) fn sequence(&self, slot: usize, held: Value) -> Option<u32> {
        let word = self.sequences[slot].load(Relaxed);
        (word & LOW_BITS == sequence_mark(held)).then_some((word >> 32) as u32)
    }

    /// Notes the number, or that there is none.
    pub(super) fn set_sequence(&self, slot: usize, held: Value, sequence: Option<u32>) {
        let word = sequence.map_or(0, |number| u64::from(number) << 32 | sequence_mark(held));
        self.sequences[slot].store(word, Relaxed);
    }

    /// Leaves the slot without notes. Written only where there are some: most addresses never move.
    pub(super) fn reset(&self, slot: usize) {
        for word in [&self.histories[slot], &self.sequences[slot]] {
            if word.load(Relaxed) != 0 {
                word.store(0, Relaxed);
            }
        }
    }

    /// Forgets the history of `slot` if it began on `port`, so that nothing returns there.
    pub(super) fn forget_first(&self, slot: usize, port: PortId) {
        let history = self.history(slot);
        if history.moves() > 0 && history.first() == port {
            // If it has just changed then for a move that begins elsewhere, or for one more that
            // begins here: late by a frame, as when that frame were still to come.
            self.replace_history(slot, history, History::NONE);
        }
    }
}

/// Generation and flags.
const LOW_BITS: u64 = 0xffff;

fn sequence_mark(held: Value) -> u64 {
    u64::from(held.generation) << 3 | 1
}

/// The moves of an address since the first of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct History(u64);

/// What one more move makes of a history.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// The address moves.
    Move(History),
    /// It has moved too often: it goes back to where it was at first, and stays.
    Dampen(History),
    /// It stays, for it has moved too often before.
    Stay,
}

impl History {
    const NONE: Self = Self(0);
    const DAMPENED: u8 = 7;

    fn new(held: Value, first: PortId, since_s: u32, moves: u8) -> Self {
        let low = u64::from(held.generation) << 3 | u64::from(moves);
        Self(u64::from(since_s) << 32 | u64::from(first.0) << 16 | low)
    }

    /// Where the address was before the first move.
    pub(super) fn first(self) -> PortId {
        PortId((self.0 >> 16) as u16)
    }

    fn since_s(self) -> u32 {
        (self.0 >> 32) as u32
    }

    fn moves(self) -> u8 {
        (self.0 & 7) as u8
    }

    fn is_of(self, held: Value) -> bool {
        (self.0 & LOW_BITS) >> 3 == u64::from(held.generation)
    }

    /// Whether the address whose value is `held` stays where it is, wherever it is seen.
    pub(super) fn is_dampened(self, held: Value, now_s: u32) -> bool {
        self.is_of(held)
            && self.moves() == Self::DAMPENED
            && elapsed_s(self.since_s(), now_s) < DAMPENED_S
    }

    /// What becomes of the address, whose value is `held`, when it is seen on another port.
    pub(super) fn step(self, held: Value, now_s: u32) -> Step {
        if self.is_dampened(held, now_s) {
            return Step::Stay;
        }
        let is_over = elapsed_s(self.since_s(), now_s) >= WINDOW_S;
        match self.moves() {
            0 | Self::DAMPENED => Step::Move(Self::new(held, held.port, now_s, 1)),
            _ if is_over || !self.is_of(held) => Step::Move(Self::new(held, held.port, now_s, 1)),
            MAX_MOVES.. => Step::Dampen(Self::new(held, self.first(), now_s, Self::DAMPENED)),
            moves => Step::Move(Self::new(held, self.first(), self.since_s(), moves + 1)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Origin;
    use super::super::bucket::State;
    use super::*;

    const P1: PortId = PortId(1);
    const P2: PortId = PortId(2);

    #[test]
    fn the_sixth_move_in_ten_seconds_is_one_too_many() {
        let start_s = u32::MAX - 4; // the clock wraps under way
        for (name, at_s, last) in [
            ("at once", [0, 0, 0, 0, 0, 0], "dampen"),
            ("within the window", [0, 1, 2, 3, 4, 9], "dampen"),
            ("just outside", [0, 1, 2, 3, 4, 10], "move"),
            ("at leisure", [0, 5, 10, 15, 20, 25], "move"),
        ] {
            let (mut history, mut port) = (History::NONE, P1);
            for (at, at_s) in at_s.into_iter().enumerate() {
                let step = history.step(held(1, port), start_s.wrapping_add(at_s));
                port = if port == P1 { P2 } else { P1 };
                let seen = match step {
                    Step::Move(next) => {
                        history = next;
                        "move"
                    }
                    Step::Dampen(next) => {
                        assert_eq!(next.first(), P1, "{name}: where it was at first");
                        "dampen"
                    }
                    Step::Stay => "stay",
                };
                let expected = if at == 5 { last } else { "move" };
                assert_eq!(seen, expected, "{name}: move {}", at + 1);
            }
        }
    }

    #[test]
    fn a_dampened_address_stays_for_a_minute() {
        let history = History::new(held(1, P1), P1, 100, History::DAMPENED);
        for (now_s, stays) in [(99, true), (100, true), (159, true), (160, false)] {
            let value = held(1, P1);
            assert_eq!(history.is_dampened(value, now_s), stays, "{now_s}");
            assert_eq!(history.step(value, now_s) == Step::Stay, stays, "{now_s}");
        }
    }

    #[test]
    fn notes_on_another_tenant_of_the_slot_do_not_count() {
        let dampened = History::new(held(1, P1), P1, 100, History::DAMPENED);
        let restless = History::new(held(1, P1), P1, 100, MAX_MOVES);
        for history in [dampened, restless] {
            let begun = Step::Move(History::new(held(2, P2), P2, 101, 1));
            assert_eq!(history.step(held(2, P2), 101), begun);
        }
        let notes = Notes::default();
        for sequence in [0, u32::MAX] {
            notes.set_sequence(3, held(1, P1), Some(sequence));
            assert_eq!(
                notes.sequence(3, held(1, P2)),
                Some(sequence),
                "it may move"
            );
            assert_eq!(notes.sequence(3, held(2, P1)), None);
            assert_eq!(notes.sequence(2, held(1, P1)), None);
        }
        notes.reset(3);
        assert_eq!(notes.sequence(3, held(1, P1)), None);
    }

    #[test]
    fn nothing_returns_to_a_port_that_is_forgotten() {
        let notes = Notes::default();
        let (on_p1, on_p2) = (
            History::new(held(0, P2), P1, 0, 1),
            History::new(held(0, P1), P2, 0, 1),
        );
        assert!(notes.replace_history(0, History::NONE, on_p1));
        assert!(notes.replace_history(1, History::NONE, on_p2));
        (0..WAYS).for_each(|slot| notes.forget_first(slot, P1));
        assert_eq!(
            [0, 1].map(|slot| notes.history(slot)),
            [History::NONE, on_p2]
        );
    }

    fn held(generation: u16, port: PortId) -> Value {
        Value {
            state: State::Held(Origin::Learned),
            generation,
            port,
            seen_s: 0,
        }
    }
}
