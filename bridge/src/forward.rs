// SPDX-License-Identifier: MIT OR Apache-2.0
//! The forwarding decision: from the port a frame came in by to the port, or ports, it leaves by.
//!
//! 1. read the header      a frame without one, or without a station as its source, is refused
//! 2. admit                the port's VLANs, guards and allowed sources; a plain port skips this
//! 3. learn                the source lives behind the ingress port
//! 4. look up              the destination: a group, a known station, or an unknown one
//! 5. split horizon        what peers send reaches the TAP, and other peers only in hub mode
//! 6. limit                what is flooded, by the port it came from
//! 7. leave                the tag that the frame has on each port it leaves by
//!
//! Called by the data threads once per frame, the last step once per copy. Copying a flooded frame
//! and editing its tag is up to them.

use alloc::boxed::Box;

use crate::config::{PortConfig, SwitchConfig};
use crate::decision::{Decision, Egress, Kind, Now};
use crate::drop_reason::DropReason;
use crate::fdb::{Fdb, Learning, Origin};
use crate::frame::FrameHeader;
use crate::inspect::{Content, PROBE_SOURCES, inspect};
use crate::loops::PROBE_DESTINATION;
use crate::mac::MacAddr;
use crate::port::{Blocks, Port};
use crate::port_id::PortId;
use crate::vlan::{Inside, TagEdit, Vid};

/// A switch between the TAP and the peers, shared by every data thread.
#[derive(Debug)]
pub struct Switch {
    fdb: Fdb,
    ports: Box<[Port]>,
    hub: bool,
    /// Whether any port guards against forged sources.
    guards_sources: bool,
    own_probe_mac: Option<MacAddr>,
    stations_left_out: usize,
}

impl Switch {
    /// A switch that knows no station yet, but for those of the configuration.
    ///
    /// `hash_key` must be random and secret, see [`Fdb::new`].
    pub fn new(config: SwitchConfig, hash_key: [u64; 2]) -> Self {
        let suppresses = config.ports.iter().any(|port| port.neighbour_suppression);
        let fdb = Fdb::new(&config, hash_key);
        let stations_left_out = assign_stations(&fdb, &config.ports);
        let ports = config.ports.iter().cloned();
        Self {
            fdb,
            stations_left_out,
            hub: config.hub,
            guards_sources: config.ports.iter().any(|port| port.spoof_guard),
            own_probe_mac: config.own_probe_mac,
            ports: ports.map(|port| Port::new(port, suppresses)).collect(),
        }
    }

    /// Learns the source of `frame` and decides where it goes.
    ///
    /// The first bytes of a frame are enough, as far as its headers reach. `segments` says how many
    /// frames a super-frame stands for; it is 1 for every other.
    ///
    /// A frame that goes to one port may be refused there, see [`leave`](Self::leave).
    ///
    /// # Errors
    /// The reason for which no port may have the frame. It is counted, see
    /// [`refusals`](Self::refusals).
    pub fn forward(
        &self,
        ingress: PortId,
        frame: &[u8],
        segments: u32,
        now: Now,
    ) -> Result<Decision, DropReason> {
        let port = self.port(ingress)?;
        let decision = self.decide(port, ingress, frame, segments, now);
        if let Err(reason) = decision {
            port.count(reason, segments.max(1));
        }
        decision
    }

    fn decide(
        &self,
        port: &Port,
        ingress: PortId,
        frame: &[u8],
        segments: u32,
        now: Now,
    ) -> Result<Decision, DropReason> {
        let header = FrameHeader::parse(frame)?;
        if !header.src.is_station() {
            return Err(DropReason::BadSource);
        }
        if header.dst == PROBE_DESTINATION && is_probe(frame, &header) {
            return self.pass_probe(port, ingress, &header, now);
        }
        let (inside, kind) = if port.is_plain() {
            self.fdb.learn(header.vid, header.src, ingress, now.seconds);
            (header.inside(header.vid), Kind::Data)
        } else {
            self.admit(port, ingress, frame, &header, now)?
        };
        let egress = if header.dst.is_group() {
            port.take_group(header.dst, segments, now)?;
            self.flood(ingress)
        } else {
            self.look_up(port, ingress, &header, inside.vid, segments, now)?
        };
        Ok(Decision {
            egress,
            inside,
            kind,
        })
    }

    /// Lets a frame in by a port that is not plain, and learns its source there.
    fn admit(
        &self,
        port: &Port,
        ingress: PortId,
        frame: &[u8],
        header: &FrameHeader,
        now: Now,
    ) -> Result<(Inside, Kind), DropReason> {
        let admitted = port.admit(frame, header, now)?;
        let vid = admitted.0.vid;
        if port.guards_sources() {
            let learning = self
                .fdb
                .learn_in_place(vid, header.src, ingress, now.seconds);
            if let Learning::Elsewhere { .. } = learning {
                return Err(DropReason::SourceSpoofed);
            }
        } else {
            self.fdb.learn(vid, header.src, ingress, now.seconds);
        }
        Ok(admitted)
    }

