// SPDX-License-Identifier: MIT OR Apache-2.0
//! A switch that does the same in the obvious way, and a run of both side by side.
//!
//! The model keeps its stations in a map without bounds, edits tags by taking frames apart, and keeps
//! its limits as buckets that leak. What a frame carries it takes from [`inspect`], which has tests of
//! its own.
//!
//! [`run`] makes ports, frames and waiting times from bytes, so that a property test and a fuzzer can
//! both drive it.

mod choices;
mod moves;
mod vlans;

use std::collections::{BTreeMap, HashMap};

use patchcord_bridge::inspect::{Content, inspect};
use patchcord_bridge::loops::PROBE_DESTINATION;
use patchcord_bridge::{
    BPDU_BLOCK_S, BpduPolicy, DropReason, EDIT_BYTES, Egress, FloodLimits, Guard, Kind, MacAddr,
    Now, PortConfig, PortId, Sources, Switch, SwitchConfig, Vid,
};

use choices::Choices;
use moves::Moves;
use vlans::{Frame, Shown, Vlans};

const AGEING_S: u64 = 300;

/// Runs the switch and the model until the bytes are used up.
///
/// # Panics
/// If they disagree.
pub(crate) fn run(bytes: &[u8]) {
    let mut choices = Choices::new(bytes);
    let mut pair = Pair::new(&mut choices);
    while choices.are_left() {
        pair.step(&mut choices);
        // A table that is full learns less than the model.
        if pair.switch.fdb().counters().full > 0 {
            return;
        }
    }
    pair.compare_state();
}

struct Pair {
    switch: Switch,
    model: Model,
}

impl Pair {
    fn new(choices: &mut Choices<'_>) -> Self {
        let ports: Vec<_> = (0..2 + choices.below(3))
            .map(|_| PortSpec::any(choices))
            .collect();
        let config = SwitchConfig {
            ports: ports.iter().map(PortSpec::config).collect(),
            ageing_s: AGEING_S as u32,
            hub: choices.flag(),
            own_probe_mac: choices.flag().then_some(choices::STATIONS[4]),
            ..SwitchConfig::default()
        };
        let model = Model {
            hub: config.hub,
            own_probe_mac: config.own_probe_mac,
            suppresses: ports.iter().any(PortSpec::suppresses),
            ports: ports.into_iter().map(Port::new).collect(),
            stations: HashMap::new(),
            // The seconds that the switch is told wrap now and then, those of the model never do.
            start_s: [0, u64::from(u32::MAX) - 200][choices.below(2)],
            now_us: 0,
        };
        Self {
            switch: Switch::new(config, [0x5eed, 0xf00d]),
            model,
        }
    }

    fn step(&mut self, choices: &mut Choices<'_>) {
        // One more than there are.
        let port = PortId(choices.below(self.model.ports.len() + 1) as u16);
        match choices.below(16) {
            0 => {
                let blocked = choices.flag();
                let exists = self.switch.set_blocked(port, blocked).is_ok();
                assert_eq!(exists, self.model.set_blocked(port, blocked));
            }
            1 => match choices.below(3) {
                0 => {
                    self.switch.fdb().flush_port(port);
                    self.model.flush_port(port);
                }
                1 => {
                    self.switch.relearn_behind(port);
                    self.model.relearn(Some(port));
                }
                _ => {
                    self.switch.relearn();
                    self.model.relearn(None);
                }
            },
            2 => {
                self.switch.poll(self.model.now());
                self.model.poll();
            }
            3 => self.model.wait(choices.number() * 500_000),
            4 | 5 => self.model.wait(choices.number() * 500),
            6 => {
                // A crowd, as limits are far from what single frames reach.
                let bytes = choices.frame();
                for _ in 0..choices.below(200) {
                    self.send(port, &bytes, 1);
                }
            }
            _ => {
                let segments = [1, 1, 1, 0, 2, 45, 700][choices.below(7)];
                let bytes = choices.frame();
                self.send(port, &bytes, segments);
            }
        }
    }

