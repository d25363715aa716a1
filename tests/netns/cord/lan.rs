// SPDX-License-Identifier: MIT OR Apache-2.0
//! The usual traffic of a LAN crosses the cord: real hosts, real programs.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, SockRef, Socket, Type};

use crate::kit::cable::VlanHost;
use crate::kit::dhcp::{dhcp_lease, dhcp_server};
use crate::kit::pair::{Pair, Plan};
use crate::kit::process::{millis, secs};
use crate::kit::site::{BRIDGE, DEVICE};
use crate::kit::topology::Host;
use crate::kit::traffic::{iperf, pings, resolves};

/// Two hosts at each site.
struct Lan {
    a: [Host; 2],
    b: [Host; 2],
    pair: Pair,
}

impl Lan {
    fn start() -> Self {
        let pair = Pair::start(Plan::default());
        Self {
            a: [1, 2].map(|k| pair.a.host(k)),
            b: [1, 2].map(|k| pair.b.host(k)),
            pair,
        }
    }
}

#[test]
fn arp_resolves_across() {
    let lan = Lan::start();
    resolves(&lan.a[0], &lan.b[0].v4.to_string(), lan.b[0].mac);
    resolves(&lan.b[1], &lan.a[1].v4.to_string(), lan.a[1].mac);
}

#[test]
fn ipv6_neighbours_are_discovered_across() {
    let lan = Lan::start();
    for (from, to) in [(&lan.a[0], &lan.b[0]), (&lan.b[1], &lan.a[1])] {
        resolves(from, &to.link_local().to_string(), to.mac);
        resolves(from, &to.v6.to_string(), to.mac);
    }
}

#[test]
fn ping_loses_nothing_and_full_size_packets_need_no_fragmentation() {
    let lan = Lan::start();
    for (from, to) in [(&lan.a[0], &lan.b[0]), (&lan.b[1], &lan.a[1])] {
        let target = to.v4.to_string();
        for size in [56, 1472] {
            pings(from, &target, 20, size);
        }
    }
}

#[test]
fn dhcp_leases_an_address_across() {
    let lan = Lan::start();
    let (server, client) = (&lan.a[0], &lan.b[0]);
    let dir = lan.pair.sandbox.path();
    let _dnsmasq = dhcp_server(server, dir, 1);
    let (address, by) = dhcp_lease(client, dir).expect("a lease");
    assert!(address.starts_with("10.77.1.1"), "leased {address}");
    assert_eq!(by, server.v4.to_string());
}

/// The datagrams of one test: a name, a destination, and whether a listener must join it.
const GROUPS: [(&str, SocketAddr); 5] = [
    ("limited broadcast", v4(Ipv4Addr::BROADCAST)),
    ("subnet broadcast", v4(Ipv4Addr::new(10, 77, 255, 255))),
    ("224.0.0.x", v4(Ipv4Addr::new(224, 0, 0, 199))),
    ("239.x", v4(Ipv4Addr::new(239, 1, 2, 3))),
    (
        "ff02::",
        SocketAddr::new(
            std::net::IpAddr::V6(Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0x4242)),
            GROUP_PORT,
        ),
    ),
];
const GROUP_PORT: u16 = 7100;

const fn v4(address: Ipv4Addr) -> SocketAddr {
    SocketAddr::new(std::net::IpAddr::V4(address), GROUP_PORT)
}

struct Listener {
    sockets: [UdpSocket; 2],
    counts: BTreeMap<String, u32>,
}

impl Listener {
    fn on(host: &Host) -> Self {
        let index = eth0_index(host);
        let sockets = host.ns.enter(|| {
            let four = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, GROUP_PORT)).unwrap();
            let six = Socket::new(Domain::IPV6, Type::DGRAM, Some(Protocol::UDP)).unwrap();
            six.set_only_v6(true).unwrap();
            six.bind(&SocketAddr::from((Ipv6Addr::UNSPECIFIED, GROUP_PORT)).into())
                .unwrap();
            let six = UdpSocket::from(six);
            for (_, group) in GROUPS {
                match group.ip() {
                    std::net::IpAddr::V4(ip) if ip.is_multicast() => {
                        four.join_multicast_v4(&ip, &host.v4).unwrap()
                    }
                    std::net::IpAddr::V4(_) => {}
                    std::net::IpAddr::V6(ip) => six.join_multicast_v6(&ip, index).unwrap(),
                }
            }
            [four, six]
        });
        for socket in &sockets {
            socket.set_read_timeout(Some(millis(5))).unwrap();
        }
        Self {
            sockets,
            counts: BTreeMap::new(),
        }
    }

    /// Counts arrivals: until all datagrams came, and for half a second more, which shows second
    /// copies.
    fn listen(mut self, limit: Duration) -> BTreeMap<String, u32> {
        let mut deadline = Instant::now() + limit;
        let mut complete = false;
        let mut buffer = [0; 2048];
        while Instant::now() < deadline {
            for socket in &self.sockets {
                if let Ok(len) = socket.recv(&mut buffer) {
                    let label = String::from_utf8_lossy(&buffer[..len]).into_owned();
                    *self.counts.entry(label).or_default() += 1;
                }
            }
            if !complete && self.counts.len() == GROUPS.len() {
                complete = true;
                deadline = Instant::now() + millis(500);
            }
        }
        self.counts
    }
}

