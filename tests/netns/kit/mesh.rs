// SPDX-License-Identifier: MIT OR Apache-2.0
//! Several sites, each with a bare cable in its bridge, and links between them beside the tunnel.
//!
//! ```text
//!   cable -- br-lan -- pc0 = patchcord = pc0 -- br-lan -- cable
//!              |  \                            /  |
//!   host 1 ----+   +--- Link: an Ethernet ----+   +---- host 1
//!                       cable beside it
//! ```

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use patchcord::control::message::{BlockStatus, PortStatus};

use super::cable::Cable;
use super::frames::{self, BROADCAST, Flow, Tally};
use super::namespace::Namespace;
use super::process::{eventually, millis, secs};
use super::site::{BRIDGE, Peer, Settings, Site};
use super::topology::{Router, Sandbox};

/// Sites that are joined over a router.
pub(crate) struct Mesh {
    /// One in each bridge.
    pub(crate) cables: Vec<Cable>,
    pub(crate) sites: Vec<Site>,
    pub(crate) sandbox: Sandbox,
    internet: Router,
}

impl Mesh {
    /// Everything but a running patchcord. `peers(a, b)` says whether the sites `a` and `b`, numbered
    /// from 0, are joined.
    pub(crate) fn prepare(
        sites: u8,
        settings: impl Fn(usize) -> Settings,
        are_peers: impl Fn(usize, usize) -> bool,
    ) -> Self {
        Self::prepare_with_ports(sites, settings, are_peers, "")
    }

    /// The same, with these lines of every `[peer.port]`.
    pub(crate) fn prepare_with_ports(
        sites: u8,
        settings: impl Fn(usize) -> Settings,
        are_peers: impl Fn(usize, usize) -> bool,
        port: &'static str,
    ) -> Self {
        let sandbox = Sandbox::new();
        let internet = Router::internet(&sandbox);
        let sites: Vec<_> = (1..=sites)
            .map(|n| Site::new(&sandbox, &internet, n, 1500))
            .collect();
        for (here, site) in sites.iter().enumerate() {
            let others = sites.iter().enumerate();
            let peers: Vec<_> = others
                .filter(|&(there, _)| there != here && are_peers(here.min(there), here.max(there)))
                .map(|(_, other)| Peer {
                    port,
                    ..at_home(other)
                })
                .collect();
            site.configure(&settings(here), &peers);
        }
        let cables = sites.iter().map(|site| site.cable(1, 1500)).collect();
        Self {
            cables,
            sites,
            sandbox,
            internet,
        }
    }

    /// All sites up, each with every other one as its peer, and frames flow.
    pub(crate) fn start(sites: u8) -> Self {
        Self::start_with(sites, |_| Settings::default(), |_, _| true)
    }

    pub(crate) fn start_with(
        sites: u8,
        settings: impl Fn(usize) -> Settings,
        are_peers: impl Fn(usize, usize) -> bool,
    ) -> Self {
        let mut mesh = Self::prepare(sites, settings, are_peers);
        for site in &mut mesh.sites {
            site.up();
        }
        for site in &mesh.sites {
            site.wait_state("up", secs(20));
        }
        mesh
    }

    /// Broadcasts from every cable come out of every other one, once, and never out of their own.
    pub(crate) fn assert_each_broadcast_arrives_once(&self) {
        const EACH: u64 = 5;
        let flows: Vec<_> = (self.cables.iter().zip(flow_ids()))
            .map(|(cable, id)| Flow {
                src: cable.mac,
                dst: BROADCAST,
                id,
            })
            .collect();
        for number in 0..EACH {
            for (cable, flow) in self.cables.iter().zip(&flows) {
                cable.send(&flow.frame(number, 100));
            }
        }
        let expected = EACH * (flows.len() as u64 - 1);
        let deadline = Instant::now() + secs(10);
        for cable in &self.cables {
            let came = || flows.iter().map(|flow| flow.count(cable)).sum::<u64>();
            while came() < expected && Instant::now() < deadline {
                std::thread::sleep(millis(10));
            }
        }
        // A second copy would have arrived by then.
        std::thread::sleep(millis(300));
        for (at, cable) in self.cables.iter().enumerate() {
            for (from, flow) in flows.iter().enumerate() {
                let expected = if from == at {
                    Tally {
                        sent: EACH,
                        lost: EACH,
                        ..Tally::default()
                    }
                } else {
                    Tally::perfect(EACH)
                };
                assert_eq!(
                    flow.tally(cable, EACH),
                    expected,
                    "from site {} at site {}",
                    from + 1,
                    at + 1
                );
            }
        }
    }

    /// Waits until broadcasts cross as they should: some are lost while sessions settle.
    pub(crate) fn wait_connected(&self) {
        for (at, from) in self.cables.iter().enumerate() {
            for to in others(&self.cables, at) {
                super::pair::connect(from, to, secs(10));
            }
        }
    }