    fn send(&mut self, ingress: PortId, bytes: &[u8], segments: u32) {
        let seen = self.seen(ingress, bytes, segments);
        let expected = self.model.forward(ingress, bytes, segments);
        assert_eq!(seen, expected, "{bytes:02x?} from {ingress:?}");
        for egress in self.switch.ports() {
            let blocks = self.switch.blocks(egress);
            let port = &self.model.ports[usize::from(egress.0)];
            assert_eq!(blocks.by_bpdu, port.bpdu_until_s.is_some(), "{egress:?}");
            assert_eq!(blocks.by_order, port.blocked, "{egress:?}");
        }
    }

    /// What the switch does with a frame, tags edited.
    fn seen(&self, ingress: PortId, bytes: &[u8], segments: u32) -> Result<Outcome, DropReason> {
        let decision = self
            .switch
            .forward_frame(ingress, bytes, segments, self.model.now())?;
        let egresses = match decision.egress {
            Egress::Port(port) => vec![port],
            Egress::Flood => self.switch.ports().collect(),
            Egress::Nowhere => Vec::new(),
        };
        let mut copies = BTreeMap::new();
        for egress in egresses {
            let Ok(edit) = self.switch.leave(ingress, decision.inside, egress) else {
                continue;
            };
            let mut front = [0xee; EDIT_BYTES];
            let (len, replaced) = edit.apply(bytes, &mut front);
            let copy = [&front[..len], &bytes[replaced..]].concat();
            let grown = copy.len() as isize - bytes.len() as isize;
            assert_eq!(grown, edit.delta());
            copies.insert(egress.0, copy);
        }
        Ok(Outcome {
            vid: decision.inside.vid.value(),
            kind: decision.kind,
            copies,
        })
    }

    fn compare_state(&self) {
        let mut entries: Vec<_> = self
            .switch
            .fdb()
            .entries(self.model.now().seconds)
            .map(|entry| ((entry.vid.value(), entry.mac), entry.port, entry.bound))
            .collect();
        let mut expected: Vec<_> = self
            .model
            .stations
            .iter()
            .map(|(&key, station)| (key, station.port, station.is_bound))
            .collect();
        entries.sort_unstable();
        expected.sort_unstable();
        assert_eq!(entries, expected);
        for port in self.switch.ports() {
            let refused: HashMap<_, _> = self.switch.refusals(port).collect();
            assert_eq!(refused, self.model.ports[usize::from(port.0)].refused);
        }
    }
}

/// What becomes of a frame that is not refused.
#[derive(Debug, PartialEq)]
struct Outcome {
    vid: u16,
    kind: Kind,
    /// The bytes that leave, by port.
    copies: BTreeMap<u16, Vec<u8>>,
}

/// What a port is configured to do.
#[derive(Clone, Debug)]
struct PortSpec {
    vlans: Vlans,
    limits: FloodLimits,
    bpdus: BpduPolicy,
    guards: [bool; 5],
    allowed: Option<Vec<MacAddr>>,
}

impl PortSpec {
    fn any(choices: &mut Choices<'_>) -> Self {
        let vlans = choices.vlans();
        // Many ports are plain but for their VLANs, and many of those transparent.
        if choices.flag() {
            return Self {
                vlans,
                limits: FloodLimits::default(),
                bpdus: BpduPolicy::Pass,
                guards: [false; 5],
                allowed: None,
            };
        }
        let rates = [0, 7, 1000, 5000];
        Self {
            vlans,
            limits: FloodLimits {
                broadcast: rates[choices.below(4)],
                multicast: rates[choices.below(4)],
                unknown: rates[choices.below(4)],
            },
            bpdus: [BpduPolicy::Pass, BpduPolicy::Drop, BpduPolicy::Guard][choices.below(3)],
            guards: std::array::from_fn(|_| choices.flag()),
            allowed: choices.flag().then(|| choices::STATIONS[..2].to_vec()),
        }
    }

    fn suppresses(&self) -> bool {
        let [_, _, neighbours, _, _] = self.guards;
        neighbours
    }

