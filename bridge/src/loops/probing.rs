// SPDX-License-Identifier: MIT OR Apache-2.0
//! When a guard sends which probes.

use alloc::collections::BTreeSet;
use alloc::vec::Vec;

use super::guard::{LoopGuard, REMEMBERED};
use super::message::Message;
use super::other::FORGET_US;
use super::timing::{INTERVAL_US, MS, S};
use super::verdict::Probe;
use crate::ether_type::CUSTOMER_TAG;
use crate::ethernet::MIN_FRAME_LEN;
use crate::inspect::{PROBE_ETHER_TYPE, PROBE_GROUP};
use crate::port_id::PortId;
use crate::vlan::Vid;

/// Between two probes around a loop that is being contested.
const CONTEST_INTERVAL_US: u64 = 250 * MS;
/// VLANs of a port that are probed in one round; if there are more, they take turns.
const VLANS_PER_ROUND: usize = 16;
/// Probes of all nodes together in one round: many nodes with many VLANs would otherwise be a load
/// of their own, and exceed the limit of a switch.
const PROBES_PER_ROUND: usize = 128;
/// Between two probes of a port and VLAN in doubt.
const DOUBTS_US: u64 = S;

impl<A: Fn(&[u8]) -> [u8; 16]> LoopGuard<A> {
    /// The probes to send at `now_us`, on blocked ports too.
    pub fn due(&mut self, now_us: u64) -> Vec<Probe> {
        let mut wanted = BTreeSet::new();
        if now_us >= self.next_round_us {
            self.next_round_us = now_us + INTERVAL_US;
            let vlans = self.vlans_per_round(now_us);
            let tells = now_us < self.announces_until_us;
            let speaks = |vid: Vid, rounds: u64| !self.speakers.probe(vid, rounds, now_us);
            for (&port, watched) in &mut self.ports {
                let first = watched.vlans.first().copied();
                let is_due = |vid: &Vid| tells || *vid == Vid::UNTAGGED && speaks(*vid, 1);
                wanted.extend(first.filter(is_due).map(|vid| (port, vid)));
                let rounds = watched.vlans.len().div_ceil(vlans) as u64;
                let turns = watched.take_turns(vlans);
                let turns = turns.filter(|vid| *vid != Vid::UNTAGGED && speaks(*vid, rounds));
                wanted.extend(turns.map(|vid| (port, vid)));
                let suspected = self.suspected.iter().filter(|vid| speaks(**vid, 1));
                wanted.extend(suspected.map(|vid| (port, *vid)));
            }
            self.suspected.clear();
            // Each round checks whether a loop is still there, also where VLANs take turns.
            wanted.extend(self.ports.iter().flat_map(|(&port, at)| at.suspects(port)));
        } else if now_us >= self.next_contest_round_us {
            let contests = self.ports.iter().filter(|(_, at)| at.contest.is_some());
            wanted.extend(contests.flat_map(|(&port, at)| at.suspects(port)));
        }
        if now_us >= self.next_doubts_us && !self.doubts.is_empty() {
            self.next_doubts_us = now_us + DOUBTS_US;
            wanted.append(&mut self.doubts);
        }
        if self.is_contending() {
            if now_us >= self.next_contest_round_us {
                self.next_contest_round_us = now_us + CONTEST_INTERVAL_US;
            }
        } else {
            self.next_contest_round_us = u64::MAX;
        }
        if wanted.is_empty() {
            return Vec::new();
        }
        self.sequence = self.sequence.wrapping_add(1);
        self.sent_us[self.sequence as usize % REMEMBERED] = Some(now_us);
        self.counters.sent += wanted.len() as u64;
        wanted
            .into_iter()
            .filter(|(port, _)| self.ports.contains_key(port))
            .map(|(port, vid)| self.probe(port, vid))
            .collect()
    }

    /// When [`due`](Self::due) or [`poll`](Self::poll) has something next, if nothing happens
    /// before.
    pub fn next_due_us(&self) -> u64 {
        // A contest is decided when its probes return, and given up when they are sent in vain.
        let blocks = self.ports.values().filter_map(|at| at.block);
        let unblocks_us = blocks.map(|block| block.unblocks_us());
        let rounds_us = self.next_round_us.min(self.next_contest_round_us);
        let doubts_us = (!self.doubts.is_empty()).then_some(self.next_doubts_us);
        let all_us = unblocks_us.chain(self.relearning.due_us()).chain(doubts_us);
        all_us.fold(rounds_us, u64::min)
    }

    /// Each node hears the probes of all others.
    fn vlans_per_round(&self, now_us: u64) -> usize {
        let others = self.others.values();
        let others = others.filter(|other| !other.is_silent(FORGET_US, now_us));
        (PROBES_PER_ROUND / (1 + others.count())).clamp(1, VLANS_PER_ROUND)
    }

    fn probe(&self, port: PortId, vid: Vid) -> Probe {
        let message = Message {
            node: self.node,
            sequence: self.sequence,
            port,
            vid,
            contends: self.is_contending(),
            is_trial: self.is_blocked(port),
            changes: self.changes,
        };
        let bytes = message.emit();
        let mut frame = Vec::with_capacity(64);
        frame.extend(PROBE_GROUP);
        frame.extend(self.source.0);
        if vid != Vid::UNTAGGED {
            frame.extend(CUSTOMER_TAG.to_be_bytes());
            frame.extend(vid.value().to_be_bytes());
        }
        frame.extend(PROBE_ETHER_TYPE.to_be_bytes());
        frame.extend(bytes);
        frame.extend((self.authenticate)(&bytes));
        frame.resize(frame.len().max(MIN_FRAME_LEN), 0);
        Probe { port, vid, frame }
    }
}
