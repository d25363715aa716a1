// SPDX-License-Identifier: MIT OR Apache-2.0
//! The forwarding decision: from the port by which a frame arrives to the port, or ports, by which
//! it leaves.
//!
//! 1. read the header      a frame without one, or without a station as its source, is refused
//! 2. admit                the port's VLANs, guards and allowed sources; a plain port skips this
//! 3. learn                the source is behind the ingress port
//! 4. look up              the destination: a group, a known station, or an unknown one
//! 5. split horizon        frames of peers reach the TAP, and other peers only in hub mode
//! 6. limit                flooded frames, by ingress port
//! 7. leave                the tag that the frame has on each port it leaves by
//!
//! The data threads call it once per frame, the last step once per copy. The caller copies a
//! flooded frame and edits its tag.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;

use crate::config::{PortConfig, SwitchConfig};
use crate::decision::{Decision, Egress, Kind, Now};
use crate::drop_reason::DropReason;
use crate::ethernet::Headers;
use crate::fdb::{Fdb, Learning, Origin};
use crate::inspect::{Content, PROBE_SOURCES};
use crate::loops::PROBE_DESTINATION;
use crate::mac::MacAddr;
use crate::port::{Blocks, Port};
use crate::port_id::PortId;
use crate::vlan::{Inside, TagEdit, Vid};

/// A switch between the TAP and the peers, shared by every data thread.
#[derive(Debug)]
pub struct Switch {
    fdb: Arc<Fdb>,
    ports: Box<[Arc<Port>]>,
    hub: bool,
    /// Whether any port guards against forged sources.
    guards_sources: bool,
    own_probe_mac: Option<MacAddr>,
    stations_left_out: usize,
}

impl Switch {
    /// A switch that knows no station yet, except those of the configuration.
    ///
    /// `hash_key` must be random and secret, see [`Fdb::new`].
    pub fn new(config: SwitchConfig, hash_key: [u64; 2]) -> Self {
        let suppresses = config.ports.iter().any(|port| port.neighbour_suppression);
        let fdb = Fdb::new(&config, hash_key);
        let stations_left_out = assign_stations(&fdb, &config.ports);
        let ports = config.ports.iter().cloned();
        Self {
            fdb: Arc::new(fdb),
            stations_left_out,
            hub: config.hub,
            guards_sources: config.ports.iter().any(|port| port.spoof_guard),
            own_probe_mac: config.own_probe_mac,
            ports: ports
                .map(|port| Arc::new(Port::new(port, suppresses)))
                .collect(),
        }
    }

    /// The same switch with other ports: it knows the stations that this one knows, and counts on. A port
    /// whose configuration stays is the same port, and stays blocked if it is.
    ///
    /// The number of ports stays, and for each of them its
    /// [`spoof_guard`](PortConfig::spoof_guard),
    /// [`neighbour_suppression`](PortConfig::neighbour_suppression) and
    /// [`stations`](PortConfig::stations): a port whose configuration differs in these stays as it is.
    #[must_use]
    pub fn with_ports(&self, configs: Vec<PortConfig>) -> Self {
        let mut configs = configs.into_iter();
        let ports = self.ports.iter().map(|port| match configs.next() {
            Some(config) if port.may_become(&config) => Arc::new(port.with_config(config)),
            _ => port.clone(),
        });
        Self {
            fdb: self.fdb.clone(),
            ports: ports.collect(),
            hub: self.hub,
            guards_sources: self.guards_sources,
            own_probe_mac: self.own_probe_mac,
            stations_left_out: self.stations_left_out,
        }
    }

    /// Learns the source of a frame and decides where to send it.
    ///
    /// The first bytes of a frame are enough, as far as its headers reach. `segments` says how many
    /// frames a super-frame stands for; it is 1 for every other frame.
    ///
    /// The egress port may still refuse a frame that goes to one port, see [`leave`](Self::leave).
    ///
    /// # Errors
    /// The reason for which no port may get the frame. It is counted, see
    /// [`refusals`](Self::refusals).
    pub fn forward(
        &self,
        ingress: PortId,
        headers: &Headers<'_>,
        segments: u32,
        now: Now,
    ) -> Result<Decision, DropReason> {
        let port = self.port(ingress)?;
        let decision = self.decide(port, ingress, headers, segments, now);
        if let Err(reason) = decision {
            port.count(reason, segments.max(1));
        }
        decision
    }

    /// The same for a frame whose headers have not been parsed yet.
    ///
    /// # Errors
    /// As of [`forward`](Self::forward), and [`DropReason::Runt`].
    pub fn forward_frame(
        &self,
        ingress: PortId,
        frame: &[u8],
        segments: u32,
        now: Now,
    ) -> Result<Decision, DropReason> {
        match Headers::parse(frame) {
            Ok(headers) => self.forward(ingress, &headers, segments, now),
            Err(_) => Err(self.refuse_runt(ingress, segments)),
        }
    }

