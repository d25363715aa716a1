// SPDX-License-Identifier: MIT OR Apache-2.0
//! Super-frames: TCP and UDP frames of up to 64 KiB that a kernel cuts into segments later
//! (PROTOCOL.md, "Offloads").
//!
//! A super-frame crosses the tunnel whole. This module parses enough of its headers to check a
//! peer's claims about them before the kernel trusts them, and to write the headers of a shorter
//! super-frame, or of a single segment, when only some of its segments arrived. It never looks at
//! the payload, except to finish a checksum for a back-end that cannot leave that to the kernel.

use std::ops::Range;

use patchcord_bridge::{
    Headers,
    checksum::{self, fold, sum},
    ethernet::Network,
    ip_protocol::{TCP, UDP},
};

use super::{
    field::{put, read, try_read},
    packet::{self, TCP_CHECKSUM, TransportHeader, UDP_CHECKSUM},
};
use crate::{
    stats::DropReason,
    wire::offload::{Checksum, Offload, Segmentation, Transport},
};

/// Bytes of the longest super-frame: an Ethernet header, tags, and an IP packet of 64 KiB.
pub const MAX_SUPERFRAME: usize = 65_535 + 14 + TAG_BYTES * MAX_TAGS;
/// Bytes of the longest headers: Ethernet with tags, IPv6 with extensions, TCP with options.
pub const MAX_HEADERS: usize = 256;
/// Bytes that one tag adds to the headers.
pub const TAG_BYTES: usize = 4;
/// Room for the headers of a super-frame that gets one more tag on its way out.
pub const HEADER_ROOM: usize = MAX_HEADERS + TAG_BYTES;
/// Segments of one super-frame; TCP with the smallest segment size of Linux stays below.
pub const MAX_SEGMENTS: usize = 2048;

/// As many as [`Headers::network`] looks behind.
const MAX_TAGS: usize = 4;

/// From the start of a TCP header.
const TCP_FLAGS: usize = 13;
const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const PSH: u8 = 0x08;
const CWR: u8 = 0x80;

/// The positions of a super-frame's headers. A `Layout` exists only for headers that were checked.
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
    /// Checks that the headers at the front of `head` are those of a super-frame of `total` bytes
    /// as `offload` describes it, whose segments are frames of at most `max_frame` bytes.
    ///
    /// # Errors
    /// [`DropReason::BadOffload`], [`DropReason::Oversize`] for segments that are too large.
    pub fn parse(
        head: &[u8],
        total: usize,
        offload: &Offload,
        max_frame: usize,
    ) -> Result<Self, DropReason> {
        let headers = Headers::parse(head).map_err(|_| DropReason::BadOffload)?;
        Self::of(&headers, total, offload, max_frame)
    }

    /// The same for headers that were parsed before.
    ///
    /// # Errors
    /// As of [`Layout::parse`].
    pub fn of(
        headers: &Headers<'_>,
        total: usize,
        offload: &Offload,
        max_frame: usize,
    ) -> Result<Self, DropReason> {
        let layout = Self::find(headers, total, offload).ok_or(DropReason::BadOffload)?;
        let longest = layout.headers + layout.payload(0..1).len();
        match longest <= max_frame {
            true => Ok(layout),
            false => Err(DropReason::Oversize),
        }
    }

    fn find(headers: &Headers<'_>, total: usize, offload: &Offload) -> Option<Self> {
        let Offload {
            checksum,
            segmentation: Some(segmentation),
        } = *offload
        else {
            return None;
        };
        let TransportHeader {
            network,
            is_ipv6,
            protocol,
            at: transport,
        } = packet::transport(headers, total)?;
        let head = headers.frame();
        let (expected, checksum_offset, header) = match segmentation.transport {
            Transport::Tcp => (TCP, TCP_CHECKSUM, tcp_header(head, transport)?),
            Transport::Udp => (UDP, UDP_CHECKSUM, udp_header(head, transport, total)?),
        };
        let layout = Self {
            network,
            is_ipv6,
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

    /// The same for the super-frame with its headers shifted back by `by` bytes, as when a tag is
    /// added or removed. At most one tag may be added ([`HEADER_ROOM`]).
    #[must_use]
    pub fn shifted(self, by: isize) -> Self {
        let shift = |at: usize| at.saturating_add_signed(by);
        Self {
            network: shift(self.network),
            transport: shift(self.transport),
            headers: shift(self.headers),
            total: shift(self.total),
            ..self
        }
    }

    /// Bytes of all headers.
    pub fn headers_len(&self) -> usize {
        self.headers
    }

    /// Whether the network header is that of IPv6.
    pub fn is_ipv6(&self) -> bool {
        self.is_ipv6
    }

    /// The number of segments that the super-frame stands for.
    pub fn segments(&self) -> usize {
        (self.total - self.headers).div_ceil(self.segmentation.size.into())
    }

    /// The position of the payload of these segments in the super-frame.
    pub fn payload(&self, segments: Range<usize>) -> Range<usize> {
        let size = usize::from(self.segmentation.size);
        let at = |segment: usize| (self.headers + segment * size).min(self.total);
        at(segments.start)..at(segments.end)
    }

    /// The segments that have payload in these bytes of the super-frame.
    pub fn segments_of(&self, bytes: Range<usize>) -> Range<usize> {
        let size = usize::from(self.segmentation.size);
        let in_payload = |at: usize| at.saturating_sub(self.headers);
        in_payload(bytes.start) / size..in_payload(bytes.end).div_ceil(size)
    }

    /// Writes the headers for a run of segments alone, from those of the whole, and returns their
    /// pending offload. The frame is these headers and [`Self::payload`] of the run.
    pub fn emit_headers(
        &self,
        whole: &[u8],
        run: Range<usize>,
        out: &mut [u8; HEADER_ROOM],
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
        let of_run = segmentation.map(|segmentation| Self {
            total: self.headers + payload.len(),
            segmentation,
            ..*self
        });
        (offload, of_run)
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
        let finished = checksum::finish(sum(&out[self.network..self.transport]));
        put(out, self.network + 10, finished);
    }

    fn emit_tcp(&self, out: &mut [u8], run: &Range<usize>) {
        let advanced = run.start * usize::from(self.segmentation.size);
        let is_last = run.end == self.segments();
        advance_tcp(&mut out[self.transport..], advanced, is_last);
    }

    /// A partial checksum holds the pseudo-header's sum, of which the length is a part.
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

/// Whether a receiver of partial checksums and segments accepts the frame with one more tag, too.
pub fn has_room_for_tag(network: Option<Network>) -> bool {
    network.is_some_and(|network| network.at < 14 + TAG_BYTES * MAX_TAGS)
}

/// Changes a super-frame's TCP header to that of a segment whose payload begins this many bytes
/// further on.
pub(super) fn advance_tcp(header: &mut [u8], advanced: usize, is_last: bool) {
    let field = &mut header[4..8];
    let sequence = u32::from_be_bytes([field[0], field[1], field[2], field[3]]);
    field.copy_from_slice(&sequence.wrapping_add(advanced as u32).to_be_bytes());
    if !is_last {
        header[TCP_FLAGS] &= !(FIN | PSH);
    }
    if advanced > 0 {
        header[TCP_FLAGS] &= !CWR;
    }
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

#[cfg(test)]
mod tests;
