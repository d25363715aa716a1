// SPDX-License-Identifier: MIT OR Apache-2.0
//! Cuts super-frames that a device of this machine hands over and that a peer would refuse as they
//! are.
//!
//! [`Layout`] is strict, as a peer's claim demands. A device is trusted as the kernel trusts it:
//! the position of the inner transport header, the protocol and the segment size are as it says,
//! and every length in the headers is rewritten, as the kernel does when it cuts
//! (`skb_gso_segment`).
//!
//! | `SKB_GSO_…` | what a TAP or a packet socket says of it | what becomes of it |
//! |---|---|---|
//! | `TCPV4`, `TCPV6`, `TCP_ECN`, `UDP_L4` | type, segment size, checksum | crosses as it is |
//! | the same with wrong or no lengths (a guest's) | the same | its lengths are put right |
//! | the same of more than 64 KiB (BIG TCP) | the same | cut into super-frames |
//! | `DODGY`, `TCP_FIXEDID` | nothing | as above, with identifications that count up |
//! | `FRAGLIST` | no partial checksum | its checksum is opened |
//! | `UDP_TUNNEL`, `UDP_TUNNEL_CSUM`, `GRE`, `GRE_CSUM`, `IPXIP4`, `IPXIP6`, MPLS, `PARTIAL` | type and checksum of the inner transport | cut into finished frames |
//! | `SCTP`, `FCOE`, `UDP`, LRO | the kernel itself refuses to hand it over | `bad-offload` |
//! | `ESP`, `TUNNEL_REMCSUM` | stay in the machine: a driver's | |

use std::ops::Range;

use patchcord_bridge::{
    checksum::{self, fold, sum},
    ether_type,
    ethernet::Network,
    ip_protocol::{TCP, UDP},
};

use super::{
    encapsulation::{Encapsulation, Goal, Step},
    field::{put, read},
    packet::{TCP_CHECKSUM, UDP_CHECKSUM},
    partial_checksum::finish_checksum,
    superframe::{Layout, MAX_HEADERS, MAX_SEGMENTS, advance_tcp},
    train::PendingOffload,
};
use crate::wire::offload::{Checksum, Offload, Segmentation, Transport};

/// The longest IP packet that its length fields can describe, extension headers of IPv6 included.
const MAX_PACKET: usize = 65_535;

/// The most pieces that one frame may become. A guest that asks for segments of a few bytes must
/// not keep a thread busy for a second; the largest super-frame of Linux (512 KiB) has fewer than
/// this in segments of 256 bytes.
const MAX_PIECES: usize = MAX_SEGMENTS;

/// How to cut a frame.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cut {
    headers: Encapsulation,
    /// The offset at which the payload begins.
    payload: usize,
    total: usize,
    segmentation: Segmentation,
    /// Whether the checksum holds the sum of the pseudo-header.
    is_partial: bool,
    /// The most segments of a piece that peers accept.
    longest: usize,
}

impl Cut {
    /// Finds the headers of a super-frame that a device of this machine handed over. `checksum` is
    /// the position of the inner transport header, if the device gave it.
    pub(crate) fn find(
        whole: &[u8],
        segmentation: Segmentation,
        checksum: Option<Checksum>,
    ) -> Option<Self> {
        let protocol = match segmentation.transport {
            Transport::Tcp => TCP,
            Transport::Udp => UDP,
        };
        let goal = checksum.map_or(Goal::First(protocol), |pending| {
            Goal::At(pending.start.into())
        });
        let headers = Encapsulation::find(whole, goal)?;
        headers.last_ip()?;
        let transport = whole.get(headers.transport..)?;
        let len = match segmentation.transport {
            Transport::Tcp => usize::from(transport.get(12)? >> 4) * 4,
            Transport::Udp => 8,
        };
        let mut cut = Self {
            headers,
            payload: headers.transport + len,
            total: whole.len(),
            segmentation,
            is_partial: checksum.is_some(),
            longest: 1,
        };
        let fits = headers.protocol == protocol
            && checksum.is_none_or(|pending| pending.offset == cut.checksum().offset)
            && len >= if protocol == TCP { 20 } else { 8 }
            && cut.payload < cut.total
            && segmentation.size > 0
            && u16::try_from(headers.transport).is_ok();
        if !fits {
            return None;
        }
        cut.longest = cut.longest(whole);
        (cut.segments().div_ceil(cut.longest) <= MAX_PIECES).then_some(cut)
    }

