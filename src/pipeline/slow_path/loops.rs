// SPDX-License-Identifier: MIT OR Apache-2.0
//! Loops: sends probes, blocks and unblocks ports.

use std::{collections::BTreeSet, sync::Arc};

use patchcord_bridge::{
    Inside, MacAddr, PortId, VidSet,
    fdb::Move,
    loops::{Blocked, Cause, LoopGuard, Verdict},
};
use tokio::sync::mpsc;
use tracing::{debug, info, warn};

use super::{config::Probes, injector::Injector};
use crate::{
    crypto::{self, mac},
    pipeline::{
        port_names::PortNames,
        shared::Shared,
        view::{EVENTS, EngineEvent},
    },
};

/// Stations that moved are a sign of a loop for this long: those that move too often stay for a
/// minute.
const RECENT_S: u32 = 60;

type Authenticate = Box<dyn Fn(&[u8]) -> [u8; 16] + Send>;

/// The guard against loops, and the state that it needs to act.
pub(super) struct Loops {
    shared: Arc<Shared>,
    guard: LoopGuard<Authenticate>,
    names: PortNames,
    /// Those that the guard has.
    ranks: Vec<u64>,
    /// The VLANs in which it looks for loops.
    watched: VidSet,
    events: mpsc::Sender<EngineEvent>,
}

impl Loops {
    pub(super) fn new(
        shared: Arc<Shared>,
        probes: &Probes,
        confined: &[PortId],
        events: mpsc::Sender<EngineEvent>,
    ) -> Self {
        let mut key = [0; 32];
        crypto::random(&mut key);
        let authenticate: Authenticate = Box::new(move |message| mac::mac(&key, message));
        let mut guard = LoopGuard::new(probes.node, probes.source, authenticate);
        confined.iter().for_each(|&port| guard.confine(port));
        Self {
            names: shared.names.clone(),
            ranks: Vec::new(),
            shared,
            guard,
            watched: VidSet::EMPTY,
            events,
        }
    }

    /// A probe of this node returned. True if that changed something.
    pub(super) fn returned(&mut self, ingress: PortId, frame: &[u8]) -> bool {
        let verdict = self.guard.returned(ingress, frame, self.now_us());
        verdict.map(|verdict| self.carry_out(verdict)).is_some()
    }

    /// A probe of another node arrived.
    pub(super) fn heard(&mut self, ingress: PortId, inside: Inside, frame: &[u8]) {
        let now_us = self.now_us();
        self.guard.heard(ingress, inside.vid, frame, now_us);
    }

    /// To be called once in a while: takes the VLANs in use, and stations that have moved.
    pub(super) fn tick(&mut self, vlans: VidSet) {
        let ranks = self.names.ranks();
        if vlans != self.watched || ranks != self.ranks {
            for (port, rank) in (0..).map(PortId).zip(&ranks) {
                self.guard.watch(port, *rank, vlans.iter());
            }
            (self.watched, self.ranks) = (vlans, ranks);
        }
        let now_s = self.shared.clock.now().seconds;
        let moves = self.shared.fdb.last_moves();
        let is_recent = |seen: &Move| now_s.saturating_sub(seen.at_s) <= RECENT_S;
        let moves = moves.into_iter().rev().filter(is_recent);
        self.guard.suspect(moves.map(|seen| seen.vid));
    }

    /// Sends the probes that are due, and carries out what the guard decides. True if that changed
    /// something.
    pub(super) fn act(&mut self, injector: &mut Injector) -> bool {
        let now_us = self.now_us();
        for probe in self.guard.due(now_us) {
            injector.inject(probe.port, Inside::probe(probe.vid), &probe.frame);
        }
        let mut is_changed = false;
        while let Some(verdict) = self.guard.poll(now_us) {
            self.carry_out(verdict);
            is_changed = true;
        }
        is_changed
    }

    pub(super) fn next_due_us(&self) -> u64 {
        self.guard.next_due_us()
    }

    /// The ports that are blocked.
    pub(super) fn report(&self) -> impl Iterator<Item = Blocked> + '_ {
        self.guard.report()
    }

    fn carry_out(&mut self, verdict: Verdict) {
        let set_blocked = |port, blocked| {
            // Verdicts are only about ports that exist.
            let _ = self.shared.switch().set_blocked(port, blocked);
        };
        match verdict {
            Verdict::Block { port, cause } => {
                let Cause { other, vid } = cause;
                let stations = self.movers(port);
                warn!(
                    port = self.names.name(port),
                    other = self.names.name(other),
                    vlan = vid.value(),
                    stations = (!stations.is_empty()).then_some(stations),
                    "loop detected: frames that leave by one of two ports return by the other; the port is blocked until the loop is gone. Look for a second link between these sites"
                );
                set_blocked(port, true);
                self.learn_anew();
            }
            Verdict::Unblock { port } => {
                info!(
                    port = self.names.name(port),
                    "the loop is gone; the port forwards again"
                );
                set_blocked(port, false);
                self.learn_anew();
            }
            Verdict::Relearn => {
                debug!("a port was blocked or unblocked: relearning stations");
                self.learn_anew();
            }
            Verdict::RelearnBehind { port } => {
                debug!(
                    port = self.names.name(port),
                    "a port was blocked or unblocked behind this one: relearning its stations"
                );
                self.shared.switch().relearn_behind(port);
                notify_moved(&self.events);
            }
            Verdict::Behind { port, vid } => warn!(
                port = self.names.name(port),
                vlan = vid.value(),
                "a loop behind this port cannot be cut from here: look for two links between switches there"
            ),
        }
    }

    /// Stations may be elsewhere, for this switch and for the bridge that the TAP is in.
    fn learn_anew(&self) {
        self.shared.switch().relearn();
        notify_moved(&self.events);
    }

    /// Stations that moved recently between this port and the one with which it forms a loop, for
    /// the log.
    fn movers(&self, port: PortId) -> String {
        const LATE_S: u32 = 10;
        let mut report = self.guard.report();
        let Some(blocked) = report.find(|blocked| blocked.port == port) else {
            return String::new();
        };
        let now_s = self.shared.clock.now().seconds;
        let moves = self.shared.fdb.last_moves();
        let between = moves.iter().filter(|seen| {
            let is_late = now_s.wrapping_sub(seen.at_s) <= LATE_S;
            is_late && blocked.explains_move(seen.from, seen.to)
        });
        let stations: BTreeSet<_> = between.map(|seen| (seen.vid.value(), seen.mac.0)).collect();
        const SHOWN: usize = 4;
        let shown = stations.iter().take(SHOWN);
        let texts = shown.map(|(vid, mac)| format!("{} in VLAN {vid}", MacAddr(*mac)));
        texts.collect::<Vec<_>>().join(", ")
    }

    fn now_us(&self) -> u64 {
        self.shared.clock.now().micros
    }
}

/// Leaves half of the queue to others, as the end of a thread is reported only once. A notice of
/// this kind that still waits covers another one.
pub(super) fn notify_moved(events: &mpsc::Sender<EngineEvent>) {
    let has_room = events.capacity() > EVENTS / 2;
    if !has_room || events.try_send(EngineEvent::StationsMoved).is_err() {
        debug!("the event queue of the engine is full: StationsMoved is not delivered");
    }
}
