// SPDX-License-Identifier: MIT OR Apache-2.0
//! Learning: from each frame, the port behind which its source is.
//!
//! Called by the data threads for each frame.

use core::sync::atomic::Ordering::Relaxed;

use super::bucket::{Bucket, Key, State, Value, WAYS};
use super::entry::{Learning, Origin};
use super::history::Step;
use super::table::{Assignment, Fdb};
use crate::mac::MacAddr;
use crate::port_id::PortId;
use crate::time::is_later;
use crate::vlan::Vid;

impl Fdb {
    /// Learns that a frame with this source arrived on `port`.
    pub fn learn(&self, vid: Vid, mac: MacAddr, port: PortId, now_s: u32) -> Learning {
        self.note(Key::new(vid, mac), port, now_s, true)
    }

    /// The same on a port that guards against forged sources: an address that is known behind
    /// another port stays there, until it ages.
    pub fn learn_in_place(&self, vid: Vid, mac: MacAddr, port: PortId, now_s: u32) -> Learning {
        self.note(Key::new(vid, mac), port, now_s, false)
    }

    fn note(&self, key: Key, port: PortId, now_s: u32, may_move: bool) -> Learning {
        let bucket = self.bucket(key);
        let learning = match bucket.find(key) {
            Some((slot, held)) if held.port == port => self.refresh(key, slot, held, now_s),
            Some((slot, held)) if self.is_expired(held, now_s) => {
                self.renew(key, slot, held, port, now_s)
            }
            Some((_, held)) if !may_move => Learning::Elsewhere { on: held.port },
            Some((slot, held)) if held.is_bound() => self.renew(key, slot, held, port, now_s),
            Some((_, held)) if held.state == State::Held(Origin::Static) => Learning::Pinned,
            Some((slot, held)) => self.relocate(key, slot, held, port, now_s),
            None => self.add(bucket, key, port, now_s),
        };
        self.count(learning);
        learning
    }

    /// The address is where it was.
    fn refresh(&self, key: Key, slot: usize, held: Value, now_s: u32) -> Learning {
        if held.is_bound() {
            return self.renew(key, slot, held, held.port, now_s);
        }
        // Most frames end here, and leave the cache line to the readers: an entry is written once a
        // second at most. A thread whose clock is behind must not turn an entry back, or two
        // threads would write it in turns.
        if !held.is_learned() || !is_later(now_s, held.seen_s) {
            return Learning::Known;
        }
        if self.is_expired(held, now_s) {
            return self.renew(key, slot, held, held.port, now_s);
        }
        let refreshed = held.learned_on(held.port, now_s);
        if self.replace(self.bucket(key), slot, held, refreshed) {
            Learning::Known
        } else {
            Learning::Raced
        }
    }

    /// The address has expired, but its entry is still there.
    fn renew(&self, key: Key, slot: usize, held: Value, port: PortId, now_s: u32) -> Learning {
        let renewed = held.learned_on(port, now_s);
        if !self.replace(self.bucket(key), slot, held, renewed) {
            return Learning::Raced;
        }
        // If a controller advertises the address at this moment, the number may be lost with the
        // old histories, and an older advertisement is then not recognised as outdated.
        self.histories(key).reset(slot);
        Learning::New
    }

    /// Moves the address from its port to `port`, if it may move.
    fn relocate(&self, key: Key, slot: usize, held: Value, port: PortId, now_s: u32) -> Learning {
        let (bucket, histories) = (self.bucket(key), self.histories(key));
        let before = histories.history(slot);
        match before.step(held, now_s, self.dampening_s) {
            Step::Stay => Learning::Dampened,
            Step::Move(history) => {
                if !self.replace(bucket, slot, held, held.learned_on(port, now_s)) {
                    return Learning::Raced;
                }
                // Another thread may have counted a move meanwhile. Then this move does not count.
                histories.replace_history(slot, before, history);
                self.log.push(key, held.port, port, now_s);
                Learning::Moved { from: held.port }
            }
            Step::Dampen(history) => {
                // Of the threads that find one move too many, one counts it.
                if !histories.replace_history(slot, before, history) {
                    return Learning::Raced;
                }
                self.log.push(key, held.port, port, now_s);
                self.dampened.fetch_add(1, Relaxed);
                Learning::Dampened
            }
            Step::Follow(history) => {
                // The history is written first: of the threads that find it time to follow, one
                // does.
                if !histories.replace_history(slot, before, history)
                    || !self.replace(bucket, slot, held, held.learned_on(port, now_s))
                {
                    return Learning::Raced;
                }
                self.log.push(key, held.port, port, now_s);
                Learning::Moved { from: held.port }
            }
        }
    }

    fn add(&self, bucket: &Bucket, key: Key, port: PortId, now_s: u32) -> Learning {
        let at_limit = self.is_at_limit(port);
        let mut slots = (0..WAYS).map(|slot| (slot, bucket.value(slot)));
        let place = slots.find(|&(_, value)| match value.state {
            State::Vacant => !at_limit,
            // A port at its limit may still replace its own expired entries, or else a flood of
            // forged sources would keep it from learning for good.
            State::Held(_) | State::Bound => {
                self.is_expired(value, now_s) && (!at_limit || value.port == port)
            }
            State::Claimed => false,
        });
        let Some((slot, free)) = place else {
            return if at_limit {
                Learning::Limited
            } else {
                Learning::Full
            };
        };
        let learned = Assignment {
            port,
            origin: Origin::Learned,
            sequence: None,
            now_s,
        };
        if self.fill(bucket, slot, free, key, learned) {
            Learning::New
        } else {
            Learning::Raced
        }
    }

    fn count(&self, learning: Learning) {
        let counter = match learning {
            Learning::New => &self.learned,
            Learning::Moved { .. } => &self.moved,
            Learning::Limited => &self.limited,
            Learning::Full => &self.full,
            Learning::Known
            | Learning::Pinned
            | Learning::Elsewhere { .. }
            | Learning::Dampened
            | Learning::Raced => return,
        };
        counter.fetch_add(1, Relaxed);
    }

    /// Threads that learn at the same time may each find the last place free: the limit is exceeded
    /// by at most their number.
    fn is_at_limit(&self, port: PortId) -> bool {
        // Below zero for a moment, if another thread moves an address away from the port before the
        // thread that moved it there has counted it.
        let count = self.learned_on[usize::from(port.0)].load(Relaxed);
        usize::try_from(count).is_ok_and(|count| count >= self.max_per_port)
    }
}
