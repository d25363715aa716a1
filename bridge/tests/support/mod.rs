// SPDX-License-Identifier: MIT OR Apache-2.0
//! Frames as hosts and routers send them.
#![allow(dead_code, reason = "each test uses some of them")]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use patchcord_bridge::Headers;

pub(crate) const STATION: [u8; 6] = [2, 0, 0, 0, 0, 1];

/// The headers of a frame that has them.
pub(crate) fn headers(frame: &[u8]) -> Headers<'_> {
    Headers::parse(frame).expect("a frame with headers")
}

/// An IGMP message from `src` to `dst`; its checksum is filled in.
pub(crate) fn igmp(src: &str, dst: Ipv4Addr, message: &[u8]) -> Vec<u8> {
    let message = with_checksum(message, 0);
    let [_, b, c, d] = dst.octets();
    let packet = ipv4(v4(src), dst, 2, &message);
    ethernet([0x01, 0, 0x5e, b & 0x7f, c, d], 0x0800, &packet)
}

/// An IPv4 packet with the router alert option.
pub(crate) fn ipv4(src: Ipv4Addr, dst: Ipv4Addr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let [high, low] = (24 + payload.len() as u16).to_be_bytes();
    let mut header = vec![0x46, 0xc0, high, low, 0, 0, 0, 0, 1, protocol, 0, 0];
    header.extend(src.octets());
    header.extend(dst.octets());
    header.extend([0x94, 4, 0, 0]);
    let sum = !fold(sum(&header)) as u16;
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    [&header[..], payload].concat()
}

/// An MLD message from `src` to `dst`, behind the router alert option; its checksum is filled in.
pub(crate) fn mld(src: &str, dst: Ipv6Addr, message: &[u8]) -> Vec<u8> {
    let message = with_checksum(message, pseudo_header(v6(src), dst, 58, message.len()));
    let payload = [&[58, 0, 5, 2, 0, 0, 1, 0], &message[..]].concat();
    let [.., a, b, c, d] = dst.octets();
    let packet = ipv6(v6(src), dst, 0, 1, &payload);
    ethernet([0x33, 0x33, a, b, c, d], 0x86dd, &packet)
}

pub(crate) fn ipv6(src: Ipv6Addr, dst: Ipv6Addr, next: u8, hops: u8, payload: &[u8]) -> Vec<u8> {
    let [high, low] = (payload.len() as u16).to_be_bytes();
    let head = [0x60, 0, 0, 0, high, low, next, hops];
    [&head[..], &src.octets(), &dst.octets(), payload].concat()
}

/// A frame of at least 60 bytes.
pub(crate) fn ethernet(dst: [u8; 6], ether_type: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = [&dst[..], &STATION, &ether_type.to_be_bytes(), payload].concat();
    frame.resize(frame.len().max(60), 0);
    frame
}

pub(crate) fn tagged(frame: &[u8], tags: &[u8]) -> Vec<u8> {
    [&frame[..12], tags, &frame[12..]].concat()
}

/// Fills in bytes 2 and 3.
pub(crate) fn with_checksum(message: &[u8], start: u32) -> Vec<u8> {
    let mut message = message.to_vec();
    message[2..4].fill(0);
    let sum = !fold(start + sum(&message)) as u16;
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    message
}

pub(crate) fn pseudo_header(src: Ipv6Addr, dst: Ipv6Addr, next: u8, len: usize) -> u32 {
    sum(&src.octets()) + sum(&dst.octets()) + u32::from(next) + len as u32
}

/// As RFC 1071 says it, word by word.
pub(crate) fn sum(bytes: &[u8]) -> u32 {
    let word = |pair: &[u8]| u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |&low| u32::from(low));
    bytes.chunks(2).map(word).sum()
}

pub(crate) fn fold(sum: u32) -> u32 {
    let folded = (sum & 0xffff) + (sum >> 16);
    (folded & 0xffff) + (folded >> 16)
}

pub(crate) fn v4(text: &str) -> Ipv4Addr {
    text.parse().expect("an IPv4 address")
}

pub(crate) fn v6(text: &str) -> Ipv6Addr {
    text.parse().expect("an IPv6 address")
}

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().expect("an IP address")
}
