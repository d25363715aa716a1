// SPDX-License-Identifier: MIT OR Apache-2.0
//! One bench for each pure stage of the data path: `cargo bench --bench stages`.
//!
//! Throughput is in bytes of frames. What system calls cost is not in here; `scripts/` measures
//! whole tunnels.

#![allow(clippy::disallowed_methods, reason = "benches live in real time")]
#![allow(missing_docs, reason = "criterion makes public items")]
#![allow(
    clippy::unwrap_used,
    reason = "a bench that cannot set itself up should stop"
)]

use std::{
    hint::black_box,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
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
use patchcord_bridge::{PortId, Switch, SwitchConfig};

const FRAMES: usize = 40;
const DATAGRAM_LEN: usize = 1472;

/// The two ends of a session, by a real handshake.
fn sessions(cipher: Cipher) -> (Arc<Session>, Arc<Session>) {
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
                max_frame: 1522,
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

fn pack(train: &mut Train, session: &Arc<Session>, frame: &[u8]) {
    train.clear();
    train.bind(
        session.clone(),
        "192.0.2.2:1".parse().unwrap(),
        DATAGRAM_LEN,
    );
    for frame_id in 0..FRAMES as u32 {
        let outgoing = Outgoing {
            frame,
            frame_id,
            offset: 0,
        };
        assert_eq!(train.push(Lane::FIRST_DATA, outgoing), Ok(Pushed::Done));
    }
    train.close(Lane::FIRST_DATA).unwrap();
}

fn unpack(session: &Session, reassembly: &mut Reassembly, datagram: &mut [u8]) -> usize {
    let message_type = MessageType::of(datagram).unwrap();
    let (_, plaintext) = session.open(datagram).unwrap();
    if message_type == MessageType::Frame {
        return plaintext.len();
    }
    Chunks::new(plaintext)
        .map(|chunk| match chunk.unwrap() {
            Chunk::Frame(frame) => frame.len(),
            Chunk::Fragment(fragment, piece) => reassembly
                .add(fragment, piece)
                .unwrap()
                .map_or(0, <[u8]>::len),
            _ => 0,
        })
        .sum()
}

fn trains(criterion: &mut Criterion) {
    for (cipher, frame_len) in [
        (Cipher::Aes256Gcm, 60),
        (Cipher::Aes256Gcm, 1514),
        (Cipher::ChaCha20Poly1305, 1514),
    ] {
        let (sender, receiver) = sessions(cipher);
        let frame = vec![0x5a; frame_len];
        let mut group = criterion.benchmark_group(format!(
            "{FRAMES} frames of {frame_len} bytes, {}",
            cipher.name()
        ));
        group.throughput(Throughput::Bytes((FRAMES * frame_len) as u64));
        let mut train = Train::default();
        group.bench_function("pack", |bencher| {
            bencher.iter(|| pack(&mut train, &sender, black_box(&frame)));
        });
        group.bench_function("pack and seal", |bencher| {
            bencher.iter(|| {
                pack(&mut train, &sender, black_box(&frame));
                train.seal();
            });
        });
        pack(&mut train, &sender, &frame);
        train.seal();
        let datagrams: Vec<Vec<u8>> = train
            .runs()
            .flat_map(|(run, size)| run.chunks(size).map(<[u8]>::to_vec))
            .collect();
        let mut reassembly = Reassembly::new(1522);
        group.bench_function("open and unpack", |bencher| {
            bencher.iter_batched_ref(
                || datagrams.clone(),
                |datagrams| {
                    let bytes: usize = datagrams
                        .iter_mut()
                        .map(|datagram| unpack(&receiver, &mut reassembly, datagram))
                        .sum();
                    assert_eq!(bytes, FRAMES * frame_len);
                },
                BatchSize::SmallInput,
            );
        });
        group.finish();
    }
}

fn switch_and_replay(criterion: &mut Criterion) {
    let switch = Switch::new(SwitchConfig::default(), [1, 2]);
    let mut frame = [0_u8; 60];
    frame[..12].copy_from_slice(&[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2]);
    let mut answer = frame;
    answer[..6].copy_from_slice(&frame[6..12]);
    answer[6..12].copy_from_slice(&frame[..6]);
    switch.forward(PortId(1), &answer, 0).unwrap();
    criterion.bench_function("switch: forward a known frame", |bencher| {
        bencher.iter(|| switch.forward(PortId::TAP, black_box(&frame), 0));
    });

    let mut window = ReplayWindow::default();
    let mut sequence = 0;
    criterion.bench_function("replay: accept the next", |bencher| {
        bencher.iter(|| {
            sequence += 1;
            window.accept(black_box(sequence))
        });
    });
}

criterion_group!(stages, trains, switch_and_replay);
criterion_main!(stages);
