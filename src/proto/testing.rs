// SPDX-License-Identifier: MIT OR Apache-2.0
//! Shared by the tests of `proto`: a session with itself, frames laid out by real trains, and
//! super-frames whose segments are built from scratch with another library.
#![cfg(test)]

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    ops::Range,
    sync::Arc,
    time::Instant,
};

use etherparse::{
    EtherType, Ethernet2Header, IpNumber, Ipv4Header, Ipv6Header, Ipv6RawExtHeader,
    SingleVlanHeader, TcpHeader, UdpHeader, VlanId, VlanPcp, checksum::Sum16BitWords,
};
use patchcord_bridge::PortId;
use proptest::prelude::*;

use super::{
    session::{Agreement, Role, Session},
    superframe::{Layout, MAX_SEGMENTS},
    train::{Outgoing, PendingOffload, Pushed, Train},
};
use crate::{
    crypto::{
        aead::Cipher,
        noise::{SplitKey, SplitKeys},
    },
    wire::{
        Lane, MessageType, SessionIndex,
        chunk::{Chunk, Chunks},
        offload::{Checksum, Offload, Segmentation, Transport},
    },
};

pub(crate) const LANE: Lane = Lane::FIRST_DATA;
pub(crate) const DESTINATION: SocketAddr =
    SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), 1);

/// A session with itself: seals and opens under the same key.
pub(crate) fn looped_session() -> Arc<Session> {
    let agreement = Agreement {
        local: SessionIndex::from_low_bits(1),
        remote: SessionIndex::from_low_bits(2),
        role: Role::Initiator,
        cipher: Cipher::Aes256Gcm,
        local_lanes: 1.into(),
        remote_lanes: 1.into(),
    };
    let keys = SplitKeys {
        seal: SplitKey::from_bytes([1; 32]),
        open: SplitKey::from_bytes([1; 32]),
    };
    Arc::new(Session::new(
        agreement,
        &keys,
        PortId(1),
        Instant::now(),
        Arc::default(),
    ))
}

/// Packs the frames; returns every sealed datagram in order, and the number of trains.
pub(crate) fn pack<'a>(
    frames: impl Iterator<Item = (&'a [u8], Option<PendingOffload>)>,
    datagram_len: usize,
) -> (Vec<Vec<u8>>, usize) {
    let session = looped_session();
    let (mut datagrams, mut trains) = (Vec::new(), 0);
    let mut train = Train::default();
    let mut finish = |train: &mut Train| {
        train.close(LANE).unwrap();
        train.seal();
        for (run, size) in train.runs() {
            datagrams.extend(run.chunks(size).map(<[u8]>::to_vec));
        }
        train.clear();
        trains += 1;
    };
    for (frame_id, (frame, pending)) in (0..).zip(frames) {
        let mut outgoing = Outgoing::new(frame, frame_id, pending);
        loop {
            if train.is_empty() {
                train.bind(&session, DESTINATION, datagram_len);
            }
            match train.push(LANE, &mut outgoing).unwrap() {
                Pushed::Done => break,
                Pushed::Full => finish(&mut train),
            }
        }
    }
    finish(&mut train);
    (datagrams, trains)
}

/// A decrypted datagram: its sequence number and its chunks.
#[derive(Clone, Debug)]
pub(crate) struct Opened {
    pub(crate) sequence: u64,
    plaintext: Vec<u8>,
    is_chunks: bool,
}

impl Opened {
    /// The datagrams that `pack` made.
    pub(crate) fn all(datagrams: &[Vec<u8>]) -> Vec<Self> {
        let session = looped_session();
        let open = |datagram: &Vec<u8>| {
            let mut datagram = datagram.clone();
            let message_type = MessageType::of(&datagram).unwrap();
            let (counter, plaintext) = session.open(&mut datagram).unwrap();
            Self {
                sequence: counter.sequence(),
                plaintext: plaintext.to_vec(),
                is_chunks: message_type == MessageType::Chunks,
            }
        };
        datagrams.iter().map(open).collect()
    }

    pub(crate) fn chunks(&self) -> Vec<Chunk<'_>> {
        if self.is_chunks {
            Chunks::new(&self.plaintext).map(Result::unwrap).collect()
        } else {
            vec![Chunk::Frame(&self.plaintext)]
        }
    }
}

/// The stream that a super-frame stands for. [`Self::frame`] builds any run of its segments from
/// scratch.
#[derive(Clone, Debug)]
pub(crate) struct Stream {
    /// TPID and VID of each tag.
    pub(crate) tags: Vec<(u16, u16)>,
    pub(crate) network: Network,
    pub(crate) transport: Transport,
    pub(crate) sequence: u32,
    /// FIN, PSH, CWR, URG and ECE.
    pub(crate) flags: [bool; 5],
    /// Bytes, a multiple of four.
    pub(crate) tcp_options: usize,
    pub(crate) size: u16,
    pub(crate) payload: Noise,
}

#[derive(Clone, Debug)]
pub(crate) enum Network {
    /// Identification, DF, bytes of options (a multiple of four).
    V4(u16, bool, usize),
    /// Extension headers: the number of each, and its length in units of eight bytes.
    V6(Vec<(u8, usize)>),
}

