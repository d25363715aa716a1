// SPDX-License-Identifier: MIT OR Apache-2.0
//! The slow path of the switch: work that needs more than a single frame.
//!
//! ```text
//!  data threads ── punted ──> SlowPath ── blocks ports ──> Switch
//!       ^                           │
//!       └──── first outbound <── injected (to peers)      TAP <── injected (to the TAP)
//! ```
//! Data threads punt a few frames to it and go on; it originates frames, such as loop probes. Both
//! queues are bounded: frames that do not fit are lost, as anywhere on Ethernet. Runs as a task
//! beside the control task.

mod config;
pub(super) mod event;
mod fdb_scan;
mod groups;
mod injector;
mod limit_log;
mod loops;
mod neighbours;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use patchcord_bridge::{Kind, PortId};
use tokio::{
    sync::mpsc,
    time::{MissedTickBehavior, interval, sleep_until},
};

use self::{
    event::{PuntedFrame, SlowPathEvent},
    fdb_scan::FdbScan,
    groups::Groups,
    injector::Injector,
    limit_log::LimitLog,
    loops::Loops,
    neighbours::NeighbourProxy,
};
use super::{
    clock,
    port_names::PortNames,
    shared::{Shared, SlowView},
    view::EngineEvent,
};
use crate::{io::tap::TapQueue, tripwire};

pub(super) use self::config::{Probes, SlowPathConfig};

/// Groups that `show` lists.
const GROUPS_SHOWN: usize = 1000;
/// How often the VLANs in use are looked up, and blocks are checked.
const ROUND: Duration = Duration::from_secs(1);

pub(super) struct SlowPath {
    shared: Arc<Shared>,
    injector: Injector,
    names: PortNames,
    scan: FdbScan,
    loops: Option<Loops>,
    groups: Option<Groups>,
    neighbours: NeighbourProxy,
    limits: LimitLog,
}

impl SlowPath {
    pub(super) fn new(
        shared: Arc<Shared>,
        tap: Arc<TapQueue>,
        config: SlowPathConfig,
        events: mpsc::Sender<EngineEvent>,
    ) -> Self {
        let names = shared.names.clone();
        let SlowPathConfig {
            loops,
            snooping,
            neighbours,
            customers,
            confined,
        } = config;
        let guard = |probes| {
            let shared = shared.clone();
            Loops::new(shared, &probes, &confined, events)
        };
        let groups = |config| Groups::new(shared.clone(), config, customers);
        Self {
            injector: Injector::new(shared.clone(), tap),
            scan: FdbScan::new(names.count()),
            loops: loops.map(guard),
            groups: snooping.map(groups),
            neighbours: NeighbourProxy::new(shared.clone(), neighbours),
            limits: LimitLog::default(),
            names,
            shared,
        }
    }

    /// Works until it is dropped.
    pub(super) async fn run(mut self, mut punted: mpsc::Receiver<PuntedFrame>) {
        let mut round = interval(ROUND);
        round.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let heartbeat = self.shared.watchdog.heartbeat("slow path");
        loop {
            heartbeat.work();
            tokio::select! {
                Some(frame) = punted.recv() => self.handle_event(SlowPathEvent::Punted(frame)),
                () = self.shared.presence.changed() => self.handle_presence(),
                _ = round.tick() => self.tick(),
                () = sleep_until(self.next_due().into()) => {}
            }
            self.act();
        }
    }

    fn next_due(&self) -> Instant {
        let loops_us = self.loops.as_ref().map_or(u64::MAX, Loops::next_due_us);
        let groups_us = self.groups.as_ref().map_or(u64::MAX, Groups::next_due_us);
        let due_us = loops_us.min(groups_us);
        let now_us = self.shared.clock.now().micros;
        let in_us = due_us.saturating_sub(now_us).min(ROUND.as_micros() as u64);
        clock::now() + Duration::from_micros(in_us)
    }

    fn handle_event(&mut self, event: SlowPathEvent) {
        match event {
            SlowPathEvent::Punted(frame) => {
                // The session of a peer is up before the peer's first frame arrives.
                self.handle_presence();
                self.handle_punted(&frame);
            }
            SlowPathEvent::PeerUp(port) => self.peer_up(port),
            SlowPathEvent::PeerDown(port) => self.peer_down(port),
        }
    }

    fn handle_punted(&mut self, punted: &PuntedFrame) {
        let PuntedFrame {
            kind,
            ingress,
            inside,
            ref frame,
        } = *punted;
        match kind {
            Kind::OwnProbe => {
                if let Some(loops) = &mut self.loops
                    && loops.returned(ingress, frame)
                {
                    self.publish_status();
                }
            }
            Kind::Probe => {
                if let Some(loops) = &mut self.loops {
                    loops.heard(ingress, inside, frame);
                }
            }
            Kind::Membership => {
                if let Some(groups) = &mut self.groups {
                    groups.handle(ingress, inside, frame, &mut self.injector);
                }
            }
            Kind::Neighbour => {
                let injector = &mut self.injector;
                self.neighbours.handle(ingress, inside, frame, injector);
            }
            Kind::Binding => {
                self.neighbours.learn(ingress, inside, frame);
            }
            Kind::Data => {}
        }
    }

    fn handle_presence(&mut self) {
        for event in self.shared.presence.take() {
            self.handle_event(event);
        }
    }

    fn peer_up(&mut self, port: PortId) {
        if let Some(groups) = &mut self.groups {
            groups.peer_up(port, &mut self.injector);
        }
    }

    fn peer_down(&mut self, port: PortId) {
        if let Some(groups) = &mut self.groups {
            groups.peer_down(port);
        }
        self.neighbours.peer_down(port);
    }

    /// To be called once in a while: handles changes that no frame announces.
    fn tick(&mut self) {
        tripwire::task("slow path");
        self.handle_presence();
        let now = self.shared.clock.now();
        let switch = self.shared.switch();
        switch.poll(now);
        self.scan.advance(switch.fdb(), now.seconds);
        if let Some(groups) = &mut self.groups {
            groups.tick(|| self.scan.stations(), &mut self.injector);
        }
        self.publish_status();
        let switch = self.shared.switch();
        self.limits
            .check(&switch, &self.scan, &self.names, now.seconds);
        if let Some(loops) = &mut self.loops {
            loops.tick(self.scan.vlans());
        }
    }

    fn act(&mut self) {
        if let Some(groups) = &mut self.groups {
            groups.publish();
        }
        if let Some(loops) = &mut self.loops
            && loops.act(&mut self.injector)
        {
            self.publish_status();
        }
    }

    /// Publishes the part of the slow path's state that `show` prints.
    fn publish_status(&self) {
        let loops = self.loops.iter().flat_map(Loops::report);
        let groups = self.groups.iter().flat_map(Groups::entries);
        self.shared.set_slow_view(SlowView {
            loops: loops.collect(),
            groups: groups.take(GROUPS_SHOWN).collect(),
        });
    }
}

#[cfg(test)]
mod tests;
