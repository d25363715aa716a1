// SPDX-License-Identifier: MIT OR Apache-2.0
//! Eight entries that any number of threads read and write at once, without a lock.
//!
//! An entry is two words: the key is the address, the value says where it is. A thread cannot read
//! two words at one instant, so the value carries the *generation* of its slot, which grows
//! whenever the slot is given to another address:
//!
//! ```text
//! key     | 0 (4) | VID (12) | address (48)                                       |
//! value   | last seen (32)   | port (16) | generation (13) | state (3)             |
//!
//!            claim (generation + 1)           publish
//!  Vacant ──────────────────────────> Claimed ────────> Held(origin) ──> refreshed, moved: Held
//!     ^                                  ^  claim            │
//!     └───────────── vacate ─────────────│───────────────────┤
//!                                        └───────────────────┘
//!     Held(Learned) ── its port goes down, and others guard against forged sources ──> Bound
//! ```
//!
//! Readers find a *bound* address as they find a held one, but lookups return no port for it.
//!
//! *Only the thread that claimed the slot writes the key, between claim and publication.* Every
//! other change is a compare-and-swap of the whole value, so it fails if anything has changed since
//! it was read. A reader takes the value, then the key, then the value again: if the slot was held
//! in one generation both times, then the key belongs to that generation, and so does the port.
//!
//! A generation returns after 8192 claims. A reader is fooled only if it sleeps, between two loads,
//! while its slot is claimed exactly that often; each claim takes an ageing period or a port that
//! goes down.
//!
//! Called by [`Fdb`](super::Fdb) only, which decides what to store; nothing here knows limits.

use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};

use super::entry::Origin;
use crate::mac::MacAddr;
use crate::port_id::PortId;
use crate::sync::{AtomicU64, IS_MODEL, fence};
use crate::time::{elapsed_s, later};
use crate::vlan::Vid;

/// How many addresses that hash to one bucket it can hold. In a model, as few as can take turns.
pub(super) const WAYS: usize = if IS_MODEL { 2 } else { 8 };

/// Two cache lines, of which a search seldom needs the second: slots are filled from the first on,
/// and buckets of a table with room to spare hold fewer than four addresses.
#[derive(Debug, Default)]
#[repr(align(64))]
pub(super) struct Bucket {
    slots: [Slot; WAYS],
}

/// The words of an entry, on one cache line.
#[derive(Debug, Default)]
struct Slot {
    key: AtomicU64,
    value: AtomicU64,
}

impl Bucket {
    /// The slot that holds `key`, and its value.
    pub(super) fn find(&self, key: Key) -> Option<(usize, Value)> {
        self.find_all(key).next()
    }

    /// Every slot that holds `key`: one, or two for the moment in which two threads insert it.
    pub(super) fn find_all(&self, key: Key) -> impl Iterator<Item = (usize, Value)> {
        (0..WAYS)
            // A hint, to skip the values of other keys. If it is outdated the address counts as
            // unknown, as it was a moment ago.
            .filter(move |&slot| self.slots[slot].key.load(Relaxed) == key.0)
            .filter_map(move |slot| {
                self.held(slot)
                    .filter(|held| held.0 == key)
                    .map(|held| (slot, held.1))
            })
    }

    /// What `slot` holds: a key and a value that belong together.
    pub(super) fn held(&self, slot: usize) -> Option<(Key, Value)> {
        // `before` orders the key after the publication that it saw: the key is of that generation
        // or of a later one. If of a later one, it orders `value` after the claim of the slot,
        // which has then changed its generation.
        let before = Value::unpack(self.slots[slot].value.load(Acquire));
        let key = Key(self.slots[slot].key.load(Acquire));
        let value = self.value(slot);
        let same = before.is_held() && value.is_held() && before.generation == value.generation;
        same.then_some((key, value))
    }

    /// The value of `slot`, whichever address it belongs to.
    pub(super) fn value(&self, slot: usize) -> Value {
        Value::unpack(self.slots[slot].value.load(Relaxed))
    }

    /// Replaces `old` by `new`, unless the slot has changed.
    #[must_use]
    pub(super) fn replace(&self, slot: usize, old: Value, new: Value) -> bool {
        self.slots[slot]
            .value
            .compare_exchange(old.pack(), new.pack(), AcqRel, Relaxed)
            .is_ok()
    }

    /// Fills a slot that the caller has claimed, and publishes it to all threads.
    pub(super) fn publish(&self, slot: usize, key: Key, value: Value) {
        self.slots[slot].key.store(key.0, Release);
        self.slots[slot].value.store(value.pack(), Release);
        // If two threads publish one key, at least one of them sees the other's when it looks next.
        fence(core::sync::atomic::Ordering::SeqCst);
    }
}

/// An address in a VLAN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Key(u64);

impl Key {
    pub(super) fn new(vid: Vid, mac: MacAddr) -> Self {
        Self(u64::from(vid.value()) << 48 | mac.to_bits())
    }

    pub(super) fn vid(self) -> Vid {
        Vid::from_tci((self.0 >> 48) as u16)
    }

    pub(super) fn mac(self) -> MacAddr {
        MacAddr::from_bits(self.0)
    }

    pub(super) fn bits(self) -> u64 {
        self.0
    }

    pub(super) fn from_bits(bits: u64) -> Self {
        Self(bits)
    }
}

