// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the table knows of an address beyond its location: its recent moves, and the number under
//! which a controller advertised it.
//!
//! Each slot of a bucket has two words here, in an array of their own: a frame from a station that
//! stays where it is never touches them.
//!
//! ```text
//! history   | since (32)    | 0 (16)          | generation (13) | moves (3); 7: dampened |
//! sequence  | number (32)   | 0 (16)          | generation (13) | 1 (3)                  |
//! ```
//!
//! The generation is that of the slot's value, so the history of an address is never taken for that
//! of the next address in the slot. Histories are written after the value that they belong to,
//! except for dampened addresses. If another thread writes in between, the count is off by one
//! move: the limit need not be exact.
//!
//! Called by [`Fdb`](super::Fdb) only.

use core::sync::atomic::Ordering::Relaxed;

use super::bucket::{Value, WAYS};
use crate::sync::AtomicU64;
use crate::time::elapsed_s;

/// A station may move this often within [`WINDOW_S`], for example while it roams, or when a virtual
/// machine migrates.
const MAX_MOVES: u8 = 5;
/// Seconds from the first move to the last one that counts with it, and from the last move of a
/// dampened address until it is no longer dampened.
const WINDOW_S: u32 = 10;

/// The histories of the addresses of one bucket.
#[derive(Debug, Default)]
#[repr(align(64))]
pub(super) struct Histories {
    histories: [AtomicU64; WAYS],
    sequences: [AtomicU64; WAYS],
}

impl Histories {
    /// The recent moves of the address in `slot`.
    pub(super) fn history(&self, slot: usize) -> History {
        History(self.histories[slot].load(Relaxed))
    }

    /// Replaces `old` by `new`, unless the history has changed.
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

    /// Records the number, or that there is none.
    pub(super) fn set_sequence(&self, slot: usize, held: Value, sequence: Option<u32>) {
        let word = sequence.map_or(0, |number| u64::from(number) << 32 | sequence_mark(held));
        self.sequences[slot].store(word, Relaxed);
    }

    /// Leaves the slot without a history. Written only where there is one: most addresses never move.
    pub(super) fn reset(&self, slot: usize) {
        for word in [&self.histories[slot], &self.sequences[slot]] {
            if word.load(Relaxed) != 0 {
                word.store(0, Relaxed);
            }
        }
    }
}

/// Generation and flags.
const LOW_BITS: u64 = 0xffff;

fn sequence_mark(held: Value) -> u64 {
    u64::from(held.generation) << 3 | 1
}

/// How an address has moved: the number of moves since the first one, or that it is dampened, and
/// when it last changed its port since then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct History(u64);

/// What one more move does to a history.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// The address moves.
    Move(History),
    /// It has moved too often: it is dampened, and stays for now.
    Dampen(History),
    /// It is dampened, and has stayed for long enough to move once more.
    Follow(History),
    /// It stays, because it has moved too often before.
    Stay,
}

impl History {
    const DAMPENED: u8 = 7;

