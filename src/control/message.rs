// SPDX-License-Identifier: MIT OR Apache-2.0
//! What `patchcord show` and `patchcord down` say to a running tunnel, and what it answers.
//!
//! One request and one reply per connection, each one line of JSON. Pure data and codec; the Unix
//! socket is in `server`, the client side in `client`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// A request, one line of JSON: `{"verb":"show"}`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// Answer with the [`Status`].
    Show,
    /// Stop the tunnel; the reply comes when everything is removed.
    Down,
}

/// The reply to a [`Request`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "kebab-case")]
pub enum Reply {
    /// The state of the tunnel.
    Status(Box<Status>),
    /// The tunnel is down.
    Stopped,
    /// The request was refused; `message` says why and what to do.
    Refused {
        /// For a person.
        message: String,
    },
}

/// Everything `show` knows. Ages are in seconds, sizes in bytes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The tunnel's name (the stem of its configuration file).
    pub tunnel: String,
    /// The version of the running program.
    pub version: String,
    /// `connecting`, `connected`, `reasserting` or `disconnecting`.
    pub state: String,
    /// Process id.
    pub pid: u32,
    /// Seconds since the tunnel was started.
    pub uptime_s: f64,
    /// Our public key, base64.
    pub public_key: String,
    /// The UDP address in use.
    pub listen: String,
    /// The TAP.
    pub device: DeviceStatus,
    /// How the work is spread over threads and cores.
    pub core_plan: CorePlanStatus,
    /// One entry per `[[peer]]`, in the order of the file.
    pub peers: Vec<PeerStatus>,
    /// Frames and bytes over the TAP.
    pub counters: Counters,
    /// Frames and datagrams that did not arrive, by reason; reasons that never happened are absent.
    pub drops: BTreeMap<String, u64>,
    /// The addresses the switch has learned.
    pub fdb: Vec<FdbStatus>,
}

/// The overlay device.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DeviceStatus {
    /// Interface name.
    pub name: String,
    /// Kernel interface index.
    pub index: u32,
    /// Ethernet address.
    pub mac: String,
    /// Overlay MTU.
    pub mtu: u32,
    /// The bridge it is a port of.
    pub bridge: Option<String>,
    /// Whether patchcord signals carrier, that is, whether any peer is reachable.
    pub carrier: bool,
    /// `vnet` (own back-end with the virtio header) or `plain` (tun-tap).
    pub backend: String,
    /// Whether the device was there before and will stay.
    pub adopted: bool,
}

/// The threads of the tunnel.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CorePlanStatus {
    /// `inline` (each direction runs to completion in one thread) or `staged` (workers seal and open).
    pub plan: String,
    /// Cores the process may use.
    pub cores: usize,
    /// Every thread, and the core it is pinned to.
    pub threads: Vec<ThreadStatus>,
}

/// One thread.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ThreadStatus {
    /// As `ps -L` shows it.
    pub name: String,
    /// The core it is pinned to, if it is.
    pub core: Option<usize>,
}

/// One peer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
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
    /// IP packet size that the path to the peer is known to carry.
    pub path_mtu: Option<u32>,
    /// Handshakes completed.
    pub handshakes: u64,
    /// Traffic with this peer.
    pub counters: Counters,
}

/// Traffic in both directions, seen from the overlay: outbound goes into the tunnel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
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

/// One learned address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FdbStatus {
    /// VLAN, 0 when untagged.
    pub vid: u16,
    /// Address.
    pub mac: String,
    /// `tap` or the peer's name.
    pub port: String,
    /// Seconds since it was last seen.
    pub age_s: u32,
}
