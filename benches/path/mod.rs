// SPDX-License-Identifier: MIT OR Apache-2.0
//! The pure steps of the data path in the order of `pipeline::outbound` and `pipeline::inbound`,
//! without their sockets and threads.
//!
//! Keep it in step with those two files; the benches and the test for allocations use it.

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
    internals::{
        crypto::aead::{Cipher, CipherOffer},
        proto::{
            node::{Node, NodeConfig},
            peer::PeerSettings,
            reassembly::{Reassembly, Which},
            replay::ReplayWindow,
            session::Session,
            train::{Outgoing, PendingOffload, Pushed, Train},
        },
        stats::DropReason,
        wire::{
            Lane, MessageType,
            chunk::{Chunk, Chunks},
            offload::{Checksum, Offload, Segmentation, Transport},
        },
    },
    keys::PrivateKey,
};

/// The UDP payload of a path of 1500 bytes over IPv4.
pub(crate) const DATAGRAM_LEN: usize = 1472;
/// The largest frame that a node takes.
pub(crate) const MAX_FRAME: u16 = u16::MAX;
/// Ethernet, IPv4, and TCP with timestamps.
pub(crate) const HEADERS_LEN: usize = 14 + 20 + 32;
/// Payload of a segment whose packet has 1500 bytes.
pub(crate) const SEGMENT_LEN: usize = 1448;
/// The segments of the largest super-frame that Linux makes of a TCP stream.
pub(crate) const SEGMENTS: usize = 45;
/// Bytes of such a super-frame.
pub(crate) const SUPERFRAME_LEN: usize = HEADERS_LEN + SEGMENTS * SEGMENT_LEN;

/// A super-frame of [`SEGMENTS`] TCP segments from 192.0.2.1 to 192.0.2.2, with what is open in it.
pub(crate) fn superframe() -> (Vec<u8>, PendingOffload) {
    const NETWORK: usize = 14;
    const TRANSPORT: usize = NETWORK + 20;
    let mut frame = vec![0x5a; SUPERFRAME_LEN];
    let mut put = |at: usize, bytes: &[u8]| frame[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &[2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 0x08, 0x00]);
    let packet_len = (SUPERFRAME_LEN - NETWORK) as u16;
    let addresses = [192, 0, 2, 1, 192, 0, 2, 2];
    put(NETWORK, &[0x45, 0]);
    put(NETWORK + 2, &packet_len.to_be_bytes());
    put(NETWORK + 4, &[0x12, 0x34, 0x40, 0, 64, 6, 0, 0]);
    put(NETWORK + 12, &addresses);
    // Ports, sequence and acknowledgment numbers, 32 bytes of header, ACK and PSH, window.
    put(TRANSPORT, &[0x14, 0x51, 0xc0, 0x01, 0, 0, 0, 1, 0, 0, 0, 1]);
    put(TRANSPORT + 12, &[0x80, 0x18, 0x01, 0xf6]);
    let segment_len = (SUPERFRAME_LEN - TRANSPORT) as u16;
    let [pseudo_header, header] = [
        sum(&addresses) + 6 + u32::from(segment_len),
        sum(&frame[NETWORK..TRANSPORT]),
    ]
    .map(|sum| (sum % 0xffff) as u16);
    frame[NETWORK + 10..NETWORK + 12].copy_from_slice(&(!header).to_be_bytes());
    frame[TRANSPORT + 16..TRANSPORT + 18].copy_from_slice(&pseudo_header.to_be_bytes());
    frame[TRANSPORT + 18..TRANSPORT + 32]
        .copy_from_slice(&[0, 0, 1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 1]);
    let offload = Offload {
        checksum: Checksum {
            start: TRANSPORT as u16,
            offset: 16,
        },
        segmentation: Some(Segmentation {
            transport: Transport::Tcp,
            size: SEGMENT_LEN as u16,
            cwr: false,
        }),
    };
    let pending = PendingOffload {
        offload,
        headers_len: HEADERS_LEN,
    };
    (frame, pending)
}