    /// The router of all their uplinks.
    pub(crate) fn router(&self) -> &Arc<Namespace> {
        &self.internet.ns
    }

    /// The blocked ports of all sites.
    pub(crate) fn blocked(&self) -> Vec<Block> {
        self.sites.iter().flat_map(blocks).collect()
    }
}

fn others<T>(all: &[T], at: usize) -> impl Iterator<Item = &T> {
    let (before, rest) = all.split_at(at);
    before.iter().chain(&rest[1..])
}

/// Unused IDs for flows.
fn flow_ids() -> impl Iterator<Item = u16> {
    use std::sync::atomic::{AtomicU16, Ordering};
    static NEXT: AtomicU16 = AtomicU16::new(1000);
    std::iter::repeat_with(|| NEXT.fetch_add(1, Ordering::Relaxed))
}

/// A site as a peer with its uplink's address as the endpoint.
pub(crate) fn at_home(site: &Site) -> Peer {
    site.as_peer(Some(IpAddr::V4(site.uplink.v4)))
}

/// A port that is blocked because of a loop.
#[derive(Clone, Debug)]
pub(crate) struct Block {
    pub(crate) tunnel: String,
    pub(crate) port: String,
    pub(crate) other: String,
    pub(crate) vlan: u16,
    pub(crate) since: Duration,
}

pub(crate) fn blocks(site: &Site) -> Vec<Block> {
    let ports = site.status().ports.into_iter();
    ports
        .filter_map(|PortStatus { port, blocked, .. }| match blocked? {
            BlockStatus::Loop {
                other, vlan, for_s, ..
            } => Some(Block {
                tunnel: site.tunnel.clone(),
                port,
                other,
                vlan,
                since: Duration::from_secs_f64(for_s),
            }),
            BlockStatus::Bpdu => None,
        })
        .collect()
}

/// An Ethernet cable between the bridges of two sites.
pub(crate) struct Link {
    place: Arc<Namespace>,
    port: String,
    /// The time when it began to carry frames.
    pub(crate) since: Instant,
}

impl Link {
    /// Frames pass when this returns.
    pub(crate) fn plug(one: &Site, two: &Site, port: &str) -> Self {
        let pid = two.ns.pid();
        one.ns.ip(&format!(
            "link add {port} type veth peer name {port} netns {pid}"
        ));
        for site in [one, two] {
            site.ns.ip(&format!(
                "link set {port} addrgenmode none\nlink set {port} master {BRIDGE} up"
            ));
        }
        // The kernel may take a second to report the carrier to the bridges.
        let since = [one, two].map(|site| wait_forwarding(&site.ns, port));
        Self {
            place: Arc::clone(&one.ns),
            port: port.to_owned(),
            since: since[0].max(since[1]),
        }
    }

    pub(crate) fn unplug(self) {}
}

impl Drop for Link {
    fn drop(&mut self) {
        self.place.output(&["ip", "link", "del", &self.port]);
    }
}

/// Waits until the bridge forwards frames from a port; returns the time when it was first seen to.
pub(crate) fn wait_forwarding(ns: &Namespace, port: &str) -> Instant {
    const FORWARDING: &str = "3";
    let file = format!("/sys/class/net/{port}/brport/state");
    eventually(secs(20), "the port of a bridge forwards", || {
        let state = ns.run(&["cat", &file]);
        (state.trim() == FORWARDING).then(Instant::now)
    })
}

/// The number of frames that an interface has received.
pub(crate) fn received(ns: &Namespace, interface: &str) -> u64 {
    let file = format!("/sys/class/net/{interface}/statistics/rx_packets");
    let text = ns.run(&["cat", &file]);
    text.trim().parse().expect("a number")
}

/// Frames per second that an interface receives over this time.
pub(crate) fn rate(ns: &Namespace, interface: &str, over: Duration) -> f64 {
    let (begun, before) = (Instant::now(), received(ns, interface));
    std::thread::sleep(over);
    let after = received(ns, interface);
    (after - before) as f64 / begun.elapsed().as_secs_f64()
}

/// A broadcast that no test has sent yet.
pub(crate) fn hello(from: &Cable, tags: &[(u16, u16)]) -> Vec<u8> {
    let seed = flow_ids().next().expect("there is no end");
    frames::frame(
        BROADCAST,
        from.mac,
        tags,
        frames::EXPERIMENTAL,
        80,
        seed.into(),
    )
}

/// Waits until one port of these sites is blocked because of a loop, and checks that no second one is.
pub(crate) fn wait_blocked(sites: &[&Site], limit: Duration) -> Block {
    let all = || -> Vec<_> { sites.iter().flat_map(|site| blocks(site)).collect() };
    let block = eventually(limit, "a port is blocked", || all().into_iter().next());
    let blocked = all();
    assert_eq!(blocked.len(), 1, "{blocked:?}");
    block
}
