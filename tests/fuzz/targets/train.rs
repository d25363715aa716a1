// SPDX-License-Identifier: MIT OR Apache-2.0
//! Any frames into datagrams of any size and back: every frame comes out, whole and in order.
#![no_main]

use std::{
    net::SocketAddr,
    sync::{Arc, OnceLock},
    time::{Duration, Instant, SystemTime},
};

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use patchcord::{
    crypto::{
        aead::{Cipher, CipherOffer},
        keys::{PrivateKey, PublicKey},
    },
    proto::{
        node::{Node, NodeConfig},
        peer::PeerSettings,
        reassembly::Reassembly,
        session::Session,
        train::{Outgoing, Pushed, TRAIN_BYTES, TRAIN_DATAGRAMS, Train},
    },
    wire::{
        Lane, MessageType,
        chunk::{Chunk, Chunks},
    },
};

const LANE: Lane = Lane::FIRST_DATA;
const ADDRESS: &str = "192.0.2.1:1";

fuzz_target!(|input: Input| {
    // The smallest datagram that a path of 576 bytes leaves, to the largest train.
    let datagram_len = 528 + usize::from(input.datagram_len) % (TRAIN_BYTES - 528);
    let frames: Vec<_> = (0..=255)
        .zip(&input.lens)
        .map(|(fill, &len)| vec![fill; usize::from(len)])
        .collect();
    let (sealing, opening) = sessions();
    let mut wire = Wire {
        opening,
        reassembly: Reassembly::new(1 << 16),
        frames: Vec::new(),
        datagram_len,
    };
    let mut train = Train::default();
    for (frame_id, frame) in (0..).zip(&frames) {
        let mut offset = 0;
        loop {
            if train.is_empty() {
                let to = ADDRESS.parse().expect("an address");
                train.bind(sealing.clone(), to, datagram_len);
            }
            let outgoing = Outgoing {
                frame,
                frame_id,
                offset,
            };
            match train.push(LANE, outgoing).expect("counters are left") {
                Pushed::Done => break,
                Pushed::Full { offset: next } => offset = next,
            }
            wire.carry(&mut train);
        }
        if input.depart_after == Some(frame_id as u8) {
            wire.carry(&mut train);
        }
    }
    wire.carry(&mut train);
    assert_eq!(wire.frames, frames);
});

#[derive(Arbitrary, Debug)]
struct Input {
    datagram_len: u16,
    depart_after: Option<u8>,
    lens: Vec<u16>,
}

/// The far end.
struct Wire {
    opening: &'static Arc<Session>,
    reassembly: Reassembly,
    frames: Vec<Vec<u8>>,
    datagram_len: usize,
}

impl Wire {
    fn carry(&mut self, train: &mut Train) {
        train.close(LANE).expect("counters are left");
        assert!(train.len() <= TRAIN_DATAGRAMS);
        train.seal();
        let mut count = 0;
        for (run, size) in train.runs() {
            assert!(size <= self.datagram_len);
            for datagram in run.chunks(size) {
                count += 1;
                self.open(datagram.to_vec());
            }
        }
        assert_eq!(count, train.len());
        train.clear();
    }

    fn open(&mut self, mut datagram: Vec<u8>) {
        let message_type = MessageType::of(&datagram);
        let (_, plaintext) = self.opening.open(&mut datagram).expect("it was sealed");
        if message_type == Ok(MessageType::Frame) {
            self.frames.push(plaintext.to_vec());
            return;
        }
        for chunk in Chunks::new(plaintext) {
            match chunk.expect("it was emitted") {
                Chunk::Frame(frame) => self.frames.push(frame.to_vec()),
                Chunk::Fragment(fragment, piece) => {
                    let frame = self.reassembly.add(fragment, piece).expect("it was cut");
                    self.frames.extend(frame.map(<[u8]>::to_vec));
                }
                other => panic!("{other:?}"),
            }
        }
    }
}

/// Both ends of one session, made once.
fn sessions() -> &'static (Arc<Session>, Arc<Session>) {
    static SESSIONS: OnceLock<(Arc<Session>, Arc<Session>)> = OnceLock::new();
    SESSIONS.get_or_init(|| {
        let (a, b) = (PrivateKey::generate(), PrivateKey::generate());
        let (a_public, b_public) = (a.public_key(), b.public_key());
        let address = ADDRESS.parse().expect("an address");
        let (now, wall) = (Instant::now(), SystemTime::now());
        let mut a = node(a, b_public, Some(address), now);
        let mut b = node(b, a_public, None, now);
        a.handle_timeout(now, wall);
        let initiation = a.poll_transmit().expect("it calls at once").datagram;
        b.handle_handshake(now, wall, address, &initiation)
            .expect("good");
        let response = b.poll_transmit().expect("it answers").datagram;
        a.handle_handshake(now, wall, address, &response)
            .expect("good");
        let only = |node: &Node| node.tables().sessions.into_values().next();
        (
            only(&a).expect("established"),
            only(&b).expect("established"),
        )
    })
}

fn node(key: PrivateKey, peer: PublicKey, endpoint: Option<SocketAddr>, now: Instant) -> Node {
    let config = NodeConfig {
        private_key: key,
        ciphers: CipherOffer::only(Cipher::Aes256Gcm),
        network_id: 0,
        lanes: 1,
        max_frame: u16::MAX,
        rekey_interval: Duration::from_secs(120),
    };
    let peer = PeerSettings {
        public_key: peer,
        preshared_key: None,
        endpoint,
        has_name: false,
        keepalive: Duration::from_secs(10),
    };
    Node::new(config, vec![peer], now)
}
