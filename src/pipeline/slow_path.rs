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

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, Ipv6Addr},
    sync::Arc,
    time::Duration,
};

use patchcord_bridge::{
    Headers, Inside, Kind, MacAddr, PortConfig, PortId, SwitchConfig, Vid, VidSet,
    fdb::Move,
    loops::{self, Cause, LoopGuard, NodeId, Verdict},
    membership::{Querier, QueryFrame, Snooping, SnoopingConfig},
    neighbours::{Neighbours, NeighboursConfig},
};
use tokio::sync::mpsc;
use tracing::{debug, info, warn};

use super::{
    clock,
    limit_log::{Excess, Limit, LimitLog},
    portion::Slot,
    presence::Change,
    shared::{Shared, SlowView},
    survey::Survey,
    view::{EVENTS, EngineEvent},
};
use crate::{
    crypto::{self, mac},
    io::tap::{TapQueue, VnetHeader},
    stats::{DropReason, Drops},
    tripwire,
};

/// Frames that wait to be looked at.
pub(super) const SIGHTINGS: usize = 256;
/// Of these, questions for addresses: each may become a frame to be sent to peers.
pub(super) const QUESTIONS: usize = 128;
/// Frames that wait to be sent to peers, beside what questions become: a round of loop probes.
pub(super) const EMISSIONS_PER_PORT: usize = 64;
/// Groups that people are told of.
const GROUPS_SHOWN: usize = 1000;
/// How often the VLANs in use are looked up, and blocks are checked.
const ROUND: Duration = Duration::from_secs(1);
/// Stations that moved are a sign of a loop for so long: those that move too often stay for a minute.
const RECENT_S: u32 = 60;

/// A frame that came by a port, for the slow path to look at.
pub(super) struct Sighting {
    pub(super) kind: Kind,
    pub(super) ingress: PortId,
    pub(super) inside: Inside,
    pub(super) frame: Box<[u8]>,
}

/// A frame of our own for peers.
pub(super) struct Emission {
    pub(super) to: To,
    pub(super) inside: Inside,
    pub(super) frame: Box<[u8]>,
}

/// Whom an emission is for.
#[derive(Clone, Copy)]
pub(super) enum To {
    Peer(PortId),
    /// Every peer that may have what came from this port, or what this node has made.
    Peers(Option<PortId>),
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
        Self {
            node: NodeId(u64::from_ne_bytes(random())),
            source: loops::source(random()),
        }
    }
}

/// What there is to do.
#[derive(Default)]
pub(super) struct Duties {
    /// Look for loops.
    pub(super) loops: Option<Probes>,
    /// Learn who wants which multicast.
    snooping: Option<SnoopingConfig>,
    /// Answer for others.
    neighbours: Option<NeighboursConfig>,
    /// VLANs in which nobody is asked for groups.
    customers: BTreeSet<Vid>,
    /// Ports that refuse addresses of others.
    confined: Vec<PortId>,
}

impl Duties {
    /// What the ports of a switch ask for, loops aside.
    pub(super) fn of(switch: &SwitchConfig, is_querier: bool, has_switch: bool) -> Self {
        if !has_switch {
            return Self::default();
        }
        let ports = || (0..).map(PortId).zip(&switch.ports);
        let is_snooping = is_querier || ports().any(|(_, port)| port.multicast_snooping);
        let suppresses = ports().any(|(_, port)| port.neighbour_suppression);
        // Who is behind a tunnel is not asked.
        let is_deaf =
            |port: &PortConfig| !port.multicast_snooping || port.vlans.as_tunnel().is_some();
        let deaf = ports().filter(|(_, port)| is_deaf(port));
        let snooping = SnoopingConfig {
            ports: switch.ports.len() as u16,
            mesh: !switch.hub,
            // Nobody hears what is wanted there, so all of it is.
            router_ports: deaf.map(|(port, _)| port).collect(),
            querier: is_querier.then(querier),
            ..SnoopingConfig::default()
        };
        let neighbours = NeighboursConfig {
            mesh: !switch.hub,
            ageing_s: switch.ageing_s,
            ..NeighboursConfig::default()
        };
        Self {
            loops: None,
            snooping: is_snooping.then_some(snooping),
            neighbours: suppresses.then_some(neighbours),
            customers: ports()
                .filter_map(|(_, port)| port.vlans.as_tunnel())
                .collect(),
            confined: ports()
                .filter(|(_, port)| port.spoof_guard)
                .map(|(id, _)| id)
                .collect(),
        }
    }
}

