// SPDX-License-Identifier: MIT OR Apache-2.0
//! ARP and neighbour discovery: claims to addresses, requests for them, and answers on behalf of
//! owners.
//!
//! RFC 826 and 5227; RFC 4861 sections 4.3, 4.4 and 7.1. Only messages that a careful receiver
//! would accept are read. If the Ethernet source and the address in the message differ, the sender
//! speaks for another station: nothing is learned from that, but it may show that a binding is
//! outdated.

use alloc::vec::Vec;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::checksum::{self, pseudo_header, sum};
use crate::ether_type::{ARP, IPV6};
use crate::ethernet::{Headers, MIN_FRAME_LEN, Payload};
use crate::inspect::ARP_LEN;
use crate::ip::{Chain, Ipv6};
use crate::ip_protocol::ICMPV6;
use crate::mac::MacAddr;

/// The useful parts of a message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Message {
    pub(super) claim: Option<Claim>,
    pub(super) question: Option<Question>,
}

/// A station says that an address is its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Claim {
    pub(super) address: IpAddr,
    pub(super) mac: MacAddr,
    /// `None` if the message does not say.
    pub(super) is_router: Option<bool>,
    pub(super) force: Force,
}

/// How much a claim counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Force {
    /// Against what was known before, too.
    Overrides,
    /// Where it agrees; otherwise nothing is certain any more. A station that shares an address
    /// with others claims no more (RFC 4861 section 7.2.7), and a request does not tell whether its
    /// sender is a router.
    Agrees,
    /// Only against: the message is from another station than it speaks of, or is signed, which an
    /// answer on its behalf would not be.
    Disagrees,
}

/// A station asks everyone for the owner of an address, in order to talk to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Question {
    pub(super) target: IpAddr,
    pub(super) asker: IpAddr,
    pub(super) asker_mac: MacAddr,
}

impl Message {
    /// Parses what follows the tags of a frame; `None` if nothing there is of use.
    pub(super) fn parse(headers: &Headers<'_>) -> Option<Self> {
        let (dst, src) = (headers.dst(), headers.src());
        if !src.is_station() {
            return None;
        }
        match headers.payload()? {
            Payload::Typed(ARP, message) => Self::parse_arp(dst, src, message),
            Payload::Typed(IPV6, packet) => Self::parse_ipv6(dst, src, &Ipv6::parse(packet)?),
            _ => None,
        }
    }

    fn parse_arp(dst: MacAddr, src: MacAddr, message: &[u8]) -> Option<Self> {
        let message = message.first_chunk::<ARP_LEN>()?;
        let [0, 1, 8, 0, 6, 4, 0, operation @ (1 | 2), fields @ ..] = message else {
            return None;
        };
        let (sender_mac, fields) = fields.split_first_chunk()?;
        let (sender, fields) = fields.split_first_chunk::<4>()?;
        let target = fields.last_chunk::<4>()?;
        let is_own = MacAddr(*sender_mac) == src;
        let (sender, target) = (Ipv4Addr::from(*sender), Ipv4Addr::from(*target));
        let claim = is_station_v4(sender).then_some(Claim {
            address: sender.into(),
            mac: MacAddr(*sender_mac),
            is_router: Some(false),
            force: if is_own {
                Force::Overrides
            } else {
                Force::Disagrees
            },
        });
        // From the unspecified address it is a probe (RFC 5227 section 1.1), for the sender's own
        // address an announcement, and to one station a test whether it is still there.
        let asks = *operation == 1 && is_own && dst.is_broadcast() && sender != target;
        let question = (asks && claim.is_some() && is_station_v4(target)).then_some(Question {
            target: target.into(),
            asker: sender.into(),
            asker_mac: src,
        });
        Some(Self { claim, question })
    }

    fn parse_ipv6(dst: MacAddr, src: MacAddr, packet: &Ipv6<'_>) -> Option<Self> {
        let Chain::Upper(upper) = packet.chain() else {
            return None;
        };
        // RFC 4861 sections 7.1.1 and 7.1.2; fragments are ignored, RFC 6980.
        let message = upper.payload;
        let is_near = packet.hop_limit() == 255 && !upper.is_extended;
        let is_right = upper.protocol == ICMPV6 && packet.is_sum_right(ICMPV6, message);
        if !is_near || !is_right {
            return None;
        }
        let (head, rest) = message.split_first_chunk::<8>()?;
        let (target, options) = rest.split_first_chunk::<16>()?;
        let target = Ipv6Addr::from(*target);
        if !is_station_v6(target) {
            return None;
        }
        match head {
            [135, 0, ..] => Self::parse_solicitation(dst, src, packet, target, options),
            [136, 0, _, _, flags, ..] => {
                Self::parse_advertisement(src, packet, target, *flags, options)
            }
            _ => None,
        }
    }

