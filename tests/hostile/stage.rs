// SPDX-License-Identifier: MIT OR Apache-2.0
//! The real program, and its rogue peers around it.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::kit::cable::Cable;
use crate::kit::frames::{BROADCAST, EXPERIMENTAL, frame};
use crate::kit::process::{eventually, millis, secs};
use crate::kit::site::{Settings, Site};
use crate::kit::topology::{Router, Sandbox};
use crate::rogue::Rogue;

/// A rogue's kernel fragments larger datagrams.
const UNDERLAY_MTU: u32 = 1500;
/// The growth that the program is allowed after its start, whatever its peers send.
const MEMORY_KIB: u64 = 64 * 1024;

/// A configuration of the program, and the shape of a good frame in it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mode {
    pub(crate) name: &'static str,
    /// Lines of `[switch]`, if not empty with their header.
    pub(crate) switch: &'static str,
    /// Lines of `[device]` and behind it.
    pub(crate) device: &'static str,
    /// Lines of each `[peer.port]`.
    pub(crate) peer: &'static str,
    /// The VLAN of a good frame where the cable is, and where the peers are.
    pub(crate) vlan_here: Option<u16>,
    pub(crate) vlan_there: Option<u16>,
}

impl Mode {
    pub(crate) const TAP: Self = Self {
        name: "tap",
        switch: "",
        device: "",
        peer: "",
        vlan_here: None,
        vlan_there: None,
    };
    pub(crate) const PLAIN: Self = Self {
        name: "plain",
        device: "backend = \"plain\"",
        ..Self::TAP
    };
    pub(crate) const HUB: Self = Self {
        name: "hub",
        switch: "[switch]\nhub = true",
        ..Self::TAP
    };
    pub(crate) const WIRE: Self = Self {
        name: "wire",
        device: "mode = \"wire\"",
        ..Self::TAP
    };
    /// The switch pushes a tag on the way to the device.
    pub(crate) const ACCESS: Self = Self {
        name: "access",
        peer: "access = 10",
        vlan_here: Some(10),
        ..Self::TAP
    };
    /// … and finished here.
    pub(crate) const ACCESS_PLAIN: Self = Self {
        name: "access, plain",
        device: "backend = \"plain\"",
        ..Self::ACCESS
    };
}

/// See the module.
pub(crate) struct Stage {
    pub(crate) cable: Cable,
    pub(crate) site: Site,
    pub(crate) mode: Mode,
    rogues: Vec<Rogue>,
    memory_at_start: u64,
    _internet: Router,
    _sandbox: Sandbox,
}

impl Stage {
    /// Starts the program and waits until each of `peers` has a session with it.
    pub(crate) fn start(mode: &Mode, peers: u8) -> Self {
        let sandbox = Sandbox::new();
        let internet = Router::internet(&sandbox);
        let mut site = Site::new(&sandbox, &internet, 1, UNDERLAY_MTU);
        let rogues: Vec<_> = (11..11 + peers)
            .map(|n| Rogue::new(&sandbox, &internet, &site, n, UNDERLAY_MTU))
            .collect();
        let settings = Settings {
            tunnel: mode.switch,
            device: mode.device,
            ..Settings::default()
        };
        let known: Vec<_> = rogues
            .iter()
            .map(|rogue| rogue.as_peer(mode.peer))
            .collect();
        site.configure(&settings, &known);
        let cable = site.cable(1, settings.overlay_mtu);
        site.up().wait_for("ready", secs(20));
        for rogue in &rogues {
            rogue.connect();
        }
        let memory_at_start = site.process().memory_kib();
        let mut stage = Self {
            cable,
            site,
            mode: *mode,
            rogues,
            memory_at_start,
            _internet: internet,
            _sandbox: sandbox,
        };
        stage.assert_well();
        stage
    }

    /// The peers, in the order of the configuration.
    pub(crate) fn rogues(&self) -> &[Rogue] {
        &self.rogues
    }

    /// Checks that the program runs, has not grown without bound, and passes a good frame each way
    /// for each peer with a session.
    pub(crate) fn assert_well(&mut self) {
        for rogue in &self.rogues {
            rogue.connect();
            self.assert_crosses(rogue);
        }
        let memory = self.site.process().memory_kib();
        assert!(
            memory < self.memory_at_start + MEMORY_KIB,
            "{}: memory grew from {} to {memory} KiB",
            self.mode.name,
            self.memory_at_start
        );
        let log = self.site.process().log();
        assert!(!log.contains("panicked"), "{}: {log}", self.mode.name);
    }

    /// Checks that a good frame crosses each way.
    pub(crate) fn assert_crosses(&self, rogue: &Rogue) {
        let name = self.mode.name;
        eventually(
            secs(20),
            &format!("{name}: a frame comes out of the TAP"),
            || {
                let [here, there] = self.good_frame(rogue.mac);
                rogue.send_frame(&there);
                self.cable.receives(&here, millis(200)).then_some(())
            },
        );
        eventually(
            secs(20),
            &format!("{name}: a frame reaches {}", rogue.name),
            || {
                let [here, there] = self.good_frame(self.cable.mac);
                self.cable.send(&here);
                rogue.receives(&there, millis(200)).then_some(())
            },
        );
    }

    /// A broadcast that was not sent before, in its form at the cable and in its form at a peer.
    fn good_frame(&self, from: [u8; 6]) -> [Vec<u8>; 2] {
        // Far from the seeds that tests choose for frames of their own.
        static CALLS: AtomicU64 = AtomicU64::new(1 << 32);
        let seed = CALLS.fetch_add(1, Ordering::Relaxed);
        [self.mode.vlan_here, self.mode.vlan_there].map(|vlan| {
            let tags: Vec<_> = vlan.iter().map(|&vlan| (0x8100, vlan)).collect();
            let len = 100 + 4 * tags.len();
            frame(BROADCAST, from, &tags, EXPERIMENTAL, len, seed)
        })
    }

    /// Waits until the program has counted `reason` more than `before` times.
    pub(crate) fn wait_counted(&self, reason: &str, before: u64) {
        eventually(secs(20), &format!("`{reason}` is counted"), || {
            (self.site.drops(reason) > before).then_some(())
        });
    }
}
