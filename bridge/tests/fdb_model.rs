// SPDX-License-Identifier: MIT OR Apache-2.0
//! The forwarding database against a `HashMap` that does the same in the obvious way.
//!
//! The table has one bucket and there are more addresses than places, so that learning, moving,
//! dampening, ageing and eviction meet all the time. The clock may wrap under way; the model's does not.

#[path = "model/moves.rs"]
mod moves;

use std::collections::HashMap;

use moves::Moves;
use patchcord_bridge::fdb::{self, InsertError, Learning, Occupancy, Origin};
use patchcord_bridge::{Fdb, MacAddr, PortId, SwitchConfig, Vid};
use proptest::prelude::*;

const PLACES: usize = 8;
const NAMES: u8 = 12;
const PORTS: u16 = 4;
const VLANS: u8 = 3;
const AGEING_S: u64 = 100;
proptest! {
    #[test]
    fn behaves_like_a_map_that_holds_eight(
        start_s in prop_oneof![Just(0), Just(u64::from(u32::MAX) - 200)],
        events in proptest::collection::vec(any_event(), 1..200),
    ) {
        let mut pair = Pair::new(start_s);
        for event in events {
            pair.handle(event);
            pair.compare();
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Event {
    Learn {
        name: u8,
        port: PortId,
    },
    LearnInPlace {
        name: u8,
        port: PortId,
    },
    /// One frame on each of the ports by turns.
    Flap {
        name: u8,
        ports: [PortId; 2],
        times: usize,
    },
    Insert {
        name: u8,
        port: PortId,
        origin: Origin,
    },
    Advertise {
        name: u8,
        port: PortId,
        sequence: u32,
    },
    Withdraw {
        name: u8,
        sequence: u32,
    },
    Remove {
        name: u8,
    },
    FlushPort {
        port: PortId,
    },
    BindPort {
        port: PortId,
    },
    ForgetPortIn {
        port: PortId,
        vid: Vid,
    },
    ForgetVlan {
        vid: Vid,
    },
    ForgetLearned,
    Wait {
        seconds: u64,
    },
}

fn any_event() -> impl Strategy<Value = Event> {
    let port = || (0..PORTS).prop_map(PortId);
    let origin = || {
        prop_oneof![
            Just(Origin::Static),
            Just(Origin::Controller),
            Just(Origin::Learned)
        ]
    };
    prop_oneof![
        20 => (0..NAMES, port()).prop_map(|(name, port)| Event::Learn { name, port }),
        3 => (0..NAMES, port(), origin())
            .prop_map(|(name, port, origin)| Event::Insert { name, port, origin }),
        4 => (0..NAMES, port()).prop_map(|(name, port)| Event::LearnInPlace { name, port }),
        4 => (0..NAMES, port(), port(), 2..16usize)
            .prop_map(|(name, a, b, times)| Event::Flap { name, ports: [a, b], times }),
        3 => (0..NAMES, port(), 0..4u32)
            .prop_map(|(name, port, sequence)| Event::Advertise { name, port, sequence }),
        2 => (0..NAMES, 0..4u32)
            .prop_map(|(name, sequence)| Event::Withdraw { name, sequence }),
        2 => (0..NAMES).prop_map(|name| Event::Remove { name }),
        1 => port().prop_map(|port| Event::FlushPort { port }),
        2 => port().prop_map(|port| Event::BindPort { port }),
        1 => (port(), 0..VLANS)
            .prop_map(|(port, name)| Event::ForgetPortIn { port, vid: vid(name) }),
        1 => (0..VLANS).prop_map(|name| Event::ForgetVlan { vid: vid(name) }),
        1 => Just(Event::ForgetLearned),
        8 => (0..12u64).prop_map(|seconds| Event::Wait { seconds }),
        8 => (0..60u64).prop_map(|seconds| Event::Wait { seconds }),
    ]
}

/// A table, and the entries it should have.
struct Pair {
    fdb: Fdb,
    model: HashMap<u8, Entry>,
    now_s: u64,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Entry {
    port: PortId,
    seen_s: u64,
    origin: Origin,
    sequence: Option<u32>,
    moves: Option<Moves>,
    is_bound: bool,
}

impl Entry {
    fn new(port: PortId, origin: Origin, now_s: u64) -> Self {
        Self {
            port,
            seen_s: now_s,
            origin,
            sequence: None,
            moves: None,
            is_bound: false,
        }
    }

    fn is_learned(&self) -> bool {
        self.origin == Origin::Learned
    }

    fn is_dampened(&self, now_s: u64) -> bool {
        self.moves.is_some_and(|moves| moves.is_dampened(now_s))
    }

    /// Its port was down, and the station was seen on this one.
    fn renew(&mut self, port: PortId, now_s: u64) -> Learning {
        *self = Self::new(port, Origin::Learned, now_s);
        Learning::New
    }

    /// The station was seen on another port, where it may move.
    fn relocate(&mut self, port: PortId, now_s: u64) -> Learning {
        let from = self.port;
        let Some(port) = moves::relocate(&mut self.moves, port, now_s) else {
            return Learning::Dampened;
        };
        self.port = port;
        self.origin = Origin::Learned;
        self.seen_s = now_s;
        Learning::Moved { from }
    }
}

impl Pair {
    fn new(now_s: u64) -> Self {
        let config = SwitchConfig {
            fdb_capacity: PLACES,
            ageing_s: AGEING_S as u32,
            ..SwitchConfig::default()
        };
        Self {
            fdb: Fdb::new(&config, [0, 0]),
            model: HashMap::new(),
            now_s,
        }
    }

    fn handle(&mut self, event: Event) {
        let now_s = self.now_s;
        match event {
            Event::Learn { name, port } => self.learn(name, port),
            Event::LearnInPlace { name, port } => self.learn_in_place(name, port),
            Event::Flap { name, ports, times } => {
                for at in 0..times {
                    self.learn(name, ports[at % 2]);
                }
            }
            Event::Insert { name, port, origin } => {
                self.assign(name, Entry::new(port, origin, now_s));
            }
            Event::Advertise {
                name,
                port,
                sequence,
            } => {
                let mut entry = Entry::new(port, Origin::Controller, now_s);
                entry.sequence = Some(sequence);
                self.assign(name, entry);
            }
            Event::Withdraw { name, sequence } => {
                let stands = self.model.get(&name).is_some_and(|entry| {
                    let is_later = entry.sequence.is_none_or(|known| known > sequence);
                    entry.origin == Origin::Controller && !is_later
                });
                assert_eq!(self.fdb.withdraw(vid(name), mac(name), sequence), stands);
                if stands {
                    self.model.remove(&name);
                }
            }
            Event::Remove { name } => {
                // The table may still have one that has expired; the model never has.
                let known = self.fdb.remove(vid(name), mac(name));
                assert!(self.model.remove(&name).is_none() || known);
            }
            Event::FlushPort { port } => {
                let flushed = self.fdb.flush_port(port);
                self.flush(flushed, |_, entry| entry.port == port);
            }
            Event::BindPort { port } => {
                self.fdb.bind_port(port);
                let behind = self.model.values_mut().filter(|entry| entry.port == port);
                for entry in behind.filter(|entry| entry.is_learned()) {
                    entry.is_bound = true;
                }
            }
            Event::ForgetPortIn { port, vid: gone } => {
                let flushed = self.fdb.flush_port_in(port, gone);
                self.flush(flushed, |name, entry| {
                    entry.port == port && vid(name) == gone
                });
            }
            Event::ForgetVlan { vid: gone } => {
                let flushed = self.fdb.flush_vlan(gone);
                self.flush(flushed, |name, _| vid(name) == gone);
            }
            Event::ForgetLearned => {
                let flushed = self.fdb.flush_learned();
                self.flush(flushed, |_, _| true);
            }
            Event::Wait { seconds } => {
                self.now_s += seconds;
                let now_s = self.now_s;
                self.model
                    .retain(|_, entry| !entry.is_learned() || now_s - entry.seen_s < AGEING_S);
            }
        }
    }

    /// The table has forgotten so many, of which the model may have dropped some as they expired.
    fn flush(&mut self, flushed: usize, is_meant: impl Fn(u8, &Entry) -> bool) {
        let before = self.model.len();
        self.model
            .retain(|&name, entry| !entry.is_learned() || !is_meant(name, entry));
        assert!(before - self.model.len() <= flushed);
    }

    fn learn(&mut self, name: u8, port: PortId) {
        let expected = match self.model.get_mut(&name) {
            None => self.add(name, port),
            Some(known) if known.is_bound => known.renew(port, self.now_s),
            Some(known) if known.port == port => known_in_place(known, self.now_s),
            Some(known) if known.origin == Origin::Static => Learning::Pinned,
            Some(known) => known.relocate(port, self.now_s),
        };
        let learning = self.fdb.learn(vid(name), mac(name), port, self.clock_s());
        assert_eq!(learning, expected);
    }

    fn learn_in_place(&mut self, name: u8, port: PortId) {
        let expected = match self.model.get_mut(&name) {
            None => self.add(name, port),
            Some(known) if known.port == port && known.is_bound => known.renew(port, self.now_s),
            Some(known) if known.port == port => known_in_place(known, self.now_s),
            Some(known) => Learning::Elsewhere { on: known.port },
        };
        let clock_s = self.clock_s();
        let learning = self.fdb.learn_in_place(vid(name), mac(name), port, clock_s);
        assert_eq!(learning, expected);
    }

    fn add(&mut self, name: u8, port: PortId) -> Learning {
        if self.model.len() == PLACES {
            return Learning::Full;
        }
        let learned = Entry::new(port, Origin::Learned, self.now_s);
        self.model.insert(name, learned);
        Learning::New
    }

    fn assign(&mut self, name: u8, wanted: Entry) {
        let expected = match self.model.get(&name) {
            Some(known) if known.origin == Origin::Static && wanted.origin != Origin::Static => {
                Err(InsertError::Static)
            }
            Some(known) => outdated(known, &wanted).map_or(Ok(()), Err),
            None if self.model.len() < PLACES => Ok(()),
            None => self.most_silent().map(drop).ok_or(InsertError::Full),
        };
        let (vid, mac, port) = (vid(name), mac(name), wanted.port);
        let result = match wanted.sequence {
            None => self
                .fdb
                .insert(vid, mac, port, wanted.origin, self.clock_s()),
            Some(sequence) => self.fdb.advertise(vid, mac, port, sequence, self.clock_s()),
        };
        assert_eq!(result, expected);
        if result.is_ok() {
            self.make_room_for(name);
            self.model.insert(name, wanted);
        }
    }

    /// Takes out the entry that the table has evicted, which must be one of the most silent.
    fn make_room_for(&mut self, name: u8) {
        if self.model.contains_key(&name) || self.model.len() < PLACES {
            return;
        }
        let clock_s = self.clock_s();
        let mut gone = self
            .model
            .keys()
            .copied()
            .filter(|&name| self.fdb.find(vid(name), mac(name), clock_s).is_none());
        let evicted = gone.next().expect("a full table evicts");
        assert_eq!(gone.next(), None, "evicted more than one");
        drop(gone);
        assert_eq!(Some(self.model[&evicted].seen_s), self.most_silent());
        self.model.remove(&evicted);
    }

    /// When the learned address that has been silent for longest was last seen.
    fn most_silent(&self) -> Option<u64> {
        let learned = self.model.values().filter(|entry| entry.is_learned());
        learned.map(|entry| entry.seen_s).min()
    }

    fn compare(&self) {
        for name in 0..NAMES {
            let known = self.model.get(&name).filter(|entry| !entry.is_bound);
            let expected = known.map(|entry| entry.port);
            assert_eq!(self.lookup(name), expected, "{name}");
        }
        let listed: HashMap<_, _> = self
            .fdb
            .entries(self.clock_s())
            .map(|entry| {
                assert_eq!(
                    self.fdb.find(entry.vid, entry.mac, self.clock_s()),
                    Some(entry)
                );
                (entry.mac.0[5], entry)
            })
            .collect();
        let expected = self.model.iter().map(|(&name, entry)| {
            let entry = fdb::Entry {
                vid: vid(name),
                mac: mac(name),
                port: entry.port,
                age_s: (self.now_s - entry.seen_s) as u32,
                origin: entry.origin,
                sequence: entry.sequence,
                dampened: entry.is_dampened(self.now_s),
                bound: entry.is_bound,
            };
            (name, entry)
        });
        assert_eq!(listed, expected.collect());
        let count = |origin| {
            let entries = self.model.values();
            entries.filter(|entry| entry.origin == origin).count()
        };
        let occupancy = Occupancy {
            places: PLACES,
            learned: count(Origin::Learned),
            fixed: count(Origin::Static),
            controller: count(Origin::Controller),
        };
        assert_eq!(self.fdb.occupancy(self.clock_s()), occupancy);
    }

    fn lookup(&self, name: u8) -> Option<PortId> {
        self.fdb.lookup(vid(name), mac(name), self.clock_s())
    }

    /// The time as the table is told it.
    fn clock_s(&self) -> u32 {
        self.now_s as u32
    }
}

fn mac(name: u8) -> MacAddr {
    MacAddr([2, 0, 0, 0, 0, name])
}

/// Names share out the VLANs.
fn vid(name: u8) -> Vid {
    Vid::new(u16::from(name % VLANS)).expect("a small number")
}

fn known_in_place(known: &mut Entry, now_s: u64) -> Learning {
    if known.is_learned() {
        known.seen_s = now_s;
    }
    Learning::Known
}

fn outdated(known: &Entry, wanted: &Entry) -> Option<InsertError> {
    let (known_sequence, sequence) = (known.sequence?, wanted.sequence?);
    let is_old = sequence < known_sequence;
    let is_elsewhere = sequence == known_sequence && wanted.port != known.port;
    (is_old || is_elsewhere).then_some(InsertError::Outdated {
        known: known_sequence,
    })
}
