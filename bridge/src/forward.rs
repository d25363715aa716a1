// SPDX-License-Identifier: MIT OR Apache-2.0
//! The forwarding decision: from the port a frame came in by to the port, or ports, it leaves by.
//!
//! 1. read the header      a frame without one, or without a station as its source, is dropped
//! 2. learn                the source lives behind the ingress port
//! 3. look up              the destination: a group, a known station, or an unknown one
//! 4. split horizon        what peers send reaches the TAP, and other peers only in hub mode
//!
//! Called by the data threads once per frame. Copying a flooded frame is up to them.

use crate::fdb::Fdb;
use crate::frame::FrameHeader;
use crate::port::PortId;

/// A switch between the TAP and the peers, shared by every data thread.
#[derive(Debug)]
pub struct Switch {
    fdb: Fdb,
    hub: bool,
}

impl Switch {
    /// A switch that knows no station yet.
    ///
    /// `hash_key` must be random and secret, see [`Fdb::new`].
    pub fn new(config: SwitchConfig, hash_key: [u64; 2]) -> Self {
        Self {
            fdb: Fdb::new(&config, hash_key),
            hub: config.hub,
        }
    }

    /// Learns the source of `frame` and decides where it goes.
    ///
    /// `now_s` is in seconds on any monotonic clock, the same one for all threads; threads that read
    /// it at slightly different times do no harm.
    ///
    /// # Errors
    /// The reason for which no port may have the frame.
    pub fn forward(&self, ingress: PortId, frame: &[u8], now_s: u32) -> Result<Egress, DropReason> {
        let header = FrameHeader::parse(frame)?;
        if header.src.is_group() || header.src.is_zero() {
            return Err(DropReason::BadSource);
        }
        self.fdb.learn(header.vid, header.src, ingress, now_s);
        if header.dst.is_group() {
            return Ok(self.flood(ingress));
        }
        match self.fdb.lookup(header.vid, header.dst, now_s) {
            None => Ok(self.flood(ingress)),
            Some(port) if port == ingress => Err(DropReason::SamePort),
            // The destination lives behind a peer, and so does the sender. In a mesh the sender
            // reaches that peer itself, and has just done so if this is a copy of a flooded frame.
            // To pass it to the TAP instead would show this segment a conversation it has no part in.
            Some(port) if !self.may_egress(ingress, port) => Err(DropReason::NoPort),
            Some(port) => Ok(Egress::Port(port)),
        }
    }

    /// Whether a frame from `ingress` may leave by `egress`: never by the port it came from, and from
    /// peer to peer only in hub mode, as peers that form a mesh would send it in circles.
    pub fn may_egress(&self, ingress: PortId, egress: PortId) -> bool {
        ingress != egress && (self.hub || ingress == PortId::TAP || egress == PortId::TAP)
    }

    /// The addresses that the switch knows.
    pub fn fdb(&self) -> &Fdb {
        &self.fdb
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

/// Where a frame leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Egress {
    /// By this port.
    Port(PortId),
    /// By every port for which [`Switch::may_egress`] holds.
    Flood,
}

/// Why the switch does not pass a frame on. Each doc says who is at fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DropReason {
    /// Sender: the frame ends before its Ethernet header or its outermost tag does.
    Runt,
    /// Sender: the source is a group or null address, which no station has.
    BadSource,
    /// Nobody: the destination lives where the frame came from and has seen it already.
    SamePort,
    /// Nobody: split horizon; the destination lives behind another peer, which the sender reaches
    /// itself. If it cannot, this node's configuration is at fault: it should be a hub.
    NoPort,
    /// Sender, or configuration: an untagged frame on a trunk that has no native VLAN.
    UntaggedRefused,
    /// Sender, or configuration: a tagged frame on an access port.
    TaggedRefused,
    /// Sender, or configuration: a VLAN that the port does not have.
    VlanRefused,
}

/// What a [`Switch`] may hold and pass on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SwitchConfig {
    /// How many addresses there is room for, rounded up to a power of two from 8 to 1,048,576.
    ///
    /// An address has eight places to go. At half the capacity one in fifty finds them taken and
    /// is flooded instead: configure twice as many as there are stations.
    pub fdb_capacity: usize,
    /// After how many seconds without a frame from it a learned address is forgotten.
    pub ageing_s: u32,
    /// How many addresses may be learned on one port, so that no peer can take the whole table.
    pub max_per_port: usize,
    /// Whether frames pass from peer to peer: for the centre of a star, never inside a mesh.
    pub hub: bool,
}

impl Default for SwitchConfig {
    fn default() -> Self {
        Self {
            fdb_capacity: 8192,
            ageing_s: 300,
            max_per_port: 4096,
            hub: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use super::DropReason::{BadSource, NoPort, Runt, SamePort};
    use super::Egress::{Flood, Port};
    use super::*;

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
                let seen = switch.forward(ingress, &frame, 0);
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
                    populated(false).forward(ingress, &frame, 0),
                    mesh,
                    "{group:02x?}"
                );
                assert_eq!(
                    populated(true).forward(ingress, &frame, 0),
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
            assert_eq!(switch.forward(TAP, &frame, 0), Err(reason), "{frame:02x?}");
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
            switch
                .forward(PEER_1, &frame([0xff; 6], station(1), learned_in), 0)
                .unwrap();
            let seen = switch.forward(TAP, &frame(station(1), station(2), sent_in), 0);
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

        assert_eq!(switch.forward(TAP, &to_it, 1), Ok(Port(PEER_1)));
        switch.forward(PEER_2, &roaming, 2).unwrap();
        assert_eq!(switch.forward(TAP, &to_it, 301), Ok(Port(PEER_2)));
        assert_eq!(switch.forward(TAP, &to_it, 302), Ok(Flood));
    }

    fn populated(hub: bool) -> Switch {
        let switch = Switch::new(
            SwitchConfig {
                hub,
                ..SwitchConfig::default()
            },
            [3, 4],
        );
        for (name, port) in [
            (ON_TAP, TAP),
            (ON_TAP_TOO, TAP),
            (ON_PEER_1, PEER_1),
            (ON_PEER_1_TOO, PEER_1),
            (ON_PEER_2, PEER_2),
        ] {
            switch
                .forward(port, &frame([0xff; 6], station(name), &[8, 6]), 0)
                .unwrap();
        }
        switch
    }

    fn station(name: u8) -> [u8; 6] {
        [2, 0, 0, 0, 0, name]
    }

    fn frame(dst: [u8; 6], src: [u8; 6], after_addresses: &[u8]) -> Vec<u8> {
        [&dst, &src, after_addresses].concat()
    }
}
