// SPDX-License-Identifier: MIT OR Apache-2.0
//! Super-frames: TCP and UDP frames of up to 64 KiB that a kernel cuts into segments later
//! (PROTOCOL.md, "Offloads").
//!
//! A super-frame crosses the tunnel whole. This module knows enough of its headers to check what a
//! peer says about them before the kernel believes it, and to write the headers of a shorter
//! super-frame, or of a single segment, when only some of its segments arrived. It never looks at
//! the payload, except to finish a checksum for a back-end that cannot leave that to the kernel.

use std::ops::Range;

use crate::{
    stats::DropReason,
    wire::offload::{Checksum, Offload, Segmentation, Transport},
};

/// Bytes of the longest super-frame: an Ethernet header, tags, and an IP packet of 64 KiB.
pub const MAX_SUPERFRAME: usize = 65_535 + 14 + 4 * MAX_TAGS;
/// Bytes of the longest headers: Ethernet with tags, IPv6 with extensions, TCP with options.
pub const MAX_HEADERS: usize = 256;
/// Segments of one super-frame; TCP with the smallest segment size of Linux stays below.
pub const MAX_SEGMENTS: usize = 2048;

const MAX_TAGS: usize = 4;
const MAX_EXTENSIONS: usize = 8;

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;
/// 802.1Q, 802.1ad and the number that was used for stacked tags before it.
const ETHERTYPES_VLAN: [u16; 3] = [0x8100, 0x88a8, 0x9100];

const TCP_CHECKSUM: u16 = 16;
const UDP_CHECKSUM: u16 = 6;
/// From the start of a TCP header.
const TCP_FLAGS: usize = 13;
const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const PSH: u8 = 0x08;
const CWR: u8 = 0x80;

/// Where a super-frame's headers are. Whoever holds one has had them checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    network: usize,
    is_ipv6: bool,
    transport: usize,
    headers: usize,
    total: usize,
    segmentation: Segmentation,
}

impl Layout {
    /// Checks that the headers at the front of `head` are those of a super-frame of `total` bytes as
    /// `offload` describes it, whose segments are frames of at most `max_frame` bytes.
    ///
    /// # Errors
    /// [`DropReason::BadOffload`], [`DropReason::Oversize`] for segments that are too large.
    pub fn parse(
        head: &[u8],
        total: usize,
        offload: &Offload,
        max_frame: usize,
    ) -> Result<Self, DropReason> {
        Self::find(head, total, offload)
            .ok_or(DropReason::BadOffload)
            .and_then(|layout| {
                let longest = layout.headers + layout.payload(0..1).len();
                if longest <= max_frame {
                    Ok(layout)
                } else {
                    Err(DropReason::Oversize)
                }
            })
    }

    fn find(head: &[u8], total: usize, offload: &Offload) -> Option<Self> {
        let Offload {
            checksum,
            segmentation: Some(segmentation),
        } = *offload
        else {
            return None;
        };
        let (ethertype, network) = ethertype(head)?;
        let (protocol, transport) = match ethertype {
            ETHERTYPE_IPV4 => ipv4(head, network, total)?,
            ETHERTYPE_IPV6 => ipv6(head, network, total)?,
            _ => return None,
        };
        let (expected, checksum_offset, header) = match segmentation.transport {
            Transport::Tcp => (6, TCP_CHECKSUM, tcp_header(head, transport)?),
            Transport::Udp => (17, UDP_CHECKSUM, udp_header(head, transport, total)?),
        };
        let layout = Self {
            network,
            is_ipv6: ethertype == ETHERTYPE_IPV6,
            transport,
            headers: transport + header,
            total,
            segmentation,
        };
        let fits = protocol == expected
            && usize::from(checksum.start) == transport
            && checksum.offset == checksum_offset
            && !(segmentation.cwr && segmentation.transport == Transport::Udp)
            && segmentation.size > 0
            && layout.headers <= MAX_HEADERS.min(head.len())
            && layout.headers < total
            && total <= MAX_SUPERFRAME
            && layout.segments() <= MAX_SEGMENTS;
        fits.then_some(layout)
    }

    /// Bytes of all headers.
    pub fn headers_len(&self) -> usize {
        self.headers
    }

    /// Whether the network header is that of IPv6.
    pub fn is_ipv6(&self) -> bool {
        self.is_ipv6
    }

    /// The same headers before so many segments.
    fn of_run(self, segments: Range<usize>) -> Self {
        Self {
            total: self.headers + self.payload(segments).len(),
            ..self
        }
    }