/// Asks from no IPv4 address, so that any other querier is preferred (RFC 4541 section 2.1.1), and
/// from the link-local IPv6 address of a station that nobody else is (RFC 4291 appendix A).
fn querier() -> Querier {
    let MacAddr([a, b, c, d, e, f]) = random_mac();
    let interface = [a ^ 0x02, b, c, 0xff, 0xfe, d, e, f];
    let link_local = 0xfe80_u128 << 112 | u128::from(u64::from_be_bytes(interface));
    Querier {
        mac: MacAddr([a, b, c, d, e, f]),
        ipv4: Ipv4Addr::UNSPECIFIED,
        ipv6: Ipv6Addr::from_bits(link_local),
        vlans: vec![Vid::UNTAGGED],
        interval_s: 125,
    }
}

/// Locally administered, and a station's.
fn random_mac() -> MacAddr {
    let mut mac: [u8; 6] = random();
    mac[0] = mac[0] & 0xfc | 0x02;
    MacAddr(mac)
}

fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
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
    /// Ports to peers that are up.
    present: BTreeSet<PortId>,
    loops: Option<LoopGuard<Authenticate>>,
    /// The VLANs in which it looks for them.
    watched: VidSet,
    survey: Survey,
    snooping: Option<Snooping>,
    /// From when on a table of groups may be made again.
    groups_due_us: u64,
    neighbours: Option<Neighbours>,
    limits: LimitLog,
    events: mpsc::Sender<EngineEvent>,
    scratch: Vec<u8>,
    /// VLANs of tunnels: those behind them are customers, who ask for themselves.
    customers: BTreeSet<Vid>,
}

impl SlowPath {
    /// Peers have ranks, on which all nodes agree.
    pub(super) fn new(
        shared: Arc<Shared>,
        tap: Arc<TapQueue>,
        peers: Vec<(String, u64)>,
        duties: Duties,
        events: mpsc::Sender<EngineEvent>,
    ) -> Self {
        let (names, ranks): (Vec<_>, _) = [("TAP".to_owned(), 0)].into_iter().chain(peers).unzip();
        let mut key = [0; 32];
        crypto::random(&mut key);
        let authenticate: Authenticate = Box::new(move |message| mac::mac(&key, message));
        let now_s = shared.clock.now().seconds;
        let Duties {
            loops,
            snooping,
            neighbours,
            customers,
            confined,
        } = duties;
        let guard = |probes: Probes| {
            let mut guard = LoopGuard::new(probes.node, probes.source, authenticate);
            confined.iter().for_each(|&port| guard.confine(port));
            guard
        };
        Self {
            drops: shared.new_drops(),
            shared,
            tap,
            survey: Survey::new(names.len()),
            names,
            ranks,
            present: BTreeSet::new(),
            loops: loops.map(guard),
            watched: VidSet::EMPTY,
            snooping: snooping.map(|config| Snooping::new(config, now_s)),
            groups_due_us: 0,
            neighbours: neighbours.map(Neighbours::new),
            limits: LimitLog::default(),
            events,
            scratch: Vec::new(),
            customers,
        }
    }