fn eth0_index(host: &Host) -> u32 {
    host.ns
        .run(&["cat", "/sys/class/net/eth0/ifindex"])
        .trim()
        .parse()
        .unwrap()
}

fn send_to_groups(host: &Host) {
    let index = eth0_index(host);
    host.ns.enter(|| {
        let four = UdpSocket::bind((host.v4, 0)).unwrap();
        four.set_broadcast(true).unwrap();
        SockRef::from(&four).set_multicast_if_v4(&host.v4).unwrap();
        let six = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).unwrap();
        SockRef::from(&six).set_multicast_if_v6(index).unwrap();
        for (label, group) in GROUPS {
            let socket = if group.is_ipv4() { &four } else { &six };
            socket.send_to(label.as_bytes(), group).unwrap();
        }
    });
}

#[test]
fn broadcast_and_multicast_reach_every_host_once() {
    let lan = Lan::start();
    let once: BTreeMap<_, _> = GROUPS
        .iter()
        .map(|(label, _)| ((*label).to_owned(), 1))
        .collect();
    for (sender, others) in [
        (&lan.a[0], [&lan.a[1], &lan.b[0], &lan.b[1]]),
        (&lan.b[1], [&lan.b[0], &lan.a[0], &lan.a[1]]),
    ] {
        let listeners = others.map(Listener::on);
        let heard = thread::scope(|scope| {
            let heard = listeners.map(|listener| scope.spawn(|| listener.listen(secs(4))));
            send_to_groups(sender);
            heard.map(|thread| thread.join().unwrap())
        });
        for (host, heard) in others.iter().zip(heard) {
            assert_eq!(
                heard, once,
                "{} heard from {}",
                host.ns.name, sender.ns.name
            );
        }
    }
}

#[test]
fn tagged_hosts_reach_each_other_in_their_vlan() {
    let lan = Lan::start();
    let vlans = [
        VlanHost::new(&lan.a[0].ns, &lan.pair.a.ns, BRIDGE, "trunk", 42),
        VlanHost::new(&lan.b[0].ns, &lan.pair.b.ns, BRIDGE, "trunk", 42),
    ];
    for (host, address) in [(&lan.a[0], "10.42.0.1/24"), (&lan.b[0], "10.42.0.2/24")] {
        host.ns.ip(&format!("addr add {address} dev vlan"));
    }
    let dump = lan.pair.sandbox.path().join("tcpdump.log");
    let mut tcpdump = lan.pair.b.ns.spawn(
        &dump,
        &["tcpdump", "-l", "-nne", "-i", DEVICE, "vlan 42 and icmp"],
    );
    tcpdump.wait_for("listening on", secs(20));
    for size in [56, 1472] {
        pings(&lan.a[0], "10.42.0.2", 5, size);
    }
    tcpdump.wait_for("vlan 42", secs(20));
    // An untagged host on the same bridge does not hear them.
    lan.b[1].ns.ip("addr add 10.42.0.3/24 dev eth0");
    assert!(
        !lan.a[0]
            .ns
            .succeeds(&["ping", "-c", "2", "-i", "0.1", "-W", "1", "10.42.0.3"])
    );
    drop(vlans);
}

#[test]
fn tcp_moves_data_both_ways() {
    let lan = Lan::start();
    for reverse in [false, true] {
        let arguments: &[_] = if reverse { &["--reverse"] } else { &[] };
        let rate = iperf(lan.pair.sandbox.path(), &lan.a[0], &lan.b[0], arguments);
        assert!(rate > 1e6, "{rate} bit/s, reverse: {reverse}");
    }
}
