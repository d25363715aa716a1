// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which nodes send probes: in each VLAN the most senior two, on behalf of all others.
//!
//! Called by [`LoopGuard`](super::LoopGuard) only.

use alloc::collections::{BTreeMap, VecDeque};

use super::timing::{INTERVAL_US, MS};
use super::verdict::NodeId;
use crate::port_id::PortId;
use crate::vlan::Vid;

/// How many seniors must be heard for a node to be silent. With one alone, loops would go unnoticed
/// from the moment in which it leaves until others miss it.
const SPEAKERS: usize = 2;
/// A senior that was silent for longer does not probe for others any more. Two probes in a row may
/// be lost.
const PATIENCE_US: u64 = 2500 * MS;
/// How much longer the most junior node waits, so that not all of them step in at once.
const JUNIOR_PATIENCE_US: u64 = 1000 * MS;
/// How many copies of a node's probes are kept: two rounds of a node that probes as many VLANs as
/// it may.
const COPIES: usize = 32;

/// The most senior nodes that are heard, by VLAN.
#[derive(Debug)]
pub(super) struct Speakers {
    node: NodeId,
    heard: BTreeMap<Vid, [Option<Speaker>; SPEAKERS]>,
}

#[derive(Clone, Copy, Debug)]
struct Speaker {
    node: NodeId,
    heard_us: u64,
}

impl Speakers {
    /// The speakers as this node hears them.
    pub(super) fn of(node: NodeId) -> Self {
        Self {
            node,
            heard: BTreeMap::new(),
        }
    }

    /// Records that a probe of a node was heard in a VLAN.
    pub(super) fn hear(&mut self, vid: Vid, node: NodeId, now_us: u64) {
        if node >= self.node {
            return;
        }
        let is_present = |known: &Speaker| now_us.saturating_sub(known.heard_us) < PATIENCE_US;
        let speakers = self.heard.entry(vid).or_default();
        let is_known = |known: &Option<Speaker>| known.is_some_and(|known| known.node == node);
        // A silent one makes room, or else the most junior.
        let place = speakers.iter().position(is_known).or_else(|| {
            let worth = |known: &Option<Speaker>| {
                let present = known.filter(is_present);
                present.map_or((true, node), |known| (false, known.node))
            };
            let places = speakers.iter().map(worth).enumerate();
            let (at, (_, junior)) = places.max_by_key(|(_, worth)| *worth)?;
            (node <= junior).then_some(at)
        });
        if let Some(at) = place {
            speakers[at] = Some(Speaker {
                node,
                heard_us: now_us,
            });
        }
    }

    /// Whether others probe a VLAN in which this node may probe, each at least once in so many
    /// rounds of its own.
    pub(super) fn probe(&self, vid: Vid, rounds: u64, now_us: u64) -> bool {
        let juniority = self.node.0 >> 32;
        let patience_us = PATIENCE_US + ((JUNIOR_PATIENCE_US * juniority) >> 32);
        let patience_us = patience_us + rounds.saturating_sub(1) * INTERVAL_US;
        let is_heard = |heard: Speaker| now_us.saturating_sub(heard.heard_us) < patience_us;
        let heard = self.heard.get(&vid);
        heard.is_some_and(|heard| heard.iter().all(|one| one.is_some_and(is_heard)))
    }
}

/// By which ports the probes of a node have arrived recently.
#[derive(Clone, Debug, Default)]
pub(super) struct Copies(VecDeque<(u32, Vid, PortId)>);

impl Copies {
    /// Records a probe by its number and VLAN. Returns the port by which it had arrived before, if
    /// it had.
    pub(super) fn note(&mut self, sequence: u32, vid: Vid, port: PortId) -> Option<PortId> {
        let mut known = self.0.iter();
        let known = known.find(|&&(number, at, _)| (number, at) == (sequence, vid));
        if let Some(&(_, _, port)) = known {
            return Some(port);
        }
        if self.0.len() == COPIES {
            self.0.pop_front();
        }
        self.0.push_back((sequence, vid, port));
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VID: Vid = Vid::UNTAGGED;
    const S: u64 = 1000 * MS;

    #[test]
    fn two_seniors_speak_for_all_others() {
        let mut speakers = Speakers::of(NodeId(50));
        for (node, at_us, spoken_for) in [
            (60, 0, false), // a junior
            (40, 0, false),
            (40, S, false),
            (30, S, true),
            (20, 2 * S, true), // in the place of 40
            (40, 3 * S, true),
            (20, 3 * S, true),
            (20, 4 * S, false), // 30 is gone
            (40, 4 * S, true),
        ] {
            speakers.hear(VID, NodeId(node), at_us);
            assert_eq!(
                speakers.probe(VID, 1, at_us),
                spoken_for,
                "{node} at {at_us}"
            );
        }
        let other = Vid::from_tci(7);
        assert!(!speakers.probe(other, 1, 4 * S), "each VLAN has its own");
        assert!(!speakers.probe(VID, 1, 6500 * MS));
        assert!(
            speakers.probe(VID, 4, 9 * S),
            "where VLANs take turns it takes longer"
        );
    }

    #[test]
    fn juniors_step_in_later() {
        for (node, patience_us) in [(2, 2500 * MS), (1 << 63, 3000 * MS)] {
            let mut speakers = Speakers::of(NodeId(node));
            for node in [0, 1] {
                speakers.hear(VID, NodeId(node), 0);
            }
            assert!(speakers.probe(VID, 1, patience_us - 1));
            assert!(!speakers.probe(VID, 1, patience_us));
        }
    }

    #[test]
    fn a_second_copy_is_known_by_its_number_and_vlan() {
        let mut copies = Copies::default();
        let (one, two) = (PortId(1), PortId(2));
        assert_eq!(copies.note(1, VID, one), None);
        assert_eq!(copies.note(1, VID, two), Some(one));
        assert_eq!(copies.note(1, Vid::from_tci(7), two), None);
        for number in 2..=COPIES as u32 {
            assert_eq!(copies.note(number, VID, one), None);
        }
        assert_eq!(copies.note(1, VID, two), None, "long ago");
        assert_eq!(copies.0.len(), COPIES);
    }
}
