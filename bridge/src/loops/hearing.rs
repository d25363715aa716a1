// SPDX-License-Identifier: MIT OR Apache-2.0
//! Probes of other nodes, as a guard hears them.

use alloc::collections::BTreeMap;

use super::guard::{LoopGuard, WARN_US};
use super::message::Message;
use super::other::{FORGET_US, Other};
use super::speakers::Copies;
use super::timing::S;
use crate::port_id::PortId;
use crate::vlan::Vid;

/// How many nodes a guard keeps track of at a time.
pub(super) const MAX_OTHERS: usize = 1024;
/// Between two rounds that are sent because another node contends.
const TRIGGER_US: u64 = 2 * S;
/// How many ports and VLANs it keeps at a time in which a probe arrived by two paths.
const MAX_DOUBTS: usize = 64;

impl<A: Fn(&[u8]) -> [u8; 16]> LoopGuard<A> {
    /// Takes in a probe of another node, which arrived on `port` in the VLAN `vid` of this switch.
    pub fn heard(&mut self, port: PortId, vid: Vid, frame: &[u8], now_us: u64) {
        let Some(message) = Message::parse(frame) else {
            return;
        };
        if message.node == self.node || self.is_blocked(port) {
            return;
        }
        self.counters.foreign += 1;
        let is_news = self.is_news(port, &message, now_us);
        if !message.is_trial {
            self.note_copy(port, vid, &message, now_us);
        }
        if !is_news || !message.contends {
            return;
        }
        // If this node knows of that loop as well, its senior should know soon.
        let is_recent = |then: Option<u64>| {
            then.is_some_and(|then_us| now_us.saturating_sub(then_us) < TRIGGER_US)
        };
        if !is_recent(self.triggered_us) {
            self.triggered_us = Some(now_us);
            self.next_round_us = self.next_round_us.min(now_us);
        }
    }

    /// Records what another node says of itself, unless it has said something since: its older
    /// probes may circulate in a loop that it is not on, over and over.
    fn is_news(&mut self, port: PortId, message: &Message, now_us: u64) -> bool {
        if !self.others.contains_key(&message.node) && !self.has_room(now_us) {
            return false;
        }
        let is_confined = self.ports.get(&port).is_some_and(|at| at.is_confined);
        let scope = is_confined.then_some(port);
        let known = self.others.entry(message.node).or_insert_with(|| Other {
            sequence: message.sequence.wrapping_sub(1),
            changes: BTreeMap::new(),
            heard_us: now_us,
            contended_us: None,
            copies: Copies::default(),
        });
        // After a forged number far ahead of its own, the node is heard again once that number is
        // dropped.
        let is_news = message.sequence.wrapping_sub(known.sequence).cast_signed() > 0
            || known.is_silent(FORGET_US, now_us);
        if is_news {
            known.sequence = message.sequence;
            known.heard_us = now_us;
            let before = known.changes.insert(scope, message.changes);
            if before.is_some_and(|changes| changes != message.changes) {
                self.relearning.due(scope);
            }
            if message.contends {
                known.contended_us = Some(now_us);
            }
        }
        is_news
    }

    /// Records the port and the VLAN in which a probe of another node arrived. If it had arrived
    /// before, there are two paths to here, or to some point on the path.
    fn note_copy(&mut self, port: PortId, vid: Vid, message: &Message, now_us: u64) {
        let Some(other) = self.others.get_mut(&message.node) else {
            return;
        };
        let Some(first) = other.copies.note(message.sequence, vid, port) else {
            if message.sequence == other.sequence {
                self.speakers.hear(vid, message.node, now_us);
            }
            return;
        };
        let was_doubled = self
            .doubled_us
            .is_some_and(|then_us| now_us.saturating_sub(then_us) < WARN_US);
        if first == port && was_doubled || self.doubts.len() >= MAX_DOUBTS {
            return;
        }
        if first == port {
            self.doubled_us = Some(now_us);
        }
        self.doubts.extend([(first, vid), (port, vid)]);
    }

    /// Whether one more node can be tracked; looks for silent ones once a second.
    fn has_room(&mut self, now_us: u64) -> bool {
        if self.others.len() == MAX_OTHERS && now_us >= self.next_sweep_us {
            self.next_sweep_us = now_us + S;
            self.others
                .retain(|_, other| !other.is_silent(FORGET_US, now_us));
        }
        self.others.len() < MAX_OTHERS
    }
}