    /// The most segments of a piece that a peer accepts as it is.
    fn longest(&self, whole: &[u8]) -> usize {
        let mut steps = self.headers.steps();
        let (Some(Step::Ipv4(ip) | Step::Ipv6(ip)), None) = (steps.next(), steps.next()) else {
            return 1;
        };
        let room = MAX_PACKET.saturating_sub(self.payload - ip);
        let segments = (room / usize::from(self.segmentation.size))
            .min(MAX_SEGMENTS)
            .min(self.segments());
        let mut copy = [0; MAX_HEADERS];
        let Some(head) = copy.get_mut(..self.payload) else {
            return 1;
        };
        head.copy_from_slice(&whole[..self.payload]);
        let run = 0..segments;
        let len = self.payload + self.payload(&run).len();
        self.write_headers(head, len, &run);
        match Layout::parse(head, len, &self.offload(&run), usize::MAX) {
            Ok(layout) if layout.headers_len() == self.payload => segments,
            _ => 1,
        }
    }

    /// Bytes of all headers, which each piece begins with.
    pub(crate) fn headers_len(&self) -> usize {
        self.payload
    }

    /// The number of segments that the frame stands for.
    pub(crate) fn segments(&self) -> usize {
        (self.total - self.payload).div_ceil(self.segmentation.size.into())
    }

    /// The first `segments` in pieces.
    pub(crate) fn pieces(&self, segments: usize) -> impl Iterator<Item = Range<usize>> + use<> {
        let longest = self.longest;
        (0..segments)
            .step_by(longest)
            .map(move |first| first..(first + longest).min(segments))
    }

    /// The position of the payload of these segments in the frame.
    pub(crate) fn payload(&self, run: &Range<usize>) -> Range<usize> {
        let size = usize::from(self.segmentation.size);
        let at = |segment: usize| (self.payload + segment * size).min(self.total);
        at(run.start)..at(run.end)
    }

    /// Finishes a piece, which is a copy of the headers with the payload of `run` behind them. A
    /// peer's kernel performs the pending offload that it returns.
    pub(crate) fn finish(&self, piece: &mut [u8], run: &Range<usize>) -> Option<PendingOffload> {
        self.write_headers(piece, piece.len(), run);
        if run.len() > 1 {
            return Some(PendingOffload {
                offload: self.offload(run),
                headers_len: self.payload,
            });
        }
        // Always inside of the piece.
        let _ = finish_checksum(piece, self.checksum());
        self.finish_tunnels(piece);
        None
    }

    /// Writes the fields that depend on the run into its headers; the piece has `len` bytes.
    fn write_headers(&self, head: &mut [u8], len: usize, run: &Range<usize>) {
        let pseudo_header = self.pseudo_header(head, len);
        for step in self.headers.steps() {
            match step {
                Step::Ipv4(at) => {
                    put(head, at + 2, (len - at) as u16);
                    let id = read(head, at + 4).wrapping_add(run.start as u16);
                    put(head, at + 4, id);
                    put(head, at + 10, 0);
                    let header = usize::from(head[at] & 15) * 4;
                    let finished = checksum::finish(sum(&head[at..at + header]));
                    put(head, at + 10, finished);
                }
                Step::Ipv6(at) => put(head, at + 4, (len - at - 40) as u16),
                Step::Udp(at) => put(head, at + 4, (len - at) as u16),
                Step::Pppoe(at) => put(head, at + 4, (len - at - 6) as u16),
                Step::Gre(_) => {}
            }
        }
        let transport = self.headers.transport;
        match self.segmentation.transport {
            Transport::Udp => put(head, transport + 4, (len - transport) as u16),
            Transport::Tcp => {
                let advanced = run.start * usize::from(self.segmentation.size);
                let is_last = run.end == self.segments();
                advance_tcp(&mut head[transport..], advanced, is_last);
            }
        }
        let Checksum { start, offset } = self.checksum();
        put(head, usize::from(start + offset), pseudo_header);
    }

