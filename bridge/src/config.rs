// SPDX-License-Identifier: MIT OR Apache-2.0
//! The configuration of a switch and of its ports.
//!
//! Values only: made by the caller, read by [`Switch`](crate::Switch).

use alloc::boxed::Box;
use alloc::vec;
use alloc::vec::Vec;
use core::error::Error;
use core::fmt;

use crate::limit::FloodLimits;
use crate::mac::MacAddr;
use crate::port_vlans::PortVlans;
use crate::vlan::Vid;

/// The configuration of a [`Switch`](crate::Switch).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SwitchConfig {
    /// The ports by their numbers: first the TAP, then the peers. There are no others.
    pub ports: Vec<PortConfig>,
    /// The number of addresses that the table can hold, rounded up to a power of two from 8 to
    /// 1,048,576.
    ///
    /// Eight slots can hold an address. At half the capacity all eight are taken for one address in
    /// fifty, and frames to it are flooded: configure a capacity of twice the number of stations.
    /// Each slot takes 32 bytes of memory, whether it is in use or not.
    pub fdb_capacity: usize,
    /// Ageing time: a learned address is removed after this many seconds without a frame from it.
    pub ageing_s: u32,
    /// Interval at which an address that moved too often may move again: once in so many seconds,
    /// until it has stayed in place for ten.
    pub dampening_s: u32,
    /// The limit of learned addresses on one port, so that no peer can fill the whole table.
    pub max_per_port: usize,
    /// Whether frames pass from peer to peer: for the centre of a star, never inside a mesh.
    pub hub: bool,
    /// The source address of this node's loop probes, by which it recognises them.
    pub own_probe_mac: Option<MacAddr>,
}

impl SwitchConfig {
    /// The largest [`fdb_capacity`](Self::fdb_capacity); a larger one means this.
    pub const MAX_FDB_CAPACITY: usize = 1 << 20;

    /// The default for this many default ports, the TAP included.
    pub fn with_ports(count: usize) -> Self {
        Self {
            ports: vec![PortConfig::default(); count],
            fdb_capacity: Self::usual_capacity(count, MAX_PER_PORT),
            ageing_s: 300,
            dampening_s: 1,
            max_per_port: MAX_PER_PORT,
            hub: false,
            own_probe_mac: None,
        }
    }

    /// Capacity for twice as many addresses as all ports together may have, so that ports at their
    /// limit still leave room to others: at least 8192, and at most
    /// [`MAX_FDB_CAPACITY`](Self::MAX_FDB_CAPACITY).
    pub fn usual_capacity(ports: usize, max_per_port: usize) -> usize {
        let wanted = ports.saturating_mul(max_per_port).saturating_mul(2);
        wanted
            .clamp(8192, Self::MAX_FDB_CAPACITY)
            .next_power_of_two()
    }
}

impl Default for SwitchConfig {
    /// The TAP and one peer.
    fn default() -> Self {
        Self::with_ports(2)
    }
}

/// Few LANs have more stations.
const MAX_PER_PORT: usize = 4096;

/// The configuration of a port. The default admits every frame unchanged, within generous limits.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PortConfig {
    /// Its VLANs.
    pub vlans: PortVlans,
    /// Limits on the frames from it that the switch floods.
    pub limits: FloodLimits,
    /// How it treats frames of a spanning tree.
    pub bpdus: BpduPolicy,
    /// Whether it admits answers of DHCP servers.
    pub dhcp_server: Guard,
    /// Whether it admits router advertisements (RFC 6105).
    pub router_advertisements: Guard,
    /// Whether the slow path sees its ARP and neighbour discovery, to answer on behalf of the owner.
    pub neighbour_suppression: bool,
    /// Whether the slow path sees its IGMP and MLD, to learn group memberships (RFC 4541).
    pub multicast_snooping: bool,
    /// Whether it refuses frames from an address that is known behind another port, instead of
    /// moving the address.
    pub spoof_guard: bool,
    /// If set, only these stations may send from behind it.
    pub allowed_sources: Option<Sources>,
    /// Stations behind it by configuration, each in a VLAN; frames do not move them.
    pub stations: Vec<(Vid, MacAddr)>,
}

impl PortConfig {
    /// Whether every frame passes unchanged.
    pub(crate) fn is_plain(&self) -> bool {
        !self.must_inspect()
            && self.vlans.is_transparent()
            && !self.spoof_guard
            && self.allowed_sources.is_none()
    }

    /// Whether the port depends on what a frame carries.
    pub(crate) fn must_inspect(&self) -> bool {
        self.bpdus != BpduPolicy::Pass
            || self.must_see_upper_layer()
            || self.neighbour_suppression
            || self.multicast_snooping
    }

    /// Whether a frame passes only if its upper layer is visible.
    pub(crate) fn must_see_upper_layer(&self) -> bool {
        self.dhcp_server == Guard::Drop || self.router_advertisements == Guard::Drop
    }
}

/// How a port treats bridge protocol data units.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BpduPolicy {
    /// They pass: a spanning tree spans the tunnel.
    #[default]
    Pass,
    /// They are refused: each site keeps its own.
    Drop,
    /// They are refused, and the port is blocked for [`BPDU_BLOCK_S`]: no bridge is expected behind
    /// it.
    Guard,
}

/// For how many seconds a BPDU blocks a port that guards against BPDUs.
pub const BPDU_BLOCK_S: u32 = 30;

/// Whether frames of a kind may come from a port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Guard {
    /// They may.
    #[default]
    Allow,
    /// They are refused.
    Drop,
}

/// The stations that may send from behind a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sources(Box<[MacAddr]>);

impl Sources {
    /// Allows these stations and no others.
    ///
    /// # Errors
    /// If the list is empty, or contains an address that no station can have.
    pub fn new(mut macs: Vec<MacAddr>) -> Result<Self, SourcesError> {
        if let Some(&mac) = macs.iter().find(|mac| !mac.is_station()) {
            return Err(SourcesError::NoStation { mac });
        }
        if macs.is_empty() {
            return Err(SourcesError::Empty);
        }
        macs.sort_unstable();
        macs.dedup();
        Ok(Self(macs.into()))
    }

    /// Whether `mac` is in the list.
    pub fn contains(&self, mac: MacAddr) -> bool {
        self.0.binary_search(&mac).is_ok()
    }
}

/// Why a list of allowed sources is invalid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SourcesError {
    /// No station could send.
    Empty,
    /// A group or null address, which no station has.
    NoStation {
        /// The address.
        mac: MacAddr,
    },
}

impl fmt::Display for SourcesError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => out.write_str("no address is allowed: no station could send"),
            Self::NoStation { mac } => write!(out, "{mac} is not the address of a station"),
        }
    }
}

impl Error for SourcesError {}

#[cfg(test)]
mod tests {
    use std::vec;

    use super::*;

    const A: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
    const B: MacAddr = MacAddr([2, 0, 0, 0, 0, 2]);

    #[test]
    fn a_list_of_sources_names_stations() {
        let group = MacAddr([3, 0, 0, 0, 0, 1]);
        let zero = MacAddr([0; 6]);
        for (macs, refused) in [
            (vec![], Some(SourcesError::Empty)),
            (vec![A, group], Some(SourcesError::NoStation { mac: group })),
            (vec![zero], Some(SourcesError::NoStation { mac: zero })),
            (vec![B, B], None),
        ] {
            assert_eq!(Sources::new(macs).err(), refused);
        }
        let sources = Sources::new(vec![B]).unwrap();
        assert_eq!([A, B].map(|mac| sources.contains(mac)), [false, true]);
    }
}
