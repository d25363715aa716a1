// SPDX-License-Identifier: MIT OR Apache-2.0
//! Other programs change the device while it is in use: patchcord restores its own configuration,
//! leaves theirs, and `show` reports the result.

use std::fs;
use std::net::Ipv4Addr;

use crate::kit::packets::{arp, is_answer};
use crate::kit::pair::{Pair, Plan};
use crate::kit::process::{eventually, millis, secs};
use crate::kit::site::{BRIDGE, DEVICE, Settings};
use crate::kit::topology::mac;

fn becomes(what: &str, mut is_so: impl FnMut() -> bool) {
    eventually(secs(20), what, || is_so().then_some(()));
}

/// A tunnel whose device joins no bridge, with these lines of `[device]`.
fn start_alone(lines: &'static str) -> Pair {
    let mut pair = Pair::prepare(Plan::default());
    take_bridge_away(&pair, lines);
    pair.up();
    for site in [&pair.a, &pair.b] {
        site.wait_state("up", secs(20));
    }
    pair
}

fn take_bridge_away(pair: &Pair, lines: &'static str) {
    let settings = Settings {
        device: lines,
        ..Settings::default()
    };
    let peer = pair.b.as_peer(Some(pair.b.uplink.v4.into()));
    pair.a.configure(&settings, &[peer]);
    pair.a.leave_bridge_out();
}

#[test]
fn changes_of_other_programs_are_undone_and_logged() {
    let settings = Settings {
        overlay_mtu: 1450,
        device: "mac = \"02:00:5e:10:00:01\"",
        ..Settings::default()
    };
    let mut pair = Pair::start(Plan {
        settings,
        ..Plan::default()
    });
    for (change, changed) in [
        ("nomaster", "bridge"),
        ("mtu 1400", "MTU"),
        ("address 02:00:5e:10:00:99", "MAC address"),
        ("addrgenmode eui64", "addr_gen_mode"),
    ] {
        pair.a.ns.ip(&format!("link set {DEVICE} {change}"));
        let line = format!("changed=\"{changed}\"");
        becomes(&line, || pair.a.process().log().contains(&line));
        assert_eq!(pair.a.master().as_deref(), Some(BRIDGE), "after {change}");
        let link = pair.a.link(DEVICE).expect("the device is there");
        assert_eq!(
            (&link["mtu"], &link["inet6_addr_gen_mode"]),
            (&1450.into(), &"none".into())
        );
        assert_eq!(link["address"], "02:00:5e:10:00:01");
        assert_eq!(pair.a.device_status().bridge.as_deref(), Some(BRIDGE));
    }
    pair.connect(secs(10));
}

#[test]
fn addresses_that_others_delete_come_back() {
    let mut pair = start_alone("addresses = [\"10.99.0.1/24\", \"fd99::1/64\"]");
    pair.a
        .ns
        .ip(&format!("addr flush dev {DEVICE} scope global"));
    becomes("the addresses are back", || {
        let shown = pair.a.ns.run(&["ip", "addr", "show", "dev", DEVICE]);
        shown.contains("10.99.0.1/24") && shown.contains("fd99::1/64")
    });
    let word = "changed=\"address\"";
    pair.a.process().wait_for(word, secs(20));
}

#[test]
fn a_bridge_that_is_deleted_is_joined_again_when_it_is_back() {
    let mut pair = Pair::start(Plan::default());
    pair.a.ns.ip(&format!("link del {BRIDGE}"));
    becomes("show says that it waits", || {
        let device = pair.a.device_status();
        let waits = device.waits_for.as_deref() == Some(BRIDGE);
        waits && device.bridge.is_none() && !device.carrier
    });
    assert!(pair.a.device_status().remedies[0].contains("ip link add br-lan"));
    let log = pair.a.process().log();
    assert!(log.contains("waits for its bridge"), "{log}");
    pair.a.ns.ip(&format!(
        "link add {BRIDGE} type bridge mcast_snooping 0\nlink set {BRIDGE} up\n\
         link set cable1 master {BRIDGE}"
    ));
    becomes("it is a port again, with carrier", || {
        let device = pair.a.device_status();
        device.bridge.as_deref() == Some(BRIDGE) && device.waits_for.is_none() && device.carrier
    });
    pair.connect(secs(10));
    let log = pair.a.process().log();
    assert!(!log.contains("a port of another interface"), "{log}");
}

#[test]
fn a_bridge_that_comes_after_the_start_is_waited_for() {
    let mut pair = Pair::prepare(Plan::default());
    pair.a.ns.ip(&format!("link del {BRIDGE}"));
    pair.up();
    pair.a.wait_state("up", secs(20));
    let state = pair.a.device_status();
    assert_eq!(state.waits_for.as_deref(), Some(BRIDGE));
    assert!(!state.carrier, "no frame goes on its way to nowhere");
    let log = pair.a.process().log();
    assert!(
        log.contains("there is no bridge `br-lan`: make it with `ip link add"),
        "{log}"
    );
    pair.a.ns.ip(&format!(
        "link add {BRIDGE} type bridge mcast_snooping 0\nlink set {BRIDGE} up\n\
         link set cable1 master {BRIDGE}"
    ));
    becomes("it is a port", || {
        pair.a.master().as_deref() == Some(BRIDGE)
    });
    pair.connect(secs(10));
}

