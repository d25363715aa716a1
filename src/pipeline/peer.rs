// SPDX-License-Identifier: MIT OR Apache-2.0
//! A peer as the engine gets it, and changes of a running engine.

use patchcord_bridge::{PortConfig, PortId};

use crate::proto::{node::NodeUpdate, peer::PeerSettings};

/// A peer, with the fields that only logs and the resolver need.
pub(crate) struct EnginePeer {
    /// The fields that the protocol needs.
    pub settings: PeerSettings,
    /// For logs and `show`.
    pub name: String,
    /// `name:port`, looked up at start and when the peer does not answer.
    pub host: Option<String>,
}

impl EnginePeer {
    /// With a rank that every node computes alike.
    pub(super) fn ranked(&self) -> (String, u64) {
        let (rank, _) = self.settings.public_key.as_bytes().split_at(8);
        let rank = rank
            .iter()
            .fold(0, |rank, byte| rank << 8 | u64::from(*byte));
        (self.name.clone(), rank)
    }
}

/// A change of a running engine, which cannot fail. What it does not name stays as it is.
pub(crate) struct EngineUpdate {
    /// For all peers.
    pub node: NodeUpdate,
    /// Peers that changed, by their ports.
    pub peers: Vec<(PortId, EnginePeer)>,
    /// All ports of the switch, that of the device first, if any of them changed.
    pub ports: Option<Vec<PortConfig>>,
    /// Ports behind which stations are in other VLANs now.
    pub moved: Vec<PortId>,
}
