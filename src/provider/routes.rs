// SPDX-License-Identifier: MIT OR Apache-2.0
//! Computes the routes and rules that carry out settings and a routing policy.
//!
//! ```text
//! policy                 rules                    the tunnel's table
//! none                   main but default, table  included; thrown: excluded, remote address
//! enforce_routes         table                    the same, and the interface's own networks
//! include_all_networks   table                    the same, a default route if there is a router,
//!                                                 and everything else is unreachable
//! ```
//! Thrown packets take the machine's own route. Without a route to include there are no rules at all,
//! unless the policy includes everything.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::{
    configuration::RoutingPolicy,
    settings::{EthernetTunnelSettings, IpSettings, Route as IncludedRoute},
};
use crate::machine::routing::{Family, Route, RoutingState, Rule, Target};

/// The target of each destination. Of several entries for a destination, the last one wins.
type Table = BTreeMap<IpNet, Target>;

/// The state for `policy`, with the settings of a tunnel and the index of its interface once there is
/// one. `local_networks` are those of [`needs_local_networks`].
///
/// A policy that includes everything blocks the machine's traffic while there is no tunnel. Sockets
/// with the tunnel's mark pass. So do DHCP clients, whose packet sockets routing does not touch: a
/// renewal through an ordinary socket is refused, and the client goes on to a broadcast. Link-local
/// IPv6 addresses belong to the link that the sender names, so they keep their link.
pub(super) fn routing_state(
    policy: RoutingPolicy,
    tunnel: Option<(&EthernetTunnelSettings, u32)>,
    local_networks: &BTreeSet<IpNet>,
) -> RoutingState {
    let mut table = Table::new();
    if let Some((settings, interface)) = tunnel {
        table.extend(included_routes(settings, interface, policy));
    }
    let is_routed = |family: &Family| {
        policy.include_all_networks || table.keys().any(|net| Family::of(net) == *family)
    };
    let families: Vec<_> = Family::ALL.into_iter().filter(is_routed).collect();
    if goes_first(policy) {
        table.insert(LINK_LOCAL.into(), Target::Throw);
    }
    if needs_local_networks(policy) {
        table.extend(throw(local_networks.iter().copied()));
    }
    if let Some((settings, interface)) = tunnel {
        if goes_first(policy) {
            table.extend(own_networks(settings, interface));
        }
        table.extend(throw(exceptions(settings)));
    }
    table.retain(|net, _| families.contains(&Family::of(net)));
    RoutingState {
        routes: routes(table).chain(last_resorts(policy)).collect(),
        rules: families
            .into_iter()
            .flat_map(|family| rules(policy, family))
            .collect(),
    }
}

/// Whether the policy depends on the networks that this machine is in: all of them but the tunnel's own
/// and the link-local ones.
pub(super) const fn needs_local_networks(policy: RoutingPolicy) -> bool {
    goes_first(policy) && policy.exclude_local_networks
}

/// Whether the tunnel's table takes precedence over that of the machine.
const fn goes_first(policy: RoutingPolicy) -> bool {
    policy.enforce_routes || policy.include_all_networks
}

const LINK_LOCAL: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10);

fn throw(networks: impl Iterator<Item = IpNet>) -> impl Iterator<Item = (IpNet, Target)> {
    networks.map(|net| (net, Target::Throw))
}

fn included_routes(
    settings: &EthernetTunnelSettings,
    interface: u32,
    policy: RoutingPolicy,
) -> Table {
    let mut table = Table::new();
    if let Some(ipv4) = &settings.ipv4 {
        let default = default_route(ipv4, policy, Ipv4Net::default());
        table.extend(included_routes_of(ipv4, default, interface));
    }
    if let Some(ipv6) = &settings.ipv6 {
        let default = default_route(ipv6, policy, Ipv6Net::default());
        table.extend(included_routes_of(ipv6, default, interface));
    }
    table
}

/// The route for everything that the policy includes, if the far LAN has a router for it.
fn default_route<N, A: Copy>(
    settings: &IpSettings<N, A>,
    policy: RoutingPolicy,
    everywhere: N,
) -> Option<IncludedRoute<N, A>> {
    let gateway = settings.router.filter(|_| policy.include_all_networks);
    gateway.map(|_| IncludedRoute {
        destination: everywhere,
        gateway,
    })
}

/// A route without a gateway uses the router of the settings, unless its destination is on the link.
fn included_routes_of<N, A>(
    settings: &IpSettings<N, A>,
    default: Option<IncludedRoute<N, A>>,
    interface: u32,
) -> impl Iterator<Item = (IpNet, Target)>
where
    N: Copy + Into<IpNet>,
    A: Copy + Into<IpAddr>,
{
    let own = |net: &IpNet| {
        settings
            .addresses()
            .iter()
            .any(|&own| own.into().contains(net))
    };
    // Default routes of the settings come later, and win.
    let included = default
        .into_iter()
        .chain(settings.included_routes.iter().copied());
    included.map(move |route| {
        let destination = route.destination.into().trunc();
        let router = settings.router.filter(|_| !own(&destination));
        let gateway = route.gateway.or(router).map(Into::into);
        let target = Target::Interface {
            index: interface,
            gateway,
            onlink: gateway.is_some_and(|gateway| !is_link_local(gateway) && !own(&gateway.into())),
        };
        (destination, target)
    })
}

/// These destinations are on every link.
fn is_link_local(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(address) if address.is_unicast_link_local())
}

/// Otherwise neighbours would be reached through the router, or not at all.
fn own_networks(settings: &EthernetTunnelSettings, interface: u32) -> Table {
    let target = Target::Interface {
        index: interface,
        gateway: None,
        onlink: false,
    };
    settings
        .addresses()
        .map(|address| (address.trunc(), target))
        .collect()
}

fn exceptions(settings: &EthernetTunnelSettings) -> impl Iterator<Item = IpNet> {
    let v4 = settings.ipv4.iter().flat_map(|ipv4| &ipv4.excluded_routes);
    let v6 = settings.ipv6.iter().flat_map(|ipv6| &ipv6.excluded_routes);
    let excluded = v4.copied().map(IpNet::V4).chain(v6.copied().map(IpNet::V6));
    let remote = settings.tunnel_remote_address;
    let is_real = !remote.is_unspecified() && !remote.is_loopback();
    excluded
        .map(|net| net.trunc())
        .chain(is_real.then(|| remote.into()))
}

fn routes(table: Table) -> impl Iterator<Item = Route> {
    table.into_iter().map(|(destination, target)| Route {
        destination,
        metric: Route::METRIC,
        target,
    })
}

/// With every network included, packets without a route of the tunnel are refused.
fn last_resorts(policy: RoutingPolicy) -> impl Iterator<Item = Route> {
    let defaults = [
        Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 0).into(),
        Ipv6Net::new_assert(Ipv6Addr::UNSPECIFIED, 0).into(),
    ];
    let defaults = defaults
        .into_iter()
        .filter(move |_| policy.include_all_networks);
    defaults.map(|destination| Route {
        destination,
        metric: Route::WORST_METRIC,
        target: Target::Unreachable,
    })
}

fn rules(policy: RoutingPolicy, family: Family) -> impl Iterator<Item = Rule> {
    let main = (!goes_first(policy)).then_some(Rule::MainButDefault(family));
    main.into_iter().chain([Rule::Unmarked(family)])
}

#[cfg(test)]
mod tests;
