// SPDX-License-Identifier: MIT OR Apache-2.0
//! The whole data path of a node, with its own code. Inbound: the datagrams of an authenticated peer,
//! chunk by chunk, sealed, and perhaps damaged on their way, through opening, the hand-over between
//! threads, reassembly, checks, switch and tag edits, and out again to a device or to other peers.
//! Outbound: the frames of a device, with any offload descriptor, on their way to the peers. In every
//! mode: TAP, plain back-end, NIC, wire, hub, inline, staged, and with two threads, with VLANs of every
//! kind at every port, any MTU, and any path.
//!
//! For any input: nothing panics; the frames written to the device are valid for its kernel, and no
//! larger than it takes; each datagram fits its path; and its receiver accepts all of it. A wire counts
//! every frame that it loses, and changes no byte, also of frames that leave merged.
#![no_main]

#[path = "../kernel.rs"]
mod kernel;
#[path = "../original.rs"]
#[allow(dead_code)]
mod original;
#[path = "../packet.rs"]
mod packet;
#[path = "../world.rs"]
mod world;

use std::collections::VecDeque;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use patchcord::internals::{
    io::{memory::Refusals, tap::VnetHeader},
    pipeline::fuzzing::{Arriving, Chain, ChainConfig, Damage, Departed, LANES, MAX_PEERS, Plan},
    stats::DropReason,
    wire::{
        Counter, Lane, MessageType,
        chunk::{
            CHUNK_HEADER_LEN, Chunk, Chunks, CutFrame, FRAGMENT_HEADER_LEN, Fragment,
            OFFLOAD_HEADER_LEN, PARTIAL_CHECKSUM_HEADER_LEN, emit_fragment_header,
            emit_frame_header, emit_offload_header, emit_partial_checksum_header,
        },
        offload::{Checksum, Offload, Segmentation, Transport},
    },
};
use patchcord_bridge::{PortId, SwitchConfig};

use kernel::{apart, check_description, finished};
use packet::{Built, Packet, has_wrong_checksum};
use world::{Facts, World};

/// The length of a tag that a port pushes.
const TAG: usize = 4;
/// Bytes of a datagram besides the plaintext.
const OVERHEAD: usize = 28;
/// The largest body of a chunk here.
const CHUNK: usize = 60_000;
/// Steps of a run, and datagrams or frames of a step.
const STEPS: usize = 16;
const BATCH: usize = 16;

fuzz_target!(|input: Input| run(&input));

fn run(input: &Input) {
    let mut run = Run::new(&input.world);
    for step in input.steps.iter().take(STEPS) {
        run.take(step);
    }
    run.take(&Step::Wait);
    run.take(&Step::Wait);
    run.finish();
}

/// A node, and the receivers of its frames.
struct Run {
    world: Facts,
    node: Chain,
    far: Chain,
    /// The next sequence number of each lane of each peer.
    next: [[u64; LANES as usize + 1]; MAX_PEERS],
    /// Every frame so far had correct headers.
    is_honest: bool,
    /// CoDel has marked no flow, and no SYN is lowered, so that no frame was changed.
    is_calm: bool,
    /// Frames that were read from the device and must come out at the far end of a wire.
    owed: VecDeque<Vec<u8>>,
    /// Other frames were read that cross in pieces, or with corrected fields.
    has_corrected: bool,
}

impl Run {
    fn new(world: &World) -> Self {
        let facts = world.facts();
        let config = ChainConfig {
            switch: world.switch(facts.paths.len()),
            wire: facts.is_wire,
            lowers_mss: world.lowers_mss(),
            max_frame: facts.max_frame as u32,
            takes_offloads: facts.takes_offloads,
            refusals: Refusals {
                longest: facts.nic_mtu.unwrap_or(usize::MAX),
                udp: world.refuses_udp,
                udp_segments: if world.cuts_few { 128 } else { usize::MAX },
            },
            paths: facts.paths.clone(),
            plan: world.plan(),
        };
        let far = ChainConfig {
            switch: SwitchConfig::with_ports(2),
            wire: true,
            lowers_mss: false,
            max_frame: u16::MAX.into(),
            takes_offloads: true,
            refusals: Refusals {
                longest: usize::MAX,
                udp: false,
                udp_segments: usize::MAX,
            },
            paths: vec![Some(1472); MAX_PEERS],
            plan: Plan::Inline,
        };
        Self {
            world: facts,
            node: Chain::new(config).expect("descriptors are left"),
            far: Chain::new(far).expect("descriptors are left"),
            next: Default::default(),
            is_honest: true,
            is_calm: !world.lowers_mss(),
            owed: VecDeque::new(),
            has_corrected: false,
        }
    }