    fn new(held: Value, since_s: u32, moves: u8) -> Self {
        let low = u64::from(held.generation) << 3 | u64::from(moves);
        Self(u64::from(since_s) << 32 | low)
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

    /// Whether the address whose value is `held` follows its frames at most once in `dampening_s`.
    pub(super) fn is_dampened(self, held: Value, now_s: u32, dampening_s: u32) -> bool {
        self.is_of(held)
            && self.moves() == Self::DAMPENED
            && elapsed_s(self.since_s(), now_s) < dampening_s.max(WINDOW_S)
    }

    /// The step for the address whose value is `held` when it is seen on another port.
    pub(super) fn step(self, held: Value, now_s: u32, dampening_s: u32) -> Step {
        let quiet_s = elapsed_s(self.since_s(), now_s);
        if self.is_dampened(held, now_s, dampening_s) {
            return match quiet_s < dampening_s {
                true => Step::Stay,
                false => Step::Follow(Self::new(held, now_s, Self::DAMPENED)),
            };
        }
        match self.moves() {
            0 | Self::DAMPENED => Step::Move(Self::new(held, now_s, 1)),
            _ if quiet_s >= WINDOW_S || !self.is_of(held) => Step::Move(Self::new(held, now_s, 1)),
            MAX_MOVES.. => Step::Dampen(Self::new(held, now_s, Self::DAMPENED)),
            moves => Step::Move(Self::new(held, self.since_s(), moves + 1)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::bucket::State;
    use super::super::entry::Origin;
    use super::*;
    use crate::port_id::PortId;

    const P1: PortId = PortId(1);
    const P2: PortId = PortId(2);
    const NONE: History = History(0);

    #[test]
    fn the_sixth_move_in_ten_seconds_is_one_too_many() {
        let start_s = u32::MAX - 4; // the clock wraps under way
        for (name, at_s, last) in [
            ("at once", [0, 0, 0, 0, 0, 0], "dampen"),
            ("within the window", [0, 1, 2, 3, 4, 9], "dampen"),
            ("just outside", [0, 1, 2, 3, 4, 10], "move"),
            ("at leisure", [0, 5, 10, 15, 20, 25], "move"),
        ] {
            let mut history = NONE;
            for (at, at_s) in at_s.into_iter().enumerate() {
                let step = history.step(held(1, P1), start_s.wrapping_add(at_s), 1);
                let seen = match step {
                    Step::Move(next) => {
                        history = next;
                        "move"
                    }
                    Step::Dampen(_) => "dampen",
                    Step::Follow(_) | Step::Stay => "neither",
                };
                let expected = if at == 5 { last } else { "move" };
                assert_eq!(seen, expected, "{name}: move {}", at + 1);
            }
        }
    }

    #[test]
    fn a_dampened_address_follows_at_a_lower_rate_until_it_rests() {
        let value = held(1, P1);
        let dampened = |since_s| History::new(value, since_s, History::DAMPENED);
        let (follow, moved) = (
            |at_s| Step::Follow(dampened(at_s)),
            |at_s| Step::Move(History::new(value, at_s, 1)),
        );
        for (dampening_s, now_s, step, is_dampened) in [
            (1, 99, Step::Stay, true), // a thread whose clock is behind
            (1, 100, Step::Stay, true),
            (1, 101, follow(101), true),
            (1, 109, follow(109), true),
            (1, 110, moved(110), false),
            (5, 104, Step::Stay, true),
            (5, 105, follow(105), true),
            (60, 159, Step::Stay, true),
            (60, 160, moved(160), false),
            (0, 100, follow(100), true),
        ] {
            let history = dampened(100);
            let seen = history.step(value, now_s, dampening_s);
            assert_eq!(seen, step, "{dampening_s} s, at {now_s}");
            let seen = history.is_dampened(value, now_s, dampening_s);
            assert_eq!(seen, is_dampened, "{dampening_s} s, at {now_s}");
        }
    }

    #[test]
    fn the_history_of_another_tenant_of_the_slot_does_not_count() {
        let dampened = History::new(held(1, P1), 100, History::DAMPENED);
        let restless = History::new(held(1, P1), 100, MAX_MOVES);
        for history in [dampened, restless] {
            let begun = Step::Move(History::new(held(2, P2), 101, 1));
            assert_eq!(history.step(held(2, P2), 101, 1), begun);
        }
        let histories = Histories::default();
        for sequence in [0, u32::MAX] {
            histories.set_sequence(3, held(1, P1), Some(sequence));
            assert_eq!(
                histories.sequence(3, held(1, P2)),
                Some(sequence),
                "it may move"
            );
            assert_eq!(histories.sequence(3, held(2, P1)), None);
            assert_eq!(histories.sequence(2, held(1, P1)), None);
        }
        histories.reset(3);
        assert_eq!(histories.sequence(3, held(1, P1)), None);
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
