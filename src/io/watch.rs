// SPDX-License-Identifier: MIT OR Apache-2.0
//! What others change: links, addresses and routes, as a stream of events.
//!
//! For roaming (another path may be better now), for the sizes that the underlay's links take, and for
//! noticing that someone deleted our device.
//! Changes nothing itself. The control thread listens.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures_util::{FutureExt, StreamExt};
use rtnetlink::MulticastGroup;
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::link::{LinkAttribute, LinkMessage};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use tokio::sync::mpsc;

use super::link::{LinkError, LinkInfo, Links};

impl Links {
    /// Watches links, addresses and routes in the namespace of this thread. The background task
    /// ends when the receiver is dropped; the stream ends when the kernel closes the socket.
    ///
    /// # Errors
    /// When no netlink socket can be had.
    pub fn watch() -> Result<mpsc::Receiver<LinkEvent>, LinkError> {
        use MulticastGroup::{Ipv4Ifaddr, Ipv4Route, Ipv6Ifaddr, Ipv6Route, Link};
        let groups = [Link, Ipv4Ifaddr, Ipv6Ifaddr, Ipv4Route, Ipv6Route];
        let (connection, handle, messages) =
            rtnetlink::new_multicast_connection(&groups).map_err(LinkError::Connect)?;
        let (sender, receiver) = mpsc::channel(64);
        tokio::spawn(async move {
            let connection = tokio::spawn(connection);
            tokio::select! {
                () = forward(messages.map(|(message, _)| message), &sender) => {}
                () = sender.closed() => {}
            }
            connection.abort();
            drop(handle);
        });
        Ok(receiver)
    }
}

/// What someone, perhaps this process, changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkEvent {
    /// Addresses or routes: another path may be better now, or the only one left. Also sent when
    /// there were more changes than the kernel could queue.
    AddressesChanged,
    /// A link appeared, changed or disappeared.
    LinkChanged {
        /// Its index.
        index: u32,
        /// Its name.
        name: String,
        /// The largest packet that it takes.
        mtu: u32,
        /// Whether it is administratively up.
        up: bool,
        /// Whether it is up and was down, however short, since it was last reported or since the
        /// watch began. Static IPv6 addresses and routes are lost then.
        came_up: bool,
        /// Whether it is gone.
        deleted: bool,
        /// The number of the network namespace that it went to, if it was not deleted.
        moved_to: Option<i32>,
    },
}

/// Changes come in bursts (an interface with addresses and routes); one burst is one set of events.
const SETTLE: Duration = Duration::from_millis(30);

async fn forward(
    messages: impl futures_util::Stream<Item = NetlinkMessage<RouteNetlinkMessage>>,
    events: &mpsc::Sender<LinkEvent>,
) {
    let mut messages = std::pin::pin!(messages);
    let mut down = BTreeSet::new();
    while let Some(first) = messages.next().await {
        let mut burst = Burst::new(&mut down);
        burst.add(first);
        tokio::time::sleep(SETTLE).await;
        while let Some(Some(message)) = messages.next().now_or_never() {
            burst.add(message);
        }
        for event in burst.into_events() {
            if events.send(event).await.is_err() {
                return;
            }
        }
    }
}

/// The changes since the last events were sent: of each link only the latest state.
struct Burst<'a> {
    addresses: bool,
    links: BTreeMap<u32, LinkEvent>,
    /// Links that were last seen down.
    down: &'a mut BTreeSet<u32>,
}

impl<'a> Burst<'a> {
    fn new(down: &'a mut BTreeSet<u32>) -> Self {
        Self {
            addresses: false,
            links: BTreeMap::new(),
            down,
        }
    }

    fn add(&mut self, message: NetlinkMessage<RouteNetlinkMessage>) {
        use RouteNetlinkMessage::{DelAddress, DelLink, DelRoute, NewAddress, NewLink, NewRoute};
        match message.payload {
            NetlinkPayload::InnerMessage(NewLink(link)) => self.add_link(&link, false),
            NetlinkPayload::InnerMessage(DelLink(link)) => self.add_link(&link, true),
            NetlinkPayload::InnerMessage(
                NewAddress(_) | DelAddress(_) | NewRoute(_) | DelRoute(_),
            )
            | NetlinkPayload::Overrun(_) => self.addresses = true,
            _ => {}
        }
    }

    fn add_link(&mut self, message: &LinkMessage, deleted: bool) {
        // A bridge speaks of its ports in the same words: there, "deleted" means "left the bridge".
        if message.header.interface_family == AddressFamily::Bridge {
            return;
        }
        let LinkInfo {
            index,
            name,
            mtu,
            up,
            ..
        } = LinkInfo::parse(message);
        let was_down = self.down.remove(&index);
        if !up && !deleted {
            self.down.insert(index);
        }
        let came_up_before = matches!(
            self.links.get(&index),
            Some(LinkEvent::LinkChanged { came_up: true, .. })
        );
        let event = LinkEvent::LinkChanged {
            index,
            name,
            mtu,
            up,
            came_up: up && (was_down || came_up_before),
            deleted,
            moved_to: deleted.then(|| moved_to(message)).flatten(),
        };
        self.links.insert(index, event);
    }

