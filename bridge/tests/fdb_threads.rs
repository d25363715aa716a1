// SPDX-License-Identifier: MIT OR Apache-2.0
//! The promise of the forwarding database under races: no look-up ever returns a port on which the
//! address was not learned, however often slots change hands meanwhile.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::thread;

use patchcord_bridge::fdb::Origin;
use patchcord_bridge::{Fdb, MacAddr, PortId, SwitchConfig, Vid};

const ROUNDS: u32 = 300_000;

#[test]
fn no_lookup_returns_a_port_that_never_learned_the_address() {
    // Many more addresses than the eight places of the table: nearly every frame gives a slot away.
    let world = World::new(64, 1, 8);
    world.run();
    assert!(
        world.found.into_inner() > 1000,
        "the readers found next to nothing to check"
    );
}

#[test]
fn an_address_that_moves_at_a_lower_rate_has_lived_where_it_is() {
    // All have a place, and move at nearly every frame.
    let world = World::new(6, 50, 64);
    world.run();
    assert!(
        world.fdb.counters().dampened > 100,
        "{:?}",
        world.fdb.counters()
    );
    assert!(
        world.found.into_inner() > 1000,
        "the readers found next to nothing to check"
    );
}

/// A table, a clock that all threads share, and what the readers saw.
struct World {
    fdb: Fdb,
    names: u64,
    /// The clock goes on at every so-manieth frame.
    frames_per_s: u64,
    now_s: AtomicU32,
    found: AtomicU64,
    done: AtomicBool,
}

impl World {
    fn new(names: u64, ageing_s: u32, frames_per_s: u64) -> Self {
        let config = SwitchConfig {
            fdb_capacity: 8,
            ageing_s,
            ..SwitchConfig::default()
        };
        Self {
            fdb: Fdb::new(&config, [0, 0]),
            names,
            frames_per_s,
            now_s: AtomicU32::new(u32::MAX - 1000),
            found: AtomicU64::new(0),
            done: AtomicBool::new(false),
        }
    }

    /// Two threads change the table and two look at it.
    fn run(&self) {
        thread::scope(|scope| {
            for seed in [3, 4] {
                scope.spawn(move || self.check_until_done(XorShift(seed)));
            }
            let writers = [1, 2].map(|seed| scope.spawn(move || self.churn(XorShift(seed))));
            let churned = writers.map(|writer| writer.join());
            // First, so that a writer that failed does not leave the readers running.
            self.done.store(true, Relaxed);
            assert!(churned.iter().all(Result::is_ok));
        });
    }

    /// Takes and leaves places by every means there is.
    fn churn(&self, mut random: XorShift) {
        for _ in 0..ROUNDS {
            let name = random.below(self.names);
            let port = ports_of(name)[random.below(2) as usize];
            let now_s = self
                .now_s
                .fetch_add(u32::from(random.below(self.frames_per_s) == 0), Relaxed);
            let (vid, mac) = (Vid::UNTAGGED, mac(name));
            match random.below(128) {
                0 => drop(self.fdb.flush_port(port)),
                1 => drop(self.fdb.remove(vid, mac)),
                // Learned, as the other origins would fill the table for good.
                2 => drop(self.fdb.insert(vid, mac, port, Origin::Learned, now_s)),
                3 => {
                    let sequence = random.below(8) as u32;
                    let _ = self.fdb.advertise(vid, mac, port, sequence, now_s);
                    if self.names > 8 {
                        self.fdb.remove(vid, mac);
                    }
                }
                4 => drop(self.fdb.withdraw(vid, mac, random.below(8) as u32)),
                5 if random.below(100) == 0 => drop(self.fdb.flush_vlan(vid)),
                6 if random.below(100) == 0 => drop(self.fdb.flush_learned()),
                7 => drop(self.fdb.learn_in_place(vid, mac, port, now_s)),
                8 => drop(self.fdb.bind_port(port)),
                _ => drop(self.fdb.learn(vid, mac, port, now_s)),
            }
        }
    }

    fn check_until_done(&self, mut random: XorShift) {
        while !self.done.load(Relaxed) {
            let name = random.below(self.names);
            let now_s = self.now_s.load(Relaxed);
            if let Some(port) = self.fdb.lookup(Vid::UNTAGGED, mac(name), now_s) {
                self.check(mac(name), port);
            }
            if random.below(16) == 0 {
                self.fdb
                    .entries(now_s)
                    .for_each(|entry| self.check(entry.mac, entry.port));
                for moved in self.fdb.last_moves() {
                    self.check(moved.mac, moved.from);
                    self.check(moved.mac, moved.to);
                    assert_ne!(moved.from, moved.to, "{}", moved.mac);
                }
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
