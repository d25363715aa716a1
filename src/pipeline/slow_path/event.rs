// SPDX-License-Identifier: MIT OR Apache-2.0
//! What data threads and the slow path hand to each other, and how much of it may wait.

use patchcord_bridge::{Inside, Kind, PortId};

/// Frames that wait to be looked at.
pub(in crate::pipeline) const PUNTED_FRAMES: usize = 256;
/// Of these, questions for addresses: each may become a frame to be sent to peers.
pub(in crate::pipeline) const QUESTIONS: usize = 128;
/// Frames that wait to be sent to peers, beside what questions become: a round of loop probes.
pub(in crate::pipeline) const INJECTED_PER_PORT: usize = 64;

/// What happens for the slow path.
pub(in crate::pipeline) enum SlowPathEvent {
    /// A data thread has punted a frame.
    Punted(PuntedFrame),
    /// A peer is reachable.
    PeerUp(PortId),
    /// A peer is no longer reachable.
    PeerDown(PortId),
}

/// A frame that came in by a port and needs more than a forwarding decision.
pub(in crate::pipeline) struct PuntedFrame {
    pub(in crate::pipeline) kind: Kind,
    pub(in crate::pipeline) ingress: PortId,
    pub(in crate::pipeline) inside: Inside,
    pub(in crate::pipeline) frame: Box<[u8]>,
}

/// A frame that this node has made for peers.
pub(in crate::pipeline) struct InjectedFrame {
    pub(in crate::pipeline) to: To,
    pub(in crate::pipeline) inside: Inside,
    pub(in crate::pipeline) frame: Box<[u8]>,
}

/// The peers that get an injected frame.
#[derive(Clone, Copy)]
pub(in crate::pipeline) enum To {
    Peer(PortId),
    /// Every peer that may have what came from this port, or what this node has made.
    Peers(Option<PortId>),
}