    /// Counts a frame that is too short to have headers, and returns the reason to drop it.
    pub fn refuse_runt(&self, ingress: PortId, segments: u32) -> DropReason {
        match self.port(ingress) {
            Ok(port) => {
                port.count(DropReason::Runt, segments.max(1));
                DropReason::Runt
            }
            Err(no_port) => no_port,
        }
    }

    /// Inlined, so that the decision is written where the caller wants it: a copy that reads it back
    /// in other units at once costs twenty nanoseconds.
    #[inline]
    fn decide(
        &self,
        port: &Port,
        ingress: PortId,
        headers: &Headers<'_>,
        segments: u32,
        now: Now,
    ) -> Result<Decision, DropReason> {
        if !headers.src().is_station() {
            return Err(DropReason::BadSource);
        }
        if headers.dst() == PROBE_DESTINATION && is_probe(headers) {
            return self.pass_probe(port, ingress, headers, now);
        }
        let (inside, kind) = if port.is_plain() {
            self.fdb
                .learn(headers.vid(), headers.src(), ingress, now.seconds);
            (headers.inside(headers.vid()), Kind::Data)
        } else {
            self.admit(port, ingress, headers, now)?
        };
        let egress = if headers.dst().is_group() {
            port.take_group(headers.dst(), segments, now)?;
            self.flood(ingress)
        } else {
            self.look_up(port, ingress, headers, inside.vid, segments, now)?
        };
        Ok(Decision {
            egress,
            inside,
            kind,
        })
    }

    /// Admits a frame on a port that is not plain, and learns its source there.
    fn admit(
        &self,
        port: &Port,
        ingress: PortId,
        headers: &Headers<'_>,
        now: Now,
    ) -> Result<(Inside, Kind), DropReason> {
        let admitted = port.admit(headers, now)?;
        let vid = admitted.0.vid;
        if port.guards_sources() {
            let learning = self
                .fdb
                .learn_in_place(vid, headers.src(), ingress, now.seconds);
            if let Learning::Elsewhere { .. } = learning {
                return Err(DropReason::SourceSpoofed);
            }
        } else {
            self.fdb.learn(vid, headers.src(), ingress, now.seconds);
        }
        Ok(admitted)
    }

    /// The switch does not learn the source of a probe: in a loop it would appear on every port.
    /// Source guards do not apply to probes either. The nodes of a network are not known in
    /// advance, and a station that had their addresses refused would hide loops from them.
    ///
    /// Probes of this node end here. A blocked port admits them too, since they show whether the
    /// loop is still there. Probes of other nodes are flooded like a broadcast, to find loops that
    /// are left after the cut; a port that does not admit a probe drops it without counting it.
    fn pass_probe(
        &self,
        port: &Port,
        ingress: PortId,
        headers: &Headers<'_>,
        now: Now,
    ) -> Result<Decision, DropReason> {
        let is_own = self.own_probe_mac == Some(headers.src());
        port.take_probe(is_own, now)?;
        let decision = |egress, inside, kind| Decision {
            egress,
            inside,
            kind,
        };
        Ok(match port.classify(headers) {
            Ok(inside) if is_own => decision(Egress::Nowhere, inside, Kind::OwnProbe),
            Ok(inside) if port.check_unblocked(now.seconds).is_ok() => {
                decision(self.flood(ingress), inside, Kind::Probe)
            }
            _ => {
                let nowhere = Inside::untagged(Vid::UNTAGGED);
                decision(Egress::Nowhere, nowhere, Kind::Data)
            }
        })
    }

    fn look_up(
        &self,
        port: &Port,
        ingress: PortId,
        headers: &Headers<'_>,
        vid: Vid,
        segments: u32,
        now: Now,
    ) -> Result<Egress, DropReason> {
        match self.fdb.lookup(vid, headers.dst(), now.seconds) {
            None => {
                port.take_unknown(segments, now)?;
                Ok(self.flood(ingress))
            }
            Some(home) if home == ingress => Err(DropReason::SamePort),
            // The destination is behind a peer, and so is the sender. In a mesh the sender reaches
            // that peer itself, and has just done so if this is a copy of a flooded frame. Passing
            // it to the TAP instead would show this segment traffic that is not for it.
            Some(home) if !self.may_egress(ingress, home) => Err(DropReason::NoPort),
            Some(home) => Ok(Egress::Port(home)),
        }
    }

    /// Whether a frame from `ingress` may leave by `egress`: never by the ingress port, and from
    /// peer to peer only in hub mode, as peers that form a mesh would send it in circles.
    pub fn may_egress(&self, ingress: PortId, egress: PortId) -> bool {
        ingress != egress && (self.hub || ingress == PortId::TAP || egress == PortId::TAP)
    }

    /// Whether the switch forwards frames from peer to peer.
    pub fn is_hub(&self) -> bool {
        self.hub
    }

