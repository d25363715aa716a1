// SPDX-License-Identifier: MIT OR Apache-2.0
//! Merges small UDP frames of a flow into a super-frame (USO), which the kernel cuts into the same
//! frames again, byte for byte.
//!
//! The rules are those of GRO, without its exceptions: whatever the kernel writes into a segment
//! anew must be what it was. A frame may be part of a super-frame if
//!
//! - it is an Ethernet frame, tagged or not, that an IP packet fills, without options, extension
//!   headers or fragments, and with a correct header checksum;
//! - it is a UDP datagram with a payload, and its checksum is the right one, or a partial one with
//!   the right sum of the pseudo-header. The kernel computes it anew, so it would repair a wrong
//!   one, and supply a missing one.
//!
//! It joins the frames before it if
//!
//! - everything in front of the payload is as in them, but for lengths, checksums and the
//!   identification of IPv4, which is one higher: the kernel counts it up, also with DF;
//! - all checksums are partial, or none is;
//! - it has no more payload than they have. A shorter one ends the super-frame.
//!
//! `proto/cut` does the opposite.

use patchcord_bridge::{
    Headers,
    checksum::{self, fold, is_right, sum},
    ethernet::ADDRESSES_LEN,
    ip_protocol::UDP,
};

use super::{
    field::{put, read},
    packet::{self, TransportHeader, UDP_CHECKSUM},
    superframe::Layout,
};
use crate::wire::offload::{Checksum, Offload, Segmentation, Transport};

/// The most frames of a super-frame: what all kernels allow a sender (`UDP_MAX_SEGMENTS`).
pub const MAX_MERGED: usize = 64;
/// The most bytes of a super-frame.
pub const MAX_MERGED_BYTES: usize = 60_000;

const UDP_HEADER: usize = 8;
/// From the start of an IPv4 header.
const TOTAL_LEN: usize = 2;
const IDENTIFICATION: usize = 4;
const FLAGS: usize = 6;
const HEADER_CHECKSUM: usize = 10;
/// From the start of an IPv6 header.
const PAYLOAD_LEN: usize = 4;
/// From the start of a UDP header.
const LEN: usize = 4;

/// A frame that may be part of a super-frame.
#[derive(Clone, Copy, Debug)]
pub struct Mergeable<'a> {
    head: &'a [u8],
    rest: &'a [u8],
    shape: Shape,
}

/// The positions of a frame's headers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Shape {
    network: usize,
    is_ipv6: bool,
    transport: usize,
    /// The checksum is partial.
    is_open: bool,
}

impl<'a> Mergeable<'a> {
    /// The frame with `rest` behind these headers, if it follows the rules. `open` is the position
    /// of its partial checksum, if it has one.
    pub fn of(headers: &Headers<'a>, rest: &'a [u8], open: Option<Checksum>) -> Option<Self> {
        let head = headers.frame();
        let len = head.len() + rest.len();
        let TransportHeader {
            network,
            is_ipv6,
            protocol,
            at: transport,
        } = packet::transport(headers, len)?;
        let shape = Shape {
            network,
            is_ipv6,
            transport,
            is_open: open.is_some(),
        };
        let frame = Self { head, rest, shape };
        let payload = transport + UDP_HEADER;
        let is_plain = protocol == UDP
            && len <= MAX_MERGED_BYTES / 2
            && transport - network == shape.network_len()
            && payload < len
            && payload <= head.len()
            // Sums of two parts add up if the first one is even.
            && (rest.is_empty() || (head.len() - transport).is_multiple_of(2))
            && usize::from(read(head, transport + LEN)) == len - transport
            && open.is_none_or(|open| open == shape.checksum());
        (is_plain && frame.is_right()).then_some(frame)
    }

    fn len(&self) -> usize {
        self.head.len() + self.rest.len()
    }

    fn payload_len(&self) -> usize {
        self.len() - self.shape.payload()
    }