    /// The sum of the pseudo-header of a piece of `len` bytes. `head` has the lengths of the whole.
    fn pseudo_header(&self, head: &[u8], len: usize) -> u16 {
        let transport = self.headers.transport;
        let len = (len - transport) as u64;
        if self.is_partial && self.headers.is_routed {
            // The pseudo-header of an address that is not looked up here; only the length changes.
            let whole_len = match self.segmentation.transport {
                Transport::Tcp => fold((self.total - transport) as u64),
                Transport::Udp => read(head, transport + 4),
            };
            let Checksum { start, offset } = self.checksum();
            let whole = read(head, usize::from(start + offset));
            return fold(u64::from(whole) + u64::from(!whole_len) + len);
        }
        let ip = self.headers.last_ip();
        fold(sum_of_addresses(head, ip) + u64::from(self.headers.protocol) + len)
    }

    /// Computes the checksums that tunnels have of their own, from the inside out.
    fn finish_tunnels(&self, piece: &mut [u8]) {
        let mut steps = self.headers.steps().rev().peekable();
        while let Some(step) = steps.next() {
            match step {
                Step::Udp(at) if read(piece, at + 6) != 0 => {
                    let len = (piece.len() - at) as u64;
                    let ip = steps.peek().copied();
                    let pseudo_header = sum_of_addresses(piece, ip) + u64::from(UDP) + len;
                    put(piece, at + 6, fold(pseudo_header));
                    finish_at(piece, at, 6);
                }
                Step::Gre(at) if read(piece, at) & 0x8000 != 0 => {
                    put(piece, at + 4, 0);
                    finish_at(piece, at, 4);
                }
                _ => {}
            }
        }
    }

    fn checksum(&self) -> Checksum {
        Checksum {
            start: self.headers.transport as u16,
            offset: match self.segmentation.transport {
                Transport::Tcp => TCP_CHECKSUM,
                Transport::Udp => UDP_CHECKSUM,
            },
        }
    }

    fn offload(&self, run: &Range<usize>) -> Offload {
        Offload {
            checksum: self.checksum(),
            segmentation: (run.len() > 1).then_some(Segmentation {
                cwr: self.segmentation.cwr && run.start == 0,
                ..self.segmentation
            }),
        }
    }
}

fn sum_of_addresses(head: &[u8], ip: Option<Step>) -> u64 {
    match ip {
        Some(Step::Ipv4(at)) => sum(&head[at + 12..at + 20]),
        Some(Step::Ipv6(at)) => sum(&head[at + 8..at + 40]),
        _ => 0,
    }
}

fn finish_at(piece: &mut [u8], start: usize, offset: u16) {
    // Always inside of the piece.
    let start = start as u16;
    let _ = finish_checksum(piece, Checksum { start, offset });
}

/// Removes the jumbo payload option (RFC 2675), which IPv6 packets of more than 64 KiB have, by
/// moving the bytes in front of it. Returns the number of bytes removed.
pub(crate) fn leave_out_jumbo_option(frame: &mut [u8], network: Option<Network>) -> usize {
    const LEN: usize = 8;
    // Hop-by-hop options with nothing but the length.
    const OPTION: [u8; 3] = [0, 0xc2, 4];
    let Some(Network {
        ether_type: ether_type::IPV6,
        at: network,
    }) = network
    else {
        return 0;
    };
    let options = network + 40;
    let Some(packet) = frame.get(network..options + LEN) else {
        return 0;
    };
    if packet[4..7] != [0; 3] || packet[41..44] != OPTION {
        return 0;
    }
    frame[network + 6] = frame[options];
    frame.copy_within(..options, LEN);
    LEN
}

