// SPDX-License-Identifier: MIT OR Apache-2.0
//! One end of a tunnel: a node, and the state of the data threads.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use patchcord::{
    internals::{
        crypto::aead::{Cipher, CipherOffer},
        proto::{
            guard::Mac1Check,
            node::{Event, Node, NodeConfig, PeerView},
            peer::PeerSettings,
            reassembly::Reassembly,
            replay::ReplayWindow,
            session::{Session, Tables},
            train::{Outgoing, Pushed, Train},
        },
        stats::DropReason,
        wire::{
            DataHeader, Lane, MessageType, SessionIndex,
            chunk::{Chunk, Chunks},
        },
    },
    keys::{PresharedKey, PrivateKey},
};
use patchcord_bridge::PortId;

use crate::net::Sent;

pub(crate) const MAX_FRAME: u16 = 10_000;

/// The configuration of a host; a restart reads it again.
#[derive(Clone)]
pub(crate) struct Setup {
    /// The number of each peer, and whether its address is configured.
    pub(crate) peers: Vec<(usize, bool)>,
    pub(crate) preshared_key: Option<[u8; 32]>,
    pub(crate) ciphers: CipherOffer,
    pub(crate) network_id: u32,
    pub(crate) rekey_interval: Duration,
    pub(crate) keepalive: Duration,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            peers: Vec::new(),
            preshared_key: None,
            ciphers: CipherOffer::only(Cipher::ChaCha20Poly1305),
            network_id: 7,
            rekey_interval: Duration::from_secs(120),
            keepalive: Duration::from_secs(10),
        }
    }
}

/// The receive state of a lane.
struct LaneState {
    session: Arc<Session>,
    window: ReplayWindow,
    reassembly: Reassembly,
}

pub(crate) struct Host {
    pub(crate) node: Node,
    pub(crate) address: SocketAddr,
    /// Its control thread is not scheduled.
    pub(crate) is_stalled: bool,
    /// The IP MTU of its interface; larger datagrams are refused with EMSGSIZE.
    pub(crate) interface_mtu: u16,
    /// Frames that came out of the tunnel.
    pub(crate) received: Vec<(PortId, Vec<u8>)>,
    pub(crate) events: Vec<Event>,
    pub(crate) drops: HashMap<DropReason, u64>,
    mac1: Mac1Check,
    tables: Tables,
    lanes: HashMap<(SessionIndex, Lane), LaneState>,
    train: Train,
    next_frame_id: u32,
}

impl Host {
    pub(crate) fn new(
        key: &str,
        address: SocketAddr,
        setup: &Setup,
        peers: Vec<PeerSettings>,
        now: Instant,
    ) -> Self {
        let private_key = PrivateKey::from_base64(key).unwrap();
        let mac1 = Mac1Check::new(&private_key.public_key());
        let config = NodeConfig {
            private_key,
            ciphers: setup.ciphers,
            network_id: setup.network_id,
            lanes: 1.into(),
            max_frame: MAX_FRAME,
            rekey_interval: setup.rekey_interval,
        };
        Self {
            node: Node::new(config, peers, now),
            address,
            is_stalled: false,
            interface_mtu: u16::MAX,
            received: Vec::new(),
            events: Vec::new(),
            drops: HashMap::new(),
            mac1,
            tables: Tables::default(),
            lanes: HashMap::new(),
            train: Train::default(),
            next_frame_id: 0,
        }
    }

    pub(crate) fn view(&self, port: u16, now: Instant) -> PeerView {
        self.node.views(now).swap_remove(usize::from(port) - 1)
    }

    /// The tables of the data threads.
    pub(crate) fn tables(&self) -> &Tables {
        &self.tables
    }

    pub(crate) fn dropped(&self, reason: DropReason) -> u64 {
        self.drops.get(&reason).copied().unwrap_or_default()
    }

    fn count(&mut self, reason: DropReason) {
        *self.drops.entry(reason).or_default() += 1;
    }

    /// Carries out the node's output: events first, then datagrams (as `pipeline::control`).
    pub(crate) fn pump(&mut self, now: Instant) -> Vec<Sent> {
        while let Some(event) = self.node.poll_event() {
            if event == Event::TablesChanged {
                self.tables = self.node.tables();
                let tables = &self.tables;
                self.lanes
                    .retain(|(receiver, _), _| tables.sessions.contains_key(receiver));
            } else {
                self.events.push(event);
            }
        }
        let mut all = Vec::new();
        while let Some(transmit) = self.node.poll_transmit() {
            let sent = Sent {
                from: self.address,
                to: transmit.to,
                bytes: transmit.datagram.clone(),
            };
            if sent.packet_len() <= usize::from(self.interface_mtu) {
                all.push(sent);
            } else {
                self.node.handle_refused(now, &transmit);
            }
        }
        all
    }