    fn parse_solicitation(
        dst: MacAddr,
        src: MacAddr,
        packet: &Ipv6<'_>,
        target: Ipv6Addr,
        options: &[u8],
    ) -> Option<Self> {
        let asker = packet.src();
        // From the unspecified address it is a probe for duplicates (RFC 4862 section 5.4), and to
        // one station a test whether it is still there.
        let asks = is_station_v6(asker) && asker != target;
        let asks_everyone = packet.dst().is_multicast() && dst.is_group();
        let link = Link::of(options, SOURCE)?;
        let is_own = link.is_of(src);
        let question = (asks && asks_everyone && is_own).then_some(Question {
            target: target.into(),
            asker: asker.into(),
            asker_mac: src,
        });
        let claim = is_station_v6(asker).then_some(Claim {
            address: asker.into(),
            mac: link.mac,
            is_router: None,
            force: if is_own {
                Force::Agrees
            } else {
                Force::Disagrees
            },
        });
        Some(Self { claim, question })
    }

    fn parse_advertisement(
        src: MacAddr,
        packet: &Ipv6<'_>,
        target: Ipv6Addr,
        flags: u8,
        options: &[u8],
    ) -> Option<Self> {
        let is_solicited = flags & SOLICITED != 0;
        let link = Link::of(options, TARGET)?;
        if !is_station_v6(packet.src()) || packet.dst().is_multicast() && is_solicited {
            return None;
        }
        let claim = Some(Claim {
            address: target.into(),
            mac: link.mac,
            is_router: Some(flags & ROUTER != 0),
            force: match link.is_of(src) {
                true if flags & OVERRIDE != 0 => Force::Overrides,
                true => Force::Agrees,
                false => Force::Disagrees,
            },
        });
        Some(Self {
            claim,
            question: None,
        })
    }
}

/// Flags of an advertisement.
const ROUTER: u8 = 0x80;
const SOLICITED: u8 = 0x40;
const OVERRIDE: u8 = 0x20;

/// Options, RFC 4861 section 4.6.1.
const SOURCE: u8 = 1;
const TARGET: u8 = 2;
/// Those of secure neighbour discovery, RFC 3971 section 5: only the owner can sign an answer.
const CGA: u8 = 11;
const SIGNATURE: u8 = 12;

/// The link-layer address among the options.
struct Link {
    mac: MacAddr,
    is_signed: bool,
}

impl Link {
    /// `None` without one, or if the message is to be ignored.
    fn of(mut options: &[u8], wanted: u8) -> Option<Self> {
        let (mut found, mut is_signed) = (None, false);
        // Each iteration takes at least eight bytes off.
        while let [kind, units, ..] = *options {
            let len = usize::from(units) * 8;
            let option = options.get(..len).filter(|option| !option.is_empty())?;
            match kind {
                CGA | SIGNATURE => is_signed = true,
                _ if kind == wanted => found = option[2..].first_chunk().copied().map(MacAddr),
                _ => {}
            }
            options = &options[len..];
        }
        let mac = found.filter(|_| options.is_empty())?;
        Some(Self { mac, is_signed })
    }

    /// Whether a station speaks for itself, without a signature, so that another could answer for
    /// it.
    fn is_of(&self, station: MacAddr) -> bool {
        self.mac == station && !self.is_signed
    }
}

/// Whether a station may have the address.
fn is_station_v4(address: Ipv4Addr) -> bool {
    !address.is_unspecified()
        && !address.is_broadcast()
        && !address.is_multicast()
        && !address.is_loopback()
}

fn is_station_v6(address: Ipv6Addr) -> bool {
    !address.is_unspecified() && !address.is_multicast() && !address.is_loopback()
}

impl Question {
    /// The answer that the owner would give: a whole frame, tagged like the request.
    ///
    /// `headers` are those of the request.
    pub(super) fn answer(
        &self,
        mac: MacAddr,
        is_router: bool,
        headers: &Headers<'_>,
    ) -> Option<Vec<u8>> {
        let Payload::Typed(_, payload) = headers.payload()? else {
            return None;
        };
        let mut answer = Vec::with_capacity(100);
        answer.extend(self.asker_mac.0);
        answer.extend(mac.0);
        answer.extend(headers.tags_and_type(payload)?);
        match (self.target, self.asker) {
            (IpAddr::V4(target), IpAddr::V4(asker)) => {
                answer.extend([0, 1, 8, 0, 6, 4, 0, 2]);
                answer.extend(mac.0);
                answer.extend(target.octets());
                answer.extend(self.asker_mac.0);
                answer.extend(asker.octets());
            }
            (IpAddr::V6(target), IpAddr::V6(asker)) => {
                answer.extend(advertisement(target, asker, mac, is_router));
            }
            _ => return None,
        }
        answer.resize(answer.len().max(MIN_FRAME_LEN), 0);
        Some(answer)
    }
}

/// RFC 4861 section 7.2.4.
fn advertisement(target: Ipv6Addr, asker: Ipv6Addr, mac: MacAddr, is_router: bool) -> Vec<u8> {
    let router = if is_router { ROUTER } else { 0 };
    let mut message = Vec::from([136, 0, 0, 0, router | SOLICITED | OVERRIDE, 0, 0, 0]);
    message.extend(target.octets());
    message.extend([TARGET, 1]);
    message.extend(mac.0);
    let pseudo = pseudo_header(target, asker, ICMPV6, message.len());
    let finished = checksum::finish(sum(&message) + pseudo);
    message[2..4].copy_from_slice(&finished.to_be_bytes());

    let mut packet = Vec::from([0x60, 0, 0, 0, 0, 32, ICMPV6, 255]);
    packet.extend(target.octets());
    packet.extend(asker.octets());
    packet.extend(message);
    packet
}