#[test]
fn an_interface_that_is_no_bridge_is_refused_at_once() {
    let mut pair = Pair::prepare(Plan::default());
    let text = fs::read_to_string(&pair.a.config).expect("the configuration is there");
    fs::write(&pair.a.config, text.replace("\"br-lan\"", "\"wan\"")).expect("it can be written");
    let status = pair.a.up().wait_exit(secs(20));
    assert_eq!(status.code(), Some(1));
    let log = pair.a.process().log();
    assert!(
        log.contains("`wan` is a veth device and not a bridge"),
        "{log}"
    );
}

#[test]
fn a_program_that_insists_wins_and_is_logged_once() {
    let mut pair = Pair::start(Plan::default());
    let told = |pair: &mut Pair| {
        let log = pair.a.process().log();
        log.matches("another program keeps changing the interface")
            .count()
    };
    let mut rounds = 0;
    eventually(secs(60), "patchcord gives way", || {
        if pair.a.master().is_some() {
            pair.a.ns.ip(&format!("link set {DEVICE} nomaster"));
            rounds += 1;
        }
        (told(&mut pair) == 1).then_some(())
    });
    // The other program's change is tolerated for ten seconds now: another round or two, and no
    // more.
    let before = rounds;
    let until = std::time::Instant::now() + secs(5);
    while std::time::Instant::now() < until {
        if pair.a.master().is_some() {
            pair.a.ns.ip(&format!("link set {DEVICE} nomaster"));
            rounds += 1;
        }
        std::thread::sleep(millis(20));
    }
    assert!(rounds <= before + 2, "{before} rounds, then {rounds}");
    assert_eq!(told(&mut pair), 1);
    // When the other program gives up, the port comes back.
    becomes("the device is a port again", || pair.a.master().is_some());
}

#[test]
fn settings_of_an_upper_interface_stay() {
    let pair = start_alone("");
    // A bond does the same: it takes the port, and sets the address that all its ports share.
    pair.a.ns.ip(&format!(
        "link add above type bridge\nlink set above up\nlink set {DEVICE} down\n\
         link set {DEVICE} master above\nlink set {DEVICE} address 02:bb:bb:bb:bb:bb mtu 1400\n\
         link set {DEVICE} up"
    ));
    becomes("show says what is", || {
        let device = pair.a.device_status();
        device.bridge.as_deref() == Some("above") && device.up && device.mtu == 1400
    });
    // Each of these makes patchcord check the device again.
    for _ in 0..3 {
        pair.a.ns.ip(&format!(
            "link set {DEVICE} down\nlink set {DEVICE} up\naddr add 192.0.2.7/24 dev {DEVICE}\n\
             addr del 192.0.2.7/24 dev {DEVICE}"
        ));
        std::thread::sleep(millis(600));
        let link = pair.a.link(DEVICE).expect("the device is there");
        assert_eq!(link["address"], "02:bb:bb:bb:bb:bb");
        assert_eq!(
            (&link["mtu"], &link["master"]),
            (&1400.into(), &"above".into())
        );
    }
    assert_eq!(
        pair.a.device_status().mac,
        mac([2, 0xbb, 0xbb, 0xbb, 0xbb, 0xbb])
    );
}

#[test]
fn a_device_that_is_set_down_stays_down() {
    let mut pair = Pair::start(Plan::default());
    pair.a.ns.ip(&format!("link set {DEVICE} down"));
    becomes("it is told", || {
        pair.a
            .process()
            .log()
            .contains("another program set the interface down")
    });
    assert!(!pair.a.device_status().up);
    assert!(pair.a.device_status().remedies[0].contains("ip link set pc0 up"));
    pair.a.ns.ip(&format!("link set {DEVICE} up"));
    becomes("show says so", || pair.a.device_status().up);
    pair.connect(secs(10));
}

#[test]
fn frames_cross_when_the_device_is_moved_to_another_namespace() {
    let mut pair = start_alone("addresses = [\"10.99.0.1/24\"]");
    let container = pair.sandbox.namespace("container");
    let pid = container.pid();
    pair.a.ns.ip(&format!("link set {DEVICE} netns {pid}"));
    container.ip(&format!(
        "addr add 10.99.0.3/24 dev {DEVICE}\nlink set {DEVICE} up"
    ));
    let (us, there) = (Ipv4Addr::new(10, 99, 0, 2), Ipv4Addr::new(10, 99, 0, 3));
    let question = arp(pair.at_b.mac, us, there);
    becomes("the container answers", || {
        pair.at_b.send(&question);
        pair.at_b.wait(millis(200), |seen| {
            seen.iter().any(|arrival| is_answer(&arrival.bytes, there))
        })
    });
    becomes("it is told", || {
        pair.a
            .process()
            .log()
            .contains("moved to another network namespace")
    });
    let told = format!("to=the network namespace of process {pid}");
    let log = pair.a.process().log();
    assert!(log.contains(&told), "{log}");
    let state = pair.a.device_status();
    assert!(state.moved && state.name == DEVICE, "{state:?}");
    // The carrier follows the peer in the other namespace, too.
    pair.b.terminate();
    becomes("no carrier there", || {
        container
            .run(&["ip", "link", "show", "dev", DEVICE])
            .contains("NO-CARRIER")
    });
    pair.b.up();
    // Moves it back.
    let home = pair.a.ns.pid();
    container.ip(&format!("link set {DEVICE} netns {home}"));
    becomes("it is as configured again", || {
        let shown = pair.a.ns.run(&["ip", "addr", "show", "dev", DEVICE]);
        shown.contains("10.99.0.1/24") && shown.contains(",UP")
    });
    assert!(!pair.a.device_status().moved);
    pair.a.terminate();
    assert!(pair.a.link(DEVICE).is_none(), "the device is gone");
}

