// SPDX-License-Identifier: MIT OR Apache-2.0
//! One bench for each pure stage of the data path: `cargo bench --bench stages`, with the name of a
//! stage to run only that one.
//!
//! Throughput is in bytes of frames, or of plaintext where a stage sees datagrams. What system calls
//! cost is not in here; `scripts/bench` measures whole tunnels.

#![allow(missing_docs, reason = "criterion makes public items")]

mod path;

use std::{hint::black_box, time::Duration};

use criterion::{
    BatchSize, BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main,
    measurement::WallTime,
};
use patchcord::{
    crypto::aead::Cipher,
    proto::{reassembly::Reassembly, replay::ReplayWindow, train::Train},
    wire::{
        Counter, DATA_OVERHEAD, DataHeader, Lane, MessageType,
        chunk::{Chunk, Chunks},
    },
};
use patchcord_bridge::{MacAddr, PortId, Switch, SwitchConfig, Vid};

use path::{MAX_FRAME, Receiver, Sender, datagrams, sessions};

const CIPHERS: [Cipher; 2] = [Cipher::Aes256Gcm, Cipher::ChaCha20Poly1305];
/// Bytes of plaintext: a small frame, and full datagrams on paths of 1500 and 9000 bytes or nearly.
const PLAINTEXT_LENS: [usize; 3] = [64, 1444, 8972];
/// Frames larger than a datagram: of a jumbo MTU, and of the kernel's largest segments.
const LARGE_FRAMES: [usize; 2] = [9014, 65_535];
const SMALL_FRAME: usize = 60;
/// What one wake-up may find on the TAP.
const FRAMES: usize = 40;
/// What goes all the way: small frames, full ones of an MTU of 1500, and a large one.
const MIXES: [&[usize]; 3] = [&[SMALL_FRAME; FRAMES], &[1514; FRAMES], &[65_535]];

criterion_group! {
    name = stages;
    // A bench of packing takes a good million counters in a second, of which a session has 2^28.
    config = Criterion::default()
        .warm_up_time(Duration::from_secs(1))
        .measurement_time(Duration::from_secs(2));
    targets = seal, open, pack, fragment, parse, reassemble, switch, replay, outbound, inbound
}
criterion_main!(stages);

fn seal(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("seal");
    for cipher in CIPHERS {
        let (session, _) = sessions(cipher);
        for len in PLAINTEXT_LENS {
            let mut datagram = vec![0x5a; len + DATA_OVERHEAD];
            group.throughput(Throughput::Bytes(len as u64));
            group.bench_function(format!("{}, {len} bytes", cipher.name()), |bencher| {
                let counter = Counter::new(Lane::FIRST_DATA, 7);
                bencher
                    .iter(|| session.seal(MessageType::Frame, counter, black_box(&mut datagram)));
            });
        }
    }
}

fn open(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("open");
    for cipher in CIPHERS {
        let (sender, receiver) = sessions(cipher);
        for len in PLAINTEXT_LENS {
            let mut sealed = vec![0x5a; len + DATA_OVERHEAD];
            let counter = Counter::new(Lane::FIRST_DATA, 7);
            sender.seal(MessageType::Frame, counter, &mut sealed);
            group.throughput(Throughput::Bytes(len as u64));
            group.bench_function(format!("{}, {len} bytes", cipher.name()), |bencher| {
                bencher.iter_batched_ref(
                    || sealed.clone(),
                    |datagram| assert!(receiver.open(datagram).is_ok()),
                    BatchSize::SmallInput,
                );
            });
        }
    }
}

fn pack(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("pack");
    lay_out(&mut group, &[SMALL_FRAME; FRAMES], |_| {});
    lay_out(&mut group, &[1444; FRAMES], |_| {});
}

fn fragment(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("fragment");
    for len in LARGE_FRAMES {
        lay_out(&mut group, &[len], |_| {});
    }
}

/// Both stages that fill trains, and what `depart` does with them.
fn lay_out(
    group: &mut BenchmarkGroup<'_, WallTime>,
    lens: &[usize],
    mut depart: impl FnMut(&mut Train),
) {
    let frames: Vec<_> = lens.iter().map(|&len| vec![0x5a; len]).collect();
    let mut sender = Sender::new(sessions(Cipher::Aes256Gcm).0);
    group.throughput(Throughput::Bytes(lens.iter().sum::<usize>() as u64));
    group.bench_function(title(lens), |bencher| {
        bencher.iter(|| {
            for frame in &frames {
                sender.push(black_box(frame), &mut depart);
            }
            sender.flush(&mut depart);
        });
    });
}

fn parse(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("parse");
    let packed = [SMALL_FRAME; FRAMES];
    let (session, _) = sessions(Cipher::Aes256Gcm);
    let sealed = sealed(&mut Sender::new(session), &packed);
    group.throughput(Throughput::Elements(sealed.len() as u64));
    group.bench_function("datagram headers", |bencher| {
        bencher.iter(|| {
            for datagram in &sealed {
                let _ = black_box(MessageType::of(black_box(datagram)));
                let _ = black_box(DataHeader::parse(black_box(datagram)));
            }
        });
    });
    for lens in [&packed[..], &[LARGE_FRAMES[0]]] {
        let plaintexts = plaintexts(lens);
        group.throughput(Throughput::Bytes(lens.iter().sum::<usize>() as u64));
        group.bench_function(format!("chunks of {}", title(lens)), |bencher| {
            bencher.iter(|| {
                for plaintext in &plaintexts {
                    Chunks::new(black_box(plaintext)).for_each(|chunk| {
                        black_box(chunk).ok();
                    });
                }
            });
        });
    }
}