    /// Segments that the super-frame stands for.
    pub fn segments(&self) -> usize {
        (self.total - self.headers).div_ceil(self.segmentation.size.into())
    }

    /// Where the payload of these segments lies in the super-frame.
    pub fn payload(&self, segments: Range<usize>) -> Range<usize> {
        let size = usize::from(self.segmentation.size);
        let at = |segment: usize| (self.headers + segment * size).min(self.total);
        at(segments.start)..at(segments.end)
    }

    /// Writes the headers for a run of segments alone, from those of the whole, and says what is
    /// open in them. The frame is these headers and [`Self::payload`] of the run.
    pub fn emit_headers(
        &self,
        whole: &[u8],
        run: Range<usize>,
        out: &mut [u8; MAX_HEADERS],
    ) -> (Offload, Option<Self>) {
        let out = &mut out[..self.headers];
        out.copy_from_slice(&whole[..self.headers]);
        let payload = self.payload(run.clone());
        let transport_len = self.headers - self.transport + payload.len();
        self.emit_network(out, run.start, transport_len);
        match self.segmentation.transport {
            Transport::Tcp => self.emit_tcp(out, &run),
            Transport::Udp => put(out, self.transport + 4, transport_len as u16),
        }
        self.emit_checksum(out, transport_len);
        let segmentation = (run.len() > 1).then_some(Segmentation {
            cwr: self.segmentation.cwr && run.start == 0,
            ..self.segmentation
        });
        let offload = Offload {
            checksum: self.checksum(),
            segmentation,
        };
        (offload, segmentation.map(|_| self.of_run(run)))
    }

    fn emit_network(&self, out: &mut [u8], first: usize, transport_len: usize) {
        if self.is_ipv6 {
            let extensions = self.transport - self.network - 40;
            put(out, self.network + 4, (extensions + transport_len) as u16);
            return;
        }
        let header = self.transport - self.network;
        put(out, self.network + 2, (header + transport_len) as u16);
        // As the kernel numbers segments, with DF or without.
        let id = read(out, self.network + 4).wrapping_add(first as u16);
        put(out, self.network + 4, id);
        put(out, self.network + 10, 0);
        let sum = !fold(sum(&out[self.network..self.transport]));
        put(out, self.network + 10, sum);
    }

    fn emit_tcp(&self, out: &mut [u8], run: &Range<usize>) {
        let at = self.transport + 4;
        let field = &mut out[at..at + 4];
        let sequence = u32::from_be_bytes([field[0], field[1], field[2], field[3]]);
        let advanced =
            sequence.wrapping_add((run.start * usize::from(self.segmentation.size)) as u32);
        field.copy_from_slice(&advanced.to_be_bytes());
        let flags = &mut out[self.transport + TCP_FLAGS];
        if run.end < self.segments() {
            *flags &= !(FIN | PSH);
        }
        if run.start > 0 {
            *flags &= !CWR;
        }
    }

    /// An open checksum holds the pseudo-header's sum, of which the length is a part.
    fn emit_checksum(&self, out: &mut [u8], transport_len: usize) {
        let Checksum { start, offset } = self.checksum();
        let at = usize::from(start + offset);
        let whole_len = (self.total - self.transport) as u16;
        let changed = u64::from(read(out, at)) + u64::from(!whole_len) + transport_len as u64;
        put(out, at, fold(changed));
    }

    fn checksum(&self) -> Checksum {
        Checksum {
            start: self.transport as u16,
            offset: match self.segmentation.transport {
                Transport::Tcp => TCP_CHECKSUM,
                Transport::Udp => UDP_CHECKSUM,
            },
        }
    }
}

/// Sets "congestion experienced" (RFC 3168) in a frame whose sender understands it. False, without
/// effect, for every other frame.
pub fn mark_congestion(frame: &mut [u8]) -> bool {
    const CE: u8 = 3;
    let Some((ethertype, network)) = ethertype(frame) else {
        return false;
    };
    let Some(Some(words)) = frame.get(network..).map(<[u8]>::first_chunk::<20>) else {
        return false;
    };
    match ethertype {
        ETHERTYPE_IPV4 if words[0] >> 4 == 4 && words[1] & CE != 0 => {
            let before = read(frame, network);
            let after = before | u16::from(CE);
            put(frame, network, after);
            // RFC 1624, equation 3.
            let checksum = read(frame, network + 10);
            let sum = u64::from(!checksum) + u64::from(!before) + u64::from(after);
            put(frame, network + 10, !fold(sum));
            true
        }
        ETHERTYPE_IPV6 if words[0] >> 4 == 6 && words[1] >> 4 & CE != 0 => {
            frame[network + 1] |= CE << 4;
            true
        }
        _ => false,
    }
}

