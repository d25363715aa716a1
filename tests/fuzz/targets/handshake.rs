// SPDX-License-Identifier: MIT OR Apache-2.0
//! A node between a real peer and a forger that knows its public key: any datagrams at any time.
//!
//! The forger's datagrams cause no session, no event, and no more bytes than it sent, one datagram for
//! each; peer and forger together cannot make the tables exceed their bounds.
#![no_main]

use std::{
    net::SocketAddr,
    sync::OnceLock,
    time::{Duration, Instant, SystemTime},
};

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use patchcord::{
    internals::{
        crypto::{aead::CipherOffer, mac},
        proto::{
            limits::SESSIONS_PER_PEER,
            node::{Event, Node, NodeConfig},
            peer::PeerSettings,
        },
    },
    keys::{PrivateKey, PublicKey},
};

const PEER: &str = "192.0.2.1:1";
const OURS: &str = "192.0.2.2:2";

fuzz_target!(|steps: Vec<Step>| {
    let mut world = World::new();
    for step in steps.into_iter().take(200) {
        world.take(step);
    }
});

#[derive(Arbitrary, Debug)]
enum Step {
    /// Bytes from some address; with a good mac1 if there is room for one.
    Forge {
        port: u16,
        message_type: u8,
        len: u8,
        bytes: Vec<u8>,
        good_mac: bool,
    },
    /// A datagram of the peer, from another address, changed in one place, perhaps with a good mac1
    /// again.
    Bend {
        which: u8,
        at: u8,
        with: u8,
        good_mac: bool,
    },
    /// The oldest datagram between the two that was not delivered yet.
    Deliver { to_peer: bool },
    /// It is lost.
    Lose { to_peer: bool },
    /// Time passes.
    Wait { millis: u16 },
}

struct World {
    node: Node,
    peer: Node,
    to_node: Vec<Vec<u8>>,
    to_peer: Vec<Vec<u8>>,
    /// Every datagram of the peer.
    overheard: Vec<Vec<u8>>,
    now: Instant,
    wall: SystemTime,
}

impl World {
    fn new() -> Self {
        static KEYS: OnceLock<[String; 2]> = OnceLock::new();
        let keys =
            KEYS.get_or_init(|| [(); 2].map(|()| PrivateKey::generate().to_base64().to_string()));
        let [ours, theirs] = [0, 1].map(|at| PrivateKey::from_base64(&keys[at]).expect("a key"));
        let publics = (ours.public_key(), theirs.public_key());
        let now = Instant::now();
        let mut world = Self {
            node: node(ours, publics.1, PEER, now),
            peer: node(theirs, publics.0, OURS, now),
            to_node: Vec::new(),
            to_peer: Vec::new(),
            overheard: Vec::new(),
            now,
            wall: SystemTime::UNIX_EPOCH + Duration::from_secs(1 << 30),
        };
        world.pump();
        world
    }

    fn take(&mut self, step: Step) {
        match step {
            Step::Forge {
                port,
                message_type,
                len,
                mut bytes,
                good_mac,
            } => {
                bytes.resize(usize::from(len), 0);
                if let Some(first) = bytes.first_mut() {
                    *first = 0x10 | message_type % 8;
                }
                self.forge(([203, 0, 113, 1], port).into(), bytes, good_mac);
            }
            Step::Bend {
                which,
                at,
                with,
                good_mac,
            } => {
                let Some(datagram) = self.overheard.get(usize::from(which)) else {
                    return;
                };
                let mut bytes = datagram.clone();
                let at = usize::from(at) % bytes.len();
                // A handshake message with another receiver, version or mac2 is still the peer's.
                if with == 0 || at < 8 || at + 32 >= bytes.len() {
                    return;
                }
                bytes[at] ^= with;
                self.forge(([203, 0, 113, 2], 9).into(), bytes, good_mac);
            }
            Step::Deliver { to_peer: true } => {
                if !self.to_peer.is_empty() {
                    let datagram = self.to_peer.remove(0);
                    let from = address(OURS);
                    let _ = self.peer.handle_handshake(self.now, from, &datagram);
                }
            }
            Step::Deliver { to_peer: false } => {
                if !self.to_node.is_empty() {
                    let datagram = self.to_node.remove(0);
                    let from = address(PEER);
                    let _ = self.node.handle_handshake(self.now, from, &datagram);
                }
            }
            Step::Lose { to_peer } => {
                let flying = if to_peer {
                    &mut self.to_peer
                } else {
                    &mut self.to_node
                };
                flying.truncate(flying.len().saturating_sub(1));
            }
            Step::Wait { millis } => self.wait(Duration::from_millis(millis.into())),
        }
        self.pump();
    }

    fn forge(&mut self, from: SocketAddr, mut bytes: Vec<u8>, good_mac: bool) {
        if let (true, Some(covered)) = (good_mac, bytes.len().checked_sub(32)) {
            let key = mac::mac1_key(&self.node.public_key());
            let mac1 = mac::mac(&key, &bytes[..covered]);
            bytes[covered..covered + 16].copy_from_slice(&mac1);
        }
        let before = sessions(&self.node);
        let handled = self.node.handle_handshake(self.now, from, &bytes);
        assert!(handled.is_err(), "{bytes:02x?}");
        assert_eq!(sessions(&self.node), before);
        while let Some(event) = self.node.poll_event() {
            assert!(
                matches!(event, Event::Refused(_) | Event::Trouble(_)),
                "{event:?}"
            );
        }
        if let Some(answer) = self.node.poll_transmit() {
            assert_eq!(answer.to, from);
            assert!(answer.datagram.len() <= bytes.len());
        }
        assert_eq!(self.node.poll_transmit(), None);
    }

    fn wait(&mut self, duration: Duration) {
        self.now += duration;
        self.wall += duration;
        for node in [&mut self.node, &mut self.peer] {
            node.handle_timeout(self.now, self.wall);
            let due = node.poll_timeout();
            assert!(due.is_none_or(|due| due > self.now), "a timer stands still");
        }
    }

    fn pump(&mut self) {
        while let Some(event) = self.node.poll_event() {
            assert!(!matches!(event, Event::PeerMoved { .. }));
        }
        while self.peer.poll_event().is_some() {}
        while let Some(transmit) = self.node.poll_transmit() {
            assert_eq!(transmit.to, address(PEER));
            self.to_peer.push(transmit.datagram);
        }
        while let Some(transmit) = self.peer.poll_transmit() {
            self.overheard.push(transmit.datagram.clone());
            self.to_node.push(transmit.datagram);
        }
        assert!(sessions(&self.node) <= SESSIONS_PER_PEER);
    }
}

fn sessions(node: &Node) -> usize {
    node.tables().sessions.len()
}

fn address(text: &str) -> SocketAddr {
    text.parse().expect("an address")
}

fn node(key: PrivateKey, peer: PublicKey, endpoint: &str, now: Instant) -> Node {
    let config = NodeConfig {
        private_key: key,
        ciphers: CipherOffer::auto(Instant::now),
        network_id: 1,
        lanes: 1.into(),
        max_frame: 1522,
        rekey_interval: Duration::from_secs(30),
    };
    let peer = PeerSettings {
        public_key: peer,
        preshared_key: None,
        endpoint: Some(address(endpoint)),
        has_name: false,
        keepalive: Duration::from_secs(10),
    };
    Node::new(config, vec![peer], now)
}
