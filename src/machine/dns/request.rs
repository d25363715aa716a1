// SPDX-License-Identifier: MIT OR Apache-2.0
//! A request to the resolver.

use std::net::IpAddr;

/// A request to the resolver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NamesRequest {
    /// The servers, the preferred one first.
    pub servers: Vec<IpAddr>,
    /// The protocol to use with them.
    pub transport: Transport,
    /// The names that are resolved by them.
    pub scope: Scope,
    /// Search domains for short names. With [`Scope::Domains`] the servers resolve the names in
    /// them as well.
    pub search: Vec<String>,
}

/// The protocol to use with the servers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Transport {
    /// RFC 1035, whatever protocol the resolver uses with other servers.
    Cleartext,
    /// RFC 7858 always, without a fallback.
    Tls {
        /// The name in the servers' certificates; none where their addresses are certified.
        server_name: Option<String>,
    },
}

/// The names that the servers resolve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Scope {
    /// All.
    All,
    /// Those in these domains and in the search domains.
    Domains(Vec<String>),
}

impl NamesRequest {
    /// In the syntax of resolv.conf(5).
    pub(super) fn as_resolv_conf(&self) -> String {
        let mut text = String::new();
        if !self.search.is_empty() {
            text += &format!("search {}\n", self.search.join(" "));
        }
        for server in &self.servers {
            text += &format!("nameserver {server}\n");
        }
        text
    }
}