#[cfg(test)]
mod tests {
    use etherparse::{EtherType, IpNumber, Ipv4Header, Ipv6Header, UdpHeader};
    use patchcord_bridge::Headers;
    use proptest::prelude::*;

    use super::*;
    use crate::proto::testing::{Network, Stream};

    fn segmentation(stream: &Stream) -> Segmentation {
        Segmentation {
            transport: stream.transport,
            size: stream.size,
            cwr: false,
        }
    }

    /// The pieces that a frame is cut into, and the pending offload of each.
    fn pieces(whole: &[u8], cut: &Cut) -> Vec<(Range<usize>, Vec<u8>, Option<PendingOffload>)> {
        let piece = |run: Range<usize>| {
            let headers = &whole[..cut.headers_len()];
            let mut piece = [headers, &whole[cut.payload(&run)]].concat();
            let pending = cut.finish(&mut piece, &run);
            (run, piece, pending)
        };
        cut.pieces(cut.segments()).map(piece).collect()
    }

    /// Checks that the pieces are super-frames of the stream, of at most this many segments.
    fn assert_runs(stream: &Stream, whole: &[u8], cut: &Cut, longest: usize) {
        let pieces = pieces(whole, cut);
        assert_eq!(pieces.len(), stream.segments().div_ceil(longest));
        for (run, piece, pending) in pieces {
            let expected = stream.frame(run.clone(), run.len() == 1);
            assert!(piece == expected, "{stream:?}, {run:?}");
            let offload = pending.map(|pending| pending.offload);
            let of_run = (run.len() > 1).then(|| stream.offload(run.clone()));
            assert_eq!(offload, of_run, "{stream:?}, {run:?}");
            assert!(pending.is_none_or(|pending| pending.headers_len == stream.headers_len()));
        }
    }

    fn streams(size: u16, payload: usize) -> [Stream; 4] {
        let tcp_v4 = Stream::tcp_v4(size, payload);
        let udp_v6 = Stream::udp_v6(size, payload);
        [
            Stream {
                transport: Transport::Udp,
                tags: vec![(0x8100, 7)],
                ..tcp_v4.clone()
            },
            Stream {
                network: Network::V6(vec![(43, 2)]),
                ..tcp_v4.clone()
            },
            tcp_v4,
            udp_v6,
        ]
    }

    #[test]
    fn a_frame_that_would_become_very_many_is_refused() {
        let stream = |payload| Stream {
            // Headers that no peer accepts: each segment is a piece.
            network: Network::V6(vec![(60, 30)]),
            ..Stream::udp_v6(2, payload)
        };
        for (segments, is_cut) in [(MAX_PIECES, true), (MAX_PIECES + 1, false)] {
            let stream = stream(2 * segments);
            let (whole, checksum) = (stream.whole(), stream.offload(0..1).checksum);
            let cut = Cut::find(&whole, segmentation(&stream), Some(checksum));
            assert_eq!(cut.is_some(), is_cut, "{segments} segments");
        }
    }

