// SPDX-License-Identifier: MIT OR Apache-2.0
//! IGMP and MLD messages: those that a snooping switch reads, and the queries that it sends.
//!
//! ```text
//!            query                          reports                       leave
//!  IGMPv1    11, max response 0             12
//!  IGMPv2    11, 8 bytes                    16                            17
//!  IGMPv3    11, 12 bytes or more           22, records                   22, to include no source
//!  MLDv1     130, 24 bytes                  131                           132
//!  MLDv2     130, 28 bytes or more          143, records                  143, to include no source
//! ```
//!
//! RFC 1112, 2236, 3376; 2710, 3810. Also PIM hellos (RFC 7761 section 4.9.2) and advertisements of
//! multicast routers (RFC 4286), which reveal routers that do not query.

use alloc::vec::Vec;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::family::Family;
use crate::checksum::{self, pseudo_header, sum};
use crate::ether_type::{self, IPV4, IPV6};
use crate::ethernet::{Headers, MIN_FRAME_LEN, Payload};
use crate::ip::{Chain, Ipv4, Ipv6, Upper};
use crate::ip_protocol::{ICMPV6, IGMP, PIM};
use crate::mac::MacAddr;
use crate::vlan::Vid;

/// A message with correct checksums.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Message<'a> {
    Query(Query),
    /// One group, in the format of all but the newest versions.
    Single(Record),
    Records(Records<'a>),
    /// There is a multicast router.
    Router(Family),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Query {
    pub(super) source: IpAddr,
    /// The group whose members must answer; `None` for all groups.
    pub(super) group: Option<IpAddr>,
    /// Whether a host that does not answer loses its membership. It does not if the query names
    /// sources, or sets the flag that suppresses router-side processing.
    pub(super) ends_membership: bool,
    pub(super) max_response_s: u32,
    /// Robustness and interval: how often a query may be lost, and the time from one to the next.
    /// Older versions do not say.
    pub(super) timing: Option<(u32, u32)>,
}

/// A host's message about one group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) group: IpAddr,
    pub(super) change: Change,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    Join,
    Leave,
}

impl<'a> Message<'a> {
    /// Parses what follows the tags of a frame; `None` if it is no such message, or a broken one.
    pub(super) fn parse(headers: &Headers<'a>) -> Option<Self> {
        let (message, expected) = match headers.payload()? {
            Payload::Typed(IPV4, packet) => {
                let packet = Ipv4::parse(packet)?;
                (Self::parse_ipv4(&packet)?, mac_v4(packet.dst()))
            }
            Payload::Typed(IPV6, packet) => {
                let packet = Ipv6::parse(packet)?;
                (Self::parse_ipv6(&packet)?, mac_v6(packet.dst()))
            }
            _ => return None,
        };
        // A query to one station, or to another group, would end the membership of hosts that do
        // not receive it.
        let is_heard = headers.dst() == expected || headers.dst().is_broadcast();
        (is_heard || !matches!(message, Self::Query(_))).then_some(message)
    }

    fn parse_ipv4(packet: &Ipv4<'a>) -> Option<Self> {
        // Protocol first: data threads check each frame to a group.
        let message = packet.payload;
        let (protocol, is_whole) = (packet.protocol(), !packet.is_fragment());
        if !matches!(protocol, IGMP | PIM) || !is_whole || !packet.dst().is_multicast() {
            return None;
        }
        if !packet.is_checksum_right() || !checksum::is_right(sum(message)) {
            return None;
        }
        match protocol {
            IGMP => Self::parse_igmp(packet, message),
            _ => is_hello(message).then_some(Self::Router(Family::V4)),
        }
    }

    fn parse_igmp(packet: &Ipv4<'_>, message: &'a [u8]) -> Option<Self> {
        let single = |change| {
            let group = read_v4(message, 4)?.into();
            Some(Self::Single(Record { group, change }))
        };
        match *message.first()? {
            0x11 => Query::parse_igmp(packet, message).map(Self::Query),
            0x12 | 0x16 => single(Change::Join),
            0x17 => single(Change::Leave),
            0x22 => Some(Self::Records(Records::new(Family::V4, message)?)),
            0x30 => Some(Self::Router(Family::V4)),
            _ => None,
        }
    }

