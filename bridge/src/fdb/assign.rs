// SPDX-License-Identifier: MIT OR Apache-2.0
//! Assigned addresses, as opposed to learned ones: by the configuration, or by a controller under a
//! sequence number that says which of its advertisements is the latest.
//!
//! Called by the control thread, while the data threads go on.

use super::bucket::{Bucket, Key, State, Value, WAYS};
use super::entry::{InsertError, Origin};
use super::table::{Assignment, Fdb};
use crate::mac::MacAddr;
use crate::port_id::PortId;
use crate::vlan::Vid;

impl Fdb {
    /// Assigns the address to `port`, on behalf of the configuration or of a controller.
    ///
    /// If no other slot is free, it replaces a learned address: an assignment is intended, a
    /// learned address only observed. With [`Origin::Learned`] it ages as if a frame had been seen
    /// at `now_s`.
    ///
    /// # Errors
    /// If assigned addresses hold all its slots, or the configuration holds this address.
    pub fn insert(
        &self,
        vid: Vid,
        mac: MacAddr,
        port: PortId,
        origin: Origin,
        now_s: u32,
    ) -> Result<(), InsertError> {
        let wanted = Assignment {
            port,
            origin,
            sequence: None,
            now_s,
        };
        self.assign(Key::new(vid, mac), wanted)
    }

    /// Assigns the address to `port` as a controller advertises it under this sequence number: of
    /// two advertisements the one with the higher number is the later (RFC 7432, section 15).
    ///
    /// The number is kept when a frame moves the address here; the controller then advertises it
    /// for this node under the next number, and its earlier advertisement does not return.
    ///
    /// One thread must do this for any one address, or either number may remain.
    ///
    /// # Errors
    /// If a later number is known, assigned addresses hold all its slots, or the configuration
    /// holds this address.
    pub fn advertise(
        &self,
        vid: Vid,
        mac: MacAddr,
        port: PortId,
        sequence: u32,
        now_s: u32,
    ) -> Result<(), InsertError> {
        let wanted = Assignment {
            port,
            origin: Origin::Controller,
            sequence: Some(sequence),
            now_s,
        };
        self.assign(Key::new(vid, mac), wanted)
    }

    /// Withdraws what a controller advertised under this sequence number or an earlier one, and
    /// returns whether that was still in force. An address that a frame has moved since then stays.
    pub fn withdraw(&self, vid: Vid, mac: MacAddr, sequence: u32) -> bool {
        let key = Key::new(vid, mac);
        let (bucket, histories) = (self.bucket(key), self.histories(key));
        while let Some((slot, held)) = bucket.find(key) {
            let known = histories.sequence(slot, held);
            let stands = held.state == State::Held(Origin::Controller);
            if !stands || known.is_none_or(|known| known > sequence) {
                return false;
            }
            if self.replace(bucket, slot, held, held.vacated()) {
                return true;
            }
        }
        false
    }

    fn assign(&self, key: Key, wanted: Assignment) -> Result<(), InsertError> {
        loop {
            // Another thread was quicker, which needs a new second or a new port each time: a
            // second round is rare and a third practically never happens. The data threads do not
            // wait for this one.
            if let Some(result) = self.try_insert(key, wanted) {
                return result;
            }
        }
    }

    /// Removes the address, whatever its origin, and returns whether it was known.
    pub fn remove(&self, vid: Vid, mac: MacAddr) -> bool {
        let key = Key::new(vid, mac);
        let bucket = self.bucket(key);
        let mut known = false;
        while let Some((slot, held)) = bucket.find(key) {
            known |= self.replace(bucket, slot, held, held.vacated());
        }
        known
    }

    /// One attempt; `None` if another thread changed the slot meanwhile.
    fn try_insert(&self, key: Key, wanted: Assignment) -> Option<Result<(), InsertError>> {
        let bucket = self.bucket(key);
        let done = match bucket.find(key) {
            Some((_, held)) if held.state == State::Held(Origin::Static) && !wanted.is_static() => {
                return Some(Err(InsertError::Static));
            }
            Some((slot, held)) => {
                let known = self.histories(key).sequence(slot, held);
                let known = known.filter(|_| !self.is_expired(held, wanted.now_s));
                if let Some(error) = wanted.outdated_by(known, held.port) {
                    return Some(Err(error));
                }
                let new = wanted.value(held.generation);
                let done = self.replace(bucket, slot, held, new);
                if done {
                    self.histories(key).reset(slot);
                    self.histories(key).set_sequence(slot, new, wanted.sequence);
                }
                done
            }
            None => {
                let Some((slot, victim)) = self.weakest(bucket, wanted.now_s) else {
                    return Some(Err(InsertError::Full));
                };
                self.fill(bucket, slot, victim, key, wanted)
            }
        };
        done.then_some(Ok(()))
    }

    /// The slot of a bucket that is missed least: a vacant one, or else the learned address that
    /// has been silent for longest.
    fn weakest(&self, bucket: &Bucket, now_s: u32) -> Option<(usize, Value)> {
        (0..WAYS)
            .map(|slot| (slot, bucket.value(slot)))
            .filter(|(_, value)| value.state == State::Vacant || value.is_learned())
            .max_by_key(|&(_, value)| (value.state == State::Vacant, value.age_s(now_s)))
    }
}

impl Assignment {
    fn is_static(self) -> bool {
        self.origin == Origin::Static
    }

    /// The error, if the address was last advertised under number `known` and is now on port `on`.
    fn outdated_by(self, known: Option<u32>, on: PortId) -> Option<InsertError> {
        let (known, wanted) = (known?, self.sequence?);
        let is_later = wanted > known || (wanted == known && self.port == on);
        (!is_later).then_some(InsertError::Outdated { known })
    }
}
