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
//! Called by [`Switch`](crate::Switch) for each frame, and by the control thread for the rest.

mod bucket;
mod hash;

use alloc::boxed::Box;
use core::error::Error;
use core::fmt;
use core::sync::atomic::Ordering::Relaxed;
use core::sync::atomic::{AtomicI32, AtomicU64};

use self::bucket::{Bucket, Key, State, Value, WAYS};
use self::hash::siphash13;
use crate::forward::SwitchConfig;
use crate::mac::MacAddr;
use crate::port::PortId;
use crate::vlan::Vid;

/// A bounded table of addresses, shared by every thread.
#[derive(Debug)]
pub struct Fdb {
    buckets: Box<[Bucket]>,
    hash_key: [u64; 2],
    ageing_s: u32,
    max_per_port: usize,
    /// Learned addresses per port, expired ones included until their place is needed.
    learned_on: Box<[AtomicI32]>,
    learned: AtomicU64,
    moved: AtomicU64,
    limited: AtomicU64,
    full: AtomicU64,
}

impl Fdb {
    /// The largest capacity; a larger one in the configuration means this.
    pub const MAX_CAPACITY: usize = 1 << 20;

    /// An empty table.
    ///
    /// `hash_key` must be random and secret, or else a sender can choose addresses that fall on one
    /// bucket and so keep those of others from being learned.
    pub fn new(config: &SwitchConfig, hash_key: [u64; 2]) -> Self {
        let capacity = config.fdb_capacity.clamp(WAYS, Self::MAX_CAPACITY);
        let buckets = capacity.div_ceil(WAYS).next_power_of_two();
        Self {
            buckets: (0..buckets).map(|_| Bucket::default()).collect(),
            hash_key,
            ageing_s: config.ageing_s,
            max_per_port: config.max_per_port,
            learned_on: (0..=u16::MAX).map(|_| AtomicI32::new(0)).collect(),
            learned: AtomicU64::new(0),
            moved: AtomicU64::new(0),
            limited: AtomicU64::new(0),
            full: AtomicU64::new(0),
        }
    }

    /// The port behind which the address lives, if that is known and not too old.
    pub fn lookup(&self, vid: Vid, mac: MacAddr, now_s: u32) -> Option<PortId> {
        let key = Key::new(vid, mac);
        let (_, held) = self.bucket(key).find(key)?;
        (!self.is_expired(held, now_s)).then_some(held.port)
    }

    /// Notes that a frame with this source came in by `port`.
    pub fn learn(&self, vid: Vid, mac: MacAddr, port: PortId, now_s: u32) -> Learning {
        let key = Key::new(vid, mac);
        let learning = match self.bucket(key).find(key) {
            Some((slot, held)) => self.refresh(key, slot, held, port, now_s),
            None => self.add(key, port, now_s),
        };
        self.count(learning);
        learning
    }

    /// Assigns the address to `port`, on behalf of the configuration or of a controller.
    ///
    /// It takes the place of a learned address if there is no other, for it is wanted and the other
    /// was only seen. With [`Origin::Learned`] it ages as if a frame had been seen at `now_s`.
    ///
    /// # Errors
    /// If the place belongs to assigned addresses, or this address to the configuration.
    pub fn insert(
        &self,
        vid: Vid,
        mac: MacAddr,
        port: PortId,
        origin: Origin,
        now_s: u32,
    ) -> Result<(), InsertError> {
        let key = Key::new(vid, mac);
        let wanted = Assignment { port, origin, now_s };
        loop {
            // Another thread was quicker. It has then changed this very bucket, so this ends as soon
            // as the data threads take a breath; they in turn never wait for us.
            if let Some(result) = self.try_insert(key, wanted) {
                return result;
            }
        }
    }

    /// Forgets the address, whatever its origin, and says whether it was known.
    pub fn remove(&self, vid: Vid, mac: MacAddr) -> bool {
        let key = Key::new(vid, mac);
        let bucket = self.bucket(key);
        let mut known = false;
        while let Some((slot, held)) = bucket.find(key) {
            known |= self.replace(bucket, slot, held, held.vacated());
        }
        known
    }