fn reassemble(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("reassemble");
    for len in LARGE_FRAMES {
        let plaintexts = plaintexts(&[len]);
        let pieces: Vec<_> = plaintexts
            .iter()
            .flat_map(|plaintext| Chunks::new(plaintext))
            .filter_map(|chunk| match chunk {
                Ok(Chunk::Fragment(fragment, piece)) => Some((fragment, piece)),
                _ => None,
            })
            .collect();
        let mut reassembly = Reassembly::new(MAX_FRAME.into());
        group.throughput(Throughput::Bytes(len as u64));
        group.bench_function(title(&[len]), |bencher| {
            bencher.iter(|| {
                let complete = pieces
                    .iter()
                    .filter(|(fragment, piece)| {
                        matches!(reassembly.add(*fragment, piece), Ok(Some(_)))
                    })
                    .count();
                assert_eq!(complete, 1);
            });
        });
    }
}

fn switch(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("switch");
    group.throughput(Throughput::Elements(1));
    for stations in [10, 1000, 100_000] {
        let config = SwitchConfig {
            fdb_capacity: 2 * stations as usize,
            max_per_port: stations as usize,
            ..SwitchConfig::default()
        };
        let switch = Switch::new(config, [1, 2]);
        for station in 0..stations {
            switch
                .fdb()
                .learn(Vid::UNTAGGED, mac(station), PortId(1), 0);
        }
        let mut frame = [0_u8; SMALL_FRAME];
        frame[6..12].copy_from_slice(&[2, 0, 0, 0, 0, 1]);
        let mut station = 0_u32;
        group.bench_function(format!("{stations} addresses"), |bencher| {
            bencher.iter(|| {
                // Far from the one before, so that large tables do not stay in the nearest cache.
                station = (station + 7919) % stations;
                frame[..6].copy_from_slice(&mac(station).0);
                switch.forward(PortId::TAP, black_box(&frame), 0)
            });
        });
    }
}

fn mac(station: u32) -> MacAddr {
    let [a, b, c, d] = station.to_be_bytes();
    MacAddr([2, 1, a, b, c, d])
}

fn replay(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("replay");
    group.throughput(Throughput::Elements(2));
    for (title, order) in [("in order", [0, 1]), ("neighbours swapped", [1, 0])] {
        let (mut window, mut sequence) = (ReplayWindow::default(), 0);
        group.bench_function(title, |bencher| {
            bencher.iter(|| {
                for step in order {
                    assert!(window.accept(black_box(sequence + step)).is_ok());
                }
                sequence += 2;
            });
        });
    }
}

/// All stages from the switch to the socket.
fn outbound(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("outbound");
    for lens in MIXES {
        lay_out(&mut group, lens, Train::seal);
    }
}

/// All stages from the socket to the switch.
fn inbound(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("inbound");
    for lens in MIXES {
        let (sender, receiver) = sessions(Cipher::Aes256Gcm);
        let (mut sender, mut receiver) = (Sender::new(sender), Receiver::new(receiver));
        let bytes: usize = lens.iter().sum();
        group.throughput(Throughput::Bytes(bytes as u64));
        group.bench_function(title(lens), |bencher| {
            bencher.iter_batched_ref(
                || sealed(&mut sender, lens),
                |datagrams| {
                    let mut delivered = 0;
                    for datagram in datagrams {
                        receiver.receive(datagram, &mut |frame| delivered += frame.len());
                    }
                    assert_eq!(delivered, bytes);
                },
                BatchSize::SmallInput,
            );
        });
    }
}

/// `40 frames of 60 bytes`.
fn title(lens: &[usize]) -> String {
    match lens {
        [len] => format!("a frame of {len} bytes"),
        _ => format!("{} frames of {} bytes", lens.len(), lens[0]),
    }
}

/// Frames of these lengths as sealed datagrams.
fn sealed(sender: &mut Sender, lens: &[usize]) -> Vec<Vec<u8>> {
    let mut sealed = Vec::new();
    let mut depart = |train: &mut Train| {
        train.seal();
        sealed.extend(datagrams(train).map(<[u8]>::to_vec));
    };
    for &len in lens {
        sender.push(&vec![0x5a; len], &mut depart);
    }
    sender.flush(&mut depart);
    sealed
}

/// Frames of these lengths as the plaintexts of datagrams.
fn plaintexts(lens: &[usize]) -> Vec<Vec<u8>> {
    let (sender, receiver) = sessions(Cipher::Aes256Gcm);
    sealed(&mut Sender::new(sender), lens)
        .iter_mut()
        .map(|datagram| {
            receiver
                .open(datagram)
                .map(|(_, plaintext)| plaintext.to_vec())
        })
        .collect::<Result<_, _>>()
        .expect("they were sealed for this receiver")
}
