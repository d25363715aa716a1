// SPDX-License-Identifier: MIT OR Apache-2.0
//! The protocol of one tunnel with all its peers, without sockets, threads or clocks.
//!
//! Inputs are `handle_*`, effects are taken with `poll_*` until they return `None`:
//!
//! - [`Node::handle_handshake`]: a handshake message arrived;
//! - [`Node::handle_control`]: a data thread accepted a datagram of the control lane;
//! - [`Node::handle_roamed`], [`Node::handle_too_big`]: observations of the data threads;
//! - [`Node::handle_resolved`], [`Node::handle_unresolved`], [`Node::handle_unreachable`],
//!   [`Node::handle_refused`], [`Node::handle_route_change`], [`Node::handle_link_mtu_change`]:
//!   observations of the caller;
//! - [`Node::handle_timeout`]: the time of [`Node::poll_timeout`] is reached;
//! - [`Node::poll_event`] before [`Node::poll_transmit`]: an event may bring keys that the answer
//!   to a transmit needs.
//!
//! The control thread drives it (`pipeline::control`), and so does `tests/netsim`, with a virtual
//! clock. `initiations` decides when to initiate a handshake with which peer, `handshake` has the
//! messages of both sides, `upkeep` keeps an established peer alive. Each of them uses only what
//! follows it here, and `state`, which has the steps that they share.

mod event;
mod handshake;
mod initiations;
mod state;
mod update;
mod upkeep;
mod view;

use std::{
    collections::{HashMap, VecDeque},
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Instant, SystemTime},
};

use patchcord_bridge::PortId;

#[cfg(test)]
pub(super) use self::handshake::macs;
use self::state::Owner;
pub use self::{
    event::{Event, Refused, Transmit},
    state::{Node, NodeConfig},
    update::NodeUpdate,
    view::PeerView,
};
use super::{
    guard::Guard,
    limits::PATH_MTU_FLOOR,
    peer::{Peer, PeerSettings},
    session::{Session, Tables},
    trouble::{LastTrouble, NameError, Trouble, Unreachable},
};
use crate::{
    crypto::keys::PublicKey,
    rate::Bucket,
    stats::DropReason,
    wire::{
        MessageType, SessionIndex,
        chunk::{Chunk, Chunks, ControlChunk},
    },
};

impl Node {
    /// A node that initiates with its peers at once. The peer at position `n` gets `PortId(n + 1)`.
    pub fn new(config: NodeConfig, peers: Vec<PeerSettings>, now: Instant) -> Self {
        let public_key = config.private_key.public_key();
        let peers: Vec<Peer> = (1..)
            .zip(peers)
            .map(|(port, settings)| Peer::new(PortId(port), settings, &public_key, now))
            .collect();
        let by_key = peers
            .iter()
            .map(|peer| (peer.settings.public_key, peer.port))
            .collect();
        Self {
            guard: Guard::new(&public_key, now),
            initiations: Bucket::new(now),
            config,
            public_key,
            peers,
            by_key,
            indices: HashMap::new(),
            transmits: VecDeque::new(),
            events: VecDeque::from([Event::TablesChanged]),
        }
    }

    /// Our public key.
    pub fn public_key(&self) -> PublicKey {
        self.public_key
    }

    /// The state that the data threads need, as of now.
    pub fn tables(&self) -> Tables {
        let sessions = self.peers.iter().flat_map(Peer::sessions);
        Tables {
            routes: self.peers.iter().map(Peer::route).collect(),
            sessions: sessions
                .map(|session| (session.agreement.local, session.clone()))
                .collect(),
            attempts: self
                .peers
                .iter()
                .filter_map(|peer| Some(peer.attempt.as_ref()?.index))
                .collect(),
        }
    }

    /// Whether any peer can be reached.
    pub fn is_any_up(&self) -> bool {
        self.peers.iter().any(|peer| peer.is_told_up)
    }

    /// The peers, in the order of their ports.
    pub fn views(&self, now: Instant) -> Vec<PeerView> {
        self.peers
            .iter()
            .map(|peer| PeerView::of(peer, now))
            .collect()
    }