    /// Forgets what was learned on `port`; assigned addresses stay until whoever assigned them
    /// removes them.
    ///
    /// A frame of that port which another thread has in hand may be learned right after. That is
    /// true, if late, and it ages.
    pub fn forget_port(&self, port: PortId) {
        for bucket in &self.buckets {
            for slot in 0..WAYS {
                let mut held = bucket.value(slot);
                while held.is_learned() && held.port == port {
                    if self.replace(bucket, slot, held, held.vacated()) {
                        break;
                    }
                    held = bucket.value(slot);
                }
            }
        }
    }

    /// Every address that is known at `now_s`, in no particular order.
    ///
    /// Each entry was true when it was read. The list as a whole is no snapshot: the data threads go
    /// on while it is made.
    pub fn entries(&self, now_s: u32) -> impl Iterator<Item = Entry> + '_ {
        self.buckets
            .iter()
            .flat_map(|bucket| (0..WAYS).filter_map(|slot| bucket.held(slot)))
            .filter(move |&(_, held)| !self.is_expired(held, now_s))
            .filter_map(move |(key, held)| {
                let State::Held(origin) = held.state else { return None };
                let age_s = age_s(held, now_s);
                Some(Entry { vid: key.vid(), mac: key.mac(), port: held.port, age_s, origin })
            })
    }

    /// How often learning did something worth counting.
    pub fn counters(&self) -> FdbCounters {
        FdbCounters {
            learned: self.learned.load(Relaxed),
            moved: self.moved.load(Relaxed),
            limited: self.limited.load(Relaxed),
            full: self.full.load(Relaxed),
        }
    }

    fn refresh(
        &self,
        key: Key,
        slot: usize,
        held: Value,
        port: PortId,
        now_s: u32,
    ) -> Learning {
        let moves = held.port != port;
        match held.state {
            State::Held(Origin::Static) if moves => return Learning::Pinned,
            State::Held(Origin::Static | Origin::Controller) if !moves => return Learning::Known,
            _ => {}
        }
        // Most frames end here, and leave the line to the readers: an entry is written once a second
        // at most. A thread whose clock is behind must not turn an entry back, or two threads would
        // write it in turns.
        if !moves && !is_later(now_s, held.seen_s) {
            return Learning::Known;
        }
        let seen_s = if is_later(now_s, held.seen_s) { now_s } else { held.seen_s };
        let refreshed = Value { state: State::Held(Origin::Learned), port, seen_s, ..held };
        if !self.replace(self.bucket(key), slot, held, refreshed) {
            return Learning::Raced;
        }
        match held.port {
            _ if self.is_expired(held, now_s) => Learning::New,
            from if moves => Learning::Moved { from },
            _ => Learning::Known,
        }
    }

    fn add(&self, key: Key, port: PortId, now_s: u32) -> Learning {
        let bucket = self.bucket(key);
        let at_limit = self.is_at_limit(port);
        let slots = (0..WAYS).map(|slot| (slot, bucket.value(slot)));
        let place = slots.into_iter().find(|&(_, value)| match value.state {
            State::Vacant => !at_limit,
            // At its limit a port may still replace what it has outlived, or else a flood of forged
            // sources would keep it from learning for good.
            State::Held(_) => self.is_expired(value, now_s) && (!at_limit || value.port == port),
            State::Claimed => false,
        });
        let Some((slot, free)) = place else {
            return if at_limit { Learning::Limited } else { Learning::Full };
        };
        let learned = Assignment { port, origin: Origin::Learned, now_s };
        if self.fill(bucket, slot, free, key, learned) { Learning::New } else { Learning::Raced }
    }

    /// One attempt; `None` if another thread changed the slot meanwhile.
    fn try_insert(&self, key: Key, wanted: Assignment) -> Option<Result<(), InsertError>> {
        let bucket = self.bucket(key);
        let done = match bucket.find(key) {
            Some((_, held)) if held.state == State::Held(Origin::Static) && !wanted.is_static() => {
                return Some(Err(InsertError::Static));
            }
            Some((slot, held)) => self.replace(bucket, slot, held, wanted.value(held.generation)),
            None => {
                let Some((slot, victim)) = self.weakest(bucket, wanted.now_s) else {
                    return Some(Err(InsertError::Full));
                };
                self.fill(bucket, slot, victim, key, wanted)
            }
        };
        done.then_some(Ok(()))
    }

    /// The slot of a bucket that is missed least: a vacant one, or else the learned address that has
    /// been silent for longest.
    fn weakest(&self, bucket: &Bucket, now_s: u32) -> Option<(usize, Value)> {
        (0..WAYS)
            .map(|slot| (slot, bucket.value(slot)))
            .filter(|(_, value)| value.state == State::Vacant || value.is_learned())
            .max_by_key(|&(_, value)| (value.state == State::Vacant, age_s(value, now_s)))
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
        let kept = bucket.find_all(key).min_by_key(|&(slot, held)| (held.is_learned(), slot));
        for (slot, held) in bucket.find_all(key) {
            if kept.is_some_and(|(kept, _)| kept != slot) {
                let _ = self.replace(bucket, slot, held, held.vacated());
            }
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
        let hash = siphash13(self.hash_key, key.bits()) as usize;
        &self.buckets[hash & (self.buckets.len() - 1)]
    }

    fn count(&self, learning: Learning) {
        let counter = match learning {
            Learning::New => &self.learned,
            Learning::Moved { .. } => &self.moved,
            Learning::Limited => &self.limited,
            Learning::Full => &self.full,
            Learning::Known | Learning::Pinned | Learning::Raced => return,
        };
        counter.fetch_add(1, Relaxed);
    }
}

