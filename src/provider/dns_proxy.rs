// SPDX-License-Identifier: MIT OR Apache-2.0
//! Turns settings of names and of the proxy into requests to the resolver and to the publisher of the
//! proxy.

use super::{
    configuration::RoutingPolicy,
    settings::{
        DnsOutcome, DnsProtocol, DnsSettings, EthernetTunnelSettings, ProxyOutcome, ProxyServer,
    },
};
use crate::machine::{
    dns::{NamesOutcome, NamesRequest, Scope, Transport},
    proxy::{self, ProxyRequest},
};

/// The request to the resolver, if any. A tunnel that carries all networks resolves all names.
pub(super) fn names_request(
    settings: &EthernetTunnelSettings,
    policy: RoutingPolicy,
) -> Option<NamesRequest> {
    let dns = settings.dns.as_ref()?;
    let has_default_route = policy.include_all_networks || settings.has_default_route();
    let scope = scope(dns, has_default_route);
    Some(NamesRequest {
        servers: dns.servers.clone(),
        transport: match &dns.protocol {
            DnsProtocol::Tls { server_name } => Transport::Tls {
                server_name: server_name.clone(),
            },
            // Settings with HTTPS are invalid.
            DnsProtocol::Cleartext | DnsProtocol::Https { .. } => Transport::Cleartext,
        },
        search: search(dns),
        scope,
    })
}

fn scope(dns: &DnsSettings, has_default_route: bool) -> Scope {
    match &dns.match_domains {
        None if has_default_route => Scope::All,
        None => Scope::Domains(Vec::new()),
        Some(domains) if domains.iter().any(|name| is_root(name)) => Scope::All,
        Some(domains) => Scope::Domains(unique(domains.iter())),
    }
}

/// The machine's own domain first, the match domains last.
fn search(dns: &DnsSettings) -> Vec<String> {
    let matches = dns.match_domains.iter().flatten();
    let matches = matches.filter(|_| !dns.match_domains_no_search);
    let own = dns.domain_name.iter().chain(&dns.search_domains);
    unique(own.chain(matches))
}

/// Without the dot at the end, in their order.
fn unique<'a>(names: impl Iterator<Item = &'a String>) -> Vec<String> {
    let mut unique = Vec::new();
    for name in names.filter(|name| !is_root(name)) {
        let name = name.trim_end_matches('.').to_owned();
        if !unique.contains(&name) {
            unique.push(name);
        }
    }
    unique
}

fn is_root(name: &str) -> bool {
    name.trim_end_matches('.').is_empty()
}

/// The proxy to publish, if any.
pub(super) fn proxy_request(settings: &EthernetTunnelSettings) -> Option<ProxyRequest> {
    let proxy = settings.proxy.as_ref()?;
    let server = |server: &ProxyServer| (server.address.clone(), server.port);
    Some(ProxyRequest {
        auto_config_url: proxy.auto_config_url.clone(),
        http: proxy.http.as_ref().map(server),
        https: proxy.https.as_ref().map(server),
        exclude_simple_hostnames: proxy.exclude_simple_hostnames,
        exceptions: proxy.exceptions.clone(),
    })
}

impl DnsOutcome {
    pub(super) fn of(outcome: NamesOutcome) -> Self {
        match outcome {
            NamesOutcome::Unchanged => Self::Unchanged,
            NamesOutcome::Resolved => Self::Resolved,
            NamesOutcome::Resolvconf => Self::Resolvconf,
            NamesOutcome::File => Self::File,
        }
    }
}

impl ProxyOutcome {
    pub(super) fn of(outcome: proxy::ProxyOutcome) -> Self {
        match outcome {
            proxy::ProxyOutcome::None => Self::Unchanged,
            proxy::ProxyOutcome::Published(path) => Self::Published(path),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use patchcord_bridge::MacAddr;

    use super::*;
    use crate::provider::settings::{Ipv4Settings, Route};

    #[test]
    fn match_domains_say_which_names_go_to_the_servers() {
        let texts = |texts: &[&str]| {
            texts
                .iter()
                .map(|&text| text.to_owned())
                .collect::<Vec<_>>()
        };
        let some = |names: &[&str]| Scope::Domains(texts(names));
        let whole: &[&str] = &["0.0.0.0/0"];
        let halves: &[&str] = &["0.0.0.0/1", "128.0.0.0/1"];
        let lan: &[&str] = &["10.0.0.0/8"];
        // Match domains, no search, routes; scope, search domains after "own" and "more".
        type Case<'a> = (
            Option<&'a [&'a str]>,
            bool,
            &'a [&'a str],
            Scope,
            &'a [&'a str],
        );
        let cases: [Case<'_>; 8] = [
            (None, false, whole, Scope::All, &[]),
            (None, false, halves, Scope::All, &[]),
            (None, false, lan, some(&[]), &[]),
            (None, false, &[], some(&[]), &[]),
            (Some(&[""]), false, &[], Scope::All, &[]),
            (
                Some(&["", "corp.example"]),
                false,
                lan,
                Scope::All,
                &["corp.example"],
            ),
            (
                Some(&["corp.example.", "more"]),
                false,
                whole,
                some(&["corp.example", "more"]),
                &["corp.example"],
            ),
            (
                Some(&["corp.example"]),
                true,
                whole,
                some(&["corp.example"]),
                &[],
            ),
        ];
        for (match_domains, no_search, routes, scope, search) in cases {
            let mut settings = settings();
            let mut ipv4 = Ipv4Settings::manual([]);
            ipv4.included_routes = routes
                .iter()
                .map(|destination| Route {
                    destination: destination.parse().unwrap(),
                    gateway: None,
                })
                .collect();
            settings.ipv4 = Some(ipv4);
            let mut dns = DnsSettings::new([IpAddr::from([10, 0, 0, 53])]);
            dns.domain_name = Some("own".to_owned());
            dns.search_domains = texts(&["more", "own."]);
            dns.match_domains = match_domains.map(texts);
            dns.match_domains_no_search = no_search;
            settings.dns = Some(dns);
            let request = names_request(&settings, RoutingPolicy::default()).unwrap();
            let expected = [&["own", "more"], search].concat();
            assert_eq!(
                (request.scope, request.search),
                (scope, texts(&expected)),
                "{match_domains:?} {routes:?}"
            );
        }
    }

    #[test]
    fn nothing_asked_for_is_nothing_offered() {
        assert_eq!(names_request(&settings(), RoutingPolicy::default()), None);
        assert_eq!(proxy_request(&settings()), None);
    }

    fn settings() -> EthernetTunnelSettings {
        let mac = MacAddr([2, 0, 0, 0, 0, 1]);
        EthernetTunnelSettings::new(Ipv4Addr::UNSPECIFIED.into(), mac, 1500, "pc0")
    }
}
