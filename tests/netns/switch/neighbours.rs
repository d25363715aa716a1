// SPDX-License-Identifier: MIT OR Apache-2.0
//! Neighbour suppression: requests with known answers do not cross, all others do.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::kit::cable::{Arrival, Cable};
use crate::kit::frames::Mac;
use crate::kit::packets::{advertisement, arp, solicitation};
use crate::kit::pair::{Pair, Ports, connect};
use crate::kit::process::{eventually, millis, secs};
use crate::kit::site::Settings;
use crate::kit::sites::Sites;
use crate::kit::topology::{Host, mac};
use crate::kit::traffic::resolves;

const SUPPRESS: Ports = Ports {
    device: "neighbour-suppression = true",
    peer: "neighbour-suppression = true",
};

/// A host at each site, and the addresses of B's host.
struct Lan {
    a: Host,
    b: Host,
    pair: Pair,
}

impl Lan {
    fn start() -> Self {
        let pair = Pair::start_with_ports([SUPPRESS; 2]);
        let (a, b) = (pair.a.host(1), pair.b.host(1));
        for host in [&a, &b] {
            // Announces a change of its address.
            host.ns
                .run(&["sysctl", "-qw", "net.ipv4.conf.eth0.arp_notify=1"]);
            host.ns
                .run(&["sysctl", "-qw", "net.ipv6.conf.eth0.ndisc_notify=1"]);
        }
        pair.connect(secs(10));
        eventually(secs(10), "hosts reach each other", || {
            let ping = ["ping", "-c1", "-W1", &b.v4.to_string()].map(str::to_owned);
            a.ns.succeeds(&ping.each_ref().map(String::as_str))
                .then_some(())
        });
        Self { a, b, pair }
    }

    fn targets(&self) -> [IpAddr; 3] {
        let b = &self.b;
        [b.v4.into(), b.v6.into(), b.link_local().into()]
    }

    /// A resolves B's host, and gets `mac`: returns how many requests came to B.
    fn questions(&self, target: IpAddr, owner: Mac) -> usize {
        self.pair.at_b.clear();
        resolves(&self.a, &target.to_string(), owner);
        fence(&self.pair.at_a, &self.pair.at_b);
        asked(&self.pair.at_b, self.a.mac, target)
    }
}

/// Every frame that was sent before has arrived, or is lost.
fn fence(from: &Cable, to: &Cable) {
    // Requests take the slow path, so a broadcast may overtake one.
    for _ in 0..2 {
        connect(from, to, secs(20));
        std::thread::sleep(millis(50));
    }
}

/// How many requests of a station for an address came out of a cable.
fn asked(cable: &Cable, asker: Mac, target: IpAddr) -> usize {
    let is_question = |it: &&Arrival| {
        let bytes = &it.bytes;
        bytes.get(6..12) == Some(&asker[..])
            && match target {
                IpAddr::V4(target) => {
                    bytes[12..14] == [8, 6]
                        && bytes[20..22] == [0, 1]
                        && bytes[38..42] == target.octets()
                }
                IpAddr::V6(target) => {
                    bytes[12..14] == [0x86, 0xdd]
                        && bytes[20] == 58
                        && bytes[54] == 135
                        && bytes[62..78] == target.octets()
                }
            }
    };
    cable.with_arrivals(|all| all.iter().filter(is_question).count())
}

#[test]
fn questions_with_known_answers_stay_at_their_site() {
    let lan = Lan::start();
    for target in lan.targets() {
        lan.a.ns.ip("neigh flush dev eth0");
        // The switch learns it from the first one.
        resolves(&lan.a, &target.to_string(), lan.b.mac);
        for _ in 0..3 {
            assert_eq!(lan.questions(target, lan.b.mac), 0, "{target}");
        }
    }
    // The other direction, and then both at once.
    lan.b.ns.ip("neigh flush dev eth0");
    for target in [IpAddr::from(lan.a.v4), lan.a.v6.into()] {
        resolves(&lan.b, &target.to_string(), lan.a.mac);
        lan.pair.at_a.clear();
        resolves(&lan.b, &target.to_string(), lan.a.mac);
        fence(&lan.pair.at_b, &lan.pair.at_a);
        assert_eq!(asked(&lan.pair.at_a, lan.b.mac, target), 0, "{target}");
    }
    crate::kit::traffic::pings(&lan.a, &lan.b.v4.to_string(), 20, 1472);
    crate::kit::traffic::pings(&lan.b, &lan.a.v6.to_string(), 20, 1452);
}

