// SPDX-License-Identifier: MIT OR Apache-2.0
//! The slow path of the switch: what takes more than a look at one frame.
//!
//! ```text
//!  data threads ── sightings ──> SlowPath ── blocks ports ──> Switch
//!       ^                           │
//!       └──── first outbound <── emissions (to peers)      TAP <── emissions (to the TAP)
//! ```
//! Data threads show it a few frames and go on; it makes frames of its own, such as loop probes. Both
//! ways are bounded: what does not fit is lost, as anywhere on Ethernet. Runs as a task beside the
//! control task.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use patchcord_bridge::{
    Inside, Kind, MacAddr, PortId, Vid,
    loops::{Cause, LoopGuard, NodeId, Verdict},
};
use tokio::sync::mpsc;
use tracing::{info, warn};

use super::{clock, portion::Slot, shared::Shared};
use crate::{
    crypto::{self, mac},
    io::tap::{TapQueue, VnetHeader},
    stats::{DropReason, Drops},
};

/// Frames that wait to be looked at.
pub(super) const SIGHTINGS: usize = 256;
/// Frames that wait to be sent to peers.
pub(super) const EMISSIONS: usize = 256;
/// How often the VLANs in use are looked up, and blocks are checked.
const ROUND: Duration = Duration::from_secs(1);

/// A frame that a data thread has shown.
pub(super) struct Sighting {
    pub(super) kind: Kind,
    pub(super) port: PortId,
    pub(super) frame: Box<[u8]>,
}

/// A frame of our own for a peer.
pub(super) struct Emission {
    pub(super) port: PortId,
    pub(super) inside: Inside,
    pub(super) frame: Box<[u8]>,
}

/// What loop probes are recognised by.
pub(super) struct Probes {
    node: NodeId,
    /// Their source.
    pub(super) source: MacAddr,
}

impl Probes {
    /// Of a node that is new to everybody.
    pub(super) fn random() -> Self {
        let [mut source @ .., _, _] = random();
        // Locally administered, and a station.
        source[0] = source[0] & 0xfc | 0x02;
        Self {
            node: NodeId(u64::from_ne_bytes(random())),
            source: MacAddr(source),
        }
    }
}

fn random() -> [u8; 8] {
    let mut bytes = [0; 8];
    crypto::random(&mut bytes);
    bytes
}

type Authenticate = Box<dyn Fn(&[u8]) -> [u8; 16] + Send>;

pub(super) struct SlowPath {
    shared: Arc<Shared>,
    tap: Arc<TapQueue>,
    drops: Arc<Drops>,
    /// By port, the TAP first.
    names: Vec<String>,
    /// By port: of two peers the one of higher rank is blocked. All nodes agree on it.
    ranks: Vec<u64>,
    loops: Option<LoopGuard<Authenticate>>,
    scratch: Vec<u8>,
}

impl SlowPath {
    /// `ranks` are those of the peers, as all nodes know them. Without `probes` loops are not looked
    /// for.
    pub(super) fn new(
        shared: Arc<Shared>,
        tap: Arc<TapQueue>,
        peers: Vec<(String, u64)>,
        probes: Option<Probes>,
    ) -> Self {
        let (names, ranks) = [("TAP".to_owned(), 0)].into_iter().chain(peers).unzip();
        let mut key = [0; 32];
        crypto::random(&mut key);
        let authenticate: Authenticate = Box::new(move |message| mac::mac(&key, message));
        Self {
            drops: shared.new_drops(),
            shared,
            tap,
            names,
            ranks,
            loops: probes.map(|probes| LoopGuard::new(probes.node, probes.source, authenticate)),
            scratch: Vec::new(),
        }
    }

    /// Works until it is dropped.
    pub(super) async fn run(mut self, mut sightings: mpsc::Receiver<Sighting>) {
        let mut round = tokio::time::interval(ROUND);
        round.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        loop {
            tokio::select! {
                Some(sighting) = sightings.recv() => self.see(&sighting),
                _ = round.tick() => self.look_around(),
                () = tokio::time::sleep_until(self.next_due().into()) => {}
            }
            self.act();
        }
    }

    fn now_us(&self) -> u64 {
        self.shared.clock.now().micros
    }