    fn config(&self) -> PortConfig {
        let [dhcp, router, neighbours, snooping, spoofing] = self.guards;
        let guard = |on| if on { Guard::Drop } else { Guard::Allow };
        PortConfig {
            vlans: self.vlans.config(),
            limits: self.limits,
            bpdus: self.bpdus,
            dhcp_server: guard(dhcp),
            router_advertisements: guard(router),
            neighbour_suppression: neighbours,
            multicast_snooping: snooping,
            spoof_guard: spoofing,
            allowed_sources: self
                .allowed
                .clone()
                .map(|macs| Sources::new(macs).expect("stations")),
            stations: Vec::new(),
        }
    }
}

struct Model {
    hub: bool,
    own_probe_mac: Option<MacAddr>,
    /// Whether any of the ports does.
    suppresses: bool,
    ports: Vec<Port>,
    stations: HashMap<(u16, MacAddr), Station>,
    start_s: u64,
    now_us: u64,
}

struct Port {
    spec: PortSpec,
    blocked: bool,
    bpdu_until_s: Option<u64>,
    broadcast: Bucket,
    multicast: Bucket,
    unknown: Bucket,
    probes: Bucket,
    own_probes: Bucket,
    refused: HashMap<DropReason, u64>,
}

#[derive(Clone, Copy)]
struct Station {
    port: PortId,
    seen_s: u64,
    moves: Option<Moves>,
    /// Nobody is there, and nobody may take its address who may not have those of others.
    is_bound: bool,
}

impl Model {
    fn forward(
        &mut self,
        ingress: PortId,
        bytes: &[u8],
        segments: u32,
    ) -> Result<Outcome, DropReason> {
        if usize::from(ingress.0) >= self.ports.len() {
            return Err(DropReason::NoPort);
        }
        let outcome = self.decide(ingress, bytes, segments);
        if let Err(reason) = outcome {
            let refused = &mut self.ports[usize::from(ingress.0)].refused;
            *refused.entry(reason).or_default() += u64::from(segments.max(1));
        }
        outcome
    }

    fn decide(
        &mut self,
        ingress: PortId,
        bytes: &[u8],
        segments: u32,
    ) -> Result<Outcome, DropReason> {
        let frame = Frame::parse(bytes).ok_or(DropReason::Runt)?;
        let content = inspect(bytes);
        if frame.src.is_group() || frame.src.is_zero() {
            return Err(DropReason::BadSource);
        }
        let is_node = frame.src.0.starts_with(&[2, 0x70]);
        if frame.dst == PROBE_DESTINATION && is_node && content == Content::Probe {
            return self.pass_probe(ingress, &frame);
        }
        let (now_s, suppresses) = (self.now_s(), self.suppresses);
        let port = &mut self.ports[usize::from(ingress.0)];
        port.check_bpdu(content, now_s)?;
        port.unblock_if_due(now_s);
        if port.blocked || port.bpdu_until_s.is_some() {
            return Err(DropReason::PortBlocked);
        }
        let shown = port.spec.vlans.enter(&frame)?;
        let kind = port.check(content, suppresses)?;
        if port
            .spec
            .allowed
            .as_ref()
            .is_some_and(|allowed| !allowed.contains(&frame.src))
        {
            return Err(DropReason::SourceNotAllowed);
        }
        self.learn(ingress, shown.vid, frame.src)?;
        let egresses = self.choose(ingress, shown.vid, frame.dst, segments)?;
        Ok(self.copies(&frame, shown, kind, egresses, false))
    }

    fn pass_probe(&mut self, ingress: PortId, frame: &Frame) -> Result<Outcome, DropReason> {
        let (now_us, now_s) = (self.now_us, self.now_s());
        let is_own = self.own_probe_mac == Some(frame.src);
        let port = &mut self.ports[usize::from(ingress.0)];
        let limit = match is_own {
            true => &mut port.own_probes,
            false => &mut port.probes,
        };
        limit.take(1, now_us, DropReason::ProbeLimited)?;
        port.unblock_if_due(now_s);
        let is_open = !port.blocked && port.bpdu_until_s.is_none();
        let entered = self.ports[usize::from(ingress.0)].spec.vlans.enter(frame);
        match entered {
            Ok(shown) if is_own => Ok(self.copies(frame, shown, Kind::OwnProbe, vec![], true)),
            Ok(shown) if is_open => {
                let egresses = self.neighbours_of(ingress);
                Ok(self.copies(frame, shown, Kind::Probe, egresses, false))
            }
            _ => Ok(Outcome {
                vid: 0,
                kind: Kind::Data,
                copies: BTreeMap::new(),
            }),
        }
    }