    /// Probes neither teach nor learn: in a loop their source would be everywhere. Nor do guards of
    /// sources hold them up: nobody knows which nodes there are, and who could have those of others
    /// refused, by their addresses, would blind them. Own ones end here,
    /// also those of a blocked port, since they show whether the loop is still there. Those of others
    /// go on like a broadcast, to see what is left after the cut; that a port does not let one in is
    /// no loss, and not counted.
    fn pass_probe(
        &self,
        port: &Port,
        ingress: PortId,
        header: &FrameHeader,
        now: Now,
    ) -> Result<Decision, DropReason> {
        let is_own = self.own_probe_mac == Some(header.src);
        port.take_probe(is_own, now)?;
        let decision = |egress, inside, kind| Decision {
            egress,
            inside,
            kind,
        };
        Ok(match port.classify(header) {
            Ok(inside) if is_own => decision(Egress::Nowhere, inside, Kind::OwnProbe),
            Ok(inside) if port.check_open(now.seconds).is_ok() => {
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
        header: &FrameHeader,
        vid: Vid,
        segments: u32,
        now: Now,
    ) -> Result<Egress, DropReason> {
        match self.fdb.lookup(vid, header.dst, now.seconds) {
            None => {
                port.take_unknown(segments, now)?;
                Ok(self.flood(ingress))
            }
            Some(home) if home == ingress => Err(DropReason::SamePort),
            // The destination lives behind a peer, and so does the sender. In a mesh the sender
            // reaches that peer itself, and has just done so if this is a copy of a flooded frame.
            // To pass it to the TAP instead would show this segment a conversation it has no part in.
            Some(home) if !self.may_egress(ingress, home) => Err(DropReason::NoPort),
            Some(home) => Ok(Egress::Port(home)),
        }
    }

    /// Whether a frame from `ingress` may leave by `egress`: never by the port it came from, and from
    /// peer to peer only in hub mode, as peers that form a mesh would send it in circles.
    pub fn may_egress(&self, ingress: PortId, egress: PortId) -> bool {
        ingress != egress && (self.hub || ingress == PortId::TAP || egress == PortId::TAP)
    }

    /// Whether frames pass from peer to peer.
    pub fn is_hub(&self) -> bool {
        self.hub
    }

    /// What becomes of the tag of a frame from `ingress` as it leaves by `egress`.
    ///
    /// To be asked for the one port of a decision, and for each that may have a flooded frame. That a
    /// flooded frame does not leave by a port that has not its VLAN is no loss: nothing is counted
    /// here.
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

    /// The same for a frame that this node has made itself, such as a loop probe.
    ///
    /// # Errors
    /// The reason for which it must not leave there.
    pub fn originate(&self, inside: Inside, egress: PortId) -> Result<TagEdit, DropReason> {
        self.port(egress)?.leave(&inside)
    }

    /// Blocks a port, or opens it. What was learned there is forgotten, as there is another way to it
    /// or none; this node's own loop probes pass. When it opens, all that was learned is forgotten, as
    /// IEEE 802.1D section 17.11 asks for: stations that were reached by the other way may be behind it.
    ///
    /// # Errors
    /// [`DropReason::NoPort`] if there is no such port.
    pub fn set_blocked(&self, port: PortId, blocked: bool) -> Result<(), DropReason> {
        let is_change = self.port(port)?.set_blocked(blocked);
        if blocked {
            self.fdb.forget_port(port);
        } else if is_change {
            self.fdb.forget_learned();
        }
        Ok(())
    }

    /// Nobody is behind the port any more: frames to its stations are flooded, as they may have another
    /// way. Where a port guards against forged sources it may not have their addresses before they age;
    /// or else a station need only take another site off the network to be taken for one of its own.
    pub fn port_down(&self, port: PortId) {
        if self.guards_sources {
            self.fdb.bind_port(port);
        } else {
            self.fdb.forget_port(port);
        }
    }

    /// Whether a port is blocked, and why; one that does not exist is not.
    pub fn blocks(&self, port: PortId) -> Blocks {
        self.port(port)
            .map_or_else(|_| Blocks::default(), Port::blocks)
    }

    /// Opens the ports whose block by a bridge protocol data unit is over. A frame that comes in
    /// opens its port itself; for the sake of those that leave, call this once a second.
    pub fn poll(&self, now: Now) {
        for port in &self.ports {
            port.open_if_due(now.seconds);
        }
    }

    /// How many frames from `port` were refused for which reason: those that were, in a fixed order.
    /// A super-frame counts as the frames it stands for.
    pub fn refusals(&self, port: PortId) -> impl Iterator<Item = (DropReason, u64)> + '_ {
        self.port(port).into_iter().flat_map(Port::refusals)
    }

    /// The ports there are.
    pub fn ports(&self) -> impl Iterator<Item = PortId> + use<> {
        (0..=u16::MAX).map(PortId).take(self.ports.len())
    }

    /// How many stations of the configuration have no place in the table, see
    /// [`PortConfig::stations`]. Where they would be is up to the hash key: with another one, all of
    /// them may have places.
    pub fn stations_left_out(&self) -> usize {
        self.stations_left_out
    }

    /// The addresses that the switch knows.
    pub fn fdb(&self) -> &Fdb {
        &self.fdb
    }

    fn port(&self, port: PortId) -> Result<&Port, DropReason> {
        self.ports
            .get(usize::from(port.0))
            .ok_or(DropReason::NoPort)
    }

    /// To every port that may have it, which for a peer outside hub mode is the TAP alone.
    fn flood(&self, ingress: PortId) -> Egress {
        if self.hub || ingress == PortId::TAP {
            Egress::Flood
        } else {
            Egress::Port(PortId::TAP)
        }
    }
}

/// Assigns the stations of the configuration to their ports, and says how many find no place.
fn assign_stations(fdb: &Fdb, ports: &[PortConfig]) -> usize {
    let ports = (0..).map(PortId).zip(ports);
    let stations = ports.flat_map(|(id, port)| port.stations.iter().map(move |&it| (id, it)));
    stations
        .filter(|&(port, (vid, mac))| fdb.insert(vid, mac, port, Origin::Static, 0).is_err())
        .count()
}

/// What pretends to be a probe, but comes from an address that a station may have, is none: it teaches
/// and is guarded against like any other frame.
fn is_probe(frame: &[u8], header: &FrameHeader) -> bool {
    header.src.0.starts_with(&PROBE_SOURCES)
        && inspect(frame, FrameHeader::ADDRESSES) == Content::Probe
}

#[cfg(test)]
mod tests {
    use std::vec;
    use std::vec::Vec;

    use super::DropReason::{
        BadSource, BpduGuard, BpduRefused, BroadcastLimited, MulticastLimited, NoPort, PortBlocked,
        ProbeLimited, Runt, SamePort, SourceNotAllowed, SourceSpoofed, TaggedRefused,
        UnknownLimited, UntaggedRefused, VlanRefused,
    };
    use super::Egress::{Flood, Port};
    use super::*;
    use crate::config::{BpduPolicy, Sources};
    use crate::limit::FloodLimits;
    use crate::port_vlans::PortVlans;
    use crate::vlan::TagEdit::{Keep, Pop};
    use crate::vlan::Tpid;

    const TAP: PortId = PortId::TAP;
    const PEER_1: PortId = PortId(1);
    const PEER_2: PortId = PortId(2);

    // Stations are named by the last byte of their address and by where they live.
    const ON_TAP: u8 = 10;
    const ON_TAP_TOO: u8 = 11;
    const ON_PEER_1: u8 = 20;
    const ON_PEER_1_TOO: u8 = 21;
    const ON_PEER_2: u8 = 30;
    const NOWHERE: u8 = 99;

    #[test]
    fn forwards_by_where_the_destination_lives() {
        for (ingress, src, dst, mesh, hub) in [
            (TAP, ON_TAP, ON_PEER_1, Ok(Port(PEER_1)), Ok(Port(PEER_1))),
            (TAP, ON_TAP, ON_PEER_2, Ok(Port(PEER_2)), Ok(Port(PEER_2))),
            (TAP, ON_TAP, ON_TAP_TOO, Err(SamePort), Err(SamePort)),
            (TAP, ON_TAP, ON_TAP, Err(SamePort), Err(SamePort)), // to itself
            (TAP, ON_TAP, NOWHERE, Ok(Flood), Ok(Flood)),
            (PEER_1, ON_PEER_1, ON_TAP, Ok(Port(TAP)), Ok(Port(TAP))),
            (
                PEER_1,
                ON_PEER_1,
                ON_PEER_1_TOO,
                Err(SamePort),
                Err(SamePort),
            ),
            (PEER_1, ON_PEER_1, ON_PEER_2, Err(NoPort), Ok(Port(PEER_2))),
            (PEER_1, ON_PEER_1, NOWHERE, Ok(Port(TAP)), Ok(Flood)),
        ] {
            for (is_hub, verdict) in [(false, mesh), (true, hub)] {
                let switch = populated(is_hub);
                let frame = frame(station(dst), station(src), &[0x08, 0x00]);
                let seen = at(&switch, ingress, &frame, 0);
                assert_eq!(
                    seen, verdict,
                    "{src} to {dst} from {ingress:?}, hub {is_hub}"
                );
            }
        }
    }

    #[test]
    fn floods_every_group() {
        for group in [
            [0xff; 6],                            // broadcast
            [0x01, 0x00, 0x5e, 0x00, 0x00, 0xfb], // mDNS
            [0x33, 0x33, 0x00, 0x00, 0x00, 0x01], // IPv6 all nodes
            [0x01, 0x80, 0xc2, 0x00, 0x00, 0x0e], // LLDP: a cable carries it, so do we
        ] {
            let frame = frame(group, station(NOWHERE), &[0x88, 0xcc]);
            for (ingress, mesh, hub) in [
                (TAP, Ok(Flood), Ok(Flood)),
                (PEER_1, Ok(Port(TAP)), Ok(Flood)),
            ] {
                assert_eq!(
                    at(&populated(false), ingress, &frame, 0),
                    mesh,
                    "{group:02x?}"
                );
                assert_eq!(
                    at(&populated(true), ingress, &frame, 0),
                    hub,
                    "{group:02x?}"
                );
            }
        }
    }

    #[test]
    fn split_horizon_decides_by_port() {
        for (ingress, egress, mesh, hub) in [
            (TAP, TAP, false, false),
            (TAP, PEER_1, true, true),
            (PEER_1, TAP, true, true),
            (PEER_1, PEER_1, false, false),
            (PEER_1, PEER_2, false, true),
        ] {
            let seen = [false, true].map(|is_hub| populated(is_hub).may_egress(ingress, egress));
            assert_eq!(seen, [mesh, hub], "{ingress:?} to {egress:?}");
        }
    }

    #[test]
    fn learns_nothing_from_a_frame_that_no_station_sent() {
        let multicast = [0x03, 0, 0, 0, 0, 1];
        for (frame, reason) in [
            (frame([0xff; 6], [0; 6], &[8, 6]), BadSource),
            (frame([0xff; 6], [0xff; 6], &[8, 6]), BadSource),
            (frame([0xff; 6], multicast, &[8, 6]), BadSource),
            (frame([0xff; 6], station(1), &[8]), Runt),
            (frame([0xff; 6], station(1), &[0x81, 0x00, 0, 1]), Runt),
        ] {
            let switch = Switch::new(SwitchConfig::default(), [0, 0]);
            assert_eq!(at(&switch, TAP, &frame, 0), Err(reason), "{frame:02x?}");
            assert_eq!(switch.fdb().entries(0).count(), 0, "{frame:02x?}");
        }
    }

    #[test]
    fn an_address_is_known_in_its_own_vlan_only() {
        let (tag_7, tag_8): (&[u8], &[u8]) =
            (&[0x81, 0, 0, 7, 0x88, 0xb5], &[0x81, 0, 0, 8, 0x88, 0xb5]);
        let (priority_tag, untagged): (&[u8], &[u8]) =
            (&[0x81, 0, 0xe0, 0, 0x88, 0xb5], &[0x88, 0xb5]);
        for (learned_in, sent_in, verdict) in [
            (tag_7, tag_7, Ok(Port(PEER_1))),
            (tag_7, tag_8, Ok(Flood)),
            (tag_7, untagged, Ok(Flood)),
            (untagged, tag_7, Ok(Flood)),
            (untagged, priority_tag, Ok(Port(PEER_1))),
            (priority_tag, untagged, Ok(Port(PEER_1))),
        ] {
            let switch = Switch::new(SwitchConfig::default(), [0, 0]);
            at(
                &switch,
                PEER_1,
                &frame([0xff; 6], station(1), learned_in),
                0,
            )
            .unwrap();
            let seen = at(&switch, TAP, &frame(station(1), station(2), sent_in), 0);
            assert_eq!(
                seen, verdict,
                "learned in {learned_in:02x?}, sent in {sent_in:02x?}"
            );
        }
    }

    #[test]
    fn follows_a_station_that_moves_and_forgets_one_that_is_silent() {
        let switch = populated(false);
        let roaming = frame([0xff; 6], station(ON_PEER_1), &[8, 6]);
        let to_it = frame(station(ON_PEER_1), station(ON_TAP), &[8, 0]);

        assert_eq!(at(&switch, TAP, &to_it, 1), Ok(Port(PEER_1)));
        at(&switch, PEER_2, &roaming, 2).unwrap();
        assert_eq!(at(&switch, TAP, &to_it, 301), Ok(Port(PEER_2)));
        assert_eq!(at(&switch, TAP, &to_it, 302), Ok(Flood));
    }

    #[test]
    fn a_frame_crosses_ports_that_show_its_vlan_in_different_ways() {
        let vid = Vid::new(10).unwrap();
        let trunk = PortVlans::trunk([vid].into_iter().collect(), None, &[]).unwrap();
        let access = PortVlans::access(vid).unwrap();
        let switch = switch(
            [PortVlans::transparent(), trunk, access].map(|vlans| PortConfig {
                vlans,
                ..PortConfig::default()
            }),
        );
        let (untagged, tagged) = (&[8, 0][..], &[0x81, 0, 0, 10, 8, 0][..]);
        for (ingress, after_addresses, vid, edits) in [
            (
                PEER_2,
                untagged,
                Ok(10),
                [Some(PUSH_10), Some(PUSH_10), None],
            ),
            (PEER_2, tagged, Err(TaggedRefused), [None; 3]),
            (PEER_1, tagged, Ok(10), [Some(Keep), None, Some(Pop)]),
            (PEER_1, untagged, Err(UntaggedRefused), [None; 3]),
            (TAP, tagged, Ok(10), [None, Some(Keep), Some(Pop)]),
            (TAP, untagged, Ok(0), [None; 3]),
        ] {
            let frame = frame([0xff; 6], station(1), after_addresses);
            let decision = switch.forward(ingress, &frame, 1, Now::default());
            let inside = decision.map(|decision| decision.inside);
            let seen = inside.map(|inside| inside.vid.value());
            assert_eq!(seen, vid, "{after_addresses:02x?} from {ingress:?}");
            let left = inside.map_or([None; 3], |inside| {
                [TAP, PEER_1, PEER_2].map(|egress| switch.leave(ingress, inside, egress).ok())
            });
            assert_eq!(left, edits, "{after_addresses:02x?} from {ingress:?}");
        }
        let answer = frame(station(1), station(2), tagged);
        assert_eq!(at(&switch, PEER_1, &answer, 0), Ok(Port(TAP)));
        let elsewhere = frame(station(1), station(2), &[0x81, 0, 0, 20, 8, 0]);
        assert_eq!(at(&switch, PEER_1, &elsewhere, 0), Err(VlanRefused));
    }

    #[test]
    fn a_blocked_port_takes_and_gives_nothing_but_own_probes() {
        let config = SwitchConfig {
            hub: true,
            own_probe_mac: Some(MacAddr(node(77))),
            ..SwitchConfig::with_ports(3)
        };
        let (switch, own_probe) = (populate(config), probe(node(77)));
        let to_peer = frame(station(ON_PEER_1), station(ON_TAP), &[8, 0]);
        let from_peer = frame(station(ON_TAP), station(ON_PEER_1), &[8, 0]);
        let probe = probe(node(NOWHERE));
        for (blocked, to_it, from_it, leaves) in [
            (false, Ok(Port(PEER_1)), Ok(Port(TAP)), Ok(Keep)),
            // What was learned there is forgotten, and with it the way for what is sent there.
            (true, Ok(Flood), Err(PortBlocked), Err(PortBlocked)),
            (false, Ok(Flood), Ok(Port(TAP)), Ok(Keep)),
        ] {
            switch.set_blocked(PEER_1, blocked).unwrap();
            assert_eq!(switch.blocks(PEER_1).by_order, blocked);
            assert_eq!(at(&switch, TAP, &to_peer, 0), to_it, "{blocked}");
            assert_eq!(at(&switch, PEER_1, &from_peer, 0), from_it, "{blocked}");
            let inside = Inside::untagged(Vid::UNTAGGED);
            assert_eq!(switch.leave(TAP, inside, PEER_1), leaves, "{blocked}");

            let probed = if blocked { Egress::Nowhere } else { Flood };
            assert_eq!(at(&switch, PEER_1, &probe, 0), Ok(probed), "{blocked}");
            let decision = switch.forward(TAP, &probe, 1, Now::default()).unwrap();
            let left = switch.leave(TAP, decision.inside, PEER_1);
            assert_eq!(left, leaves, "{blocked}");
            let mine = switch.forward(PEER_1, &own_probe, 1, Now::default());
            let kind = mine.map(|decision| decision.kind);
            assert_eq!(kind, Ok(Kind::OwnProbe), "{blocked}");
            let own = switch.originate(Inside::probe(Vid::UNTAGGED), PEER_1);
            assert_eq!(own, Ok(Keep), "{blocked}");
        }
    }

    #[test]
    fn there_are_no_ports_but_those_configured() {
        let switch = populated(true);
        let (beyond, frame) = (PortId(3), frame([0xff; 6], station(1), &[8, 6]));
        assert_eq!(at(&switch, beyond, &frame, 0), Err(NoPort));
        assert_eq!(switch.set_blocked(beyond, true), Err(NoPort));
        let inside = Inside::untagged(Vid::UNTAGGED);
        assert_eq!(switch.leave(TAP, inside, beyond), Err(NoPort));
        assert!(switch.ports().eq([TAP, PEER_1, PEER_2]));
        assert_eq!(switch.refusals(beyond).count(), 0);
    }

    #[test]
    fn a_bridge_behind_a_port_is_welcome_ignored_or_shut_out() {
        let bpdu = frame(
            [0x01, 0x80, 0xc2, 0, 0, 0],
            station(1),
            &[0, 38, 0x42, 0x42, 3],
        );
        let data = frame([0xff; 6], station(2), &[8, 6]);
        let (pass, drop, guard) = (BpduPolicy::Pass, BpduPolicy::Drop, BpduPolicy::Guard);
        for (bpdus, frame, at_s, verdict, blocked_after) in [
            (pass, &bpdu, &[0, 1][..], Ok(Flood), false),
            (drop, &bpdu, &[0, 1], Err(BpduRefused), false),
            (drop, &data, &[0, 1], Ok(Flood), false),
            (guard, &data, &[0], Ok(Flood), false),
            (guard, &bpdu, &[100], Err(BpduGuard), true),
            (guard, &data, &[100, 129], Err(PortBlocked), true),
            (guard, &data, &[130, 131], Ok(Flood), false),
            (guard, &bpdu, &[102, 129], Err(BpduGuard), true),
        ] {
            let switch = switch([(); 3].map(|()| PortConfig {
                bpdus,
                ..PortConfig::default()
            }));
            if bpdus == guard && at_s.len() == 2 {
                assert_eq!(at(&switch, TAP, &bpdu, 100), Err(BpduGuard));
            }
            for &at_s in at_s {
                let seen = at(&switch, TAP, frame, at_s);
                assert_eq!(seen, verdict, "{bpdus:?} at {at_s}");
                assert_eq!(
                    switch.blocks(TAP).by_bpdu,
                    blocked_after,
                    "{bpdus:?}, {at_s}"
                );
            }
        }
    }

    #[test]
    fn a_silent_port_opens_by_the_clock() {
        let guarded = PortConfig {
            bpdus: BpduPolicy::Guard,
            ..PortConfig::default()
        };
        let switch = switch([guarded.clone(), guarded.clone(), guarded]);
        let start_s = u32::MAX - 10; // the clock wraps under way
        let now = |after_s: u32| Now {
            seconds: start_s.wrapping_add(after_s),
            micros: 0,
        };
        let bpdu = frame(
            [0x01, 0x80, 0xc2, 0, 0, 0],
            station(1),
            &[0, 38, 0x42, 0x42, 3],
        );
        for again_s in [0, 20] {
            assert_eq!(switch.forward(TAP, &bpdu, 1, now(again_s)), Err(BpduGuard));
        }
        for (after_s, blocked) in [(20, true), (49, true), (50, false)] {
            switch.poll(now(after_s));
            assert_eq!(switch.blocks(TAP).by_bpdu, blocked, "{after_s}");
        }
    }

    #[test]
    fn a_port_floods_no_more_than_its_limits() {
        let limits = FloodLimits {
            broadcast: 1,
            multicast: 2,
            unknown: 3,
        };
        let limited = PortConfig {
            limits,
            ..PortConfig::default()
        };
        let open = PortConfig {
            limits: FloodLimits::OFF,
            ..PortConfig::default()
        };
        let multicast = [1, 0, 0x5e, 0, 0, 0xfb];
        for (dst, reason) in [
            ([0xff; 6], BroadcastLimited),
            (multicast, MulticastLimited),
            (station(NOWHERE), UnknownLimited),
        ] {
            let switch = switch([limited.clone(), open.clone(), PortConfig::default()]);
            let frame = frame(dst, station(1), &[8, 0]);
            let send = |port, segments| {
                let decision = switch.forward(port, &frame, segments, Now::default());
                decision.map(|_| ())
            };
            assert_eq!(send(TAP, 63), Ok(()), "{reason:?}");
            assert_eq!(send(TAP, 2), Err(reason), "a super-frame that does not fit");
            assert_eq!(send(TAP, 1), Ok(()), "{reason:?}: the last of the burst");
            assert_eq!(send(TAP, 1), Err(reason));
            assert_eq!(send(PEER_1, 1_000_000), Ok(()), "{reason:?}: no limit");
            assert_eq!(send(PEER_2, 64), Ok(()), "{reason:?}: another's limit");
            let counted: Vec<_> = switch.refusals(TAP).collect();
            assert_eq!(
                counted,
                [(reason, 3)],
                "a super-frame counts as its segments"
            );
            assert_eq!(switch.refusals(PEER_2).count(), 0);
        }
    }

    #[test]
    fn a_known_station_is_reached_without_limit() {
        let switch = populated(true);
        let frame = frame(station(ON_PEER_1), station(ON_TAP), &[8, 0]);
        for _ in 0..100_000 {
            assert_eq!(at(&switch, TAP, &frame, 0), Ok(Port(PEER_1)));
        }
    }

    #[test]
    fn a_guarded_port_takes_no_address_from_another() {
        let guarded = PortConfig {
            spoof_guard: true,
            ..PortConfig::default()
        };
        let switch = switch([PortConfig::default(), guarded, PortConfig::default()]);
        let wall = MacAddr(station(9));
        let fdb = switch.fdb();
        fdb.insert(Vid::UNTAGGED, wall, TAP, Origin::Static, 0)
            .unwrap();
        for (src, port, at_s, verdict) in [
            (1, TAP, 0, Ok(Flood)),
            (1, PEER_1, 1, Err(SourceSpoofed)),
            (2, PEER_1, 1, Ok(Flood)),
            (2, PEER_2, 2, Ok(Flood)), // only the guarded port refuses
            (2, PEER_1, 3, Err(SourceSpoofed)),
            (9, PEER_1, 3, Err(SourceSpoofed)),
            (9, PEER_2, 3, Ok(Flood)), // assigned elsewhere, which is no reason without a guard
            (1, PEER_1, 300, Ok(Flood)), // silent for so long that it may have moved
        ] {
            let frame = frame([0xff; 6], station(src), &[8, 6]);
            assert_eq!(
                at(&switch, port, &frame, at_s),
                verdict,
                "{src}, {port:?}, {at_s}"
            );
            let home = fdb.lookup(Vid::UNTAGGED, MacAddr(station(src)), at_s);
            let stays = verdict.is_err() || src == 9;
            assert_eq!(home == Some(port), !stays, "{src}, {port:?}, {at_s}");
        }
    }

    #[test]
    fn who_takes_a_site_off_the_network_does_not_get_its_addresses() {
        for (guards, verdict, home) in [
            (true, Err(SourceSpoofed), Some(PEER_2)),
            (false, Ok(Flood), Some(PEER_1)),
        ] {
            let guarded = PortConfig {
                spoof_guard: guards,
                ..PortConfig::default()
            };
            let switch = switch([PortConfig::default(), guarded, PortConfig::default()]);
            let owner = frame([0xff; 6], station(ON_PEER_2), &[8, 6]);
            let to_owner = frame(station(ON_PEER_2), station(ON_TAP), &[8, 0]);
            at(&switch, PEER_2, &owner, 0).unwrap();
            switch.port_down(PEER_2);
            assert_eq!(at(&switch, TAP, &to_owner, 1), Ok(Flood), "unknown");
            assert_eq!(at(&switch, PEER_1, &owner, 1), verdict, "{guards}");
            if guards {
                assert_eq!(at(&switch, PEER_2, &owner, 2), Ok(Flood), "it is back");
            }
            let vid = Vid::UNTAGGED;
            let found = switch.fdb().lookup(vid, MacAddr(station(ON_PEER_2)), 2);
            assert_eq!(found, home, "{guards}");
        }
    }

    #[test]
    fn only_allowed_sources_may_send_and_others_teach_nothing() {
        let allowed = PortConfig {
            allowed_sources: Some(Sources::new(vec![MacAddr(station(1))]).unwrap()),
            ..PortConfig::default()
        };
        let switch = switch([allowed, PortConfig::default(), PortConfig::default()]);
        for (src, port, verdict) in [
            (1, TAP, Ok(Flood)),
            (2, TAP, Err(SourceNotAllowed)),
            (3, PEER_1, Ok(Flood)),
        ] {
            let frame = frame([0xff; 6], station(src), &[8, 6]);
            assert_eq!(at(&switch, port, &frame, 0), verdict, "{src} from {port:?}");
            let home = switch.fdb().lookup(Vid::UNTAGGED, MacAddr(station(src)), 0);
            assert_eq!(home, verdict.is_ok().then_some(port), "{src}");
        }
    }

    #[test]
    fn stations_of_the_configuration_are_where_it_says() {
        let ten = Vid::new(10).unwrap();
        let port = |stations: &[(Vid, MacAddr)]| PortConfig {
            stations: stations.to_vec(),
            ..PortConfig::default()
        };
        let mac = |name| MacAddr(station(name));
        let switch = switch([
            port(&[(ten, mac(1))]),
            port(&[(Vid::UNTAGGED, mac(1)), (Vid::UNTAGGED, mac(2))]),
            port(&[]),
        ]);
        assert_eq!(switch.stations_left_out(), 0);
        let homes = |switch: &Switch| {
            let entries = switch.fdb().entries(1_000_000);
            let mut homes: Vec<_> = entries
                .map(|it| (it.vid, it.mac, it.port, it.origin))
                .collect();
            homes.sort_unstable_by_key(|&(vid, mac, ..)| (vid, mac));
            homes
        };
        let expected = [
            (Vid::UNTAGGED, mac(1), PEER_1, Origin::Static),
            (Vid::UNTAGGED, mac(2), PEER_1, Origin::Static),
            (ten, mac(1), TAP, Origin::Static),
        ];
        assert_eq!(homes(&switch), expected);
        // Frames do not move them, and nothing that is forgotten is theirs.
        at(&switch, TAP, &frame([0xff; 6], station(2), &[8, 6]), 0).unwrap();
        let to_two = frame(station(2), station(9), &[8, 6]);
        assert_eq!(at(&switch, TAP, &to_two, 0), Ok(Port(PEER_1)));
        switch.set_blocked(PEER_1, true).unwrap();
        switch.set_blocked(PEER_1, false).unwrap();
        switch.fdb().remove(Vid::UNTAGGED, mac(9));
        assert_eq!(homes(&switch), expected);
    }

    #[test]
    fn stations_without_a_place_are_counted() {
        let stations = (0..20).map(|name| (Vid::UNTAGGED, MacAddr(station(name))));
        let config = SwitchConfig {
            ports: [PortConfig {
                stations: stations.collect(),
                ..PortConfig::default()
            }]
            .into(),
            fdb_capacity: 8,
            ..SwitchConfig::default()
        };
        let switch = Switch::new(config, [3, 4]);
        assert_eq!(switch.stations_left_out(), 12);
        assert_eq!(switch.fdb().entries(0).count(), 8);
    }

    #[test]
    fn own_probes_come_home_and_those_of_others_pass() {
        let own = MacAddr(node(1));
        for (hub, ingress, src, egress, kind) in [
            (true, PEER_1, own.0, Egress::Nowhere, Kind::OwnProbe),
            (false, TAP, own.0, Egress::Nowhere, Kind::OwnProbe),
            (true, PEER_1, node(2), Flood, Kind::Probe),
            (false, PEER_1, node(2), Port(TAP), Kind::Probe),
            (false, TAP, node(2), Flood, Kind::Probe),
        ] {
            let config = SwitchConfig {
                hub,
                own_probe_mac: Some(own),
                ..SwitchConfig::with_ports(3)
            };
            let switch = Switch::new(config, [0, 0]);
            let send = || switch.forward(ingress, &probe(src), 1, Now::default());
            let decision = send().unwrap();
            assert_eq!(
                (decision.egress, decision.kind),
                (egress, kind),
                "{src:?}, {ingress:?}"
            );
            assert_eq!(switch.fdb().entries(0).count(), 0, "nothing is learned");
            let passed = 1 + (0..1000).take_while(|_| send().is_ok()).count();
            assert_eq!(passed, 200, "as many as all nodes send at once, and some");
            assert_eq!(send(), Err(ProbeLimited));
            let other = if src == own.0 { node(2) } else { own.0 };
            let passes = switch.forward(ingress, &probe(other), 1, Now::default());
            assert!(passes.is_ok(), "each has a limit of its own");
        }
        let unknown = at(&populated(false), TAP, &probe(own.0), 0);
        assert_eq!(
            unknown,
            Ok(Flood),
            "a node without probes knows none as its own"
        );
    }

    #[test]
    fn a_port_that_opens_is_another_way_to_stations_that_were_learned_elsewhere() {
        let switch = populated(false);
        let to_peer = frame(station(ON_PEER_1), station(ON_TAP), &[8, 0]);
        let from_peer = frame(station(ON_TAP), station(ON_PEER_1), &[8, 0]);
        switch.set_blocked(PEER_1, false).unwrap();
        assert_eq!(
            at(&switch, TAP, &to_peer, 0),
            Ok(Port(PEER_1)),
            "it was open"
        );
        switch.set_blocked(PEER_1, true).unwrap();
        // By the cable that made the loop; it is unplugged then.
        assert_eq!(at(&switch, TAP, &from_peer, 0), Err(SamePort));
        assert_eq!(at(&switch, TAP, &to_peer, 0), Err(SamePort));
        switch.set_blocked(PEER_1, false).unwrap();
        assert_eq!(at(&switch, TAP, &to_peer, 0), Ok(Flood));
    }

    #[test]
    fn names_of_reasons_are_unique_and_for_machines() {
        let mut names: Vec<_> = DropReason::ALL.iter().map(|reason| reason.name()).collect();
        for name in &names {
            let is_kebab = name
                .bytes()
                .all(|byte| byte.is_ascii_lowercase() || byte == b'-');
            assert!(is_kebab, "{name}");
        }
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), DropReason::ALL.len());
    }

