// SPDX-License-Identifier: MIT OR Apache-2.0
//! A configuration as a value: what the file says, with the defaults in place of what it leaves out.
//!
//! The keys, their types and ranges are those of `keys`.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use ipnet::IpNet;
use patchcord_bridge::{MacAddr, PortConfig, SwitchConfig, Vid, VidSet};

use crate::crypto::keys::{PresharedKey, PrivateKey, PublicKey};

/// Everything that a tunnel is told at start.
#[derive(Debug)]
pub struct Config {
    /// The stem of the file's name; also names the socket.
    pub name: String,
    /// `[tunnel]`
    pub tunnel: TunnelConfig,
    /// `[device]`
    pub device: DeviceConfig,
    /// Every `[[peer]]`, at least one, in the order of the file.
    pub peers: Vec<PeerConfig>,
    /// `[switch]`
    pub switch: SwitchSettings,
    /// `[pipeline]`
    pub pipeline: PipelineConfig,
}

/// `[tunnel]`: who we are on the underlay.
#[derive(Debug)]
pub struct TunnelConfig {
    /// Read from `private-key-file`.
    pub private_key: PrivateKey,
    /// `listen`: the UDP address; `[::]:0`, any port, when absent.
    pub listen: SocketAddr,
    /// `cipher`
    pub cipher: CipherChoice,
    /// `network-id`: 24 bits, 0 when absent; both ends must agree on it.
    pub network_id: u32,
    /// `rekey-interval`: 1 s to 120 s, 120 s when absent.
    pub rekey_interval: Duration,
}

/// Which AEAD seals the frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CipherChoice {
    /// AES-256-GCM where both ends have the instructions for it, else ChaCha20-Poly1305.
    #[default]
    Auto,
    /// AES-256-GCM only.
    Aes256Gcm,
    /// ChaCha20-Poly1305 only.
    ChaCha20Poly1305,
}

/// `[device]`: the TAP, or a NIC.
#[derive(Debug)]
pub struct DeviceConfig {
    /// `name`, or `nic`: 1 to 15 bytes that the kernel takes as an interface name.
    pub name: String,
    /// Whether it was `nic`: a NIC that exists, which keeps its MTU, addresses and so on. There are
    /// no other keys beside it but `mode`.
    pub is_nic: bool,
    /// `mode`: [`Mode::Wire`] with `nic`.
    pub mode: Mode,
    /// `mtu`: the overlay MTU, 68 to 65521, 1500 when absent; 1280 or more with an IPv6 address. Of
    /// no meaning for a NIC.
    pub mtu: u32,
    /// `bridge`: the Linux bridge to become a port of.
    pub bridge: Option<String>,
    /// `bridge-vlans` and `bridge-native`: the VLANs of the port of the bridge; what the bridge gives it if
    /// neither is there.
    pub bridge_vlans: Option<BridgeVlans>,
    /// `mac`: a unicast address.
    pub mac: Option<MacAddr>,
    /// `addresses`: without duplicates.
    pub addresses: Vec<IpNet>,
    /// `accept-router-advertisements`: whether routers behind the tunnel configure this machine; not
    /// when absent, nor where IPv6 has no part in the device.
    pub accept_router_advertisements: bool,
    /// `carrier`
    pub carrier: Carrier,
    /// `link-loss-forwarding`: whether a NIC is set down while the peer cannot be reached.
    pub link_loss_forwarding: bool,
    /// `backend`
    pub backend: Backend,
    /// `[device.port]`: its port of the switch.
    pub port: PortConfig,
}

/// The VLANs of a port of a Linux bridge: these and no others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BridgeVlans {
    /// `bridge-vlans`: those whose frames have a tag there.
    pub tagged: VidSet,
    /// `bridge-native`: the one whose frames have none.
    pub native: Option<Vid>,
}

/// What is between the device and the peers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// A switch, which learns where stations are.
    #[default]
    Switch,
    /// Nothing: each frame of the device goes to the one peer there is, and the other way round.
    Wire,
}

impl Mode {
    /// As it is written.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Switch => "switch",
            Self::Wire => "wire",
        }
    }
}

/// When the device has carrier.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Carrier {
    /// While a peer can be reached.
    #[default]
    Peer,
    /// From the start to the end.
    Always,
}