    fn next_due(&self) -> std::time::Instant {
        let now_us = self.now_us();
        let due_us = self.loops.as_ref().map_or(u64::MAX, LoopGuard::next_due_us);
        let in_us = due_us.saturating_sub(now_us).min(ROUND.as_micros() as u64);
        clock::now() + Duration::from_micros(in_us)
    }

    fn see(&mut self, sighting: &Sighting) {
        let now_us = self.now_us();
        let Sighting { kind, port, frame } = sighting;
        match (kind, &mut self.loops) {
            (Kind::OwnProbe, Some(loops)) => {
                if let Some(verdict) = loops.returned(*port, frame, now_us) {
                    self.carry_out(verdict);
                }
            }
            (Kind::Probe, Some(loops)) => loops.heard(*port, frame, now_us),
            _ => {}
        }
    }

    /// Once in a while: what has changed without a frame that says so.
    fn look_around(&mut self) {
        let now = self.shared.clock.now();
        self.shared.switch.poll(now);
        let Some(loops) = &mut self.loops else { return };
        let entries = self.shared.switch.fdb().entries(now.seconds);
        let mut vlans: BTreeSet<Vid> = entries.map(|entry| entry.vid).collect();
        vlans.insert(Vid::UNTAGGED);
        for (port, rank) in (0..).map(PortId).zip(&self.ranks) {
            loops.watch(port, *rank, vlans.iter().copied());
        }
    }

    fn act(&mut self) {
        let now_us = self.now_us();
        let Some(loops) = &mut self.loops else { return };
        for probe in loops.due(now_us) {
            self.emit(probe.port, Inside::probe(probe.vid), &probe.frame);
        }
        while let Some(verdict) = self.loops.as_mut().and_then(|loops| loops.poll(now_us)) {
            self.carry_out(verdict);
        }
    }

    fn carry_out(&mut self, verdict: Verdict) {
        let set_blocked = |port, blocked| {
            // Only ports that there are have verdicts.
            let _ = self.shared.switch.set_blocked(port, blocked);
        };
        match verdict {
            Verdict::Block { port, cause } => {
                let Cause { other, vid } = cause;
                warn!(
                    port = self.name(port),
                    other = self.name(other),
                    vlan = vid.value(),
                    stations = self.movers(port),
                    "a loop: what leaves by one of two ports comes back by the other; the port is blocked until it is gone. Look for a second link between these sites"
                );
                set_blocked(port, true);
            }
            Verdict::Open { port } => {
                info!(
                    port = self.name(port),
                    "the loop is gone, and the port open again"
                );
                set_blocked(port, false);
            }
            Verdict::Behind { port, vid } => warn!(
                port = self.name(port),
                vlan = vid.value(),
                "a loop behind this port, which cannot be cut from here: look for two links between switches there"
            ),
        }
        let report = self.loops.iter().flat_map(LoopGuard::report);
        self.shared.report_loops(report.collect());
    }

    /// Stations that moved between this port and others of late, for people.
    fn movers(&self, port: PortId) -> String {
        let moves = self.shared.switch.fdb().last_moves();
        let of_port = moves
            .iter()
            .filter(|seen| seen.from == port || seen.to == port);
        let stations: BTreeSet<_> = of_port.map(|seen| (seen.vid.value(), seen.mac.0)).collect();
        const SHOWN: usize = 4;
        let shown = stations.iter().take(SHOWN);
        let texts = shown.map(|(vid, mac)| format!("{} in VLAN {vid}", MacAddr(*mac)));
        texts.collect::<Vec<_>>().join(", ")
    }

    fn name(&self, port: PortId) -> &str {
        self.names.get(usize::from(port.0)).map_or("?", |name| name)
    }

    /// Sends a frame of our own. That a port has not its VLAN is no loss.
    fn emit(&mut self, port: PortId, inside: Inside, frame: &[u8]) {
        let Ok(edit) = self.shared.switch.originate(inside, port) else {
            return;
        };
        if port != PortId::TAP {
            let frame = frame.into();
            return self.shared.emit(Emission {
                port,
                inside,
                frame,
            });
        }
        let mut slot = Slot::copy(&mut self.scratch, &[frame]);
        let written = slot.with_edit(edit, |frame| self.tap.write(&VnetHeader::NONE, frame));
        if written.is_err() {
            self.drops.count(DropReason::TapWriteFailed);
        }
    }
}