    fn learn(&mut self, ingress: PortId, vid: u16, src: MacAddr) -> Result<(), DropReason> {
        let now_s = self.now_s();
        let guards_sources = self.ports[usize::from(ingress.0)].spec.guards[4];
        let new = Station {
            port: ingress,
            seen_s: now_s,
            moves: None,
            is_bound: false,
        };
        let station = self.stations.entry((vid, src)).or_insert(new);
        let is_foreign = station.port != ingress && guards_sources;
        if station.is_bound && !is_foreign {
            *station = new;
        }
        if station.port == ingress {
            station.seen_s = now_s;
            return Ok(());
        }
        if guards_sources {
            return Err(DropReason::SourceSpoofed);
        }
        if let Some(port) = moves::relocate(&mut station.moves, ingress, now_s) {
            station.port = port;
            station.seen_s = now_s;
        }
        Ok(())
    }

    /// The ports that shall have a frame, if their VLANs agree.
    fn choose(
        &mut self,
        ingress: PortId,
        vid: u16,
        dst: MacAddr,
        segments: u32,
    ) -> Result<Vec<PortId>, DropReason> {
        let now_us = self.now_us;
        let neighbours = self.neighbours_of(ingress);
        let port = &mut self.ports[usize::from(ingress.0)];
        if dst.is_broadcast() {
            port.broadcast
                .take(segments, now_us, DropReason::BroadcastLimited)?;
            return Ok(neighbours);
        }
        if dst.is_group() {
            port.multicast
                .take(segments, now_us, DropReason::MulticastLimited)?;
            return Ok(neighbours);
        }
        let station = self.stations.get(&(vid, dst));
        match station.filter(|station| !station.is_bound) {
            None => {
                port.unknown
                    .take(segments, now_us, DropReason::UnknownLimited)?;
                Ok(neighbours)
            }
            Some(station) if station.port == ingress => Err(DropReason::SamePort),
            Some(station) if !neighbours.contains(&station.port) => Err(DropReason::NoPort),
            Some(station) => Ok(vec![station.port]),
        }
    }

    /// The ports that may have frames from this one.
    fn neighbours_of(&self, ingress: PortId) -> Vec<PortId> {
        (0..self.ports.len() as u16)
            .map(PortId)
            .filter(|&port| port != ingress)
            .filter(|&port| self.hub || port == PortId::TAP || ingress == PortId::TAP)
            .collect()
    }

    fn copies(
        &self,
        frame: &Frame,
        shown: Shown,
        kind: Kind,
        egresses: Vec<PortId>,
        is_probe: bool,
    ) -> Outcome {
        let mut copies = BTreeMap::new();
        for egress in egresses {
            let port = &self.ports[usize::from(egress.0)];
            if (port.blocked || port.bpdu_until_s.is_some()) && !is_probe {
                continue;
            }
            if let Some(copy) = port.spec.vlans.leave(frame, shown) {
                copies.insert(egress.0, copy);
            }
        }
        Outcome {
            vid: shown.vid,
            kind,
            copies,
        }
    }

    fn set_blocked(&mut self, port: PortId, blocked: bool) -> bool {
        let Some(state) = self.ports.get_mut(usize::from(port.0)) else {
            return false;
        };
        let was_blocked = std::mem::replace(&mut state.blocked, blocked);
        if blocked {
            self.relearn(Some(port));
        } else if was_blocked {
            self.relearn(None);
        }
        true
    }

    fn flush_port(&mut self, port: PortId) {
        self.stations.retain(|_, station| station.port != port);
    }

    /// The stations behind the port, or behind all.
    fn relearn(&mut self, port: Option<PortId>) {
        let guards = self.ports.iter().any(|port| port.spec.guards[4]);
        let is_meant = |station: &Station| port.is_none_or(|port| station.port == port);
        if !guards {
            return self.stations.retain(|_, station| !is_meant(station));
        }
        let meant = self.stations.values_mut().filter(|it| is_meant(it));
        meant.for_each(|station| station.is_bound = true);
    }

