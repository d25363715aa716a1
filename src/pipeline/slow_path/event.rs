// SPDX-License-Identifier: MIT OR Apache-2.0
//! Events and frames between data threads and the slow path, and how many of them may wait.

use patchcord_bridge::{Inside, Kind, PortId};

/// Punted frames that may wait.
pub(in crate::pipeline) const PUNTED_FRAMES: usize = 256;
/// Of these, requests for addresses: each may become a frame to be sent to peers.
pub(in crate::pipeline) const QUESTIONS: usize = 128;
/// Frames that may wait to be sent to peers, beside those that requests become: a round of loop
/// probes.
pub(in crate::pipeline) const INJECTED_PER_PORT: usize = 64;

/// An event for the slow path.
pub(in crate::pipeline) enum SlowPathEvent {
    /// A data thread has punted a frame.
    Punted(PuntedFrame),
    /// A peer is reachable.
    PeerUp(PortId),
    /// A peer is no longer reachable.
    PeerDown(PortId),
}

/// A frame that arrived on a port and needs more than a forwarding decision.
pub(in crate::pipeline) struct PuntedFrame {
    pub(in crate::pipeline) kind: Kind,
    pub(in crate::pipeline) ingress: PortId,
    pub(in crate::pipeline) inside: Inside,
    pub(in crate::pipeline) frame: Box<[u8]>,
}

/// A frame that this node originates for peers.
pub(in crate::pipeline) struct InjectedFrame {
    pub(in crate::pipeline) to: To,
    pub(in crate::pipeline) inside: Inside,
    pub(in crate::pipeline) frame: Box<[u8]>,
}

/// The peers that get an injected frame.
#[derive(Clone, Copy)]
pub(in crate::pipeline) enum To {
    Peer(PortId),
    /// Every peer that may get a frame from this port, or one that this node originates.
    Peers(Option<PortId>),
}