    #[test]
    fn lengths_that_a_guest_left_out_are_put_right() {
        for stream in streams(1200, 30_000) {
            let right = stream.whole();
            let of_one_segment = stream.frame(0..1, false);
            let network = 14 + 4 * stream.tags.len();
            let (is_v4, is_udp) = (
                matches!(stream.network, Network::V4(..)),
                stream.transport == Transport::Udp,
            );
            let length_of_ip = network + if is_v4 { 2 } else { 4 };
            let length_of_udp = is_udp.then_some(stream.transport_at() + 4);
            let checksum = stream.offload(0..1).checksum;
            for (ip, udp) in [(true, false), (false, is_udp), (true, is_udp)] {
                for is_zero in [true, false] {
                    let mut whole = right.clone();
                    let fields = [ip.then_some(length_of_ip), length_of_udp.filter(|_| udp)];
                    for at in fields.into_iter().flatten() {
                        let field = match is_zero {
                            true => 0,
                            false => read(&of_one_segment, at),
                        };
                        if Some(at) == length_of_udp {
                            // As the kernel takes it: a part of the partial checksum.
                            let field_of_sum = usize::from(checksum.start + checksum.offset);
                            let sum = u64::from(read(&whole, field_of_sum));
                            let changed = sum + u64::from(!read(&whole, at)) + u64::from(field);
                            put(&mut whole, field_of_sum, fold(changed));
                        }
                        put(&mut whole, at, field);
                    }
                    let cut = Cut::find(&whole, segmentation(&stream), Some(checksum)).unwrap();
                    assert_runs(&stream, &whole, &cut, stream.segments());
                }
            }
        }
    }

    #[test]
    fn frames_longer_than_ip_can_state_are_cut_into_super_frames() {
        let longest = |stream: &Stream| (65_535 - (stream.headers_len() - 14)) / 1448;
        for with_option in [true, false] {
            let stream = Stream {
                network: Network::V6(vec![]),
                ..Stream::tcp_v4(1448, 400_000)
            };
            let mut whole = stream.whole();
            put(&mut whole, 18, 0);
            let mut checksum = stream.offload(0..1).checksum;
            if with_option {
                let len = (whole.len() - 54 + 8) as u32;
                let option = [&[6, 0, 0xc2, 4][..], &len.to_be_bytes()].concat();
                whole.splice(54..54, option);
                whole[20] = 0;
                checksum.start += 8;
            }
            let by = without_jumbo_option(&mut whole);
            assert_eq!(by > 0, with_option);
            checksum.start -= by as u16;
            let whole = &whole[by..];
            let cut = Cut::find(whole, segmentation(&stream), Some(checksum)).unwrap();
            assert_runs(&stream, whole, &cut, longest(&stream));
        }
        // IPv4 has no such option; Linux leaves the length 0.
        let stream = Stream::tcp_v4(1448, 200_000);
        let mut whole = stream.whole();
        put(&mut whole, 16, 0);
        assert_eq!(without_jumbo_option(&mut whole), 0);
        let checksum = stream.offload(0..1).checksum;
        let cut = Cut::find(&whole, segmentation(&stream), Some(checksum)).unwrap();
        assert_runs(&stream, &whole, &cut, longest(&stream));
    }

    #[test]
    fn a_super_frame_without_a_partial_checksum_gets_one() {
        // Joined by `rx-gro-list`: the headers are those of the first segment.
        for stream in streams(1200, 30_000) {
            let mut whole = stream.whole();
            let headers = stream.frame(0..1, true);
            whole[..stream.headers_len()].copy_from_slice(&headers[..stream.headers_len()]);
            if stream.transport == Transport::Tcp {
                // The flags of the last segment are lost.
                let flags = stream.transport_at() + 13;
                whole[flags] = stream.whole()[flags];
            }
            let cut = Cut::find(&whole, segmentation(&stream), None).unwrap();
            assert_runs(&stream, &whole, &cut, stream.segments());
        }
    }

    #[test]
    fn frames_that_a_peer_would_refuse_are_cut_into_finished_ones() {
        let tcp = Stream::tcp_v4(100, 5000);
        for stream in [
            Stream {
                tags: vec![(0x8100, 7); 5],
                ..tcp.clone()
            },
            Stream {
                network: Network::V6(vec![(60, 1); 8]),
                ..tcp.clone()
            },
            Stream {
                network: Network::V6(vec![(60, 30)]),
                ..tcp
            },
        ] {
            let checksum = stream.offload(0..1).checksum;
            let whole = stream.whole();
            let cut = Cut::find(&whole, segmentation(&stream), Some(checksum)).unwrap();
            assert_runs(&stream, &whole, &cut, 1);
        }
    }

    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Tunnel {
        Vxlan,
        /// With this many bytes of options.
        Geneve(usize),
        GreOfIp,
        GreOfEthernet,
        IpInIp,
        FooOverUdp,
        Mpls,
        Pppoe,
    }

