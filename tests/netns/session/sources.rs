// SPDX-License-Identifier: MIT OR Apache-2.0
//! Answers leave from the address that was called: a caller behind a stateful packet filter, which
//! accepts nothing else, reaches any address of a site.

use std::net::SocketAddr;

use crate::kit::frames::Tally;
use crate::kit::pair::{Pair, Plan};
use crate::kit::process::{eventually, secs};
use crate::kit::site::{Peer, Settings, UDP_PORT};

/// A pair in which B waits for A.
fn waiting(listen: &str) -> Pair {
    Pair::prepare(Plan {
        settings: Settings {
            listen: listen.to_owned(),
            ..Settings::default()
        },
        b_knows_a: false,
        ..Plan::default()
    })
}

/// A accepts only datagrams of its own connections.
fn filter(pair: &Pair) {
    pair.a.ns.nft(
        "table inet stateful {
            chain in {
                type filter hook input priority 0
                iifname wan udp dport 1-65535 ct state established,related accept
                iifname wan meta l4proto udp drop
            }
        }",
    );
}

fn call(pair: &mut Pair, address: &str) {
    let endpoint = SocketAddr::new(address.parse().unwrap(), UDP_PORT);
    let b = Peer {
        endpoint: Some(endpoint.to_string()),
        ..pair.b.as_peer(None)
    };
    pair.a.configure(&pair.settings, &[b]);
    pair.up();
}

/// A calls this address of B, and full frames cross both ways.
fn assert_answers_from(mut pair: Pair, address: &str) {
    filter(&pair);
    call(&mut pair, address);
    pair.connect(secs(20));
    let ways = [
        (pair.there(), &pair.at_a, &pair.at_b),
        (pair.back(), &pair.at_b, &pair.at_a),
    ];
    for (flow, from, to) in ways {
        for number in 0..100 {
            from.send(&flow.frame(number, 1514));
            assert!(flow.wait_number(to, number, secs(10)), "{number}");
        }
        assert_eq!(flow.tally(to, 100), Tally::perfect(100));
    }
    let endpoint = pair.a.peer().endpoint.expect("it was called");
    assert!(endpoint.contains(address), "{endpoint}");
}

#[test]
fn a_secondary_address_answers() {
    for listen in ["[::]:51830", "0.0.0.0:51830"] {
        let pair = waiting(listen);
        pair.b.ns.ip("addr add 198.18.2.99/24 dev wan");
        assert_answers_from(pair, "198.18.2.99");
    }
}

#[test]
fn a_secondary_ipv6_address_answers() {
    let pair = waiting("[::]:51830");
    // The kernel would not choose it.
    pair.b
        .ns
        .ip("addr add fd18:2::99/64 dev wan nodad preferred_lft 0");
    assert_answers_from(pair, "fd18:2::99");
}

#[test]
fn an_address_of_the_loopback_interface_answers() {
    let pair = waiting("[::]:51830");
    pair.b
        .ns
        .ip("link set lo up\naddr add 198.19.0.1/32 dev lo");
    pair.internet
        .ns
        .ip("route add 198.19.0.1/32 via 198.18.2.2");
    assert_answers_from(pair, "198.19.0.1");
}

/// The router of each uplink refuses addresses of the other.
#[test]
fn a_second_uplink_answers_by_itself() {
    let pair = waiting("[::]:51830");
    let pid = pair.b.ns.pid();
    pair.internet.ns.ip(&format!(
        "link add to9 type veth peer name wan2 netns {pid}\nlink set to9 up\naddr add 198.18.9.1/24 dev to9"
    ));
    pair.b.ns.ip(
        "link set wan2 up\naddr add 198.18.9.2/24 dev wan2\nroute add default via 198.18.9.1 dev wan2 metric 500",
    );
    let strict = "echo 1 > /proc/sys/net/ipv4/conf/all/rp_filter";
    pair.internet.ns.run(&["sh", "-c", strict]);
    assert_answers_from(pair, "198.18.9.2");
}

#[test]
fn an_address_that_goes_away_is_replaced_by_another() {
    let mut pair = waiting("[::]:51830");
    pair.b.ns.ip("addr add 198.18.2.99/24 dev wan");
    call(&mut pair, "198.18.2.99");
    pair.connect(secs(20));
    pair.b.ns.ip("addr del 198.18.2.99/24 dev wan");
    // There is no filter here: A receives datagrams from B's other address, and follows.
    eventually(secs(20), "B speaks from its other address", || {
        pair.at_b.send(&pair.back().frame(0, 100));
        let endpoint = pair.a.peer().endpoint?;
        endpoint.contains("198.18.2.2").then_some(())
    });
    pair.connect(secs(20));
}
