// SPDX-License-Identifier: MIT OR Apache-2.0
//! Ethernet tunnel providers: the lifecycle of Apple's `NEEthernetTunnelProvider`, on Linux.
//!
//! A provider is a value with two callbacks, [`start`](EthernetTunnelProvider::start) and
//! [`stop`](EthernetTunnelProvider::stop). A [`Session`] calls them and owns everything else: the
//! states, the deadlines, the TAP and its removal. In between the provider talks to the host through
//! its [`ProviderContext`]: it asks for an interface with
//! [`set_network_settings`](ProviderContext::set_network_settings), takes the frames, and reports
//! trouble with [`cancel_tunnel`](ProviderContext::cancel_tunnel).
//!
//! ```text
//!  Disconnected ── start called ──> Connecting ── start Ok ──> Connected <──> Reasserting
//!        ^                              │ failed                   │ stop, cancel
//!        └──────── all removed ── Disconnecting <──────────────────┘
//! ```
//! `patchcord up` runs its own tunnel as such a provider ([`crate::tunnel`]); there is no other way
//! to start one.

mod configuration;
mod context;
mod flow;
mod keep;
mod network;
mod offers;
mod on_demand;
mod power;
mod routes;
mod secret;
mod session;
mod settings;
mod sockets;
mod upkeep;

use std::{collections::BTreeMap, error::Error, fmt, pin::Pin};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

pub(crate) use self::power::SleepWatch;
pub use self::{
    configuration::{RoutingPolicy, TunnelConfiguration},
    context::{Interface, MAX_DISPLAYED, ProviderContext},
    flow::{FlowError, FrameReader, FrameWriter, SendReport},
    on_demand::{InterfaceType, OnDemandAction, OnDemandRule, ProbeUrl, ProbeUrlError},
    secret::{Secret, SecretError},
    session::{Deadlines, Session, SessionEnd, SessionError, SessionHandle},
    settings::{
        Addressing, Applied, BridgeVlans, DnsOutcome, DnsProtocol, DnsSettings,
        EthernetTunnelSettings, IpSettings, Ipv4Settings, Ipv6Settings, ProxyOutcome, ProxyServer,
        ProxySettings, Route, SettingsError,
    },
    sockets::{AppRule, RoutingMethod},
};
pub use crate::{
    io::mark::Mark,
    machine::{
        path::{Path, PathInterface, PathStatus},
        sockets::SocketError,
    },
};
pub use patchcord_bridge::MacAddr;

pub(crate) use self::{context::Hosting, on_demand::Surroundings, secret::NOT_BASE64};

/// A boxed future, so that one host can run different kinds of providers.
pub type BoxFut<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// An Ethernet tunnel. One value is one session; the host makes a fresh one for each.
pub trait EthernetTunnelProvider: Send + Sync + 'static {
    /// Brings the tunnel up. Returning `Ok` says that frames can flow.
    ///
    /// Must have called [`ProviderContext::set_network_settings`] with success by then: an Ethernet
    /// tunnel has no interface before. A stop may come meanwhile; watch
    /// [`ProviderContext::cancelled`], or be dropped at an await.
    fn start<'a>(
        &'a self,
        context: &'a ProviderContext,
        options: StartOptions,
    ) -> BoxFut<'a, Result<(), ProviderError>>;

    /// Ends the tunnel. Called exactly once for each session that was started, whatever ended it; the
    /// host removes the interface afterwards, even if this does not return in time.
    fn stop<'a>(&'a self, context: &'a ProviderContext, reason: StopReason) -> BoxFut<'a, ()>;

    /// Answers a message from outside; `None` is no answer.
    fn handle_app_message<'a>(
        &'a self,
        context: &'a ProviderContext,
        message: AppMessage,
    ) -> BoxFut<'a, Option<Bytes>> {
        let _ = (context, message);
        Box::pin(async { None })
    }

    /// The machine is about to sleep.
    fn sleep<'a>(&'a self, context: &'a ProviderContext) -> BoxFut<'a, ()> {
        let _ = context;
        Box::pin(async {})
    }

    /// The machine woke up.
    fn wake(&self, context: &ProviderContext) {
        let _ = context;
    }

    /// Whether what works for the tunnel gets on. Asked often, from the thread that runs the host, so it
    /// must not wait for anything. While a provider says no, the service manager does not hear that the
    /// host is well, and restarts it in the end (`WatchdogSec=`); one that cannot be helped cancels its
    /// tunnel before that.
    fn is_well(&self) -> bool {
        true
    }
}

/// How and by whom a session was started.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct StartOptions {
    /// From whoever started it; `None` unless an application did.
    pub options: Option<BTreeMap<String, String>>,
    /// Who that was.
    pub source: StartSource,
}

/// A message from outside (`handleAppMessage`).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct AppMessage {
    /// What it says.
    pub body: Bytes,
    /// Who sent it, as the kernel knows; `None` if that was this process.
    pub sender: Option<Sender>,
}