    /// Whether the kernel would write the same flags and checksums.
    fn is_right(&self) -> bool {
        let Shape {
            network,
            is_ipv6,
            transport,
            is_open,
        } = self.shape;
        let ip = &self.head[network..transport];
        let is_header_right = is_ipv6
            || matches!(read(ip, FLAGS), 0 | 0x4000)
                // It could also be written as the other zero.
                && read(ip, HEADER_CHECKSUM) != 0xffff
                && is_right(sum(ip));
        let checksum = read(self.head, transport + usize::from(UDP_CHECKSUM));
        let pseudo_header = self.shape.pseudo_header(self.head, self.len());
        let is_checksum_right = match is_open {
            // Zero can be written in two ways, but leads to the same checksum.
            true => checksum % 0xffff == fold(pseudo_header) % 0xffff,
            false => {
                let whole = sum(&self.head[transport..]) + sum(self.rest);
                checksum != 0 && is_right(pseudo_header + whole)
            }
        };
        is_header_right && is_checksum_right
    }
}

impl Shape {
    fn network_len(self) -> usize {
        if self.is_ipv6 { 40 } else { 20 }
    }

    fn payload(self) -> usize {
        self.transport + UDP_HEADER
    }

    fn checksum(self) -> Checksum {
        Checksum {
            start: self.transport as u16,
            offset: UDP_CHECKSUM,
        }
    }

    /// The sum for a frame of `len` bytes.
    fn pseudo_header(self, head: &[u8], len: usize) -> u64 {
        let addresses = match self.is_ipv6 {
            true => 8..40,
            false => 12..20,
        };
        let addresses = sum(&head[self.network..][addresses]);
        addresses + u64::from(UDP) + (len - self.transport) as u64
    }

    /// Whether the frames have the same addresses, tags and ports.
    fn is_one_flow(self, one: &[u8], other: &[u8]) -> bool {
        // Addresses and ports are neighbours.
        let from = self.network + if self.is_ipv6 { 8 } else { 12 };
        let ports_end = self.transport + 4;
        one[from..ports_end] == other[from..ports_end]
            && one[..self.network] == other[..self.network]
    }
}

/// Frames of one flow, in the order in which they came.
#[derive(Debug)]
pub struct Merge {
    /// The first one, and the payload of the others.
    bytes: Vec<u8>,
    shape: Shape,
    frames: usize,
    /// Payload bytes of all frames but the last, which may have fewer.
    size: usize,
}

/// What became of the frames.
#[derive(Clone, Copy, Debug)]
pub struct Merged<'a> {
    /// A super-frame, or the only frame as it was.
    pub frame: &'a [u8],
    /// Of a super-frame, or of a frame with a partial checksum.
    pub pending: Option<(Offload, Option<Layout>)>,
    /// The number of frames.
    pub frames: usize,
    /// Bytes of all of them.
    pub bytes: usize,
}

impl Default for Merge {
    fn default() -> Self {
        Self {
            bytes: Vec::with_capacity(MAX_MERGED_BYTES),
            shape: Shape::default(),
            frames: 0,
            size: 0,
        }
    }
}