    /// The frame of a tunnel around an inner frame, which is the `number`th of those that a super-frame
    /// is cut into. Built from scratch.
    fn around(tunnel: Tunnel, is_ipv6: bool, has_sum: bool, inner: &[u8], number: u16) -> Vec<u8> {
        let packet = &inner[14..];
        let inner_type = [inner[12], inner[13]];
        let vxlan = [8, 0, 0, 0, 0, 0, 9, 0];
        let (payload, protocol, port) = match tunnel {
            Tunnel::Vxlan => ([&vxlan[..], inner].concat(), UDP, 4789),
            Tunnel::Geneve(options) => {
                let header = [(options / 4) as u8, 0, 0x65, 0x58, 0, 0, 9, 0];
                (
                    [&header[..], &vec![0x45; options], inner].concat(),
                    UDP,
                    6081,
                )
            }
            Tunnel::FooOverUdp => (packet.to_vec(), UDP, 5555),
            Tunnel::IpInIp => (
                packet.to_vec(),
                if inner_type == [8, 0] { 4 } else { 41 },
                0,
            ),
            Tunnel::GreOfIp => (gre(inner_type, has_sum, packet), 47, 0),
            Tunnel::GreOfEthernet => (gre([0x65, 0x58], has_sum, inner), 47, 0),
            Tunnel::Mpls => {
                let labels = [0, 0, 16, 64, 0, 1, 1, 64];
                return ethernet(0x8847, &[&labels[..], packet].concat());
            }
            Tunnel::Pppoe => {
                let len = (packet.len() as u16 + 2).to_be_bytes();
                let kind = if inner_type == [8, 0] { 0x21 } else { 0x57 };
                let header = [0x11, 0, 0, 1, len[0], len[1], 0, kind];
                return ethernet(0x8864, &[&header[..], packet].concat());
            }
        };
        let len = payload.len() + if protocol == UDP { 8 } else { 0 };
        let v4 = {
            let mut v4 = Ipv4Header {
                identification: 100 + number,
                total_len: (20 + len) as u16,
                time_to_live: 64,
                protocol: IpNumber(protocol),
                source: [192, 0, 2, 1],
                destination: [192, 0, 2, 2],
                ..Ipv4Header::default()
            };
            v4.header_checksum = v4.calc_header_checksum();
            v4
        };
        let v6 = Ipv6Header {
            payload_length: len as u16,
            next_header: IpNumber(protocol),
            hop_limit: 64,
            source: [3; 16],
            destination: [4; 16],
            ..Ipv6Header::default()
        };
        let udp = (protocol == UDP).then(|| {
            let mut udp = UdpHeader {
                source_port: 50_000,
                destination_port: port,
                length: len as u16,
                checksum: 0,
            };
            if has_sum {
                udp.checksum = match is_ipv6 {
                    true => udp.calc_checksum_ipv6(&v6, &payload),
                    false => udp.calc_checksum_ipv4(&v4, &payload),
                }
                .unwrap();
            }
            udp.to_bytes().to_vec()
        });
        let (ethertype, ip) = match is_ipv6 {
            true => (0x86dd, v6.to_bytes().to_vec()),
            false => (0x0800, v4.to_bytes().to_vec()),
        };
        ethernet(ethertype, &[ip, udp.unwrap_or_default(), payload].concat())
    }

    fn ethernet(ethertype: u16, payload: &[u8]) -> Vec<u8> {
        let header = etherparse::Ethernet2Header {
            destination: [0x45; 6],
            source: [0x60; 6],
            ether_type: EtherType(ethertype),
        };
        [&header.to_bytes()[..], payload].concat()
    }

