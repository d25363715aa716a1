// SPDX-License-Identifier: MIT OR Apache-2.0
//! The pure steps of the data path in the order of `pipeline::outbound` and `pipeline::inbound`,
//! without their sockets and threads.
//!
//! A change to those two files has its like here; the benches and the test for allocations follow.

#![allow(clippy::disallowed_methods, reason = "benches live in real time")]
#![allow(
    clippy::unwrap_used,
    reason = "a bench that cannot set itself up should stop"
)]

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use patchcord::{
    crypto::{
        aead::{Cipher, CipherOffer},
        keys::PrivateKey,
    },
    proto::{
        node::{Node, NodeConfig},
        peer::PeerSettings,
        reassembly::Reassembly,
        replay::ReplayWindow,
        session::Session,
        train::{Outgoing, Pushed, Train},
    },
    wire::{
        Lane, MessageType,
        chunk::{Chunk, Chunks},
    },
};

/// The UDP payload of a path of 1500 bytes over IPv4.
pub(crate) const DATAGRAM_LEN: usize = 1472;
/// The largest frame that a node takes.
pub(crate) const MAX_FRAME: u16 = u16::MAX;

/// The two ends of a session, by a real handshake.
pub(crate) fn sessions(cipher: Cipher) -> (Arc<Session>, Arc<Session>) {
    let now = Instant::now();
    let keys = [PrivateKey::generate(), PrivateKey::generate()];
    let publics = [keys[0].public_key(), keys[1].public_key()];
    let addresses = ["192.0.2.1:1", "192.0.2.2:1"].map(|text| text.parse().unwrap());
    let mut nodes: Vec<Node> = keys
        .into_iter()
        .enumerate()
        .map(|(at, private_key)| {
            let config = NodeConfig {
                private_key,
                ciphers: CipherOffer::only(cipher),
                network_id: 0,
                lanes: 1,
                max_frame: MAX_FRAME,
                rekey_interval: Duration::from_secs(120),
            };
            let peer = PeerSettings {
                public_key: publics[1 - at],
                preshared_key: None,
                endpoint: (at == 0).then_some(addresses[1]),
                has_name: false,
                keepalive: Duration::from_secs(10),
            };
            Node::new(config, vec![peer], now)
        })
        .collect();
    nodes[0].handle_timeout(now, SystemTime::now());
    for receiver in [1, 0] {
        let sent = nodes[1 - receiver].poll_transmit().unwrap();
        let from = addresses[1 - receiver];
        nodes[receiver]
            .handle_handshake(now, SystemTime::now(), from, &sent.datagram)
            .unwrap();
    }
    let initiator = nodes[0].tables().routes[0].session.clone().unwrap();
    let responder = nodes[1].tables().sessions.into_values().next().unwrap();
    (initiator, responder)
}

/// Outbound, from the switch to the socket.
pub(crate) struct Sender {
    session: Arc<Session>,
    train: Train,
    next_frame_id: u32,
}

impl Sender {
    /// Sends under `session`.
    pub(crate) fn new(session: Arc<Session>) -> Self {
        Self {
            session,
            train: Train::default(),
            next_frame_id: 0,
        }
    }

    /// Lays a frame out; trains that fill up go to `depart`.
    pub(crate) fn push(&mut self, frame: &[u8], depart: &mut impl FnMut(&mut Train)) {
        let frame_id = self.next_frame_id;
        self.next_frame_id = frame_id.wrapping_add(1);
        let mut offset = 0;
        loop {
            if self.train.is_empty() {
                let to = "192.0.2.2:1".parse().unwrap();
                self.train.bind(self.session.clone(), to, DATAGRAM_LEN);
            }
            let outgoing = Outgoing {
                frame,
                frame_id,
                offset,
            };
            match self.train.push(Lane::FIRST_DATA, outgoing).unwrap() {
                Pushed::Done => return,
                Pushed::Full { offset: next } => {
                    offset = next;
                    self.flush(depart);
                }
            }
        }
    }

    /// The train goes to `depart` as it is.
    pub(crate) fn flush(&mut self, depart: &mut impl FnMut(&mut Train)) {
        self.train.close(Lane::FIRST_DATA).unwrap();
        depart(&mut self.train);
        self.train.clear();
    }
}

/// Inbound, from the socket to the switch.
pub(crate) struct Receiver {
    session: Arc<Session>,
    window: ReplayWindow,
    reassembly: Reassembly,
}

impl Receiver {
    /// Receives under `session`.
    pub(crate) fn new(session: Arc<Session>) -> Self {
        Self {
            session,
            window: ReplayWindow::default(),
            reassembly: Reassembly::new(MAX_FRAME.into()),
        }
    }

    /// Opens a datagram; its frames go to `deliver`.
    pub(crate) fn receive(&mut self, datagram: &mut [u8], deliver: &mut impl FnMut(&[u8])) {
        let message_type = MessageType::of(datagram).unwrap();
        let (counter, plaintext) = self.session.open(datagram).unwrap();
        self.window.accept(counter.sequence()).unwrap();
        if message_type == MessageType::Frame {
            return deliver(plaintext);
        }
        for chunk in Chunks::new(plaintext) {
            match chunk.unwrap() {
                Chunk::Frame(frame) => deliver(frame),
                Chunk::Fragment(fragment, piece) => {
                    if let Some(frame) = self.reassembly.add(fragment, piece).unwrap() {
                        deliver(frame);
                    }
                }
                other => panic!("{other:?} on a data lane"),
            }
        }
    }
}

/// Every datagram of a train, in order.
pub(crate) fn datagrams(train: &Train) -> impl Iterator<Item = &[u8]> {
    train.runs().flat_map(|(run, size)| run.chunks(size))
}
