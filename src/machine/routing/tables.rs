// SPDX-License-Identifier: MIT OR Apache-2.0
//! A slot's routes and rules in the kernel, through netlink.
//!
//! A route or rule with [`OURS`] as its protocol, and the numbers of the slot, was made here.
//! Everything else is neither listed nor changed.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::sync::Arc;

use futures_util::TryStreamExt;
use ipnet::IpNet;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope,
    RouteType,
};
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage};
use rtnetlink::{IpVersion, RouteMessageBuilder};

use super::error::RoutingError;
use super::slot::Slot;
use super::state::{Family, Route, RoutingState, Rule, Target};
use crate::io::mark::Mark;
use crate::io::sys;
use crate::machine::link::io_error;
use crate::machine::netlink::Netlink;

/// The protocol of our routes and rules: `proto 112` in the output of `ip`, the letter p.
const OURS: RouteProtocol = RouteProtocol::Other(112);

/// A connection to the kernel's routing tables and rules, in the network namespace of the thread
/// that made it.
#[derive(Clone, Debug)]
pub(super) struct Tables {
    netlink: Arc<Netlink>,
    families: &'static [Family],
}

impl Tables {
    /// Connects; must be called on a tokio runtime.
    pub(super) fn connect() -> Result<Self, RoutingError> {
        let netlink = Netlink::connect_with_strict_check().map_err(RoutingError::Connect)?;
        Ok(Self {
            netlink: netlink.into(),
            families: families(),
        })
    }

    /// The part of a state that this kernel supports.
    pub(super) fn possible(&self, state: &RoutingState) -> RoutingState {
        let parts = self.families.iter().map(|&family| state.of(family));
        parts.fold(RoutingState::default(), |all, part| all.union(&part))
    }

    /// The routes and rules of ours that exist.
    pub(super) async fn list(&self, slot: Slot) -> Result<RoutingState, RoutingError> {
        let rules = self.rules().await?;
        let routes = self.routes(slot).await?;
        Ok(RoutingState {
            rules: rules
                .iter()
                .filter_map(|message| rule_of(slot, message))
                .collect(),
            routes: routes
                .iter()
                .filter_map(|message| route_of(slot, message))
                .collect(),
        })
    }

    /// Whether no number of the slot is in use, except by `ours`.
    pub(super) async fn is_free(
        &self,
        slot: Slot,
        rules: &[RuleMessage],
        ours: &RoutingState,
    ) -> Result<bool, RoutingError> {
        let rules = rules.iter().filter(|rule| slot.is_used_by(rule)).count();
        let routes = self.routes(slot).await?.len();
        Ok((rules, routes) == (ours.rules.len(), ours.routes.len()))
    }

    /// The rules of all programs.
    pub(super) async fn rules(&self) -> Result<Vec<RuleMessage>, RoutingError> {
        let mut all = Vec::new();
        for &family in self.families {
            let version = match family {
                Family::V4 => IpVersion::V4,
                Family::V6 => IpVersion::V6,
            };
            let rules: Result<Vec<_>, _> = self
                .netlink
                .handle()
                .rule()
                .get(version)
                .execute()
                .try_collect()
                .await;
            let rules = self.netlink.whole(rules);
            all.extend(rules.map_err(refused(|| "list rules".to_owned()))?);
        }
        Ok(all)
    }

    /// The routes of all programs in the slot's table.
    async fn routes(&self, slot: Slot) -> Result<Vec<RouteMessage>, RoutingError> {
        let mut all = Vec::new();
        for &family in self.families {
            let mut request = RouteMessage::default();
            request.header.address_family = address_family(family);
            request.attributes = vec![RouteAttribute::Table(slot.table())];
            let routes: Result<Vec<_>, _> = self
                .netlink
                .handle()
                .route()
                .get(request)
                .execute()
                .try_collect()
                .await;
            match self.netlink.whole(routes).map_err(io_error) {
                Ok(routes) => all.extend(routes),
                // The table has never been used.
                Err(error) if error.raw_os_error() == Some(sys::ENOENT) => {}
                Err(source) => {
                    let action = format!("list the routes of table {}", slot.table());
                    return Err(RoutingError::Refused { action, source });
                }
            }
        }
        Ok(all)
    }

