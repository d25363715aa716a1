// SPDX-License-Identifier: MIT OR Apache-2.0
//! The states of a session, and the reasons for its end.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Why a session is stopped; numbers and order as in `NEProviderStopReason`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
#[repr(u8)]
pub enum StopReason {
    /// None was given.
    None = 0,
    /// A user or a program asked for it.
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

/// For log lines.
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
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
    /// The provider is trying to re-establish the tunnel.
    Reasserting = 4,
    /// The session is being taken down.
    Disconnecting = 5,
}

impl SessionStatus {
    /// In lower case, for log lines and JSON.
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
