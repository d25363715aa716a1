// SPDX-License-Identifier: MIT OR Apache-2.0
//! One bench for each pure stage of the data path: `cargo bench --bench stages`, with the name of a
//! stage to run only that one.
//!
//! Throughput is in bytes of frames, or of plaintext where a stage sees datagrams. The cost of system
//! calls is not included; `scripts/bench` measures whole tunnels.

#![allow(missing_docs, reason = "criterion makes public items")]

mod path;

use std::{hint::black_box, time::Duration};

use criterion::{
    BatchSize, BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main,
    measurement::WallTime,
};
use patchcord::internals::{
    crypto::aead::Cipher,
    proto::{
        partial_checksum::finish_checksum,
        reassembly::{Reassembly, Which},
        replay::ReplayWindow,
        superframe::Layout,
        train::{PendingOffload, Train},
    },
    wire::{
        Counter, DATA_OVERHEAD, DataHeader, Lane, MessageType,
        chunk::{Chunk, Chunks},
        offload::Checksum,
    },
};
use patchcord_bridge::{
    DropReason, Headers, MacAddr, Now, PortConfig, PortId, PortVlans, Switch, SwitchConfig, Vid,
    VidSet, membership::GroupTable,
};

use path::{
    HEADERS_LEN, MAX_FRAME, Receiver, SEGMENTS, SUPERFRAME_LEN, Sender, datagrams, deliver_runs,
    file, sessions, superframe,
};

/// Bytes of plaintext: a small frame, and full datagrams, or nearly, on paths of 1500 and 9000 bytes.
const PLAINTEXT_LENS: [usize; 3] = [64, 1444, 8972];
/// Frames larger than a datagram: of a jumbo MTU, and of the kernel's largest segments.
const LARGE_FRAMES: [usize; 2] = [9014, 65_535];
const SMALL_FRAME: usize = 60;
/// The frames that one wake-up may find on the TAP.
const FRAMES: usize = 40;
/// The mixes for the whole path: small frames, full ones of an MTU of 1500, and a large one.
const MIXES: [&[usize]; 3] = [&[SMALL_FRAME; FRAMES], &[1514; FRAMES], &[65_535]];
/// Super-frames of a stream of which every so-many-th datagram is lost.
const STREAM: usize = 20;
const LOST_DATAGRAM: usize = 100;

criterion_group! {
    name = stages;
    // A bench of packing takes a good million counters in a second, of which a session has 2^28.
    config = Criterion::default()
        .warm_up_time(Duration::from_secs(1))
        .measurement_time(Duration::from_secs(2));
    targets = seal, open, pack, fragment, split, parse, reassemble, superframes, headers, switch,
        replay, outbound, inbound
}
criterion_main!(stages);

