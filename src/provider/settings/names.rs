// SPDX-License-Identifier: MIT OR Apache-2.0
//! Name resolution and the proxy while a tunnel is up, as its provider asks for them.

use std::net::IpAddr;

use super::outcome::{SettingsError, invalid};

/// Name resolution through the tunnel (`NEDNSSettings` and its kinds).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DnsSettings {
    /// The protocol to use with the servers.
    pub protocol: DnsProtocol,
    /// The servers, the preferred one first.
    pub servers: Vec<IpAddr>,
    /// The domain of this machine in the far LAN; the first search domain.
    pub domain_name: Option<String>,
    /// Search domains for short names.
    pub search_domains: Vec<String>,
    /// The servers resolve only names in these domains. `None` is all names if the tunnel has the
    /// default route, and only the search domains otherwise; an empty name is all names.
    pub match_domains: Option<Vec<String>>,
    /// The match domains are not search domains.
    pub match_domains_no_search: bool,
}

/// The protocol to use with DNS servers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum DnsProtocol {
    /// RFC 1035.
    #[default]
    Cleartext,
    /// RFC 7858, with the name in the servers' certificates.
    Tls {
        /// That name; none where their addresses are certified.
        server_name: Option<String>,
    },
    /// RFC 8484; no Linux resolver supports it per link, so it is refused rather than replaced.
    Https {
        /// The template of the server.
        server_url: String,
    },
}

impl DnsSettings {
    /// Cleartext servers for all names, if the tunnel has the default route.
    pub fn new(servers: impl Into<Vec<IpAddr>>) -> Self {
        Self {
            protocol: DnsProtocol::Cleartext,
            servers: servers.into(),
            domain_name: None,
            search_domains: Vec::new(),
            match_domains: None,
            match_domains_no_search: false,
        }
    }
}

impl DnsSettings {
    pub(super) fn validate(&self) -> Result<(), SettingsError> {
        if let DnsProtocol::Https { server_url } = &self.protocol {
            let problem =
                format!("{server_url}: no resolver takes DNS over HTTPS by link; use TLS");
            return invalid("dns", problem);
        }
        if self.servers.is_empty() {
            return invalid("dns", "no server".to_owned());
        }
        let domains = self.search_domains.iter().chain(&self.domain_name);
        let domains = domains.chain(
            self.match_domains
                .iter()
                .flatten()
                .filter(|name| !name.is_empty()),
        );
        match domains.into_iter().find(|name| !is_domain(name)) {
            Some(name) => invalid("dns", format!("{name:?} is no domain name")),
            None => Ok(()),
        }
    }
}

/// Whether it is a domain name of letters, digits, `-` and `_` (RFC 1035, section 2.3.4).
fn is_domain(name: &str) -> bool {
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
    };
    name.len() <= 253
        && name
            .strip_suffix('.')
            .unwrap_or(name)
            .split('.')
            .all(is_label)
}

/// The proxy for programs (`NEProxySettings`). Linux has no system-wide one: it is published for
/// programs that look for it, see [`Applied::proxy`](super::Applied::proxy).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ProxySettings {
    /// The URL of a proxy auto-configuration script.
    pub auto_config_url: Option<String>,
    /// For HTTP.
    pub http: Option<ProxyServer>,
    /// For HTTPS.
    pub https: Option<ProxyServer>,
    /// Names without a dot bypass the proxy.
    pub exclude_simple_hostnames: bool,
    /// Domains that bypass the proxy.
    pub exceptions: Vec<String>,
}

/// A proxy server (`NEProxyServer`). It has no password: published settings must not contain one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProxyServer {
    /// Its name or address.
    pub address: String,
    /// Its port.
    pub port: u16,
}

impl ProxySettings {
    pub(super) fn validate(&self) -> Result<(), SettingsError> {
        let texts = self.auto_config_url.iter().chain(&self.exceptions);
        let servers = self
            .http
            .iter()
            .chain(&self.https)
            .map(|server| &server.address);
        match texts.chain(servers).find(|text| !is_plain(text)) {
            Some(text) => invalid(
                "proxy",
                format!("{text:?} has white space or quotes, or is empty"),
            ),
            None => Ok(()),
        }
    }
}

/// Whether a text can be written to a file of variables without quoting.
fn is_plain(text: &str) -> bool {
    let is_special = |c: char| c.is_whitespace() || c.is_control() || "'\"`$\\".contains(c);
    !text.is_empty() && !text.contains(is_special)
}
