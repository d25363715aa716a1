// SPDX-License-Identifier: MIT OR Apache-2.0
//! What `patchcord show` and `patchcord down` say to a running tunnel, and what it answers.
//!
//! One request and one reply per connection, each one line of JSON. Pure data and codec; the Unix
//! socket is in `server`, the client side in `client`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::MAX_REQUEST_BYTES;

/// A request, one line of JSON: `{"verb":"show"}`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// Answer with the [`Status`].
    Show,
    /// Stop the tunnel; the reply comes when everything is removed.
    Down,
}

impl Request {
    /// The line that asks for it, newline included.
    pub fn to_line(self) -> Vec<u8> {
        to_line(&self)
    }

    /// Reads a line; a newline at its end is not required.
    ///
    /// # Errors
    /// Says what is wrong with the line; the text is fit for the caller.
    pub fn from_line(line: &[u8]) -> Result<Self, RequestError> {
        if line.len() > MAX_REQUEST_BYTES {
            return Err(RequestError::TooLong);
        }
        serde_json::from_slice(line).map_err(RequestError::Malformed)
    }
}

/// Why a line is not a [`Request`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RequestError {
    /// More than [`MAX_REQUEST_BYTES`].
    #[error("the request is longer than {MAX_REQUEST_BYTES} bytes")]
    TooLong,
    /// Not JSON, or not a request that this version knows.
    #[error("the request is not one that this version knows: {0}")]
    Malformed(serde_json::Error),
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

impl Reply {
    /// The line that says it, newline included.
    pub fn to_line(&self) -> Vec<u8> {
        to_line(self)
    }

    /// Reads a line; fields that a newer version added are ignored.
    ///
    /// # Errors
    /// Not JSON, or not a reply that this version knows.
    pub fn from_line(line: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(line)
    }
}

fn to_line(message: &impl Serialize) -> Vec<u8> {
    let mut line = serde_json::to_vec(message).expect("messages hold nothing that JSON lacks");
    line.push(b'\n');
    line
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
    /// The TAP, or the NIC.
    pub device: DeviceStatus,
    /// How the work is spread over threads and cores.
    pub core_plan: CorePlanStatus,
    /// One entry per `[[peer]]`, in the order of the file.
    pub peers: Vec<PeerStatus>,
    /// Frames and bytes over the TAP.
    pub counters: Counters,
    /// Frames and datagrams that did not arrive, by reason; reasons that never happened are absent.
    pub drops: BTreeMap<String, u64>,
    /// The ports of the switch: the TAP, then the peers.
    #[serde(default)]
    pub ports: Vec<PortStatus>,
    /// The multicast groups that somebody wants, where the switch snoops; at most 1000.
    #[serde(default)]
    pub groups: Vec<GroupStatus>,
    /// The addresses the switch has learned.
    pub fdb: Vec<FdbStatus>,
    /// What learning came to, in addresses: `learned`, `moved` and `dampened` (moved too often), and in
    /// frames whose source was not learned: `limited` (too many on the port) and `full` (no room);
    /// what never happened is absent.
    #[serde(default)]
    pub learning: BTreeMap<String, u64>,
}

/// A multicast group.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GroupStatus {
    /// 0 is no VLAN.
    pub vid: u16,
    /// Its address.
    pub group: String,
    /// The ports that want it: `tap`, or peers' names.
    pub ports: Vec<String>,
}

/// A port of the switch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PortStatus {
    /// `tap`, or the peer's name.
    pub port: String,
    /// Why nothing passes it, if so.
    pub blocked: Option<BlockStatus>,
    /// Frames from it that the switch refused, by reason; those that never happened are absent.
    pub refused: BTreeMap<String, u64>,
}

