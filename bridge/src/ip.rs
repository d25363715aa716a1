// SPDX-License-Identifier: MIT OR Apache-2.0
//! The parts of IP that the switch reads: headers as far as the upper layer.
//!
//! Views of bytes whose sender is not trusted: inconsistent headers give `None`, and every walk has a
//! bound.

use core::net::{Ipv4Addr, Ipv6Addr};

use crate::checksum::{self, pseudo_header, sum};
use crate::ip_protocol::{
    AUTHENTICATION, DESTINATION, FRAGMENT, HIP, HOP_BY_HOP, MOBILITY, ROUTING, SHIM6,
};

/// An IPv4 packet, RFC 791 section 3.1.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ipv4<'a> {
    header: &'a [u8],
    /// The bytes that follow the header and belong to the packet; padding of the frame does not.
    pub(crate) payload: &'a [u8],
}

impl<'a> Ipv4<'a> {
    const MIN_HEADER_LEN: usize = 20;

    pub(crate) fn parse(bytes: &'a [u8]) -> Option<Self> {
        let first = *bytes.first()?;
        let header_len = usize::from(first & 0x0f) * 4;
        if first >> 4 != 4 || header_len < Self::MIN_HEADER_LEN {
            return None;
        }
        let (header, rest) = bytes.split_at_checked(header_len)?;
        // The kernel leaves 0 in super-frames whose length takes more than 16 bits.
        let payload_len = match u16::from_be_bytes([header[2], header[3]]) {
            0 => rest.len(),
            total => usize::from(total).checked_sub(header_len)?,
        };
        Some(Self {
            header,
            payload: &rest[..payload_len.min(rest.len())],
        })
    }

    pub(crate) fn protocol(&self) -> u8 {
        self.header[9]
    }

    pub(crate) fn src(&self) -> Ipv4Addr {
        address_v4(&self.header[12..16])
    }

    pub(crate) fn dst(&self) -> Ipv4Addr {
        address_v4(&self.header[16..20])
    }

    /// Whether the packet is a fragment other than the first, and so has no upper-layer header.
    pub(crate) fn is_later_fragment(&self) -> bool {
        self.flags_and_offset() & 0x1fff != 0
    }

    /// Whether the packet is a fragment.
    pub(crate) fn is_fragment(&self) -> bool {
        self.flags_and_offset() & 0x3fff != 0
    }

    pub(crate) fn is_checksum_right(&self) -> bool {
        checksum::is_right(sum(self.header))
    }

    fn flags_and_offset(&self) -> u16 {
        u16::from_be_bytes([self.header[6], self.header[7]])
    }
}

/// An IPv6 header, RFC 8200 section 3.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ipv6<'a> {
    header: &'a [u8; IPV6_HEADER_LEN],
    /// The bytes that follow the header and belong to the packet; padding of the frame does not.
    payload: &'a [u8],
}

/// The end of an IPv6 header chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Chain<'a> {
    /// An upper-layer header.
    Upper(Upper<'a>),
    /// A fragment other than the first: the upper-layer header travels in another packet.
    LaterFragment,
    /// The chain continues behind the end of the packet, or is longer than honest senders need.
    Hidden,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Upper<'a> {
    pub(crate) protocol: u8,
    /// From the upper-layer header on.
    pub(crate) payload: &'a [u8],
    /// Whether there are extension headers before it.
    pub(crate) is_extended: bool,
    /// Whether one of them is a fragment header.
    pub(crate) is_fragment: bool,
    /// Whether one of them asks routers to look closer, RFC 2711.
    pub(crate) has_router_alert: bool,
}

impl<'a> Ipv6<'a> {
    pub(crate) fn parse(bytes: &'a [u8]) -> Option<Self> {
        let (header, rest) = bytes.split_first_chunk()?;
        if header[0] >> 4 != 6 {
            return None;
        }
        let payload_len = match u16::from_be_bytes([header[4], header[5]]) {
            // A jumbogram: its length is in an option that only the kernel's super-frames have.
            0 if header[6] == HOP_BY_HOP => rest.len(),
            len => usize::from(len),
        };
        Some(Self {
            header,
            payload: &rest[..payload_len.min(rest.len())],
        })
    }

    pub(crate) fn src(&self) -> Ipv6Addr {
        address_v6(&self.header[8..24])
    }

    pub(crate) fn dst(&self) -> Ipv6Addr {
        address_v6(&self.header[24..40])
    }

    pub(crate) fn hop_limit(&self) -> u8 {
        self.header[7]
    }

