// SPDX-License-Identifier: MIT OR Apache-2.0
//! The output of a node: datagrams to send, and events.

use std::net::SocketAddr;

use patchcord_bridge::PortId;

use crate::{crypto::keys::PublicKey, stats::DropReason};

/// A datagram to send.
#[derive(Debug, PartialEq, Eq)]
pub struct Transmit {
    /// Its destination.
    pub to: SocketAddr,
    /// Its bytes.
    pub datagram: Vec<u8>,
    /// Whether to give it to the kernel in one train with the next one, which is for the same peer
    /// and as long.
    pub joins_next: bool,
}

/// Something that the caller must do or may report.
#[derive(Debug, PartialEq, Eq)]
pub enum Event {
    /// Sessions, endpoints or path MTUs changed: publish [`Node::tables`](super::Node::tables) to the data threads.
    TablesChanged,
    /// The peer can be reached.
    PeerUp(PortId),
    /// Trains of datagrams arrive at the peer again.
    TrainsArrive(PortId),
    /// The peer cannot be reached any more.
    PeerDown(PortId),
    /// The peer flaps: it counts as down until it stays up.
    PeerFlaps(PortId),
    /// The peer was heard from another address than before.
    PeerMoved {
        /// The peer.
        port: PortId,
        /// Its former address.
        from: SocketAddr,
        /// Its present address.
        to: SocketAddr,
    },
    /// The peer's [`PeerView::last_trouble`](super::PeerView::last_trouble) is to be reported: it is new, or initiations have had
    /// no answer for some seconds.
    Trouble(PortId),
    /// A handshake was refused.
    Refused(Refused),
    /// The peer does not answer: look its name up again.
    Resolve(PortId),
}

/// A handshake that was refused, and its sender, as far as that is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Why.
    pub reason: DropReason,
    /// Its source address, which may be forged.
    pub from: SocketAddr,
    /// The public key of the initiator; the message may be a replay of an earlier initiation.
    pub key: Option<PublicKey>,
    /// The peer with that key.
    pub port: Option<PortId>,
}
