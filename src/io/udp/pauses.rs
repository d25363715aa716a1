// SPDX-License-Identifier: MIT OR Apache-2.0
//! Destinations for which segmentation offload does not work at the moment: a small table.
//!
//! Whether it works depends on the outgoing interface, so it is recorded for each destination, and
//! only for a while, because routes change. Time is an argument. [`super::UdpSocket`] calls this,
//! from all threads that share the socket; nothing here locks.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// How long a destination does without it.
const PAUSE_S: u32 = 60;

/// A pause begins after this many failures in a row that might each have been about one train.
const STRIKES: u8 = 3;

/// Destinations with an entry at the same time. Two that share a slot displace each other, which
/// costs failed attempts and nothing else.
const SLOTS: usize = 256;

/// Entries about destinations, one in each slot.
#[derive(Debug)]
pub(super) struct Pauses {
    /// 24 bits that distinguish destinations, 8 of strikes, 32 of the second after `start` in which
    /// the entry expires. An entry without strikes is empty.
    slots: [AtomicU64; SLOTS],
    start: Instant,
}

#[derive(Clone, Copy)]
struct Entry {
    strikes: u8,
    expires_s: u32,
}

/// The slot of a destination's entry, and the bits by which it is recognised.
#[derive(Clone, Copy)]
pub(super) struct Key {
    index: usize,
    tag: u64,
}

impl Key {
    /// Ports and flow labels do not matter for the route of datagrams; the scope does.
    pub(super) fn of(to: SocketAddr) -> Self {
        let (address, scope) = match to {
            SocketAddr::V4(v4) => (v4.ip().to_ipv6_mapped(), 0),
            SocketAddr::V6(v6) => (*v6.ip(), v6.scope_id()),
        };
        let (high, low) = ((address.to_bits() >> 64) as u64, address.to_bits() as u64);
        // Fibonacci hashing: the upper bits of the product depend on all bits of the factor.
        const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;
        let high = (high ^ u64::from(scope))
            .wrapping_mul(GOLDEN)
            .rotate_left(32);
        let hash = (high ^ low).wrapping_mul(GOLDEN);
        Self {
            index: (hash >> 56) as usize % SLOTS,
            tag: hash >> 32 & 0xff_ffff,
        }
    }
}

impl Pauses {
    /// A table without entries.
    pub(super) fn new(start: Instant) -> Self {
        Self {
            slots: [const { AtomicU64::new(0) }; SLOTS],
            start,
        }
    }

    /// Whether the destination does without it for now. The clock is read only if it may.
    pub(super) fn includes(&self, key: Key, now: impl FnOnce() -> Instant) -> bool {
        self.entry(key)
            .is_some_and(|entry| entry.strikes >= STRIKES && self.seconds(now()) < entry.expires_s)
    }

    /// Pauses the destination from now on.
    pub(super) fn begin(&self, key: Key, now: Instant) {
        self.put(key, STRIKES, self.seconds(now));
    }

    /// Records a failure; the last of [`STRIKES`] in a row begins a pause.
    pub(super) fn strike(&self, key: Key, now: Instant) {
        let now_s = self.seconds(now);
        let earlier = self.entry(key).filter(|entry| now_s < entry.expires_s);
        let strikes = earlier.map_or(0, |entry| entry.strikes).saturating_add(1);
        self.put(key, strikes, now_s);
    }

    /// Clears the failures of a destination: it works.
    pub(super) fn end(&self, key: Key) {
        if self.entry(key).is_some() {
            self.slots[key.index].store(0, Ordering::Relaxed);
        }
    }

    fn entry(&self, key: Key) -> Option<Entry> {
        let bits = self.slots[key.index].load(Ordering::Relaxed);
        let entry = Entry {
            strikes: (bits >> 32) as u8,
            expires_s: bits as u32,
        };
        (entry.strikes > 0 && bits >> 40 == key.tag).then_some(entry)
    }

    fn put(&self, key: Key, strikes: u8, now_s: u32) {
        let expires_s = now_s.saturating_add(PAUSE_S);
        let bits = key.tag << 40 | u64::from(strikes) << 32 | u64::from(expires_s);
        self.slots[key.index].store(bits, Ordering::Relaxed);
    }

    fn seconds(&self, now: Instant) -> u32 {
        now.saturating_duration_since(self.start).as_secs() as u32
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::time::Duration;

    use super::*;

    fn key(to: &str) -> Key {
        Key::of(to.parse().unwrap())
    }

    #[test]
    fn a_pause_lasts_so_long_and_concerns_one_address() {
        let pauses = Pauses::new(Instant::now());
        let at = |s| pauses.start + Duration::from_secs(s);
        let here = key("192.0.2.1:1");
        pauses.begin(here, at(100));
        for (to, now_s, verdict) in [
            ("192.0.2.1:1", 100, true),
            ("192.0.2.1:2", 159, true),
            ("[::ffff:192.0.2.1]:1", 159, true),
            ("192.0.2.1:1", 160, false),
            ("192.0.2.2:1", 100, false),
            ("[2001:db8::1]:1", 100, false),
        ] {
            let is_paused = pauses.includes(key(to), || at(now_s));
            assert_eq!(is_paused, verdict, "{to} {now_s}");
        }
        pauses.end(key("192.0.2.2:1"));
        assert!(pauses.includes(here, || at(100)));
        pauses.end(here);
        assert!(!pauses.includes(here, || at(100)));
    }

    #[test]
    fn failures_in_a_row_begin_a_pause() {
        let (pauses, here) = (Pauses::new(Instant::now()), key("[2001:db8::1]:1"));
        let at = |s| pauses.start + Duration::from_secs(s);
        let is_paused = |s| pauses.includes(here, || at(s));
        pauses.strike(here, at(0));
        pauses.strike(here, at(0));
        pauses.end(here);
        for now_s in [0, 59] {
            pauses.strike(here, at(now_s));
            assert!(!is_paused(now_s), "{now_s}");
        }
        pauses.strike(here, at(118));
        assert!(is_paused(118) && is_paused(177) && !is_paused(178));
        // An expired entry does not count.
        pauses.strike(here, at(178));
        assert!(!is_paused(178));
    }

    #[test]
    fn the_clock_is_not_read_without_a_pause() {
        let (pauses, here) = (Pauses::new(Instant::now()), key("192.0.2.1:1"));
        pauses.strike(here, pauses.start);
        assert!(!pauses.includes(here, || unreachable!("nothing is paused")));
    }

    #[test]
    fn neighbours_have_places_of_their_own() {
        let networks: [fn(u32) -> String; 3] = [
            |host| format!("10.0.0.{host}:1"),
            |host| format!("[2001:db8::{host:x}]:1"),
            |host| format!("[fe80::1%{host}]:1"),
        ];
        for network in networks {
            let slots: HashSet<_> = (1..=64).map(|host| key(&network(host)).index).collect();
            assert!(slots.len() > 48, "{}: {} of 64", network(1), slots.len());
        }
    }
}
