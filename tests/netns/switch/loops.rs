// SPDX-License-Identifier: MIT OR Apache-2.0
//! Loops through cables, bridges and second tunnels: found, cut at one port, named, and forgotten after
//! they are gone.
//!
//! A loop must be cut within 3 seconds. The tests print how long it took, and fail later: on a busy
//! machine a probe waits for its turn at every hop.

use std::time::{Duration, Instant};

use patchcord::control::message::Status;

use crate::kit::cable::Patch;
use crate::kit::load::{self, Turn};
use crate::kit::mesh::{Block, Link, Mesh, at_home, blocks, hello, rate, wait_blocked};
use crate::kit::process::{eventually, millis, secs};
use crate::kit::site::{BRIDGE, DEVICE, Settings, Site, UDP_PORT};
use crate::kit::topology::mac;
use crate::kit::traffic::pings;

/// The time to find a loop on a loaded machine.
const PATIENCE: Duration = secs(10);
/// A block outlasts its loop by 10 s. This is the limit until it is seen to end.
const RECOVERY: Duration = secs(20);

/// Prints how long after `begun` the port was blocked.
fn report(begun: Instant, block: &Block) {
    let took = begun.elapsed().saturating_sub(block.since);
    println!(
        "{}: {} blocked for {} in VLAN {} after {took:.2?}",
        block.tunnel, block.port, block.other, block.vlan
    );
}

fn wait_open(sites: &[&Site], limit: Duration) {
    eventually(limit, "every port is open", || {
        sites
            .iter()
            .all(|site| blocks(site).is_empty())
            .then_some(())
    });
}

fn log_of<'a>(mesh: &'a mut Mesh, block: &Block) -> String {
    let mut sites = mesh.sites.iter_mut();
    let site: &'a mut Site = sites
        .find(|site| site.tunnel == block.tunnel)
        .expect("a site of the mesh");
    site.process().log()
}

#[test]
fn a_cable_between_two_sites_is_found_and_the_tunnel_steps_back() {
    let mut mesh = Mesh::start(2);
    mesh.wait_connected();
    let hosts = [0, 1].map(|at| mesh.sites[at].host(1));
    pings(&hosts[0], &hosts[1].v4.to_string(), 3, 56);
    let turn = load::all();
    let quiet = rate(&hosts[0].ns, "eth0", millis(500));

    let link = Link::plug(&mesh.sites[0], &mesh.sites[1], "second");
    for cable in &mesh.cables {
        cable.send(&hello(cable, &[]));
    }
    let storm = rate(&hosts[0].ns, "eth0", millis(300));
    let [a, b] = &mesh.sites[..] else {
        unreachable!()
    };
    let block = wait_blocked(&[a, b], PATIENCE);
    report(link.since, &block);
    assert!(block.port.starts_with("site"), "{block:?}");
    assert_eq!((block.other.as_str(), block.vlan), ("tap", 0));
    let calm = rate(&hosts[0].ns, "eth0", secs(1));
    println!("frames/s at a host: {quiet:.0} before, {storm:.0} in the storm, {calm:.0} after");
    assert!(storm > 1000.0, "there was no storm: {storm} frames/s");
    assert!(calm < 100.0, "the storm goes on: {calm} frames/s");

    drop(turn);
    // Over the cable: the tunnel stays blocked meanwhile. No host sends a new ARP request, so there
    // is no broadcast: without help, the bridges would keep the stations' ports that they learned
    // in the storm.
    for [from, to] in [[0, 1], [1, 0]] {
        pings(&hosts[from], &hosts[to].v4.to_string(), 10, 1472);
    }
    mesh.assert_each_broadcast_arrives_once();
    assert_eq!(mesh.blocked().len(), 1);
    let log = log_of(&mut mesh, &block);
    let line = log.lines().find(|line| line.contains("loop detected:"));
    let line = line.unwrap_or_else(|| panic!("nothing about the loop in the log:\n{log}"));
    let station = [mac(mesh.cables[0].mac), mac(mesh.cables[1].mac)];
    assert!(
        station
            .iter()
            .any(|mac| line.contains(&format!("{mac} in VLAN 0"))),
        "the log does not name the stations that moved: {line}"
    );

    let begun = Instant::now();
    link.unplug();
    wait_open(&mesh.sites.iter().collect::<Vec<_>>(), RECOVERY);
    println!(
        "open again {:.2?} after the cable was gone",
        begun.elapsed()
    );
    assert!(begun.elapsed() > secs(8), "the block held");
    for [from, to] in [[0, 1], [1, 0]] {
        pings(&hosts[from], &hosts[to].v4.to_string(), 10, 1472);
    }
    mesh.assert_each_broadcast_arrives_once();
}