    #[test]
    fn ports_that_have_all_they_may_leave_room_for_others() {
        let config = SwitchConfig::with_ports(4);
        let most = config.max_per_port;
        let switch = Switch::new(config, [3, 4]);
        let learn = |port: u16, number: usize| {
            let [.., a, b, c] = number.to_be_bytes();
            let mac = MacAddr([2, 0, port as u8, a, b, c]);
            switch.fdb().learn(Vid::UNTAGGED, mac, PortId(port), 0) == Learning::New
        };
        for hostile in [1, 2] {
            let learned = (0..10 * most).filter(|&number| learn(hostile, number));
            assert_eq!(learned.count(), most);
        }
        assert!(learn(3, 0), "the first station of the third");
        let learned = (1..most).filter(|&number| learn(3, number)).count();
        assert!(learned > most - most / 50, "{learned} of {most}");
    }

    #[test]
    fn what_is_sent_from_a_stations_address_is_no_probe() {
        let mut ports = [(); 3].map(|()| PortConfig::default());
        ports[1].spoof_guard = true;
        ports[2].allowed_sources = Some(Sources::new(vec![MacAddr(station(3))]).unwrap());
        let switch = switch(ports);
        let first = at(&switch, TAP, &probe(station(1)), 0);
        assert_eq!((first, switch.fdb().entries(0).count()), (Ok(Flood), 1));
        for (port, name, expected) in [
            (PEER_1, 1, Err(SourceSpoofed)),
            (PEER_1, 2, Ok(Flood)),
            (PEER_2, 2, Err(SourceNotAllowed)),
            (PEER_2, 3, Ok(Flood)),
        ] {
            let seen = at(&switch, port, &probe(station(name)), 0);
            assert_eq!(seen, expected, "{name} from {port:?}");
        }
        // Nodes are not known before they send a probe, and are not to be shut out.
        for port in [TAP, PEER_1, PEER_2] {
            let probe = probe(node(1));
            let decision = switch.forward(port, &probe, 1, Now::default());
            assert_eq!(decision.map(|it| it.kind), Ok(Kind::Probe), "{port:?}");
        }
    }

