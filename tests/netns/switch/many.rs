// SPDX-License-Identifier: MIT OR Apache-2.0
//! More than two or three sites: meshes, stars and stars of meshes; each frame arrives once.

use std::thread;
use std::time::Instant;

use crate::kit::load;
use crate::kit::mesh::{Link, Mesh, hello, wait_blocked};
use crate::kit::process::secs;
use crate::kit::site::Settings;
use crate::kit::topology::Host;
use crate::kit::traffic::pings;

/// Each host reaches each other one, all at the same time.
fn everybody_pings_everybody(mesh: &Mesh) {
    let hosts: Vec<_> = mesh.sites.iter().map(|site| site.host(1)).collect();
    let reach_all = |from: &Host| {
        for to in hosts.iter().filter(|to| to.v4 != from.v4) {
            pings(from, &to.v4.to_string(), 2, 1472);
        }
    };
    thread::scope(|scope| {
        for from in &hosts {
            scope.spawn(|| reach_all(from));
        }
    });
}

/// Each frame arrives once, and no port is taken for a loop.
fn assert_one_lan(mesh: &Mesh) {
    mesh.wait_connected();
    mesh.assert_each_broadcast_arrives_once();
    everybody_pings_everybody(mesh);
    mesh.assert_each_broadcast_arrives_once();
    assert!(mesh.blocked().is_empty(), "{:?}", mesh.blocked());
}

#[test]
fn five_sites_as_a_mesh() {
    assert_one_lan(&Mesh::start(5));
}

#[test]
fn five_sites_around_a_hub() {
    assert_one_lan(&Mesh::start_with(5, hub_at_first, |one, _| one == 0));
}

#[test]
fn thirty_two_peers_of_a_hub() {
    let _turn = load::some();
    let begun = Instant::now();
    let mesh = Mesh::start_with(33, hub_at_first, |one, _| one == 0);
    println!("33 sites after {:.1?}", begun.elapsed());
    mesh.assert_each_broadcast_arrives_once();
    println!("all broadcasts after {:.1?}", begun.elapsed());
    assert!(mesh.blocked().is_empty(), "{:?}", mesh.blocked());

    // With many VLANs in use there are many loop probes. All are sent, and a loop is found.
    for vid in 1..=15 {
        mesh.cables[0].send(&hello(&mesh.cables[0], &[(0x8100, vid)]));
    }
    thread::sleep(secs(3));
    assert_eq!(mesh.sites[0].drops("slow-path-full"), 0);
    let limited: Vec<_> = (mesh.sites.iter())
        .map(|site| site.drops("probe-limited"))
        .collect();
    assert!(limited.iter().all(|&limited| limited == 0), "{limited:?}");
    let link = Link::plug(&mesh.sites[1], &mesh.sites[2], "second");
    let all: Vec<_> = mesh.sites.iter().collect();
    let block = wait_blocked(&all, secs(10));
    println!(
        "a loop was cut after {:.2?}",
        link.since.elapsed() - block.since
    );
    mesh.assert_each_broadcast_arrives_once();
}

fn hub_at_first(site: usize) -> Settings {
    match site {
        0 => Settings::hub(),
        _ => Settings::default(),
    }
}