fn sum(bytes: &[u8]) -> u32 {
    bytes
        .chunks_exact(2)
        .map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])))
        .sum()
}

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
                lanes: 1.into(),
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
            .handle_handshake(now, from, &sent.datagram)
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

    /// Lays a frame out; passes trains that are full to `depart`.
    pub(crate) fn push(
        &mut self,
        frame: &[u8],
        pending: Option<PendingOffload>,
        depart: &mut impl FnMut(&mut Train),
    ) {
        let frame_id = self.next_frame_id;
        self.next_frame_id = frame_id.wrapping_add(1);
        let mut outgoing = Outgoing::new(frame, frame_id, pending);
        loop {
            if self.train.is_empty() {
                let to = "192.0.2.2:1".parse().unwrap();
                self.train.bind(&self.session, to, DATAGRAM_LEN);
            }
            match self.train.push(Lane::FIRST_DATA, &mut outgoing).unwrap() {
                Pushed::Done => return,
                Pushed::Full => self.flush(depart),
            }
        }
    }

    /// Passes the train to `depart` as it is.
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

    /// Opens a datagram; passes its frames to `deliver`.
    pub(crate) fn receive(&mut self, datagram: &mut [u8], deliver: &mut impl FnMut(Delivered<'_>)) {
        let message_type = MessageType::of(datagram).unwrap();
        let (counter, plaintext) = self.session.open(datagram).unwrap();
        self.window.accept(counter.sequence()).unwrap();
        if message_type == MessageType::Frame {
            return self.deliver_small(plaintext, deliver);
        }
        for chunk in Chunks::new(plaintext) {
            match chunk.unwrap() {
                Chunk::Frame(frame) | Chunk::PartialChecksum(_, frame) => {
                    self.deliver_small(frame, deliver);
                }
                chunk => {
                    let sequence = counter.sequence();
                    if file(&mut self.reassembly, sequence, chunk).unwrap() {
                        self.deliver_whole(deliver);
                    }
                }
            }
        }
    }

    /// Ends a batch: passes what it left behind to `deliver`, or, after the last one, everything
    /// that can be saved.
    pub(crate) fn end_batch(&mut self, is_last: bool, deliver: &mut impl FnMut(Delivered<'_>)) {
        let newest = self.window.newest();
        let which = if is_last {
            Which::All
        } else {
            Which::LeftBehind(newest)
        };
        deliver_runs(&mut self.reassembly, which, deliver);
        self.reassembly.forget(newest);
    }

    fn deliver_small(&mut self, frame: &[u8], deliver: &mut impl FnMut(Delivered<'_>)) {
        if let Some(stations) = frame.first_chunk() {
            deliver_runs(&mut self.reassembly, Which::Between(stations), deliver);
        }
        deliver(Delivered::frame(frame));
    }

    fn deliver_whole(&mut self, deliver: &mut impl FnMut(Delivered<'_>)) {
        if let Some(stations) = self.reassembly.whole_stations() {
            deliver_runs(&mut self.reassembly, Which::Between(&stations), deliver);
        }
        let whole = self.reassembly.take_whole().unwrap();
        deliver(Delivered {
            segments: whole.layout.map_or(1, |layout| layout.segments()),
            ..Delivered::frame(whole.frame)
        });
    }
}

/// A frame, or some segments of one, that leaves the tunnel.
pub(crate) struct Delivered<'a> {
    pub(crate) head: &'a [u8],
    pub(crate) rest: &'a [u8],
    pub(crate) segments: usize,
}

impl<'a> Delivered<'a> {
    fn frame(head: &'a [u8]) -> Self {
        Self {
            head,
            rest: &[],
            segments: 1,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.head.len() + self.rest.len()
    }
}

/// Files a chunk of a frame in pieces; true when the frame is whole.
pub(crate) fn file(
    reassembly: &mut Reassembly,
    sequence: u64,
    chunk: Chunk<'_>,
) -> Result<bool, DropReason> {
    match chunk {
        Chunk::Fragment(fragment, piece) => reassembly.add(sequence, fragment, piece),
        Chunk::Offload(frame, offload, head) => reassembly.describe(sequence, frame, offload, head),
        other => panic!("{other:?} is not of a cut frame"),
    }
}

/// The segments that can be saved of super-frames with holes.
pub(crate) fn deliver_runs(
    reassembly: &mut Reassembly,
    which: Which<'_>,
    deliver: &mut impl FnMut(Delivered<'_>),
) {
    while let Some(run) = reassembly.poll_run(which) {
        deliver(Delivered {
            head: run.headers,
            rest: run.payload,
            segments: run.layout.map_or(1, |layout| layout.segments()),
        });
    }
}

/// Every datagram of a train, in order.
pub(crate) fn datagrams(train: &Train) -> impl Iterator<Item = &[u8]> {
    train.runs().flat_map(|(run, size)| run.chunks(size))
}
