// SPDX-License-Identifier: MIT OR Apache-2.0
//! Frames with headers of every shape and length: tags, IPv4 options, IPv6 extensions, TCP and UDP;
//! with wrong lengths and bytes where the fuzzer chooses them.

use arbitrary::Arbitrary;
use patchcord::internals::{proto::partial_checksum::finish_checksum, wire::offload::Checksum};

use crate::original::{pseudo_header, sum};

const TCP: u8 = 6;
const UDP: u8 = 17;
/// The largest IP packet.
const MAX_PACKET: usize = 65_535;

/// The parts of a frame.
#[derive(Arbitrary, Clone, Debug)]
pub struct Packet {
    to: u8,
    from: u8,
    tags: Vec<Tag>,
    tunnel: Option<Tunnel>,
    network: Network,
    transport: Transport,
    payload: u16,
    /// More than fits into an IP packet.
    is_big: bool,
    number: u8,
    /// Bytes of the headers that are replaced.
    lies: Vec<(u16, u8)>,
    /// The frame ends after so many bytes.
    cut_off: Option<u16>,
}

/// A packet around the packet, over IPv4.
#[derive(Arbitrary, Clone, Copy, Debug, PartialEq, Eq)]
enum Tunnel {
    Ip,
    Gre,
    Vxlan,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
struct Tag {
    tpid: Tpid,
    vid: u8,
    priority: bool,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Tpid {
    Customer,
    Service,
    Old,
}

#[derive(Arbitrary, Clone, Debug)]
enum Network {
    V4 {
        option_words: u8,
        has_fragment: bool,
        length: Length,
    },
    V6 {
        extensions: Vec<(Extension, u8)>,
        length: Length,
    },
    Other(u16),
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Extension {
    HopByHop,
    Routing,
    Destination,
    Fragment,
    Jumbo,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Transport {
    Tcp { option_words: u8, flags: u8 },
    Udp { length: Length },
    Other(u8),
}

/// A length field.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum Length {
    Right,
    Zero,
    Off(i16),
}

impl Length {
    fn value(self, right: usize) -> u16 {
        match self {
            Self::Right => right as u16,
            Self::Zero => 0,
            Self::Off(by) => (right as u16).wrapping_add_signed(by),
        }
    }

    fn is_right(self) -> bool {
        matches!(self, Self::Right | Self::Off(0))
    }
}

/// A frame, and the properties that it was built with.
#[derive(Clone, Debug)]
pub struct Built {
    /// Its partial checksum holds the sum of the pseudo-header.
    pub frame: Vec<u8>,
    /// Its position.
    pub checksum: Checksum,
    pub headers_len: usize,
    pub protocol: u8,
    pub is_ipv6: bool,
    /// IP, and every field fits its contents.
    pub is_honest: bool,
}

impl Built {
    /// With its checksum finished, if it has one.
    pub fn finished(&self) -> Vec<u8> {
        let mut frame = self.frame.clone();
        if self.checksum.offset > 0 {
            // A frame that was cut off may have none.
            let _ = finish_checksum(&mut frame, self.checksum);
        }
        frame
    }
}

impl Packet {
    pub fn build(&self) -> Built {
        let mut frame = self.ethernet();
        let outer = frame.len();
        self.extend_with_tunnel(&mut frame);
        let network = frame.len();
        let header = self.transport.header();
        let (protocol, offset) = match self.transport {
            Transport::Tcp { .. } => (TCP, 16),
            Transport::Udp { .. } => (UDP, 6),
            Transport::Other(number) => (number, 0),
        };
        let front = self.network.header_len();
        let room = MAX_PACKET.saturating_sub(front + header.len());
        let payload_len = match self.is_big {
            true => 3 * usize::from(self.payload),
            false => usize::from(self.payload).min(room),
        };
        let addresses = self.network.emit(
            &mut frame,
            protocol,
            header.len() + payload_len,
            (self.number, self.to / 8),
        );
        let start = frame.len();
        frame.extend(&header);
        let headers_len = frame.len();
        frame.extend((0..payload_len).map(|at| pattern(self.number, at)));
        let transport_len = frame.len() - start;
        self.put_tunnel_lengths(&mut frame, outer);
        self.transport.emit_lengths(&mut frame[start..]);
        if offset > 0 && !addresses.is_empty() {
            let open = pseudo_header(&frame[addresses], protocol, transport_len);
            put(&mut frame, start + usize::from(offset), open);
        }
        let is_whole = !matches!(self.network, Network::Other(_))
            && network < 14 + 4 * 5
            && self.tunnel.is_none()
            && !self.is_big
            && self.network.is_right()
            && self.transport.is_right();
        let mut is_honest = is_whole && self.lies.is_empty();
        for &(at, byte) in &self.lies {
            if let Some(place) = frame.get_mut(usize::from(at) % headers_len) {
                *place = byte;
            }
        }
        if let Some(len) = self.cut_off {
            is_honest &= usize::from(len) >= frame.len();
            frame.truncate(len.into());
        }
        Built {
            checksum: Checksum {
                start: start as u16,
                offset,
            },
            headers_len: headers_len.min(frame.len()),
            frame,
            protocol,
            is_ipv6: matches!(self.network, Network::V6 { .. }),
            is_honest,
        }
    }

