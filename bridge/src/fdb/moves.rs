// SPDX-License-Identifier: MIT OR Apache-2.0
//! The last moves of addresses from port to port: a report about a loop names them.
//!
//! Data threads write, the control thread reads, and neither waits. A record is two words and the
//! *turn* they belong to: odd while they are written, even when they are whole. A reader takes the
//! turn, the words and the turn again. A writer that finds another one at work in its record drops
//! its own move: both are 32 moves apart, in a storm of which the log holds a sample anyway.

use alloc::vec::Vec;
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use super::bucket::Key;
use crate::mac::MacAddr;
use crate::port_id::PortId;
use crate::sync::{AtomicU64, IS_MODEL, fence};
use crate::vlan::Vid;

/// How many moves are kept. In a model each one replaces the last.
const RECORDS: usize = if IS_MODEL { 1 } else { 32 };

/// An address that was seen on another port than before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Move {
    /// VLAN.
    pub vid: Vid,
    /// Address.
    pub mac: MacAddr,
    /// The port behind which it was.
    pub from: PortId,
    /// The port on which it was seen.
    pub to: PortId,
    /// When, on the clock of the data threads.
    pub at_s: u32,
}

#[derive(Debug, Default)]
pub(super) struct MoveLog {
    pushed: AtomicU64,
    records: [Record; RECORDS],
}

#[derive(Debug, Default)]
struct Record {
    turn: AtomicU64,
    key: AtomicU64,
    /// When (32 bits), from (16), to (16).
    movement: AtomicU64,
}

impl MoveLog {
    pub(super) fn push(&self, key: Key, from: PortId, to: PortId, at_s: u32) {
        let turn = 2 * self.pushed.fetch_add(1, Relaxed) + 1;
        let record = &self.records[(turn / 2) as usize % RECORDS];
        let before = record.turn.load(Relaxed);
        // A record that is being written, or holds a later move than this one.
        if !before.is_multiple_of(2) || before > turn {
            return;
        }
        let claim = record.turn.compare_exchange(before, turn, Acquire, Relaxed);
        if claim.is_err() {
            return;
        }
        // A reader that sees one of the words below sees the odd turn, too.
        fence(Release);
        record.key.store(key.bits(), Relaxed);
        let movement = u64::from(at_s) << 32 | u64::from(from.0) << 16 | u64::from(to.0);
        record.movement.store(movement, Relaxed);
        record.turn.store(turn + 1, Release);
    }

    /// The contents of the log, the oldest move first.
    pub(super) fn read(&self) -> Vec<Move> {
        let mut moves: Vec<_> = self.records.iter().filter_map(Record::read).collect();
        moves.sort_unstable_by_key(|&(turn, _)| turn);
        moves.into_iter().map(|(_, moved)| moved).collect()
    }
}

impl Record {
    fn read(&self) -> Option<(u64, Move)> {
        let turn = self.turn.load(Acquire);
        let key = Key::from_bits(self.key.load(Relaxed));
        let movement = self.movement.load(Relaxed);
        fence(Acquire);
        let is_whole = turn > 0 && turn.is_multiple_of(2) && self.turn.load(Relaxed) == turn;
        let moved = Move {
            vid: key.vid(),
            mac: key.mac(),
            from: PortId((movement >> 16) as u16),
            to: PortId(movement as u16),
            at_s: (movement >> 32) as u32,
        };
        is_whole.then_some((turn, moved))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remembers_the_last_32_in_order() {
        let log = MoveLog::default();
        assert_eq!(log.read(), []);
        for count in 1..=100_u32 {
            let mac = MacAddr([2, 0, 0, 0, 0, count as u8]);
            let vid = Vid::new(4095).unwrap();
            log.push(Key::new(vid, mac), PortId(u16::MAX), PortId(1), count);
            let times: Vec<_> = log.read().iter().map(|moved| moved.at_s).collect();
            let first = count.saturating_sub(31).max(1);
            assert_eq!(times, (first..=count).collect::<Vec<_>>());
            let last = Move {
                vid,
                mac,
                from: PortId(u16::MAX),
                to: PortId(1),
                at_s: count,
            };
            assert_eq!(log.read().last(), Some(&last));
        }
    }

    #[test]
    fn a_record_in_another_writers_hands_is_left_alone() {
        let log = MoveLog::default();
        let key = Key::new(Vid::UNTAGGED, MacAddr([2; 6]));
        log.records[0].turn.store(1, Relaxed); // claimed, and not yet written
        log.records[1].turn.store(200, Relaxed); // a move that came later and was quicker
        for at_s in 1..=3 {
            log.push(key, PortId(1), PortId(2), at_s);
        }
        assert_eq!(log.records[0].turn.load(Relaxed), 1);
        assert_eq!(log.records[1].turn.load(Relaxed), 200);
        assert_eq!(log.read().iter().filter(|moved| moved.at_s == 3).count(), 1);
    }
}
