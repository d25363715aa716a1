// SPDX-License-Identifier: MIT OR Apache-2.0
//! The state of a tunnel, as `patchcord show --json` prints it.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::fdb::{FdbStatus, SwitchStatus};

/// All data of `show`. Ages are in seconds, sizes in bytes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Status {
    /// The tunnel's name (the stem of its configuration file).
    pub tunnel: String,
    /// The version of the running program.
    pub version: String,
    /// `connecting`, `connected`, `reasserting` or `disconnecting`.
    pub state: String,
    /// The state with regard to the peers: `no peer up` while none is, `connected` while one is, and as
    /// `state` before and after that. Empty in answers of older versions.
    #[serde(default)]
    pub condition: String,
    /// Process id.
    pub pid: u32,
    /// Seconds since the tunnel was started.
    pub uptime_s: f64,
    /// Our public key, base64.
    pub public_key: String,
    /// The UDP address in use.
    pub listen: String,
    /// Whether this machine has that address. Without it, no peer can be reached.
    pub listen_is_here: bool,
    /// Whether the kernel, or the NIC, segments trains of datagrams (UDP GSO).
    pub udp_gso: bool,
    /// Whether the kernel delivers datagrams as trains (UDP GRO).
    pub udp_gro: bool,
    /// The TAP, or the NIC.
    pub device: DeviceStatus,
    /// The assignment of work to threads and cores.
    pub core_plan: CorePlanStatus,
    /// The bound on the wake-up time of idle cores; absent with `latency = "auto"`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latency: Option<LatencyStatus>,
    /// One entry per `[[peer]]`, in the order of the file.
    pub peers: Vec<PeerStatus>,
    /// Frames and bytes over the TAP.
    pub counters: Counters,
    /// Frames and datagrams that were dropped, by reason; reasons that never occurred are absent.
    pub drops: BTreeMap<String, u64>,
    /// The ports of the switch: the TAP, then the peers.
    pub ports: Vec<PortStatus>,
    /// The multicast groups that hosts have joined, where the switch snoops; at most 1000.
    pub groups: Vec<GroupStatus>,
    /// The counters of the switch.
    pub switch: SwitchStatus,
    /// The addresses that the switch knows, up to a limit: see
    /// [`FdbRequest::Show`](super::FdbRequest::Show) for all.
    pub fdb: Vec<FdbStatus>,
    /// The number of addresses that are left out.
    pub fdb_omitted: u64,
}

/// A multicast group.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct GroupStatus {
    /// 0 is no VLAN.
    pub vid: u16,
    /// The address of the group.
    pub group: String,
    /// Its member ports: `tap`, or peers' names.
    pub ports: Vec<String>,
}

/// A port of the switch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PortStatus {
    /// `tap`, or the peer's name.
    pub port: String,
    /// Why the port is blocked, if it is.
    pub blocked: Option<BlockStatus>,
    /// Frames from it that the switch refused, by reason; reasons that never occurred are absent.
    pub refused: BTreeMap<String, u64>,
}

/// Why a port is blocked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "because", rename_all = "kebab-case")]
pub enum BlockStatus {
    /// Frames that leave by it come back by another port.
    Loop {
        /// That port.
        other: String,
        /// The VLAN in which it was seen first; 0 is no VLAN.
        vlan: u16,
        /// Seconds since it was blocked.
        for_s: f64,
        /// Seconds until it opens, if the loop is gone.
        opens_in_s: f64,
        /// Loop probes that came back.
        probes: u64,
    },
    /// A bridge is behind it, which its configuration forbids.
    Bpdu,
}

/// The overlay device.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DeviceStatus {
    /// Interface name.
    pub name: String,
    /// Kernel interface index.
    pub index: u32,
    /// Ethernet address.
    pub mac: String,
    /// Overlay MTU.
    pub mtu: u32,
    /// The bridge, or other interface, of which it is a port.
    pub bridge: Option<String>,
    /// Whether it is administratively up.
    pub up: bool,
    /// Whether it has carrier, that is, unless configured otherwise, whether any peer is reachable.
    pub carrier: bool,
    /// The bridge that does not exist, and for which it waits.
    pub waits_for: Option<String>,
    /// Whether it is in another network namespace.
    pub moved: bool,
    /// Its state as a port of the bridge.
    pub bridge_port: Option<BridgePortStatus>,
    /// Its counters in the kernel.
    pub kernel: KernelCountersStatus,
    /// Each cause that keeps frames from passing it, with the remedy, as text.
    pub remedies: Vec<String>,
    /// `vnet` (own back-end with the virtio header), `plain` (tun-tap) or `packet` (a NIC).
    pub backend: String,
    /// What connects it to the peers: `switch` or `wire`.
    pub mode: String,
    /// Whether the device existed before and will stay.
    pub adopted: bool,
}