    /// One byte names a station; some are the broadcast address.
    fn ethernet(&self) -> Vec<u8> {
        let to = match self.to % 8 {
            0 => [0xff; 6],
            1 => [0x33, 0x33, 0, 0, 0, 1],
            2 => [0x01, 0x80, 0xc2, 0, 0, self.to >> 4],
            name => [2, 0, 0, 0, 0, name],
        };
        let mut frame = [to, [2, 0, 0, 0, 0, self.from % 8]].concat();
        for tag in self.tags.iter().take(6) {
            frame.extend(match tag.tpid {
                Tpid::Customer => [0x81, 0x00],
                Tpid::Service => [0x88, 0xa8],
                Tpid::Old => [0x91, 0x00],
            });
            // 0, 10, 20 and 30 are the VLANs of ports.
            frame.extend([u8::from(tag.priority) * 0xa0, tag.vid % 5 * 10]);
        }
        frame.extend(match self.tunnel {
            Some(_) => [0x08, 0x00],
            None => self.network.ethertype(),
        });
        frame
    }

    fn extend_with_tunnel(&self, frame: &mut Vec<u8>) {
        let Some(tunnel) = self.tunnel else { return };
        let protocol = match (tunnel, &self.network) {
            (Tunnel::Ip, Network::V6 { .. }) => 41,
            (Tunnel::Ip, _) => 4,
            (Tunnel::Gre, _) => 47,
            (Tunnel::Vxlan, _) => UDP,
        };
        frame.extend([0x45, 0, 0, 0, 0, 1, 0x40, 0, 64, protocol, 0, 0]);
        frame.extend([10, 1, 0, 1, 10, 1, 0, 2]);
        match tunnel {
            Tunnel::Ip => {}
            Tunnel::Gre => frame.extend([0, 0]),
            Tunnel::Vxlan => {
                frame.extend([0xc0, 0, 0x12, 0xb5, 0, 0, 0, 0, 8, 0, 0, 0, 0, 0, 7, 0]);
                frame.extend([2, 0, 0, 0, 1, 1, 2, 0, 0, 0, 1, 2]);
            }
        }
        if tunnel != Tunnel::Ip {
            frame.extend(self.network.ethertype());
        }
    }

    fn put_tunnel_lengths(&self, frame: &mut [u8], outer: usize) {
        let len = frame.len() - outer;
        if self.tunnel.is_some() {
            put(frame, outer + 2, len as u16);
            let sum = !sum(&frame[outer..outer + 20]);
            put(frame, outer + 10, sum);
        }
        if self.tunnel == Some(Tunnel::Vxlan) {
            put(frame, outer + 24, (len - 20) as u16);
        }
    }
}

impl Network {
    fn ethertype(&self) -> [u8; 2] {
        match self {
            Self::V4 { .. } => [0x08, 0x00],
            Self::V6 { .. } => [0x86, 0xdd],
            Self::Other(ethertype) => ethertype.to_be_bytes(),
        }
    }

    fn header_len(&self) -> usize {
        match self {
            Self::V4 { option_words, .. } => 20 + 4 * usize::from(option_words % 11),
            // The length of an IPv6 packet excludes the fixed header, and includes its extensions.
            Self::V6 { extensions, .. } => {
                let lens = extensions.iter().take(10);
                lens.map(|(_, words)| 8 * (1 + usize::from(*words))).sum()
            }
            Self::Other(_) => 0,
        }
    }

    fn is_right(&self) -> bool {
        match self {
            Self::V4 {
                has_fragment,
                length,
                ..
            } => !has_fragment && length.is_right(),
            Self::V6 { extensions, length } => {
                let is_fragment = |(kind, _): &(Extension, u8)| matches!(kind, Extension::Fragment);
                length.is_right() && !extensions.iter().any(is_fragment)
            }
            Self::Other(_) => false,
        }
    }