    /// Sends a frame into the tunnel (as `pipeline::outbound`).
    pub(crate) fn send(
        &mut self,
        now: Instant,
        port: PortId,
        frame: &[u8],
    ) -> Result<Vec<Sent>, DropReason> {
        let (session, to, datagram_len) = self.tables.route_to(port, now)?;
        let session = session.clone();
        let mut sent = Vec::new();
        let mut outgoing = Outgoing::new(frame, self.next_frame_id, None);
        loop {
            self.train.bind(&session, to, datagram_len);
            let pushed = self.train.push(Lane::FIRST_DATA, &mut outgoing)?;
            self.train.close(Lane::FIRST_DATA)?;
            self.train.seal();
            for (run, size) in self.train.runs() {
                sent.extend(run.chunks(size).map(|datagram| Sent {
                    from: self.address,
                    to,
                    bytes: datagram.to_vec(),
                }));
            }
            self.train.clear();
            if pushed == Pushed::Done {
                break;
            }
        }
        self.next_frame_id += 1;
        let all = sent.len();
        sent.retain(|sent| sent.packet_len() <= usize::from(self.interface_mtu));
        if sent.len() < all {
            self.node.handle_too_big(now, port);
        }
        session
            .traffic
            .outbound
            .of(Lane::FIRST_DATA.0)
            .add_datagrams(sent.len() as u64);
        Ok(sent)
    }

    /// A datagram came off the underlay (as `pipeline::inbound`).
    pub(crate) fn handle_datagram(&mut self, now: Instant, from: SocketAddr, datagram: Vec<u8>) {
        if let Err(reason) = self.accept(now, from, datagram) {
            self.count(reason);
        }
    }

    fn accept(
        &mut self,
        now: Instant,
        from: SocketAddr,
        mut datagram: Vec<u8>,
    ) -> Result<(), DropReason> {
        let message_type = MessageType::of(&datagram)?;
        if !matches!(message_type, MessageType::Frame | MessageType::Chunks) {
            if message_type != MessageType::CookieReply {
                self.mac1.check(&datagram)?;
            }
            return self.node.handle_handshake(now, from, &datagram);
        }
        let receiver = DataHeader::parse(&datagram)?.receiver();
        let session = self.tables.session(receiver, now)?;
        let (counter, plaintext) = session.open(&mut datagram)?;
        let lane = self
            .lanes
            .entry((receiver, counter.lane()))
            .or_insert_with(|| LaneState {
                session: session.clone(),
                window: ReplayWindow::default(),
                reassembly: Reassembly::new(MAX_FRAME.into()),
            });
        let newest = lane.window.accept(counter.sequence())?;
        let port = lane.session.port;
        lane.session.confirm();
        let flow = &lane.session.traffic.inbound;
        flow.of(counter.lane().0).add_datagrams(1);
        if counter.lane() == Lane::CONTROL {
            return self
                .node
                .handle_control(now, from, receiver, newest, plaintext);
        }
        let endpoint = self.tables.route(port).and_then(|route| route.endpoint);
        if newest && endpoint != Some(from) {
            self.node.handle_roamed(now, receiver, from);
        }
        if message_type == MessageType::Frame {
            self.received.push((port, plaintext.to_vec()));
            return Ok(());
        }
        for chunk in Chunks::new(plaintext) {
            let frame = match chunk? {
                Chunk::Frame(frame) => Some(frame),
                Chunk::Fragment(fragment, piece) => {
                    lane.reassembly.add(counter.sequence(), fragment, piece)?;
                    lane.reassembly.take_whole().map(|it| it.frame)
                }
                _ => return Err(DropReason::Malformed),
            };
            self.received
                .extend(frame.map(|frame| (port, frame.to_vec())));
        }
        Ok(())
    }
}

/// Settings of a peer as seen by a host with `setup`.
pub(crate) fn peer_settings(
    setup: &Setup,
    key: &str,
    endpoint: Option<SocketAddr>,
) -> PeerSettings {
    use base64::{Engine, engine::general_purpose::STANDARD};
    PeerSettings {
        public_key: PrivateKey::from_base64(key).unwrap().public_key(),
        preshared_key: setup
            .preshared_key
            .map(|bytes| PresharedKey::from_base64(&STANDARD.encode(bytes)).unwrap()),
        endpoint,
        has_name: false,
        keepalive: setup.keepalive,
    }
}