    /// Goes from one state to another. Adds first, so that no packet takes a wrong route in
    /// between: routes before the rules that lead to them, and in reverse order when it deletes.
    pub(super) async fn change(
        &self,
        slot: Slot,
        from: &RoutingState,
        to: &RoutingState,
    ) -> Result<(), RoutingError> {
        let new = to.without(from);
        for route in new.direct_routes_first() {
            self.add_route(slot, route, from.has_place_of(route))
                .await?;
        }
        for rule in &new.rules {
            self.add_rule(slot, rule).await?;
        }
        for rule in from.rules.difference(&to.rules) {
            self.delete_rule(slot, rule).await?;
        }
        for route in from.routes.difference(&to.routes) {
            if !to.has_place_of(route) {
                self.delete_route(slot, route).await?;
            }
        }
        Ok(())
    }

    /// Adds again what was lost, in the same order. A refusal of the kernel does not keep the rest
    /// from coming back; the first one is the error.
    pub(super) async fn add_again(
        &self,
        slot: Slot,
        present: &RoutingState,
        lost: &RoutingState,
    ) -> Result<(), RoutingError> {
        let mut outcome = Ok(());
        for route in lost.direct_routes_first() {
            let replace = present.has_place_of(route);
            outcome = outcome.and(self.add_route(slot, route, replace).await);
        }
        for rule in &lost.rules {
            outcome = outcome.and(self.add_rule(slot, rule).await);
        }
        outcome
    }

    async fn add_route(
        &self,
        slot: Slot,
        route: &Route,
        replace: bool,
    ) -> Result<(), RoutingError> {
        let request = self
            .netlink
            .handle()
            .route()
            .add(route_message(slot, route));
        let request = if replace { request.replace() } else { request };
        request
            .execute()
            .await
            .map_err(refused(|| format!("add {route}")))
    }

    async fn delete_route(&self, slot: Slot, route: &Route) -> Result<(), RoutingError> {
        let request = self
            .netlink
            .handle()
            .route()
            .del(route_message(slot, route));
        gone_or(request.execute().await, || format!("delete {route}"))
    }

    async fn add_rule(&self, slot: Slot, rule: &Rule) -> Result<(), RoutingError> {
        let mut request = self.netlink.handle().rule().add();
        *request.message_mut() = rule_message(slot, *rule);
        request
            .execute()
            .await
            .map_err(refused(|| format!("add {rule}")))
    }

    async fn delete_rule(&self, slot: Slot, rule: &Rule) -> Result<(), RoutingError> {
        let request = self.netlink.handle().rule().del(rule_message(slot, *rule));
        gone_or(request.execute().await, || format!("delete {rule}"))
    }
}

/// A kernel that was started without IPv6 has no IPv6 packets to route.
fn families() -> &'static [Family] {
    if Path::new("/proc/thread-self/net/if_inet6").exists() {
        &Family::ALL
    } else {
        &[Family::V4]
    }
}

const fn address_family(family: Family) -> AddressFamily {
    match family {
        Family::V4 => AddressFamily::Inet,
        Family::V6 => AddressFamily::Inet6,
    }
}

fn rule_message(slot: Slot, rule: Rule) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = address_family(rule.family());
    message.header.action = RuleAction::ToTable;
    message.attributes = vec![
        RuleAttribute::Priority(slot.priority(rule)),
        RuleAttribute::Protocol(OURS),
    ];
    message.attributes.extend(match rule {
        Rule::MainButDefault(_) => vec![
            RuleAttribute::Table(u32::from(RouteHeader::RT_TABLE_MAIN)),
            RuleAttribute::SuppressPrefixLen(0),
        ],
        Rule::Unmarked(_) => {
            message.header.flags = RuleFlags::Invert;
            vec![
                RuleAttribute::Table(slot.table()),
                RuleAttribute::FwMark(Mark::BYPASS.value),
                RuleAttribute::FwMask(Mark::BYPASS.mask),
            ]
        }
    });
    message
}

