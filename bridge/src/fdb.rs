// SPDX-License-Identifier: MIT OR Apache-2.0
//! The forwarding database: which port an address was last seen on.
//!
//! A hash table of fixed size, eight places to a bucket, made of atomics: data threads learn and
//! look up through `&self`, never wait for each other, and never allocate. What does not fit is not
//! learned, and then flooded, as in a switch made of hardware.
//!
//! The promise under all races: [`lookup`](Fdb::lookup) returns only a port on which this address,
//! in this VLAN, was learned (or to which it was assigned), no matter what other threads do. The
//! rest may be approximate for a moment, and each place says why that is harmless.
//!
//! A station lives in one place. An address that moves more than 5 times in 10 seconds is in a loop,
//! or two stations have it, or a station cannot decide: it is *dampened*. From then on it follows what
//! is seen of it at most once a second (or as configured), until it has kept its place for 10 seconds.
//!
//! Called by [`Switch`](crate::Switch) for each frame, and by the control thread for the rest.

mod assign;
mod bucket;
mod entry;
mod hash;
#[cfg(loom)]
pub mod models;
mod moves;
mod notes;
mod rows;

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::sync::atomic::Ordering::Relaxed;

use self::assign::Assignment;
use self::bucket::{Bucket, Key, State, Value, WAYS};
pub use self::entry::{Entry, FdbCounters, InsertError, Learning, Occupancy, Origin};
use self::hash::siphash13;
pub use self::moves::Move;
use self::moves::MoveLog;
use self::notes::{Notes, Step};
use crate::config::SwitchConfig;
use crate::mac::MacAddr;
use crate::port_id::PortId;
use crate::sync::{AtomicI32, AtomicU64, IS_MODEL};
use crate::time::{elapsed_s, is_later};
use crate::vlan::Vid;

/// The highest number of a port.
const PORTS: u16 = if IS_MODEL { 3 } else { u16::MAX };

/// A bounded table of addresses, shared by every thread.
#[derive(Debug)]
pub struct Fdb {
    buckets: Box<[Bucket]>,
    /// For each bucket; apart, as frames of stations that stay in place have no use for them.
    notes: Box<[Notes]>,
    log: MoveLog,
    hash_key: [u64; 2],
    ageing_s: u32,
    dampening_s: u32,
    max_per_port: usize,
    /// Learned addresses on each port that an id can name, 256 KiB; expired ones count until their
    /// place is needed.
    learned_on: Box<[AtomicI32]>,
    learned: AtomicU64,
    moved: AtomicU64,
    dampened: AtomicU64,
    limited: AtomicU64,
    full: AtomicU64,
}

impl Fdb {
    /// The largest capacity; a larger one in the configuration means this.
    pub const MAX_CAPACITY: usize = SwitchConfig::MAX_FDB_CAPACITY;

    /// An empty table.
    ///
    /// `hash_key` must be random and secret, or else a sender can choose addresses that fall on one
    /// bucket and so keep those of others from being learned.
    pub fn new(config: &SwitchConfig, hash_key: [u64; 2]) -> Self {
        let capacity = config.fdb_capacity.clamp(WAYS, Self::MAX_CAPACITY);
        let buckets = capacity.div_ceil(WAYS).next_power_of_two();
        Self {
            buckets: (0..buckets).map(|_| Bucket::default()).collect(),
            notes: (0..buckets).map(|_| Notes::default()).collect(),
            log: MoveLog::default(),
            hash_key,
            ageing_s: config.ageing_s,
            dampening_s: config.dampening_s,
            max_per_port: config.max_per_port,
            learned_on: (0..=PORTS).map(|_| AtomicI32::new(0)).collect(),
            learned: AtomicU64::new(0),
            moved: AtomicU64::new(0),
            dampened: AtomicU64::new(0),
            limited: AtomicU64::new(0),
            full: AtomicU64::new(0),
        }
    }

    /// The port behind which the address lives, if that is known and not too old.
    pub fn lookup(&self, vid: Vid, mac: MacAddr, now_s: u32) -> Option<PortId> {
        let key = Key::new(vid, mac);
        let (_, held) = self.bucket(key).find(key)?;
        let is_there = !held.is_bound() && !self.is_expired(held, now_s);
        is_there.then_some(held.port)
    }

    /// Notes that a frame with this source came in by `port`.
    pub fn learn(&self, vid: Vid, mac: MacAddr, port: PortId, now_s: u32) -> Learning {
        self.note(Key::new(vid, mac), port, now_s, true)
    }

    /// The same on a port that guards against forged sources: an address that lives behind another
    /// port stays there, until it ages.
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

