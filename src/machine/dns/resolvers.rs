// SPDX-License-Identifier: MIT OR Apache-2.0
//! The resolvers of a link without the tunnels.

use std::net::IpAddr;

/// The resolvers of a link without the tunnels.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Resolvers {
    /// The servers; none where they are unknown.
    pub servers: Vec<IpAddr>,
    /// Search domains for short names.
    pub search: Vec<String>,
}

impl Resolvers {
    /// Reads resolv.conf(5).
    pub(super) fn parse(text: &str) -> Self {
        let mut resolvers = Self::default();
        for line in text.lines() {
            let mut words = line.split_whitespace();
            match (words.next(), words.clone().next()) {
                (Some("nameserver"), Some(server)) => {
                    resolvers.servers.extend(server.parse::<IpAddr>());
                }
                // Of several lines, the last one counts.
                (Some("search" | "domain"), _) => {
                    resolvers.search = words.map(str::to_owned).collect();
                }
                _ => {}
            }
        }
        resolvers
    }
}
