// SPDX-License-Identifier: MIT OR Apache-2.0
//! Two sites that are each other's peers; see the picture in `main.rs`.

use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::cable::Cable;
use super::frames::{self, Flow};
use super::process::{eventually, millis, secs};
use super::site::{Peer, Settings, Site};
use super::topology::{Router, Sandbox};

/// The parts of a [`Pair`].
pub(crate) struct Plan {
    pub(crate) settings: Settings,
    pub(crate) underlay_mtu: u32,
    pub(crate) ipv6: bool,
    /// Which sides have the endpoint of the other.
    pub(crate) a_knows_b: bool,
    pub(crate) b_knows_a: bool,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            settings: Settings::default(),
            underlay_mtu: 1500,
            ipv6: false,
            a_knows_b: true,
            b_knows_a: true,
        }
    }
}

/// Lines of `[device.port]` and of `[peer.port]`.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Ports {
    pub(crate) device: &'static str,
    pub(crate) peer: &'static str,
}

/// Two sites with a cable in each bridge, joined over a router; see the picture in `main.rs`.
pub(crate) struct Pair {
    pub(crate) at_a: Cable,
    pub(crate) at_b: Cable,
    pub(crate) a: Site,
    pub(crate) b: Site,
    pub(crate) internet: Router,
    pub(crate) settings: Settings,
    pub(crate) sandbox: Sandbox,
}

impl Pair {
    /// Everything but a running patchcord.
    pub(crate) fn prepare(plan: Plan) -> Self {
        let sandbox = Sandbox::new();
        let internet = Router::internet(&sandbox);
        let a = Site::new(&sandbox, &internet, 1, plan.underlay_mtu);
        let b = Site::new(&sandbox, &internet, 2, plan.underlay_mtu);
        let address = |site: &Site| {
            if plan.ipv6 {
                IpAddr::V6(site.uplink.v6)
            } else {
                IpAddr::V4(site.uplink.v4)
            }
        };
        a.configure(
            &plan.settings,
            &[b.as_peer(plan.a_knows_b.then(|| address(&b)))],
        );
        b.configure(
            &plan.settings,
            &[a.as_peer(plan.b_knows_a.then(|| address(&a)))],
        );
        let overlay_mtu = plan.settings.overlay_mtu;
        let (at_a, at_b) = (a.cable(1, overlay_mtu), b.cable(1, overlay_mtu));
        Self {
            at_a,
            at_b,
            a,
            b,
            internet,
            settings: plan.settings,
            sandbox,
        }
    }

    /// A calls B and B waits, so that one side counts each drop.
    pub(crate) fn caller_and_waiter() -> Self {
        Self::prepare(Plan {
            b_knows_a: false,
            ..Plan::default()
        })
    }

    /// Both sides up, and frames flow.
    pub(crate) fn start(plan: Plan) -> Self {
        let mut pair = Self::prepare(plan);
        pair.up();
        pair.connect(secs(10));
        pair
    }

    /// Both sites up, with these ports of their switches at A and B.
    pub(crate) fn start_with_ports(ports: [Ports; 2]) -> Self {
        let mut pair = Self::prepare(Plan::default());
        let sides = [(&pair.a, &pair.b), (&pair.b, &pair.a)];
        for ((site, other), ports) in sides.into_iter().zip(ports) {
            let settings = Settings {
                device: format!("[device.port]\n{}", ports.device).leak(),
                ..pair.settings.clone()
            };
            let peer = Peer {
                port: ports.peer,
                ..other.as_peer(Some(other.uplink.v4.into()))
            };
            site.configure(&settings, &[peer]);
        }
        pair.up();
        for site in [&pair.a, &pair.b] {
            site.wait_state("up", secs(10));
        }
        pair
    }

    pub(crate) fn up(&mut self) {
        self.a.up();
        self.b.up();
    }

    /// Waits until a broadcast crosses in each direction, which also teaches the switches both
    /// stations.
    pub(crate) fn connect(&self, limit: Duration) {
        connect(&self.at_a, &self.at_b, limit);
        connect(&self.at_b, &self.at_a, limit);
    }

    /// The flow from the cable at A to the one at B, and the way back.
    pub(crate) fn there(&self) -> Flow {
        Flow::between(&self.at_a, &self.at_b, 1)
    }

    pub(crate) fn back(&self) -> Flow {
        Flow::between(&self.at_b, &self.at_a, 2)
    }
}

/// Sends broadcasts from one cable until one of this call, and not of an earlier one, comes out of the
/// other.
pub(crate) fn connect(from: &Cable, to: &Cable, limit: Duration) {
    // Far from the seeds that tests choose for frames of their own.
    static CALLS: AtomicU64 = AtomicU64::new(1 << 32);
    let seed = CALLS.fetch_add(1, Ordering::Relaxed);
    let hello = frames::frame(
        frames::BROADCAST,
        from.mac,
        &[],
        frames::EXPERIMENTAL,
        60,
        seed,
    );
    eventually(limit, "a broadcast crosses", || {
        from.send(&hello);
        to.receives(&hello, millis(50)).then_some(())
    });
}