    /// Works until it is dropped.
    pub(super) async fn run(mut self, mut sightings: mpsc::Receiver<Sighting>) {
        let mut round = tokio::time::interval(ROUND);
        round.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        let pulse = self.shared.vitals.pulse("slow path");
        loop {
            pulse.work();
            tokio::select! {
                Some(sighting) = sightings.recv() => self.see(&sighting),
                () = self.shared.presence.changed() => self.follow_presence(),
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
        let loops_us = self.loops.as_ref().map_or(u64::MAX, LoopGuard::next_due_us);
        let is_changed = self.snooping.as_ref().is_some_and(Snooping::is_changed);
        let groups_us = if is_changed {
            self.groups_due_us
        } else {
            u64::MAX
        };
        let due_us = loops_us.min(groups_us);
        let in_us = due_us.saturating_sub(now_us).min(ROUND.as_micros() as u64);
        clock::now() + Duration::from_micros(in_us)
    }

    fn see(&mut self, sighting: &Sighting) {
        let Sighting {
            kind,
            ingress,
            inside,
            ref frame,
        } = *sighting;
        // A peer comes before its frames.
        self.follow_presence();
        let now = self.shared.clock.now();
        match kind {
            Kind::OwnProbe => {
                let loops = self.loops.as_mut();
                let verdict = loops.and_then(|loops| loops.returned(ingress, frame, now.micros));
                if let Some(verdict) = verdict {
                    self.carry_out(verdict);
                }
            }
            Kind::Probe => {
                if let Some(loops) = &mut self.loops {
                    loops.heard(ingress, inside.vid, frame, now.micros);
                }
            }
            Kind::Membership => self.see_membership(ingress, inside, frame, now.seconds),
            Kind::Neighbour => self.see_neighbour(ingress, inside, frame, now.seconds),
            Kind::Binding => {
                self.note_neighbour(ingress, inside, frame, now.seconds);
            }
            Kind::Data => {}
        }
    }

    fn see_membership(&mut self, ingress: PortId, inside: Inside, frame: &[u8], now_s: u32) {
        let Some(snooping) = &mut self.snooping else {
            return;
        };
        let Ok(headers) = Headers::parse(frame) else {
            return;
        };
        snooping.handle(ingress, inside.vid, &headers, now_s);
        if snooping.is_query_due(now_s) {
            self.look_after_groups(now_s);
        }
    }

    fn follow_presence(&mut self) {
        for (port, change) in self.shared.presence.take() {
            if matches!(change, Change::Gone | Change::Back) {
                self.forget(port);
            }
            if matches!(change, Change::Came | Change::Back) {
                self.welcome(port);
            }
        }
    }

    /// Who was not there when hosts were asked for their groups gets all of them for now. With the
    /// first peer the TAP comes up as well.
    fn welcome(&mut self, port: PortId) {
        let now_s = self.shared.clock.now().seconds;
        let is_first = self.present.is_empty();
        self.present.insert(port);
        let Some(snooping) = &mut self.snooping else {
            return;
        };
        snooping.port_up(port, now_s);
        if is_first {
            snooping.port_up(PortId::TAP, now_s);
        }
        self.look_after_groups(now_s);
    }

    fn forget(&mut self, port: PortId) {
        self.present.remove(&port);
        if let Some(snooping) = &mut self.snooping {
            snooping.forget_port(port);
        }
        if let Some(neighbours) = &mut self.neighbours {
            neighbours.forget_port(port);
        }
    }

    /// Learns from what a station says, and says whether others must hear of it.
    fn note_neighbour(
        &mut self,
        ingress: PortId,
        inside: Inside,
        frame: &[u8],
        now_s: u32,
    ) -> bool {
        let Some(neighbours) = &mut self.neighbours else {
            return false;
        };
        if self.shared.take_missed_binding() {
            // Nobody knows which of the bindings that was about.
            neighbours.clear();
        }
        let Ok(headers) = Headers::parse(frame) else {
            return false;
        };
        let learned = neighbours.learn(ingress, inside.vid, &headers, now_s);
        learned.is_news()
    }

    /// A question to all waits for this: it is answered here, or goes on.
    ///
    /// One that tells where a station is now goes on as well: others may know it from where it was.
    fn see_neighbour(&mut self, ingress: PortId, inside: Inside, frame: &[u8], now_s: u32) {
        let is_news = self.note_neighbour(ingress, inside, frame, now_s);
        let is_group = frame.first().is_some_and(|first| first & 1 == 1);
        if !is_group {
            return;
        }
        let neighbours = self.neighbours.as_mut().filter(|_| !is_news);
        let headers = Headers::parse(frame).ok();
        let answer = neighbours
            .zip(headers)
            .and_then(|(known, headers)| known.answer(ingress, inside.vid, &headers, now_s));
        match answer {
            // It has the tag of the question.
            Some(answer) => self.emit(ingress, inside, &answer),
            None => self.flood(Some(ingress), inside, frame),
        }
    }

    /// To every port that may have it, after a frame from `ingress` or of this node.
    fn flood(&mut self, ingress: Option<PortId>, inside: Inside, frame: &[u8]) {
        if ingress != Some(PortId::TAP) {
            self.emit(PortId::TAP, inside, frame);
        }
        let switch = &self.shared.switch;
        if switch.is_hub() || ingress.is_none_or(|ingress| ingress == PortId::TAP) {
            self.shared.emit(Emission {
                to: To::Peers(ingress),
                inside,
                frame: frame.into(),
            });
        }
    }

    /// Once in a while: what has changed without a frame that says so.
    fn look_around(&mut self) {
        tripwire::task("slow path");
        self.follow_presence();
        let now = self.shared.clock.now();
        self.shared.switch.poll(now);
        self.survey.look(self.shared.switch.fdb(), now.seconds);
        if let Some(snooping) = self.snooping.as_mut().filter(|it| it.is_querier()) {
            let mut stations = self.survey.stations();
            stations.retain(|(vid, _)| !self.customers.contains(vid));
            snooping.watch(&stations, now.seconds);
        }
        self.look_after_groups(now.seconds);
        self.tell();
        self.log_limits(now.seconds);
        let Some(loops) = &mut self.loops else { return };
        let vlans = self.survey.vlans();
        if vlans != self.watched {
            for (port, rank) in (0..).map(PortId).zip(&self.ranks) {
                loops.watch(port, *rank, vlans.iter());
            }
            self.watched = vlans;
        }
        let moves = self.shared.switch.fdb().last_moves();
        let is_recent = |at_s: u32| now.seconds.saturating_sub(at_s) <= RECENT_S;
        let moves = moves.into_iter().rev().filter(|seen| is_recent(seen.at_s));
        loops.suspect(moves.map(|seen| seen.vid));
    }

    fn act(&mut self) {
        self.publish_groups();
        self.act_on_loops();
    }

    /// Shows the data threads what has changed with the frame that has changed it. To make a table takes
    /// time for each group, and a station can change it with each frame: no more than a twentieth of the
    /// time goes into that.
    fn publish_groups(&mut self) {
        const SHARE: u64 = 20;
        let begin_us = self.now_us();
        let due = self.snooping.as_mut();
        let due = due.filter(|_| begin_us >= self.groups_due_us);
        let Some(snooping) = due.filter(|snooping| snooping.is_changed()) else {
            return;
        };
        snooping.take_changed();
        self.shared.set_groups(snooping.table());
        let now_us = self.now_us();
        self.groups_due_us = now_us + SHARE * (now_us - begin_us);
    }

    fn act_on_loops(&mut self) {
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
                let stations = self.movers(port);
                warn!(
                    port = self.name(port),
                    other = self.name(other),
                    vlan = vid.value(),
                    stations = (!stations.is_empty()).then_some(stations),
                    "a loop: what leaves by one of two ports comes back by the other; the port is blocked until it is gone. Look for a second link between these sites"
                );
                set_blocked(port, true);
                self.learn_anew();
            }
            Verdict::Open { port } => {
                info!(
                    port = self.name(port),
                    "the loop is gone, and the port open again"
                );
                set_blocked(port, false);
                self.learn_anew();
            }
            Verdict::Relearn => {
                debug!("a port was blocked or opened: stations are learned anew");
                self.learn_anew();
            }
            Verdict::RelearnBehind { port } => {
                debug!(
                    port = self.name(port),
                    "a port was blocked or opened behind this one: its stations are learned anew"
                );
                self.shared.switch.relearn_behind(port);
                tell_moved(&self.events);
            }
            Verdict::Behind { port, vid } => warn!(
                port = self.name(port),
                vlan = vid.value(),
                "a loop behind this port, which cannot be cut from here: look for two links between switches there"
            ),
        }
        self.tell();
    }

