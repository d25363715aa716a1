// SPDX-License-Identifier: MIT OR Apache-2.0
//! The promise of the forwarding database under races: no look-up ever returns a port on which the
//! address was not learned, however often slots change hands meanwhile.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::thread;

use patchcord_bridge::fdb::Origin;
use patchcord_bridge::{Fdb, MacAddr, PortId, SwitchConfig, Vid};

/// Many more addresses than the eight places of the table: nearly every frame gives a slot away.
const NAMES: u64 = 64;
const ROUNDS: u32 = 300_000;

#[test]
fn no_lookup_returns_a_port_that_never_learned_the_address() {
    let world = World::new();
    thread::scope(|scope| {
        for seed in [3, 4] {
            let world = &world;
            scope.spawn(move || world.check_until_done(XorShift(seed)));
        }
        let writers = [1, 2].map(|seed| {
            let world = &world;
            scope.spawn(move || world.churn(XorShift(seed)))
        });
        let churned = writers.map(|writer| writer.join());
        // First, so that a writer that failed does not leave the readers running.
        world.done.store(true, Relaxed);
        assert!(churned.iter().all(Result::is_ok));
    });
    assert!(
        world.found.into_inner() > 1000,
        "the readers found next to nothing to check"
    );
}

/// A table, a clock that all threads share, and what the readers saw.
struct World {
    fdb: Fdb,
    now_s: AtomicU32,
    found: AtomicU64,
    done: AtomicBool,
}

impl World {
    fn new() -> Self {
        let config = SwitchConfig {
            fdb_capacity: 8,
            ageing_s: 1,
            ..SwitchConfig::default()
        };
        Self {
            fdb: Fdb::new(&config, [0, 0]),
            now_s: AtomicU32::new(u32::MAX - 1000),
            found: AtomicU64::new(0),
            done: AtomicBool::new(false),
        }
    }

    /// Takes and leaves places by every means there is.
    fn churn(&self, mut random: XorShift) {
        for _ in 0..ROUNDS {
            let name = random.below(NAMES);
            let port = ports_of(name)[random.below(2) as usize];
            let now_s = self
                .now_s
                .fetch_add(u32::from(random.below(8) == 0), Relaxed);
            match random.below(64) {
                0 => self.fdb.forget_port(port),
                1 => {
                    self.fdb.remove(Vid::UNTAGGED, mac(name));
                }
                2 => {
                    // Learned, as the other origins would fill the table for good.
                    let _ = self
                        .fdb
                        .insert(Vid::UNTAGGED, mac(name), port, Origin::Learned, now_s);
                }
                _ => {
                    self.fdb.learn(Vid::UNTAGGED, mac(name), port, now_s);
                }
            }
        }
    }

    fn check_until_done(&self, mut random: XorShift) {
        while !self.done.load(Relaxed) {
            let name = random.below(NAMES);
            let now_s = self.now_s.load(Relaxed);
            if let Some(port) = self.fdb.lookup(Vid::UNTAGGED, mac(name), now_s) {
                self.check(mac(name), port);
            }
            if random.below(16) == 0 {
                self.fdb
                    .entries(now_s)
                    .for_each(|entry| self.check(entry.mac, entry.port));
            }
        }
    }

    fn check(&self, mac: MacAddr, port: PortId) {
        let ports = ports_of(u64::from(mac.0[5]));
        assert!(
            ports.contains(&port),
            "{mac} was learned on {ports:?} only, but is on {port:?}"
        );
        self.found.fetch_add(1, Relaxed);
    }
}

/// The two ports on which an address is ever seen; no other address shares them.
fn ports_of(name: u64) -> [PortId; 2] {
    [2 * name as u16, 2 * name as u16 + 1].map(PortId)
}

fn mac(name: u64) -> MacAddr {
    MacAddr([2, 0, 0, 0, 0, name as u8])
}

struct XorShift(u64);

impl XorShift {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) % bound
    }
}
