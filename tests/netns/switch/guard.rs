// SPDX-License-Identifier: MIT OR Apache-2.0
//! Guards and limits of ports: they refuse what they must, and pass all else.

use std::fs;
use std::path::Path;
use std::time::Instant;

use crate::kit::dhcp::{DNSMASQ, dhcp_lease, dhcp_server};
use crate::kit::frames::{BROADCAST, EXPERIMENTAL, Mac, frame};
use crate::kit::pair::{Pair, Ports, connect};
use crate::kit::process::{Process, eventually, millis, secs};
use crate::kit::site::BRIDGE;
use crate::kit::topology::Host;

/// B's port to its peer has these lines.
fn start(peer: &'static str) -> Pair {
    let pair = Pair::start_with_ports([Ports::default(), Ports { device: "", peer }]);
    pair.connect(secs(10));
    pair
}

#[test]
fn a_dhcp_server_behind_a_guarded_port_is_not_heard() {
    let pair = start("dhcp-server = \"drop\"");
    let (rogue, right, client) = (pair.a.host(1), pair.b.host(1), pair.b.host(2));
    let dir = pair.sandbox.path();
    let _rogue = dhcp_server(&rogue, dir, 1);
    assert_eq!(dhcp_lease(&client, dir), None);
    let refused = pair.b.drops("dhcp-server-refused");
    assert!(refused > 0);
    let server = dhcp_server(&right, dir, 2);
    for _ in 0..3 {
        let (address, by) = dhcp_lease(&client, dir).expect("a lease");
        assert!(address.starts_with("10.77.2.1"), "{address}");
        assert_eq!(by, right.v4.to_string());
    }
    // The other direction is open: clients at A hear both servers, and use the remaining one.
    drop(_rogue);
    let (_, by) = dhcp_lease(&pair.a.host(2), dir).expect("a lease");
    assert_eq!(by, right.v4.to_string());
    drop(server);
}

#[test]
fn a_router_behind_a_guarded_port_is_not_heard() {
    let pair = start("router-advertisements = \"drop\"");
    let (router, near, far) = (pair.a.host(1), pair.a.host(2), pair.b.host(1));
    router.ns.ip("addr add fd99::1/64 dev eth0 nodad");
    let dir = pair.sandbox.path();
    let advertise = ["--enable-ra", "--dhcp-range=fd99::,ra-only,64,10m"];
    let log = dir.join("dnsmasq.log");
    let _router = router.ns.spawn(&log, &[&DNSMASQ[..], &advertise].concat());
    let has_address = |host: &Host| {
        let shown = host.ns.run(&["ip", "-6", "addr", "show", "dev", "eth0"]);
        shown.contains("fd99:")
    };
    for host in [&near, &far] {
        // It sends router solicitations when it comes up.
        host.ns
            .run(&["sysctl", "-qw", "net.ipv6.conf.eth0.router_solicitations=5"]);
        host.ns.ip("link set eth0 down\nlink set eth0 up");
    }
    eventually(secs(20), "the guard is at work", || {
        (pair.b.drops("router-advertisement-refused") > 0).then_some(())
    });
    eventually(secs(20), "a host beside the router has an address", || {
        has_address(&near).then_some(())
    });
    assert!(!has_address(&far));
    // Neighbour discovery, which looks much the same, passes.
    let target = near.v6.to_string();
    for (from, to) in [(&far, &near), (&near, &far)] {
        from.ns
            .ip(&format!("addr replace {}/64 dev eth0 nodad", from.v6));
        to.ns
            .ip(&format!("addr replace {}/64 dev eth0 nodad", to.v6));
    }
    far.ns.run(&["ping", "-c", "1", "-W", "2", &target]);
}

/// radvd, the usual router daemon, which advertises one prefix every few seconds and answers router
/// solicitations.
fn radvd(router: &Host, dir: &Path, prefix: &str) -> Process {
    let router_pid = dir.join("radvd.pid").display().to_string();
    let config = dir.join("radvd.conf");
    let text = format!(
        "interface eth0 {{ AdvSendAdvert on; MinRtrAdvInterval 3; MaxRtrAdvInterval 4;\n\
         prefix {prefix} {{ AdvOnLink on; AdvAutonomous on; }}; }};\n"
    );
    fs::write(&config, text).unwrap();
    // radvd does not start on a machine that does not forward.
    router
        .ns
        .run(&["sysctl", "-qw", "net.ipv6.conf.all.forwarding=1"]);
    let config = config.display().to_string();
    let mut radvd = router.ns.spawn(
        &dir.join("radvd.log"),
        &[
            "radvd",
            "-n",
            "-m",
            "stderr",
            "-C",
            &config,
            "-p",
            &router_pid,
        ],
    );
    radvd.wait_for("started", secs(20));
    radvd
}

