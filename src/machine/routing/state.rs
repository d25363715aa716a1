// SPDX-License-Identifier: MIT OR Apache-2.0
//! The routing that a tunnel wants, as plain data: without table, priority or mark, which `slot`
//! assigns.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// All routes in the tunnel's table, and all rules that lead there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RoutingState {
    /// The routes of the tunnel's table. A destination occurs once with each metric.
    pub routes: BTreeSet<Route>,
    /// The rules; without any the table is not used.
    pub rules: BTreeSet<Rule>,
}

impl RoutingState {
    /// Nothing to route.
    pub(crate) fn is_empty(&self) -> bool {
        self.routes.is_empty() && self.rules.is_empty()
    }

    /// The routes and rules of either.
    pub(super) fn union(&self, other: &Self) -> Self {
        Self {
            routes: &self.routes | &other.routes,
            rules: &self.rules | &other.rules,
        }
    }

    /// The routes and rules of this one that `other` lacks.
    pub(super) fn without(&self, other: &Self) -> Self {
        Self {
            routes: &self.routes - &other.routes,
            rules: &self.rules - &other.rules,
        }
    }

    /// The part without routes by an interface.
    pub(super) fn without_interfaces(&self) -> Self {
        let is_other = |route: &&Route| !matches!(route.target, Target::Interface { .. });
        Self {
            routes: self.routes.iter().filter(is_other).copied().collect(),
            rules: self.rules.clone(),
        }
    }

    /// The routes, those by a gateway last: the kernel requires a route to the gateway on the link,
    /// and looks for it in this table, too.
    pub(super) fn direct_routes_first(&self) -> impl Iterator<Item = &Route> {
        let direct = self.routes.iter().filter(|route| route.is_direct());
        let by_gateway = self.routes.iter().filter(|route| !route.is_direct());
        direct.chain(by_gateway)
    }

    /// Whether the kernel takes the route for another version of one in here.
    pub(super) fn has_place_of(&self, route: &Route) -> bool {
        self.routes.iter().any(|other| other.key() == route.key())
    }

    /// The part of one family.
    pub(super) fn of(&self, family: Family) -> Self {
        let routes = self.routes.iter();
        let rules = self.rules.iter();
        Self {
            routes: routes
                .filter(|route| route.family() == family)
                .copied()
                .collect(),
            rules: rules
                .filter(|rule| rule.family() == family)
                .copied()
                .collect(),
        }
    }
}

/// IPv4 and IPv6 are routed separately.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both.
    pub(crate) const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// The family of a network.
    pub(crate) fn of(network: &IpNet) -> Self {
        match network {
            IpNet::V4(_) => Self::V4,
            IpNet::V6(_) => Self::V6,
        }
    }
}

/// A route of the tunnel's table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Route {
    /// The destination; the kernel takes no host bits.
    pub destination: IpNet,
    /// Of two routes to the same destination, the one with the lower metric wins.
    pub metric: u32,
    /// What the kernel does with matching packets.
    pub target: Target,
}

impl Route {
    /// The metric of a route that has no competitor.
    pub(crate) const METRIC: u32 = 1024;
    /// The metric of a route that loses against every other one.
    pub(crate) const WORST_METRIC: u32 = u32::MAX;

    pub(super) fn family(&self) -> Family {
        Family::of(&self.destination)
    }

    fn is_direct(&self) -> bool {
        !matches!(
            self.target,
            Target::Interface {
                gateway: Some(_),
                ..
            }
        )
    }

    /// The key by which the kernel distinguishes routes of one table.
    fn key(&self) -> (IpNet, u32) {
        (self.destination, self.metric)
    }
}

/// What the kernel does with packets that match a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) enum Target {
    /// Sends them by an interface.
    Interface {
        /// The index of the interface.
        index: u32,
        /// The next hop; None where the destination itself is on the link.
        gateway: Option<IpAddr>,
        /// The next hop is on the link although no address of the interface implies it.
        onlink: bool,
    },
    /// Leaves the tunnel's table: the rules after its own decide.
    Throw,
    /// Refuses them.
    Unreachable,
}

/// A rule, before those of the machine itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) enum Rule {
    /// The routes of the machine go first, except for its default routes: `lookup main
    /// suppress_prefixlength 0`.
    MainButDefault(Family),
    /// Packets without the tunnel's mark take the tunnel's table: `not fwmark M lookup T`.
    Unmarked(Family),
}

impl Rule {
    pub(super) fn family(&self) -> Family {
        match self {
            Self::MainButDefault(family) | Self::Unmarked(family) => *family,
        }
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.target {
            Target::Interface { index, gateway, .. } => {
                write!(f, "route {} on link {index}", self.destination)?;
                gateway.map_or(Ok(()), |gateway| write!(f, " by {gateway}"))
            }
            Target::Throw => write!(f, "route throw {}", self.destination),
            Target::Unreachable => write!(f, "route unreachable {}", self.destination),
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let family = match self.family() {
            Family::V4 => "IPv4",
            Family::V6 => "IPv6",
        };
        match self {
            Self::MainButDefault(_) => write!(f, "{family} rule for the main table"),
            Self::Unmarked(_) => write!(f, "{family} rule for what has no mark"),
        }
    }
}