    fn look_after_groups(&mut self, now_s: u32) {
        let Some(snooping) = &mut self.snooping else {
            return;
        };
        let queries = snooping.poll(now_s);
        for QueryFrame { vid, frame } in queries {
            self.flood(None, Inside::tagged(vid), &frame);
        }
    }

    /// What people may want to know.
    fn tell(&self) {
        let now_s = self.shared.clock.now().seconds;
        let loops = self.loops.iter().flat_map(LoopGuard::report);
        let groups = self
            .snooping
            .iter()
            .flat_map(|snooping| snooping.groups(now_s));
        self.shared.set_slow_view(SlowView {
            loops: loops.collect(),
            groups: groups.take(GROUPS_SHOWN).collect(),
        });
    }

    /// Tells which limits were exceeded, at most once a minute for each.
    fn log_limits(&mut self, now_s: u32) {
        let switch = &self.shared.switch;
        let mut seen = Vec::new();
        for port in switch.ports() {
            let limits = switch.refusals(port);
            let limits = limits.filter_map(|(reason, count)| Some((Limit::of(reason)?, count)));
            seen.extend(limits.map(|(limit, count)| (Some(port), limit, count)));
        }
        let counters = switch.fdb().counters();
        seen.push((None, Limit::Addresses, counters.limited));
        seen.push((None, Limit::Capacity, counters.full));
        seen.push((None, Limit::Moves, counters.dampened));
        for (port, limit, count) in seen {
            let Some(mut excess) = self.limits.note(port, limit, count, now_s) else {
                continue;
            };
            if limit == Limit::Addresses {
                // The count is that of all ports. Whoever has most addresses has reached the limit.
                let ports = (0..).map(PortId).zip(self.survey.addresses());
                excess.port = ports.max_by_key(|&(_, count)| count).map(|(port, _)| port);
            }
            self.log_excess(excess);
        }
    }

