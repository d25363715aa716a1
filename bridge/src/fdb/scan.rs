// SPDX-License-Identifier: MIT OR Apache-2.0
//! Scans of the table: its contents as a whole, by buckets, or as counts.
//!
//! Called by the control thread, while the data threads go on: each entry was true when it was
//! read, and a list of them is no snapshot.

use core::ops::Range;

use super::bucket::{Key, State, Value, WAYS};
use super::entry::{Entry, Occupancy, Origin};
use super::table::Fdb;
use crate::mac::MacAddr;
use crate::vlan::Vid;

impl Fdb {
    /// The entry of an address.
    pub fn find(&self, vid: Vid, mac: MacAddr, now_s: u32) -> Option<Entry> {
        let key = Key::new(vid, mac);
        let (slot, held) = self.bucket(key).find(key)?;
        self.entry(self.place(key), slot, (key, held), now_s)
    }

    /// Every address that is known at `now_s`, in no particular order.
    pub fn entries(&self, now_s: u32) -> impl Iterator<Item = Entry> + '_ {
        self.entries_in(0..self.buckets(), now_s)
    }

    /// The same for these buckets only, so that a large table can be read in batches. Buckets
    /// beyond the last hold nothing.
    pub fn entries_in(
        &self,
        buckets: Range<usize>,
        now_s: u32,
    ) -> impl Iterator<Item = Entry> + '_ {
        let buckets = buckets.start..buckets.end.min(self.buckets());
        let slots = buckets.flat_map(|bucket| (0..WAYS).map(move |slot| (bucket, slot)));
        slots.filter_map(move |(bucket, slot)| {
            let held = self.buckets[bucket].held(slot)?;
            self.entry(bucket, slot, held, now_s)
        })
    }

    /// How many buckets there are, of eight slots each.
    pub fn buckets(&self) -> usize {
        self.buckets.len()
    }

    /// The only bucket in which this address can be, as long as the table lives.
    pub fn bucket_of(&self, vid: Vid, mac: MacAddr) -> usize {
        self.place(Key::new(vid, mac))
    }

    /// How much of the table is in use at `now_s`, by origin.
    pub fn occupancy(&self, now_s: u32) -> Occupancy {
        let mut occupancy = Occupancy {
            places: self.buckets() * WAYS,
            ..Occupancy::default()
        };
        // The values alone: half of what a list would read.
        let values = self.buckets.iter().flat_map(|bucket| {
            let values = (0..WAYS).map(|slot| bucket.value(slot));
            values.filter(|value| !self.is_expired(*value, now_s))
        });
        for value in values {
            match value.state {
                State::Held(Origin::Static) => occupancy.fixed += 1,
                State::Held(Origin::Learned) | State::Bound => occupancy.learned += 1,
                State::Held(Origin::Controller) => occupancy.controller += 1,
                State::Vacant | State::Claimed => {}
            }
        }
        occupancy
    }

    /// The entry in a slot; `None` if the slot holds no address any more.
    fn entry(
        &self,
        bucket: usize,
        slot: usize,
        (key, held): (Key, Value),
        now_s: u32,
    ) -> Option<Entry> {
        let origin = match held.state {
            State::Held(origin) => origin,
            State::Bound => Origin::Learned,
            State::Vacant | State::Claimed => return None,
        };
        if self.is_expired(held, now_s) {
            return None;
        }
        let histories = &self.histories[bucket];
        Some(Entry {
            vid: key.vid(),
            mac: key.mac(),
            port: held.port,
            age_s: held.age_s(now_s),
            origin,
            sequence: histories.sequence(slot, held),
            dampened: histories
                .history(slot)
                .is_dampened(held, now_s, self.dampening_s),
            bound: held.is_bound(),
        })
    }
}
