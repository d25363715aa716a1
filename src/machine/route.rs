// SPDX-License-Identifier: MIT OR Apache-2.0
//! The route that datagrams take to an address, according to the kernel.
//!
//! Most changes of a machine's addresses and routes concern no tunnel. A caller finds out whether
//! one does by comparing the routes before and after. The path MTU is not part of a route, as ICMP
//! messages of any host change it. The MTU of the link is this machine's own, and looked up
//! separately. Belongs to the network namespace of the thread that calls [`RouteLookup::connect`].

use std::{io, net::SocketAddr};

use futures_util::TryStreamExt;
use rtnetlink::packet_route::{
    link::LinkAttribute,
    route::{RouteAddress, RouteAttribute, RouteMessage},
};

use super::{netlink::Netlink, path};
use crate::io::mark::Mark;

/// One route to an address. Equal routes have the same link, next hop and source address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Route {
    interface: Option<u32>,
    gateway: Option<RouteAddress>,
    source: Option<RouteAddress>,
}

/// Asks the kernel for routes.
pub(crate) struct RouteLookup {
    netlink: Netlink,
    mark: Mark,
}

impl RouteLookup {
    /// Of sockets with `mark`. Must be called on a tokio runtime.
    ///
    /// # Errors
    /// When no netlink socket can be opened.
    pub(crate) fn connect(mark: Mark) -> io::Result<Self> {
        let netlink = Netlink::connect()?;
        Ok(Self { netlink, mark })
    }

    /// The route to `address`, `None` if there is none.
    pub(crate) async fn to(&self, address: SocketAddr) -> Option<Route> {
        let route = self.ask(address).await;
        if route.is_none() && !self.netlink.is_well() {
            return self.ask(address).await;
        }
        route
    }

    async fn ask(&self, address: SocketAddr) -> Option<Route> {
        let handle = self.netlink.handle();
        let routes = handle.route().get(self.question(address)).execute();
        let route = std::pin::pin!(routes).try_next().await.ok().flatten()?;
        Some(Route::of(&route))
    }

    /// The MTU of the link of `route`.
    pub(crate) async fn link_mtu(&self, route: &Route) -> Option<u32> {
        let handle = self.netlink.handle();
        let links = handle.link().get().match_index(route.interface?);
        let link = std::pin::pin!(links.execute()).try_next().await.ok()??;
        let is_mtu = |attribute: &LinkAttribute| match attribute {
            LinkAttribute::Mtu(mtu) => Some(*mtu),
            _ => None,
        };
        link.attributes.iter().find_map(is_mtu)
    }

    fn question(&self, address: SocketAddr) -> RouteMessage {
        let mut question = path::question(address.ip().to_canonical(), self.mark);
        if let SocketAddr::V6(address) = address
            && address.scope_id() != 0
        {
            let link = RouteAttribute::Oif(address.scope_id());
            question.attributes.push(link);
        }
        question
    }
}

impl Route {
    /// The index of the link.
    pub(crate) fn interface(&self) -> Option<u32> {
        self.interface
    }

    fn of(route: &RouteMessage) -> Self {
        let mut found = Self::default();
        for attribute in &route.attributes {
            match attribute {
                RouteAttribute::Oif(index) => found.interface = Some(*index),
                RouteAttribute::Gateway(address) => found.gateway = Some(address.clone()),
                RouteAttribute::PrefSource(address) => found.source = Some(address.clone()),
                _ => {}
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{block_on, in_namespace, ip, wait_for_addresses};

    async fn to(routes: &RouteLookup, address: &str) -> Option<Route> {
        routes.to(address.parse().unwrap()).await
    }

    #[test]
    fn only_changes_of_the_route_to_an_address_change_its_route() {
        in_namespace(|| {
            for (name, net) in [("east", 1), ("west", 2)] {
                ip(&format!("link add {name} type veth peer name {name}-far"));
                ip(&format!("link set {name}-far up"));
                ip(&format!("address add 192.0.{net}.2/24 dev {name}"));
                ip(&format!("address add fd00:{net}::2/64 dev {name} nodad"));
                ip(&format!("link set {name} up"));
            }
            wait_for_addresses();
            ip("route add default via 192.0.1.1");
            ip("-6 route add default via fd00:1::1");
            block_on(async {
                let routes = RouteLookup::connect(Mark::BYPASS).unwrap();
                for (family, far, mapped, other) in [
                    (
                        "",
                        "198.51.100.1:1",
                        "[::ffff:198.51.100.1]:1",
                        "203.0.113.0/24",
                    ),
                    (
                        "-6",
                        "[2001:db8::1]:1",
                        "[2001:db8::1]:2",
                        "2001:db8:1::/48",
                    ),
                ] {
                    let first = to(&routes, far).await;
                    assert!(first.is_some());
                    assert_eq!(to(&routes, mapped).await, first);
                    let gateway = if family.is_empty() { "192.0" } else { "fd00" };
                    let via = |net| match family {
                        "" => format!("via {gateway}.{net}.1"),
                        _ => format!("via {gateway}:{net}::1"),
                    };
                    ip(&format!("{family} route add {other} {}", via(2)));
                    assert_eq!(to(&routes, far).await, first, "the route of another");
                    ip(&format!("{family} route replace default {}", via(2)));
                    let second = to(&routes, far).await;
                    assert!(second.is_some() && second != first);
                    ip(&format!("{family} route del default"));
                    assert_eq!(to(&routes, far).await, None);
                }
            });
        });
    }
}