#[test]
fn a_loop_in_one_vlan_is_cut_and_the_vlan_is_named() {
    const VID: u16 = 42;
    const TAG: (u16, u16) = (0x8100, VID);
    let mesh = Mesh::start(2);
    mesh.wait_connected();
    let [a, b] = [0, 1].map(|at| &mesh.sites[at]);
    // The VLAN is in use, as it is wherever a loop is noticed.
    for [from, to] in [[0, 1], [1, 0]] {
        let hello = hello(&mesh.cables[from], &[TAG]);
        mesh.cables[from].send(&hello);
        assert!(mesh.cables[to].receives(&hello, secs(20)));
    }

    let turn = load::all();
    let begun = Instant::now();
    let trunk = Patch::plug([&a.ns, &b.ns], BRIDGE, "trunk", |frame| {
        frame[12..].starts_with(&[0x81, 0x00, 0, VID as u8])
    });
    let block = wait_blocked(&[a, b], PATIENCE);
    report(begun, &block);
    drop(turn);
    assert_eq!((block.other.as_str(), block.vlan), ("tap", VID));
    // Now no frame circulates.
    let around = hello(&mesh.cables[0], &[TAG]);
    mesh.cables[0].send(&around);
    assert!(mesh.cables[1].receives(&around, secs(20)), "by the trunk");
    std::thread::sleep(millis(300));
    let counts = [0, 1].map(|at| mesh.cables[at].count(&around));
    assert_eq!(counts, [0, 1]);

    drop(trunk);
    wait_open(&[a, b], RECOVERY);
    mesh.assert_each_broadcast_arrives_once();
}

#[test]
fn of_two_tunnels_between_two_sites_one_steps_back() {
    let mut mesh = Mesh::start(2);
    mesh.wait_connected();
    let mut seconds = [0, 1].map(|at| mesh.sites[at].beside(&mesh.sandbox));
    let settings = Settings {
        listen: format!("[::]:{}", UDP_PORT + 1),
        ..Settings::default()
    };
    for [here, there] in [[0, 1], [1, 0]] {
        seconds[here].configure(&settings, &[at_home(&seconds[there])]);
    }
    let turn = load::all();
    for site in &mut seconds {
        site.up();
    }
    let begun = eventually(secs(10), "the second tunnel is up", || {
        let status = seconds[0].try_status()?;
        (status.peers[0].state == "up").then(Instant::now)
    });
    mesh.cables[0].send(&hello(&mesh.cables[0], &[]));
    let all: Vec<_> = mesh.sites.iter().chain(&seconds).collect();
    let block = wait_blocked(&all, PATIENCE);
    report(begun, &block);
    drop(turn);
    std::thread::sleep(secs(3));
    assert_eq!(wait_blocked(&all, PATIENCE).tunnel, block.tunnel);
    mesh.assert_each_broadcast_arrives_once();

    // Whichever tunnel is left, the other one takes over when it ends.
    let mut tunnels = [
        mesh.sites.iter_mut().collect(),
        seconds.iter_mut().collect(),
    ];
    let left: &mut Vec<&mut Site> = tunnels
        .iter_mut()
        .find(|pair: &&mut Vec<&mut Site>| pair.iter().all(|site| site.tunnel != block.tunnel))
        .expect("one of two has the blocked port");
    for site in left {
        site.terminate();
    }
    let rest: Vec<_> = mesh.sites.iter().chain(&seconds).collect();
    eventually(RECOVERY, "the other tunnel is open", || {
        let statuses: Vec<_> = rest.iter().filter_map(|site| site.try_status()).collect();
        let is_open = |status: &Status| status.ports.iter().all(|port| port.blocked.is_none());
        (statuses.len() == 2 && statuses.iter().all(is_open)).then_some(())
    });
    mesh.assert_each_broadcast_arrives_once();
}

