// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a tunnel is configured to be, before and beside what its provider asks for
//! (`NETunnelProviderProtocol`, and the routing policy of `NEVPNProtocol`).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The configuration of one tunnel.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
#[non_exhaustive]
pub struct TunnelConfiguration {
    /// The kind of provider, as it is registered with the host (`providerBundleIdentifier`).
    pub provider: String,
    /// For people.
    pub description: String,
    /// The server, in the provider's words (`serverAddress`).
    pub server: String,
    /// What only the provider understands (`providerConfiguration`).
    pub vendor: BTreeMap<String, serde_json::Value>,
    /// What goes through the tunnel beside what its routes say.
    pub routing: RoutingPolicy,
    /// The session ends when the machine sleeps.
    pub disconnect_on_sleep: bool,
}

/// What goes through a tunnel, whatever other routes say. All off is the usual.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct RoutingPolicy {
    /// Everything does, and nothing leaves the machine otherwise, also while the tunnel is not
    /// connected: a kill switch. DHCP and the tunnel's own datagrams still leave.
    pub include_all_networks: bool,
    /// Networks that this machine is in are reached directly, with either of the others.
    pub exclude_local_networks: bool,
    /// The tunnel's routes go before those of the machine. Without it a network that the machine is
    /// in, or has a more specific route to, is reached directly. Means nothing with
    /// `include_all_networks`.
    pub enforce_routes: bool,
}
