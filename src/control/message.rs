// SPDX-License-Identifier: MIT OR Apache-2.0
//! The queries of a running tunnel and its answers: the part of the [client
//! protocol](crate::host::protocol) that the tunnel itself understands.
//!
//! Pure data. A query is added here and in `tunnel::provider`, which answers it.

mod fdb;
mod reload;
mod status;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use self::{
    fdb::{
        AddressCounts, Assigner, FdbAdd, FdbCounters, FdbDel, FdbFlush, FdbPage, FdbRequest,
        FdbShow, FdbStatus, MoveStatus, SwitchStatus,
    },
    reload::{ConfigChange, Difference, ReloadMode, ReloadOutcome, Reloaded},
    status::{
        BlockStatus, BridgePortStatus, CorePlanStatus, Counters, DeviceStatus, ExpressStatus,
        GroupStatus, KernelCountersStatus, LastErrorStatus, LatencyState, LatencyStatus,
        PeerStatus, PortStatus, Rates, Status, ThreadStatus,
    },
};

/// A query to a tunnel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Query {
    /// Its state: a [`Status`].
    Show,
    /// Reads the FDB, or changes it.
    Fdb(FdbRequest),
    /// Compares the configuration's file with the configuration in force, and applies the
    /// difference, or nothing: a [`Reloaded`].
    Reload(ReloadMode),
}

/// A permission of a user, independent of the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// To read states and events.
    Observe,
    /// To start and stop tunnels, to send them messages, and to change their FDB.
    Control,
    /// To add, change and remove tunnels, and their secrets.
    Configure,
}

impl Query {
    /// The permission that a client needs.
    pub const fn access(&self) -> Access {
        match self {
            Self::Show | Self::Fdb(FdbRequest::Show(_)) => Access::Observe,
            Self::Fdb(_) | Self::Reload(_) => Access::Control,
        }
    }
}

/// The answer to a [`Query`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Answer {
    /// The state of the tunnel.
    Status(Box<Status>),
    /// A part of the FDB.
    Fdb(FdbPage),
    /// The FDB was changed.
    Changed {
        /// The number of addresses concerned.
        addresses: u64,
    },
    /// What a reload has done.
    Reloaded(Reloaded),
}

/// An answer, or the reason why there is none.
pub type Answered = Result<Answer, QueryError>;

/// Why there is no answer to a [`Query`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum QueryError {
    /// This kind of provider does not support it.
    #[error("its provider does not support this query")]
    Unknown,
    /// The tunnel is not up yet, or no longer.
    #[error("it has no answer in its present state")]
    NotNow,
    /// The text has the reason and the remedy.
    #[error("{0}")]
    Refused(String),
    /// The configuration's file is not valid; the text has each error, with line and remedy.
    #[error("{0}")]
    Configuration(String),
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn queries_are_the_lines_that_scripts_may_send() {
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
        for (query, json) in [
            (Query::Show, r#""show""#),
            (
                Query::Fdb(FdbRequest::Show(show)),
                r#"{"fdb":{"show":{"from":7}}}"#,
            ),
            (
                Query::Fdb(FdbRequest::Add(add)),
                r#"{"fdb":{"add":{"vid":10,"mac":"02:00:00:00:00:01","port":"site-b","origin":"controller","sequence":3}}}"#,
            ),
            (
                Query::Fdb(FdbRequest::Del(del)),
                r#"{"fdb":{"del":{"mac":"02:00:00:00:00:01"}}}"#,
            ),
            (
                Query::Fdb(FdbRequest::Flush(FdbFlush::default())),
                r#"{"fdb":{"flush":{}}}"#,
            ),
        ] {
            assert_eq!(serde_json::to_string(&query).unwrap(), json);
            assert_eq!(serde_json::from_str::<Query>(json).unwrap(), query);
        }
    }

    #[test]
    fn optional_fields_of_a_query_have_defaults() {
        let long = FdbRequest::Add(FdbAdd {
            vid: 0,
            mac: "m".to_owned(),
            port: "tap".to_owned(),
            origin: Assigner::Static,
            sequence: None,
        });
        let short = r#"{"fdb":{"add":{"mac":"m","port":"tap"}}}"#;
        let query: Query = serde_json::from_str(short).unwrap();
        assert_eq!(query, Query::Fdb(long));
        assert_eq!(serde_json::to_string(&query).unwrap(), short);
        for (wrong, named) in [
            (r#""fdb""#, "newtype variant"),
            (r#"{"fdb":{"explode":{}}}"#, "`explode`"),
            (r#"{"fdb":{"add":{"mac":"m"}}}"#, "`port`"),
            (
                r#"{"fdb":{"add":{"mac":"m","port":"tap","vid":65536}}}"#,
                "65536",
            ),
            (
                r#"{"fdb":{"add":{"mac":"m","port":"tap","origin":"learned"}}}"#,
                "`learned`",
            ),
            (r#"{"fdb":{"show":{"colour":1}}}"#, "`colour`"),
            (
                r#"{"fdb":{"add":{"mac":"m","port":"tap","colour":1}}}"#,
                "`colour`",
            ),
            (r#"{"fdb":{"del":{"mac":"m","colour":1}}}"#, "`colour`"),
            (r#"{"fdb":{"flush":{"prot":"tap"}}}"#, "`prot`"),
        ] {
            let error = serde_json::from_str::<Query>(wrong).unwrap_err();
            assert!(error.to_string().contains(named), "{wrong}: {error}");
        }
    }

    proptest! {
        #[test]
        fn answers_survive_the_line(answer in answer()) {
            let json = serde_json::to_vec(&answer).unwrap();
            prop_assert!(!json.contains(&b'\n'));
            prop_assert_eq!(serde_json::from_slice::<Answer>(&json).unwrap(), answer);
        }
    }

    fn answer() -> impl Strategy<Value = Answer> {
        prop_oneof![
            any::<u64>().prop_map(|addresses| Answer::Changed { addresses }),
            (
                proptest::collection::vec(entry(), 0..3),
                any::<Option<u32>>()
            )
                .prop_map(|(entries, next)| Answer::Fdb(FdbPage { entries, next })),
            status().prop_map(|status| Answer::Status(Box::new(status))),
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
                    condition: name.clone(),
                    state,
                    pid: number,
                    // Quarters have an exact decimal form.
                    uptime_s: f64::from(number) / 4.0,
                    public_key: tunnel,
                    listen,
                    listen_is_here: number % 2 == 0,
                    udp_gso: number % 2 == 0,
                    udp_gro: number % 3 == 0,
                    latency: (number % 2 == 0).then(|| LatencyStatus {
                        bound_us: number,
                        state: LatencyState::Unavailable,
                        problem: bridge.clone(),
                    }),
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
                        express: (number % 2 == 0).then_some(ExpressStatus {
                            outbound_frames: u64::MAX,
                            inbound_frames: number.into(),
                        }),
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
                remedies: endpoint.iter().cloned().collect(),
                name,
                endpoint,
                path_mtu,
                handshakes,
                rates: Rates::default(),
            })
    }
}
