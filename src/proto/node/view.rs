// SPDX-License-Identifier: MIT OR Apache-2.0
//! The view of a peer for `show`.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    crypto::{aead::Cipher, keys::PublicKey},
    proto::{peer::Peer, trouble::LastTrouble},
    stats::Traffic,
};

/// A snapshot of a peer for `show`.
#[derive(Debug)]
pub struct PeerView {
    /// Its identity.
    pub public_key: PublicKey,
    /// Its present address.
    pub endpoint: Option<SocketAddr>,
    /// Whether it can be reached.
    pub is_up: bool,
    /// It flaps, and counts as down until it stays up.
    pub is_held_down: bool,
    /// Cipher of the session that sends.
    pub cipher: Option<Cipher>,
    /// Age of that session.
    pub handshake_age: Option<Duration>,
    /// Time since the last authentic datagram.
    pub silent_for: Option<Duration>,
    /// Round trip of the last echo.
    pub rtt: Option<Duration>,
    /// IP packet size that arrives there, while there is a session; `None` also where no size
    /// arrives that has room for frames.
    pub path_mtu: Option<u16>,
    /// Handshakes completed.
    pub handshakes: u64,
    /// The largest frame that the peer accepts; 0 when it did not say.
    pub max_frame: u16,
    /// The last reason for which it could not be reached.
    pub last_trouble: Option<LastTrouble>,
    /// Its counters.
    pub traffic: Arc<Traffic>,
}

impl PeerView {
    /// The peer as of now.
    pub(super) fn of(peer: &Peer, now: Instant) -> Self {
        let session = peer.current.as_ref();
        Self {
            public_key: peer.settings.public_key,
            endpoint: peer.endpoint,
            is_up: peer.is_told_up,
            is_held_down: peer.is_up && !peer.is_told_up,
            cipher: session.map(|session| session.agreement.cipher),
            handshake_age: session.map(|session| session.age(now)),
            silent_for: peer
                .liveness
                .last_heard()
                .map(|heard| now.saturating_duration_since(heard)),
            rtt: peer.rtt,
            path_mtu: session
                .filter(|_| !peer.path.is_too_narrow())
                .map(|_| peer.path.current()),
            handshakes: peer.handshakes,
            max_frame: peer.max_frame,
            last_trouble: peer.last_trouble.clone(),
            traffic: peer.traffic.clone(),
        }
    }
}