#[test]
fn radvd_behind_a_guarded_port_is_not_heard_and_one_at_home_is() {
    let pair = start("router-advertisements = \"drop\"");
    let (router, near, far) = (pair.a.host(1), pair.a.host(2), pair.b.host(1));
    let knows = |host: &Host, prefix: &str| {
        let has_address = host
            .ns
            .run(&["ip", "-6", "addr", "show", "dev", "eth0"])
            .contains(prefix);
        let routes = host.ns.run(&["ip", "-6", "route", "show", "proto", "ra"]);
        has_address && routes.contains("default via fe80:")
    };
    let ask_for_routers = |host: &Host| {
        host.ns
            .run(&["sysctl", "-qw", "net.ipv6.conf.eth0.router_solicitations=5"]);
        host.ns.ip("link set eth0 down\nlink set eth0 up");
    };
    router.ns.ip("addr add fd99::1/64 dev eth0 nodad");
    let rogue = radvd(&router, pair.sandbox.path(), "fd99::/64");
    for host in [&near, &far] {
        ask_for_routers(host);
    }
    eventually(secs(15), "the guard is at work", || {
        (pair.b.drops("router-advertisement-refused") > 1).then_some(())
    });
    eventually(secs(15), "a host beside the router has an address", || {
        knows(&near, "fd99:").then_some(())
    });
    assert!(!knows(&far, "fd99:"));
    let routes = |host: &Host| host.ns.run(&["ip", "-6", "route", "show", "proto", "ra"]);
    assert_eq!(routes(&far), "", "no prefix, no router");
    drop(rogue);

    // The other direction is open: B's router is heard at both sites.
    let right = pair.b.host(2);
    right.ns.ip("addr add fd98::1/64 dev eth0 nodad");
    let _right = radvd(&right, pair.sandbox.path(), "fd98::/64");
    for host in [&near, &far] {
        ask_for_routers(host);
        eventually(secs(15), "a host has an address of B's router", || {
            knows(host, "fd98:").then_some(())
        });
    }
}

#[test]
fn an_address_of_this_site_is_not_taken_by_another() {
    let pair = start("spoof-guard = true");
    let stolen = frame(BROADCAST, pair.at_b.mac, &[], EXPERIMENTAL, 100, 1);
    let own = frame(BROADCAST, pair.at_a.mac, &[], EXPERIMENTAL, 100, 2);
    pair.at_a.send(&stolen);
    pair.at_a.send(&own);
    assert!(pair.at_b.receives(&own, secs(20)), "others pass");
    assert_eq!(pair.at_b.count(&stolen), 0);
    assert_eq!(pair.b.drops("source-spoofed"), 1);
    let mac = crate::kit::topology::mac(pair.at_b.mac);
    let fdb = pair.b.status().fdb;
    let port = fdb
        .iter()
        .find(|entry| entry.mac == mac)
        .map(|entry| &*entry.port);
    assert_eq!(port, Some("tap"));
}

#[test]
fn only_allowed_sources_pass() {
    let allowed: Mac = [0x02, 0, 0x5e, 0x10, 0, 1];
    let ports = Ports {
        device: "sources = [\"02:00:5e:10:00:01\", \"02:00:5e:10:00:02\"]",
        peer: "",
    };
    let pair = Pair::start_with_ports([ports, Ports::default()]);
    connect(&pair.at_b, &pair.at_a, secs(10));
    let before = pair.a.drops("source-not-allowed");
    let other = frame(BROADCAST, pair.at_a.mac, &[], EXPERIMENTAL, 100, 1);
    let own = frame(BROADCAST, allowed, &[], EXPERIMENTAL, 100, 2);
    pair.at_a.send(&other);
    pair.at_a.send(&own);
    assert!(pair.at_b.receives(&own, secs(20)));
    assert_eq!(pair.at_b.count(&other), 0);
    assert_eq!(pair.a.drops("source-not-allowed") - before, 1);
}

/// The group address of bridges.
const BRIDGES: Mac = [0x01, 0x80, 0xc2, 0, 0, 0];

