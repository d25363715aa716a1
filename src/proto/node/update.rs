// SPDX-License-Identifier: MIT OR Apache-2.0
//! Changes of the configuration of a node that has sessions. A peer whose keys stay keeps its session.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use patchcord_bridge::PortId;

use super::{
    event::Event,
    state::{Node, Owner},
};
use crate::{
    crypto::{aead::CipherOffer, keys::PresharedKey},
    proto::peer::{Peer, PeerSettings},
    wire::chunk::ControlChunk,
};

/// What changes for all peers; `None` stays as it is.
#[derive(Default)]
pub struct NodeUpdate {
    /// The data ciphers that we allow.
    pub ciphers: Option<CipherOffer>,
    /// The largest frame that we accept, in bytes.
    pub max_frame: Option<u16>,
    /// A session is replaced at this age.
    pub rekey_interval: Option<Duration>,
}

impl Node {
    /// Changes what concerns all peers. A handshake with each makes it known; the present sessions carry
    /// frames until then.
    pub fn update(&mut self, now: Instant, update: NodeUpdate) {
        let must_tell = update.ciphers.is_some() || update.max_frame.is_some();
        let config = &mut self.config;
        config.ciphers = update.ciphers.unwrap_or(config.ciphers);
        config.max_frame = update.max_frame.unwrap_or(config.max_frame);
        config.rekey_interval = update.rekey_interval.unwrap_or(config.rekey_interval);
        for peer in self.peers.iter_mut().filter(|_| must_tell) {
            if peer.current.is_some() {
                peer.schedule_handshake(now);
            }
        }
    }

    /// The address that the configuration has for a peer, or that its name has.
    pub fn configured_endpoint(&self, port: PortId) -> Option<SocketAddr> {
        let peer = self.peers.get(usize::from(port.0).checked_sub(1)?)?;
        peer.settings.endpoint
    }

    /// Changes a peer. With other keys it gets a new session; with another endpoint, datagrams go there
    /// from now on.
    pub fn update_peer(&mut self, now: Instant, port: PortId, settings: PeerSettings) {
        let Some(at) = usize::from(port.0).checked_sub(1) else {
            return;
        };
        let Some(peer) = self.peers.get_mut(at) else {
            return;
        };
        if !has_keys_of(&peer.settings, &settings) {
            return self.replace_peer(now, at, settings);
        }
        let awaits_name = settings.has_name && settings.endpoint.is_none();
        peer.moves_when_resolved = awaits_name;
        let moved = settings
            .endpoint
            .filter(|_| settings.endpoint != peer.settings.endpoint);
        peer.settings = settings;
        if let Some(endpoint) = moved {
            self.move_peer(now, at, endpoint);
        }
    }

    /// Sends to another address from now on.
    pub(super) fn move_peer(&mut self, now: Instant, at: usize, endpoint: SocketAddr) {
        let peer = &mut self.peers[at];
        peer.handle_endpoint(endpoint, now);
        peer.schedule_handshake(now);
        self.events.push_back(Event::TablesChanged);
    }

    /// Ends what there is with the former keys.
    fn replace_peer(&mut self, now: Instant, at: usize, settings: PeerSettings) {
        self.send_control(at, &[ControlChunk::Close], 0);
        let ended = self.peers[at].end_sessions(|_| true);
        self.uninstall(ended);
        self.set_down(now, at);
        let port = self.peers[at].port;
        self.indices
            .retain(|_, owner| !matches!(owner, Owner::Attempt(of) if *of == port));
        self.by_key.retain(|_, of| *of != port);
        self.by_key.insert(settings.public_key, port);
        let peer = Peer::new(port, settings, &self.public_key, now);
        let former = std::mem::replace(&mut self.peers[at], peer);
        let peer = &mut self.peers[at];
        peer.traffic = former.traffic;
        if former.settings.public_key == peer.settings.public_key {
            // Replays stay replays.
            peer.newest_timestamp = former.newest_timestamp;
            peer.own_timestamp = former.own_timestamp;
        }
        self.events.push_back(Event::TablesChanged);
    }
}

fn has_keys_of(one: &PeerSettings, other: &PeerSettings) -> bool {
    let secret = one.preshared_key.as_ref().map(PresharedKey::as_bytes);
    one.public_key == other.public_key
        && secret == other.preshared_key.as_ref().map(PresharedKey::as_bytes)
}
