// SPDX-License-Identifier: MIT OR Apache-2.0
//! What `patchcord show`, `down` and `fdb` say to a running tunnel, and what it answers.
//!
//! One request and one reply per connection, each one line of JSON. Pure data and codec; the Unix
//! socket is in `server`, the client side in `client`.

mod fdb;

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};

pub use self::fdb::{
    AddressCounts, Assigner, FdbAdd, FdbCounters, FdbDel, FdbFlush, FdbPage, FdbRequest, FdbShow,
    FdbStatus, MoveStatus, SwitchStatus,
};
use super::MAX_REQUEST_BYTES;

/// A request, one line of JSON: `{"verb":"show"}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// Answer with the [`Status`].
    #[serde(deserialize_with = "nothing_else")]
    Show,
    /// Stop the tunnel; the reply comes when everything is removed.
    #[serde(deserialize_with = "nothing_else")]
    Down,
    /// Look at the table of addresses, or change it.
    Fdb(FdbRequest),
}

impl Request {
    /// The line that asks for it, newline included.
    pub fn to_line(&self) -> Vec<u8> {
        to_line(self)
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

/// What is left for a variant without fields. Serde denies unknown ones only to those that have some.
fn nothing_else<'de, D: Deserializer<'de>>(deserializer: D) -> Result<(), D::Error> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Nothing {}

    let Nothing {} = Nothing::deserialize(deserializer)?;
    Ok(())
}

/// Why a line is not a [`Request`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RequestError {
    /// More than [`MAX_REQUEST_BYTES`].
    #[error("the request is longer than {MAX_REQUEST_BYTES} bytes")]
    TooLong,
    /// Not JSON, or not a request that this version knows.
    #[error("{UNKNOWN_REQUEST}: {0}")]
    Malformed(serde_json::Error),
}

/// How every version begins its answer to a request that it does not know.
const UNKNOWN_REQUEST: &str = "the request is not one that this version knows";

/// The reply to a [`Request`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "kebab-case")]
pub enum Reply {
    /// The state of the tunnel.
    Status(Box<Status>),
    /// The tunnel is down.
    Stopped,
    /// A part of the table of addresses.
    Fdb(FdbPage),
    /// The table of addresses is changed.
    Changed {
        /// How many addresses that concerned.
        addresses: u64,
    },
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

    /// Whether the tunnel is of a version that does not know the request.
    pub fn is_of_other_version(&self) -> bool {
        matches!(self, Self::Refused { message } if message.starts_with(UNKNOWN_REQUEST))
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
    /// Whether this machine has that address. Until it has, no peer can be reached.
    #[serde(default = "unless_said")]
    pub listen_is_here: bool,
    /// Whether the kernel, or the network card, cuts trains of datagrams.
    #[serde(default = "unless_said")]
    pub udp_gso: bool,
    /// Whether the kernel hands over datagrams as trains.
    #[serde(default = "unless_said")]
    pub udp_gro: bool,
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
    /// What the switch has counted.
    #[serde(default)]
    pub switch: SwitchStatus,
    /// The addresses that the switch knows, as far as there is room for them here: see
    /// [`FdbRequest::Show`] for all.
    pub fdb: Vec<FdbStatus>,
    /// How many others it knows.
    #[serde(default)]
    pub fdb_omitted: u64,
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
    /// The bridge, or another interface, it is a port of.
    pub bridge: Option<String>,
    /// Whether it is administratively up.
    #[serde(default = "unless_said")]
    pub up: bool,
    /// Whether it has carrier, that is, unless configured otherwise, whether any peer is reachable.
    pub carrier: bool,
    /// The bridge that is not there, and that it waits for.
    #[serde(default)]
    pub waits_for: Option<String>,
    /// Whether it is in another network namespace.
    #[serde(default)]
    pub moved: bool,
    /// What the bridge does with it.
    #[serde(default)]
    pub bridge_port: Option<BridgePortStatus>,
    /// What the kernel counted at it.
    #[serde(default)]
    pub kernel: KernelCountersStatus,
    /// What keeps frames from passing it, with what to do; for people.
    #[serde(default)]
    pub remedies: Vec<String>,
    /// `vnet` (own back-end with the virtio header), `plain` (tun-tap) or `packet` (a NIC).
    pub backend: String,
    /// What is between it and the peers: `switch` or `wire`.
    #[serde(default)]
    pub mode: String,
    /// Whether the device was there before and will stay.
    pub adopted: bool,
}

/// Versions that do not say so knew of nothing else.
const fn unless_said() -> bool {
    true
}

/// A port of a Linux bridge, as the bridge has it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BridgePortStatus {
    /// `forwarding`, `learning`, `listening`, `blocking` or `disabled`.
    pub state: String,
    /// Whether the bridge has spanning tree.
    pub stp: bool,
    /// The VLANs of the port, `1, 10-20`; none where the bridge does not filter by VLAN.
    pub vlans: Option<String>,
    /// Whether it reaches no other isolated port.
    pub isolated: bool,
    /// Whether netfilter looks at what crosses the bridge.
    pub netfilter: bool,
}