/// The number of spanning tree frames that came to the cable at B.
fn bpdus(pair: &Pair) -> usize {
    let is_bpdu = |bytes: &[u8]| bytes.starts_with(&BRIDGES);
    pair.at_b
        .with_arrivals(|all| all.iter().filter(|it| is_bpdu(&it.bytes)).count())
}

#[test]
fn the_spanning_tree_of_a_bridge_passes_or_stays_at_its_site() {
    for (policy, passes) in [("bpdu = \"pass\"", true), ("bpdu = \"drop\"", false)] {
        let pair = start(policy);
        // Every second; each port listens for two, learns for two, and then forwards.
        pair.a.ns.ip(&format!(
            "link set {BRIDGE} type bridge hello_time 100 forward_delay 200 max_age 600 stp_state 1"
        ));
        eventually(secs(10), "the bridge at A speaks", || {
            let refused = pair.b.drops("bpdu-refused");
            (bpdus(&pair) + refused as usize >= 3).then_some(())
        });
        assert_eq!(bpdus(&pair) > 0, passes, "{policy}");
        connect(&pair.at_a, &pair.at_b, secs(10));
    }
}

#[test]
fn a_bridge_behind_a_guarded_port_blocks_it_for_half_a_minute() {
    let pair = start("bpdu = \"guard\"");
    let mut bpdu = frame(BRIDGES, pair.at_a.mac, &[], 38, 60, 1);
    bpdu[14..17].copy_from_slice(&[0x42, 0x42, 0x03]); // LLC of the spanning tree
    pair.at_a.send(&bpdu);
    let blocked = Instant::now();
    eventually(secs(20), "the frame is refused", || {
        (pair.b.drops("bpdu-guard") == 1).then_some(())
    });
    let [there, back] = [&pair.at_a, &pair.at_b]
        .map(|cable| frame(BROADCAST, cable.mac, &[], EXPERIMENTAL, 100, 2));
    pair.at_a.send(&there);
    pair.at_b.send(&back);
    assert!(!pair.at_b.receives(&there, millis(500)), "blocked inbound");
    assert!(!pair.at_a.receives(&back, millis(500)), "blocked outbound");
    assert_eq!(pair.b.drops("port-blocked"), 1);
    connect(&pair.at_a, &pair.at_b, secs(40));
    let time = blocked.elapsed();
    assert!((secs(28)..secs(33)).contains(&time), "{time:?}");
    connect(&pair.at_b, &pair.at_a, secs(20));
    assert_eq!(bpdus(&pair), 0);
}

#[test]
fn floods_are_limited_and_all_else_is_not() {
    const SENT: u64 = 400;
    let unknown: Mac = [0x02, 0xde, 0xad, 0, 0, 1];
    let group: Mac = [0x01, 0, 0x5e, 0, 0, 5];
    for (line, dst, reason) in [
        ("max-broadcast = 100", BROADCAST, Some("broadcast-limited")),
        ("max-multicast = 100", group, Some("multicast-limited")),
        ("max-unknown = 100", unknown, Some("unknown-limited")),
        (
            "max-broadcast = 100\nmax-multicast = 100\nmax-unknown = 100",
            [0; 6],
            None,
        ),
        ("max-broadcast = 0", BROADCAST, None),
    ] {
        let pair = start(line);
        let dst = if dst == [0; 6] { pair.at_b.mac } else { dst };
        let frames = (0..SENT).map(|seed| frame(dst, pair.at_a.mac, &[], EXPERIMENTAL, 100, seed));
        let frames: Vec<_> = frames.collect();
        let began = Instant::now();
        for frame in &frames {
            pair.at_a.send(frame);
        }
        let came = || {
            frames
                .iter()
                .filter(|sent| pair.at_b.count(sent) > 0)
                .count() as u64
        };
        let Some(reason) = reason else {
            eventually(secs(20), "all arrive", || (came() == SENT).then_some(()));
            continue;
        };
        let refused = eventually(secs(20), "some are refused, all others arrive", || {
            let refused = pair.b.drops(reason);
            (refused > 0 && came() + refused == SENT).then_some(refused)
        });
        let most = 64 + 100 * (began.elapsed().as_millis() as u64 + 500) / 1000;
        assert!(
            (60..=most).contains(&(SENT - refused)),
            "{line}: {refused} refused"
        );
    }
}
