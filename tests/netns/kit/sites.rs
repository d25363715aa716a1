// SPDX-License-Identifier: MIT OR Apache-2.0
//! Three sites: a star around a hub, or a mesh.

use std::path::Path;
use std::thread;

use super::cable::Cable;
use super::frames::{BROADCAST, DOT1AD, DOT1Q, EXPERIMENTAL, Flow, Tally, frame};
use super::pair::connect;
use super::process::{eventually, millis, secs};
use super::site::{Peer, Settings, Site};
use super::topology::{Router, Sandbox};
use super::traffic::assert_nothing_refused;

/// Sites with a cable in each bridge; the first is the hub of a star.
pub(crate) struct Sites {
    pub(crate) cables: Vec<Cable>,
    pub(crate) sites: Vec<Site>,
    _internet: Router,
    sandbox: Sandbox,
}

/// The peers of a site by their index, with lines of `[peer.port]`.
pub(crate) type Links<'a> = &'a [(usize, &'static str)];

pub(crate) const STAR: [Links<'_>; 3] = [&[(1, ""), (2, "")], &[(0, "")], &[(0, "")]];

pub(crate) const MESH: [Links<'_>; 3] = [
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
    pub(crate) fn star(overlay_mtu: u32, lines: &str) -> Self {
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

    pub(crate) fn mesh() -> Self {
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

    /// Sends one frame from the cable of a site and checks that it comes out of those `to`, once
    /// each, and nowhere else.
    pub(crate) fn assert_once(&self, from: usize, to: &[usize], sent: &[u8]) {
        self.cables[from].send(sent);
        for &site in to {
            let came = self.cables[site].receives(sent, secs(20));
            assert!(came, "from {from} to {site}: {} bytes", sent.len());
        }
        // A copy with a longer path arrives later.
        thread::sleep(millis(200));
        let counts: Vec<_> = self.cables.iter().map(|cable| cable.count(sent)).collect();
        let expected: Vec<_> = (0..3).map(|site| usize::from(to.contains(&site))).collect();
        assert_eq!(counts, expected, "from {from}: {} bytes", sent.len());
    }

    /// Floods frames of several kinds from each site to both others.
    pub(crate) fn assert_floods_once(&self, max_frame: usize) {
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

    /// Frames between two sites whose cables are known come out there alone, once and in order.
    pub(crate) fn assert_flows(&self, one: usize, other: usize, sizes: &'static [usize]) {
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
        let streams = flows.map(|(flow, from, to)| {
            let size = |number: u64| sizes[number as usize % sizes.len()];
            self.cables[from].stream_to(&self.cables[to], flow, millis(1), size)
        });
        let third = 3 - one - other;
        eventually(secs(20), "1000 frames arrive", || {
            let came = flows.map(|(flow, _, to)| flow.count(&self.cables[to]));
            (came.into_iter().min() >= Some(1000)).then_some(())
        });
        for ((flow, from, to), stream) in flows.into_iter().zip(streams) {
            let sent = stream.stop();
            flow.wait_number(&self.cables[to], sent - 1, secs(20));
            let tally = flow.tally(&self.cables[to], sent);
            assert_eq!(tally, Tally::perfect(sent), "from {from} to {to}");
            assert_eq!(flow.count(&self.cables[third]), 0, "at {third}");
        }
    }

    pub(crate) fn assert_nothing_refused(&self) {
        let sites: Vec<_> = self.sites.iter().collect();
        assert_nothing_refused(&sites);
    }

    pub(crate) fn dir(&self) -> &Path {
        self.sandbox.path()
    }
}
