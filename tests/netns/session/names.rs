// SPDX-License-Identifier: MIT OR Apache-2.0
//! Peers by name: a tunnel whose name servers do not answer.

use std::fs;
use std::net::{Ipv4Addr, UdpSocket};
use std::thread;

use crate::kit::pair::{Pair, Plan};
use crate::kit::process::{eventually, secs};
use crate::kit::site::{Peer, Site, patchcord};

/// A name server that swallows queries: a dead neighbour on the uplink, whose link-layer address is
/// known all the same.
fn hole(site: &Site, last: u8) -> Ipv4Addr {
    let address = site.uplink.other_v4(last);
    site.ns.ip(&format!(
        "neigh add {address} lladdr 02:00:00:00:de:ad dev wan nud permanent"
    ));
    address
}

fn point_to_holes(site: &Site) {
    let servers = [77, 78, 79].map(|last| format!("nameserver {}\n", hole(site, last)));
    set_name_servers(site, &servers.concat());
}

/// In the mount namespace of the site only.
fn set_name_servers(site: &Site, text: &str) {
    let script = "set -e; printf '%s' \"$0\" > /run/resolv.conf
        mount --bind /run/resolv.conf \"$(readlink -f /etc/resolv.conf)\"";
    site.ns.run(&["sh", "-c", script, text]);
}

fn by_name(site: &Site, number: usize) -> Peer {
    Peer {
        name: format!("peer{number}"),
        public_key: patchcord(&["pubkey"], &patchcord(&["genkey"], ""))
            .trim()
            .to_owned(),
        endpoint: Some(format!("site{number}.example:51830")),
        ..site.as_peer(None)
    }
}

fn threads(pid: u32) -> usize {
    let tasks = fs::read_dir(format!("/proc/{pid}/task"));
    tasks.map_or(0, Iterator::count)
}

/// With peers whose names no server resolves.
fn start_in_an_outage(pair: &mut Pair, peers: usize) {
    point_to_holes(&pair.a);
    let peers: Vec<_> = (0..peers).map(|number| by_name(&pair.b, number)).collect();
    pair.a.configure(&pair.settings, &peers);
    pair.a.up().wait_for("ready", secs(20));
    // By now it waits for name servers.
    pair.a.process().wait_for("cannot be resolved", secs(60));
}

#[test]
fn a_name_server_that_does_not_answer_does_not_hold_up_the_end() {
    let mut pair = Pair::prepare(Plan::default());
    start_in_an_outage(&mut pair, 1);
    let output = pair.a.patchcord(&["down", &pair.a.tunnel]);
    assert!(output.status.success(), "{output:?}");
    // Three servers take their time: 30 s and more.
    let status = pair.a.process().wait_exit(secs(15));
    assert!(status.success(), "up ended with {status}");
}

#[test]
fn many_names_in_an_outage_take_few_threads() {
    let mut pair = Pair::prepare(Plan::default());
    let names = 60;
    start_in_an_outage(&mut pair, names);
    let pid = pair.a.process().pid();
    eventually(secs(60), "every peer is known to have no address", || {
        let log = pair.a.process().log();
        (log.matches("cannot be resolved").count() >= names).then_some(())
    });
    // A thread per look-up would make at least that many.
    assert!(threads(pid) < names / 2, "{} threads", threads(pid));
    pair.a.terminate();
}

/// Gives every name this address, and answers until the test ends.
fn serve_names(server: &Site, address: Ipv4Addr) {
    let socket = server.ns.enter(|| UdpSocket::bind((address, 53)).unwrap());
    thread::spawn(move || {
        let mut query = [0; 512];
        while let Ok((len, from)) = socket.recv_from(&mut query) {
            let _ = socket.send_to(&answer(&query[..len], address), from);
        }
    });
}

/// Answers a query for an IPv4 address with this one, any other with none (RFC 1035, section 4.1).
fn answer(query: &[u8], address: Ipv4Addr) -> Vec<u8> {
    let labels = query[12..].iter().position(|&byte| byte == 0).unwrap();
    let question = &query[12..12 + labels + 5];
    let is_ipv4 = question[labels + 1..][..2] == [0, 1];
    let mut answer = [
        &query[..2],
        &[0x81, 0x80, 0, 1, 0, is_ipv4.into(), 0, 0, 0, 0],
    ]
    .concat();
    answer.extend_from_slice(question);
    if is_ipv4 {
        // The name of the question, type A, class IN, for 60 s.
        answer.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
        answer.extend_from_slice(&address.octets());
    }
    answer
}

#[test]
fn a_dead_name_server_before_one_that_works_costs_time_and_not_the_peer() {
    let mut pair = Pair::prepare(Plan {
        b_knows_a: false,
        ..Plan::default()
    });
    let peer = Peer {
        endpoint: Some("site2.example:51830".to_owned()),
        ..pair.b.as_peer(None)
    };
    pair.a.configure(&pair.settings, &[peer]);
    let (dead, alive) = (hole(&pair.a, 77), pair.b.uplink.v4);
    serve_names(&pair.b, alive);
    set_name_servers(&pair.a, &format!("nameserver {dead}\nnameserver {alive}\n"));
    pair.up();
    pair.connect(secs(60));
}