    /// The last trouble with a peer.
    pub fn last_trouble(&self, port: PortId) -> Option<&LastTrouble> {
        let peer = self.peers.get(usize::from(port.0).checked_sub(1)?)?;
        peer.last_trouble.as_ref()
    }

    /// The address of a peer, or the one to which initiations go.
    pub fn endpoint(&self, port: PortId) -> Option<SocketAddr> {
        let peer = self.peers.get(usize::from(port.0).checked_sub(1)?)?;
        peer.endpoint
    }

    /// A datagram of one of the handshake types arrived from the network.
    ///
    /// # Errors
    /// Why it was dropped.
    pub fn handle_handshake(
        &mut self,
        now: Instant,
        from: SocketAddr,
        datagram: &[u8],
    ) -> Result<(), DropReason> {
        match MessageType::of(datagram)? {
            MessageType::Initiation => self.handle_initiation(now, from, datagram),
            MessageType::Response => self.handle_response(now, from, datagram),
            MessageType::CookieReply => self.handle_cookie_reply(now, datagram),
            MessageType::Frame | MessageType::Chunks => Err(DropReason::UnknownType),
        }
    }

    /// A data thread decrypted and accepted a datagram of the control lane of session `receiver`.
    /// `newest`: none with a higher counter arrived before.
    ///
    /// # Errors
    /// Why it was dropped.
    pub fn handle_control(
        &mut self,
        now: Instant,
        from: SocketAddr,
        receiver: SessionIndex,
        newest: bool,
        plaintext: &[u8],
    ) -> Result<(), DropReason> {
        let Some(Owner::Session(session)) = self.indices.get(&receiver) else {
            return Err(DropReason::UnknownSession);
        };
        let (port, established) = (session.port, session.established);
        let at = usize::from(port.0) - 1;
        if self.peers[at]
            .next
            .as_ref()
            .is_some_and(|next| next.agreement.local == receiver)
        {
            self.promote(now, at);
        }
        self.peers[at].liveness.handle_heard(now);
        if newest {
            self.handle_roamed(now, receiver, from);
        }
        if !self.peers[at].is_up && self.peers[at].current.is_some() {
            self.handle_back(now, at);
        }
        let mut has_replied = false;
        for chunk in Chunks::new(plaintext) {
            // Frames travel on data lanes; here they would bypass the switch.
            let Chunk::Control(chunk) = chunk? else {
                continue;
            };
            // One reply for one datagram: a peer must not get back more than it sends.
            let asks = matches!(chunk, ControlChunk::EchoRequest { .. });
            if !(asks && std::mem::replace(&mut has_replied, true)) {
                self.handle_chunk(now, at, established, chunk);
            }
        }
        Ok(())
    }

    /// A data thread received an authentic datagram of session `receiver` from another address.
    ///
    /// A datagram of a replaced session says nothing about the peer's present address: a host that
    /// held it back could send it from anywhere.
    pub fn handle_roamed(&mut self, now: Instant, receiver: SessionIndex, from: SocketAddr) {
        let Some(Owner::Session(session)) = self.indices.get(&receiver) else {
            return;
        };
        let port = session.port;
        let Some(peer) = self.peer(port) else { return };
        let is_former = |former: &Arc<Session>| former.agreement.local == receiver;
        if peer.previous.as_ref().is_some_and(is_former) {
            return;
        }
        let former = peer.endpoint;
        if peer.handle_endpoint(from, now) {
            self.events.push_back(Event::TablesChanged);
            if let Some(former) = former {
                self.handle_move(now, port, former, from);
            }
        }
    }

    fn handle_move(&mut self, now: Instant, port: PortId, from: SocketAddr, to: SocketAddr) {
        self.events.push_back(Event::PeerMoved { port, from, to });
        let Some(peer) = self.peer(port) else { return };
        if let Some(both) = peer.moves.note(from, to, now) {
            self.note_trouble(now, port, Trouble::SharedKey(both));
        }
    }

