// SPDX-License-Identifier: MIT OR Apache-2.0
//! Three sites, as a star around a hub and as a mesh: each frame arrives at its destination, once.

use crate::kit::frames::{BROADCAST, EXPERIMENTAL, Mac, frame};
use crate::kit::pair::{Pair, Plan};
use crate::kit::process::{eventually, secs};
use crate::kit::site::{Settings, Site};
use crate::kit::sites::{Links, STAR, Sites};
use crate::kit::traffic::{assert_checksums, assert_exact, assert_whole, iperf, pings};

#[test]
fn a_hub_passes_frames_between_its_spokes_once() {
    for (lines, what) in [
        ("", "the default plan"),
        ("[pipeline]\nlanes = 2", "two lanes"),
        (
            "[pipeline]\nplan = \"staged\"\nworkers = 2",
            "the staged plan",
        ),
    ] {
        println!("{what}");
        let star = Sites::star(1500, lines);
        star.assert_floods_once(1514);
        star.assert_flows(1, 2, &[60, 1514, 300]);
        star.assert_flows(0, 2, &[60, 1514, 300]);
        star.assert_nothing_refused();
    }
}

#[test]
fn a_hub_passes_jumbo_frames_between_its_spokes() {
    let star = Sites::star(9000, "");
    star.assert_floods_once(9014);
    star.assert_flows(1, 2, &[60, 9014, 1514, 300]);
    let (a, b) = (star.sites[1].host(1), star.sites[2].host(1));
    for (site, host) in [(&star.sites[1], &a), (&star.sites[2], &b)] {
        site.ns.ip("link set host1 mtu 9000");
        host.ns.ip("link set eth0 mtu 9000");
    }
    for size in [56, 1472, 8972] {
        pings(&a, &b.v4.to_string(), 5, size);
    }
    assert_exact(&a, &b, 16);
    assert_checksums(&[&a.ns, &b.ns, &star.sites[0].ns]);
    star.assert_nothing_refused();
}

#[test]
fn super_frames_cross_a_hub_whole() {
    let star = Sites::star(1500, "");
    let (a, b) = (star.sites[1].host(1), star.sites[2].host(1));
    for (from, to, site) in [(&a, &b, &star.sites[2]), (&b, &a, &star.sites[1])] {
        assert_whole(from, to, site);
        let rate = iperf(star.dir(), from, to, &[]);
        println!("{rate:.2e} bit/s");
        assert!(rate > 1e6, "{rate} bit/s");
    }
    assert_exact(&a, &b, 16);
    assert_checksums(&[&a.ns, &b.ns]);
    star.assert_nothing_refused();
}

#[test]
fn a_hub_changes_tags_between_its_spokes() {
    let hub = Settings {
        tunnel: "[switch]\nhub = true",
        ..Settings::default()
    };
    // Untagged at the second site, VLAN 7 at the third, which has it without a tag again.
    let third = Settings {
        device: "[device.port]\naccess = 7",
        ..Settings::default()
    };
    let to_spokes: Links<'_> = &[
        (1, "access = 42"),
        (2, "trunk = 42\ntranslate = { 7 = 42 }"),
    ];
    let star = Sites::start(
        [hub, Settings::default(), third],
        [to_spokes, STAR[1], STAR[2]],
    );
    star.connect(&[(1, 2)]);
    let untagged = frame(BROADCAST, star.cables[1].mac, &[], EXPERIMENTAL, 100, 1);
    let tagged = [&untagged[..12], &[0x81, 0, 0, 42], &untagged[12..]].concat();
    star.cables[1].send(&untagged);
    for (site, expected) in [(0, &tagged), (2, &untagged)] {
        assert!(star.cables[site].receives(expected, secs(20)), "at {site}");
    }
    let (a, b) = (star.sites[1].host(1), star.sites[2].host(1));
    assert_whole(&a, &b, &star.sites[2]);
    assert_whole(&b, &a, &star.sites[1]);
    assert_exact(&a, &b, 16);
    assert_checksums(&[&a.ns, &b.ns]);
    star.assert_nothing_refused();
}

#[test]
fn a_mesh_floods_to_each_site_once() {
    let mesh = Sites::mesh();
    mesh.assert_floods_once(1514);
    mesh.assert_flows(0, 1, &[60, 1514, 300]);
    mesh.assert_flows(1, 2, &[60, 1514, 300]);
    let hosts = [0, 1, 2].map(|site: usize| mesh.sites[site].host(1));
    for [from, to] in [[0, 1], [1, 2], [2, 0]] {
        assert_exact(&hosts[from], &hosts[to], 4);
    }
    mesh.assert_nothing_refused();
}

#[test]
fn frames_pass_from_peer_to_peer_in_a_hub_only() {
    let chain = Sites::start([(); 3].map(|()| Settings::default()), STAR);
    chain.connect(&[(0, 1), (0, 2)]);
    let [from, to]: [Mac; 2] = [1, 2].map(|site: usize| chain.cables[site].mac);
    let broadcast = frame(BROADCAST, from, &[], EXPERIMENTAL, 100, 1);
    chain.assert_once(1, &[0], &broadcast);
    let unknown = frame([2, 0, 0, 0, 0, 9], from, &[], EXPERIMENTAL, 100, 2);
    chain.assert_once(1, &[0], &unknown);
    // The first site knows the station's port, and sends it nowhere else.
    let unicast = frame(to, from, &[], EXPERIMENTAL, 100, 3);
    chain.assert_once(1, &[], &unicast);
    assert_eq!(chain.sites[0].drops("no-port"), 1);
}

#[test]
fn addresses_are_forgotten_and_limited_as_configured() {
    let mut pair = Pair::prepare(Plan::default());
    let settings = Settings {
        tunnel: "[switch]\nageing = \"2s\"\nmax-addresses = 5",
        ..Settings::default()
    };
    let peer = pair.a.as_peer(Some(pair.a.uplink.v4.into()));
    pair.b.configure(&settings, &[peer]);
    pair.up();
    pair.connect(secs(10));
    for station in 0..20 {
        let src = [0x02, 0xfe, 0, 0, 0, station];
        let hello = frame(BROADCAST, src, &[], EXPERIMENTAL, 60, station.into());
        pair.at_a.send(&hello);
        assert!(pair.at_b.receives(&hello, secs(20)));
    }
    let learned = |site: &Site| {
        let fdb = site.status().fdb;
        fdb.iter()
            .filter(|entry| entry.mac.starts_with("02:fe"))
            .count()
    };
    assert_eq!(learned(&pair.a), 20, "with the default");
    assert!((1..=5).contains(&learned(&pair.b)), "{}", learned(&pair.b));
    eventually(secs(20), "all are forgotten", || {
        (learned(&pair.b) == 0).then_some(())
    });
    assert_eq!(learned(&pair.a), 20, "with the default");
}
