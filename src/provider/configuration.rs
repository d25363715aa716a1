// SPDX-License-Identifier: MIT OR Apache-2.0
//! The configuration of a tunnel, before and besides its provider's requests
//! (`NETunnelProviderProtocol`, and the routing policy of `NEVPNProtocol`).

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::on_demand::OnDemandRule;

/// The configuration of one tunnel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
#[non_exhaustive]
pub struct TunnelConfiguration {
    /// It may be started (`isEnabled`).
    pub enabled: bool,
    /// The kind of provider, as it is registered with the host (`providerBundleIdentifier`).
    pub provider: String,
    /// For users.
    pub description: String,
    /// The server, as the provider names it (`serverAddress`).
    pub server: String,
    /// The part that only the provider understands (`providerConfiguration`).
    pub vendor: BTreeMap<String, serde_json::Value>,
    /// What goes through the tunnel besides its routes.
    pub routing: RoutingPolicy,
    /// The session ends when the machine sleeps.
    pub disconnect_on_sleep: bool,
    /// Of the tunnels of one group, only one is up: a tunnel that is started replaces the other.
    pub exclusive_group: Option<String>,
    /// The host starts and stops the tunnel as its rules say (`isOnDemandEnabled`).
    pub on_demand: bool,
    /// The rules; the first one that matches the network applies (`onDemandRules`).
    pub on_demand_rules: Vec<OnDemandRule>,
    /// The secrets that the provider may request: its own name for each, and the host's name
    /// (`passwordReference`).
    pub secrets: BTreeMap<String, String>,
}

impl Default for TunnelConfiguration {
    fn default() -> Self {
        Self {
            enabled: true,
            provider: String::new(),
            description: String::new(),
            server: String::new(),
            vendor: BTreeMap::new(),
            routing: RoutingPolicy::default(),
            disconnect_on_sleep: false,
            exclusive_group: None,
            on_demand: false,
            on_demand_rules: Vec::new(),
            secrets: BTreeMap::new(),
        }
    }
}

impl TunnelConfiguration {
    /// An enabled tunnel of this kind of provider.
    pub fn new(provider: impl Into<String>) -> Self {
        Self {
            provider: provider.into(),
            ..Self::default()
        }
    }
}

/// What goes through a tunnel, whatever other routes say. By default, all are off.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct RoutingPolicy {
    /// All networks do, and nothing leaves the machine otherwise, even while the tunnel is not
    /// connected: a kill switch. DHCP and the tunnel's own datagrams still leave; DNS queries do
    /// not, so the peers of the built-in provider need addresses for endpoints.
    pub include_all_networks: bool,
    /// Networks that this machine is in are reached directly, with either of the other two.
    pub exclude_local_networks: bool,
    /// The tunnel's routes take precedence over those of the machine. Without it, a network that
    /// the machine is in, or has a more specific route to, is reached directly. Has no effect with
    /// `include_all_networks`.
    pub enforce_routes: bool,
}
