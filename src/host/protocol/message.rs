// SPDX-License-Identifier: MIT OR Apache-2.0
//! The messages as types: hellos, requests and lines of the host.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::bytes::{Message, secret_in_json};
pub use crate::control::message::Access;
use crate::{
    control::message::{Answer, Query},
    host::event::{Attempt, Event},
    provider::{Secret, SessionStatus, TunnelConfiguration},
};

/// The versions of the protocol that this program supports.
pub const PROTOCOLS: &[u32] = &[2];
/// The longest line of a client, in bytes. Bounds the memory that one client can occupy in a host.
pub const MAX_LINE: usize = 1 << 20;
/// The name of a host in its hello.
pub(in crate::host) const HOST: &str = "patchcord-host";
/// The name of this client in its hello.
pub(in crate::host) const CLIENT: &str = "patchcord";

/// The first line of either side.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Hello {
    /// The program: `patchcord-host` is a host.
    pub hello: String,
    /// Its version, for messages.
    pub version: String,
    /// The versions of the protocol that it supports.
    #[serde(default)]
    pub protocols: Vec<u32>,
}

impl Hello {
    /// The hello of this version.
    pub(in crate::host) fn of(program: &str) -> Self {
        Self {
            hello: program.to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            protocols: PROTOCOLS.to_vec(),
        }
    }

    /// The highest version that both support, if there is one.
    pub fn common(&self) -> Option<u32> {
        let known = PROTOCOLS.iter().copied();
        known.filter(|one| self.protocols.contains(one)).max()
    }
}

/// A request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// The client's number for it, which the reply repeats.
    pub id: u64,
    /// The verb.
    pub verb: Verb,
}

/// The verbs, and the [`Reply`] to each.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
#[non_exhaustive]
pub enum Verb {
    /// All tunnels: [`Reply::Tunnels`].
    List,
    /// One tunnel: [`Reply::Tunnel`].
    View {
        /// The name of the tunnel.
        tunnel: String,
    },
    /// A query that only a running tunnel can answer: [`Reply::Answer`].
    Ask {
        /// The name of the tunnel.
        tunnel: String,
        /// The query.
        query: Query,
    },
    /// Starts a session; answered with [`Reply::Started`] at once.
    Start {
        /// The name of the tunnel.
        tunnel: String,
        /// Options for the provider.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        options: Option<BTreeMap<String, String>>,
    },
    /// Ends the session; answered when everything of it is removed.
    Stop {
        /// The name of the tunnel.
        tunnel: String,
    },
    /// Ends the session, and starts another with the configuration as it is now; answered with
    /// [`Reply::Started`] when the first is over. If the other cannot be made, nothing ends.
    Restart {
        /// The name of the tunnel.
        tunnel: String,
    },
    /// A message for the provider: [`Reply::Message`].
    Send {
        /// The name of the tunnel.
        tunnel: String,
        /// The message.
        message: Message,
    },
    /// Events from now on.
    Subscribe,
    /// Adds a tunnel, or replaces its configuration: [`Reply::Configured`].
    Configure {
        /// The name of the tunnel.
        tunnel: String,
        /// The complete configuration.
        configuration: TunnelConfiguration,
        /// The generation that the client has read, if a later change by another client must not be
        /// overwritten.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        generation: Option<u64>,
    },
    /// Removes a tunnel.
    Remove {
        /// The name of the tunnel.
        tunnel: String,
    },
    /// Stores a secret, which no verb returns.
    KeepSecret {
        /// Its name.
        name: String,
        /// Its bytes, base64.
        #[serde(deserialize_with = "secret_in_json")]
        #[schemars(with = "String")]
        secret: Secret,
    },
    /// Deletes a secret.
    ForgetSecret {
        /// Its name.
        name: String,
    },
}

impl Verb {
    /// The permission that a client needs.
    pub const fn access(&self) -> Access {
        match self {
            Self::List | Self::View { .. } | Self::Subscribe => Access::Observe,
            Self::Ask { query, .. } => query.access(),
            Self::Start { .. } | Self::Stop { .. } | Self::Restart { .. } | Self::Send { .. } => {
                Access::Control
            }
            Self::Configure { .. }
            | Self::Remove { .. }
            | Self::KeepSecret { .. }
            | Self::ForgetSecret { .. } => Access::Configure,
        }
    }
}

/// The answer to a request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Reply {
    /// Done; the reply has no content.
    Done,
    /// Tunnels, by name.
    Tunnels(Vec<TunnelInfo>),
    /// A tunnel.
    Tunnel(Box<TunnelInfo>),
    /// The answer of a tunnel to a query.
    Answer(Answer),
    /// A session was started.
    Started {
        /// The number that its events carry.
        attempt: Attempt,
    },
    /// The answer of a provider to a message; null if it has none.
    Message(Option<Message>),
    /// The configuration is in force.
    Configured {
        /// Its generation.
        generation: u64,
    },
}

/// The state of a tunnel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub struct TunnelInfo {
    /// Its name.
    pub tunnel: String,
    /// Its configuration.
    pub configuration: TunnelConfiguration,
    /// Counts changes of the configuration.
    pub generation: u64,
    /// Its status.
    pub status: SessionStatus,
    /// Why the last session ended, if it ended with an error.
    pub last_disconnect_error: Option<String>,
}

/// A line of the host after its hello.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum HostLine {
    /// The request was carried out.
    Done {
        /// The number of the request.
        id: u64,
        /// The answer.
        ok: Reply,
    },
    /// The request was refused.
    Refused {
        /// The number of the request; null if the line was no request at all, after which the host
        /// ends the connection.
        id: Option<u64>,
        /// The reason.
        error: Refusal,
    },
    /// An event.
    Event {
        /// The event.
        event: Event,
    },
    /// Events were lost, because the client did not read them in time.
    Lagged {
        /// Their number.
        lagged: u64,
    },
}

/// A line of the host as its client reads it: the task that waits for it decodes its content once.
#[derive(Debug, Deserialize)]
pub(in crate::host) struct Heard<'a> {
    pub(in crate::host) id: Option<u64>,
    #[serde(borrow)]
    pub(in crate::host) ok: Option<&'a RawValue>,
    pub(in crate::host) error: Option<Refusal>,
    #[serde(borrow)]
    pub(in crate::host) event: Option<&'a RawValue>,
    pub(in crate::host) lagged: Option<u64>,
}

/// Why a request was refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Refusal {
    /// For programs.
    pub code: RefusalCode,
    /// For users, with the remedy.
    pub message: String,
}

/// For programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum RefusalCode {
    /// There is no such tunnel.
    NoTunnel,
    /// The tunnel is disabled.
    Disabled,
    /// The tunnel is running already.
    Running,
    /// The tunnel is not running.
    NotRunning,
    /// The tunnel's provider does not answer.
    Busy,
    /// The tunnel's provider does not support the query.
    NoQuery,
    /// The tunnel has no answer in its present state.
    NotNow,
    /// The tunnel refuses the query.
    Refused,
    /// Another client has changed the configuration.
    Stale,
    /// The configuration is unusable, or cannot be changed.
    Configuration,
    /// The secret is not stored.
    Secret,
    /// The client lacks the permission.
    NotAuthorised,
    /// The line is no request.
    Malformed,
    /// The host does not know the verb, or the query.
    UnknownVerb,
    /// The host and the client support no common version.
    UnknownProtocol,
    /// A code that this version does not know.
    #[serde(other)]
    Other,
}