    fn take(&mut self, step: &Step) {
        match step {
            Step::Receive(arrivals) => self.receive(arrivals),
            Step::Read(frames) => self.read(frames),
            Step::Wait => self.node.give_up_waiting(),
            Step::Stand => {
                self.is_calm = false;
                self.node.keep_queues_standing();
            }
        }
        self.check_written();
        self.check_departed();
    }

    fn receive(&mut self, arrivals: &[Arrival]) {
        let mut datagrams = Vec::new();
        for arrival in arrivals.iter().take(BATCH) {
            let peer = usize::from(arrival.peer) % self.world.paths.len();
            let lane = 1 + arrival.lane % LANES;
            for (message_type, plaintext) in arrival.content.datagrams(&mut self.is_honest) {
                let next = &mut self.next[peer][usize::from(lane)];
                let sequence = arrival.order.number(next);
                let counter = Counter::new(Lane(lane), sequence);
                let port = PortId(peer as u16 + 1);
                let damage = arrival.damage();
                datagrams.push((port, message_type, counter, plaintext, damage));
            }
        }
        self.node.receive(datagrams.iter().map(
            |&(peer, message_type, counter, ref plaintext, damage)| Arriving {
                peer,
                message_type,
                counter,
                plaintext,
                damage,
            },
        ));
    }

    fn read(&mut self, frames: &[Sent]) {
        let mut described = Vec::new();
        for sent in frames.iter().take(BATCH) {
            let (vnet, built) = sent.describe(self.world.takes_offloads);
            self.is_honest &= built.is_honest && sent.description.is_right();
            if self.world.is_wire && self.is_calm {
                match sent.crosses_as_it_is(&built) {
                    true if self.world.paths[0].is_some() => {
                        self.owed.push_back(finished(&vnet, &built.frame));
                    }
                    true => {}
                    false => self.has_corrected = true,
                }
            }
            described.push((vnet, built.frame));
        }
        // Small frames may overtake large ones, and a batch takes a limited number of bytes.
        let before = self.node.device_frames()[0];
        self.node.read(described.iter().cloned());
        let mut calls = 0;
        while self.node.device_frames()[0] < before + described.len() as u64 {
            self.node.read([]);
            calls += 1;
            assert!(calls < 64, "frames are left on the device");
        }
    }

    fn check_written(&mut self) {
        for (vnet, frame) in self.node.take_written() {
            self.world.check_written(&vnet, &frame);
            if self.is_honest && vnet == VnetHeader::NONE {
                assert!(!has_wrong_checksum(&frame), "{frame:02x?}");
            }
        }
    }

    fn check_departed(&mut self) {
        let departed = self.node.take_departed();
        for datagram in &departed {
            self.world.check_datagram(datagram);
        }
        self.far.receive(departed.iter().map(|datagram| Arriving {
            peer: datagram.peer,
            message_type: datagram.message_type,
            counter: datagram.counter,
            plaintext: &datagram.plaintext,
            damage: Damage::None,
        }));
        for (vnet, frame) in self.far.take_written() {
            check_description(&vnet, &frame);
            if self.world.is_wire && self.is_calm {
                for frame in apart(&vnet, &frame) {
                    self.settle(&frame);
                }
            }
        }
    }

    /// A frame that came out at the far end of a wire was read at this one, unchanged.
    fn settle(&mut self, frame: &[u8]) {
        let place = self.owed.iter().position(|owed| owed == frame);
        match place {
            Some(place) => drop(self.owed.remove(place)),
            None => assert!(self.has_corrected, "nobody sent this: {frame:02x?}"),
        }
    }

    fn finish(mut self) {
        self.far.give_up_waiting();
        for (vnet, frame) in self.far.take_written() {
            check_description(&vnet, &frame);
        }
        for (reason, count) in self.far.drops() {
            // No peer can receive a frame of this size.
            let is_expected = matches!(reason, DropReason::Oversize | DropReason::ControlQueueFull);
            assert!(is_expected, "{count} refused by the far end: {reason:?}");
        }
        if self.world.is_wire && self.is_calm {
            let lost: u64 = self.node.drops().iter().map(|(_, count)| count).sum();
            let oversize: u64 = self.far.drops().iter().map(|(_, count)| count).sum();
            let owed = self.owed.len() as u64;
            assert!(owed <= lost + oversize, "{owed} frames were lost uncounted");
        }
    }
}

