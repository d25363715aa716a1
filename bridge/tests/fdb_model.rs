// SPDX-License-Identifier: MIT OR Apache-2.0
//! The forwarding database against a `HashMap` that does the same in the obvious way.
//!
//! The table has one bucket and there are more addresses than places, so that learning, moving,
//! ageing and eviction meet all the time. The clock may wrap under way; the model's does not.

use std::collections::HashMap;

use patchcord_bridge::fdb::{InsertError, Learning, Origin};
use patchcord_bridge::{Fdb, MacAddr, PortId, SwitchConfig, Vid};
use proptest::prelude::*;

const PLACES: usize = 8;
const NAMES: u8 = 12;
const PORTS: u16 = 4;
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
    Insert {
        name: u8,
        port: PortId,
        origin: Origin,
    },
    Remove {
        name: u8,
    },
    ForgetPort {
        port: PortId,
    },
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
        2 => (0..NAMES).prop_map(|name| Event::Remove { name }),
        1 => port().prop_map(|port| Event::ForgetPort { port }),
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
        match event {
            Event::Learn { name, port } => self.learn(name, port),
            Event::Insert { name, port, origin } => self.insert(name, port, origin),
            Event::Remove { name } => {
                // The table may still have one that has expired; the model never has.
                let known = self.fdb.remove(Vid::UNTAGGED, mac(name));
                assert!(self.model.remove(&name).is_none() || known);
            }
            Event::ForgetPort { port } => {
                self.fdb.forget_port(port);
                self.model
                    .retain(|_, entry| entry.port != port || entry.origin != Origin::Learned);
            }
            Event::Wait { seconds } => {
                self.now_s += seconds;
                let now_s = self.now_s;
                self.model.retain(|_, entry| {
                    entry.origin != Origin::Learned || now_s - entry.seen_s < AGEING_S
                });
            }
        }
    }

    fn learn(&mut self, name: u8, port: PortId) {
        let learned = Entry {
            port,
            seen_s: self.now_s,
            origin: Origin::Learned,
        };
        let (expected, after) = match self.model.get(&name).copied() {
            None if self.model.len() == PLACES => (Learning::Full, None),
            None => (Learning::New, Some(learned)),
            Some(known) if known.port == port => {
                let refreshed = if known.origin == Origin::Learned {
                    learned
                } else {
                    known
                };
                (Learning::Known, Some(refreshed))
            }
            Some(known) if known.origin == Origin::Static => (Learning::Pinned, Some(known)),
            Some(known) => (Learning::Moved { from: known.port }, Some(learned)),
        };
        assert_eq!(
            self.fdb
                .learn(Vid::UNTAGGED, mac(name), port, self.clock_s()),
            expected
        );
        self.model.extend(after.map(|entry| (name, entry)));
    }

    fn insert(&mut self, name: u8, port: PortId, origin: Origin) {
        let expected = match self.model.get(&name) {
            Some(known) if known.origin == Origin::Static && origin != Origin::Static => {
                Err(InsertError::Static)
            }
            Some(_) => Ok(()),
            None if self.model.len() < PLACES => Ok(()),
            None => self.most_silent().map(drop).ok_or(InsertError::Full),
        };
        let result = self
            .fdb
            .insert(Vid::UNTAGGED, mac(name), port, origin, self.clock_s());
        assert_eq!(result, expected);
        if result.is_ok() {
            self.make_room_for(name);
            self.model.insert(
                name,
                Entry {
                    port,
                    seen_s: self.now_s,
                    origin,
                },
            );
        }
    }

    /// Takes out the entry that the table has evicted, which must be one of the most silent.
    fn make_room_for(&mut self, name: u8) {
        if self.model.contains_key(&name) || self.model.len() < PLACES {
            return;
        }
        let mut gone = self
            .model
            .keys()
            .copied()
            .filter(|&name| self.lookup(name).is_none());
        let evicted = gone.next().expect("a full table evicts");
        assert_eq!(gone.next(), None, "evicted more than one");
        drop(gone);
        assert_eq!(Some(self.model[&evicted].seen_s), self.most_silent());
        self.model.remove(&evicted);
    }

    /// When the learned address that has been silent for longest was last seen.
    fn most_silent(&self) -> Option<u64> {
        let learned = self
            .model
            .values()
            .filter(|entry| entry.origin == Origin::Learned);
        learned.map(|entry| entry.seen_s).min()
    }

    fn compare(&self) {
        for name in 0..NAMES {
            let expected = self.model.get(&name).map(|entry| entry.port);
            assert_eq!(self.lookup(name), expected, "{name}");
        }
        let listed: HashMap<_, _> = self
            .fdb
            .entries(self.clock_s())
            .map(|entry| {
                (
                    entry.mac,
                    (entry.port, u64::from(entry.age_s), entry.origin),
                )
            })
            .collect();
        let expected = self.model.iter().map(|(&name, entry)| {
            (
                mac(name),
                (entry.port, self.now_s - entry.seen_s, entry.origin),
            )
        });
        assert_eq!(listed, expected.collect());
    }

    fn lookup(&self, name: u8) -> Option<PortId> {
        self.fdb.lookup(Vid::UNTAGGED, mac(name), self.clock_s())
    }

    /// The time as the table is told it.
    fn clock_s(&self) -> u32 {
        self.now_s as u32
    }
}

fn mac(name: u8) -> MacAddr {
    MacAddr([2, 0, 0, 0, 0, name])
}
