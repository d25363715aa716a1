// SPDX-License-Identifier: MIT OR Apache-2.0
//! The promises of the table under all races, as models for [loom](https://docs.rs/loom), which
//! tries each order that threads and a weak memory allow. `tests/models` calls them.

use alloc::vec::Vec;
use core::sync::atomic::Ordering::Relaxed;

use loom::sync::Arc;
use loom::thread;

use super::bucket::{Key, WAYS};
use super::entry::{Learning, Origin};
use super::moves::MoveLog;
use super::table::Fdb;
use crate::config::SwitchConfig;
use crate::limit::Limit;
use crate::mac::MacAddr;
use crate::port_id::PortId;
use crate::vlan::Vid;

const A: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
const B: MacAddr = MacAddr([2, 0, 0, 0, 0, 2]);
const P1: PortId = PortId(1);
const P2: PortId = PortId(2);
const P3: PortId = PortId(3);
const VID: Vid = Vid::UNTAGGED;

/// A lookup returns only a port on which the address was learned, even while its slot is given to
/// another address.
pub fn a_lookup_tells_a_port_of_this_address() {
    model(|| {
        let fdb = table();
        fdb.learn(VID, A, P1, 0);
        let churn = |fdb: &Fdb| {
            fdb.remove(VID, A);
            fdb.learn(VID, B, P2, 0);
        };
        let look = |fdb: &Fdb| [A, B].map(|mac| fdb.lookup(VID, mac, 0));
        let ((), [a, b]) = race(&fdb, churn, look);
        assert!([None, Some(P1)].contains(&a), "{a:?}");
        assert!([None, Some(P2)].contains(&b), "{b:?}");
        assert_eq!(fdb.lookup(VID, B, 0), Some(P2));
        assert_exact(&fdb);
    });
}

/// An address that two threads learn at once has one entry.
pub fn two_that_learn_an_address_leave_one_entry() {
    model(|| {
        let fdb = table();
        let learn = |fdb: &Fdb| fdb.learn(VID, A, P1, 0);
        race(&fdb, learn, learn);
        let key = Key::new(VID, A);
        assert_eq!(fdb.bucket(key).find_all(key).count(), 1);
        assert_exact(&fdb);
    });
}

/// An address that is assigned while a frame teaches another port stays where it was assigned.
pub fn an_assignment_outlives_an_address_learned_at_the_same_time() {
    model(|| {
        let fdb = table();
        let learn = |fdb: &Fdb| fdb.learn(VID, A, P1, 0);
        let assign = |fdb: &Fdb| fdb.insert(VID, A, P2, Origin::Static, 0);
        let (_, assigned) = race(&fdb, learn, assign);
        assert_eq!((assigned, fdb.lookup(VID, A, 0)), (Ok(()), Some(P2)));
        assert_exact(&fdb);
    });
}

/// A dampened address follows one frame at a time.
pub fn a_dampened_address_moves_once() {
    model(|| {
        let fdb = table();
        for port in [P1, P2, P1, P2, P1, P2, P1] {
            fdb.learn(VID, A, port, 0);
        }
        assert_eq!(fdb.counters().dampened, 1);
        let seen = |port| move |fdb: &Fdb| fdb.learn(VID, A, port, 5);
        let (one, two) = race(&fdb, seen(P1), seen(P3));
        let is_move = |learning| matches!(learning, Learning::Moved { .. });
        assert!(is_move(one) ^ is_move(two), "{one:?}, {two:?}");
        assert_exact(&fdb);
    });
}

/// The counts per port are exact, whatever happens at once.
pub fn the_addresses_of_a_port_are_counted_exactly() {
    model(|| {
        let fdb = table();
        fdb.learn(VID, A, P1, 0);
        let learn = |fdb: &Fdb| fdb.learn(VID, A, P2, 1);
        race(&fdb, learn, |fdb: &Fdb| fdb.flush_port(P1));
        assert_exact(&fdb);
    });
}

/// While a port goes down, no port that guards against forged sources learns its addresses.
pub fn an_address_whose_port_goes_down_is_kept_from_guarded_ports() {
    model(|| {
        let fdb = table();
        fdb.learn(VID, A, P1, 0);
        let forge = |fdb: &Fdb| fdb.learn_in_place(VID, A, P2, 0);
        let (learning, _) = race(&fdb, forge, |fdb: &Fdb| fdb.bind_port(P1));
        assert_eq!(learning, Learning::Elsewhere { on: P1 });
        assert_eq!(fdb.lookup(VID, A, 0), None);
        assert_exact(&fdb);
    });
}

/// A move that a reader sees is one that was made.
pub fn a_move_is_read_whole() {
    model(|| {
        let moves = [(A, P1, P2, 1), (B, P2, P3, 2)];
        let push = move |log: &MoveLog| {
            for (mac, from, to, at_s) in moves {
                log.push(Key::new(VID, mac), from, to, at_s);
            }
        };
        let ((), read) = race(&Arc::new(MoveLog::default()), push, MoveLog::read);
        for seen in read {
            let seen = (seen.mac, seen.from, seen.to, seen.at_s);
            assert!(moves.contains(&seen), "{seen:?}");
        }
    });
}

/// All threads together take no more of a limit than there is.
pub fn threads_share_one_limit() {
    model(|| {
        let take = |limit: &Limit| {
            [0, 1]
                .map(|_| u32::from(limit.take(1, 0)))
                .iter()
                .sum::<u32>()
        };
        let (one, two) = race(&Arc::new(Limit::with_burst(1, 2)), take, take);
        assert_eq!(one + two, 2);
    });
}

fn model(check: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    // Of all orders, those with at most this many interruptions of a thread that is not waiting.
    builder.preemption_bound = Some(3);
    builder.max_branches = 20_000;
    builder.check(check);
}

/// One bucket.
fn table() -> Arc<Fdb> {
    let config = SwitchConfig {
        fdb_capacity: WAYS,
        ..SwitchConfig::default()
    };
    Arc::new(Fdb::new(&config, [0, 0]))
}

/// Both at once, each in a thread of its own: loom interrupts the first thread of a model too
/// seldom.
fn race<S: 'static, T: 'static, U: 'static>(
    shared: &Arc<S>,
    one: impl FnOnce(&S) -> T + 'static,
    two: impl FnOnce(&S) -> U + 'static,
) -> (T, U) {
    let (for_one, for_two) = (shared.clone(), shared.clone());
    let one = thread::spawn(move || one(&for_one));
    let two = thread::spawn(move || two(&for_two));
    (one.join().expect("no panic"), two.join().expect("no panic"))
}

/// Each port has as many addresses as its count says.
fn assert_exact(fdb: &Fdb) {
    let held = (0..WAYS).filter_map(|slot| fdb.buckets[0].held(slot));
    let learned: Vec<_> = held.filter(|(_, held)| held.is_learned()).collect();
    for port in [P1, P2, P3] {
        let here = learned.iter().filter(|(_, held)| held.port == port).count();
        let counted = fdb.learned_on[usize::from(port.0)].load(Relaxed);
        assert_eq!(usize::try_from(counted), Ok(here), "{port:?}");
    }
}