    const PUSH_10: TagEdit = TagEdit::Push {
        tpid: Tpid::Customer,
        tci: 10,
    };

    fn switch(ports: [PortConfig; 3]) -> Switch {
        let config = SwitchConfig {
            ports: ports.into(),
            hub: true,
            ..SwitchConfig::default()
        };
        Switch::new(config, [3, 4])
    }

    fn probe(src: [u8; 6]) -> Vec<u8> {
        frame(PROBE_DESTINATION.0, src, &[0x88, 0xb6])
    }

    fn populated(hub: bool) -> Switch {
        populate(SwitchConfig {
            hub,
            ..SwitchConfig::with_ports(3)
        })
    }

    fn populate(config: SwitchConfig) -> Switch {
        let switch = Switch::new(config, [3, 4]);
        for (name, port) in [
            (ON_TAP, TAP),
            (ON_TAP_TOO, TAP),
            (ON_PEER_1, PEER_1),
            (ON_PEER_1_TOO, PEER_1),
            (ON_PEER_2, PEER_2),
        ] {
            at(&switch, port, &frame([0xff; 6], station(name), &[8, 6]), 0).unwrap();
        }
        switch
    }

    /// Where a frame goes that comes at `now_s`.
    fn at(
        switch: &Switch,
        ingress: PortId,
        frame: &[u8],
        now_s: u32,
    ) -> Result<Egress, DropReason> {
        let now = Now::from_micros(u64::from(now_s) * 1_000_000);
        let decision = switch.forward(ingress, frame, 1, now)?;
        Ok(decision.egress)
    }

    fn station(name: u8) -> [u8; 6] {
        [2, 0, 0, 0, 0, name]
    }

    /// What a node's loop probes come from.
    fn node(name: u8) -> [u8; 6] {
        [0x02, 0x70, 0, 0, 0, name]
    }

    fn frame(dst: [u8; 6], src: [u8; 6], after_addresses: &[u8]) -> Vec<u8> {
        [&dst, &src, after_addresses].concat()
    }
}