impl Facts {
    /// The limits of a kernel for frames and their offload descriptors.
    fn check_written(&self, vnet: &VnetHeader, frame: &[u8]) {
        assert!(self.takes_offloads || *vnet == VnetHeader::NONE);
        check_description(vnet, frame);
        let longest = match vnet.gso_type {
            VnetHeader::GSO_NONE => frame.len(),
            _ => usize::from(vnet.hdr_len) + usize::from(vnet.gso_size).min(frame.len()),
        };
        assert!(
            longest <= self.max_frame + TAG,
            "{longest} bytes, {} are the limit",
            self.max_frame
        );
    }

    fn check_datagram(&self, departed: &Departed) {
        let path = self.paths[usize::from(departed.peer.0) - 1];
        let path = path.expect("nothing goes to a peer without a session");
        assert!(departed.sealed_len <= path, "{}", departed.sealed_len);
        assert_eq!(departed.plaintext.len() + OVERHEAD, departed.sealed_len);
        if departed.message_type == MessageType::Chunks {
            for chunk in Chunks::new(&departed.plaintext) {
                let chunk = chunk.expect("what is sent is well-formed");
                assert!(!matches!(chunk, Chunk::Control(_)));
            }
        }
    }
}

#[derive(Arbitrary, Debug)]
struct Input {
    world: World,
    steps: Vec<Step>,
}

#[derive(Arbitrary, Debug)]
enum Step {
    Receive(Vec<Arrival>),
    Read(Vec<Sent>),
    Wait,
    Stand,
}

/// Some datagrams of a peer.
#[derive(Arbitrary, Debug)]
struct Arrival {
    peer: u8,
    lane: u8,
    order: Order,
    content: Content,
}

impl Arrival {
    /// The damage by the path to each of its datagrams: from the remainder of the lane.
    fn damage(&self) -> Damage {
        let number = u16::from(self.lane / LANES);
        match number {
            0..64 => Damage::None,
            64..76 => Damage::Flip(number - 64, self.peer),
            76..80 => Damage::Flip(number + u16::from(self.peer), 1 << (number % 8)),
            _ => Damage::Cut(u16::from(self.peer)),
        }
    }
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Order {
    Next,
    Skip(u8),
    Back(u8),
    At(u32),
}

impl Order {
    fn number(self, next: &mut u64) -> u64 {
        let number = match self {
            Self::Next => *next,
            Self::Skip(by) => *next + u64::from(by),
            Self::Back(by) => return next.saturating_sub(by.into()),
            Self::At(number) => number.into(),
        };
        *next = number + 1;
        number
    }
}

#[derive(Arbitrary, Debug)]
enum Content {
    /// A frame without a chunk header.
    Frame(Packet),
    /// Any bytes as chunks.
    Raw(Vec<u8>),
    Chunks(Vec<Piece>),
    /// A frame in pieces, each in a datagram.
    Cut {
        packet: Packet,
        id: u8,
        open: Option<Claim>,
        piece_len: u16,
        /// Of the first datagrams.
        lost: u32,
        is_reversed: bool,
        is_described_twice: bool,
    },
}

#[derive(Arbitrary, Debug)]
enum Piece {
    Frame(Packet),
    PartialChecksum(Packet, Claim),
    Fragment {
        id: u8,
        total: u16,
        offset: u16,
        len: u8,
    },
    Offload {
        id: u8,
        total: u16,
        packet: Packet,
        claim: Claim,
    },
}

/// The offload descriptor of a frame. Zeros leave it correct.
#[derive(Arbitrary, Clone, Copy, Debug)]
struct Claim {
    start: i8,
    offset: i8,
    headers: i16,
    total: i16,
    transport: bool,
    /// Bytes of a segment; none for a frame that its receiver does not segment.
    size: Option<u16>,
    cwr: bool,
}

impl Claim {
    fn checksum(&self, built: &Built) -> Checksum {
        Checksum {
            start: built.checksum.start.wrapping_add_signed(self.start.into()),
            offset: built
                .checksum
                .offset
                .wrapping_add_signed(self.offset.into()),
        }
    }