#[test]
fn probes_announcements_and_unknown_addresses_pass() {
    let lan = Lan::start();
    for target in lan.targets() {
        resolves(&lan.a, &target.to_string(), lan.b.mac);
    }
    let (at_a, at_b) = (&lan.pair.at_a, &lan.pair.at_b);
    let (us, other) = (Ipv4Addr::new(10, 77, 1, 200), Ipv4Addr::new(10, 77, 9, 9));
    let [us6, other6] = [1, 9].map(|n| Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, n, 200));
    let none = Ipv6Addr::UNSPECIFIED;
    for (what, sent) in [
        (
            "a probe for a known address",
            arp(at_a.mac, Ipv4Addr::UNSPECIFIED, lan.b.v4),
        ),
        ("an announcement", arp(at_a.mac, us, us)),
        ("an unknown target", arp(at_a.mac, us, other)),
        (
            "DAD for a known address",
            solicitation(at_a.mac, none, lan.b.v6),
        ),
        ("an unsolicited advertisement", advertisement(at_a.mac, us6)),
        (
            "an unknown IPv6 target",
            solicitation(at_a.mac, us6, other6),
        ),
    ] {
        for _ in 0..2 {
            at_b.clear();
            at_a.send(&sent);
            assert!(at_b.receives(&sent, secs(20)), "{what}");
            fence(at_a, at_b);
            assert_eq!(at_b.count(&sent), 1, "{what}: once");
            assert_eq!(at_a.count(&sent), 0, "{what} comes back");
        }
    }
    // The same request for a known address is answered, and does not cross.
    for (sent, kind) in [
        (arp(at_a.mac, us, lan.b.v4), [0x08, 0x06]),
        (solicitation(at_a.mac, us6, lan.b.v6), [0x86, 0xdd]),
    ] {
        at_a.clear();
        at_b.clear();
        at_a.send(&sent);
        let is_answer = |it: &Arrival| {
            it.bytes[..6] == at_a.mac && it.bytes[6..12] == lan.b.mac && it.bytes[12..14] == kind
        };
        assert!(at_a.wait(secs(20), |all| all.iter().any(is_answer)));
        fence(at_a, at_b);
        assert_eq!(at_b.count(&sent), 0);
    }
}

#[test]
fn a_host_with_another_address_and_one_that_moves_are_followed() {
    let lan = Lan::start();
    for target in lan.targets() {
        resolves(&lan.a, &target.to_string(), lan.b.mac);
    }
    let new: Mac = [0x02, 0x77, 0, 0xee, 0, 1];
    lan.b.ns.ip(&format!("link set eth0 address {}", mac(new)));
    // It sends a request for another host, which teaches its address as well as an announcement
    // does.
    lan.b.ns.ip("neigh flush dev eth0");
    for target in [lan.a.v4.to_string(), lan.a.v6.to_string()] {
        lan.b.ns.succeeds(&["ping", "-c1", "-W1", &target]);
    }
    for target in [IpAddr::from(lan.b.v4), lan.b.v6.into()] {
        assert_eq!(lan.questions(target, new), 0, "{target}");
    }
    crate::kit::traffic::pings(&lan.a, &lan.b.v4.to_string(), 5, 56);

    // To A's own bridge, where a cable announces it: no host answers there any more.
    let (at_a, at_b) = (&lan.pair.at_a, &lan.pair.at_b);
    lan.b.ns.ip("link set eth0 down");
    for announced in [arp(new, lan.b.v4, lan.b.v4), advertisement(new, lan.b.v6)] {
        at_a.send(&announced);
        assert!(at_b.receives(&announced, secs(20)));
    }
    for sent in [
        arp(lan.a.mac, lan.a.v4, lan.b.v4),
        solicitation(lan.a.mac, lan.a.v6, lan.b.v6),
    ] {
        at_a.clear();
        at_a.send(&sent);
        assert!(
            at_b.receives(&sent, secs(20)),
            "flooded: the owner hears it"
        );
        let is_answered = |it: &Arrival| it.bytes[..6] == lan.a.mac && it.bytes[6..12] == new;
        assert!(!at_a.with_arrivals(|all| all.iter().any(is_answered)));
    }
    // From B, its earlier site, the answer is right at once: it is behind the tunnel now.
    let asker: Mac = [0x02, 0xca, 0, 0, 9, 9];
    let own = Ipv4Addr::new(10, 77, 2, 201);
    at_b.clear();
    // A request that tells the sender's address goes on; this one does not.
    at_b.send(&arp(asker, own, own));
    let sent = arp(asker, own, lan.b.v4);
    at_a.clear();
    at_b.send(&sent);
    let is_answer = |it: &Arrival| {
        it.bytes[..6] == asker && it.bytes[6..12] == new && it.bytes[20..22] == [0, 2]
    };
    assert!(at_b.wait(secs(20), |all| all.iter().any(is_answer)));
    fence(at_b, at_a);
    assert_eq!(at_a.count(&sent), 0);
}