#[test]
fn a_renamed_device_is_the_same() {
    let mut pair = Pair::start(Plan::default());
    pair.a.ns.ip(&format!(
        "link set {DEVICE} down\nlink set {DEVICE} name cord7\nlink set cord7 nomaster\nlink set cord7 up"
    ));
    becomes("it is a port again", || {
        pair.a
            .link("cord7")
            .is_some_and(|link| link["master"] == BRIDGE)
    });
    assert_eq!(pair.a.device_status().name, "cord7");
    pair.connect(secs(10));
    pair.a.terminate();
    assert!(pair.a.link("cord7").is_none(), "the device is gone");
}

#[test]
fn the_carrier_is_in_from_the_start_where_the_file_says_so() {
    let settings = Settings {
        device: "carrier = \"always\"",
        ..Settings::default()
    };
    let mut pair = Pair::prepare(Plan {
        settings,
        ..Plan::default()
    });
    // Spanning tree blocks a port that comes up, here for twice two seconds.
    pair.b.ns.ip(&format!(
        "link set {BRIDGE} type bridge stp_state 1 forward_delay 200"
    ));
    pair.b.up();
    becomes("show says what the bridge does", || {
        let device = pair.b.device_status();
        let port = device.bridge_port.as_ref();
        let is_held = port.is_some_and(|port| port.stp && port.state != "forwarding");
        device.carrier && is_held && device.remedies[0].contains("spanning tree")
    });
    becomes("the port is open without a peer", || {
        let port = pair.b.device_status().bridge_port;
        port.is_some_and(|port| port.state == "forwarding")
    });
    pair.a.up();
    pair.b.wait_state("up", secs(20));
    pair.connect(secs(20));
    pair.a.terminate();
    eventually(secs(30), "the peer is down", || {
        (pair.b.peer().state != "up").then_some(())
    });
    let state = pair.b.device_status();
    assert!(state.carrier, "{state:?}");
    assert_eq!(state.bridge_port.expect("it is a port").state, "forwarding");
}

#[test]
fn a_firewall_that_drops_frames_across_the_bridge_is_reported() {
    let mut pair = Pair::prepare(Plan::default());
    let drops = "policy of chain `FORWARD` of table `ip filter` is drop";
    // Docker leaves it so.
    pair.a.ns.run(&["nft", "add table ip filter"]);
    let forward = "{ type filter hook forward priority 0; policy drop; }";
    let chain = format!("add chain ip filter FORWARD {forward}");
    pair.a.ns.run(&["nft", &chain]);
    let bridge_option = |on: u8| format!("link set {BRIDGE} type bridge nf_call_iptables {on}");
    pair.a.ns.ip(&bridge_option(1));
    pair.up();
    for site in [&pair.a, &pair.b] {
        site.wait_state("up", secs(20));
    }
    becomes("the log says so", || pair.a.process().log().contains(drops));
    let remedies = pair.a.device_status().remedies.join("\n");
    assert!(remedies.contains(drops), "{remedies}");
    let remedy = format!("iptables -I FORWARD -i {BRIDGE} -o {BRIDGE} -j ACCEPT");
    assert!(remedies.contains(&remedy), "{remedies}");
    pair.a.ns.ip(&bridge_option(0));
    becomes("nothing is wrong any more", || {
        pair.a.device_status().remedies.is_empty()
    });
}

#[test]
fn an_mtu_below_that_of_the_bridge_is_reported() {
    let mut pair = Pair::prepare(Plan::default());
    let settings = Settings {
        overlay_mtu: 1420,
        ..Settings::default()
    };
    let peer = pair.b.as_peer(Some(pair.b.uplink.v4.into()));
    pair.a.configure(&settings, &[peer]);
    pair.up();
    pair.a.wait_state("up", secs(20));
    let log = pair.a.process().log();
    assert!(
        log.contains("smaller MTU than another port of its bridge"),
        "{log}"
    );
    let remedies = pair.a.device_status().remedies.join("\n");
    assert!(
        remedies.contains("MTU 1420, but `cable1` in `br-lan` has 1500"),
        "{remedies}"
    );
    assert_eq!(pair.b.device_status().remedies, Vec::<String>::new());
}
