// SPDX-License-Identifier: MIT OR Apache-2.0
//! Frames for the targets: finished ones, some with a partial checksum, and super-frames of every kind.
//!
//! Every byte of a payload follows from the frame's number and its offset, so that a piece identifies
//! its place.

use arbitrary::Arbitrary;
use patchcord::internals::{
    proto::train::PendingOffload,
    wire::offload::{Checksum, Offload, Segmentation, Transport},
};

/// The kind of a frame.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub enum Kind {
    Finished,
    PartialChecksum,
    Super {
        transport: Protocol,
        is_ipv6: bool,
        is_tagged: bool,
        has_options: bool,
        segment_len: u16,
        cwr: bool,
    },
}

#[derive(Arbitrary, Clone, Copy, Debug)]
pub enum Protocol {
    Tcp,
    Udp,
}

/// A frame as its sender has it.
pub struct Original {
    pub frame: Vec<u8>,
    pub pending: Option<PendingOffload>,
}

/// The least length of a segment: so many bytes of a payload occur at one place only.
pub const SEGMENT_MIN: usize = 8;
const ETHERNET: usize = 14;

impl Original {
    /// Of about `len` bytes, and segments of at most `segment_max` bytes with their headers.
    pub fn new(number: u8, kind: Kind, len: usize, segment_max: usize) -> Self {
        match kind {
            Kind::Finished => Self {
                frame: filled(number, Vec::new(), len.max(1)),
                pending: None,
            },
            Kind::PartialChecksum => Self::with_partial_checksum(number, len),
            Kind::Super { .. } => Self::of_segments(number, kind, len, segment_max),
        }
    }

    fn with_partial_checksum(number: u8, len: usize) -> Self {
        let checksum = Checksum {
            start: 34,
            offset: 16,
        };
        let headers_len = 34 + 16 + 2;
        let offload = Offload {
            checksum,
            segmentation: None,
        };
        // One more byte, for a piece behind the headers.
        let mut frame = filled(number, ethernet(number, false), len.max(headers_len + 1));
        // The fields of IPv4 and TCP that a receiver reads.
        let total = (frame.len() - 14) as u16;
        frame[12..15].copy_from_slice(&[0x08, 0x00, 0x45]);
        frame[16..18].copy_from_slice(&total.to_be_bytes());
        frame[20..22].fill(0);
        frame[23] = 6;
        Self {
            frame,
            pending: Some(PendingOffload {
                offload,
                headers_len,
            }),
        }
    }

    fn of_segments(number: u8, kind: Kind, len: usize, segment_max: usize) -> Self {
        let Kind::Super {
            transport,
            is_ipv6,
            is_tagged,
            has_options,
            segment_len,
            cwr,
        } = kind
        else {
            unreachable!("the caller has looked")
        };
        let mut headers = ethernet(number, is_tagged);
        headers.extend(if is_ipv6 { [0x86, 0xdd] } else { [0x08, 0x00] });
        let network = headers.len();
        let network_len = match (is_ipv6, has_options) {
            (false, false) => 20,
            (false, true) => 24,
            (true, false) => 40,
            (true, true) => 48,
        };
        let start = network + network_len;
        let (protocol, transport_len, offset) = match (transport, has_options) {
            (Protocol::Tcp, false) => (6, 20, 16),
            (Protocol::Tcp, true) => (6, 32, 16),
            (Protocol::Udp, _) => (17, 8, 6),
        };
        let headers_len = start + transport_len;
        // Larger ones would have more than 64 KiB for IP, or too many segments.
        let size = SEGMENT_MIN
            .max(usize::from(segment_len))
            .min(segment_max - headers_len);
        let payload_len = len
            .saturating_sub(headers_len)
            .clamp(1, (65_535 - network_len - transport_len).min(size * 2048));
        headers.resize(headers_len, 0);
        let mut frame = filled(number, headers, headers_len + payload_len);
        let total = frame.len();
        let addresses = if is_ipv6 {
            frame[network] = 0x60;
            put(&mut frame, network + 4, total - network - 40);
            frame[network + 6] = if has_options { 60 } else { protocol };
            if has_options {
                // Destination options: 8 bytes, of which the last are padding.
                frame[network + 40..network + 48].copy_from_slice(&[protocol, 0, 1, 4, 0, 0, 0, 0]);
            }
            network + 8..network + 40
        } else {
            frame[network] = 0x40 | (network_len / 4) as u8;
            put(&mut frame, network + 2, total - network);
            put(&mut frame, network + 4, 0xfffe);
            frame[network + 6] = 0x40;
            frame[network + 9] = protocol;
            network + 12..network + 20
        };
        frame[addresses.clone()].fill(number);
        if !is_ipv6 {
            let header = !sum(&frame[network..start]);
            put(&mut frame, network + 10, header.into());
        }
        match transport {
            Protocol::Tcp => {
                // The sequence number wraps within the frame.
                put(&mut frame, start + 4, 0xffff);
                put(&mut frame, start + 6, 0xff00);
                frame[start + 12] = (transport_len as u8 / 4) << 4;
                // ACK, PSH, FIN and CWR.
                frame[start + 13] = 0x19 | if cwr { 0x80 } else { 0 };
            }
            Protocol::Udp => put(&mut frame, start + 4, total - start),
        }
        let pseudo_header = pseudo_header(&frame[addresses], protocol, total - start);
        put(&mut frame, start + offset, pseudo_header.into());
        let offload = Offload {
            checksum: Checksum {
                start: start as u16,
                offset: offset as u16,
            },
            segmentation: Some(Segmentation {
                transport: match transport {
                    Protocol::Tcp => Transport::Tcp,
                    Protocol::Udp => Transport::Udp,
                },
                size: size as u16,
                cwr: cwr && matches!(transport, Protocol::Tcp),
            }),
        };
        Self {
            frame,
            pending: Some(PendingOffload {
                offload,
                headers_len,
            }),
        }
    }
}

/// Addresses that contain the number, and perhaps a tag; no EtherType.
fn ethernet(number: u8, is_tagged: bool) -> Vec<u8> {
    let mut header = vec![2, 0, 0, 0, 0, number, 2, 0, 0, 0, 1, number];
    if is_tagged {
        header.extend([0x81, 0x00, 0, 42]);
    }
    debug_assert!(header.len() <= ETHERNET + 4);
    header
}

fn filled(number: u8, mut headers: Vec<u8>, len: usize) -> Vec<u8> {
    headers.extend((headers.len()..len).map(|at| pattern(number, at)));
    headers
}

fn pattern(number: u8, at: usize) -> u8 {
    let mixed = ((at as u64) << 8 | u64::from(number)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    ((mixed ^ mixed >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 56) as u8
}

fn put(frame: &mut [u8], at: usize, value: usize) {
    frame[at..at + 2].copy_from_slice(&(value as u16).to_be_bytes());
}

/// The value of a partial checksum.
pub fn pseudo_header(addresses: &[u8], protocol: u8, len: usize) -> u16 {
    let mut bytes = addresses.to_vec();
    bytes.extend((len as u32).to_be_bytes());
    bytes.extend([0, 0, 0, protocol]);
    sum(&bytes)
}

/// The ones' complement sum of RFC 1071, word by word.
pub fn sum(bytes: &[u8]) -> u16 {
    let mut sum = 0_u16;
    for word in bytes.chunks(2) {
        let word = u16::from_be_bytes([word[0], word.get(1).copied().unwrap_or(0)]);
        let (added, carried) = sum.overflowing_add(word);
        sum = added + u16::from(carried);
    }
    sum
}