    /// Walks the extension headers, RFC 8200 section 4.
    ///
    /// Only bytes of the packet count: a header in the padding of a first fragment would be another
    /// one after reassembly.
    pub(crate) fn chain(&self) -> Chain<'a> {
        let mut upper = Upper {
            protocol: self.header[6],
            payload: self.payload,
            is_extended: false,
            is_fragment: false,
            has_router_alert: false,
        };
        for _ in 0..=MAX_EXTENSIONS {
            let Some(kind) = Extension::of(upper.protocol) else {
                return Chain::Upper(upper);
            };
            let Some((extension, rest)) = kind.split(upper.payload) else {
                return Chain::Hidden;
            };
            upper.is_extended = true;
            if kind == Extension::Fragment {
                upper.is_fragment = true;
                if u16::from_be_bytes([extension[2], extension[3]]) & 0xfff8 != 0 {
                    return Chain::LaterFragment;
                }
            }
            upper.has_router_alert |=
                upper.protocol == HOP_BY_HOP && has_router_alert(&extension[2..]);
            upper.protocol = extension[0];
            upper.payload = rest;
        }
        Chain::Hidden
    }

    /// Whether the checksum of an upper layer's message in this packet is right.
    pub(crate) fn is_sum_right(&self, protocol: u8, message: &[u8]) -> bool {
        let pseudo = pseudo_header(self.src(), self.dst(), protocol, message.len());
        checksum::is_right(sum(message) + pseudo)
    }
}

const IPV6_HEADER_LEN: usize = 40;

/// More extension headers than this in one packet hide something. RFC 8200 section 4.1 recommends
/// each at most once, destination options twice; there are not that many kinds.
const MAX_EXTENSIONS: usize = 16;

/// How long an extension header is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Extension {
    /// In units of 8 bytes, not counting the first (RFC 6564 section 4, IANA "IPv6 Extension Header
    /// Types").
    Usual,
    /// Always 8 bytes.
    Fragment,
    /// In units of 4 bytes, not counting two of them, RFC 4302 section 2.2.
    Authentication,
}

impl Extension {
    fn of(protocol: u8) -> Option<Self> {
        match protocol {
            HOP_BY_HOP | ROUTING | DESTINATION | MOBILITY | HIP | SHIM6 => Some(Self::Usual),
            FRAGMENT => Some(Self::Fragment),
            AUTHENTICATION => Some(Self::Authentication),
            _ => None,
        }
    }

    /// The header at the start of `bytes`, at least 8 bytes, and what follows it.
    fn split(self, bytes: &[u8]) -> Option<(&[u8], &[u8])> {
        let units = usize::from(*bytes.get(1)?);
        bytes.split_at_checked(match self {
            Self::Usual => (units + 1) * 8,
            Self::Fragment => 8,
            Self::Authentication => ((units + 2) * 4).max(8),
        })
    }
}

/// Looks for option 5 among hop-by-hop options, RFC 2711 section 2.1.
fn has_router_alert(mut options: &[u8]) -> bool {
    // Each iteration takes at least a byte off.
    loop {
        let len = match *options {
            [] => return false,
            [0, ..] => 1,
            [5, 2, ..] => return options.len() >= 4,
            [_, len, ..] => usize::from(len) + 2,
            [_] => return false,
        };
        let Some(rest) = options.get(len..) else {
            return false;
        };
        options = rest;
    }
}

fn address_v4(bytes: &[u8]) -> Ipv4Addr {
    let mut octets = [0; 4];
    octets.copy_from_slice(bytes);
    Ipv4Addr::from(octets)
}

fn address_v6(bytes: &[u8]) -> Ipv6Addr {
    let mut octets = [0; 16];
    octets.copy_from_slice(bytes);
    Ipv6Addr::from(octets)
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use super::*;

    #[test]
    fn finds_the_router_alert_among_options() {
        for (options, found) in [
            (&[5, 2, 0, 0, 1, 0][..], true),
            (&[1, 0, 5, 2, 0, 0], true),
            (&[0, 0, 5, 2, 0, 0], true),
            (&[1, 4, 5, 2, 0, 0], false), // inside the padding
            (&[5, 2, 0], false),
            (&[5, 3, 0, 0, 0, 0], false),
            (&[1, 200, 5, 2, 0, 0], false),
            (&[1], false),
            (&[], false),
        ] {
            assert_eq!(has_router_alert(options), found, "{options:02x?}");
        }
    }

    #[test]
    fn an_ipv4_packet_ends_where_its_header_says() {
        for (first, total_len, payload_len) in [
            (0x45, 20, Some(0)),
            (0x45, 24, Some(4)),
            (0x45, 200, Some(10)), // cut
            (0x45, 0, Some(10)),   // larger than 16 bits can say
            (0x45, 19, None),
            (0x46, 24, Some(0)),
            (0x48, 40, None), // options behind the end
            (0x44, 30, None),
            (0x65, 30, None),
        ] {
            let mut bytes = Vec::from([first, 0, 0, total_len]);
            bytes.resize(30, 0);
            let seen = Ipv4::parse(&bytes).map(|packet| packet.payload.len());
            assert_eq!(seen, payload_len, "{first:#x}, {total_len} bytes");
        }
    }
}
