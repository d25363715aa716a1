// SPDX-License-Identifier: MIT OR Apache-2.0
//! Watches changes of other programs to links, addresses and routes, as a stream of events.
//!
//! For roaming (another path may be better now), for the MTUs of the underlay's links, and to notice
//! that another program deleted our device. Changes nothing itself. The control thread listens.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::mem::take;
use std::time::Duration;

use rtnetlink::MulticastGroup::{Ipv4Ifaddr, Ipv4Route, Ipv6Ifaddr, Ipv6Route, Link};
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::link::{LinkAttribute, LinkMessage};
use tokio::time::{Instant, sleep_until};

use super::{info::LinkInfo, links::Links};
use crate::machine::monitor::{Event, Monitor};

/// Changes come in bursts (an interface with addresses and routes); one burst is one set of events.
const SETTLE: Duration = Duration::from_millis(30);

impl Links {
    /// Watches links, addresses and routes in the namespace of this thread, from now on. Must be called
    /// on a tokio runtime.
    pub(crate) fn watch() -> LinkWatch {
        // A kernel without IPv6 lacks its groups.
        let (groups, optional) = ([Link, Ipv4Ifaddr, Ipv4Route], [Ipv6Ifaddr, Ipv6Route]);
        LinkWatch {
            monitor: Monitor::of("links and addresses", &groups, &optional),
            burst: Burst::default(),
            settles_at: None,
            events: VecDeque::new(),
        }
    }
}

/// A watch over links, addresses and routes. It works while a caller waits for its [`next`](Self::next)
/// event; lost changes, such as those that overflow the kernel's queue, are reported as
/// [`LinkEvent::AddressesChanged`].
pub(crate) struct LinkWatch {
    monitor: Monitor,
    burst: Burst,
    /// When the current burst is over, if there is one.
    settles_at: Option<Instant>,
    /// Of the last burst.
    events: VecDeque<LinkEvent>,
}

impl LinkWatch {
    /// The next change. Cancel safe.
    pub(crate) async fn next(&mut self) -> LinkEvent {
        loop {
            if let Some(event) = self.events.pop_front() {
                return event;
            }
            tokio::select! {
                event = self.monitor.next() => {
                    self.burst.add(&event);
                    self.settles_at.get_or_insert_with(|| Instant::now() + SETTLE);
                }
                () = until(self.settles_at) => {
                    self.settles_at = None;
                    self.events = self.burst.take_events().collect();
                }
            }
        }
    }
}

/// For ever without a time.
async fn until(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}

/// A change by any program, this process included.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum LinkEvent {
    /// Addresses or routes: another path may be better now, or the only one left. Also sent when
    /// changes were lost.
    AddressesChanged,
    /// A link appeared, changed or disappeared.
    LinkChanged {
        /// Its index.
        index: u32,
        /// Its name.
        name: String,
        /// Its MTU.
        mtu: u32,
        /// Whether it is administratively up.
        up: bool,
        /// Whether it is up after it was down, however briefly, since the last report or since the
        /// watch began. The kernel has then deleted static IPv6 addresses and routes.
        came_up: bool,
        /// Whether it is gone.
        deleted: bool,
        /// The number of the network namespace that it went to, if it was not deleted.
        moved_to: Option<i32>,
    },
}

/// The changes since the last events were sent: of each link only the latest state.
#[derive(Default)]
struct Burst {
    addresses: bool,
    links: BTreeMap<u32, LinkEvent>,
    /// Links that were last seen down, also in earlier bursts.
    down: BTreeSet<u32>,
}

impl Burst {
    fn add(&mut self, event: &Event) {
        match event {
            Event::Link { link, is_deleted } => self.add_link(link, *is_deleted),
            Event::Address | Event::Route(_) | Event::Lost => self.addresses = true,
            Event::Rule(_) | Event::Other => {}
        }
    }

    fn add_link(&mut self, message: &LinkMessage, deleted: bool) {
        // A bridge reports its ports' VLANs and states in the same messages: there, "deleted" means
        // "left the bridge".
        if deleted && message.header.interface_family == AddressFamily::Bridge {
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

    fn take_events(&mut self) -> impl Iterator<Item = LinkEvent> + use<> {
        let addresses = take(&mut self.addresses).then_some(LinkEvent::AddressesChanged);
        take(&mut self.links).into_values().chain(addresses)
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
    use crate::testing::{Namespace, block_on, in_namespace, ip};

    async fn next(events: &mut LinkWatch) -> Option<LinkEvent> {
        let limit = Duration::from_secs(20);
        tokio::time::timeout(limit, events.next()).await.ok()
    }

    /// All events until no more come for a while.
    async fn settle(events: &mut LinkWatch) -> Vec<LinkEvent> {
        let mut seen = Vec::new();
        let quiet = Duration::from_millis(300);
        while let Ok(event) = tokio::time::timeout(quiet, events.next()).await {
            seen.push(event);
        }
        seen
    }

    #[test]
    fn a_port_that_leaves_its_bridge_is_not_deleted() {
        let mut message = LinkMessage::default();
        message.header.index = 3;
        let mut burst = Burst::default();
        burst.add_link(&message, true);
        assert_eq!(burst.take_events().count(), 1);
        message.header.interface_family = AddressFamily::Bridge;
        burst.add_link(&message, true);
        assert_eq!(burst.take_events().count(), 0);
        // As a change of its VLANs produces.
        burst.add_link(&message, false);
        assert_eq!(burst.take_events().count(), 1);
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
        let mut burst = Burst::default();
        let mut came_up = |states: &[bool]| {
            states
                .iter()
                .for_each(|&up| burst.add_link(&message(up), false));
            burst
                .take_events()
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
                let mut events = Links::watch();
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

    #[test]
    fn a_watch_goes_on_after_the_end_of_its_connection() {
        in_namespace(|| {
            block_on(async {
                let mut events = Links::watch();
                ip("link add br0 type bridge");
                assert!(!settle(&mut events).await.is_empty());
                events.monitor.break_off();
                let told = next(&mut events).await;
                assert_eq!(told, Some(LinkEvent::AddressesChanged), "look again");
                ip("link delete br0");
                let told = next(&mut events).await;
                assert!(
                    matches!(&told, Some(LinkEvent::LinkChanged { name, deleted: true, .. }) if name == "br0"),
                    "{told:?}"
                );
            });
        });
    }
}
