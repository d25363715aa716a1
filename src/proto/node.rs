// SPDX-License-Identifier: MIT OR Apache-2.0
//! The protocol of one tunnel with all its peers, without sockets, threads or clocks.
//!
//! Inputs are `handle_*`, effects are taken with `poll_*` until they return `None`:
//!
//! - [`Node::handle_handshake`]: a handshake message came;
//! - [`Node::handle_control`]: a data thread accepted a datagram of the control lane;
//! - [`Node::handle_roamed`], [`Node::handle_too_big`]: what the data threads noticed;
//! - [`Node::handle_resolved`], [`Node::handle_network_change`]: what the host noticed;
//! - [`Node::handle_timeout`]: the time of [`Node::poll_timeout`] has come;
//! - [`Node::poll_event`] before [`Node::poll_transmit`]: an event may bring keys that the answer to
//!   a transmit needs.
//!
//! The control thread drives it (`pipeline::control`); `tests` below drive two of them with a
//! virtual clock.

use std::{
    collections::{HashMap, VecDeque},
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use patchcord_bridge::PortId;
use zerocopy::{FromZeros, IntoBytes};

use super::{
    guard::{Guard, Verdict},
    limits::{EARLY_ATTEMPTS, INITIATION_INTERVAL, RESOLVE_AFTER_ATTEMPTS},
    peer::{Attempt, Peer, PeerSettings},
    session::{Agreement, Role, Session, Tables},
    tai64n::tai64n,
};
use crate::{
    crypto::{
        aead::{Cipher, CipherOffer},
        keys::{PrivateKey, PublicKey},
        mac,
        noise::{Initiator, Responder},
    },
    stats::{DropReason, Traffic},
    wire::{
        CookieReply, DATA_HEADER_LEN, DATA_OVERHEAD, Initiation, InitiationPayload, Lane,
        MessageType, Response, ResponsePayload, SessionIndex, TAG_LEN,
        chunk::{Chunk, Chunks, ECHO_LEN, push_control},
        handshake::MacFields,
    },
};

const FAST_AES: u8 = 1;

/// What a node is.
pub struct NodeConfig {
    /// Our identity.
    pub private_key: PrivateKey,
    /// The data ciphers that we allow.
    pub ciphers: CipherOffer,
    /// 24 bits; peers must name the same.
    pub network_id: u32,
    /// Our highest data lane.
    pub lanes: u8,
    /// The largest frame that we take, in bytes.
    pub max_frame: u16,
    /// A session is replaced at this age.
    pub rekey_interval: Duration,
}

/// A datagram to send.
#[derive(Debug, PartialEq, Eq)]
pub struct Transmit {
    /// Where to.
    pub to: SocketAddr,
    /// What.
    pub datagram: Vec<u8>,
}

/// Something that the host must do or may tell.
#[derive(Debug, PartialEq, Eq)]
pub enum Event {
    /// Sessions, endpoints or path MTUs changed: publish [`Node::tables`] to the data threads.
    TablesChanged,
    /// The peer can be reached.
    PeerUp(PortId),
    /// The peer cannot be reached any more.
    PeerDown(PortId),
    /// The peer was heard from another address than before.
    PeerMoved(PortId, SocketAddr),
    /// The peer has been called in vain for some seconds.
    NoAnswer(PortId),
    /// The peer does not answer: look its name up again.
    Resolve(PortId),
}

/// A snapshot of a peer for `show`.
#[derive(Debug)]
pub struct PeerView {
    /// Its identity.
    pub public_key: PublicKey,
    /// Its present address.
    pub endpoint: Option<SocketAddr>,
    /// Whether it can be reached.
    pub is_up: bool,
    /// Cipher of the session that sends.
    pub cipher: Option<Cipher>,
    /// Age of that session.
    pub handshake_age: Option<Duration>,
    /// Since the last authentic datagram.
    pub silent_for: Option<Duration>,
    /// Round trip of the last echo.
    pub rtt: Option<Duration>,
    /// IP packet size that arrives there, while there is a session.
    pub path_mtu: Option<u16>,
    /// Handshakes completed.
    pub handshakes: u64,
    /// The largest frame that the peer takes; 0 when it did not say.
    pub max_frame: u16,
    /// Its counters.
    pub traffic: Arc<Traffic>,
}

/// What an index of ours stands for.
enum Owner {
    /// An initiation of this peer waits for its response.
    Attempt(PortId),
    /// A session.
    Session(Arc<Session>),
}

/// The protocol state of a tunnel.
pub struct Node {
    config: NodeConfig,
    public_key: PublicKey,
    guard: Guard,
    peers: Vec<Peer>,
    by_key: HashMap<PublicKey, PortId>,
    indices: HashMap<SessionIndex, Owner>,
    transmits: VecDeque<Transmit>,
    events: VecDeque<Event>,
}

impl Node {
    /// A node that calls its peers at once. The peer at place `n` gets `PortId(n + 1)`.
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

    /// What the data threads need, as of now.
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
        self.peers.iter().any(|peer| peer.is_up)
    }

    /// The peers, in the order of their ports.
    pub fn views(&self, now: Instant) -> Vec<PeerView> {
        self.peers.iter().map(|peer| view(peer, now)).collect()
    }

    /// A datagram of one of the handshake types came from the network.
    ///
    /// # Errors
    /// Why it was dropped.
    pub fn handle_handshake(
        &mut self,
        now: Instant,
        wall: SystemTime,
        from: SocketAddr,
        datagram: &[u8],
    ) -> Result<(), DropReason> {
        match MessageType::of(datagram)? {
            MessageType::Initiation => self.handle_initiation(now, from, datagram),
            MessageType::Response => self.handle_response(now, from, datagram),
            MessageType::CookieReply => self.handle_cookie_reply(now, wall, datagram),
            MessageType::Frame | MessageType::Chunks => Err(DropReason::UnknownType),
        }
    }

    /// A data thread opened and accepted a datagram of the control lane of session `receiver`.
    /// `newest`: none with a higher counter came before.
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
            self.handle_back(at);
        }
        for chunk in Chunks::new(plaintext) {
            self.handle_chunk(now, at, established, chunk?);
        }
        Ok(())
    }

    /// A data thread got an authentic datagram of session `receiver` from another address.
    ///
    /// One of a session that was replaced says nothing of where the peer is now: whoever held it
    /// back could send it from anywhere.
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
        let had_endpoint = peer.endpoint.is_some();
        if peer.handle_endpoint(from, now) {
            self.events.push_back(Event::TablesChanged);
            if had_endpoint {
                self.events.push_back(Event::PeerMoved(port, from));
            }
        }
    }

    /// The kernel refused a datagram to `port` as too big.
    pub fn handle_too_big(&mut self, now: Instant, port: PortId) {
        let Some(peer) = self.peer(port) else { return };
        peer.path.handle_too_big(now);
        self.events.push_back(Event::TablesChanged);
    }

    /// The name of a peer stands for this address now.
    pub fn handle_resolved(&mut self, now: Instant, port: PortId, address: SocketAddr) {
        let Some(peer) = self.peer(port) else { return };
        peer.settings.endpoint = Some(address);
        if !peer.is_up {
            peer.handle_endpoint(address, now);
            peer.call(now);
            self.events.push_back(Event::TablesChanged);
        }
    }

    /// Addresses or routes of this machine changed: let every peer hear from us at once, so that it
    /// learns our new address.
    pub fn handle_network_change(&mut self, now: Instant) {
        for at in 0..self.peers.len() {
            self.peers[at].path.handle_network_change(now);
            self.send_echo(now, at);
            if !self.peers[at].is_up && self.peers[at].calling.due.is_some() {
                self.peers[at].calling.due = Some(now);
            }
        }
    }

    /// Tells every peer that we stop.
    pub fn close(&mut self) {
        for at in 0..self.peers.len() {
            self.send_control(at, &[Chunk::Close], 0);
        }
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Instant, wall: SystemTime) {
        for at in 0..self.peers.len() {
            self.expire(now, at);
            self.sample(now, at);
            self.probe_path(now, at);
            self.call_if_due(now, wall, at);
        }
    }

    /// The next datagram to send.
    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        self.transmits.pop_front()
    }

    /// The next event.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// When [`Self::handle_timeout`] wants to be called.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.peers
            .iter()
            .filter_map(|peer| peer.poll_timeout(self.config.rekey_interval))
            .min()
    }

    // Handshake, in the order of its messages.

    fn call_if_due(&mut self, now: Instant, wall: SystemTime, at: usize) {
        let peer = &mut self.peers[at];
        let rekey = peer
            .rekey_at(self.config.rekey_interval)
            .is_some_and(|rekey| now >= rekey);
        if rekey
            || peer
                .current
                .as_ref()
                .is_some_and(|session| session.is_worn_out())
        {
            peer.call(now);
        }
        if peer.calling.due.is_some_and(|due| now >= due) {
            if peer.settings.has_name
                && peer.calling.attempts % RESOLVE_AFTER_ATTEMPTS == RESOLVE_AFTER_ATTEMPTS - 1
            {
                self.events.push_back(Event::Resolve(peer.port));
            }
            if peer.calling.attempts == EARLY_ATTEMPTS {
                self.events.push_back(Event::NoAnswer(peer.port));
            }
            self.initiate(now, wall, at);
        }
    }

    fn initiate(&mut self, now: Instant, wall: SystemTime, at: usize) {
        let index = self.fresh_index();
        let peer = &mut self.peers[at];
        let to = peer.call_address();
        peer.handle_attempt(now, jitter());
        let Some(to) = to else { return };

        let payload = InitiationPayload {
            timestamp: tai64n(wall),
            network_id: network_id_bytes(self.config.network_id),
            ciphers: self.config.ciphers.allowed,
            flags: if self.config.ciphers.fast_aes {
                FAST_AES
            } else {
                0
            },
            lanes: self.config.lanes,
            max_frame: self.config.max_frame.into(),
            ..InitiationPayload::new_zeroed()
        };
        let settings = &peer.settings;
        let mut message = Initiation::new(index, [0; _]);
        let noise = Initiator::start(
            &self.config.private_key,
            &settings.public_key,
            settings.preshared_key.as_ref(),
            &payload,
            &mut message.noise,
        );
        let cookie = peer.fresh_cookie(now);
        let (mac1, mac2) = macs(&settings.public_key, cookie.as_ref(), message.as_bytes());
        (message.mac1, message.mac2) = (mac1, mac2);

        let former = peer.attempt.replace(Attempt { noise, index, mac1 });
        if let Some(former) = former {
            self.indices.remove(&former.index);
        }
        self.indices
            .insert(index, Owner::Attempt(PortId(at as u16 + 1)));
        // Data threads pass on only answers to what they know was asked.
        self.events.push_back(Event::TablesChanged);
        self.transmits.push_back(Transmit {
            to,
            datagram: message.as_bytes().to_vec(),
        });
    }

    fn handle_initiation(
        &mut self,
        now: Instant,
        from: SocketAddr,
        datagram: &[u8],
    ) -> Result<(), DropReason> {
        let message = Initiation::parse(datagram)?;
        self.pass_guard(now, from, datagram, message.sender)?;
        let responder = Responder::read(&self.config.private_key, &message.noise)?;
        let port = *self
            .by_key
            .get(&responder.initiator)
            .ok_or(DropReason::UnknownPeer)?;
        let offer = responder.payload;
        if offer.network_id != network_id_bytes(self.config.network_id) {
            return Err(DropReason::Incompatible);
        }
        let peer = &mut self.peers[usize::from(port.0) - 1];
        if offer.timestamp <= peer.newest_timestamp {
            return Err(DropReason::ReplayedHandshake);
        }
        if peer
            .last_initiation
            .is_some_and(|last| now < last + INITIATION_INTERVAL)
        {
            return Err(DropReason::HandshakeRateLimited);
        }
        let theirs = CipherOffer {
            allowed: offer.ciphers,
            fast_aes: offer.flags & FAST_AES != 0,
        };
        let cipher = self
            .config
            .ciphers
            .choose(theirs)
            .ok_or(DropReason::Incompatible)?;
        peer.newest_timestamp = offer.timestamp;
        peer.last_initiation = Some(now);
        peer.max_frame = offer.max_frame.get();
        if peer.next.as_ref().is_some_and(|next| next.is_confirmed()) {
            // The peer sends under it already; the new session must not take its place.
            self.promote(now, usize::from(port.0) - 1);
        }
        self.respond(now, from, message.sender, responder, cipher, port)
    }

    fn respond(
        &mut self,
        now: Instant,
        from: SocketAddr,
        remote: SessionIndex,
        responder: Responder,
        cipher: Cipher,
        port: PortId,
    ) -> Result<(), DropReason> {
        let local = self.fresh_index();
        let remote_lanes = responder.payload.lanes;
        let payload = ResponsePayload {
            cipher: cipher as u8,
            lanes: self.config.lanes,
            max_frame: self.config.max_frame.into(),
            ..ResponsePayload::new_zeroed()
        };
        let peer = &mut self.peers[usize::from(port.0) - 1];
        let mut message = Response::new(remote, local, [0; _]);
        let keys = responder.respond(
            peer.settings.preshared_key.as_ref(),
            &payload,
            &mut message.noise,
        )?;
        let cookie = peer.fresh_cookie(now);
        (message.mac1, message.mac2) = macs(
            &peer.settings.public_key,
            cookie.as_ref(),
            message.as_bytes(),
        );

        let role = Role::Responder;
        let local_lanes = self.config.lanes;
        let agreement = Agreement {
            local,
            remote,
            role,
            cipher,
            local_lanes,
            remote_lanes,
        };
        let session = Arc::new(Session::new(
            agreement,
            &keys,
            port,
            now,
            peer.traffic.clone(),
        ));
        let ended = peer.establish_as_responder(session.clone());
        self.install(session, ended);
        self.transmits.push_back(Transmit {
            to: from,
            datagram: message.as_bytes().to_vec(),
        });
        Ok(())
    }

    fn handle_response(
        &mut self,
        now: Instant,
        from: SocketAddr,
        datagram: &[u8],
    ) -> Result<(), DropReason> {
        let message = Response::parse(datagram)?;
        let Some(&Owner::Attempt(port)) = self.indices.get(&message.receiver) else {
            return Err(DropReason::UnknownSession);
        };
        // No cookie is asked for: only who saw our initiation knows the index.
        self.guard.check_mac1(datagram)?;
        let peer = &mut self.peers[usize::from(port.0) - 1];
        let attempt = peer.attempt.as_mut().ok_or(DropReason::UnknownSession)?;
        let (payload, keys) = attempt.noise.finish(&message.noise)?;
        let local = attempt.index;
        peer.attempt = None;
        self.indices.remove(&local);
        let cipher = Cipher::from_bit(payload.cipher)
            .filter(|&cipher| self.config.ciphers.allowed & cipher as u8 != 0)
            .ok_or(DropReason::Incompatible)?;
        let agreement = Agreement {
            local,
            remote: message.sender,
            role: Role::Initiator,
            cipher,
            local_lanes: self.config.lanes,
            remote_lanes: payload.lanes,
        };
        peer.max_frame = payload.max_frame.get();
        let session = Arc::new(Session::new(
            agreement,
            &keys,
            port,
            now,
            peer.traffic.clone(),
        ));
        let ended = peer.establish_as_initiator(session.clone());
        peer.handle_endpoint(from, now);
        self.install(session, ended);
        let at = usize::from(port.0) - 1;
        self.handle_established(now, at);
        // The responder may send only after it has heard from us under the new keys.
        self.send_echo(now, at);
        Ok(())
    }

    fn handle_cookie_reply(
        &mut self,
        now: Instant,
        wall: SystemTime,
        datagram: &[u8],
    ) -> Result<(), DropReason> {
        let reply = CookieReply::parse(datagram)?;
        let Some(&Owner::Attempt(port)) = self.indices.get(&reply.receiver) else {
            return Err(DropReason::UnknownSession);
        };
        let at = usize::from(port.0) - 1;
        let peer = &mut self.peers[at];
        let mac1 = peer
            .attempt
            .as_ref()
            .ok_or(DropReason::UnknownSession)?
            .mac1;
        let key = mac::cookie_key(&peer.settings.public_key);
        let cookie = mac::open_cookie(&key, &reply.nonce, &mac1, &reply.sealed_cookie)
            .ok_or(DropReason::BadMac)?;
        let had_one = peer.fresh_cookie(now).is_some();
        peer.cookie = Some((cookie, now));
        if !had_one {
            // Once per cookie: a responder that goes on asking must not make us flood it.
            self.initiate(now, wall, at);
        }
        Ok(())
    }

    fn pass_guard(
        &mut self,
        now: Instant,
        from: SocketAddr,
        datagram: &[u8],
        sender: SessionIndex,
    ) -> Result<(), DropReason> {
        match self.guard.judge(now, from, datagram, sender) {
            Verdict::Pass => Ok(()),
            Verdict::Drop(reason) => Err(reason),
            Verdict::Challenge(reply) => {
                self.transmits.push_back(Transmit {
                    to: from,
                    datagram: reply.as_bytes().to_vec(),
                });
                Err(DropReason::CookieRequired)
            }
        }
    }

    // Sessions.

    fn install(&mut self, session: Arc<Session>, ended: Option<Arc<Session>>) {
        let index = session.agreement.local;
        self.indices.insert(index, Owner::Session(session));
        self.uninstall(ended);
    }

    fn uninstall(&mut self, ended: impl IntoIterator<Item = Arc<Session>>) {
        for session in ended {
            self.indices.remove(&session.agreement.local);
        }
        self.events.push_back(Event::TablesChanged);
    }

    /// A session sends from now on.
    fn handle_established(&mut self, now: Instant, at: usize) {
        let peer = &mut self.peers[at];
        peer.handshakes += 1;
        peer.liveness.handle_heard(now);
        if !peer.is_up {
            peer.is_up = true;
            peer.path.restart(now);
            self.events.push_back(Event::PeerUp(peer.port));
        }
        self.events.push_back(Event::TablesChanged);
    }

    fn promote(&mut self, now: Instant, at: usize) {
        let peer = &mut self.peers[at];
        let ours_goes_first = self.public_key < peer.settings.public_key;
        let ended = peer.promote_next(ours_goes_first);
        // What we asked for is there.
        if let Some(attempt) = peer.attempt.take() {
            self.indices.remove(&attempt.index);
        }
        self.uninstall(ended);
        self.handle_established(now, at);
    }

    fn expire(&mut self, now: Instant, at: usize) {
        let ended = self.peers[at].end_sessions(|session| session.is_expired(now));
        if !ended.is_empty() {
            self.uninstall(ended);
        }
        let peer = &self.peers[at];
        if peer.is_up && peer.current.is_none() {
            self.set_down(now, at);
        }
    }

    fn set_down(&mut self, now: Instant, at: usize) {
        let peer = &mut self.peers[at];
        if std::mem::replace(&mut peer.is_up, false) {
            self.events
                .extend([Event::PeerDown(peer.port), Event::TablesChanged]);
        }
        peer.call(now);
    }

    fn fresh_index(&self) -> SessionIndex {
        loop {
            let mut bits = [0; 4];
            mac::random(&mut bits);
            let index = SessionIndex::from_low_bits(u32::from_be_bytes(bits));
            if !self.indices.contains_key(&index) {
                return index;
            }
        }
    }

    // The control lane.

    /// A peer that was down is heard again, under a session that is still good.
    fn handle_back(&mut self, at: usize) {
        let peer = &mut self.peers[at];
        peer.is_up = true;
        self.events
            .extend([Event::PeerUp(peer.port), Event::TablesChanged]);
    }

    /// `established`: of the session under which the chunk came.
    fn handle_chunk(&mut self, now: Instant, at: usize, established: Instant, chunk: Chunk<'_>) {
        match chunk {
            Chunk::EchoRequest { token } => self.send_control(at, &[Chunk::EchoReply { token }], 0),
            Chunk::EchoReply { token } => self.handle_echo_reply(now, at, token),
            Chunk::Close => self.handle_close(now, at, established),
            // Frames travel on data lanes; here they would bypass the switch.
            Chunk::Frame(_) | Chunk::Fragment(..) => {}
        }
    }

    /// The peer stops. A session that is younger than the close was made after it, by a peer that
    /// runs again.
    fn handle_close(&mut self, now: Instant, at: usize, established: Instant) {
        let ended = self.peers[at].end_sessions(|session| session.established <= established);
        self.uninstall(ended);
        if self.peers[at].current.is_none() {
            self.set_down(now, at);
        }
    }

    fn handle_echo_reply(&mut self, now: Instant, at: usize, token: u64) {
        let peer = &mut self.peers[at];
        if let Some((_, sent)) = peer.echo.take_if(|&mut (expected, _)| expected == token) {
            let rtt = now.saturating_duration_since(sent);
            peer.rtt = Some(rtt);
            peer.path.handle_rtt(rtt);
        } else if peer.path.handle_reply(token, now) {
            self.events.push_back(Event::TablesChanged);
        }
    }

    fn send_echo(&mut self, now: Instant, at: usize) {
        let token = random_token();
        self.peers[at].echo = Some((token, now));
        self.send_control(at, &[Chunk::EchoRequest { token }], 0);
    }

    /// Sends chunks on the control lane, padded to `len` bytes of UDP payload if they are shorter.
    fn send_control(&mut self, at: usize, chunks: &[Chunk<'_>], len: usize) {
        let peer = &self.peers[at];
        let (Some(session), Some(to)) = (&peer.current, peer.endpoint) else {
            return;
        };
        let mut datagram = vec![0; DATA_HEADER_LEN];
        for &chunk in chunks {
            push_control(&mut datagram, chunk);
        }
        datagram.resize((datagram.len() + TAG_LEN).max(len), 0);
        let Ok(counter) = session.next_counter(Lane::CONTROL) else {
            return;
        };
        session.seal(MessageType::Chunks, counter, &mut datagram);
        session.traffic.outbound.add_datagrams(1);
        self.transmits.push_back(Transmit { to, datagram });
    }

    // Timers.

    fn sample(&mut self, now: Instant, at: usize) {
        let peer = &mut self.peers[at];
        if now < peer.liveness.next_sample() {
            return;
        }
        if peer.next.as_ref().is_some_and(|next| next.is_confirmed()) {
            self.promote(now, at);
        }
        let peer = &mut self.peers[at];
        if peer.current.is_none() {
            peer.liveness.postpone(now);
            return;
        }
        let (sent, received) = (
            peer.traffic.outbound.datagrams(),
            peer.traffic.inbound.datagrams(),
        );
        let (keepalive, rtt) = (peer.settings.keepalive, peer.rtt.unwrap_or_default());
        let findings = peer.liveness.sample(now, sent, received, keepalive, rtt);
        let heard_again = !peer.is_up && peer.liveness.last_heard() == Some(now);
        if findings.sent {
            peer.path.handle_traffic(now);
        }
        if findings.rekey {
            peer.call(now);
        }
        if findings.ask {
            self.send_echo(now, at);
        }
        if findings.down {
            self.set_down(now, at);
        } else if heard_again {
            self.handle_back(at);
        }
    }

    fn probe_path(&mut self, now: Instant, at: usize) {
        let peer = &mut self.peers[at];
        if peer.current.is_none() {
            return;
        }
        if peer.liveness.is_suspect(now) {
            peer.path.handle_silence(now);
        } else if peer.path.handle_timeout(now) {
            self.events.push_back(Event::TablesChanged);
        }
        while let Some(size) = self.peers[at].path.poll_probe() {
            let token = random_token();
            self.peers[at].path.handle_sent(token, size);
            let len = usize::from(size) - self.peers[at].ip_overhead();
            debug_assert!(len > DATA_OVERHEAD + ECHO_LEN);
            self.send_control(at, &[Chunk::EchoRequest { token }], len);
        }
    }

    fn peer(&mut self, port: PortId) -> Option<&mut Peer> {
        self.peers.get_mut(usize::from(port.0).checked_sub(1)?)
    }
}

