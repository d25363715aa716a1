// SPDX-License-Identifier: MIT OR Apache-2.0
//! Two sites that attach a NIC each, and no bridge.

use super::process::{eventually, secs};
use super::site::{Settings, Site};
use super::topology::{Host, Router, Sandbox};

pub(crate) const NIC: &str = "eth7";

/// Two sites, and whatever is plugged into their NICs.
pub(crate) struct Wire<T> {
    pub(crate) at: [T; 2],
    pub(crate) sites: [Site; 2],
    _internet: Router,
    pub(crate) sandbox: Sandbox,
}

impl<T> Wire<T> {
    /// The program runs at both ends.
    pub(crate) fn start(plug: impl Fn(&Site) -> T) -> Self {
        Self::start_with("", plug)
    }

    /// The same, with further lines behind `[device]`.
    pub(crate) fn start_with(further: &'static str, plug: impl Fn(&Site) -> T) -> Self {
        let mut wire = Self::prepare(further, plug);
        for site in &mut wire.sites {
            site.up();
        }
        for site in &wire.sites {
            site.wait_state("up", secs(10));
        }
        wire
    }

    /// The same, with no program running yet.
    pub(crate) fn prepare(further: &'static str, plug: impl Fn(&Site) -> T) -> Self {
        let sandbox = Sandbox::new();
        let internet = Router::internet(&sandbox);
        let sites = [1, 2].map(|n| Site::new(&sandbox, &internet, n, 1500));
        let at = [&sites[0], &sites[1]].map(plug);
        let wire = Self {
            at,
            sites,
            _internet: internet,
            sandbox,
        };
        let settings = Settings {
            nic: Some(NIC),
            device: further,
            ..Settings::default()
        };
        let [a, b] = &wire.sites;
        for (site, other) in [(a, b), (b, a)] {
            let peer = other.as_peer(Some(other.uplink.v4.into()));
            site.configure(&settings, &[peer]);
        }
        wire
    }

    pub(crate) fn drops(&self, reason: &str) -> u64 {
        self.sites.iter().map(|site| site.drops(reason)).sum()
    }
}

/// A host at each NIC.
pub(crate) fn hosts(further: &'static str) -> Wire<Host> {
    let wire = Wire::start_with(further, |site| site.host_at(1, NIC));
    let [a, b] = &wire.at;
    eventually(secs(10), "neighbours know each other", || {
        let ping = ["ping", "-c1", "-W1", &b.v4.to_string()].map(str::to_owned);
        a.ns.succeeds(&ping.each_ref().map(String::as_str))
            .then_some(())
    });
    wire
}