    fn parse_ipv6(packet: &Ipv6<'a>) -> Option<Self> {
        let Chain::Upper(upper) = packet.chain() else {
            return None;
        };
        if upper.is_fragment || !packet.dst().is_multicast() {
            return None;
        }
        match upper.protocol {
            ICMPV6 => Self::parse_mld(packet, &upper),
            PIM => {
                let is_right = packet.is_sum_right(PIM, upper.payload) && is_hello(upper.payload);
                is_right.then_some(Self::Router(Family::V6))
            }
            _ => None,
        }
    }

    fn parse_mld(packet: &Ipv6<'_>, upper: &Upper<'a>) -> Option<Self> {
        let message = upper.payload;
        // RFC 2710 section 3, RFC 3810 section 5. Hosts without an address yet report from the
        // unspecified one, RFC 3590 section 4.
        let is_query = *message.first()? == 130;
        let source = packet.src();
        let is_near = source.is_unicast_link_local() || source.is_unspecified() && !is_query;
        let is_for_the_link = packet.hop_limit() == 1 && upper.has_router_alert;
        if !is_near || !is_for_the_link || !packet.is_sum_right(ICMPV6, message) {
            return None;
        }
        let single = |change| {
            let group = read_v6(message, 8)?.into();
            Some(Self::Single(Record { group, change }))
        };
        match *message.first()? {
            130 => Query::parse_mld(packet, message).map(Self::Query),
            131 => single(Change::Join),
            132 => single(Change::Leave),
            143 => Some(Self::Records(Records::new(Family::V6, message)?)),
            151 => Some(Self::Router(Family::V6)),
            _ => None,
        }
    }
}

/// Version 2, type 0.
fn is_hello(message: &[u8]) -> bool {
    message.len() >= 4 && message[0] == 0x20
}

impl Query {
    /// RFC 3376 section 4.1; section 7.1 for the length that tells the versions apart.
    fn parse_igmp(packet: &Ipv4<'_>, message: &[u8]) -> Option<Self> {
        let group = read_v4(message, 4)?;
        let group = (!group.is_unspecified()).then_some(group);
        // Section 4.1.12: a query for all groups goes to all stations, one for a group to that
        // group.
        let queried = group.unwrap_or(Ipv4Addr::new(224, 0, 0, 1));
        let code = u32::from(message[1]);
        let (tenths, newest) = match message.len() {
            8 if code == 0 => (100, None),
            8 => (code, None),
            12.. => (code_8(code), Some(Newest::parse(message, 8))),
            _ => return None,
        };
        (packet.dst() == queried).then(|| Self {
            source: packet.src().into(),
            group: group.map(IpAddr::from),
            ends_membership: newest.is_none_or(|newest| newest.ends_membership),
            max_response_s: tenths.div_ceil(10),
            timing: newest.map(|newest| newest.timing),
        })
    }

    /// RFC 3810 section 5.1; section 8.1 for the length that tells the versions apart.
    fn parse_mld(packet: &Ipv6<'_>, message: &[u8]) -> Option<Self> {
        let group = read_v6(message, 8)?;
        let group = (!group.is_unspecified()).then_some(group);
        // Section 5.1.15.
        let queried = group.unwrap_or(Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1));
        let code = u32::from(u16::from_be_bytes([message[4], message[5]]));
        let (millis, newest) = match message.len() {
            24 => (code, None),
            28.. => (code_16(code), Some(Newest::parse(message, 24))),
            _ => return None,
        };
        (packet.dst() == queried).then(|| Self {
            source: packet.src().into(),
            group: group.map(IpAddr::from),
            ends_membership: newest.is_none_or(|newest| newest.ends_membership),
            max_response_s: millis.div_ceil(1000),
            timing: newest.map(|newest| newest.timing),
        })
    }
}

/// The fields at the end of a query that IGMPv3 and MLDv2 have.
#[derive(Clone, Copy)]
struct Newest {
    ends_membership: bool,
    timing: (u32, u32),
}