fn view(peer: &Peer, now: Instant) -> PeerView {
    let session = peer.current.as_ref();
    PeerView {
        public_key: peer.settings.public_key,
        endpoint: peer.endpoint,
        is_up: peer.is_up,
        cipher: session.map(|session| session.agreement.cipher),
        handshake_age: session.map(|session| session.age(now)),
        silent_for: peer
            .liveness
            .last_heard()
            .map(|heard| now.saturating_duration_since(heard)),
        rtt: peer.rtt,
        path_mtu: session.map(|_| peer.path.current()),
        handshakes: peer.handshakes,
        max_frame: peer.max_frame,
        traffic: peer.traffic.clone(),
    }
}

fn network_id_bytes(network_id: u32) -> [u8; 3] {
    let [_, a, b, c] = network_id.to_be_bytes();
    [a, b, c]
}

/// mac1 and mac2 of a message to the owner of `public_key`.
pub(super) fn macs(
    public_key: &PublicKey,
    cookie: Option<&mac::Cookie>,
    message: &[u8],
) -> ([u8; 16], [u8; 16]) {
    let fields = MacFields::of(message).expect("handshake messages end with two macs");
    let mac1 = mac::mac(&mac::mac1_key(public_key), fields.before_mac1);
    let mac2 = cookie.map_or([0; 16], |cookie| {
        let covered = [fields.before_mac1, &mac1].concat();
        mac::mac(cookie, &covered)
    });
    (mac1, mac2)
}

fn random_token() -> u64 {
    let mut token = [0; 8];
    mac::random(&mut token);
    u64::from_be_bytes(token)
}

/// Up to a tenth of a second, so that two sides that call each other at once do not go on so.
fn jitter() -> Duration {
    Duration::from_millis(random_token() % 100)
}
