// SPDX-License-Identifier: MIT OR Apache-2.0
//! With `tcp-mss = "path"` the hosts of both sites send segments that fit one datagram each.

use std::net::{TcpListener, TcpStream};

use nix::sys::socket::{getsockopt, sockopt};

use crate::kit::pair::{Pair, Plan};
use crate::kit::process::{eventually, secs};
use crate::kit::site::{Settings, Site};
use crate::kit::topology::Host;
use crate::kit::traffic::{Ip, assert_checksums, assert_exact, assert_nothing_refused};

/// The payload of a full segment, by the kernel at either end of a connection.
fn segment_sizes(from: &Host, to: &Host, ip: Ip) -> [u32; 2] {
    let listener = to.ns.enter(|| TcpListener::bind(ip.of(to, 7300)).unwrap());
    let near = from
        .ns
        .enter(|| TcpStream::connect(ip.of(to, 7300)))
        .expect("TCP connects");
    let (far, _) = listener.accept().unwrap();
    [near, far].map(|stream| getsockopt(&stream, sockopt::TcpMaxSeg).unwrap())
}

fn settle(site: &Site) {
    eventually(secs(20), "the path MTU is found", || {
        (site.peer().path_mtu == Some(1500)).then_some(())
    });
}

/// Starts two sites, the first of them with these lines in `[tunnel]`.
fn start(tunnel: &'static str, device: [&'static str; 2]) -> Pair {
    let mut pair = Pair::prepare(Plan::default());
    for (site, other, tunnel, device) in [
        (&pair.a, &pair.b, tunnel, device[0]),
        (&pair.b, &pair.a, "", device[1]),
    ] {
        let settings = Settings {
            tunnel,
            device,
            ..Settings::default()
        };
        site.configure(&settings, &[other.as_peer(Some(other.uplink.v4.into()))]);
    }
    pair.up();
    pair.connect(secs(10));
    settle(&pair.a);
    settle(&pair.b);
    pair
}

fn assert_sizes(pair: &Pair, v4: u32, v6: u32) {
    let (a, b) = (pair.a.host(1), pair.b.host(1));
    for (ip, size) in [(Ip::V4, v4), (Ip::V6, v6)] {
        for (from, to) in [(&a, &b), (&b, &a)] {
            assert_eq!(segment_sizes(from, to, ip), [size; 2]);
        }
    }
    assert_exact(&a, &b, 8);
    assert_checksums(&[&a.ns, &b.ns]);
    assert_nothing_refused(&[&pair.a, &pair.b]);
}

// A timestamp takes 12 bytes of each segment.

#[test]
fn segments_fit_one_datagram_if_one_site_asks_for_it() {
    let pair = start("tcp-mss = \"path\"", [""; 2]);
    assert_sizes(&pair, 1383 - 12, 1363 - 12);
}

#[test]
fn segments_fit_one_datagram_on_a_wire_and_without_offloads() {
    let pair = start(
        "tcp-mss = \"path\"",
        ["mode = \"wire\"\nbackend = \"plain\"", "mode = \"wire\""],
    );
    assert_sizes(&pair, 1383 - 12, 1363 - 12);
}

#[test]
fn segments_keep_their_size_unless_asked() {
    assert_sizes(&start("", [""; 2]), 1460 - 12, 1440 - 12);
}