/// The state of a port in its Linux bridge.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct BridgePortStatus {
    /// `forwarding`, `learning`, `listening`, `blocking` or `disabled`.
    pub state: String,
    /// Whether the bridge has spanning tree.
    pub stp: bool,
    /// The VLANs of the port, `1, 10-20`; none where the bridge does not filter by VLAN.
    pub vlans: Option<String>,
    /// Whether the bridge forwards nothing from it to other isolated ports.
    pub isolated: bool,
    /// Whether netfilter sees frames that cross the bridge.
    pub netfilter: bool,
}

/// The counters of the device in the kernel: `rx` comes from the tunnel, `tx` goes into it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct KernelCountersStatus {
    /// Frames that the network stack dropped.
    pub rx_dropped: u64,
    /// Frames that found no space in a queue, or no carrier.
    pub tx_dropped: u64,
    /// Frames that the kernel found malformed.
    pub rx_errors: u64,
    /// Frames that failed.
    pub tx_errors: u64,
}

/// The threads of the tunnel.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct CorePlanStatus {
    /// `inline` (each direction runs to completion in one thread) or `staged` (workers seal and open).
    pub plan: String,
    /// Lanes: TAP queues, each with an outbound thread.
    pub lanes: usize,
    /// The express lane beside those, for flows that send little; absent if there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub express: Option<ExpressStatus>,
    /// Cores the process may use.
    pub cores: usize,
    /// Every thread, and the core it is pinned to.
    pub threads: Vec<ThreadStatus>,
}

/// What the express lane has carried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ExpressStatus {
    /// Frames from the device.
    pub outbound_frames: u64,
    /// Frames from peers to the device.
    pub inbound_frames: u64,
}

/// One thread.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ThreadStatus {
    /// As `ps -L` shows it.
    pub name: String,
    /// The core it is pinned to, if it is.
    pub core: Option<usize>,
}

/// The bound on the time that idle cores take to wake up, as `pipeline.latency` asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LatencyStatus {
    /// Microseconds; with 0, idle cores poll.
    pub bound_us: u32,
    /// Whether the kernel has the request.
    pub state: LatencyState,
    /// Why it cannot have it, with the remedy, as text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// Whether the kernel keeps idle cores within a bound, for a tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum LatencyState {
    /// It does, as frames cross.
    Held,
    /// It need not, as hardly a frame crossed in the last second.
    Idle,
    /// It cannot.
    Unavailable,
}

/// One peer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PeerStatus {
    /// Its name in the configuration, or its public key.
    pub name: String,
    /// Base64.
    pub public_key: String,
    /// Its present UDP address.
    pub endpoint: Option<String>,
    /// `up`, `connecting` or `waiting` (no address known).
    pub state: String,
    /// The data cipher of the session.
    pub cipher: Option<String>,
    /// Seconds since the last completed handshake.
    pub handshake_age_s: Option<f64>,
    /// Seconds since the last authentic datagram.
    pub last_received_s: Option<f64>,
    /// Round trip of the last keepalive, in microseconds.
    pub rtt_us: Option<u64>,
    /// The largest IP packet that is known to reach the peer; `None` also while only small frames
    /// reach it.
    pub path_mtu: Option<u32>,
    /// Handshakes completed.
    pub handshakes: u64,
    /// The last reason why the peer could not be reached, or only by small frames. It stays after
    /// the trouble is over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<LastErrorStatus>,
    /// Each cause that makes its traffic slow, with the remedy, as text.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub remedies: Vec<String>,
    /// Traffic with this peer.
    pub counters: Counters,
    /// Its speed over the last second.
    pub rates: Rates,
}

/// Why a peer could not be reached.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct LastErrorStatus {
    /// A keyword, such as `no-answer`, `port-closed` or `refused-network-id`.
    pub cause: String,
    /// The same as a clause.
    pub text: String,
    /// The remedy.
    pub remedy: String,
    /// Seconds since it began.
    pub since_s: f64,
    /// Seconds since it was last seen.
    pub last_s: f64,
}

/// Traffic in both directions, seen from the overlay: outbound goes into the tunnel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Counters {
    /// Frames into the tunnel.
    pub outbound_frames: u64,
    /// Their bytes.
    pub outbound_bytes: u64,
    /// Datagrams sent.
    pub outbound_datagrams: u64,
    /// Frames out of the tunnel.
    pub inbound_frames: u64,
    /// Their bytes.
    pub inbound_bytes: u64,
    /// Datagrams accepted.
    pub inbound_datagrams: u64,
}

/// Traffic per second, measured over the last full second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Rates {
    /// Bits of frames into the tunnel.
    pub outbound_bits_per_s: f64,
    /// Frames into the tunnel.
    pub outbound_frames_per_s: f64,
    /// Bits of frames out of the tunnel.
    pub inbound_bits_per_s: f64,
    /// Frames out of the tunnel.
    pub inbound_frames_per_s: f64,
}
