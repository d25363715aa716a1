// SPDX-License-Identifier: MIT OR Apache-2.0
//! The table: its buckets, and the changes of a slot.
//!
//! Called by the rest of [`fdb`](super), which decides what to change.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::sync::atomic::Ordering::Relaxed;

use super::bucket::{Bucket, Key, State, Value, WAYS};
use super::entry::{FdbCounters, Origin};
use super::hash::siphash13;
use super::history::Histories;
use super::moves::{Move, MoveLog};
use crate::config::SwitchConfig;
use crate::mac::MacAddr;
use crate::port_id::PortId;
use crate::sync::{AtomicI32, AtomicU64, IS_MODEL};
use crate::vlan::Vid;

/// The highest number of a port.
const PORTS: u16 = if IS_MODEL { 3 } else { u16::MAX };

/// A bounded table of addresses, shared by every thread.
#[derive(Debug)]
pub struct Fdb {
    pub(super) buckets: Box<[Bucket]>,
    /// For each bucket; kept apart, because frames of stations that stay in place do not need them.
    pub(super) histories: Box<[Histories]>,
    pub(super) log: MoveLog,
    pub(super) hash_key: [u64; 2],
    pub(super) ageing_s: u32,
    pub(super) dampening_s: u32,
    pub(super) max_per_port: usize,
    /// Learned addresses on each port that an id can name, 256 KiB; expired ones count until their
    /// slot is needed.
    pub(super) learned_on: Box<[AtomicI32]>,
    pub(super) learned: AtomicU64,
    pub(super) moved: AtomicU64,
    pub(super) dampened: AtomicU64,
    pub(super) limited: AtomicU64,
    pub(super) full: AtomicU64,
}

impl Fdb {
    /// The largest capacity; a larger one in the configuration means this.
    pub const MAX_CAPACITY: usize = SwitchConfig::MAX_FDB_CAPACITY;

    /// An empty table.
    ///
    /// `hash_key` must be random and secret, or else a sender can choose addresses that hash to one
    /// bucket and so keep those of others from being learned.
    pub fn new(config: &SwitchConfig, hash_key: [u64; 2]) -> Self {
        let capacity = config.fdb_capacity.clamp(WAYS, Self::MAX_CAPACITY);
        let buckets = capacity.div_ceil(WAYS).next_power_of_two();
        Self {
            buckets: (0..buckets).map(|_| Bucket::default()).collect(),
            histories: (0..buckets).map(|_| Histories::default()).collect(),
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

    /// The port behind which the address is, if that is known and not too old.
    pub fn lookup(&self, vid: Vid, mac: MacAddr, now_s: u32) -> Option<PortId> {
        let key = Key::new(vid, mac);
        let (_, held) = self.bucket(key).find(key)?;
        let is_there = !held.is_bound() && !self.is_expired(held, now_s);
        is_there.then_some(held.port)
    }

    /// The last 32 moves of addresses from port to port, the oldest first.
    ///
    /// While many addresses move at once some moves are missing; those that are listed are true.
    pub fn last_moves(&self) -> Vec<Move> {
        self.log.read()
    }

    /// The counters of learning.
    pub fn counters(&self) -> FdbCounters {
        FdbCounters {
            learned: self.learned.load(Relaxed),
            moved: self.moved.load(Relaxed),
            dampened: self.dampened.load(Relaxed),
            limited: self.limited.load(Relaxed),
            full: self.full.load(Relaxed),
        }
    }

    /// Gives a slot to `key`, unless the slot has changed since it held `free`.
    pub(super) fn fill(
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
        let histories = self.histories(key);
        // Old histories are of another generation, until that returns after 8192 claims.
        histories.reset(slot);
        if wanted.sequence.is_some() {
            histories.set_sequence(slot, value, wanted.sequence);
        }
        // Counted before it is published: a thread that removes it must find it counted.
        self.account(claimed, value);
        bucket.publish(slot, key, value);
        self.drop_duplicates(bucket, key);
        true
    }

    /// Leaves one entry for `key` after two threads have inserted it at once.
    ///
    /// Both threads see the same two entries, or one of them sees two, and both keep the same: an
    /// assigned one, or else the first. If a duplicate is refreshed at this moment it survives,
    /// which is harmless: its port was learned like the other's, searches stop at the first, and so
    /// it ages.
    fn drop_duplicates(&self, bucket: &Bucket, key: Key) {
        let rank = |&(slot, held): &(usize, Value)| (held.is_learned(), slot);
        // In one pass: an entry that was not seen beside the one that is kept may be the one that
        // other threads keep.
        let mut kept: Option<(usize, Value)> = None;
        for entry in bucket.find_all(key) {
            let Some(known) = kept.replace(entry) else {
                continue;
            };
            let (first, (slot, held)) = match rank(&known) < rank(&entry) {
                true => (known, entry),
                false => (entry, known),
            };
            kept = Some(first);
            let _ = self.replace(bucket, slot, held, held.vacated());
        }
    }

    /// Every change of a value goes through here or `fill`, so that the counts per port are exact.
    pub(super) fn replace(&self, bucket: &Bucket, slot: usize, old: Value, new: Value) -> bool {
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

    pub(super) fn is_expired(&self, value: Value, now_s: u32) -> bool {
        value.is_learned() && value.age_s(now_s) >= self.ageing_s
    }

    #[inline]
    pub(super) fn bucket(&self, key: Key) -> &Bucket {
        &self.buckets[self.place(key)]
    }

    pub(super) fn histories(&self, key: Key) -> &Histories {
        &self.histories[self.place(key)]
    }

    #[inline]
    pub(super) fn place(&self, key: Key) -> usize {
        siphash13(self.hash_key, key.bits()) as usize & (self.buckets.len() - 1)
    }
}

/// An address's port, and the source of that assignment.
#[derive(Clone, Copy)]
pub(super) struct Assignment {
    pub(super) port: PortId,
    pub(super) origin: Origin,
    pub(super) sequence: Option<u32>,
    pub(super) now_s: u32,
}

impl Assignment {
    pub(super) fn value(self, generation: u16) -> Value {
        let state = State::Held(self.origin);
        Value {
            state,
            generation,
            port: self.port,
            seen_s: self.now_s,
        }
    }
}
