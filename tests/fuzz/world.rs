// SPDX-License-Identifier: MIT OR Apache-2.0
//! The configuration of a node for the target `chain`.

use arbitrary::Arbitrary;
use patchcord::internals::pipeline::fuzzing::{MAX_PEERS, Plan};
use patchcord_bridge::{
    BpduPolicy, FloodLimits, Guard, PortConfig, PortVlans, SwitchConfig, Tpid, Vid, VidSet,
};

/// A configuration.
#[derive(Arbitrary, Debug)]
pub struct World {
    mode: Mode,
    takes_offloads: bool,
    pub refuses_udp: bool,
    pub cuts_few: bool,
    mtu: u16,
    nic_mtu: Option<u16>,
    peers: u8,
    paths: [Path; MAX_PEERS],
    ports: [Port; 1 + MAX_PEERS],
}

/// What follows from it, for the checks.
pub struct Facts {
    pub is_wire: bool,
    pub takes_offloads: bool,
    pub max_frame: usize,
    pub nic_mtu: Option<usize>,
    pub paths: Vec<Option<usize>>,
}

#[derive(Arbitrary, Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Switch,
    Hub,
    Wire,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Path {
    Down,
    Narrow,
    Base,
    Ethernet,
    Jumbo,
    Bytes(u16),
}

#[derive(Arbitrary, Clone, Copy, Debug)]
struct Port {
    vlans: Vlans,
    guards: u8,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Vlans {
    Any,
    Trunk { native: Option<bool> },
    Translated,
    Access(u8),
    Tunnel(u8, bool),
}

impl World {
    /// From the remainder of the number of peers.
    pub fn plan(&self) -> Plan {
        match usize::from(self.peers) / MAX_PEERS % 4 {
            0 | 1 => Plan::Inline,
            2 => Plan::Staged,
            _ => Plan::TwoLanes,
        }
    }

    pub fn facts(&self) -> Facts {
        let is_wire = self.mode == Mode::Wire;
        let peers = if is_wire {
            1
        } else {
            1 + usize::from(self.peers) % MAX_PEERS
        };
        let mtu = usize::from(self.mtu).clamp(68, 65_521);
        Facts {
            is_wire,
            takes_offloads: self.takes_offloads,
            max_frame: (mtu + 22).min(65_535),
            nic_mtu: self.nic_mtu.map(|mtu| usize::from(mtu).max(68)),
            paths: self.paths[..peers]
                .iter()
                .map(|path| path.bytes())
                .collect(),
        }
    }

    /// In a quarter of the worlds.
    pub fn lowers_mss(&self) -> bool {
        self.peers >= 192
    }

    pub fn switch(&self, peers: usize) -> SwitchConfig {
        SwitchConfig {
            ports: self.ports[..=peers].iter().map(Port::config).collect(),
            fdb_capacity: 64,
            hub: self.mode == Mode::Hub,
            ..SwitchConfig::default()
        }
    }
}

impl Path {
    /// The UDP payload that it carries.
    fn bytes(self) -> Option<usize> {
        let packet = match self {
            Self::Down => return None,
            Self::Narrow => 576,
            Self::Base => 1280,
            Self::Ethernet => 1500,
            Self::Jumbo => 9216,
            Self::Bytes(bytes) => bytes.clamp(576, 9216),
        };
        Some(usize::from(packet) - 48)
    }
}

impl Port {
    fn config(&self) -> PortConfig {
        let is_set = |bit: u8| self.guards & 1 << bit != 0;
        let guard = |bit| {
            if is_set(bit) {
                Guard::Drop
            } else {
                Guard::Allow
            }
        };
        PortConfig {
            vlans: self.vlans.config(),
            limits: FloodLimits::default(),
            bpdus: if is_set(0) {
                BpduPolicy::Drop
            } else {
                BpduPolicy::Pass
            },
            dhcp_server: guard(1),
            router_advertisements: guard(2),
            neighbour_suppression: is_set(3),
            multicast_snooping: is_set(4),
            spoof_guard: is_set(5),
            ..PortConfig::default()
        }
    }
}

impl Vlans {
    fn config(self) -> PortVlans {
        let vid = |number: u8| Vid::new(u16::from(number % 3 + 1) * 10).expect("it is a VLAN");
        let allowed: VidSet = (0..3).map(vid).collect();
        let vlans = match self {
            Self::Any => return PortVlans::default(),
            Self::Trunk { native } => {
                let native = native.map(|is_vlan| if is_vlan { vid(0) } else { Vid::UNTAGGED });
                PortVlans::trunk(allowed, native, &[])
            }
            Self::Translated => {
                PortVlans::trunk(allowed, None, &[(vid(0), vid(1)), (vid(1), vid(0))])
            }
            Self::Access(number) => PortVlans::access(vid(number)),
            Self::Tunnel(number, is_customer) => {
                let tpid = if is_customer {
                    Tpid::Customer
                } else {
                    Tpid::Service
                };
                PortVlans::tunnel(vid(number), tpid)
            }
        };
        vlans.expect("it makes sense")
    }
}
