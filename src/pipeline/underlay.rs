// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which peers a change of this machine's links, addresses and routes concerns: those for whose
//! endpoint the route has changed, or the MTU of the link.
//!
//! A device that can make an address or a route of this machine change (a router in its LAN, a
//! routing daemon, stations behind the tunnel) causes one lookup in a second, and nothing else.

use std::{collections::HashMap, net::SocketAddr, time::Duration};

use patchcord_bridge::PortId;
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time::{Instant, sleep},
};
use tracing::{Instrument, warn};

use super::{supervision::supervise, view::EngineEvent};
use crate::{
    io::mark::Mark,
    machine::route::{Route, RouteLookup},
    retry::Retry,
    tripwire,
};

/// From one lookup to the next. Changes meanwhile wait for it.
const INTERVAL: Duration = Duration::from_secs(1);
/// Between attempts to connect to the kernel.
const LAST_PAUSE: Duration = Duration::from_secs(60);

type Endpoints = Vec<(PortId, SocketAddr)>;

/// How the route to a peer has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// It has another link, next hop or source address.
    Route,
    /// Its link takes packets of another size.
    LinkMtu,
}

/// The input of a lookup.
#[derive(Default)]
struct Question {
    endpoints: Endpoints,
    /// Changes of links, addresses and routes so far.
    changes: u64,
}

/// Looks up the routes to the peers' endpoints, until it is dropped.
pub(super) struct Underlay {
    question: watch::Sender<Question>,
    concerned: mpsc::Receiver<Vec<(PortId, Change)>>,
    _task: JoinSet<()>,
}

impl Underlay {
    /// `events` reports its unexpected end. Must be called on a tokio runtime.
    pub(super) fn start(events: mpsc::Sender<EngineEvent>) -> Self {
        let (question, asked) = watch::channel(Question::default());
        let (concerned_in, concerned) = mpsc::channel(1);
        let mut task = JoinSet::new();
        let follow = supervise("underlay", follow(asked, concerned_in), events);
        task.spawn(follow.in_current_span());
        Self {
            question,
            concerned,
            _task: task,
        }
    }

    /// Sets the present endpoints of the peers.
    pub(super) fn set_endpoints(&self, endpoints: Endpoints) {
        self.question.send_if_modified(|question| {
            let is_news = question.endpoints != endpoints;
            question.endpoints = endpoints;
            is_news
        });
    }

    /// A link, an address or a route of this machine changed: look up all routes as soon as it is
    /// time.
    pub(super) fn handle_change(&self) {
        self.question.send_modify(|question| question.changes += 1);
    }

    /// The peers to which the route has changed since the last lookup, one lookup at a time.
    pub(super) async fn concerned(&mut self) -> Vec<(PortId, Change)> {
        match self.concerned.recv().await {
            Some(ports) => ports,
            None => std::future::pending().await,
        }
    }
}

async fn follow(
    mut asked: watch::Receiver<Question>,
    concerned: mpsc::Sender<Vec<(PortId, Change)>>,
) {
    let routes = connect().await;
    let mut known = Known::default();
    while asked.changed().await.is_ok() {
        tripwire::task("underlay");
        let (endpoints, changes) = {
            let question = asked.borrow_and_update();
            (question.endpoints.clone(), question.changes)
        };
        let changed = known.update(&routes, endpoints, changes).await;
        if !changed.is_empty() && concerned.send(changed).await.is_err() {
            return;
        }
        sleep(INTERVAL).await;
    }
}

async fn connect() -> RouteLookup {
    let mut retry = Retry::new(INTERVAL, LAST_PAUSE);
    loop {
        match RouteLookup::connect(Mark::BYPASS) {
            Ok(routes) => return routes,
            Err(error) if retry.may_log(Instant::now().into()) => {
                warn!(%error, "cannot look up routes: peers do not learn at once of changes of this machine's addresses; retrying");
            }
            Err(_) => {}
        }
        sleep(retry.next_pause()).await;
    }
}