/// A asks for addresses of B's on ports with suppression. They move to C, for which A has a port
/// without it.
#[test]
fn an_address_that_moves_behind_a_port_without_suppression_is_followed() {
    let asking = Settings {
        device: "[device.port]\nneighbour-suppression = true",
        ..Settings::default()
    };
    let sites = Sites::start(
        [asking, Settings::default(), Settings::default()],
        [
            &[(1, "neighbour-suppression = true"), (2, "")],
            &[(0, ""), (2, "")],
            &[(0, ""), (1, "")],
        ],
    );
    sites.connect(&[(0, 1), (0, 2), (1, 2)]);
    let [at_a, at_b, at_c] = &sites.cables[..] else {
        panic!("three sites");
    };
    let (us, owned) = (Ipv4Addr::new(10, 77, 1, 200), Ipv4Addr::new(10, 77, 2, 200));
    let [us6, owned6, shared6] = [1, 2, 3].map(|n| Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, n, 200));
    let announced = arp(at_a.mac, us, us);
    at_a.send(&announced);
    assert!(at_b.receives(&announced, secs(20)) && at_c.receives(&announced, secs(20)));
    let asks = [
        arp(at_a.mac, us, owned),
        solicitation(at_a.mac, us6, owned6),
        solicitation(at_a.mac, us6, shared6),
    ];

    let claims = |from: &Cable, addresses: &[Ipv6Addr]| {
        let advertised = addresses.iter().map(|&it| advertisement(from.mac, it));
        for claim in advertised.chain([arp(from.mac, owned, owned)]) {
            from.send(&claim);
            assert!(at_a.receives(&claim, secs(20)));
        }
    };
    claims(at_b, &[owned6, shared6]);
    for question in &asks {
        assert_eq!(told(at_a, question), [at_b.mac]);
    }
    fence(at_a, at_b);
    assert_eq!(at_b.count(&asks[0]), 0, "known, and not asked for");

    claims(at_c, &[owned6]);
    for question in &asks[..2] {
        assert_eq!(told(at_a, question), [at_c.mac]);
    }
    // A request tells where its sender is, though not enough to answer in its name.
    let elsewhere = solicitation(at_c.mac, shared6, us6);
    at_c.send(&elsewhere);
    assert!(at_a.receives(&elsewhere, secs(20)));
    at_c.clear();
    assert_eq!(told(at_a, &asks[2]), [[0; 6]; 0]);
    assert!(at_c.receives(&asks[2], secs(20)), "the owner hears it");
}

/// Sends the request of a cable; returns the MAC addresses in the answers.
fn told(from: &Cable, question: &[u8]) -> Vec<Mac> {
    let asker = &question[6..12];
    from.clear();
    from.send(question);
    let is_answer = |it: &&Arrival| it.bytes[..6] == *asker && it.bytes[12..14] == question[12..14];
    from.wait(millis(500), |all| all.iter().any(|it| is_answer(&it)));
    from.with_arrivals(|all| {
        let owners = all.iter().filter(is_answer);
        owners
            .map(|it| *it.bytes[6..].first_chunk().expect("a source"))
            .collect()
    })
}