    fn into_events(self) -> impl Iterator<Item = LinkEvent> + use<> {
        let addresses = self.addresses.then_some(LinkEvent::AddressesChanged);
        self.links.into_values().chain(addresses)
    }
}

fn moved_to(message: &LinkMessage) -> Option<i32> {
    message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            LinkAttribute::NewNetnsId(id) => Some(*id),
            _ => None,
        })
}

#[cfg(test)]
mod tests {
    use rtnetlink::packet_route::link::LinkFlags;

    use super::*;
    use crate::io::testing::{Namespace, block_on, in_namespace, ip};

    async fn next(events: &mut mpsc::Receiver<LinkEvent>) -> Option<LinkEvent> {
        tokio::time::timeout(Duration::from_secs(1), events.recv())
            .await
            .ok()
            .flatten()
    }

    /// All events until nothing happens for a while.
    async fn settle(events: &mut mpsc::Receiver<LinkEvent>) -> Vec<LinkEvent> {
        let mut seen = Vec::new();
        let quiet = Duration::from_millis(300);
        while let Ok(Some(event)) = tokio::time::timeout(quiet, events.recv()).await {
            seen.push(event);
        }
        seen
    }

    #[test]
    fn a_port_that_leaves_its_bridge_is_not_deleted() {
        let mut message = LinkMessage::default();
        message.header.index = 3;
        let mut down = BTreeSet::new();
        let mut burst = Burst::new(&mut down);
        burst.add_link(&message, true);
        assert_eq!(burst.into_events().count(), 1);
        message.header.interface_family = AddressFamily::Bridge;
        let mut burst = Burst::new(&mut down);
        burst.add_link(&message, true);
        assert_eq!(burst.into_events().count(), 0);
    }

    #[test]
    fn a_link_that_was_down_for_a_moment_came_up() {
        let message = |up| {
            let mut message = LinkMessage::default();
            message.header.index = 3;
            message.header.flags = if up {
                LinkFlags::Up
            } else {
                LinkFlags::empty()
            };
            message
        };
        let mut down = BTreeSet::new();
        let mut came_up = |states: &[bool]| {
            let mut burst = Burst::new(&mut down);
            states
                .iter()
                .for_each(|&up| burst.add_link(&message(up), false));
            burst
                .into_events()
                .any(|event| matches!(event, LinkEvent::LinkChanged { came_up: true, .. }))
        };
        assert!(!came_up(&[true]));
        assert!(came_up(&[false, true, true]), "within a burst");
        assert!(!came_up(&[true]), "once");
        assert!(!came_up(&[false]));
        assert!(came_up(&[true]), "in the next burst");
        assert!(!came_up(&[false, true, false]));
    }

    #[test]
    fn others_changes_are_seen_in_bursts() {
        in_namespace(|| {
            block_on(async {
                let links = Links::connect().unwrap();
                ip("link add br0 type bridge");
                ip("tuntap add tap7 mode tap");
                let index = links.find("tap7").await.unwrap().unwrap().index;
                let event = |up, deleted| LinkEvent::LinkChanged {
                    index,
                    name: "tap7".to_owned(),
                    mtu: 1500,
                    up,
                    came_up: false,
                    deleted,
                    moved_to: None,
                };
                let mut events = Links::watch().unwrap();
                ip("link set tap7 up");
                assert!(settle(&mut events).await.contains(&event(true, false)));
                for last in 1..=20 {
                    links
                        .add_address(index, format!("10.0.{last}.1/24").parse().unwrap())
                        .await
                        .unwrap();
                }
                let seen = settle(&mut events).await;
                assert!(seen.contains(&LinkEvent::AddressesChanged));
                assert!(seen.len() < 10, "{seen:?}");
                ip("link set tap7 master br0");
                settle(&mut events).await;
                ip("link set tap7 nomaster");
                let seen = settle(&mut events).await;
                assert!(
                    !seen.contains(&event(true, true)) && !seen.is_empty(),
                    "{seen:?}"
                );
                ip("route add 192.0.2.0/24 via 10.0.1.2 dev tap7 onlink");
                assert_eq!(next(&mut events).await, Some(LinkEvent::AddressesChanged));
                let other = Namespace::new();
                ip("link add near type veth peer name far");
                settle(&mut events).await;
                ip(&format!("link set near netns {}", other.path()));
                let went = settle(&mut events).await;
                let moved_to = went.iter().find_map(|event| match event {
                    LinkEvent::LinkChanged { moved_to, .. } => *moved_to,
                    LinkEvent::AddressesChanged => None,
                });
                assert!(moved_to.is_some(), "{went:?}");
                ip("link delete tap7");
                let seen = settle(&mut events).await;
                let LinkEvent::LinkChanged { name, deleted, .. } = &seen[0] else {
                    panic!("{seen:?}");
                };
                assert!(name == "tap7" && *deleted);
            })
        });
    }
}