    /// Forgets what was learned on `port` and says how much that was; assigned addresses stay until
    /// whoever assigned them removes them.
    ///
    /// A frame of that port which another thread has in hand may be learned right after. That is
    /// true, if late, and it ages.
    pub fn forget_port(&self, port: PortId) -> usize {
        self.forget(|_, held| held.port == port)
    }

    /// Forgets where the stations behind `port` live and says how many those were, but keeps their
    /// addresses from ports that guard against forged sources, until they age: nobody takes the address
    /// of a station by taking its port off the network.
    pub fn bind_port(&self, port: PortId) -> usize {
        let is_meant = |_, held: Value| held.port == port && !held.is_bound();
        self.change_learned(is_meant, Value::bound)
    }

    /// The same for one VLAN of the port.
    pub fn forget_port_in(&self, port: PortId, vid: Vid) -> usize {
        self.forget(|key, held| held.port == port && key.vid() == vid)
    }

    /// Forgets what was learned in this VLAN and says how much that was.
    pub fn forget_vlan(&self, vid: Vid) -> usize {
        self.forget(|key, _| key.vid() == vid)
    }

    /// Forgets all that was learned and says how much that was.
    pub fn forget_learned(&self) -> usize {
        self.forget(|_, _| true)
    }

    fn forget(&self, is_meant: impl Fn(Key, Value) -> bool) -> usize {
        self.change_learned(is_meant, Value::vacated)
    }

    fn change_learned(
        &self,
        is_meant: impl Fn(Key, Value) -> bool,
        change: impl Fn(Value) -> Value,
    ) -> usize {
        let mut changed = 0;
        for bucket in &self.buckets {
            for slot in 0..WAYS {
                while let Some((key, held)) = bucket.held(slot) {
                    if !held.is_learned() || !is_meant(key, held) {
                        break;
                    }
                    if self.replace(bucket, slot, held, change(held)) {
                        changed += 1;
                        break;
                    }
                }
            }
        }
        changed
    }

    /// The last 32 moves of addresses from port to port, the oldest first.
    ///
    /// While many addresses move at once some are missing, and those that are listed are true.
    pub fn last_moves(&self) -> Vec<Move> {
        self.log.read()
    }

    /// How often learning did something worth counting.
    pub fn counters(&self) -> FdbCounters {
        FdbCounters {
            learned: self.learned.load(Relaxed),
            moved: self.moved.load(Relaxed),
            dampened: self.dampened.load(Relaxed),
            limited: self.limited.load(Relaxed),
            full: self.full.load(Relaxed),
        }
    }

