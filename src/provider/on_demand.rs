// SPDX-License-Identifier: MIT OR Apache-2.0
//! Rules by which a host starts and stops a tunnel by itself (`NEOnDemandRule`).
//!
//! The first rule that matches the machine's network decides; where none does, nothing happens. Unlike
//! Apple's, a rule to connect does so when the network matches, not when a program opens a socket: a
//! route cannot wait for a tunnel. Pure; `host` looks at the network and acts.

use std::{fmt, net::IpAddr, str::FromStr};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// An action and the networks that it applies to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
#[non_exhaustive]
pub struct OnDemandRule {
    /// The action where all of the following hold.
    pub action: OnDemandAction,
    /// The kind of link of the default route (`interfaceTypeMatch`).
    #[serde(default)]
    pub interface: InterfaceType,
    /// The network's search domain is one of these, if there are any (`DNSSearchDomainMatch`).
    #[serde(default)]
    pub search_domains: Vec<String>,
    /// Each of the network's name servers is one of these, if there are any
    /// (`DNSServerAddressMatch`).
    #[serde(default)]
    pub name_servers: Vec<IpAddr>,
    /// This address answers with the status 200, outside of all tunnels and without a redirection
    /// (`probeURL`).
    #[serde(default)]
    pub probe: Option<ProbeUrl>,
}

/// The action; numbers as in `NEOnDemandRuleAction`, which also has one for each connection (3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
#[repr(u8)]
pub enum OnDemandAction {
    /// Start the tunnel, and again after it failed.
    Connect = 1,
    /// Stop it.
    Disconnect = 2,
    /// Leave it as it is.
    #[default]
    Ignore = 4,
}

/// A kind of link; numbers as in `NEOnDemandRuleInterfaceType`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
#[repr(u8)]
pub enum InterfaceType {
    /// Any.
    #[default]
    Any = 0,
    /// All links except radio.
    Ethernet = 1,
    /// IEEE 802.11.
    Wifi = 2,
}

/// A URL whose answer tells whether this is the network that the rule means.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(into = "String", try_from = "String")]
pub struct ProbeUrl {
    /// `host:port`.
    pub(crate) authority: String,
    /// From the first slash.
    pub(crate) path: String,
}

/// The text is no URL for a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a probe is a URL such as http://10.0.0.1/here; https is not supported")]
pub struct ProbeUrlError;

impl FromStr for ProbeUrl {
    type Err = ProbeUrlError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let rest = text.strip_prefix("http://").ok_or(ProbeUrlError)?;
        let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let is_plain = |byte: u8| byte.is_ascii_graphic() && !b"@\\".contains(&byte);
        if host.is_empty() || !rest.bytes().all(is_plain) {
            return Err(ProbeUrlError);
        }
        let has_port = host.rsplit(']').next().is_some_and(|end| end.contains(':'));
        let port = if has_port { "" } else { ":80" };
        Ok(Self {
            authority: format!("{host}{port}"),
            path: if path.is_empty() { "/" } else { path }.to_owned(),
        })
    }
}

impl fmt::Display for ProbeUrl {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "http://{}{}", self.authority, self.path)
    }
}

impl TryFrom<String> for ProbeUrl {
    type Error = ProbeUrlError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<ProbeUrl> for String {
    fn from(url: ProbeUrl) -> Self {
        url.to_string()
    }
}

/// The network of the machine, without its tunnels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Surroundings {
    /// Never `Any`.
    pub(crate) interface: InterfaceType,
    pub(crate) search_domains: Vec<String>,
    pub(crate) name_servers: Vec<IpAddr>,
}

impl OnDemandRule {
    /// A rule with this action for every network.
    pub fn always(action: OnDemandAction) -> Self {
        Self {
            action,
            ..Self::default()
        }
    }

    /// Whether the rule matches here, apart from its probe.
    pub(crate) fn matches(&self, here: &Surroundings) -> bool {
        let is_listed = |domain: &String| {
            self.search_domains
                .iter()
                .any(|listed| listed.eq_ignore_ascii_case(domain))
        };
        let has_domain =
            self.search_domains.is_empty() || here.search_domains.iter().any(is_listed);
        let listed = |server: &IpAddr| self.name_servers.contains(server);
        let has_servers = self.name_servers.is_empty()
            || !here.name_servers.is_empty() && here.name_servers.iter().all(listed);
        [InterfaceType::Any, here.interface].contains(&self.interface) && has_domain && has_servers
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn office() -> Surroundings {
        Surroundings {
            interface: InterfaceType::Ethernet,
            search_domains: vec!["office.example".to_owned()],
            name_servers: ["10.0.0.1", "10.0.0.2"]
                .map(|ip| ip.parse().unwrap())
                .into(),
        }
    }

    #[test]
    fn all_that_a_rule_says_must_hold() {
        for (text, matches) in [
            ("", true),
            ("interface = 'ethernet'", true),
            ("interface = 'wifi'", false),
            ("search-domains = ['OFFICE.example', 'lab.example']", true),
            ("search-domains = ['lab.example']", false),
            ("name-servers = ['10.0.0.2', '10.0.0.1', '10.0.0.3']", true),
            ("name-servers = ['10.0.0.1']", false),
            (
                "name-servers = ['10.0.0.1', '10.0.0.2']\ninterface = 'wifi'",
                false,
            ),
        ] {
            let rule: OnDemandRule =
                toml::from_str(&format!("action = 'connect'\n{text}")).unwrap();
            assert_eq!(rule.matches(&office()), matches, "{text}");
        }
        let nameless = Surroundings {
            name_servers: Vec::new(),
            ..office()
        };
        let rule = OnDemandRule {
            name_servers: office().name_servers,
            ..OnDemandRule::default()
        };
        assert!(!rule.matches(&nameless), "no server is none that is listed");
    }

    #[test]
    fn a_probe_is_a_plain_http_address() {
        for (text, authority, path) in [
            ("http://10.0.0.1", "10.0.0.1:80", "/"),
            (
                "http://10.0.0.1:8080/here?now",
                "10.0.0.1:8080",
                "/here?now",
            ),
            ("http://[fd00::1]/a", "[fd00::1]:80", "/a"),
            ("http://[fd00::1]:81/a", "[fd00::1]:81", "/a"),
        ] {
            let url: ProbeUrl = text.parse().unwrap();
            assert_eq!((&*url.authority, &*url.path), (authority, path));
            assert_eq!(url.to_string().parse(), Ok(url));
        }
        for text in [
            "",
            "http://",
            "http:///a",
            "https://a/",
            "a",
            "http://a/ b",
            "http://a/\r\nX: y",
            "http://me@a/",
        ] {
            assert_eq!(text.parse::<ProbeUrl>(), Err(ProbeUrlError), "{text}");
        }
    }
}