    /// The kernel refused a datagram to `port` as too big.
    pub fn handle_too_big(&mut self, now: Instant, port: PortId) {
        let Some(peer) = self.peer(port) else { return };
        let before = peer.path.current();
        peer.path.handle_too_big(now);
        if peer.path.current() != before {
            self.events.push_back(Event::TablesChanged);
        }
    }

    /// The kernel refused a datagram of [`Self::poll_transmit`] as too big: it is larger than our
    /// own link takes.
    pub fn handle_refused(&mut self, now: Instant, transmit: &Transmit) {
        for at in 0..self.peers.len() {
            if self.peers[at].endpoint == Some(transmit.to) {
                self.handle_refused_of(now, at, transmit.datagram.len());
            }
        }
    }

    fn handle_refused_of(&mut self, now: Instant, at: usize, len: usize) {
        let peer = &mut self.peers[at];
        let size = u16::try_from(len + peer.ip_overhead()).unwrap_or(u16::MAX);
        if peer.path.handle_refused(size, now) {
            self.events.push_back(Event::TablesChanged);
        }
        let is_handshake = size < PATH_MTU_FLOOR;
        if is_handshake || self.peers[at].path.take_too_narrow() {
            self.note_trouble(now, self.peers[at].port, Trouble::NarrowPath);
        }
    }

    /// The name of a peer resolves to this address now.
    pub fn handle_resolved(&mut self, now: Instant, port: PortId, address: SocketAddr) {
        let Some(peer) = self.peer(port) else { return };
        peer.settings.endpoint = Some(address);
        if std::mem::take(&mut peer.moves_when_resolved) {
            return self.move_peer(now, usize::from(port.0) - 1, address);
        }
        if !peer.is_up {
            peer.handle_endpoint(address, now);
            peer.schedule_handshake(now);
            self.events.push_back(Event::TablesChanged);
        }
    }

    /// The address of each peer that has one, or to which initiations go.
    pub fn endpoints(&self) -> impl Iterator<Item = (PortId, SocketAddr)> {
        let endpoint = |peer: &Peer| Some((peer.port, peer.endpoint?));
        self.peers.iter().filter_map(endpoint)
    }

    /// The name of a peer does not resolve now.
    pub fn handle_unresolved(&mut self, now: Instant, port: PortId, error: NameError) {
        self.note_trouble(now, port, Trouble::Unresolved(error));
    }

    /// The kernel or a router says that datagrams do not arrive at `to`. Anyone can forge what a
    /// router says, so it is logged and changes nothing.
    pub fn handle_unreachable(
        &mut self,
        now: Instant,
        to: SocketAddr,
        why: Unreachable,
        by: Option<IpAddr>,
    ) {
        let is_there = |address: Option<SocketAddr>| {
            address.is_some_and(|it| (it.ip(), it.port()) == (to.ip(), to.port()))
        };
        let waiting = self.peers.iter().filter(|peer| {
            peer.schedule.due.is_some()
                && (is_there(peer.endpoint) || is_there(peer.settings.endpoint))
        });
        let ports: Vec<_> = waiting.map(|peer| peer.port).collect();
        for port in ports {
            self.note_trouble(now, port, Trouble::Unreachable(why, by));
        }
    }

    /// Tells every peer that we stop.
    pub fn close(&mut self) {
        for at in 0..self.peers.len() {
            self.send_control(at, &[ControlChunk::Close], 0);
        }
    }

    /// Performs what is due.
    pub fn handle_timeout(&mut self, now: Instant, wall: SystemTime) {
        for at in 0..self.peers.len() {
            self.expire(now, at);
            self.sample(now, at);
            self.report_state(now, at);
            self.probe_path(now, at);
            self.check_trains(now, at);
        }
        self.initiate_due(now, wall);
    }

    /// The next datagram to send.
    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        self.transmits.pop_front()
    }

    /// The next event.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// When to call [`Self::handle_timeout`].
    pub fn poll_timeout(&self) -> Option<Instant> {
        let peers = self.peers.iter();
        peers
            .filter_map(|peer| peer.poll_timeout(self.config.rekey_interval))
            .chain(self.next_initiation())
            .min()
    }
}