/// Why a port is blocked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "because", rename_all = "kebab-case")]
pub enum BlockStatus {
    /// What leaves by it comes back by another port.
    Loop {
        /// That one.
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
    /// A bridge is behind it, where none may be.
    Bpdu,
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
    /// `vnet` (own back-end with the virtio header), `plain` (tun-tap) or `packet` (a NIC).
    pub backend: String,
    /// What is between it and the peers: `switch` or `wire`.
    #[serde(default)]
    pub mode: String,
    /// Whether the device was there before and will stay.
    pub adopted: bool,
}

/// The threads of the tunnel.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CorePlanStatus {
    /// `inline` (each direction runs to completion in one thread) or `staged` (workers seal and open).
    pub plan: String,
    /// Lanes: TAP queues, each with an outbound thread.
    pub lanes: usize,
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
    /// Its speed over the last second.
    pub rates: Rates,
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

/// Traffic per second, measured over the last full second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn requests_are_the_lines_that_scripts_may_send() {
        for (request, line) in [
            (Request::Show, &b"{\"verb\":\"show\"}\n"[..]),
            (Request::Down, b"{\"verb\":\"down\"}\n"),
        ] {
            assert_eq!(request.to_line(), line);
            assert_eq!(Request::from_line(line).unwrap(), request);
            assert_eq!(Request::from_line(line.trim_ascii()).unwrap(), request);
        }
    }

    #[test]
    fn refuses_long_requests_before_it_reads_them() {
        let mut line = Request::Show.to_line();
        line.resize(MAX_REQUEST_BYTES, b' ');
        assert!(Request::from_line(&line).is_ok());
        line.push(b' ');
        assert!(matches!(
            Request::from_line(&line),
            Err(RequestError::TooLong)
        ));
    }

    proptest! {
        #[test]
        fn replies_survive_the_line(reply in reply()) {
            let line = reply.to_line();
            prop_assert_eq!(line.iter().position(|&b| b == b'\n'), Some(line.len() - 1));
            prop_assert_eq!(Reply::from_line(&line).unwrap(), reply);
        }

        #[test]
        fn garbage_is_an_error(line in any::<Vec<u8>>()) {
            prop_assert!(Request::from_line(&line).is_err());
            prop_assert!(Reply::from_line(&line).is_err());
        }
    }

    fn reply() -> impl Strategy<Value = Reply> {
        prop_oneof![
            Just(Reply::Stopped),
            any::<String>().prop_map(|message| Reply::Refused { message }),
            status().prop_map(|status| Reply::Status(Box::new(status))),
        ]
    }

    fn status() -> impl Strategy<Value = Status> {
        let texts = proptest::array::uniform4(any::<String>());
        let peers = proptest::collection::vec(peer(), 0..3);
        let drops = proptest::collection::btree_map(any::<String>(), any::<u64>(), 0..4);
        let fdb = proptest::collection::vec((any::<u16>(), any::<String>(), any::<u32>()), 0..3);
        (
            texts,
            0..1_000_000u32,
            any::<Option<String>>(),
            peers,
            drops,
            fdb,
        )
            .prop_map(
                |([tunnel, state, listen, name], number, bridge, peers, drops, fdb)| Status {
                    tunnel: tunnel.clone(),
                    version: state.clone(),
                    state,
                    pid: number,
                    // Quarters have an exact decimal form.
                    uptime_s: f64::from(number) / 4.0,
                    public_key: tunnel,
                    listen,
                    device: DeviceStatus {
                        name: name.clone(),
                        index: number,
                        mac: name.clone(),
                        mtu: number,
                        bridge,
                        carrier: number % 2 == 0,
                        backend: name.clone(),
                        mode: name.clone(),
                        adopted: number % 3 == 0,
                    },
                    core_plan: CorePlanStatus {
                        plan: name.clone(),
                        lanes: number as usize,
                        cores: number as usize,
                        threads: vec![ThreadStatus {
                            name,
                            core: Some(number as usize),
                        }],
                    },
                    peers,
                    counters: Counters {
                        outbound_frames: u64::MAX,
                        ..Counters::default()
                    },
                    ports: vec![PortStatus {
                        port: "tap".to_owned(),
                        blocked: (number % 2 == 0).then_some(BlockStatus::Bpdu),
                        refused: drops.clone(),
                    }],
                    groups: vec![GroupStatus {
                        vid: 7,
                        group: "239.1.2.3".to_owned(),
                        ports: drops.keys().cloned().collect(),
                    }],
                    learning: drops.clone(),
                    drops,
                    fdb: fdb
                        .into_iter()
                        .map(|(vid, mac, age_s)| FdbStatus {
                            vid,
                            port: mac.clone(),
                            mac,
                            age_s,
                        })
                        .collect(),
                },
            )
    }

    fn peer() -> impl Strategy<Value = PeerStatus> {
        (
            any::<String>(),
            any::<Option<String>>(),
            any::<Option<u32>>(),
            any::<u64>(),
        )
            .prop_map(|(name, endpoint, path_mtu, handshakes)| PeerStatus {
                public_key: name.clone(),
                state: name.clone(),
                cipher: endpoint.clone(),
                handshake_age_s: path_mtu.map(|age| f64::from(age) / 4.0),
                last_received_s: None,
                rtt_us: Some(handshakes),
                counters: Counters {
                    inbound_bytes: handshakes,
                    ..Counters::default()
                },
                name,
                endpoint,
                path_mtu,
                handshakes,
                rates: Rates::default(),
            })
    }
}
