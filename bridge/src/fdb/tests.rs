// SPDX-License-Identifier: MIT OR Apache-2.0
//! The promises of the table to one thread; races are in `models`.

use core::sync::atomic::Ordering::Relaxed;
use std::vec::Vec;

use super::Learning::{Dampened, Elsewhere, Full, Known, Limited, Moved, New, Pinned};
use super::bucket::{Bucket, Key, WAYS};
use super::history::Histories;
use super::table::Assignment;
use super::*;
use crate::config::SwitchConfig;
use crate::mac::MacAddr;
use crate::port_id::PortId;
use crate::vlan::Vid;

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
    fdb.flush_port(P1);
    assert_eq!(
        learn(&fdb, 7, P1, 300),
        New,
        "what is flushed no longer counts"
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
    fdb.flush_port(P1);
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

/// As with a plain cable: a station is where it last sent from, a moment later at most.
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
    assert_eq!(fdb.flush_learned(), 1);
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
        (1, P2, 101, New), // flushed by then
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
        ("flushed by then", 101, 0, Ok(()), true),
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
fn a_history_does_not_return_with_the_generation_of_their_slot() {
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
        ("port 1", |fdb| fdb.flush_port(P1), &[2, 4]),
        (
            "VLAN 7 of port 1",
            |fdb| fdb.flush_port_in(P1, Vid::new(7).unwrap()),
            &[2, 3, 4],
        ),
        (
            "VLAN 7",
            |fdb| fdb.flush_vlan(Vid::new(7).unwrap()),
            &[3, 4],
        ),
        ("all", |fdb| fdb.flush_learned(), &[4]),
    ];
    for (name, flush, left) in cases {
        let fdb = one_bucket(100);
        fdb.learn(seven, mac(1), P1, 0);
        fdb.learn(seven, mac(2), P2, 0);
        fdb.learn(eight, mac(3), P1, 0);
        fdb.insert(seven, mac(4), P1, Origin::Static, 0).unwrap();
        let flushed = flush(&fdb);
        let mut names: Vec<_> = fdb.entries(0).map(|entry| entry.mac.0[5]).collect();
        names.sort_unstable();
        assert_eq!(names.len() + flushed, 4, "{name}");
        assert_eq!(names, left, "{name}");
    }
}

#[test]
fn a_large_table_is_read_by_buckets() {
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
    for first in (0..fdb.buckets()).step_by(100) {
        let portion = fdb.entries_in(first..first + 100, now_s);
        for entry in portion {
            let bucket = fdb.bucket_of(entry.vid, entry.mac);
            assert!((first..first + 100).contains(&bucket), "{entry:?}");
            read.push(entry);
        }
    }
    assert!(read.iter().copied().eq(fdb.entries(now_s)));
    assert_eq!(fdb.entries_in(fdb.buckets()..usize::MAX, now_s).count(), 0);
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
    let bytes = size_of::<Bucket>() + size_of::<Histories>();
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