    fn offload(&self, built: &Built) -> Offload {
        let is_tcp = (built.protocol == 6) ^ self.transport;
        let segmentation = self.size.map(|size| Segmentation {
            transport: if is_tcp {
                Transport::Tcp
            } else {
                Transport::Udp
            },
            size,
            cwr: self.cwr,
        });
        Offload {
            checksum: self.checksum(built),
            segmentation,
        }
    }

    fn headers<'a>(&self, built: &'a Built) -> &'a [u8] {
        let len = built.headers_len.saturating_add_signed(self.headers.into());
        &built.frame[..len.min(built.frame.len())]
    }

    fn is_right(&self) -> bool {
        (self.start, self.offset, self.headers, self.total) == (0, 0, 0, 0) && !self.transport
    }
}

impl Content {
    fn datagrams(&self, is_honest: &mut bool) -> Vec<(MessageType, Vec<u8>)> {
        match self {
            Self::Frame(packet) => {
                let built = packet.build();
                *is_honest &= built.is_honest;
                vec![(MessageType::Frame, built.finished())]
            }
            Self::Raw(bytes) => {
                *is_honest = false;
                vec![(MessageType::Chunks, bytes.clone())]
            }
            Self::Chunks(pieces) => {
                let chunks = pieces.iter().take(8);
                let plaintext = chunks.flat_map(|piece| piece.chunk(is_honest)).collect();
                vec![(MessageType::Chunks, plaintext)]
            }
            Self::Cut { .. } => self.pieces(is_honest),
        }
    }

    fn pieces(&self, is_honest: &mut bool) -> Vec<(MessageType, Vec<u8>)> {
        let Self::Cut {
            packet,
            id,
            open,
            piece_len,
            lost,
            is_reversed,
            is_described_twice,
        } = self
        else {
            return Vec::new();
        };
        let mut built = packet.build();
        *is_honest &= built.is_honest && open.is_none_or(|claim| claim.is_right());
        if open.is_none() {
            built.frame = built.finished();
        }
        let total = built.frame.len() as u32;
        let (mut chunks, mut begin) = (Vec::new(), 0);
        let describe = |claim: &Claim| {
            let total = total.saturating_add_signed(claim.total.into());
            offload(*id, total, claim.offload(&built), claim.headers(&built))
        };
        if let Some(claim) = open {
            begin = claim.headers(&built).len();
            chunks.push(describe(claim));
        }
        let most = built.frame.len().div_ceil(64).max(16);
        let piece_len = usize::from(*piece_len).clamp(most, 9000);
        for (at, piece) in built.frame[begin..].chunks(piece_len).enumerate() {
            let offset = begin + at * piece_len;
            chunks.push(fragment(*id, total, offset as u32, piece));
        }
        if let (Some(claim), true) = (open, is_described_twice) {
            chunks.push(describe(claim));
        }
        if *is_reversed {
            chunks.reverse();
        }
        let mut at = 0;
        chunks.retain(|_| {
            at += 1;
            at > 32 || lost & 1 << (at - 1) == 0
        });
        let datagrams = chunks.into_iter().map(|chunk| (MessageType::Chunks, chunk));
        datagrams.collect()
    }
}

impl Piece {
    fn chunk(&self, is_honest: &mut bool) -> Vec<u8> {
        match self {
            Self::Frame(packet) => {
                let built = packet.build();
                let frame = built.finished();
                let frame = &frame[..frame.len().min(CHUNK)];
                *is_honest &= built.is_honest && frame.len() < CHUNK;
                let mut header = [0; CHUNK_HEADER_LEN];
                emit_frame_header(&mut header, frame.len() as u16);
                [&header[..], frame].concat()
            }
            Self::PartialChecksum(packet, claim) => {
                let built = packet.build();
                let frame = &built.frame[..built.frame.len().min(CHUNK)];
                *is_honest &= built.is_honest && claim.is_right() && frame.len() < CHUNK;
                let mut header = [0; PARTIAL_CHECKSUM_HEADER_LEN];
                emit_partial_checksum_header(
                    &mut header,
                    claim.checksum(&built),
                    frame.len() as u16,
                );
                [&header[..], frame].concat()
            }
            Self::Fragment {
                id,
                total,
                offset,
                len,
            } => {
                *is_honest = false;
                fragment(
                    *id,
                    (*total).into(),
                    (*offset).into(),
                    &vec![0; (*len).into()],
                )
            }
            Self::Offload {
                id,
                total,
                packet,
                claim,
            } => {
                *is_honest = false;
                let built = packet.build();
                let headers = claim.headers(&built);
                let headers = &headers[..headers.len().min(9000)];
                offload(*id, (*total).into(), claim.offload(&built), headers)
            }
        }
    }
}