#[test]
fn a_cable_between_two_of_three_sites_leaves_one_way_to_each() {
    let mesh = Mesh::start(3);
    mesh.wait_connected();
    let turn = load::all();
    let link = Link::plug(&mesh.sites[0], &mesh.sites[1], "second");
    mesh.cables[2].send(&hello(&mesh.cables[2], &[]));
    let (took, blocked) = settle(&mesh, link.since, 2, turn);
    println!("{blocked:?}, settled after {took:.2?}");
    mesh.assert_each_broadcast_arrives_once();

    link.unplug();
    wait_open(&mesh.sites.iter().collect::<Vec<_>>(), 2 * RECOVERY);
    mesh.assert_each_broadcast_arrives_once();
}

#[test]
fn a_ring_of_hubs_is_opened_in_one_place() {
    let turn = load::all();
    let begun = Instant::now();
    let mesh = Mesh::start_with(3, |_| Settings::hub(), |_, _| true);
    let (took, blocked) = settle(&mesh, begun, 1, turn);
    println!("{blocked:?}, {took:.2?} after the first hub was started");
    let [block] = &blocked[..] else {
        unreachable!()
    };
    assert!(block.port.starts_with("site") && block.other.starts_with("site"));
    mesh.assert_each_broadcast_arrives_once();
}

/// Waits until so many ports are blocked, and no other one for three seconds.
fn settle(mesh: &Mesh, begun: Instant, ports: usize, turn: Turn) -> (Duration, Vec<Block>) {
    let took = |blocked: &[Block]| {
        let last = blocked.iter().map(|block| block.since).min();
        begun.elapsed().saturating_sub(last.expect("some are"))
    };
    let blocked = eventually(2 * PATIENCE, "the ports are blocked", || {
        let blocked = mesh.blocked();
        (blocked.len() >= ports).then_some(blocked)
    });
    let took = took(&blocked);
    drop(turn);
    std::thread::sleep(secs(3));
    let blocked = mesh.blocked();
    assert_eq!(blocked.len(), ports, "{blocked:?}");
    (took, blocked)
}

#[test]
fn no_port_of_a_quiet_mesh_is_ever_blocked() {
    let mut mesh = Mesh::start(3);
    mesh.wait_connected();
    let begun = Instant::now();
    while begun.elapsed() < secs(30) {
        let blocked = mesh.blocked();
        assert!(blocked.is_empty(), "{blocked:?}");
        std::thread::sleep(millis(500));
    }
    mesh.assert_each_broadcast_arrives_once();
    for site in &mut mesh.sites {
        let log = site.process().log();
        assert!(!log.contains("loop"), "{log}");
    }
}

#[test]
fn a_loop_behind_a_port_is_logged_and_not_cut() {
    let mut mesh = Mesh::start(2);
    mesh.wait_connected();
    let turn = load::all();
    let place = &mesh.sites[0].ns;
    let inner = Patch::plug([place, place], BRIDGE, "inner", |_| true);
    mesh.sites[0]
        .process()
        .wait_for("a loop behind this port", secs(20));
    mesh.cables[0].send(&hello(&mesh.cables[0], &[]));
    // The storm stays at site A, and only a limited part reaches B.
    let storm = rate(&mesh.sites[0].ns, "inner1", secs(1));
    let abroad = rate(&mesh.sites[1].ns, DEVICE, secs(4));
    println!("frames/s in a loop at site A: {storm:.0}, and of them at site B: {abroad:.0}");
    assert!(abroad < 6500.0, "{abroad} frames/s");
    drop((inner, turn));
    let blocked = mesh.blocked();
    assert!(blocked.is_empty(), "{blocked:?}");
    let log = mesh.sites[0].process().log();
    assert_eq!(log.matches("a loop behind this port").count(), 1, "{log}");
    mesh.assert_each_broadcast_arrives_once();
}