    /// Decides how to edit the tag of a frame from `ingress` that leaves by `egress`.
    ///
    /// Call it for the one port of a decision, or for each port of a flood. A port outside the frame's
    /// VLAN is skipped, not counted as a drop.
    ///
    /// # Errors
    /// The reason for which it must not leave there.
    pub fn leave(
        &self,
        ingress: PortId,
        inside: Inside,
        egress: PortId,
    ) -> Result<TagEdit, DropReason> {
        if !self.may_egress(ingress, egress) {
            return Err(DropReason::NoPort);
        }
        self.originate(inside, egress)
    }

    /// The same for a frame that this node originates, such as a loop probe.
    ///
    /// # Errors
    /// The reason for which it must not leave there.
    pub fn originate(&self, inside: Inside, egress: PortId) -> Result<TagEdit, DropReason> {
        self.port(egress)?.leave(&inside)
    }

    /// Blocks a port, or unblocks it. A blocked port passes this node's own loop probes only.
    /// Blocking makes the switch [relearn](Self::relearn_behind) the stations behind the port.
    /// Unblocking makes it relearn all stations, as IEEE 802.1D section 17.11 asks for: stations
    /// that were reached by another port may now be behind this one.
    ///
    /// # Errors
    /// [`DropReason::NoPort`] if there is no such port.
    pub fn set_blocked(&self, port: PortId, blocked: bool) -> Result<(), DropReason> {
        let is_change = self.port(port)?.set_blocked(blocked);
        if blocked {
            self.relearn_behind(port);
        } else if is_change {
            self.relearn();
        }
        Ok(())
    }

    /// Relearns where the stations behind a port are, because the port is down, or they may be
    /// reachable by another one now. The switch floods frames to them meanwhile. Ports that guard
    /// against forged sources do not learn their addresses before these age: otherwise a station
    /// could take a site off the network, or fake a loop, and pose as one of its stations.
    pub fn relearn_behind(&self, port: PortId) {
        if self.guards_sources {
            self.fdb.bind_port(port);
        } else {
            self.fdb.flush_port(port);
        }
    }

    /// The same for the stations behind all ports.
    pub fn relearn(&self) {
        if self.guards_sources {
            self.fdb.bind_learned();
        } else {
            self.fdb.flush_learned();
        }
    }

    /// Whether a port is blocked, and why; a port that does not exist is not.
    pub fn blocks(&self, port: PortId) -> Blocks {
        self.port(port)
            .map_or_else(|_| Blocks::default(), Port::blocks)
    }

    /// Unblocks the ports whose block by a BPDU is over. A frame that arrives unblocks its port
    /// itself; for frames that leave, call this once a second.
    pub fn poll(&self, now: Now) {
        for port in &self.ports {
            port.unblock_if_due(now.seconds);
        }
    }

    /// How many frames from `port` were refused, by reason: only reasons that occurred, in a fixed
    /// order. A super-frame counts as the frames it stands for.
    pub fn refusals(&self, port: PortId) -> impl Iterator<Item = (DropReason, u64)> + '_ {
        self.port(port).into_iter().flat_map(Port::refusals)
    }

    /// All ports.
    pub fn ports(&self) -> impl Iterator<Item = PortId> + use<> {
        (0..=u16::MAX).map(PortId).take(self.ports.len())
    }

    /// How many stations of the configuration have no slot in the table, see
    /// [`PortConfig::stations`]. Their position depends on the hash key: with another key, all of
    /// them may have slots.
    pub fn stations_left_out(&self) -> usize {
        self.stations_left_out
    }

    /// The forwarding database.
    pub fn fdb(&self) -> &Fdb {
        &self.fdb
    }

    /// The same, for those who use it whatever the ports become.
    pub fn shared_fdb(&self) -> Arc<Fdb> {
        self.fdb.clone()
    }

    fn port(&self, port: PortId) -> Result<&Port, DropReason> {
        let port = self.ports.get(usize::from(port.0));
        port.map(Arc::as_ref).ok_or(DropReason::NoPort)
    }

    /// To every port that may get it, which for a peer outside hub mode is the TAP alone.
    fn flood(&self, ingress: PortId) -> Egress {
        if self.hub || ingress == PortId::TAP {
            Egress::Flood
        } else {
            Egress::Port(PortId::TAP)
        }
    }
}

/// Assigns the stations of the configuration to their ports, and returns how many found no slot.
fn assign_stations(fdb: &Fdb, ports: &[PortConfig]) -> usize {
    let ports = (0..).map(PortId).zip(ports);
    let stations = ports.flat_map(|(id, port)| port.stations.iter().map(move |&it| (id, it)));
    stations
        .filter(|&(port, (vid, mac))| fdb.insert(vid, mac, port, Origin::Static, 0).is_err())
        .count()
}

/// A frame with the destination and EtherType of a probe, but from an address that a station may
/// have, is no probe: the switch learns its source and guards against it like any other frame.
fn is_probe(headers: &Headers<'_>) -> bool {
    headers.src().0.starts_with(&PROBE_SOURCES) && Content::of(headers) == Content::Probe
}

#[cfg(test)]
mod tests;