    fn log_excess(&self, excess: Excess) {
        let Excess {
            port,
            limit,
            frames,
        } = excess;
        let (name, remedy) = (limit.name(), limit.remedy());
        let port = port.map(|port| self.name(port));
        match limit {
            Limit::Flood(_) => warn!(
                port,
                limit = name,
                frames,
                remedy,
                "a port floods more than it may; what is too much is dropped"
            ),
            Limit::Addresses | Limit::Capacity => warn!(
                port,
                limit = name,
                frames,
                remedy,
                "more addresses than may be learned; frames to the others are flooded"
            ),
            Limit::Moves => {
                let seen = self.restless();
                warn!(
                    station = seen.map(|seen| seen.mac.to_string()),
                    vlan = seen.map(|seen| seen.vid.value()),
                    from = seen.map(|seen| self.name(seen.from)),
                    to = seen.map(|seen| self.name(seen.to)),
                    times = frames,
                    remedy,
                    "a station moves between ports too often; it is followed at a lower rate until it stays in place"
                );
            }
        }
    }

    /// The last move of an address that has moved too often.
    fn restless(&self) -> Option<Move> {
        let (fdb, now_s) = (self.shared.switch.fdb(), self.shared.clock.now().seconds);
        let is_restless = |seen: &Move| {
            let entry = fdb.find(seen.vid, seen.mac, now_s);
            entry.is_some_and(|entry| entry.dampened)
        };
        fdb.last_moves().into_iter().rev().find(is_restless)
    }

    /// Stations may be elsewhere, for this switch and for the bridge that the TAP is in.
    fn learn_anew(&self) {
        self.shared.switch.relearn();
        tell_moved(&self.events);
    }

    /// Stations that moved of late between this port and the one that it has a loop with, for people.
    fn movers(&self, port: PortId) -> String {
        const LATE_S: u32 = 10;
        let mut report = self.loops.iter().flat_map(LoopGuard::report);
        let Some(blocked) = report.find(|blocked| blocked.port == port) else {
            return String::new();
        };
        let now_s = self.shared.clock.now().seconds;
        let moves = self.shared.switch.fdb().last_moves();
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

    fn name(&self, port: PortId) -> &str {
        self.names.get(usize::from(port.0)).map_or("?", |name| name)
    }

    /// Sends a frame of our own. That a port has not its VLAN is no loss.
    fn emit(&mut self, port: PortId, inside: Inside, frame: &[u8]) {
        let Ok(edit) = self.shared.switch.originate(inside, port) else {
            return;
        };
        if port != PortId::TAP {
            return self.shared.emit(Emission {
                to: To::Peer(port),
                inside,
                frame: frame.into(),
            });
        }
        let mut slot = Slot::copy(&mut self.scratch, &[frame]);
        let written = slot.with_edit(edit, |frame| self.tap.write(&VnetHeader::NONE, frame));
        if written.is_err() {
            self.drops.count(DropReason::TapWriteFailed);
        }
    }
}

/// Leaves half of the room to others, as the end of a thread is told only once. One of these that
/// still waits says what another one would.
fn tell_moved(events: &mpsc::Sender<EngineEvent>) {
    let has_room = events.capacity() > EVENTS / 2;
    if !has_room || events.try_send(EngineEvent::StationsMoved).is_err() {
        debug!("nobody takes the engine's events");
    }
}

#[cfg(test)]
mod tests;
