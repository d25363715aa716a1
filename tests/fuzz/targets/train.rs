// SPDX-License-Identifier: MIT OR Apache-2.0
//! Any frames into datagrams of any size and back: every frame comes out, whole and in order, with its
//! offload descriptor.
#![no_main]
#![allow(clippy::disallowed_methods, reason = "a handshake in real time")]

#[path = "../original.rs"]
mod original;

use std::{
    net::SocketAddr,
    sync::{Arc, OnceLock},
    time::{Duration, Instant, SystemTime},
};

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use patchcord::{
    internals::{
        crypto::aead::{Cipher, CipherOffer},
        proto::{
            node::{Node, NodeConfig},
            peer::PeerSettings,
            reassembly::{Reassembly, Which},
            session::Session,
            train::{Outgoing, Pushed, TRAIN_BYTES, TRAIN_DATAGRAMS, Train},
        },
        wire::{
            Lane, MessageType,
            chunk::{Chunk, Chunks},
            offload::Offload,
        },
    },
    keys::{PrivateKey, PublicKey},
};

use original::{Kind, Original};

const LANE: Lane = Lane::FIRST_DATA;
const ADDRESS: &str = "192.0.2.1:1";

fuzz_target!(|input: Input| {
    // From the smallest datagram, on a path of 576 bytes, to the largest train.
    let datagram_len = 528 + usize::from(input.datagram_len) % (TRAIN_BYTES - 528);
    let frames: Vec<_> = (0..=255)
        .zip(&input.frames)
        .map(|(number, &(kind, len))| {
            let kind = kind.unwrap_or(Kind::Finished);
            Original::new(number, kind, usize::from(len), 1 << 16)
        })
        .collect();
    let (sealing, opening) = sessions();
    let mut wire = Wire {
        opening,
        reassembly: Reassembly::new(1 << 16),
        frames: Vec::new(),
        datagram_len,
    };
    let mut train = Train::default();
    for (frame_id, Original { frame, pending }) in (0..).zip(&frames) {
        let mut outgoing = Outgoing::new(frame, frame_id, *pending);
        loop {
            if train.is_empty() {
                let to = ADDRESS.parse().expect("an address");
                train.bind(&sealing, to, datagram_len);
            }
            let pushed = train.push(LANE, &mut outgoing);
            match pushed.expect("counters are left") {
                Pushed::Done => break,
                Pushed::Full => wire.carry(&mut train),
            }
        }
        if input.depart_after == Some(frame_id as u8) {
            wire.carry(&mut train);
        }
    }
    wire.carry(&mut train);
    assert_eq!(wire.frames.len(), frames.len());
    for (arrived, sent) in wire.frames.iter().zip(&frames) {
        assert!(arrived.0 == sent.frame);
        assert_eq!(arrived.1, sent.pending.map(|pending| pending.offload));
    }
    assert!(wire.reassembly.poll_run(Which::All).is_none());
});

#[derive(Arbitrary, Debug)]
struct Input {
    datagram_len: u16,
    depart_after: Option<u8>,
    frames: Vec<(Option<Kind>, u16)>,
}

/// The far end.
struct Wire {
    opening: &'static Arc<Session>,
    reassembly: Reassembly,
    frames: Vec<(Vec<u8>, Option<Offload>)>,
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
        let (counter, plaintext) = self.opening.open(&mut datagram).expect("it was sealed");
        if message_type == Ok(MessageType::Frame) {
            self.frames.push((plaintext.to_vec(), None));
            return;
        }
        for chunk in Chunks::new(plaintext) {
            let sequence = counter.sequence();
            let is_whole = match chunk.expect("it was emitted") {
                Chunk::Frame(frame) => {
                    self.frames.push((frame.to_vec(), None));
                    continue;
                }
                Chunk::PartialChecksum(checksum, frame) => {
                    let segmentation = None;
                    let offload = Offload {
                        checksum,
                        segmentation,
                    };
                    self.frames.push((frame.to_vec(), Some(offload)));
                    continue;
                }
                Chunk::Fragment(fragment, piece) => self.reassembly.add(sequence, fragment, piece),
                Chunk::Offload(frame, offload, head) => {
                    self.reassembly.describe(sequence, frame, offload, head)
                }
                other => panic!("{other:?}"),
            };
            if is_whole.expect("it was cut") {
                let whole = self.reassembly.take_whole().expect("it is whole");
                self.frames.push((whole.frame.to_vec(), whole.offload));
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
        b.handle_handshake(now, address, &initiation).expect("good");
        let response = b.poll_transmit().expect("it answers").datagram;
        a.handle_handshake(now, address, &response).expect("good");
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
        lanes: 1.into(),
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
