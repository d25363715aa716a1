// SPDX-License-Identifier: MIT OR Apache-2.0
//! What data threads and the slow path hand to each other, and how much of it may wait.

use patchcord_bridge::{Inside, Kind, PortId};

/// Frames that wait to be looked at.
pub(in crate::pipeline) const SIGHTINGS: usize = 256;
/// Of these, questions for addresses: each may become a frame to be sent to peers.
pub(in crate::pipeline) const QUESTIONS: usize = 128;
/// Frames that wait to be sent to peers, beside what questions become: a round of loop probes.
pub(in crate::pipeline) const INJECTED_PER_PORT: usize = 64;

/// A frame that came by a port, for the slow path to look at.
pub(in crate::pipeline) struct Sighting {
    pub(in crate::pipeline) kind: Kind,
    pub(in crate::pipeline) ingress: PortId,
    pub(in crate::pipeline) inside: Inside,
    pub(in crate::pipeline) frame: Box<[u8]>,
}

/// A frame of our own for peers.
pub(in crate::pipeline) struct InjectedFrame {
    pub(in crate::pipeline) to: To,
    pub(in crate::pipeline) inside: Inside,
    pub(in crate::pipeline) frame: Box<[u8]>,
}

/// Whom a frame is for.
#[derive(Clone, Copy)]
pub(in crate::pipeline) enum To {
    Peer(PortId),
    /// Every peer that may have what came from this port, or what this node has made.
    Peers(Option<PortId>),
}
