// SPDX-License-Identifier: MIT OR Apache-2.0
//! The names of the switch's ports in logs, and their ranks. Both may change while threads and tasks use
//! them.

use std::sync::Arc;

use arc_swap::ArcSwap;
use patchcord_bridge::PortId;

/// Names and ranks of the peers, in the order of their ports. Clones are the same list.
#[derive(Clone, Default)]
pub(super) struct PortNames(Arc<ArcSwap<Vec<(String, u64)>>>);

impl PortNames {
    /// Replaces all of them.
    pub(super) fn set(&self, peers: Vec<(String, u64)>) {
        self.0.store(Arc::new(peers));
    }

    /// Replaces those of one peer.
    pub(super) fn set_one(&self, port: PortId, ranked: (String, u64)) {
        let mut peers = self.0.load().as_ref().clone();
        let place = usize::from(port.0).checked_sub(1);
        if let Some(peer) = place.and_then(|place| peers.get_mut(place)) {
            *peer = ranked;
        }
        self.set(peers);
    }

    /// All ports, that of the device included.
    pub(super) fn count(&self) -> usize {
        1 + self.0.load().len()
    }

    /// The name of a port.
    pub(super) fn name(&self, port: PortId) -> String {
        match usize::from(port.0).checked_sub(1) {
            None => "TAP".to_owned(),
            Some(place) => {
                let peers = self.0.load();
                peers.get(place).map_or("?", |(name, _)| name).to_owned()
            }
        }
    }

    /// By port: of two peers the one of higher rank is blocked. All nodes agree on it.
    pub(super) fn ranks(&self) -> Vec<u64> {
        let peers = self.0.load();
        let ranks = peers.iter().map(|&(_, rank)| rank);
        [0].into_iter().chain(ranks).collect()
    }
}
