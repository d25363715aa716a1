// SPDX-License-Identifier: MIT OR Apache-2.0
//! Super-frames: TCP and UDP frames of up to 64 KiB that a kernel cuts into segments later
//! (PROTOCOL.md, "Offloads").
//!
//! A super-frame crosses the tunnel whole. This module knows enough of its headers to check what a
//! peer says about them before the kernel believes it, and to write the headers of a shorter
//! super-frame, or of a single segment, when only some of its segments arrived. It never looks at
//! the payload, except to finish a checksum for a back-end that cannot leave that to the kernel.

use std::ops::Range;

use patchcord_bridge::{
    Tpid,
    checksum::{self, fold, sum},
    ether_type,
    ethernet::skip_tags,
    ip_protocol::{DESTINATION, HOP_BY_HOP, ROUTING, TCP, UDP},
};

use super::checksum::{put, read, try_read};
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
/// Room for the headers of a super-frame that was given one more tag on its way out.
pub const HEADER_ROOM: usize = MAX_HEADERS + TAG_BYTES;
/// Segments of one super-frame; TCP with the smallest segment size of Linux stays below.
pub const MAX_SEGMENTS: usize = 2048;

const MAX_TAGS: usize = 4;
const MAX_EXTENSIONS: usize = 8;

pub(super) const TCP_CHECKSUM: u16 = 16;
pub(super) const UDP_CHECKSUM: u16 = 6;
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
            ether_type::IPV4 => ipv4(head, network, total)?,
            ether_type::IPV6 => ipv6(head, network, total)?,
            _ => return None,
        };
        let (expected, checksum_offset, header) = match segmentation.transport {
            Transport::Tcp => (TCP, TCP_CHECKSUM, tcp_header(head, transport)?),
            Transport::Udp => (UDP, UDP_CHECKSUM, udp_header(head, transport, total)?),
        };
        let layout = Self {
            network,
            is_ipv6: ethertype == ether_type::IPV6,
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

    /// The same for the super-frame with its headers `by` bytes further back, as when a tag comes or
    /// goes. One tag at most may come ([`HEADER_ROOM`]).
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

    /// The segments that have payload in these bytes of the super-frame.
    pub fn segments_of(&self, bytes: Range<usize>) -> Range<usize> {
        let size = usize::from(self.segmentation.size);
        let in_payload = |at: usize| at.saturating_sub(self.headers);
        in_payload(bytes.start) / size..in_payload(bytes.end).div_ceil(size)
    }

    /// Writes the headers for a run of segments alone, from those of the whole, and says what is
    /// open in them. The frame is these headers and [`Self::payload`] of the run.
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

/// Changes a super-frame's TCP header to that of a segment whose payload lies so many bytes further on.
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

/// Whether the sender of a frame that is no super-frame heeds the loss of it.
pub fn is_tcp(frame: &[u8]) -> bool {
    let Some((ethertype, network)) = ethertype(frame) else {
        return false;
    };
    let protocol_at = match ethertype {
        ether_type::IPV4 => network + 9,
        ether_type::IPV6 => network + 6,
        _ => return false,
    };
    frame.get(protocol_at) == Some(&TCP)
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
        ether_type::IPV4 if words[0] >> 4 == 4 && words[1] & CE != 0 => {
            let before = read(frame, network);
            let after = before | u16::from(CE);
            put(frame, network, after);
            // RFC 1624, equation 3.
            let checksum = read(frame, network + 10);
            let sum = u64::from(!checksum) + u64::from(!before) + u64::from(after);
            put(frame, network + 10, checksum::finish(sum));
            true
        }
        ether_type::IPV6 if words[0] >> 4 == 6 && words[1] >> 4 & CE != 0 => {
            frame[network + 1] |= CE << 4;
            true
        }
        _ => false,
    }
}