fn fragment(id: u8, total: u32, offset: u32, piece: &[u8]) -> Vec<u8> {
    let mut header = [0; FRAGMENT_HEADER_LEN];
    let place = Fragment {
        frame_id: id.into(),
        total,
        offset,
    };
    emit_fragment_header(&mut header, place, piece.len() as u16);
    [&header[..], piece].concat()
}

fn offload(id: u8, total: u32, offload: Offload, headers: &[u8]) -> Vec<u8> {
    let headers = &headers[..headers.len().min(9000)];
    let mut header = [0; OFFLOAD_HEADER_LEN];
    let cut = CutFrame {
        frame_id: id.into(),
        total,
    };
    emit_offload_header(&mut header, cut, offload, headers.len() as u16);
    [&header[..], headers].concat()
}

/// A frame that the device delivers.
#[derive(Arbitrary, Debug)]
struct Sent {
    packet: Packet,
    description: Description,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Description {
    Finished,
    Verified,
    Partial {
        start: i8,
        offset: i8,
    },
    Super {
        size: u16,
        headers: i8,
        ecn: bool,
        udp: bool,
    },
    Broken,
    Any([u8; 2], [u16; 4]),
}

impl Description {
    fn is_right(&self) -> bool {
        match self {
            Self::Finished | Self::Verified => true,
            Self::Partial { start, offset } => (*start, *offset) == (0, 0),
            Self::Super { udp, ecn, .. } => !udp && !ecn,
            Self::Broken | Self::Any(..) => false,
        }
    }
}

impl Sent {
    /// Whether no field has to be corrected, or may be, before it crosses.
    fn crosses_as_it_is(&self, built: &Built) -> bool {
        match self.description {
            // A longer one is cut off where it is read.
            _ if built.frame.len() > u16::MAX.into() => false,
            Description::Finished | Description::Verified => true,
            Description::Partial { start, offset } => (start, offset) == (0, 0) && built.is_honest,
            _ => false,
        }
    }

    /// A device without offloads gives no descriptor.
    fn describe(&self, takes_offloads: bool) -> (VnetHeader, Built) {
        let mut built = self.packet.build();
        if !takes_offloads
            || matches!(
                self.description,
                Description::Finished | Description::Verified
            )
        {
            built.frame = built.finished();
        }
        let open = VnetHeader {
            flags: VnetHeader::NEEDS_CHECKSUM,
            csum_start: built.checksum.start,
            csum_offset: built.checksum.offset,
            ..VnetHeader::NONE
        };
        let vnet = match self.description {
            _ if !takes_offloads => VnetHeader::NONE,
            Description::Finished => VnetHeader::NONE,
            Description::Verified => VnetHeader {
                flags: VnetHeader::DATA_VALID,
                ..VnetHeader::NONE
            },
            Description::Partial { start, offset } => VnetHeader {
                csum_start: open.csum_start.wrapping_add_signed(start.into()),
                csum_offset: open.csum_offset.wrapping_add_signed(offset.into()),
                ..open
            },
            Description::Super {
                size,
                headers,
                ecn,
                udp,
            } => {
                let kind = match (built.protocol == 17 || udp, built.is_ipv6) {
                    (true, _) => VnetHeader::GSO_UDP_L4,
                    (false, false) => VnetHeader::GSO_TCPV4,
                    (false, true) => VnetHeader::GSO_TCPV6,
                };
                VnetHeader {
                    gso_type: kind | u8::from(ecn) * VnetHeader::GSO_ECN,
                    gso_size: size,
                    hdr_len: (built.headers_len as u16).wrapping_add_signed(headers.into()),
                    ..open
                }
            }
            Description::Broken => VnetHeader::BROKEN,
            Description::Any([flags, gso_type], [hdr_len, gso_size, csum_start, csum_offset]) => {
                VnetHeader {
                    flags,
                    gso_type,
                    hdr_len,
                    gso_size,
                    csum_start,
                    csum_offset,
                }
            }
        };
        (vnet, built)
    }
}
