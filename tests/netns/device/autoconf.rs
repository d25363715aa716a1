// SPDX-License-Identifier: MIT OR Apache-2.0
//! Stations behind the tunnel may configure nothing on this machine, unless the file allows it.

use std::net::Ipv4Addr;

use crate::kit::packets::{arp, is_answer, router_advertisement};
use crate::kit::pair::{Pair, Plan};
use crate::kit::process::{eventually, secs};
use crate::kit::site::{DEVICE, Settings, Site};

/// A site whose device is a station by itself, and the other one, which sends the advertisement.
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

/// Sends the advertisement at least three times, and until `done`, which looks at A. A's answer to a
/// request that was sent after an advertisement proves that A has received that one.
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

#[test]
fn stations_behind_the_tunnel_configure_nothing_here() {
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
