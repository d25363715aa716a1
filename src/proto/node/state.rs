// SPDX-License-Identifier: MIT OR Apache-2.0
//! The state of a node, and the steps that inputs share: the sessions, the reachability of each
//! peer, and its trouble.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use patchcord_bridge::PortId;

use super::event::{Event, Transmit};
use crate::{
    crypto::{
        self,
        aead::CipherOffer,
        keys::{PrivateKey, PublicKey},
    },
    proto::{
        guard::Guard,
        limits::EARLY_ATTEMPTS,
        peer::Peer,
        session::Session,
        trouble::{LastTrouble, Trouble},
    },
    rate::Bucket,
    wire::{LaneSet, SessionIndex},
};

/// The configuration of a node.
pub struct NodeConfig {
    /// Our identity.
    pub private_key: PrivateKey,
    /// The data ciphers that we allow.
    pub ciphers: CipherOffer,
    /// 24 bits; peers must use the same.
    pub network_id: u32,
    /// The lanes on which this node sends.
    pub lanes: LaneSet,
    /// The largest frame that we accept, in bytes.
    pub max_frame: u16,
    /// A session is replaced at this age.
    pub rekey_interval: Duration,
}

/// The owner of one of our indices.
pub(super) enum Owner {
    /// An initiation of this peer waits for its response.
    Attempt(PortId),
    /// A session.
    Session(Arc<Session>),
}

/// The protocol state of a tunnel.
pub struct Node {
    pub(super) config: NodeConfig,
    pub(super) public_key: PublicKey,
    pub(super) guard: Guard,
    /// What the rate of all initiations leaves.
    pub(super) initiations: Bucket,
    pub(super) peers: Vec<Peer>,
    pub(super) by_key: HashMap<PublicKey, PortId>,
    pub(super) indices: HashMap<SessionIndex, Owner>,
    pub(super) transmits: VecDeque<Transmit>,
    pub(super) events: VecDeque<Event>,
}

impl Node {
    /// Records why a peer cannot be reached, and reports it if that is new. A trouble that may pass
    /// with the next attempt is reported after several attempts.
    pub(super) fn note_trouble(&mut self, now: Instant, port: PortId, trouble: Trouble) {
        let may_pass = matches!(trouble, Trouble::NoAnswer | Trouble::Unreachable(..));
        let Some(peer) = self.peer(port) else { return };
        let is_news = LastTrouble::note(&mut peer.last_trouble, trouble, now);
        if is_news && (!may_pass || peer.schedule.attempts >= EARLY_ATTEMPTS) {
            self.events.push_back(Event::Trouble(port));
        }
    }

    pub(super) fn install(&mut self, session: Arc<Session>, ended: Option<Arc<Session>>) {
        let index = session.agreement.local;
        self.indices.insert(index, Owner::Session(session));
        self.uninstall(ended);
    }

    pub(super) fn uninstall(&mut self, ended: impl IntoIterator<Item = Arc<Session>>) {
        for session in ended {
            self.indices.remove(&session.agreement.local);
        }
        self.events.push_back(Event::TablesChanged);
    }

    /// A session sends from now on.
    pub(super) fn handle_established(&mut self, now: Instant, at: usize) {
        let peer = &mut self.peers[at];
        peer.handshakes += 1;
        peer.liveness.handle_heard(now);
        if !peer.is_up {
            peer.is_up = true;
            peer.path.restart(now);
            peer.trains.restart(now);
        }
        self.events.push_back(Event::TablesChanged);
        self.report_state(now, at);
    }

    pub(super) fn promote(&mut self, now: Instant, at: usize) {
        let peer = &mut self.peers[at];
        let ours_goes_first = self.public_key < peer.settings.public_key;
        let ended = peer.promote_next(ours_goes_first);
        // The response to our initiation has arrived.
        if let Some(attempt) = peer.attempt.take() {
            self.indices.remove(&attempt.index);
        }
        self.uninstall(ended);
        self.handle_established(now, at);
    }

    pub(super) fn expire(&mut self, now: Instant, at: usize) {
        let ended = self.peers[at].end_sessions(|session| session.is_expired(now));
        if !ended.is_empty() {
            self.uninstall(ended);
        }
        let peer = &self.peers[at];
        if peer.is_up && peer.current.is_none() {
            self.set_down(now, at);
        }
    }

    pub(super) fn set_down(&mut self, now: Instant, at: usize) {
        let peer = &mut self.peers[at];
        if std::mem::replace(&mut peer.is_up, false) {
            if peer.flaps.handle_lost(now) {
                self.events.push_back(Event::PeerFlaps(peer.port));
            }
            self.events.push_back(Event::TablesChanged);
        }
        self.peers[at].schedule_handshake(now);
        self.report_state(now, at);
    }

    /// Reports to the caller if a peer has come up or gone down. A peer that flaps is down.
    pub(super) fn report_state(&mut self, now: Instant, at: usize) {
        let peer = &mut self.peers[at];
        let is_held = peer.flaps.is_held_down(now);
        let is_up = peer.is_up && !is_held;
        if std::mem::replace(&mut peer.is_told_up, is_up) != is_up {
            self.events.push_back(match is_up {
                true => Event::PeerUp(peer.port),
                false => Event::PeerDown(peer.port),
            });
        }
    }

    pub(super) fn fresh_index(&self) -> SessionIndex {
        loop {
            let mut bits = [0; 4];
            crypto::random(&mut bits);
            let index = SessionIndex::from_low_bits(u32::from_be_bytes(bits));
            if !self.indices.contains_key(&index) {
                return index;
            }
        }
    }

    pub(super) fn peer(&mut self, port: PortId) -> Option<&mut Peer> {
        self.peers.get_mut(usize::from(port.0).checked_sub(1)?)
    }
}