/// How the TAP is opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Backend {
    /// `vnet` where the kernel can, else `plain`.
    #[default]
    Auto,
    /// With the virtio header: offloads and several queues.
    Vnet,
    /// One queue, no offloads: any kernel.
    Plain,
}

/// One `[[peer]]`.
#[derive(Debug)]
pub struct PeerConfig {
    /// `name`: unique; the public key in base64 when absent.
    pub name: String,
    /// `public-key`: unique, and not our own.
    pub public_key: PublicKey,
    /// `endpoint`: where to find the peer; one without is waited for.
    pub endpoint: Option<Endpoint>,
    /// `keepalive`: 1 s to 1 h, 10 s when absent.
    pub keepalive: Duration,
    /// Read from `preshared-key-file`.
    pub preshared_key: Option<PresharedKey>,
    /// `[peer.port]`: its port of the switch.
    pub port: PortConfig,
}

/// Where a peer is to be found at first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// An address.
    Addr(SocketAddr),
    /// A name that is resolved at start, and again when the peer does not answer.
    Host {
        /// The name.
        name: String,
        /// Never 0.
        udp_port: u16,
    },
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Addr(addr) => write!(f, "{addr}"),
            Self::Host { name, udp_port } => write!(f, "{name}:{udp_port}"),
        }
    }
}

/// `[switch]`: what holds for all of its ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SwitchSettings {
    /// `hub`: whether frames pass from peer to peer, as they do not in a mesh.
    pub hub: bool,
    /// `capacity`: for how many addresses there is room, 8 to 1048576; twice as many as all ports may
    /// have when absent, see [`SwitchConfig::usual_capacity`].
    pub capacity: Option<usize>,
    /// `ageing`: how long an address is remembered that sends nothing, 1 s to 1 d; 300 s when absent.
    pub ageing: Duration,
    /// `dampening`: how often an address that moved too often may move again, once in 0 s to 60 s; 1 s
    /// when absent.
    pub dampening: Duration,
    /// `max-addresses`: how many of one port are learned, 1 to 1048576 and no more than `capacity`; 4096
    /// when absent.
    pub max_addresses: usize,
    /// `loop-guard`: whether loops are looked for, and cut; so when absent.
    pub loop_guard: bool,
    /// `querier`: whether this node asks the stations for the groups that they want.
    pub querier: bool,
}

impl SwitchSettings {
    /// For how many addresses there is room in a switch with so many ports, the device's included.
    pub fn room(&self, ports: usize) -> usize {
        let usual = || SwitchConfig::usual_capacity(ports, self.max_addresses);
        self.capacity.unwrap_or_else(usual)
    }
}

impl Default for SwitchSettings {
    fn default() -> Self {
        let switch = SwitchConfig::default();
        Self {
            hub: switch.hub,
            capacity: None,
            ageing: Duration::from_secs(switch.ageing_s.into()),
            dampening: Duration::from_secs(switch.dampening_s.into()),
            max_addresses: switch.max_per_port,
            loop_guard: true,
            querier: false,
        }
    }
}

/// `[pipeline]`: how the work is spread over cores; the defaults suit nearly everyone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PipelineConfig {
    /// `plan`
    pub plan: PlanChoice,
    /// `lanes`: 1 to 8; chosen by the number of cores when absent.
    pub lanes: Option<usize>,
    /// `workers`: 1 to 64; chosen by the number of cores when absent.
    pub workers: Option<usize>,
    /// `pin`: whether threads are pinned to cores; when there is a core for each if absent.
    pub pin: Option<bool>,
    /// `nice`: precedence of the data threads while there is bulk traffic, -20 (most) to 19; -20 if
    /// absent.
    pub nice: Option<i32>,
    /// `udp-gso`: whether the kernel or the network card may cut trains of datagrams.
    pub udp_gso: OffloadChoice,
    /// `udp-gro`: whether the kernel may hand over datagrams as trains.
    pub udp_gro: OffloadChoice,
}

/// Whether an offload is used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OffloadChoice {
    /// Where the kernel has it.
    #[default]
    Auto,
    /// Not at all.
    Off,
}

/// Which core plan to use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PlanChoice {
    /// Inline, on every machine.
    #[default]
    Auto,
    /// Each direction of a lane runs to completion in one thread.
    Inline,
    /// One lane, in which workers seal and open.
    Staged,
}