    fn gre([a, b]: [u8; 2], has_sum: bool, payload: &[u8]) -> Vec<u8> {
        if !has_sum {
            return [&[0x20, 0, a, b, 0, 0, 0, 9], payload].concat();
        }
        let mut packet = [&[0xa0, 0, a, b, 0, 0, 0, 0, 0, 0, 0, 9], payload].concat();
        let sum = etherparse::checksum::Sum16BitWords::new().add_slice(&packet);
        packet[4..6].copy_from_slice(&sum.ones_complement().to_ne_bytes());
        packet
    }

    #[test]
    fn tunneled_frames_are_cut_as_the_kernel_cuts_them() {
        for tunnel in [
            Tunnel::Vxlan,
            Tunnel::Geneve(0),
            Tunnel::Geneve(252),
            Tunnel::GreOfIp,
            Tunnel::GreOfEthernet,
            Tunnel::IpInIp,
            Tunnel::FooOverUdp,
            Tunnel::Mpls,
            Tunnel::Pppoe,
        ] {
            for is_ipv6 in [false, true] {
                for has_sum in [false, true] {
                    for inner in streams(1200, 30_000) {
                        let is_bare = !matches!(
                            tunnel,
                            Tunnel::Vxlan | Tunnel::Geneve(_) | Tunnel::GreOfEthernet
                        );
                        if is_bare && !inner.tags.is_empty() {
                            continue;
                        }
                        assert_cut(tunnel, is_ipv6, has_sum, &inner);
                    }
                }
            }
        }
    }

    fn assert_cut(tunnel: Tunnel, is_ipv6: bool, has_sum: bool, inner: &Stream) {
        let what = format!("{tunnel:?}, IPv6: {is_ipv6}, sum: {has_sum}, {inner:?}");
        let whole = around(tunnel, is_ipv6, has_sum, &inner.whole(), 0);
        let payload = whole.len() - inner.payload_of(&(0..inner.segments())).len();
        let transport = payload - (inner.headers_len() - inner.transport_at());
        let checksum = Checksum {
            start: transport as u16,
            ..inner.offload(0..1).checksum
        };
        let cut = Cut::find(&whole, segmentation(inner), Some(checksum)).expect(&what);
        let pieces = pieces(&whole, &cut);
        assert_eq!(pieces.len(), inner.segments(), "{what}");
        for (run, piece, pending) in pieces {
            assert!(pending.is_none(), "{what}");
            let number = run.start as u16;
            let expected = around(tunnel, is_ipv6, has_sum, &inner.frame(run, true), number);
            assert!(piece == expected, "{what}: {number}");
        }
    }

    proptest! {
        #[test]
        fn whatever_is_found_can_be_cut(
            head in prop::collection::vec(prop_oneof![
                Just(0x45_u8), Just(0x60), Just(8), Just(0), Just(17), Just(6), Just(47), any::<u8>(),
            ], 0..400),
            start in 0..400_u16,
            is_partial: bool,
            is_tcp: bool,
            size: u16,
        ) {
            let segmentation = Segmentation {
                transport: if is_tcp { Transport::Tcp } else { Transport::Udp },
                size,
                cwr: false,
            };
            let mut frame = head;
            if frame.len() > 14 {
                frame[12] = 8;
                frame[13] = 0;
            }
            let by = without_jumbo_option(&mut frame);
            let offset = if is_tcp { TCP_CHECKSUM } else { UDP_CHECKSUM };
            let checksum = Checksum { start, offset };
            if let Some(cut) = Cut::find(&frame[by..], segmentation, is_partial.then_some(checksum)) {
                pieces(&frame[by..], &cut);
            }
        }
    }

    fn without_jumbo_option(frame: &mut [u8]) -> usize {
        let headers = Headers::parse(frame).ok();
        let network = headers.and_then(|it| it.network());
        leave_out_jumbo_option(frame, network)
    }
}