impl Stream {
    pub(crate) fn tcp_v4(size: u16, payload_len: usize) -> Self {
        Self {
            tags: Vec::new(),
            network: Network::V4(7, true, 0),
            transport: Transport::Tcp,
            sequence: 1000,
            flags: [false, true, false, false, false],
            tcp_options: 12,
            size,
            payload: Noise::new(payload_len),
        }
    }

    pub(crate) fn udp_v6(size: u16, payload_len: usize) -> Self {
        Self {
            network: Network::V6(Vec::new()),
            transport: Transport::Udp,
            ..Self::tcp_v4(size, payload_len)
        }
    }

    pub(crate) fn segments(&self) -> usize {
        self.payload.0.len().div_ceil(self.size.into())
    }

    /// All segments in one, as the kernel hands them over.
    pub(crate) fn whole(&self) -> Vec<u8> {
        self.frame(0..self.segments(), false)
    }

    pub(crate) fn headers_len(&self) -> usize {
        self.transport_at() + self.transport_header(0..1).len()
    }

    pub(crate) fn transport_at(&self) -> usize {
        let network = match &self.network {
            Network::V4(_, _, options) => 20 + options,
            Network::V6(extensions) => {
                40 + extensions.iter().map(|(_, units)| units * 8).sum::<usize>()
            }
        };
        14 + 4 * self.tags.len() + network
    }

    /// Of a run that starts at the first segment or not.
    pub(crate) fn offload(&self, run: Range<usize>) -> Offload {
        let segmentation = Segmentation {
            transport: self.transport,
            size: self.size,
            cwr: self.has_cwr() && run.start == 0,
        };
        Offload {
            checksum: Checksum {
                start: self.transport_at() as u16,
                offset: match self.transport {
                    Transport::Tcp => 16,
                    Transport::Udp => 6,
                },
            },
            segmentation: (run.len() > 1).then_some(segmentation),
        }
    }

    pub(crate) fn layout(&self) -> Layout {
        let whole = self.whole();
        let offload = Offload {
            segmentation: Some(Segmentation {
                transport: self.transport,
                size: self.size,
                cwr: self.has_cwr(),
            }),
            ..self.offload(0..1)
        };
        Layout::parse(&whole, whole.len(), &offload, usize::MAX).unwrap()
    }

    pub(crate) fn pending(&self) -> PendingOffload {
        PendingOffload {
            offload: self.offload(0..self.segments()),
            headers_len: self.headers_len(),
        }
    }

    fn has_cwr(&self) -> bool {
        self.transport == Transport::Tcp && self.flags[2]
    }

    pub(crate) fn payload_of(&self, run: &Range<usize>) -> &[u8] {
        let at = |segment: usize| (segment * usize::from(self.size)).min(self.payload.0.len());
        &self.payload.0[at(run.start)..at(run.end)]
    }

    /// The frame of these segments, with its checksum finished or partial.
    pub(crate) fn frame(&self, run: Range<usize>, is_finished: bool) -> Vec<u8> {
        let mut transport = self.transport_header(run.clone());
        let (network, pseudo) = self.network_headers(&run, transport.len());
        let payload = self.payload_of(&run);
        let len = (transport.len() + payload.len()) as u16;
        let mut pseudo = pseudo.add_2bytes(len.to_be_bytes());
        let checksum = if is_finished {
            pseudo = pseudo.add_slice(&transport).add_slice(payload);
            pseudo.to_ones_complement_with_no_zero()
        } else {
            !pseudo.ones_complement()
        };
        let at = usize::from(self.offload(0..1).checksum.offset);
        // etherparse sums in the byte order of this machine.
        transport[at..at + 2].copy_from_slice(&checksum.to_ne_bytes());
        [&self.ethernet()[..], &network, &transport, payload].concat()
    }

    fn ethernet(&self) -> Vec<u8> {
        let network = match self.network {
            Network::V4(..) => EtherType::IPV4,
            Network::V6(_) => EtherType::IPV6,
        };
        let mut types = self.tags.iter().map(|&(tpid, _)| EtherType(tpid));
        let mut bytes = Ethernet2Header {
            destination: [2, 0, 0, 0, 0, 1],
            source: [2, 0, 0, 0, 0, 2],
            ether_type: types.next().unwrap_or(network),
        }
        .to_bytes()
        .to_vec();
        for &(_, vid) in &self.tags {
            let tag = SingleVlanHeader {
                pcp: VlanPcp::ZERO,
                drop_eligible_indicator: false,
                vlan_id: VlanId::try_new(vid).unwrap(),
                ether_type: types.next().unwrap_or(network),
            };
            bytes.extend(tag.to_bytes());
        }
        bytes
    }