/// Who put an address into the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Origin {
    /// The configuration: neither ages nor moves.
    Static,
    /// A frame: ages, and moves with its station.
    Learned,
    /// A control plane: does not age, but a frame from another port takes it over, for then the
    /// station has moved here and it is for the controller to tell the others.
    Controller,
}

/// An address in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// VLAN.
    pub vid: Vid,
    /// Address.
    pub mac: MacAddr,
    /// Where it lives.
    pub port: PortId,
    /// Seconds since it was last seen, or assigned.
    pub age_s: u32,
    /// Who put it there.
    pub origin: Origin,
}

/// What became of an address that was to be learned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Learning {
    /// It was not known, or no longer.
    New,
    /// It was known on this port.
    Known,
    /// It was known on another port.
    Moved {
        /// The port it left.
        from: PortId,
    },
    /// The configuration has it on another port, where it stays.
    Pinned,
    /// The port has as many addresses as it may.
    Limited,
    /// The bucket has no place left.
    Full,
    /// Another thread changed the entry at this moment; the next frame tries again.
    Raced,
}

/// What the table has counted since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FdbCounters {
    /// Addresses learned that were not known.
    pub learned: u64,
    /// Addresses that turned up on another port.
    pub moved: u64,
    /// Frames whose source was not learned: local limit, too many addresses on the port.
    pub limited: u64,
    /// Frames whose source was not learned: local limit, no place in the bucket.
    pub full: u64,
}

/// Why an address cannot be assigned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum InsertError {
    /// All its places are taken by assigned addresses.
    Full,
    /// The configuration assigns it, and outranks everyone.
    Static,
}

impl fmt::Display for InsertError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Full => "every place for this address is taken by another assigned address",
            Self::Static => "the configuration assigns this address",
        })
    }
}

impl Error for InsertError {}

/// Where an address shall live, and on whose word.
#[derive(Clone, Copy)]
struct Assignment {
    port: PortId,
    origin: Origin,
    now_s: u32,
}

impl Assignment {
    fn is_static(self) -> bool {
        self.origin == Origin::Static
    }

    fn value(self, generation: u16) -> Value {
        let state = State::Held(self.origin);
        Value { state, generation, port: self.port, seen_s: self.now_s }
    }
}

/// Whether `now_s` is after `seen_s` on a clock that wraps: at most half a turn, 68 years, ahead.
fn is_later(now_s: u32, seen_s: u32) -> bool {
    now_s.wrapping_sub(seen_s).cast_signed() > 0
}

/// Zero if `now_s` is the earlier of the two: a thread whose clock is a little behind sees an entry
/// from its future, which is as fresh as can be.
fn age_s(value: Value, now_s: u32) -> u32 {
    if is_later(now_s, value.seen_s) { now_s.wrapping_sub(value.seen_s) } else { 0 }
}