impl Newest {
    /// Reads four bytes, which are there.
    fn parse(message: &[u8], at: usize) -> Self {
        let robustness = u32::from(message[at] & 0x07);
        let has_sources = message[at + 2..at + 4] != [0, 0];
        let is_suppressed = message[at] & 0x08 != 0;
        Self {
            ends_membership: !has_sources && !is_suppressed,
            // Zero means more than seven, RFC 3376 section 4.1.6; two is the common value.
            timing: (robustness.max(2), code_8(u32::from(message[at + 1]))),
        }
    }
}

/// RFC 3376 sections 4.1.1 and 4.1.7.
fn code_8(code: u32) -> u32 {
    if code < 128 {
        code
    } else {
        ((code & 0x0f) | 0x10) << ((code >> 4 & 0x07) + 3)
    }
}

/// RFC 3810 section 5.1.3.
fn code_16(code: u32) -> u32 {
    if code < 32_768 {
        code
    } else {
        ((code & 0x0fff) | 0x1000) << ((code >> 12 & 0x07) + 3)
    }
}

/// The code of at least `value`.
fn to_code_8(value: u32) -> u8 {
    let fits = |code: &u8| code_8(u32::from(*code)) >= value;
    (0..=u8::MAX).find(fits).unwrap_or(u8::MAX)
}

/// The group records of a report, RFC 3376 section 4.2 and RFC 3810 section 5.2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Records<'a> {
    family: Family,
    left: u16,
    bytes: &'a [u8],
}

impl<'a> Records<'a> {
    fn new(family: Family, message: &'a [u8]) -> Option<Self> {
        let (head, bytes) = message.split_first_chunk::<8>()?;
        let left = u16::from_be_bytes([head[6], head[7]]);
        Some(Self {
            family,
            left,
            bytes,
        })
    }

    /// The next record, and its request if that changes membership of the group as a whole.
    fn take(&mut self) -> Option<(IpAddr, Option<Change>)> {
        self.left = self.left.checked_sub(1)?;
        let (group, address_len): (IpAddr, _) = match self.family {
            Family::V4 => (read_v4(self.bytes, 4)?.into(), 4),
            Family::V6 => (read_v6(self.bytes, 4)?.into(), 16),
        };
        let auxiliary_len = usize::from(self.bytes[1]) * 4;
        let sources = usize::from(u16::from_be_bytes([self.bytes[2], self.bytes[3]]));
        let len = 4 + address_len + sources * address_len + auxiliary_len;
        let change = match (self.bytes[0], sources) {
            // Including no source means to leave; that is a change (3), not a state (1).
            (3, 0) => Some(Change::Leave),
            // Including some sources, excluding some, changing to either, allowing more.
            (1 | 3 | 5, 1..) | (2 | 4, _) => Some(Change::Join),
            // Blocking some sources says nothing of the rest.
            _ => None,
        };
        self.bytes = self.bytes.get(len..)?;
        Some((group, change))
    }
}

impl Iterator for Records<'_> {
    type Item = Record;

    fn next(&mut self) -> Option<Record> {
        loop {
            if let (group, Some(change)) = self.take()? {
                return Some(Record { group, change });
            }
        }
    }
}

/// The addresses and the interval of a querier.
#[derive(Clone, Copy, Debug)]
pub(super) struct QuerySource {
    pub(super) mac: MacAddr,
    pub(super) ipv4: Ipv4Addr,
    pub(super) ipv6: Ipv6Addr,
    pub(super) interval_s: u32,
}

/// The time to answer a general query, RFC 3376 section 8.3 and RFC 3810 section 9.3.
pub(super) const RESPONSE_S: u32 = 10;
/// The time to answer a group-specific query, RFC 3376 section 8.8 and RFC 3810 section 9.8.
pub(super) const LAST_RESPONSE_S: u32 = 1;
/// RFC 3376 section 8.1 and RFC 3810 section 9.1.
pub(super) const ROBUSTNESS: u8 = 2;