/// The routes at the last lookup.
#[derive(Default)]
struct Known {
    changes: u64,
    routes: HashMap<PortId, (SocketAddr, Seen)>,
}

/// The result of a lookup.
#[derive(Clone, PartialEq, Eq)]
struct Seen {
    route: Option<Route>,
    link_mtu: Option<u32>,
}

impl Known {
    /// Looks up again the routes that may have changed. Returns the peers whose route has. A peer
    /// that has moved was heard from its new address, by whatever route.
    async fn update(
        &mut self,
        routes: &RouteLookup,
        endpoints: Endpoints,
        changes: u64,
    ) -> Vec<(PortId, Change)> {
        let is_stale = std::mem::replace(&mut self.changes, changes) != changes;
        let mut former = std::mem::take(&mut self.routes);
        let mut lookup = Lookup::new(routes);
        let mut concerned = Vec::new();
        for (port, endpoint) in endpoints {
            let former = former.remove(&port).filter(|(at, _)| *at == endpoint);
            let seen = match &former {
                Some((_, seen)) if !is_stale => seen.clone(),
                _ => lookup.at(endpoint).await,
            };
            let change = former.and_then(|(_, former)| seen.change_since(&former));
            concerned.extend(change.map(|change| (port, change)));
            self.routes.insert(port, (endpoint, seen));
        }
        concerned
    }
}

/// A lookup of many routes, most of them by the same link.
struct Lookup<'a> {
    routes: &'a RouteLookup,
    last: Option<Seen>,
}

impl<'a> Lookup<'a> {
    fn new(routes: &'a RouteLookup) -> Self {
        Self { routes, last: None }
    }

    async fn at(&mut self, endpoint: SocketAddr) -> Seen {
        let route = self.routes.to(endpoint).await;
        let link = |route: &Option<Route>| route.as_ref().and_then(Route::interface);
        let last = self
            .last
            .as_ref()
            .filter(|last| link(&last.route) == link(&route));
        let link_mtu = match (last, &route) {
            (Some(last), _) => last.link_mtu,
            (None, Some(route)) => self.routes.link_mtu(route).await,
            (None, None) => None,
        };
        self.last.insert(Seen { route, link_mtu }).clone()
    }
}

impl Seen {
    fn change_since(&self, former: &Self) -> Option<Change> {
        if self.route != former.route {
            return Some(Change::Route);
        }
        (self.link_mtu != former.link_mtu).then_some(Change::LinkMtu)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{block_on, in_namespace, ip};

    #[test]
    fn a_change_concerns_the_peers_whose_route_it_changes() {
        in_namespace(|| {
            for (name, net) in [("east", 1), ("west", 2)] {
                ip(&format!("link add {name} type veth peer name {name}-far"));
                ip(&format!("link set {name}-far up"));
                ip(&format!("address add 192.0.{net}.2/24 dev {name}"));
                ip(&format!("link set {name} up"));
            }
            ip("route add default via 192.0.1.1");
            block_on(async {
                let (near, far) = (PortId(1), PortId(2));
                let endpoints = vec![
                    (near, "192.0.1.9:1".parse().unwrap()),
                    (far, "198.51.100.1:1".parse().unwrap()),
                ];
                let routes = RouteLookup::connect(Mark::BYPASS).unwrap();
                let mut known = Known::default();
                let mut look =
                    async |changes| known.update(&routes, endpoints.clone(), changes).await;
                assert_eq!(look(0).await, [], "the first look");
                ip("route add 203.0.113.0/24 via 192.0.2.1");
                ip("address add 192.0.3.1/24 dev west");
                assert_eq!(look(1).await, [], "routes of others");
                ip("route replace default via 192.0.2.1");
                assert_eq!(look(1).await, [], "no change was announced");
                assert_eq!(look(2).await, [(far, Change::Route)]);
                assert_eq!(look(3).await, [], "told once");
                ip("link set west mtu 1400");
                assert_eq!(look(4).await, [(far, Change::LinkMtu)]);
                ip("link set east down");
                assert_eq!(look(5).await, [(near, Change::Route)]);
            });
        });
    }
}