    fn poll(&mut self) {
        let now_s = self.now_s();
        for port in &mut self.ports {
            port.unblock_if_due(now_s);
        }
    }

    fn wait(&mut self, micros: u64) {
        self.now_us += micros;
        let now_s = self.now_s();
        self.stations
            .retain(|_, station| now_s - station.seen_s < AGEING_S);
    }

    fn now_s(&self) -> u64 {
        self.start_s + self.now_us / 1_000_000
    }

    /// The time as the switch is told it.
    fn now(&self) -> Now {
        Now {
            seconds: self.now_s() as u32,
            micros: self.now_us,
        }
    }
}

impl Port {
    fn new(spec: PortSpec) -> Self {
        let limits = spec.limits;
        Self {
            spec,
            blocked: false,
            bpdu_until_s: None,
            broadcast: Bucket::new(limits.broadcast),
            multicast: Bucket::new(limits.multicast),
            unknown: Bucket::new(limits.unknown),
            probes: Bucket::with_size(200, 200),
            own_probes: Bucket::with_size(200, 200),
            refused: HashMap::new(),
        }
    }

    fn unblock_if_due(&mut self, now_s: u64) {
        self.bpdu_until_s = self.bpdu_until_s.filter(|&until_s| now_s < until_s);
    }

    fn check_bpdu(&mut self, content: Content, now_s: u64) -> Result<(), DropReason> {
        match (content, self.spec.bpdus) {
            (Content::Bpdu, BpduPolicy::Drop) => Err(DropReason::BpduRefused),
            (Content::Bpdu, BpduPolicy::Guard) => {
                self.bpdu_until_s = Some(now_s + u64::from(BPDU_BLOCK_S));
                Err(DropReason::BpduGuard)
            }
            _ => Ok(()),
        }
    }

    fn check(&mut self, content: Content, suppresses: bool) -> Result<Kind, DropReason> {
        let [dhcp, router, neighbours, snooping, _] = self.spec.guards;
        match content {
            Content::DhcpServer if dhcp => Err(DropReason::DhcpServerRefused),
            Content::RouterAdvertisement if router => Err(DropReason::RouterAdvertisementRefused),
            Content::HidesUpperLayer if dhcp || router => Err(DropReason::UpperLayerHidden),
            Content::Membership if snooping => Ok(Kind::Membership),
            Content::ArpRequest
            | Content::ArpReply
            | Content::NeighbourSolicitation
            | Content::NeighbourAdvertisement => Ok(match (neighbours, suppresses) {
                (true, _) => Kind::Neighbour,
                (false, true) => Kind::Binding,
                (false, false) => Kind::Data,
            }),
            _ => Ok(Kind::Data),
        }
    }
}

/// A bucket that leaks as fast as frames may come, and holds as many as may come at once.
struct Bucket {
    interval_ns: u64,
    size_ns: u64,
    level_ns: u64,
    last_us: u64,
}

impl Bucket {
    fn new(rate: u32) -> Self {
        Self::with_size(rate, (rate / 10).max(64))
    }

    fn with_size(rate: u32, frames: u32) -> Self {
        let interval_ns = 1_000_000_000_u64.checked_div(rate.into()).unwrap_or(0);
        Self {
            interval_ns,
            size_ns: interval_ns * u64::from(frames),
            level_ns: 0,
            last_us: 0,
        }
    }

    fn take(&mut self, frames: u32, now_us: u64, reason: DropReason) -> Result<(), DropReason> {
        let leaked_ns = (now_us - self.last_us) * 1000;
        self.level_ns = self.level_ns.saturating_sub(leaked_ns);
        self.last_us = now_us;
        let cost_ns = self.interval_ns * u64::from(frames);
        if self.level_ns > 0 && self.level_ns + cost_ns > self.size_ns {
            return Err(reason);
        }
        self.level_ns += cost_ns;
        Ok(())
    }
}

/// A VLAN that has a number.
pub(crate) fn vid(number: u16) -> Vid {
    Vid::new(number).expect("twelve bits")
}