    /// Appends the header for so many bytes behind it, of the flow and with the identification of these
    /// numbers; returns the offset of its addresses.
    fn emit(
        &self,
        frame: &mut Vec<u8>,
        protocol: u8,
        behind: usize,
        (number, id): (u8, u8),
    ) -> std::ops::Range<usize> {
        let network = frame.len();
        match self {
            Self::V4 {
                has_fragment,
                length,
                ..
            } => {
                let header = self.header_len();
                frame.extend([0x40 | (header / 4) as u8, number & 3]);
                frame.extend(length.value(header + behind).to_be_bytes());
                frame.extend(0xfffe_u16.wrapping_add(id.into()).to_be_bytes());
                frame.extend([0x40 | u8::from(*has_fragment) << 5, 0]);
                frame.extend([64, protocol, 0, 0, 10, 0, 0, number, 10, 0, 0, 1]);
                frame.resize(network + header, 1);
                let sum = !sum(&frame[network..]);
                put(frame, network + 10, sum);
                network + 12..network + 20
            }
            Self::V6 { extensions, length } => {
                let extensions = &extensions[..extensions.len().min(10)];
                let kinds = extensions.iter().map(|(kind, _)| kind.number());
                let mut next = kinds.chain([protocol]);
                let first = next.next().unwrap_or(protocol);
                frame.extend([0x60, (number & 3) << 4, 0, 0]);
                let payload = length.value(self.header_len() + behind);
                frame.extend(payload.to_be_bytes());
                frame.extend([first, 64]);
                frame.extend([0xfd; 15]);
                frame.push(number);
                frame.extend([0xfc; 16]);
                for (&(kind, words), next) in extensions.iter().zip(next) {
                    let len = 8 * (1 + usize::from(words));
                    frame.extend([next, words]);
                    if matches!(kind, Extension::Jumbo) {
                        let payload = self.header_len() + behind;
                        frame.extend([0xc2, 4]);
                        frame.extend((payload as u32).to_be_bytes());
                        frame.resize(frame.len() + len - 8, 0);
                        continue;
                    }
                    frame.resize(frame.len() + len - 2, 0);
                }
                network + 8..network + 40
            }
            Self::Other(_) => 0..0,
        }
    }
}

impl Extension {
    fn number(self) -> u8 {
        match self {
            Self::HopByHop | Self::Jumbo => 0,
            Self::Routing => 43,
            Self::Destination => 60,
            Self::Fragment => 44,
        }
    }
}

impl Transport {
    fn header(self) -> Vec<u8> {
        match self {
            Self::Tcp {
                option_words,
                flags,
            } => {
                let len = 20 + 4 * (option_words % 11);
                let mut header = vec![0; len.into()];
                // The sequence number is about to wrap.
                header[4..8].copy_from_slice(&[0xff, 0xff, 0xff, 0]);
                [header[12], header[13]] = [len / 4 << 4, flags];
                header
            }
            Self::Udp { .. } => vec![0x30, 0x39, 0x30, 0x3a, 0, 0, 0, 0],
            Self::Other(_) => Vec::new(),
        }
    }

    fn emit_lengths(self, transport: &mut [u8]) {
        if let Self::Udp { length } = self {
            let value = length.value(transport.len());
            put(transport, 4, value);
        }
    }

    fn is_right(self) -> bool {
        match self {
            Self::Tcp { .. } => true,
            Self::Udp { length } => length.is_right(),
            Self::Other(_) => false,
        }
    }
}

fn pattern(number: u8, at: usize) -> u8 {
    let mixed = ((at as u64) << 8 | u64::from(number)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed >> 56) as u8
}

fn put(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

/// Whether a receiver finds a wrong checksum in a finished frame of TCP or UDP over IP.
pub fn has_wrong_checksum(frame: &[u8]) -> bool {
    is_checksum_right(frame) == Some(false)
}

fn is_checksum_right(frame: &[u8]) -> Option<bool> {
    let mut network = 14;
    let mut ethertype = frame.get(12..14)?;
    while [[0x81, 0x00], [0x88, 0xa8], [0x91, 0x00]].contains(ethertype.first_chunk()?) {
        ethertype = frame.get(network + 2..network + 4)?;
        network += 4;
    }
    let field = |at: usize| -> Option<usize> {
        let bytes = frame.get(at..at + 2)?;
        Some(u16::from_be_bytes([bytes[0], bytes[1]]).into())
    };
    let (protocol, start, end, addresses) = match *ethertype {
        [0x08, 0x00] => {
            let header = usize::from(frame.get(network)? & 15) * 4;
            let end = network + field(network + 2)?;
            let addresses = frame.get(network + 12..network + 20)?;
            (*frame.get(network + 9)?, network + header, end, addresses)
        }
        [0x86, 0xdd] => {
            let (mut protocol, mut at) = (*frame.get(network + 6)?, network + 40);
            while [0, 43, 60].contains(&protocol) {
                protocol = *frame.get(at)?;
                at += 8 * (1 + usize::from(*frame.get(at + 1)?));
            }
            let end = network + 40 + field(network + 4)?;
            (protocol, at, end, frame.get(network + 8..network + 40)?)
        }
        _ => return None,
    };
    if !matches!(protocol, TCP | UDP) {
        return None;
    }
    let segment = frame.get(start..end)?;
    let pseudo = pseudo_header(addresses, protocol, segment.len());
    let mut covered = pseudo.to_be_bytes().to_vec();
    covered.extend(segment);
    Some(sum(&covered) == 0xffff)
}
