// SPDX-License-Identifier: MIT OR Apache-2.0
//! Three sites, as a star around a hub and as a mesh: each frame arrives where it should, once.

use std::path::Path;
use std::thread;

use crate::kit::cable::Cable;
use crate::kit::frames::{BROADCAST, EXPERIMENTAL, Flow, Mac, Tally, frame};
use crate::kit::process::{eventually, millis, secs};
use crate::kit::topology::{Host, Pair, Peer, Plan, Router, Sandbox, Settings, Site, connect};
use crate::kit::traffic::{BLOCK, Ip, assert_checksums, iperf, pings, transfer};
use crate::path::offload::{assert_exact, assert_nothing_refused, packets};

const DOT1Q: u16 = 0x8100;
const DOT1AD: u16 = 0x88a8;

/// Sites with a cable in each bridge; the first is the hub of a star.
pub(crate) struct Sites {
    pub(crate) cables: Vec<Cable>,
    pub(crate) sites: Vec<Site>,
    _internet: Router,
    sandbox: Sandbox,
}

/// The peers of a site by their places, with lines of `[peer.port]`.
pub(crate) type Links<'a> = &'a [(usize, &'static str)];

const STAR: [Links<'_>; 3] = [&[(1, ""), (2, "")], &[(0, "")], &[(0, "")]];
const MESH: [Links<'_>; 3] = [
    &[(1, ""), (2, "")],
    &[(0, ""), (2, "")],
    &[(0, ""), (1, "")],
];

impl Sites {
    /// All of them up, and every link too.
    pub(crate) fn start(settings: [Settings; 3], links: [Links<'_>; 3]) -> Self {
        let sandbox = Sandbox::new();
        let internet = Router::internet(&sandbox);
        let mut sites = [1, 2, 3].map(|n| Site::new(&sandbox, &internet, n, 1500));
        for ((site, settings), links) in sites.iter().zip(&settings).zip(links) {
            let peers = links.iter().map(|&(at, port)| Peer {
                port,
                ..sites[at].as_peer(Some(sites[at].uplink.v4.into()))
            });
            site.configure(settings, &peers.collect::<Vec<_>>());
        }
        let plugged = sites.iter().zip(&settings);
        let cables = plugged.map(|(site, settings)| site.cable(1, settings.overlay_mtu));
        let cables = cables.collect();
        for site in &mut sites {
            site.up();
        }
        for site in &sites {
            site.wait_state("up", secs(10));
        }
        Self {
            cables,
            sites: sites.into(),
            _internet: internet,
            sandbox,
        }
    }

    /// The first site is a hub, with these further lines; the others have it as their peer.
    fn star(overlay_mtu: u32, lines: &str) -> Self {
        let settings = Settings {
            overlay_mtu,
            ..Settings::default()
        };
        let hub = Settings {
            // `[tunnel]` is followed by `[device]`; a section of its own may stand in between.
            tunnel: format!("[switch]\nhub = true\n{lines}").leak(),
            ..settings.clone()
        };
        let star = Self::start([hub, settings.clone(), settings], STAR);
        star.connect(&[(0, 1), (0, 2), (1, 2)]);
        star
    }

    fn mesh() -> Self {
        let mesh = Self::start([(); 3].map(|()| Settings::default()), MESH);
        mesh.connect(&[(0, 1), (0, 2), (1, 2)]);
        mesh
    }

    /// Waits until a broadcast crosses in both directions between these.
    pub(crate) fn connect(&self, pairs: &[(usize, usize)]) {
        for &(one, other) in pairs {
            connect(&self.cables[one], &self.cables[other], secs(10));
            connect(&self.cables[other], &self.cables[one], secs(10));
        }
    }

    /// Sends one frame from the cable of a site and checks that it comes out of those `to`, and how
    /// often: once there, and nowhere else.
    fn assert_once(&self, from: usize, to: &[usize], sent: &[u8]) {
        self.cables[from].send(sent);
        for &site in to {
            let came = self.cables[site].receives(sent, secs(3));
            assert!(came, "from {from} to {site}: {} bytes", sent.len());
        }
        // What goes a longer way comes later.
        thread::sleep(millis(200));
        let counts: Vec<_> = self.cables.iter().map(|cable| cable.count(sent)).collect();
        let expected: Vec<_> = (0..3).map(|site| usize::from(to.contains(&site))).collect();
        assert_eq!(counts, expected, "from {from}: {} bytes", sent.len());
    }

    /// Floods frames of several kinds from each site to both others.
    fn assert_floods_once(&self, max_frame: usize) {
        let group = [0x01, 0x00, 0x5e, 0x00, 0x00, 0x05];
        let nobody = [0x02, 0xde, 0xad, 0, 0, 1];
        for (from, to) in [(0, [1, 2]), (1, [0, 2]), (2, [0, 1])] {
            let src = self.cables[from].mac;
            for (seed, (dst, tags, len)) in [
                (BROADCAST, &[][..], 60),
                (BROADCAST, &[], max_frame),
                (BROADCAST, &[(DOT1Q, 42)], max_frame + 4),
                (BROADCAST, &[(DOT1AD, 7), (DOT1Q, 42)], max_frame + 8),
                (group, &[], 300),
                (nobody, &[(DOT1Q, 42)], 300),
            ]
            .into_iter()
            .enumerate()
            {
                let sent = frame(dst, src, tags, EXPERIMENTAL, len, seed as u64);
                self.assert_once(from, &to, &sent);
            }
        }
    }

    /// Frames between two sites, whose cables are known, come out there alone, once and in order.
    fn assert_flows(&self, one: usize, other: usize, sizes: &'static [usize]) {
        let flow = |from: usize, to: usize, id| {
            (
                Flow::between(&self.cables[from], &self.cables[to], id),
                from,
                to,
            )
        };
        let flows = [flow(one, other, 1), flow(other, one, 2)];
        for cable in &self.cables {
            cable.clear();
        }
        let streams = flows.map(|(flow, from, _)| {
            let size = |number: u64| sizes[number as usize % sizes.len()];
            self.cables[from].stream(flow, millis(1), size)
        });
        let third = 3 - one - other;
        eventually(secs(20), "1000 frames arrive", || {
            let came = flows.map(|(flow, _, to)| flow.count(&self.cables[to]));
            (came.into_iter().min() >= Some(1000)).then_some(())
        });
        for ((flow, from, to), stream) in flows.into_iter().zip(streams) {
            let sent = stream.stop();
            flow.wait_number(&self.cables[to], sent - 1, secs(3));
            let tally = flow.tally(&self.cables[to], sent);
            assert_eq!(tally, Tally::perfect(sent), "from {from} to {to}");
            assert_eq!(flow.count(&self.cables[third]), 0, "at {third}");
        }
    }

    fn assert_nothing_refused(&self) {
        let sites: Vec<_> = self.sites.iter().collect();
        assert_nothing_refused(&sites);
    }

    fn dir(&self) -> &Path {
        self.sandbox.path()
    }
}

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

/// TCP comes out of the tunnel at `site` in far fewer packets than segments.
pub(crate) fn assert_whole(from: &Host, to: &Host, site: &Site) {
    for ip in [Ip::V4, Ip::V6] {
        let before = packets(site, "rx_packets");
        transfer(from, to, ip, 256);
        let segments = 256 * BLOCK as u64 / 1448;
        let came = packets(site, "rx_packets") - before;
        println!("{segments} segments came in {came} packets");
        assert!(came * 4 < segments, "{came} of {segments}");
    }
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
    // The first site knows where it lives, and keeps it to itself.
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