/// Another process (`SO_PEERCRED`, unix(7)), as it was when it connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sender {
    /// Its user.
    pub user: u32,
    /// Its group.
    pub group: u32,
    /// Its number, if it is in this process's world.
    pub process: Option<i32>,
}

impl<T: Into<Bytes>> From<T> for AppMessage {
    fn from(body: T) -> Self {
        Self {
            body: body.into(),
            sender: None,
        }
    }
}

/// Who started a session.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum StartSource {
    /// A program or a person.
    #[default]
    App,
    /// A rule.
    OnDemand,
    /// The service manager.
    System,
    /// The machine came up.
    Boot,
}

/// Why a session is stopped; numbers and order as in `NEProviderStopReason`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
#[repr(u8)]
pub enum StopReason {
    /// None was given.
    None = 0,
    /// Somebody asked for it.
    UserInitiated = 1,
    /// The provider failed: it cancelled the tunnel, or panicked.
    ProviderFailed = 2,
    /// There is no network.
    NoNetworkAvailable = 3,
    /// The network changed in a way that the session cannot survive.
    UnrecoverableNetworkChange = 4,
    /// The kind of provider was disabled.
    ProviderDisabled = 5,
    /// A secret was not given.
    AuthenticationCanceled = 6,
    /// The configuration is unusable.
    ConfigurationFailed = 7,
    /// Nothing was transferred for too long.
    IdleTimeout = 8,
    /// The configuration was disabled.
    ConfigurationDisabled = 9,
    /// The configuration was removed.
    ConfigurationRemoved = 10,
    /// Another configuration took its place.
    Superseded = 11,
    /// The user logged out.
    UserLogout = 12,
    /// Another user logged in.
    UserSwitch = 13,
    /// The tunnel could not be established in time.
    ConnectionFailed = 14,
    /// The machine sleeps, and the configuration says to disconnect then.
    Sleep = 15,
    /// The program is replaced by a newer one.
    AppUpdate = 16,
    /// The host has a bug, or the interface was deleted.
    InternalError = 17,
}

/// For people.
impl fmt::Display for StopReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "no reason was given",
            Self::UserInitiated => "it was asked to stop",
            Self::ProviderFailed => "the provider failed",
            Self::NoNetworkAvailable => "there is no network",
            Self::UnrecoverableNetworkChange => "the network changed",
            Self::ProviderDisabled => "the provider was disabled",
            Self::AuthenticationCanceled => "a secret was not given",
            Self::ConfigurationFailed => "the configuration is unusable",
            Self::IdleTimeout => "nothing was transferred for too long",
            Self::ConfigurationDisabled => "the configuration was disabled",
            Self::ConfigurationRemoved => "the configuration was removed",
            Self::Superseded => "another configuration took its place",
            Self::UserLogout => "the user logged out",
            Self::UserSwitch => "another user logged in",
            Self::ConnectionFailed => "it was not established in time",
            Self::Sleep => "the machine sleeps",
            Self::AppUpdate => "the program is replaced",
            Self::InternalError => "the host has a bug, or the interface was deleted",
        })
    }
}

/// The state of a session; numbers as in `NEVPNStatus`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
#[repr(u8)]
pub enum SessionStatus {
    /// There is no usable configuration.
    Invalid = 0,
    /// Nothing runs.
    Disconnected = 1,
    /// `start` was called.
    Connecting = 2,
    /// `start` returned `Ok`.
    Connected = 3,
    /// The provider says that it is trying to get the tunnel back.
    Reasserting = 4,
    /// The session is being taken down.
    Disconnecting = 5,
}

impl SessionStatus {
    /// In lower case, for people and JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Invalid => "invalid",
            Self::Disconnected => "disconnected",
            Self::Connecting => "connecting",
            Self::Connected => "connected",
            Self::Reasserting => "reasserting",
            Self::Disconnecting => "disconnecting",
        }
    }
}

/// A provider's own error: it cannot start, or cannot go on.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct ProviderError {
    /// What failed, for a person, with the remedy if there is one.
    pub message: String,
    /// What it failed of.
    #[source]
    pub source: Option<Box<dyn Error + Send + Sync>>,
}

impl ProviderError {
    /// An error that is its own explanation.
    pub fn new(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            source: None,
        }
    }

    /// An error with the one behind it.
    pub fn with_source(
        message: impl Into<String>,
        source: impl Into<Box<dyn Error + Send + Sync>>,
    ) -> Self {
        Self {
            message: message.into(),
            source: Some(source.into()),
        }
    }
}

impl From<SettingsError> for ProviderError {
    fn from(error: SettingsError) -> Self {
        Self::with_source("the interface could not be set up", error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_apples() {
        for (reason, number) in [
            (StopReason::UserInitiated, 1),
            (StopReason::ConfigurationFailed, 7),
            (StopReason::Superseded, 11),
            (StopReason::ConnectionFailed, 14),
            (StopReason::InternalError, 17),
        ] {
            assert_eq!(reason as u8, number);
        }
        assert_eq!(SessionStatus::Connecting as u8, 2);
        assert_eq!(SessionStatus::Disconnecting as u8, 5);
    }
}