/// Checks that an open checksum is that of the TCP or UDP header at the front of a frame of `total`
/// bytes. Any other would let a peer have bytes changed after a packet filter has seen them.
///
/// # Errors
/// [`DropReason::BadOffload`].
pub fn check_checksum(head: &[u8], total: usize, checksum: Checksum) -> Result<(), DropReason> {
    let transport = || {
        let (ethertype, network) = ethertype(head)?;
        match ethertype {
            ether_type::IPV4 => ipv4(head, network, total),
            ether_type::IPV6 => ipv6(head, network, total),
            _ => None,
        }
    };
    let expected = match transport() {
        Some((TCP, start)) => (start, TCP_CHECKSUM),
        Some((UDP, start)) => (start, UDP_CHECKSUM),
        _ => return Err(DropReason::BadOffload),
    };
    let end = expected.0 + usize::from(expected.1) + 2;
    if (usize::from(checksum.start), checksum.offset) == expected && end <= total {
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
    let start = usize::from(checksum.start);
    if start < 14 || start + usize::from(checksum.offset) + 2 > frame.len() {
        return Err(DropReason::BadOffload);
    }
    let finished = match checksum::finish(sum(&frame[start..])) {
        // 0 would mean "no checksum" in UDP; both are zero in ones' complement.
        0 => 0xffff,
        finished => finished,
    };
    put(frame, start + usize::from(checksum.offset), finished);
    Ok(())
}

/// Whether a receiver that is told of open checksums and segments understands the frame with one
/// more tag, too.
pub fn has_room_for_tag(frame: &[u8]) -> bool {
    ethertype(frame).is_some_and(|(_, network)| network < 14 + TAG_BYTES * MAX_TAGS)
}

/// The EtherType behind all tags, and where its payload starts.
pub(super) fn ethertype(head: &[u8]) -> Option<(u16, usize)> {
    skip_tags(head, MAX_TAGS).filter(|&(ethertype, _)| Tpid::from_ether_type(ethertype).is_none())
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

#[cfg(test)]
mod tests {
    use proptest::{prelude::*, sample::Index};

    use super::*;
    use crate::proto::testing::{Network, Stream, any_stream};

    /// The headers of a run, and its payload.
    fn cut(layout: &Layout, whole: &[u8], run: Range<usize>) -> (Vec<u8>, Offload, Option<Layout>) {
        let mut headers = [0; HEADER_ROOM];
        let (offload, of_run) = layout.emit_headers(whole, run.clone(), &mut headers);
        let headers = &headers[..layout.headers_len()];
        (
            [headers, &whole[layout.payload(run)]].concat(),
            offload,
            of_run,
        )
    }

    proptest! {
        #[test]
        fn a_run_is_the_frame_that_its_segments_would_have_been(
            stream in any_stream(),
            bounds: [Index; 2],
        ) {
            let (whole, layout) = (stream.whole(), stream.layout());
            prop_assert_eq!(layout.headers_len(), stream.headers_len());
            prop_assert_eq!(layout.segments(), stream.segments());
            let [a, b] = bounds.map(|bound| bound.index(stream.segments()));
            for run in [a.min(b)..a.max(b) + 1, a..a + 1, 0..stream.segments()] {
                let (mut frame, offload, of_run) = cut(&layout, &whole, run.clone());
                prop_assert_eq!(&frame, &stream.frame(run.clone(), false));
                prop_assert_eq!(offload, stream.offload(run.clone()));
                prop_assert_eq!(of_run.is_some(), run.len() > 1);
                if let Some(of_run) = of_run {
                    let parsed = Layout::parse(&frame, frame.len(), &offload, usize::MAX);
                    prop_assert_eq!(parsed, Ok(of_run));
                    let last = run.len() - 1;
                    let (segment, _, _) = cut(&of_run, &frame, last..last + 1);
                    prop_assert_eq!(segment, stream.frame(run.end - 1..run.end, false));
                }
                prop_assert_eq!(finish_checksum(&mut frame, offload.checksum), Ok(()));
                prop_assert_eq!(&frame, &stream.frame(run, true));
            }
        }

        #[test]
        fn whatever_is_taken_for_a_super_frame_can_be_cut(
            stream in any_stream(),
            changes in prop::collection::vec((any::<Index>(), any::<u8>()), 0..4),
            offload_changes in prop::collection::vec((0..5_u8, any::<u16>()), 0..2),
            shorter in 0..100_usize,
            bounds: [Index; 2],
        ) {
            let mut whole = stream.whole();
            for (at, value) in changes {
                whole[at.index(stream.headers_len())] = value;
            }
            let mut offload = stream.open().offload;
            for (field, value) in offload_changes {
                let segmentation = offload.segmentation.get_or_insert(Segmentation {
                    transport: stream.transport,
                    size: stream.size,
                    cwr: false,
                });
                match field {
                    0 => offload.checksum.start = value,
                    1 => offload.checksum.offset = value,
                    2 => segmentation.size = value,
                    3 => segmentation.cwr = value & 1 == 1,
                    _ => segmentation.transport = Transport::Tcp,
                }
            }
            let head = &whole[..whole.len() - shorter.min(whole.len())];
            if let Ok(layout) = Layout::parse(head, whole.len(), &offload, 9000) {
                let [a, b] = bounds.map(|bound| bound.index(layout.segments()));
                let (mut frame, offload, _) = cut(&layout, &whole, a.min(b)..a.max(b) + 1);
                prop_assert_eq!(finish_checksum(&mut frame, offload.checksum), Ok(()));
            }
        }

        #[test]
        fn any_bytes_are_judged_without_panic(
            head: Vec<u8>,
            total in 0..70_000_usize,
            start: u16,
            offset: u16,
            size: u16,
            is_tcp: bool,
        ) {
            let offload = Offload {
                checksum: Checksum { start, offset },
                segmentation: Some(Segmentation {
                    transport: if is_tcp { Transport::Tcp } else { Transport::Udp },
                    size,
                    cwr: false,
                }),
            };
            prop_assert!(Layout::parse(&head, total, &offload, 1500).is_err());
        }
    }

    /// What is judged: the headers, what is said of them, the length, the largest segment.
    struct Claim {
        head: Vec<u8>,
        offload: Offload,
        total: usize,
        max_frame: usize,
    }

    impl Claim {
        fn of(stream: &Stream) -> Self {
            let whole = stream.whole();
            Self {
                head: whole[..stream.headers_len()].to_vec(),
                offload: stream.open().offload,
                total: whole.len(),
                max_frame: 1600,
            }
        }

        fn segmentation(&mut self) -> &mut Segmentation {
            self.offload.segmentation.as_mut().unwrap()
        }

        fn judge(&self) -> Result<Layout, DropReason> {
            Layout::parse(&self.head, self.total, &self.offload, self.max_frame)
        }
    }

    #[test]
    fn each_field_that_is_wrong_is_refused() {
        use DropReason::{BadOffload, Oversize};

        type Change = fn(&mut Claim);
        let tcp_v4 = Stream::tcp_v4(1448, 60_000);
        let udp_v4 = Stream {
            transport: Transport::Udp,
            ..tcp_v4.clone()
        };
        let tcp_v6 = Stream {
            network: Network::V6(vec![(0, 1)]),
            ..tcp_v4.clone()
        };
        let udp_v6 = Stream::udp_v6(1200, 40_000);
        for stream in [&tcp_v4, &udp_v4, &tcp_v6, &udp_v6] {
            Claim::of(stream).judge().unwrap();
        }
        let everywhere: &[(&str, Change, DropReason)] = &[
            ("EtherType", |claim| claim.head[12] = 0x33, BadOffload),
            (
                "a tag that is none",
                |claim| claim.head[12..14].fill(0x81),
                BadOffload,
            ),
            ("version", |claim| claim.head[14] ^= 0x20, BadOffload),
            (
                "shorter than its length",
                |claim| claim.total -= 1,
                BadOffload,
            ),
            (
                "longer than its length",
                |claim| claim.total += 1,
                BadOffload,
            ),
            (
                "no segments",
                |claim| claim.offload.segmentation = None,
                BadOffload,
            ),
            (
                "segments of nothing",
                |claim| claim.segmentation().size = 0,
                BadOffload,
            ),
            (
                "checksum's start",
                |claim| claim.offload.checksum.start += 2,
                BadOffload,
            ),
            (
                "checksum's start",
                |claim| claim.offload.checksum.start = 0,
                BadOffload,
            ),
            (
                "checksum's place",
                |claim| claim.offload.checksum.offset += 2,
                BadOffload,
            ),
            (
                "checksum's place",
                |claim| claim.offload.checksum.offset = u16::MAX,
                BadOffload,
            ),
            (
                "too many segments",
                |claim| claim.segmentation().size = 19,
                BadOffload,
            ),
            (
                "segments too large",
                |claim| claim.max_frame = 1200,
                Oversize,
            ),
            (
                "cut headers",
                |claim| claim.head.truncate(claim.head.len() - 1),
                BadOffload,
            ),
            ("no headers", |claim| claim.head.clear(), BadOffload),
        ];
        let v4: &[(&str, Change, DropReason)] = &[
            (
                "header length below",
                |claim| claim.head[14] = 0x44,
                BadOffload,
            ),
            ("header length", |claim| claim.head[14] = 0x46, BadOffload),
            ("total length", |claim| claim.head[17] ^= 1, BadOffload),
            ("more fragments", |claim| claim.head[20] |= 0x20, BadOffload),
            ("fragment offset", |claim| claim.head[21] = 1, BadOffload),
            ("protocol", |claim| claim.head[23] ^= 6 ^ 17, BadOffload),
        ];
        let v6: &[(&str, Change, DropReason)] = &[
            ("payload length", |claim| claim.head[19] ^= 1, BadOffload),
            (
                "next header: fragment",
                |claim| claim.head[20] = 44,
                BadOffload,
            ),
            ("next header: none", |claim| claim.head[20] = 59, BadOffload),
        ];
        let extended: &[(&str, Change, DropReason)] = &[
            (
                "length of an extension",
                |claim| claim.head[55] = 1,
                BadOffload,
            ),
            (
                "extensions without end",
                |claim| claim.head[55] = 255,
                BadOffload,
            ),
            (
                "behind an extension",
                |claim| claim.head[54] = 17,
                BadOffload,
            ),
        ];
        let tcp: &[(&str, Change, DropReason)] = &[
            ("SYN", |claim| claim.flags(SYN), BadOffload),
            ("RST", |claim| claim.flags(RST), BadOffload),
            ("TCP header below", |claim| claim.data_offset(4), BadOffload),
            (
                "TCP header beyond",
                |claim| claim.data_offset(15),
                BadOffload,
            ),
            (
                "of UDP",
                |claim| claim.segmentation().transport = Transport::Udp,
                BadOffload,
            ),
        ];
        let udp: &[(&str, Change, DropReason)] = &[
            ("CWR", |claim| claim.segmentation().cwr = true, BadOffload),
            ("UDP length", |claim| claim.udp_length(), BadOffload),
            (
                "of TCP",
                |claim| claim.segmentation().transport = Transport::Tcp,
                BadOffload,
            ),
        ];
        for (stream, tables) in [
            (&tcp_v4, [everywhere, v4, tcp]),
            (&udp_v4, [everywhere, v4, udp]),
            (&tcp_v6, [everywhere, extended, tcp]),
            (&udp_v6, [everywhere, v6, udp]),
        ] {
            for (what, change, reason) in tables.into_iter().flatten() {
                let mut claim = Claim::of(stream);
                change(&mut claim);
                let judged = claim.judge().map(|_| ());
                assert_eq!(judged, Err(*reason), "{what}: {stream:?}");
            }
        }
    }

    impl Claim {
        fn transport(&self) -> usize {
            self.offload.checksum.start.into()
        }

        fn flags(&mut self, flags: u8) {
            let at = self.transport() + TCP_FLAGS;
            self.head[at] |= flags;
        }

        fn data_offset(&mut self, words: u8) {
            let at = self.transport() + 12;
            self.head[at] = words << 4;
        }

        fn udp_length(&mut self) {
            let at = self.transport() + 5;
            self.head[at] ^= 1;
        }
    }

    #[test]
    fn a_super_frame_has_four_tags_and_seven_extensions_at_most() {
        let of = |tags, extensions| {
            let stream = Stream {
                tags: vec![(0x8100, 7); tags],
                network: Network::V6(vec![(60, 1); extensions]),
                ..Stream::tcp_v4(1000, 5000)
            };
            Claim::of(&stream).judge().map(|_| ())
        };
        assert_eq!(of(4, 7), Ok(()));
        assert_eq!(of(5, 0), Err(DropReason::BadOffload));
        assert_eq!(of(0, 8), Err(DropReason::BadOffload));
    }

    #[test]
    fn the_largest_super_frames_are_taken() {
        let tags = vec![(0x88a8, 1); 4];
        for (network, transport, headers) in [
            (Network::V4(0, true, 0), Transport::Tcp, 32),
            (Network::V4(0, true, 0), Transport::Udp, 8),
            (Network::V6(Vec::new()), Transport::Tcp, 32),
        ] {
            let ip = match network {
                Network::V4(..) => 20,
                Network::V6(_) => 40,
            };
            let stream = Stream {
                tags: tags.clone(),
                network,
                transport,
                ..Stream::tcp_v4(1448, 65_535 - ip - headers)
            };
            let (whole, layout) = (stream.whole(), stream.layout());
            let all = 0..stream.segments();
            assert_eq!(cut(&layout, &whole, all.clone()).0, whole);
            assert_eq!(stream.frame(all, false), whole);
        }
    }

    #[test]
    fn a_checksum_is_finished_behind_the_ethernet_header_and_inside_only() {
        for (start, offset, len, is_fine) in [
            (34, 16, 60, true),
            (14, 0, 16, true),
            (13, 0, 60, false),
            (0, 16, 60, false),
            (34, 25, 60, false),
            (34, 24, 60, true),
            (u16::MAX, u16::MAX, 1500, false),
            (14, u16::MAX, 1500, false),
            (14, 0, 0, false),
        ] {
            let checksum = Checksum { start, offset };
            let finished = finish_checksum(&mut vec![1; len], checksum);
            assert_eq!(finished.is_ok(), is_fine, "{checksum:?}");
        }
    }

    #[test]
    fn only_the_checksum_of_the_transport_header_may_be_open() {
        for stream in [Stream::tcp_v4(100, 100), Stream::udp_v6(100, 100)] {
            let frame = stream.whole();
            let checksum = stream.offload(0..1).checksum;
            let check = |head: &[u8], total, checksum| check_checksum(head, total, checksum);
            assert_eq!(check(&frame, frame.len(), checksum), Ok(()));
            let head = &frame[..usize::from(checksum.start + checksum.offset) + 2];
            assert_eq!(check(head, frame.len(), checksum), Ok(()));

            // A port, or an address, that a packet filter has judged already.
            let Checksum { start, offset } = checksum;
            for (start, offset) in [
                (start, 2),
                (start - 2, offset + 2),
                (20, 10),
                (u16::MAX, u16::MAX),
            ] {
                let wrong = Checksum { start, offset };
                let refused = Err(DropReason::BadOffload);
                assert_eq!(check(&frame, frame.len(), wrong), refused, "{wrong:?}");
            }
            for len in 0..head.len() {
                assert!(check(&frame[..len], len, checksum).is_err(), "{len}");
            }
            assert!(check(&frame, frame.len() + 1, checksum).is_err());
        }
    }

    #[test]
    fn a_finished_checksum_is_never_zero() {
        let mut frame = [0; 24];
        frame[14..16].fill(0xff);
        let checksum = Checksum {
            start: 14,
            offset: 6,
        };
        assert_eq!(finish_checksum(&mut frame, checksum), Ok(()));
        assert_eq!(frame[20..22], [0xff; 2]);
    }
}