    /// The address is where it was.
    fn refresh(&self, key: Key, slot: usize, held: Value, now_s: u32) -> Learning {
        if held.is_bound() {
            return self.renew(key, slot, held, held.port, now_s);
        }
        // Most frames end here, and leave the line to the readers: an entry is written once a second
        // at most. A thread whose clock is behind must not turn an entry back, or two threads would
        // write it in turns.
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

    /// The address was forgotten, but for its entry.
    fn renew(&self, key: Key, slot: usize, held: Value, port: PortId, now_s: u32) -> Learning {
        let renewed = held.learned_on(port, now_s);
        if !self.replace(self.bucket(key), slot, held, renewed) {
            return Learning::Raced;
        }
        // Should a controller advertise the address at this moment, the number may be lost with the
        // old notes, and an older advertisement is then not known for one.
        self.notes(key).reset(slot);
        Learning::New
    }

    /// The address has left its port for `port`, if it may.
    fn relocate(&self, key: Key, slot: usize, held: Value, port: PortId, now_s: u32) -> Learning {
        let (bucket, notes) = (self.bucket(key), self.notes(key));
        let before = notes.history(slot);
        match before.step(held, now_s, self.dampening_s) {
            Step::Stay => Learning::Dampened,
            Step::Move(history) => {
                if !self.replace(bucket, slot, held, held.learned_on(port, now_s)) {
                    return Learning::Raced;
                }
                // Another thread may have counted a move of its own meanwhile. Then this one counts
                // for nothing.
                notes.replace_history(slot, before, history);
                self.log.push(key, held.port, port, now_s);
                Learning::Moved { from: held.port }
            }
            Step::Dampen(history) => {
                // Of the threads that find one move too many, one counts it.
                if !notes.replace_history(slot, before, history) {
                    return Learning::Raced;
                }
                self.log.push(key, held.port, port, now_s);
                self.dampened.fetch_add(1, Relaxed);
                Learning::Dampened
            }
            Step::Follow(history) => {
                // The note first: of the threads that find it time to follow, one does.
                if !notes.replace_history(slot, before, history)
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
            // At its limit a port may still replace what it has outlived, or else a flood of forged
            // sources would keep it from learning for good.
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

    /// Gives a slot to `key`, unless the slot has changed since it held `free`.
    fn fill(
        &self,
        bucket: &Bucket,
        slot: usize,
        free: Value,
        key: Key,
        wanted: Assignment,
    ) -> bool {
        let claimed = free.claimed();
        if !self.replace(bucket, slot, free, claimed) {
            return false;
        }
        let value = wanted.value(claimed.generation);
        let notes = self.notes(key);
        // Old notes are of another generation, until that returns after 8192 claims.
        notes.reset(slot);
        if wanted.sequence.is_some() {
            notes.set_sequence(slot, value, wanted.sequence);
        }
        // Counted before it is shown: whoever takes it away again must find it counted.
        self.account(claimed, value);
        bucket.publish(slot, key, value);
        self.drop_twins(bucket, key);
        true
    }

    /// Leaves one entry for `key`, where two threads have inserted it at once.
    ///
    /// Both see the same two, or one of them sees two, and both keep the same: an assigned one, or
    /// else the first. If a twin is refreshed at this moment it survives, and harmlessly: its port
    /// was learned like the other's, searches stop at the first, and so it ages.
    fn drop_twins(&self, bucket: &Bucket, key: Key) {
        let rank = |&(slot, held): &(usize, Value)| (held.is_learned(), slot);
        // In one pass: what was not seen beside the one that is kept may be the one that others keep.
        let mut kept: Option<(usize, Value)> = None;
        for twin in bucket.find_all(key) {
            let Some(known) = kept.replace(twin) else {
                continue;
            };
            let (first, (slot, held)) = match rank(&known) < rank(&twin) {
                true => (known, twin),
                false => (twin, known),
            };
            kept = Some(first);
            let _ = self.replace(bucket, slot, held, held.vacated());
        }
    }

    /// Every change of a value goes through here or `fill`, so that the counts per port are exact.
    fn replace(&self, bucket: &Bucket, slot: usize, old: Value, new: Value) -> bool {
        let done = bucket.replace(slot, old, new);
        if done {
            self.account(old, new);
        }
        done
    }

    fn account(&self, old: Value, new: Value) {
        if old.is_learned() {
            self.learned_on[usize::from(old.port.0)].fetch_sub(1, Relaxed);
        }
        if new.is_learned() {
            self.learned_on[usize::from(new.port.0)].fetch_add(1, Relaxed);
        }
    }

    /// Threads that learn at the same time may each find the last place free: the limit is exceeded
    /// by at most their number.
    fn is_at_limit(&self, port: PortId) -> bool {
        // Below zero for a moment, if another thread moves an address away from the port before the
        // one that moved it there has counted it.
        let count = self.learned_on[usize::from(port.0)].load(Relaxed);
        usize::try_from(count).is_ok_and(|count| count >= self.max_per_port)
    }

    fn is_expired(&self, value: Value, now_s: u32) -> bool {
        value.is_learned() && age_s(value, now_s) >= self.ageing_s
    }

    fn bucket(&self, key: Key) -> &Bucket {
        &self.buckets[self.place(key)]
    }

    fn notes(&self, key: Key) -> &Notes {
        &self.notes[self.place(key)]
    }

    fn place(&self, key: Key) -> usize {
        siphash13(self.hash_key, key.bits()) as usize & (self.buckets.len() - 1)
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
}

fn age_s(value: Value, now_s: u32) -> u32 {
    elapsed_s(value.seen_s, now_s)
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use super::Learning::{Dampened, Elsewhere, Full, Known, Limited, Moved, New, Pinned};
    use super::*;

    const P1: PortId = PortId(1);
    const P2: PortId = PortId(2);
    const P3: PortId = PortId(3);

    #[test]
    fn learns_refreshes_moves_and_ages() {
        let fdb = one_bucket(100);
        for (at_s, port, learning) in [
            (0, P1, New),
            (0, P1, Known),
            (50, P1, Known),
            (149, P2, Moved { from: P1 }), // the clock of its age started again at 50
            (149, P2, Known),
            (148, P2, Known), // a thread whose clock is behind
            (249, P1, New),   // too old to count as a move
        ] {
            assert_eq!(learn(&fdb, 1, port, at_s), learning, "at {at_s}");
            assert_eq!(lookup(&fdb, 1, at_s), Some(port), "at {at_s}");
        }
        assert_eq!(
            fdb.counters(),
            FdbCounters {
                learned: 2,
                moved: 1,
                ..Default::default()
            }
        );
    }

    #[test]
    fn an_address_is_known_until_it_ages() {
        let start_s = u32::MAX - 50; // the clock wraps on the way
        for (after_s, known) in [
            (0, true),
            (51, true),
            (99, true),
            (100, false),
            (1000, false),
        ] {
            let fdb = one_bucket(100);
            learn(&fdb, 1, P1, start_s);
            let now_s = start_s.wrapping_add(after_s);
            assert_eq!(lookup(&fdb, 1, now_s).is_some(), known, "after {after_s} s");
            assert_eq!(
                fdb.entries(now_s).count(),
                usize::from(known),
                "after {after_s} s"
            );
        }
        let fdb = one_bucket(100);
        learn(&fdb, 1, P1, start_s);
        assert_eq!(
            lookup(&fdb, 1, start_s - 1000),
            Some(P1),
            "seen by a clock that is behind"
        );
    }

    #[test]
    fn an_older_clock_does_not_turn_an_entry_back() {
        let fdb = one_bucket(100);
        learn(&fdb, 1, P1, 50);
        learn(&fdb, 1, P2, 49);
        assert_eq!(lookup(&fdb, 1, 149), Some(P2));
        assert_eq!(lookup(&fdb, 1, 150), None);
    }

    #[test]
    fn a_full_bucket_learns_nothing_until_something_ages() {
        let fdb = one_bucket(100);
        for name in 0..8 {
            assert_eq!(learn(&fdb, name, P1, u32::from(name)), New, "{name}");
        }
        assert_eq!(learn(&fdb, 8, P2, 8), Full);
        assert_eq!(lookup(&fdb, 8, 8), None);
        assert_eq!(
            learn(&fdb, 0, P2, 8),
            Moved { from: P1 },
            "a full table still follows moves"
        );
        assert_eq!(learn(&fdb, 8, P2, 101), New, "in the place of 1");
        assert_eq!(lookup(&fdb, 1, 101), None);
        assert_eq!(
            fdb.counters(),
            FdbCounters {
                learned: 9,
                moved: 1,
                full: 1,
                ..Default::default()
            }
        );
    }

    #[test]
    fn a_port_takes_no_more_than_its_share() {
        let config = SwitchConfig {
            fdb_capacity: 8,
            max_per_port: 2,
            ..SwitchConfig::default()
        };
        let fdb = Fdb::new(&config, [0, 0]);
        for (name, port, at_s, learning) in [
            (1, P1, 0, New),
            (2, P1, 10, New),
            (3, P1, 10, Limited),
            (3, P2, 10, New),
            (2, P2, 10, Moved { from: P1 }),
            (4, P1, 10, New),                // the move made room
            (3, P1, 10, Moved { from: P2 }), // a move takes no place from anyone
            (5, P1, 20, Limited),
            (5, P1, 300, New), // in the place of 1, expired
            (6, P2, 300, New),
        ] {
            assert_eq!(
                learn(&fdb, name, port, at_s),
                learning,
                "{name} on {port:?} at {at_s}"
            );
        }
        fdb.forget_port(P1);
        assert_eq!(
            learn(&fdb, 7, P1, 300),
            New,
            "what is forgotten no longer counts"
        );
    }

    #[test]
    fn assigned_addresses_outrank_learned_ones() {
        for (origin, learning, port_after, ages) in [
            (Origin::Static, Pinned, P1, false),
            (Origin::Controller, Moved { from: P1 }, P2, true),
            (Origin::Learned, Moved { from: P1 }, P2, true),
        ] {
            let fdb = one_bucket(100);
            insert(&fdb, 1, P1, origin).unwrap();
            let alone_later = lookup(&fdb, 1, 100_000);
            assert_eq!(
                alone_later.is_none(),
                origin == Origin::Learned,
                "{origin:?}"
            );
            assert_eq!(learn(&fdb, 1, P1, 1), Known, "{origin:?}");
            assert_eq!(learn(&fdb, 1, P2, 2), learning, "{origin:?}");
            assert_eq!(lookup(&fdb, 1, 2), Some(port_after), "{origin:?}");
            assert_eq!(lookup(&fdb, 1, 100_000).is_none(), ages, "{origin:?}");
        }
    }

    #[test]
    fn an_assigned_address_takes_the_place_of_the_most_silent_learned_one() {
        let fdb = one_bucket(100);
        for name in 0..8 {
            learn(&fdb, name, P1, 20 - u32::from(name));
        }
        for (name, gone) in [(10, 7), (11, 6)] {
            insert(&fdb, name, P2, Origin::Static).unwrap();
            assert_eq!(lookup(&fdb, name, 20), Some(P2));
            assert_eq!(lookup(&fdb, gone, 20), None);
            assert_eq!(lookup(&fdb, gone - 1, 20), Some(P1));
        }
        for name in 12..18 {
            insert(&fdb, name, P2, Origin::Controller).unwrap();
        }
        assert_eq!(insert(&fdb, 18, P2, Origin::Static), Err(InsertError::Full));
        assert_eq!(
            insert(&fdb, 10, P1, Origin::Controller),
            Err(InsertError::Static)
        );
        assert_eq!(insert(&fdb, 10, P1, Origin::Static), Ok(()));
        assert_eq!(lookup(&fdb, 10, 20), Some(P1));
    }

    #[test]
    fn forgets_a_port_but_not_what_was_assigned_to_it() {
        let fdb = one_bucket(100);
        learn(&fdb, 1, P1, 0);
        learn(&fdb, 2, P2, 0);
        insert(&fdb, 3, P1, Origin::Static).unwrap();
        fdb.forget_port(P1);
        assert_eq!(
            [1, 2, 3].map(|name| lookup(&fdb, name, 0)),
            [None, Some(P2), Some(P1)]
        );

        assert!(fdb.remove(Vid::UNTAGGED, mac(3)));
        assert!(!fdb.remove(Vid::UNTAGGED, mac(3)));
        assert_eq!(lookup(&fdb, 3, 0), None);
    }

    #[test]
    fn lists_what_it_knows() {
        let fdb = one_bucket(100);
        let vid = Vid::new(7).unwrap();
        fdb.learn(vid, mac(1), P1, 10);
        fdb.learn(vid, mac(2), P1, 0);
        fdb.insert(vid, mac(3), P2, Origin::Static, 0).unwrap();
        let mut entries: Vec<_> = fdb.entries(105).collect();
        entries.sort_by_key(|entry| entry.mac);
        let learned = Entry {
            vid,
            mac: mac(1),
            port: P1,
            age_s: 95,
            origin: Origin::Learned,
            sequence: None,
            dampened: false,
            bound: false,
        };
        let assigned = Entry {
            vid,
            mac: mac(3),
            port: P2,
            age_s: 105,
            origin: Origin::Static,
            sequence: None,
            dampened: false,
            bound: false,
        };
        assert_eq!(entries, [learned, assigned]);
    }

    #[test]
    fn an_address_that_moves_too_often_follows_at_a_lower_rate() {
        let fdb = one_bucket(100);
        let start_s = u32::MAX - 5; // the clock wraps under way
        for (after_s, port, learning, home, is_dampened) in [
            (0, P1, New, P1, false),
            (1, P2, Moved { from: P1 }, P2, false),
            (2, P1, Moved { from: P2 }, P1, false),
            (3, P3, Moved { from: P1 }, P3, false),
            (4, P2, Moved { from: P3 }, P2, false),
            (10, P3, Moved { from: P2 }, P3, false),
            (10, P2, Dampened, P3, true), // the sixth
            (10, P1, Dampened, P3, true),
            (11, P1, Moved { from: P3 }, P1, true), // once a second
            (11, P2, Dampened, P1, true),
            (11, P1, Known, P1, true),
            (12, P2, Moved { from: P1 }, P2, true),
            (21, P1, Moved { from: P2 }, P1, true), // not yet at rest
            (30, P1, Known, P1, true),
            (31, P2, Moved { from: P1 }, P2, false), // ten seconds in place
            (31, P1, Moved { from: P2 }, P1, false),
        ] {
            let now_s = start_s.wrapping_add(after_s);
            assert_eq!(learn(&fdb, 1, port, now_s), learning, "after {after_s} s");
            assert_eq!(lookup(&fdb, 1, now_s), Some(home), "after {after_s} s");
            let dampened = fdb.find(Vid::UNTAGGED, mac(1), now_s).unwrap().dampened;
            assert_eq!(dampened, is_dampened, "after {after_s} s");
        }
        let counters = fdb.counters();
        assert_eq!((counters.moved, counters.dampened), (10, 1));
        let learned_on = [P1, P2, P3].map(|port| fdb.learned_on[usize::from(port.0)].load(Relaxed));
        assert_eq!(learned_on, [1, 0, 0]);
        let moves = fdb.last_moves();
        let seen: Vec<_> = moves.iter().map(|one| (one.from, one.to)).collect();
        assert_eq!(seen[4..7], [(P2, P3), (P3, P2), (P3, P1)]);
    }

    /// As with a plain cable: where it last spoke is where it is, a moment later at most.
    #[test]
    fn a_station_that_talks_is_where_it_talks_whatever_it_did_before() {
        for moves in 0..40 {
            let fdb = one_bucket(100);
            for at in 0..moves {
                learn(&fdb, 1, [P1, P2][at % 2], 100 + at as u32 / 8);
            }
            let last_s = 100 + moves as u32 / 8;
            // If the first is one move too many, the next one counts.
            let _ = [1, 2].map(|after_s| learn(&fdb, 1, P3, last_s + after_s));
            assert_eq!(lookup(&fdb, 1, last_s + 2), Some(P3), "after {moves} moves");
        }
    }

    #[test]
    fn the_address_of_a_station_whose_port_is_down_is_kept_from_guarded_ports() {
        let in_place = |fdb: &Fdb, port, now_s| {
            let learning = fdb.learn_in_place(Vid::UNTAGGED, mac(1), port, now_s);
            (learning, fdb.lookup(Vid::UNTAGGED, mac(1), now_s))
        };
        let down = || {
            let fdb = one_bucket(100);
            learn(&fdb, 1, P1, 0);
            insert(&fdb, 2, P1, Origin::Static).unwrap();
            assert_eq!(fdb.bind_port(P1), 1);
            assert_eq!(fdb.bind_port(P1), 0);
            assert_eq!([1, 2].map(|name| lookup(&fdb, name, 1)), [None, Some(P1)]);
            let entry = fdb.find(Vid::UNTAGGED, mac(1), 1).unwrap();
            assert_eq!((entry.bound, entry.port), (true, P1));
            fdb
        };
        let fdb = down();
        assert_eq!(in_place(&fdb, P2, 1), (Elsewhere { on: P1 }, None));
        assert_eq!(in_place(&fdb, P2, 99), (Elsewhere { on: P1 }, None));
        assert_eq!(in_place(&fdb, P2, 100), (New, Some(P2)), "it has aged");
        let fdb = down();
        assert_eq!(in_place(&fdb, P1, 0), (New, Some(P1)), "it is back");
        assert_eq!(in_place(&fdb, P2, 1), (Elsewhere { on: P1 }, Some(P1)));
        let fdb = down();
        assert_eq!(learn(&fdb, 1, P2, 1), New, "no guard");
        assert_eq!(lookup(&fdb, 1, 1), Some(P2));
        let fdb = down();
        assert_eq!(fdb.forget_learned(), 1);
        assert_eq!(in_place(&fdb, P2, 1), (New, Some(P2)));
        let fdb = down();
        for name in 10..20 {
            learn(&fdb, name, P1, 1);
        }
        let learned_on = fdb.learned_on[usize::from(P1.0)].load(Relaxed);
        assert_eq!(learned_on, 7, "it counts for its port");
    }

    #[test]
    fn an_address_in_its_place_is_not_moved_by_a_guarded_port() {
        let fdb = one_bucket(100);
        insert(&fdb, 2, P1, Origin::Static).unwrap();
        insert(&fdb, 3, P1, Origin::Controller).unwrap();
        for (name, port, at_s, learning) in [
            (1, P1, 0, New),
            (1, P1, 1, Known),
            (1, P2, 2, Elsewhere { on: P1 }),
            (1, P2, 100, Elsewhere { on: P1 }),
            (1, P2, 101, New), // forgotten by then
            (2, P2, 0, Elsewhere { on: P1 }),
            (3, P2, 0, Elsewhere { on: P1 }),
        ] {
            let seen = fdb.learn_in_place(Vid::UNTAGGED, mac(name), port, at_s);
            assert_eq!(seen, learning, "{name} on {port:?} at {at_s}");
        }
    }

    #[test]
    fn the_higher_number_wins() {
        let fdb = one_bucket(100);
        for (port, sequence, result, home) in [
            (P1, 5, Ok(()), P1),
            (P2, 4, Err(InsertError::Outdated { known: 5 }), P1),
            (P2, 5, Err(InsertError::Outdated { known: 5 }), P1),
            (P1, 5, Ok(()), P1), // said again
            (P2, 6, Ok(()), P2),
            (P1, u32::MAX, Ok(()), P1),
        ] {
            let advertised = fdb.advertise(Vid::UNTAGGED, mac(1), port, sequence, 0);
            assert_eq!(advertised, result, "{sequence} for {port:?}");
            assert_eq!(lookup(&fdb, 1, 0), Some(home), "{sequence} for {port:?}");
        }
        let found = fdb.find(Vid::UNTAGGED, mac(1), 0).unwrap();
        assert_eq!(
            (found.sequence, found.origin),
            (Some(u32::MAX), Origin::Controller)
        );
        insert(&fdb, 1, P2, Origin::Controller).unwrap();
        assert_eq!(fdb.find(Vid::UNTAGGED, mac(1), 0).unwrap().sequence, None);
        insert(&fdb, 1, P2, Origin::Static).unwrap();
        let overruled = fdb.advertise(Vid::UNTAGGED, mac(1), P1, 9, 0);
        assert_eq!(overruled, Err(InsertError::Static));
    }

    #[test]
    fn a_station_that_moved_here_outlives_what_was_said_before() {
        for (name, at_s, sequence, advertised, withdrawn) in [
            (
                "said again",
                1,
                7,
                Err(InsertError::Outdated { known: 7 }),
                false,
            ),
            ("said later", 1, 8, Ok(()), true),
            ("forgotten by then", 101, 0, Ok(()), true),
        ] {
            let fdb = one_bucket(100);
            fdb.advertise(Vid::UNTAGGED, mac(1), P1, 7, 0).unwrap();
            assert_eq!(learn(&fdb, 1, P2, 1), Moved { from: P1 });
            let found = fdb.find(Vid::UNTAGGED, mac(1), 1).unwrap();
            assert_eq!((found.origin, found.sequence), (Origin::Learned, Some(7)));
            assert!(!fdb.withdraw(Vid::UNTAGGED, mac(1), 7), "{name}");

            let result = fdb.advertise(Vid::UNTAGGED, mac(1), P3, sequence, at_s);
            assert_eq!(result, advertised, "{name}");
            let now = fdb.withdraw(Vid::UNTAGGED, mac(1), sequence);
            assert_eq!(now, withdrawn, "{name}");
        }
    }

    #[test]
    fn only_what_was_advertised_till_then_is_withdrawn() {
        let fdb = one_bucket(100);
        for (sequence, withdrawn) in [(4, false), (5, true), (5, false)] {
            if sequence == 4 {
                fdb.advertise(Vid::UNTAGGED, mac(1), P1, 5, 0).unwrap();
            }
            let seen = fdb.withdraw(Vid::UNTAGGED, mac(1), sequence);
            assert_eq!(seen, withdrawn, "{sequence}");
        }
        assert_eq!(lookup(&fdb, 1, 0), None);
        insert(&fdb, 1, P1, Origin::Static).unwrap();
        assert!(
            !fdb.withdraw(Vid::UNTAGGED, mac(1), u32::MAX),
            "not a controller's"
        );
    }

    #[test]
    fn a_number_belongs_to_one_address_and_not_to_its_place() {
        let fdb = one_bucket(100);
        for name in 0..8 {
            fdb.advertise(Vid::UNTAGGED, mac(name), P1, 9, 0).unwrap();
            assert!(fdb.remove(Vid::UNTAGGED, mac(name)));
            assert_eq!(learn(&fdb, name + 10, P2, 0), New);
            let found = fdb.find(Vid::UNTAGGED, mac(name + 10), 0).unwrap();
            assert_eq!(found.sequence, None);
        }
        learn(&fdb, 10, P2, 90);
        assert_eq!(learn(&fdb, 20, P2, 100), New, "in the place of another");
        assert_eq!(
            fdb.find(Vid::UNTAGGED, mac(20), 100).unwrap().sequence,
            None
        );
    }

    #[test]
    fn notes_do_not_return_with_the_generation_of_their_slot() {
        let fdb = one_bucket(100);
        fdb.advertise(Vid::UNTAGGED, mac(1), P1, 9, 0).unwrap();
        let generation = fdb.buckets[0].value(0).generation;
        for _ in 0..8192 {
            assert!(fdb.remove(Vid::UNTAGGED, mac(1)));
            assert_eq!(learn(&fdb, 1, P1, 0), New);
        }
        assert_eq!(fdb.buckets[0].value(0).generation, generation);
        assert_eq!(fdb.find(Vid::UNTAGGED, mac(1), 0).unwrap().sequence, None);
    }

    #[test]
    fn forgets_by_port_by_vlan_and_all() {
        let (seven, eight) = (Vid::new(7).unwrap(), Vid::new(8).unwrap());
        type Forget = fn(&Fdb) -> usize;
        let cases: [(&str, Forget, &[u8]); 4] = [
            ("port 1", |fdb| fdb.forget_port(P1), &[2, 4]),
            (
                "VLAN 7 of port 1",
                |fdb| fdb.forget_port_in(P1, Vid::new(7).unwrap()),
                &[2, 3, 4],
            ),
            (
                "VLAN 7",
                |fdb| fdb.forget_vlan(Vid::new(7).unwrap()),
                &[3, 4],
            ),
            ("all", |fdb| fdb.forget_learned(), &[4]),
        ];
        for (name, forget, left) in cases {
            let fdb = one_bucket(100);
            fdb.learn(seven, mac(1), P1, 0);
            fdb.learn(seven, mac(2), P2, 0);
            fdb.learn(eight, mac(3), P1, 0);
            fdb.insert(seven, mac(4), P1, Origin::Static, 0).unwrap();
            let forgotten = forget(&fdb);
            let mut names: Vec<_> = fdb.entries(0).map(|entry| entry.mac.0[5]).collect();
            names.sort_unstable();
            assert_eq!(names.len() + forgotten, 4, "{name}");
            assert_eq!(names, left, "{name}");
        }
    }

    #[test]
    fn a_large_table_is_read_by_rows() {
        let fdb = Fdb::new(&SwitchConfig::default(), [1, 2]);
        for name in 0..=u8::MAX {
            fdb.learn(Vid::UNTAGGED, mac(name), P1, u32::from(name));
        }
        for (name, origin) in [
            (1, Origin::Static),
            (2, Origin::Static),
            (3, Origin::Controller),
        ] {
            insert(&fdb, name, P2, origin).unwrap();
        }
        let now_s = 310; // the first eleven have been silent for 300 s, of which three are assigned
        let mut read = Vec::new();
        for first in (0..fdb.rows()).step_by(100) {
            let portion = fdb.entries_in(first..first + 100, now_s);
            for entry in portion {
                let row = fdb.row_of(entry.vid, entry.mac);
                assert!((first..first + 100).contains(&row), "{entry:?}");
                read.push(entry);
            }
        }
        assert!(read.iter().copied().eq(fdb.entries(now_s)));
        assert_eq!(fdb.entries_in(fdb.rows()..usize::MAX, now_s).count(), 0);
        let expected = Occupancy {
            places: 16_384,
            learned: 256 - 11,
            fixed: 2,
            controller: 1,
        };
        assert_eq!(fdb.occupancy(now_s), expected);
        assert_eq!(read.len(), 256 - 11 + 3);
    }

    #[test]
    fn two_entries_for_one_address_become_one() {
        let fdb = one_bucket(100);
        let (bucket, key) = (&fdb.buckets[0], Key::new(Vid::UNTAGGED, mac(1)));
        // As two threads do that looked at the same moment and found nothing.
        for (slot, origin, port) in [
            (5, Origin::Learned, P1),
            (3, Origin::Learned, P2),
            (6, Origin::Static, P1),
        ] {
            let wanted = Assignment {
                port,
                origin,
                sequence: None,
                now_s: 0,
            };
            assert!(fdb.fill(bucket, slot, bucket.value(slot), key, wanted));
            let held: Vec<_> = bucket
                .find_all(key)
                .map(|(slot, value)| (slot, value.port))
                .collect();
            assert_eq!(held, [(slot, port)]);
        }
        assert_eq!(fdb.learned_on[1].load(Relaxed), 0);
        assert_eq!(fdb.learned_on[2].load(Relaxed), 0);
    }

    #[test]
    fn spreads_any_addresses_over_all_buckets() {
        for (pattern, varying) in [("counted up", [3, 4, 5]), ("aimed at low bits", [1, 2, 3])] {
            let fdb = Fdb::new(&SwitchConfig::default(), [1, 2]);
            for name in 0..4096u32 {
                let mut mac = MacAddr([2, 0, 0, 0, 0, 0]);
                for (at, byte) in varying.into_iter().zip(&name.to_be_bytes()[1..]) {
                    mac.0[at] = *byte;
                }
                fdb.learn(Vid::UNTAGGED, mac, PortId::TAP, 0);
            }
            // The figure in the doc of `fdb_capacity`: one in fifty at half the capacity.
            assert!(
                fdb.counters().full < 4096 / 50,
                "{pattern}: {:?}",
                fdb.counters()
            );
        }
    }

    #[test]
    fn an_address_takes_as_much_memory_as_the_docs_say() {
        let bytes = size_of::<Bucket>() + size_of::<Notes>();
        assert_eq!(
            bytes,
            32 * WAYS,
            "see `SwitchConfig::fdb_capacity`, and `capacity` in docs/configuration.md"
        );
    }

    #[test]
    fn capacity_is_rounded_up_to_whole_buckets() {
        for (configured, slots) in [
            (0, 8),
            (8, 8),
            (9, 16),
            (8192, 8192),
            (8193, 16384),
            (usize::MAX, Fdb::MAX_CAPACITY),
        ] {
            let config = SwitchConfig {
                fdb_capacity: configured,
                ..SwitchConfig::default()
            };
            let fdb = Fdb::new(&config, [0, 0]);
            assert_eq!(fdb.buckets.len() * WAYS, slots, "{configured}");
        }
    }

    /// Room for eight, so that every address competes with every other.
    fn one_bucket(ageing_s: u32) -> Fdb {
        let config = SwitchConfig {
            fdb_capacity: 8,
            ageing_s,
            ..SwitchConfig::default()
        };
        Fdb::new(&config, [0, 0])
    }

    fn mac(name: u8) -> MacAddr {
        MacAddr([2, 0, 0, 0, 0, name])
    }

    fn learn(fdb: &Fdb, name: u8, port: PortId, now_s: u32) -> Learning {
        fdb.learn(Vid::UNTAGGED, mac(name), port, now_s)
    }

    fn lookup(fdb: &Fdb, name: u8, now_s: u32) -> Option<PortId> {
        fdb.lookup(Vid::UNTAGGED, mac(name), now_s)
    }

    fn insert(fdb: &Fdb, name: u8, port: PortId, origin: Origin) -> Result<(), InsertError> {
        fdb.insert(Vid::UNTAGGED, mac(name), port, origin, 0)
    }
}
