// SPDX-License-Identifier: MIT OR Apache-2.0
//! What is asked of the resolver.

use std::net::IpAddr;

/// What is asked of the resolver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NamesRequest {
    /// The servers, the preferred one first.
    pub servers: Vec<IpAddr>,
    /// How they are spoken to.
    pub transport: Transport,
    /// Which names go to them.
    pub scope: Scope,
    /// Domains that short names are tried in. With [`Scope::Domains`] their names go to the servers
    /// as well.
    pub search: Vec<String>,
}

/// How servers are spoken to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Transport {
    /// RFC 1035, whatever the resolver does with other servers.
    Cleartext,
    /// RFC 7858, never anything else.
    Tls {
        /// The name in the servers' certificates; none where the addresses are certified.
        server_name: Option<String>,
    },
}

/// Which names go to the servers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Scope {
    /// All.
    All,
    /// Those in these domains and in the search domains.
    Domains(Vec<String>),
}

impl NamesRequest {
    /// As resolv.conf(5) has it.
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
