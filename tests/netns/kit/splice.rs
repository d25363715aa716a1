// SPDX-License-Identifier: MIT OR Apache-2.0
//! A relay in the cable between a site and its router: a bad path that counts what it does to each
//! frame.
//!
//! ```text
//!  site ── wan ═══ near ─ relay ─ far ═══ to1 ── router
//! ```

use std::sync::Arc;

use patchcord_relay::{Harm, Relay, Report};

use super::namespace::Namespace;
use super::site::Site;
use super::topology::{Router, Sandbox};

pub(crate) struct Splice {
    relay: Relay,
    _ns: Arc<Namespace>,
}

impl Splice {
    /// Cuts the cable of a site that is not up yet.
    pub(crate) fn into(sandbox: &Sandbox, router: &Router, site: &Site, harm: &Harm) -> Self {
        let ns = sandbox.namespace("relay");
        let port = site.uplink.router_port();
        let pid = ns.pid();
        router.ns.ip(&format!("link set {port} netns {pid}"));
        ns.ip(&format!("link set {port} name near"));
        router.plug(&site.uplink, &ns, "far", 1500);
        for end in ["near", "far"] {
            ns.ip(&format!("link set {end} addrgenmode none up"));
        }
        site.ns.turn_offloads_off("wan");
        router.ns.turn_offloads_off(&port);
        let relay = ns
            .enter(|| Relay::start("near", "far", harm))
            .expect("root may open raw sockets");
        Self { relay, _ns: ns }
    }

    /// Stops forwarding. Returns the counters, and checks that the relay did only the harm that was
    /// asked for.
    pub(crate) fn cut(self) -> Report {
        let report = self.relay.stop().expect("both interfaces stayed");
        for counters in [report.a_to_b, report.b_to_a] {
            assert_eq!(counters.unfinished_checksum, 0, "{counters:?}");
            assert_eq!(counters.too_long, 0, "{counters:?}");
            assert_eq!(counters.overrun, 0, "{counters:?}");
        }
        report
    }
}
