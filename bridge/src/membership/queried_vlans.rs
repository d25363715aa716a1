// SPDX-License-Identifier: MIT OR Apache-2.0
//! The VLANs in which a querier asks: those in which stations were heard recently, within bounds.
//!
//! A VLAN is kept for as long as a membership in it may last, so that stations that send seldom do
//! not turn it on and off. A station that forges VLANs takes its port's share and no more; VLANs
//! without room are flooded.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

use super::vlan::MEMBERSHIP_S;
use crate::port_id::PortId;
use crate::time::is_past;
use crate::vlan::Vid;

/// The most VLANs, beside the configured ones.
pub(super) const MAX_VLANS: usize = 512;
/// Of these, the most that only one port has.
pub(super) const MAX_OF_ONE_PORT: usize = 128;

/// The VLANs with stations.
#[derive(Debug, Default)]
pub(super) struct QueriedVlans {
    vlans: BTreeMap<Vid, Presence>,
}

#[derive(Clone, Copy, Debug)]
struct Presence {
    /// The port with its stations, unless they are behind several.
    only: Option<PortId>,
    until_s: u32,
}

impl QueriedVlans {
    /// Takes in all stations, and returns the VLANs that are new and those that are gone.
    pub(super) fn update(
        &mut self,
        stations: &BTreeSet<(Vid, PortId)>,
        now_s: u32,
    ) -> (Vec<Vid>, Vec<Vid>) {
        let mut found = BTreeMap::<Vid, Presence>::new();
        for &(vid, port) in stations {
            let seen = Presence {
                only: Some(port),
                until_s: now_s.wrapping_add(MEMBERSHIP_S),
            };
            let others = found.entry(vid).or_insert(seen);
            others.only.take_if(|only| *only != port);
        }
        let past: Vec<_> = self
            .vlans
            .iter()
            .filter(|(vid, seen)| !found.contains_key(*vid) && is_past(seen.until_s, now_s))
            .map(|(&vid, _)| vid)
            .collect();
        for vid in &past {
            self.vlans.remove(vid);
        }
        for (vid, known) in &mut self.vlans {
            if let Some(seen) = found.remove(vid) {
                *known = seen;
            }
        }
        (self.add(found), past)
    }

    /// Adds new VLANs while there is room: first those that join several ports.
    fn add(&mut self, found: BTreeMap<Vid, Presence>) -> Vec<Vid> {
        let mut of_port = BTreeMap::<PortId, usize>::new();
        for port in self.vlans.values().filter_map(|seen| seen.only) {
            *of_port.entry(port).or_default() += 1;
        }
        let (joined, alone): (Vec<_>, Vec<_>) =
            found.into_iter().partition(|(_, seen)| seen.only.is_none());
        let mut added = Vec::new();
        for (vid, seen) in joined.into_iter().chain(alone) {
            if self.vlans.len() == MAX_VLANS {
                break;
            }
            if let Some(port) = seen.only {
                let count = of_port.entry(port).or_default();
                if *count == MAX_OF_ONE_PORT {
                    continue;
                }
                *count += 1;
            }
            self.vlans.insert(vid, seen);
            added.push(vid);
        }
        added
    }
}