/// Checks that an open checksum lies behind the Ethernet header and inside of a frame of `len`
/// bytes.
///
/// # Errors
/// [`DropReason::BadOffload`].
pub fn check_checksum(checksum: Checksum, len: usize) -> Result<(), DropReason> {
    let end = usize::from(checksum.start) + usize::from(checksum.offset) + 2;
    if checksum.start >= 14 && end <= len {
        Ok(())
    } else {
        Err(DropReason::BadOffload)
    }
}

/// Finishes an open checksum in `frame`.
///
/// # Errors
/// [`DropReason::BadOffload`] when it does not lie inside of the frame.
pub fn finish_checksum(frame: &mut [u8], checksum: Checksum) -> Result<(), DropReason> {
    check_checksum(checksum, frame.len())?;
    let start = usize::from(checksum.start);
    let finished = match !fold(sum(&frame[start..])) {
        // 0 would mean "no checksum" in UDP; both are zero in ones' complement.
        0 => 0xffff,
        finished => finished,
    };
    put(frame, start + usize::from(checksum.offset), finished);
    Ok(())
}

/// The EtherType behind all tags, and where its payload starts.
fn ethertype(head: &[u8]) -> Option<(u16, usize)> {
    (0..=MAX_TAGS)
        .map(|tags| 12 + 4 * tags)
        .find_map(|at| match try_read(head, at) {
            Some(tag) if ETHERTYPES_VLAN.contains(&tag) => None,
            found => Some(found.map(|ethertype| (ethertype, at + 2))),
        })?
}

/// Protocol and transport header of an unfragmented IPv4 packet that fills the frame.
fn ipv4(head: &[u8], network: usize, total: usize) -> Option<(u8, usize)> {
    let version_and_length = *head.get(network)?;
    let header = usize::from(version_and_length & 15) * 4;
    let is_whole = version_and_length >> 4 == 4
        && header >= 20
        && usize::from(try_read(head, network + 2)?) + network == total
        && try_read(head, network + 6)? & 0x3fff == 0;
    is_whole.then_some((*head.get(network + 9)?, network + header))
}

/// Protocol and transport header of an IPv6 packet that fills the frame.
fn ipv6(head: &[u8], network: usize, total: usize) -> Option<(u8, usize)> {
    const HOP_BY_HOP: u8 = 0;
    const ROUTING: u8 = 43;
    const DESTINATION: u8 = 60;
    if head.get(network)? >> 4 != 6
        || usize::from(try_read(head, network + 4)?) + network + 40 != total
    {
        return None;
    }
    let (mut protocol, mut at) = (*head.get(network + 6)?, network + 40);
    for _ in 0..MAX_EXTENSIONS {
        if ![HOP_BY_HOP, ROUTING, DESTINATION].contains(&protocol) {
            return Some((protocol, at));
        }
        protocol = *head.get(at)?;
        at += (usize::from(*head.get(at + 1)?) + 1) * 8;
    }
    None
}

/// Bytes of the TCP header.
fn tcp_header(head: &[u8], transport: usize) -> Option<usize> {
    let header = usize::from(head.get(transport + 12)? >> 4) * 4;
    let opens_or_breaks = head.get(transport + TCP_FLAGS)? & (SYN | RST) != 0;
    (header >= 20 && !opens_or_breaks).then_some(header)
}

/// Bytes of the UDP header.
fn udp_header(head: &[u8], transport: usize, total: usize) -> Option<usize> {
    let fills = usize::from(try_read(head, transport + 4)?) + transport == total;
    fills.then_some(8)
}

fn try_read(bytes: &[u8], at: usize) -> Option<u16> {
    let field = bytes.get(at..at + 2)?;
    Some(u16::from_be_bytes([field[0], field[1]]))
}

fn read(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

fn put(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

/// The sum of the 16-bit words of at most 64 KiB (RFC 1071), not folded.
fn sum(bytes: &[u8]) -> u64 {
    // 32 bits at a time: the carry of the lower half ends up where folding puts it.
    let words = bytes.chunks_exact(4);
    let rest = words.remainder();
    let mut last = [0; 4];
    last[..rest.len()].copy_from_slice(rest);
    words
        .map(|word| u64::from(u32::from_be_bytes([word[0], word[1], word[2], word[3]])))
        .sum::<u64>()
        + u64::from(u32::from_be_bytes(last))
}

fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    sum as u16
}