    /// The bytes, and the sum of the pseudo-header but for the length.
    fn network_headers(
        &self,
        run: &Range<usize>,
        transport_len: usize,
    ) -> (Vec<u8>, Sum16BitWords) {
        let len = transport_len + self.payload_of(run).len();
        let protocol = match self.transport {
            Transport::Tcp => IpNumber::TCP,
            Transport::Udp => IpNumber::UDP,
        };
        let sum = Sum16BitWords::new().add_2bytes([0, protocol.0]);
        match &self.network {
            &Network::V4(id, dont_fragment, options) => {
                let mut header = Ipv4Header {
                    identification: id.wrapping_add(run.start as u16),
                    dont_fragment,
                    time_to_live: 64,
                    protocol,
                    source: [10, 0, 0, 1],
                    destination: [10, 200, 0, 2],
                    options: vec![1; options][..].try_into().unwrap(),
                    ..Ipv4Header::default()
                };
                header.total_len = (header.header_len() + len) as u16;
                header.header_checksum = header.calc_header_checksum();
                let sum = sum
                    .clone()
                    .add_slice(&header.source)
                    .add_slice(&header.destination);
                (header.to_bytes().to_vec(), sum)
            }
            Network::V6(extensions) => {
                let extensions_len: usize = extensions.iter().map(|(_, units)| units * 8).sum();
                let mut kinds = extensions.iter().map(|&(kind, _)| IpNumber(kind));
                let header = Ipv6Header {
                    payload_length: (extensions_len + len) as u16,
                    next_header: kinds.next().unwrap_or(protocol),
                    hop_limit: 64,
                    source: *b"\xfd\0\0\0\0\0\0\0\0\0\0\0\0\0\xff\xff",
                    destination: *b"\xfd\0\0\0\x80\0\0\0\0\0\0\0\0\0\0\x02",
                    ..Ipv6Header::default()
                };
                let mut bytes = header.to_bytes().to_vec();
                for &(_, units) in extensions {
                    let next = kinds.next().unwrap_or(protocol);
                    // PadN options, zeros in a routing header of which no segments are left.
                    let mut body = vec![0; units * 8 - 2];
                    body[..2].copy_from_slice(&[1, (units * 8 - 4) as u8]);
                    let extension = Ipv6RawExtHeader::new_raw(next, &body).unwrap();
                    bytes.extend(extension.to_bytes());
                }
                let sum = sum
                    .clone()
                    .add_16bytes(header.source)
                    .add_16bytes(header.destination);
                (bytes, sum)
            }
        }
    }

    /// With a checksum of zero.
    fn transport_header(&self, run: Range<usize>) -> Vec<u8> {
        let [fin, psh, cwr, urg, ece] = self.flags;
        let is_last = run.end == self.segments();
        if self.transport == Transport::Udp {
            let header = UdpHeader {
                source_port: 4000,
                destination_port: 5000,
                length: (8 + self.payload_of(&run).len()) as u16,
                checksum: 0,
            };
            return header.to_bytes().to_vec();
        }
        let advanced = run.start * usize::from(self.size);
        let mut header = TcpHeader {
            sequence_number: self.sequence.wrapping_add(advanced as u32),
            acknowledgment_number: 99,
            fin: fin && is_last,
            psh: psh && is_last,
            cwr: cwr && run.start == 0,
            urg,
            ece,
            ack: true,
            ..TcpHeader::new(4000, 5000, 0, 1024)
        };
        header.set_options_raw(&vec![1; self.tcp_options]).unwrap();
        header.to_bytes().to_vec()
    }
}

/// Bytes that repeat so late that a piece in the wrong place shows.
#[derive(Clone)]
pub(crate) struct Noise(Vec<u8>);

impl Noise {
    fn new(len: usize) -> Self {
        let byte = |at: u32| (at.wrapping_mul(0x9e37_79b9) >> 13) as u8;
        Self((0..len as u32).map(byte).collect())
    }
}

impl fmt::Debug for Noise {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} bytes", self.0.len())
    }
}

prop_compose! {
    pub(crate) fn any_stream()(
        tags in prop::collection::vec(
            (prop_oneof![Just(0x8100_u16), Just(0x88a8)], 0..4096_u16), 0..=4),
        network in prop_oneof![
            (any::<u16>(), any::<bool>(), 0..=10_usize)
                .prop_map(|(id, df, words)| Network::V4(id, df, words * 4)),
            prop::collection::vec(
                (prop_oneof![Just(0_u8), Just(43), Just(60)], 1..=5_usize), 0..=3)
                .prop_map(Network::V6),
        ],
        transport in prop_oneof![Just(Transport::Tcp), Just(Transport::Udp)],
        sequence: u32,
        flags: [bool; 5],
        tcp_options in (0..=10_usize).prop_map(|words| words * 4),
        size in prop_oneof![1..50_u16, 500..1461_u16, 1..9000_u16],
        payload_len in prop_oneof![1..3000_usize, 1..=65_535_usize],
    ) -> Stream {
        let stream = Stream {
            tags, network, transport, sequence, flags, tcp_options, size, payload: Noise::new(0),
        };
        let room = 65_535 - (stream.headers_len() - 14 - 4 * stream.tags.len());
        let room = room.min(usize::from(size) * MAX_SEGMENTS);
        Stream { payload: Noise::new(payload_len.min(room)), ..stream }
    }
}