/// The rule that a message of the kernel describes, if it is ours.
fn rule_of(slot: Slot, message: &RuleMessage) -> Option<Rule> {
    let family = family_of(message.header.family)?;
    [Rule::MainButDefault(family), Rule::Unmarked(family)]
        .into_iter()
        .find(|&rule| {
            let ours = rule_message(slot, rule);
            message.header.action == ours.header.action
                && message.header.flags == ours.header.flags
                && ours
                    .attributes
                    .iter()
                    .all(|attribute| message.attributes.contains(attribute))
        })
}

fn route_message(slot: Slot, route: &Route) -> RouteMessage {
    let mut message = match route.destination {
        IpNet::V4(net) => RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(net.addr(), net.prefix_len())
            .build(),
        IpNet::V6(net) => RouteMessageBuilder::<Ipv6Addr>::new()
            .destination_prefix(net.addr(), net.prefix_len())
            .build(),
    };
    let header = &mut message.header;
    header.table = RouteHeader::RT_TABLE_UNSPEC;
    header.protocol = OURS;
    message.attributes.push(RouteAttribute::Table(slot.table()));
    message
        .attributes
        .push(RouteAttribute::Priority(route.metric));
    match route.target {
        Target::Interface {
            index,
            gateway,
            onlink,
        } => {
            message.attributes.push(RouteAttribute::Oif(index));
            match gateway {
                Some(gateway) => message
                    .attributes
                    .push(RouteAttribute::Gateway(gateway.into())),
                // Only IPv4 has, and requires, a scope.
                None if route.family() == Family::V4 => header.scope = RouteScope::Link,
                None => {}
            }
            if onlink {
                header.flags = RouteFlags::Onlink;
            }
        }
        Target::Throw => header.kind = RouteType::Throw,
        Target::Unreachable => header.kind = RouteType::Unreachable,
    }
    message
}

/// The route that a message of the kernel describes, if it is ours.
fn route_of(slot: Slot, message: &RouteMessage) -> Option<Route> {
    let header = &message.header;
    if header.protocol != OURS {
        return None;
    }
    let (mut table, mut metric, mut interface) = (u32::from(header.table), 0, None);
    let (mut gateway, mut destination) = (
        None,
        match family_of(header.address_family)? {
            Family::V4 => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            Family::V6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        },
    );
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Table(number) => table = *number,
            RouteAttribute::Priority(priority) => metric = *priority,
            RouteAttribute::Oif(index) => interface = Some(*index),
            RouteAttribute::Gateway(address) => gateway = Some(ip_of(address)?),
            RouteAttribute::Destination(address) => destination = ip_of(address)?,
            _ => {}
        }
    }
    let target = match header.kind {
        RouteType::Unicast => Target::Interface {
            index: interface?,
            gateway,
            onlink: header.flags.contains(RouteFlags::Onlink),
        },
        RouteType::Throw => Target::Throw,
        RouteType::Unreachable => Target::Unreachable,
        _ => return None,
    };
    let destination = IpNet::new(destination, header.destination_prefix_length).ok()?;
    (table == slot.table()).then_some(Route {
        destination,
        metric,
        target,
    })
}

fn family_of(family: AddressFamily) -> Option<Family> {
    Family::ALL
        .into_iter()
        .find(|&ours| address_family(ours) == family)
}

fn ip_of(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some(IpAddr::V4(*address)),
        RouteAddress::Inet6(address) => Some(IpAddr::V6(*address)),
        _ => None,
    }
}

fn refused(action: impl FnOnce() -> String) -> impl FnOnce(rtnetlink::Error) -> RoutingError {
    move |error| RoutingError::Refused {
        action: action(),
        source: io_error(error),
    }
}

/// Another program may have deleted it, or the interface under it, since it was listed.
fn gone_or(
    outcome: Result<(), rtnetlink::Error>,
    action: impl FnOnce() -> String,
) -> Result<(), RoutingError> {
    match outcome.map_err(io_error) {
        Err(error)
            if matches!(
                error.raw_os_error(),
                Some(sys::ENOENT | sys::ENODEV | sys::ESRCH)
            ) =>
        {
            Ok(())
        }
        outcome => outcome.map_err(|source: io::Error| RoutingError::Refused {
            action: action(),
            source,
        }),
    }
}
