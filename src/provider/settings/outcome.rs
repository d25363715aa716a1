// SPDX-License-Identifier: MIT OR Apache-2.0
//! What became of settings: those in effect, or why there was no change.

use crate::{
    machine::{device::DeviceError, dns::NamesError, proxy::ProxyError, routing::RoutingError},
    provider::interface::Interface,
};

/// The settings in effect.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Applied {
    /// The interface.
    pub interface: Interface,
    /// The resolver in charge of the name servers.
    pub dns: DnsOutcome,
    /// The state of the proxy.
    pub proxy: ProxyOutcome,
}

/// The resolver in charge now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum DnsOutcome {
    /// No servers were asked for.
    #[default]
    Unchanged,
    /// systemd-resolved, per link.
    Resolved,
    /// resolvconf.
    Resolvconf,
    /// `/etc/resolv.conf` itself.
    File,
}

/// The state of the proxy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum ProxyOutcome {
    /// None was asked for.
    #[default]
    Unchanged,
    /// It is in this file of environment variables; programs that do not read the file do not use
    /// the proxy.
    Published(std::path::PathBuf),
}

/// Why settings were not applied; codes as in `NETunnelProviderError`.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SettingsError {
    /// The settings are invalid. Nothing was changed.
    #[error("invalid setting {field}: {problem}")]
    Invalid {
        /// The field.
        field: &'static str,
        /// The problem.
        problem: String,
    },
    /// A newer call replaced them, or the session is being stopped.
    #[error("newer settings took the place of these, or the session is being stopped")]
    Canceled,
    /// The kernel refused. Every change was undone.
    #[error(transparent)]
    Failed(#[from] DeviceError),
    /// The kernel refused a route. Every change was undone.
    #[error(transparent)]
    Unroutable(#[from] RoutingError),
    /// The servers of [`EthernetTunnelSettings::dns`](super::EthernetTunnelSettings::dns) cannot be
    /// set, or only if names or queries went to servers that must not get them. Every change was undone.
    #[error("name servers cannot be set")]
    Names(#[from] NamesError),
    /// The proxy cannot be published. Every change was undone.
    #[error(transparent)]
    Proxy(#[from] ProxyError),
}

impl SettingsError {
    /// Apple's number.
    pub const fn code(&self) -> u8 {
        match self {
            Self::Invalid { .. } => 1,
            Self::Canceled => 2,
            Self::Failed(_) | Self::Unroutable(_) | Self::Names(_) | Self::Proxy(_) => 3,
        }
    }

    /// Whether the settings were tried, and failed.
    pub(in crate::provider) const fn is_failure(&self) -> bool {
        !matches!(self, Self::Invalid { .. } | Self::Canceled)
    }
}

pub(super) fn invalid<T>(field: &'static str, problem: String) -> Result<T, SettingsError> {
    Err(SettingsError::Invalid { field, problem })
}