/// What is known about the address in a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Value {
    pub(super) state: State,
    pub(super) generation: u16,
    pub(super) port: PortId,
    pub(super) seen_s: u32,
}

/// Which threads may use a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Any thread that claims it.
    Vacant,
    /// Only the thread that claimed it: the key is being written.
    Claimed,
    /// All threads.
    Held(Origin),
    /// None: its port is down. Until it ages, ports that guard against forged sources do not learn
    /// it.
    Bound,
}

impl Value {
    const STATE_BITS: u32 = 3;
    const GENERATION_BITS: u32 = 13;
    const GENERATION_MASK: u16 = (1 << Self::GENERATION_BITS) - 1;

    /// The same slot in the hands of the caller, for another key.
    pub(super) fn claimed(self) -> Self {
        let generation = self.generation.wrapping_add(1) & Self::GENERATION_MASK;
        Self {
            state: State::Claimed,
            generation,
            ..self
        }
    }

    /// The same slot, free to be claimed.
    pub(super) fn vacated(self) -> Self {
        Self {
            state: State::Vacant,
            ..self
        }
    }

    /// The same address, seen on `port`. Its age is never turned back.
    pub(super) fn learned_on(self, port: PortId, now_s: u32) -> Self {
        Self {
            state: State::Held(Origin::Learned),
            port,
            seen_s: later(now_s, self.seen_s),
            ..self
        }
    }

    /// The same address, bound: its port is down.
    pub(super) fn bound(self) -> Self {
        Self {
            state: State::Bound,
            ..self
        }
    }

    /// Whether the key of the slot is valid.
    pub(super) fn is_held(self) -> bool {
        matches!(self.state, State::Held(_) | State::Bound)
    }

    /// Whether a frame has put it here, so that it ages and counts for its port.
    pub(super) fn is_learned(self) -> bool {
        matches!(self.state, State::Held(Origin::Learned) | State::Bound)
    }

    pub(super) fn is_bound(self) -> bool {
        self.state == State::Bound
    }

    pub(super) fn age_s(self, now_s: u32) -> u32 {
        elapsed_s(self.seen_s, now_s)
    }

    fn pack(self) -> u64 {
        let state = match self.state {
            State::Vacant => 0,
            State::Claimed => 1,
            State::Held(Origin::Static) => 2,
            State::Held(Origin::Learned) => 3,
            State::Held(Origin::Controller) => 4,
            State::Bound => 5,
        };
        let low = u64::from(self.generation) << Self::STATE_BITS | state;
        u64::from(self.seen_s) << 32 | u64::from(self.port.0) << 16 | low
    }

    fn unpack(word: u64) -> Self {
        let state = match word & ((1 << Self::STATE_BITS) - 1) {
            0 => State::Vacant,
            2 => State::Held(Origin::Static),
            3 => State::Held(Origin::Learned),
            4 => State::Held(Origin::Controller),
            5 => State::Bound,
            // 6 and 7 are never packed; a slot that no thread may touch is the safe reading.
            _ => State::Claimed,
        };
        Self {
            state,
            generation: (word as u16) >> Self::STATE_BITS,
            port: PortId((word >> 16) as u16),
            seen_s: (word >> 32) as u32,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
    const B: MacAddr = MacAddr([0xfe, 0xff, 0xff, 0xff, 0xff, 0xff]);

    #[test]
    fn words_hold_their_fields() {
        for (vid, mac) in [(0, A), (4095, B), (1, B)] {
            let vid = Vid::new(vid).unwrap();
            let key = Key::new(vid, mac);
            assert_eq!((key.vid(), key.mac()), (vid, mac));
        }
        let origins = [Origin::Static, Origin::Learned, Origin::Controller].map(State::Held);
        let others = [State::Vacant, State::Claimed, State::Bound];
        for state in others.into_iter().chain(origins) {
            for (generation, port, seen_s) in [(0, 0, 0), (8191, 65535, u32::MAX), (1, 2, 3)] {
                let value = Value {
                    state,
                    generation,
                    port: PortId(port),
                    seen_s,
                };
                assert_eq!(Value::unpack(value.pack()), value);
            }
        }
    }

    #[test]
    fn a_slot_shows_only_what_was_published() {
        let (bucket, key) = (Bucket::default(), Key::new(Vid::UNTAGGED, A));
        let vacant = bucket.value(0);
        assert_eq!(bucket.held(0), None, "vacant");

        let claimed = vacant.claimed();
        assert!(bucket.replace(0, vacant, claimed));
        assert_eq!(bucket.held(0), None, "claimed");
        assert!(!bucket.replace(0, vacant, claimed), "claimed twice");

        let held = Value {
            state: State::Held(Origin::Learned),
            port: PortId(7),
            ..claimed
        };
        bucket.publish(0, key, held);
        assert_eq!(bucket.find(key), Some((0, held)), "published");
        assert_eq!(bucket.find(Key::new(Vid::UNTAGGED, B)), None, "another key");

        assert!(bucket.replace(0, held, held.vacated()));
        assert_eq!(bucket.find(key), None, "vacated");
    }

    #[test]
    fn generations_start_again_after_the_last() {
        let last = Value {
            generation: Value::GENERATION_MASK,
            ..Value::unpack(0)
        };
        assert_eq!(last.claimed().generation, 0);
    }
}