impl QuerySource {
    /// A query for members of `group`, or of all groups.
    pub(super) fn query(&self, family: Family, vid: Vid, group: Option<IpAddr>) -> Vec<u8> {
        let response_s = group.map_or(RESPONSE_S, |_| LAST_RESPONSE_S);
        let (mac, ether_type, packet) = match (family, group) {
            (Family::V4, Some(IpAddr::V4(group))) => {
                (mac_v4(group), IPV4, self.igmp(group, group, response_s))
            }
            (Family::V6, Some(IpAddr::V6(group))) => {
                (mac_v6(group), IPV6, self.mld(group, group, response_s))
            }
            (Family::V4, _) => {
                let all = Ipv4Addr::new(224, 0, 0, 1);
                let packet = self.igmp(all, Ipv4Addr::UNSPECIFIED, response_s);
                (mac_v4(all), IPV4, packet)
            }
            (Family::V6, _) => {
                let all = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
                let packet = self.mld(all, Ipv6Addr::UNSPECIFIED, response_s);
                (mac_v6(all), IPV6, packet)
            }
        };
        let mut frame = Vec::with_capacity(100);
        frame.extend(mac.0);
        frame.extend(self.mac.0);
        if vid != Vid::UNTAGGED {
            frame.extend(ether_type::CUSTOMER_TAG.to_be_bytes());
            frame.extend(vid.value().to_be_bytes());
        }
        frame.extend(ether_type.to_be_bytes());
        frame.extend(packet);
        frame.resize(frame.len().max(MIN_FRAME_LEN), 0);
        frame
    }

    /// RFC 3376 section 4.1, with the precedence, time to live and option of section 4.
    fn igmp(&self, dst: Ipv4Addr, group: Ipv4Addr, response_s: u32) -> Vec<u8> {
        let mut message = Vec::from([0x11, to_code_8(response_s * 10), 0, 0]);
        message.extend(group.octets());
        message.extend([ROBUSTNESS, to_code_8(self.interval_s), 0, 0]);
        let finished = checksum::finish(sum(&message));
        message[2..4].copy_from_slice(&finished.to_be_bytes());

        let mut packet = Vec::from([0x46, 0xc0, 0, 36, 0, 0, 0x40, 0, 1, IGMP, 0, 0]);
        packet.extend(self.ipv4.octets());
        packet.extend(dst.octets());
        packet.extend([0x94, 0x04, 0, 0]);
        let finished = checksum::finish(sum(&packet));
        packet[10..12].copy_from_slice(&finished.to_be_bytes());
        packet.extend(message);
        packet
    }

    /// RFC 3810 section 5.1, with the hop limit and option of section 5.
    fn mld(&self, dst: Ipv6Addr, group: Ipv6Addr, response_s: u32) -> Vec<u8> {
        let [high, low] = (response_s as u16 * 1000).to_be_bytes();
        let mut message = Vec::from([130, 0, 0, 0, high, low, 0, 0]);
        message.extend(group.octets());
        message.extend([ROBUSTNESS, to_code_8(self.interval_s), 0, 0]);
        let pseudo = pseudo_header(self.ipv6, dst, ICMPV6, message.len());
        let finished = checksum::finish(sum(&message) + pseudo);
        message[2..4].copy_from_slice(&finished.to_be_bytes());

        let mut packet = Vec::from([0x60, 0, 0, 0, 0, 36, 0, 1]);
        packet.extend(self.ipv6.octets());
        packet.extend(dst.octets());
        packet.extend([ICMPV6, 0, 5, 2, 0, 0, 1, 0]);
        packet.extend(message);
        packet
    }
}

/// RFC 1112 section 6.4: the lower 23 bits.
pub(super) fn mac_v4(group: Ipv4Addr) -> MacAddr {
    let [_, b, c, d] = group.octets();
    MacAddr([0x01, 0x00, 0x5e, b & 0x7f, c, d])
}

/// RFC 2464 section 7: the lower 32 bits.
pub(super) fn mac_v6(group: Ipv6Addr) -> MacAddr {
    let [.., a, b, c, d] = group.octets();
    MacAddr([0x33, 0x33, a, b, c, d])
}

fn read_v4(bytes: &[u8], at: usize) -> Option<Ipv4Addr> {
    bytes.get(at..)?.first_chunk().copied().map(Ipv4Addr::from)
}

fn read_v6(bytes: &[u8], at: usize) -> Option<Ipv6Addr> {
    bytes
        .get(at..)?
        .first_chunk::<16>()
        .copied()
        .map(Ipv6Addr::from)
}
