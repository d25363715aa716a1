// SPDX-License-Identifier: MIT OR Apache-2.0
//! What stations behind the tunnel may configure on this machine: nothing, unless the file says so.

use std::net::Ipv4Addr;

use crate::kit::process::{eventually, secs};
use crate::kit::topology::{DEVICE, Pair, Plan, Settings, Site};
use crate::switch::neighbours::arp;

/// A router advertisement (RFC 4861, section 4.2) of fe80::bad: a default route for so many seconds, and
/// a prefix to make addresses of.
pub(crate) fn router_advertisement(lifetime_s: u16) -> Vec<u8> {
    let mut message = vec![134, 0, 0, 0, 64, 0];
    message.extend(lifetime_s.to_be_bytes());
    message.extend([0; 8]);
    // Prefix information: on-link, autonomous, for an hour.
    message.extend([
        3, 4, 64, 0xc0, 0, 0, 0x0e, 0x10, 0, 0, 0x0e, 0x10, 0, 0, 0, 0,
    ]);
    message.extend([0xfd, 0xba, 0xdb, 0xad, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    let mut source = [0; 16];
    source[..2].copy_from_slice(&[0xfe, 0x80]);
    source[14..].copy_from_slice(&[0x0b, 0xad]);
    let mut group = [0; 16];
    (group[0], group[1], group[15]) = (0xff, 0x02, 1);
    let checksum = icmpv6_checksum(source, group, &message);
    message[2..4].copy_from_slice(&checksum.to_be_bytes());

    let mut frame = vec![
        0x33, 0x33, 0, 0, 0, 1, 0x02, 0xba, 0xd0, 0, 0, 1, 0x86, 0xdd,
    ];
    frame.extend([0x60, 0, 0, 0]);
    frame.extend((message.len() as u16).to_be_bytes());
    frame.extend([58, 255]);
    frame.extend(source);
    frame.extend(group);
    frame.extend(message);
    frame
}

fn icmpv6_checksum(source: [u8; 16], destination: [u8; 16], message: &[u8]) -> u16 {
    let length = (message.len() as u32).to_be_bytes();
    let parts = [&source, &destination, &length[..], &[0, 0, 0, 58], message].concat();
    let words = parts
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1]));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// A site whose device is a station by itself, and the other one, where the advertisement is sent.
fn start(device: &'static str) -> Pair {
    let mut pair = Pair::prepare(Plan::default());
    let settings = Settings {
        device,
        ..Settings::default()
    };
    pair.a
        .configure(&settings, &[pair.b.as_peer(Some(pair.b.uplink.v4.into()))]);
    pair.a.leave_bridge_out();
    pair.up();
    for site in [&pair.a, &pair.b] {
        site.wait_state("up", secs(20));
    }
    pair
}

fn routes(site: &Site) -> String {
    site.ns.run(&["ip", "-6", "route", "show", "proto", "ra"])
}

/// Sends the advertisement until `done`, which looks at A, and at least three times. That A answers a
/// question which was asked after an advertisement tells that A has had that one.
fn advertise(pair: &Pair, mut done: impl FnMut() -> bool) {
    let (us, a) = (Ipv4Addr::new(10, 99, 0, 2), Ipv4Addr::new(10, 99, 0, 1));
    let question = arp(pair.at_b.mac, us, a);
    let mut rounds = 0;
    eventually(secs(20), "A has heard the router", || {
        pair.at_b.clear();
        pair.at_b.send(&router_advertisement(1800));
        pair.at_b.send(&question);
        let answered = pair.at_b.wait(secs(1), |seen| {
            seen.iter().any(|arrival| is_answer(&arrival.bytes, a))
        });
        rounds += u32::from(answered);
        (rounds >= 3 && done()).then_some(())
    });
}

/// An ARP reply (RFC 826) of `owner`.
pub(crate) fn is_answer(frame: &[u8], owner: Ipv4Addr) -> bool {
    frame.len() >= 42
        && frame[12..14] == [0x08, 0x06]
        && frame[20..22] == [0, 2]
        && frame[28..32] == owner.octets()
}

#[test]
fn nobody_behind_the_tunnel_configures_this_machine() {
    let pair = start("addresses = [\"10.99.0.1/24\", \"fd99::1/64\"]");
    advertise(&pair, || true);
    assert_eq!(routes(&pair.a), "", "no router, no prefix");
    let addresses = pair.a.ns.run(&["ip", "-6", "addr", "show", "dev", DEVICE]);
    assert!(addresses.contains("fd99::1/64"), "{addresses}");
    assert!(!addresses.contains("fdba:dbad"), "{addresses}");
}

#[test]
fn a_router_behind_the_tunnel_is_accepted_where_the_file_says_so() {
    let pair = start("addresses = [\"10.99.0.1/24\"]\naccept-router-advertisements = true");
    advertise(&pair, || {
        routes(&pair.a).contains("default via fe80::bad dev pc0")
    });
    let addresses = pair.a.ns.run(&["ip", "-6", "addr", "show", "dev", DEVICE]);
    assert!(addresses.contains("fdba:dbad"), "{addresses}");
}