/// What the kernel counted at the device: `rx` comes from the tunnel, `tx` goes into it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelCountersStatus {
    /// Frames that the network stack did not take.
    pub rx_dropped: u64,
    /// Frames that found no room, or no carrier.
    pub tx_dropped: u64,
    /// Frames that were malformed for the kernel.
    pub rx_errors: u64,
    /// Frames that failed.
    pub tx_errors: u64,
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
    /// IP packet size that the path to the peer is known to carry; `None` also where none arrives that has
    /// room for more than small frames.
    pub path_mtu: Option<u32>,
    /// Handshakes completed.
    pub handshakes: u64,
    /// The last reason for which the peer could not be reached, or only by small frames. It stays when
    /// that is over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<LastErrorStatus>,
    /// Traffic with this peer.
    pub counters: Counters,
    /// Its speed over the last second.
    pub rates: Rates,
}

/// Why a peer could not be reached.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LastErrorStatus {
    /// One word, such as `no-answer`, `port-closed` or `refused-network-id`.
    pub cause: String,
    /// The same for people, as a clause.
    pub text: String,
    /// What to do about it.
    pub remedy: String,
    /// Seconds since it began.
    pub since_s: f64,
    /// Seconds since it was noticed last.
    pub last_s: f64,
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn requests_are_the_lines_that_scripts_may_send() {
        let mac = "02:00:00:00:00:01".to_owned();
        let show = FdbShow {
            from: 7,
            ..FdbShow::default()
        };
        let add = FdbAdd {
            vid: 10,
            mac: mac.clone(),
            port: "site-b".to_owned(),
            origin: Assigner::Controller,
            sequence: Some(3),
        };
        let del = FdbDel {
            vid: 0,
            mac,
            sequence: None,
        };
        for (request, line) in [
            (Request::Show, r#"{"verb":"show"}"#),
            (Request::Down, r#"{"verb":"down"}"#),
            (
                Request::Fdb(FdbRequest::Show(show)),
                r#"{"verb":"fdb","action":"show","from":7}"#,
            ),
            (
                Request::Fdb(FdbRequest::Add(add)),
                r#"{"verb":"fdb","action":"add","vid":10,"mac":"02:00:00:00:00:01","port":"site-b","origin":"controller","sequence":3}"#,
            ),
            (
                Request::Fdb(FdbRequest::Del(del)),
                r#"{"verb":"fdb","action":"del","mac":"02:00:00:00:00:01"}"#,
            ),
            (
                Request::Fdb(FdbRequest::Flush(FdbFlush::default())),
                r#"{"verb":"fdb","action":"flush"}"#,
            ),
        ] {
            assert_eq!(request.to_line(), format!("{line}\n").as_bytes());
            assert_eq!(Request::from_line(&request.to_line()).unwrap(), request);
            assert_eq!(Request::from_line(line.as_bytes()).unwrap(), request);
        }
    }

    #[test]
    fn what_may_be_left_out_of_a_request_has_a_default() {
        for (short, long) in [
            (
                r#"{"verb":"fdb","action":"show"}"#,
                FdbRequest::Show(FdbShow::default()),
            ),
            (
                r#"{"action":"flush","verb":"fdb"}"#,
                FdbRequest::Flush(FdbFlush::default()),
            ),
            (
                r#"{"verb":"fdb","action":"add","mac":"m","port":"tap"}"#,
                FdbRequest::Add(FdbAdd {
                    vid: 0,
                    mac: "m".to_owned(),
                    port: "tap".to_owned(),
                    origin: Assigner::Static,
                    sequence: None,
                }),
            ),
        ] {
            let request = Request::from_line(short.as_bytes()).unwrap();
            assert_eq!(request, Request::Fdb(long), "{short}");
            assert_eq!(request.to_line().len(), short.len() + 1, "{short}");
        }
        for wrong in [
            r#"{"verb":"fdb"}"#,
            r#"{"verb":"fdb","action":"explode"}"#,
            r#"{"verb":"fdb","action":"add","mac":"m"}"#,
            r#"{"verb":"fdb","action":"add","mac":"m","port":"tap","vid":65536}"#,
            r#"{"verb":"fdb","action":"add","mac":"m","port":"tap","origin":"learned"}"#,
            r#"{"verb":"fdb","action":"flush","prot":"tap"}"#,
            r#"{"action":"show"}"#,
        ] {
            let error = Request::from_line(wrong.as_bytes()).unwrap_err();
            let reply = Reply::Refused {
                message: error.to_string(),
            };
            assert!(reply.is_of_other_version(), "{wrong}: {error}");
        }
    }

    #[test]
    fn a_field_that_no_request_has_is_named() {
        for wrong in [
            r#"{"verb":"show","colour":"red"}"#,
            r#"{"verb":"down","colour":null}"#,
            r#"{"colour":{},"verb":"down"}"#,
            r#"{"verb":"fdb","action":"show","colour":1}"#,
            r#"{"verb":"fdb","action":"add","mac":"m","port":"tap","colour":1}"#,
            r#"{"verb":"fdb","action":"del","mac":"m","colour":1}"#,
            r#"{"verb":"fdb","action":"flush","colour":1}"#,
        ] {
            let error = Request::from_line(wrong.as_bytes()).unwrap_err();
            assert!(error.to_string().contains("`colour`"), "{wrong}: {error}");
        }
    }

    #[test]
    fn the_status_of_an_older_tunnel_is_understood() {
        let entry = r#"{"vid":7,"mac":"02:00:00:00:00:01","port":"tap","age_s":3}"#;
        let entry: FdbStatus = serde_json::from_str(entry).unwrap();
        assert_eq!(
            (entry.origin.as_str(), entry.sequence, entry.dampened),
            ("learned", None, false)
        );
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
            any::<u64>().prop_map(|addresses| Reply::Changed { addresses }),
            (
                proptest::collection::vec(entry(), 0..3),
                any::<Option<u32>>()
            )
                .prop_map(|(entries, next)| Reply::Fdb(FdbPage { entries, next })),
            any::<String>().prop_map(|message| Reply::Refused { message }),
            status().prop_map(|status| Reply::Status(Box::new(status))),
        ]
    }

    fn status() -> impl Strategy<Value = Status> {
        let texts = proptest::array::uniform4(any::<String>());
        let peers = proptest::collection::vec(peer(), 0..3);
        let drops = proptest::collection::btree_map(any::<String>(), any::<u64>(), 0..4);
        let fdb = proptest::collection::vec(entry(), 0..3);
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
                    listen_is_here: number % 2 == 0,
                    udp_gso: number % 2 == 0,
                    udp_gro: number % 3 == 0,
                    device: DeviceStatus {
                        name: name.clone(),
                        index: number,
                        mac: name.clone(),
                        mtu: number,
                        waits_for: bridge.clone(),
                        bridge,
                        up: number % 2 == 1,
                        carrier: number % 2 == 0,
                        moved: number % 5 == 0,
                        bridge_port: Some(BridgePortStatus {
                            state: name.clone(),
                            stp: number % 2 == 0,
                            vlans: Some(name.clone()),
                            isolated: number % 3 == 0,
                            netfilter: number % 5 == 0,
                        }),
                        kernel: KernelCountersStatus {
                            tx_dropped: u64::MAX,
                            ..KernelCountersStatus::default()
                        },
                        remedies: vec![name.clone()],
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
                    drops,
                    switch: SwitchStatus {
                        addresses: AddressCounts {
                            places: 8192,
                            fixed: number.into(),
                            ..AddressCounts::default()
                        },
                        counters: FdbCounters {
                            dampened: u64::MAX,
                            ..FdbCounters::default()
                        },
                        moves: Vec::new(),
                    },
                    fdb,
                    fdb_omitted: number.into(),
                },
            )
    }

    fn entry() -> impl Strategy<Value = FdbStatus> {
        let texts = proptest::array::uniform3(any::<String>());
        (any::<u16>(), texts, any::<u32>(), any::<Option<u32>>()).prop_map(
            |(vid, [mac, port, origin], age_s, sequence)| FdbStatus {
                vid,
                mac,
                port,
                age_s,
                origin,
                sequence,
                dampened: age_s % 2 == 0,
                bound: age_s % 3 == 0,
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
                last_error: path_mtu.map(|age| LastErrorStatus {
                    cause: name.clone(),
                    text: name.clone(),
                    remedy: name.clone(),
                    since_s: f64::from(age) / 4.0,
                    last_s: 0.25,
                }),
                name,
                endpoint,
                path_mtu,
                handshakes,
                rates: Rates::default(),
            })
    }
}