fn seal(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("seal");
    for cipher in Cipher::available() {
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
    for cipher in Cipher::available() {
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
    lay_out(&mut group, &plain(&[SMALL_FRAME; FRAMES]), |_| {});
    lay_out(&mut group, &plain(&[1444; FRAMES]), |_| {});
}

fn fragment(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("fragment");
    for len in LARGE_FRAMES {
        lay_out(&mut group, &plain(&[len]), |_| {});
    }
}

fn split(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("split");
    lay_out(&mut group, &super_frames(1), |_| {});
}

/// The stages that fill trains, and the work of `depart` with them.
fn lay_out(
    group: &mut BenchmarkGroup<'_, WallTime>,
    frames: &[Frame],
    mut depart: impl FnMut(&mut Train),
) {
    let mut sender = Sender::new(sessions(Cipher::Aes256Gcm).0);
    group.throughput(Throughput::Bytes(bytes(frames) as u64));
    group.bench_function(title(frames), |bencher| {
        bencher.iter(|| {
            for (frame, pending) in frames {
                sender.push(black_box(frame), *pending, &mut depart);
            }
            sender.flush(&mut depart);
        });
    });
}

fn parse(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("parse");
    let packed = plain(&[SMALL_FRAME; FRAMES]);
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
    for frames in [packed, plain(&LARGE_FRAMES[..1])] {
        let plaintexts = plaintexts(&frames);
        group.throughput(Throughput::Bytes(bytes(&frames) as u64));
        group.bench_function(format!("chunks of {}", title(&frames)), |bencher| {
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
    let [jumbo, largest] = LARGE_FRAMES.map(|len| plain(&[len]));
    for frames in [jumbo, largest, super_frames(1)] {
        let plaintexts = plaintexts(&frames);
        let chunks: Vec<_> = chunks(&plaintexts).collect();
        let mut reassembly = Reassembly::new(MAX_FRAME.into());
        group.throughput(Throughput::Bytes(bytes(&frames) as u64));
        group.bench_function(title(&frames), |bencher| {
            bencher.iter(|| {
                let mut complete = 0;
                for &(sequence, chunk) in &chunks {
                    if file(&mut reassembly, sequence, black_box(chunk)) == Ok(true) {
                        complete += reassembly.take_whole().map_or(0, |whole| whole.frame.len());
                    }
                }
                assert_eq!(complete, bytes(&frames));
                end_of_stream(&mut reassembly);
            });
        });
    }
    let frames = super_frames(STREAM);
    let plaintexts = plaintexts(&frames);
    let survivors: Vec<_> = chunks(&plaintexts)
        .filter(|(sequence, _)| sequence % LOST_DATAGRAM as u64 != 30)
        .collect();
    let mut reassembly = Reassembly::new(MAX_FRAME.into());
    group.throughput(Throughput::Bytes(bytes(&frames) as u64));
    group.bench_function(
        format!("{}, 1 % of the datagrams lost", title(&frames)),
        |bencher| {
            bencher.iter(|| {
                let segments = stream(&mut reassembly, black_box(&survivors));
                let lost = plaintexts.len() / LOST_DATAGRAM;
                // A datagram has parts of two segments, or of three.
                let least = STREAM * SEGMENTS - 3 * (lost + 1);
                assert!((least..STREAM * SEGMENTS).contains(&segments), "{segments}");
                end_of_stream(&mut reassembly);
            });
        },
    );
}

/// The segments that come out, whole or in runs.
fn stream(reassembly: &mut Reassembly, chunks: &[(u64, Chunk<'_>)]) -> usize {
    let mut segments = 0;
    for &(sequence, chunk) in chunks {
        if file(reassembly, sequence, chunk) == Ok(true) {
            if let Some(stations) = reassembly.whole_stations() {
                deliver_runs(reassembly, Which::Between(&stations), &mut |run| {
                    segments += run.segments;
                });
            }
            let whole = reassembly.take_whole().and_then(|whole| whole.layout);
            segments += whole.map_or(0, |layout| layout.segments());
        }
    }
    deliver_runs(reassembly, Which::All, &mut |run| segments += run.segments);
    segments
}

/// The same sequence numbers and frame ids can come again.
fn end_of_stream(reassembly: &mut Reassembly) {
    reassembly.forget(u64::MAX);
}

fn superframes(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("superframe");
    let (frame, PendingOffload { offload, .. }) = superframe();
    let head = &frame[..HEADERS_LEN];
    group.throughput(Throughput::Elements(1));
    group.bench_function("parse the headers", |bencher| {
        bencher.iter(|| Layout::parse(black_box(head), SUPERFRAME_LEN, &offload, MAX_FRAME.into()));
    });
    let mut frame = frame[..14 + 1500].to_vec();
    let checksum = Checksum {
        start: 14,
        offset: 36,
    };
    group.throughput(Throughput::Bytes(1500));
    group.bench_function("finish a checksum over 1500 bytes", |bencher| {
        bencher.iter(|| finish_checksum(black_box(&mut frame), checksum));
    });
}

/// All reads of a frame's headers between the TAP and the peers: of a super-frame, which is checked as
/// well, and of a multicast, whose group is looked up too.
fn headers(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("headers");
    group.throughput(Throughput::Elements(1));
    let (switch, now) = (
        switch_of(Default::default(), 10, Vid::UNTAGGED),
        Now::default(),
    );
    let (mut frame, PendingOffload { offload, .. }) = superframe();
    frame[..6].copy_from_slice(&mac(1).0);
    group.bench_function("super-frame", |bencher| {
        bencher.iter(|| {
            let frame = black_box(&frame[..]);
            let headers = Headers::parse(frame)?;
            let layout = Layout::of(&headers, frame.len(), &offload, usize::MAX);
            let segments = layout.map_or(1, |layout| layout.segments()) as u32;
            switch.forward(PortId::TAP, &headers, segments, now)
        });
    });
    let table = GroupTable::default();
    frame[..6].copy_from_slice(&[1, 0, 0x5e, 1, 2, 3]);
    frame.truncate(1514);
    let mut micros = 0;
    group.bench_function("multicast", |bencher| {
        bencher.iter(|| {
            micros += 1_000_000;
            let (frame, now) = (black_box(&frame[..]), Now::from_micros(micros));
            let headers = Headers::parse(frame)?;
            let decision = switch.forward(PortId::TAP, &headers, 1, now)?;
            black_box(table.egress(decision.inside.vid, &headers));
            Ok::<_, DropReason>(decision)
        });
    });
}

/// A decision and the edit of the tag, to a known station: between ports without a policy, and from a
/// trunk to one that translates. Then a broadcast, which takes from its limit.
fn switch(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("switch");
    group.throughput(Throughput::Elements(1));
    let vid = Vid::new(110).expect("twelve bits");
    let outside = Vid::new(10).expect("twelve bits");
    let trunk = |translate: &[(Vid, Vid)]| PortConfig {
        vlans: PortVlans::trunk(VidSet::all(), None, translate).expect("a trunk"),
        ..PortConfig::default()
    };
    let trunks = [trunk(&[]), trunk(&[(outside, vid)])];
    let untagged = [&[0x08, 0x00][..], &[0; 46]].concat();
    let tagged = [&[0x81, 0x00, 0, 110, 0x08, 0x00][..], &[0; 42]].concat();
    for stations in [10, 1000, 100_000] {
        for (title, ports, vid, payload) in [
            ("plain", Default::default(), Vid::UNTAGGED, &untagged),
            ("trunk", trunks.clone(), vid, &tagged),
        ] {
            let switch = switch_of(ports, stations, vid);
            let mut frame = [&[0xff; 6], &[2, 0, 0, 0, 0, 1], &payload[..]].concat();
            let mut station = 0_u32;
            group.bench_function(format!("{title}, {stations} addresses"), |bencher| {
                bencher.iter(|| {
                    // Far from the one before, so that large tables do not stay in the nearest
                    // cache.
                    station = (station + 7919) % stations;
                    frame[..6].copy_from_slice(&mac(station).0);
                    let now = Now::default();
                    let decision = switch.forward_frame(PortId::TAP, black_box(&frame), 1, now)?;
                    switch.leave(PortId::TAP, decision.inside, PortId(1))
                });
            });
        }
    }
    let switch = switch_of(Default::default(), 10, Vid::UNTAGGED);
    let frame = [&[0xff; 6], &[2, 0, 0, 0, 0, 1], &untagged[..]].concat();
    let mut micros = 0;
    group.bench_function("plain, broadcast", |bencher| {
        bencher.iter(|| {
            micros += 1_000_000;
            let now = Now::from_micros(micros);
            switch.forward_frame(PortId::TAP, black_box(&frame), 1, now)
        });
    });
}

/// The TAP and a peer with so many stations behind it.
fn switch_of(ports: [PortConfig; 2], stations: u32, vid: Vid) -> Switch {
    let config = SwitchConfig {
        ports: ports.into(),
        fdb_capacity: 2 * stations as usize,
        max_per_port: stations as usize,
        ..SwitchConfig::default()
    };
    let switch = Switch::new(config, [1, 2]);
    for station in 0..stations {
        switch.fdb().learn(vid, mac(station), PortId(1), 0);
    }
    switch
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
    for frames in mixes() {
        lay_out(&mut group, &frames, Train::seal);
    }
}

/// All stages from the socket to the switch.
fn inbound(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("inbound");
    for frames in mixes() {
        let (sender, receiver) = sessions(Cipher::Aes256Gcm);
        let (mut sender, mut receiver) = (Sender::new(sender), Receiver::new(receiver));
        let bytes = bytes(&frames);
        group.throughput(Throughput::Bytes(bytes as u64));
        group.bench_function(title(&frames), |bencher| {
            bencher.iter_batched_ref(
                || sealed(&mut sender, &frames),
                |datagrams| {
                    let mut delivered = 0;
                    for datagram in datagrams {
                        receiver.receive(datagram, &mut |frame| delivered += frame.len());
                    }
                    receiver.end_batch(false, &mut |_| {});
                    assert_eq!(delivered, bytes);
                },
                BatchSize::SmallInput,
            );
        });
    }
}

/// A frame, and what is open in it.
type Frame = (Vec<u8>, Option<PendingOffload>);

/// Finished frames of these lengths.
fn plain(lens: &[usize]) -> Vec<Frame> {
    lens.iter().map(|&len| (vec![0x5a; len], None)).collect()
}

fn super_frames(count: usize) -> Vec<Frame> {
    let (frame, pending) = superframe();
    vec![(frame, Some(pending)); count]
}

fn mixes() -> Vec<Vec<Frame>> {
    let plain = MIXES.map(plain);
    plain.into_iter().chain([super_frames(1)]).collect()
}

fn bytes(frames: &[Frame]) -> usize {
    frames.iter().map(|(frame, _)| frame.len()).sum()
}

/// `40 frames of 60 bytes`.
fn title(frames: &[Frame]) -> String {
    let (frame, pending) = &frames[0];
    let kind = if pending.is_some() {
        "super-frame"
    } else {
        "frame"
    };
    match frames.len() {
        1 => format!("a {kind} of {} bytes", frame.len()),
        count => format!("{count} {kind}s of {} bytes", frame.len()),
    }
}

/// These frames as sealed datagrams.
fn sealed(sender: &mut Sender, frames: &[Frame]) -> Vec<Vec<u8>> {
    let mut sealed = Vec::new();
    let mut depart = |train: &mut Train| {
        train.seal();
        sealed.extend(datagrams(train).map(<[u8]>::to_vec));
    };
    for (frame, pending) in frames {
        sender.push(frame, *pending, &mut depart);
    }
    sender.flush(&mut depart);
    sealed
}

/// These frames as the plaintexts of datagrams.
fn plaintexts(frames: &[Frame]) -> Vec<Vec<u8>> {
    let (sender, receiver) = sessions(Cipher::Aes256Gcm);
    sealed(&mut Sender::new(sender), frames)
        .iter_mut()
        .map(|datagram| {
            receiver
                .open(datagram)
                .map(|(_, plaintext)| plaintext.to_vec())
        })
        .collect::<Result<_, _>>()
        .expect("they were sealed for this receiver")
}

/// The chunks of these datagrams, each with the number of its datagram.
fn chunks(plaintexts: &[Vec<u8>]) -> impl Iterator<Item = (u64, Chunk<'_>)> {
    (0..).zip(plaintexts).flat_map(|(sequence, plaintext)| {
        Chunks::new(plaintext).map(move |chunk| (sequence, chunk.expect("it was emitted")))
    })
}