impl Merge {
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.frames == 0
    }

    /// Whether no frame can join.
    pub fn is_full(&self) -> bool {
        let has_short_end = self.bytes.len() < self.shape.payload() + self.frames * self.size;
        self.frames == MAX_MERGED
            || has_short_end
            || self.bytes.len() + self.size > MAX_MERGED_BYTES
    }

    /// Whether this is a frame of the same flow. It may be one that cannot join.
    pub fn has_flow_of(&self, frame: &Mergeable<'_>) -> bool {
        let Shape {
            network, is_ipv6, ..
        } = frame.shape;
        !self.is_empty()
            && (self.shape.network, self.shape.is_ipv6) == (network, is_ipv6)
            && self.shape.is_one_flow(&self.bytes, frame.head)
    }

    /// Whether the frames are between the same stations as this one.
    pub fn has_stations_of(&self, frame: &[u8]) -> bool {
        let stations = |frame: &[u8]| frame.first_chunk::<ADDRESSES_LEN>().copied();
        !self.is_empty() && stations(&self.bytes) == stations(frame)
    }

    /// Begins with a frame, and forgets the others.
    pub fn begin(&mut self, frame: &Mergeable<'_>) {
        self.bytes.clear();
        self.bytes.extend_from_slice(frame.head);
        self.bytes.extend_from_slice(frame.rest);
        self.shape = frame.shape;
        self.frames = 1;
        self.size = frame.payload_len();
    }

    /// Adds a frame of the same flow. False if it cannot join.
    pub fn join(&mut self, frame: &Mergeable<'_>) -> bool {
        if self.is_full() || self.shape != frame.shape || !self.continues_with(frame) {
            return false;
        }
        let in_head = &frame.head[self.shape.payload()..];
        self.bytes.extend_from_slice(in_head);
        self.bytes.extend_from_slice(frame.rest);
        self.frames += 1;
        true
    }

    fn continues_with(&self, frame: &Mergeable<'_>) -> bool {
        let ip = &self.bytes[self.shape.network..];
        let next = &frame.head[self.shape.network..];
        let is_same = match self.shape.is_ipv6 {
            // Traffic class and flow label; hop limit.
            true => ip[..PAYLOAD_LEN] == next[..PAYLOAD_LEN] && ip[7] == next[7],
            // Type of service; flags; time to live.
            false => {
                let number = read(ip, IDENTIFICATION).wrapping_add(self.frames as u16);
                ip[1] == next[1]
                    && ip[FLAGS..HEADER_CHECKSUM] == next[FLAGS..HEADER_CHECKSUM]
                    && read(next, IDENTIFICATION) == number
            }
        };
        is_same && frame.payload_len() <= self.size
    }

    /// The frames as one. There are none afterwards.
    pub fn finish(&mut self) -> Option<Merged<'_>> {
        match std::mem::take(&mut self.frames) {
            0 => None,
            1 => Some(Merged {
                frame: &self.bytes,
                pending: self.shape.is_open.then(|| (self.offload(None), None)),
                frames: 1,
                bytes: self.bytes.len(),
            }),
            frames => self.merged(frames),
        }
    }

    fn merged(&mut self, frames: usize) -> Option<Merged<'_>> {
        self.write_headers();
        let offload = self.offload(Some(Segmentation {
            transport: Transport::Udp,
            size: self.size as u16,
            cwr: false,
        }));
        let frame = &self.bytes[..];
        // Never wrong: the checks of a peer's super-frames are weaker.
        let layout = Layout::parse(frame, frame.len(), &offload, usize::MAX).ok()?;
        Some(Merged {
            frame,
            pending: Some((offload, Some(layout))),
            frames,
            bytes: frame.len() + (frames - 1) * self.shape.payload(),
        })
    }

    fn offload(&self, segmentation: Option<Segmentation>) -> Offload {
        Offload {
            checksum: self.shape.checksum(),
            segmentation,
        }
    }

    /// Lengths and checksums of the super-frame.
    fn write_headers(&mut self) {
        let (shape, len) = (self.shape, self.bytes.len());
        let (network, transport) = (shape.network, shape.transport);
        if shape.is_ipv6 {
            put(
                &mut self.bytes,
                network + PAYLOAD_LEN,
                (len - transport) as u16,
            );
        } else {
            put(&mut self.bytes, network + TOTAL_LEN, (len - network) as u16);
            put(&mut self.bytes, network + HEADER_CHECKSUM, 0);
            let finished = checksum::finish(sum(&self.bytes[network..transport]));
            put(&mut self.bytes, network + HEADER_CHECKSUM, finished);
        }
        put(&mut self.bytes, transport + LEN, (len - transport) as u16);
        let open = fold(shape.pseudo_header(&self.bytes, len));
        put(&mut self.bytes, transport + usize::from(UDP_CHECKSUM), open);
    }
}

#[cfg(test)]
mod tests;
