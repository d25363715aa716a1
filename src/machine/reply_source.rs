// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which source an answer needs: whether the kernel would by itself choose the local address and
//! the interface at which the peer's datagram arrived, and if not, the source to tell the kernel.
//!
//! The interface is named only if a route leads out by it: told an interface without one, the
//! kernel takes any IPv4 address for a neighbour on it, and silently loses the datagrams. The
//! kernel answers queries at once and in order; each takes some microseconds.

use std::io;
use std::net::{IpAddr, SocketAddr};

use rtnetlink::packet_core::{NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteFlags, RouteMessage};
use rtnetlink::sys::{Socket, SocketAddr as NetlinkAddr, protocols::NETLINK_ROUTE};

use super::path;
use crate::io::mark::Mark;
use crate::wire::local::Local;

/// Asks the kernel of the network namespace in which it was opened.
pub(crate) struct ReplySourceLookup {
    kernel: Socket,
    mark: Mark,
    questions: u32,
}

/// The result of a route lookup.
#[derive(Debug)]
struct Found {
    source: Option<IpAddr>,
    interface: Option<u32>,
}

impl ReplySourceLookup {
    /// For sockets with `mark`.
    ///
    /// # Errors
    /// When no netlink socket can be opened.
    pub(crate) fn open(mark: Mark) -> io::Result<Self> {
        let mut kernel = Socket::new(NETLINK_ROUTE)?;
        kernel.bind_auto()?;
        kernel.connect(&NetlinkAddr::new(0, 0))?;
        Ok(Self {
            kernel,
            mark,
            questions: 0,
        })
    }

    /// The source that an answer to `remote` must name, if a datagram of `remote` arrived at
    /// `local`. `None`: the kernel chooses that source anyway.
    pub(crate) fn to(&mut self, remote: SocketAddr, local: Local) -> Option<Local> {
        let remote = remote.ip().to_canonical();
        if remote.is_ipv4() != local.address.is_ipv4() {
            return None;
        }
        let is_same = |found: &Found| found.interface == Some(local.interface);
        let chosen = self.ask(remote, None, None);
        if chosen.is_some_and(|it| is_same(&it) && it.source == Some(local.address)) {
            return None;
        }
        let by_routes = Local {
            interface: 0,
            ..local
        };
        let from_there = self.ask(remote, Some(local.address), None);
        if from_there.as_ref().is_some_and(is_same) {
            return Some(by_routes);
        }
        let out_by = self.ask(remote, Some(local.address), Some(local.interface));
        Some(if out_by.is_some() { local } else { by_routes })
    }

    fn ask(&mut self, remote: IpAddr, from: Option<IpAddr>, by: Option<u32>) -> Option<Found> {
        let mut question = path::question(remote, self.mark);
        if let Some(from) = from {
            question.header.source_prefix_length = if from.is_ipv4() { 32 } else { 128 };
            let from = match from {
                IpAddr::V4(from) => RouteAddress::Inet(from),
                IpAddr::V6(from) => RouteAddress::Inet6(from),
            };
            question.attributes.push(RouteAttribute::Source(from));
        }
        if let Some(by) = by {
            question.attributes.push(RouteAttribute::Oif(by));
            // The route itself: the kernel only assumes neighbours, without one.
            question.header.flags |= RouteFlags::FibMatch;
        }
        self.answer_to(question).ok().flatten()
    }

    fn answer_to(&mut self, question: RouteMessage) -> io::Result<Option<Found>> {
        self.questions = self.questions.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        (header.flags, header.sequence_number) = (NLM_F_REQUEST, self.questions);
        let payload = NetlinkPayload::from(RouteNetlinkMessage::GetRoute(question));
        let mut message = NetlinkMessage::new(header, payload);
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.kernel.send(&bytes, 0)?;
        // An earlier query whose answer could not be read may still be answered here.
        for _ in 0..8 {
            let (bytes, _) = self.kernel.recv_from_full()?;
            let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&bytes)
                .map_err(io::Error::other)?;
            if answer.header.sequence_number != self.questions {
                continue;
            }
            return Ok(match answer.payload {
                NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewRoute(route)) => {
                    Some(Found::of(&route))
                }
                _ => None,
            });
        }
        Ok(None)
    }
}

impl Found {
    fn of(route: &RouteMessage) -> Self {
        let mut found = Self {
            source: None,
            interface: None,
        };
        for attribute in &route.attributes {
            match attribute {
                RouteAttribute::Oif(index) => found.interface = Some(*index),
                RouteAttribute::PrefSource(RouteAddress::Inet(source)) => {
                    found.source = Some((*source).into());
                }
                RouteAttribute::PrefSource(RouteAddress::Inet6(source)) => {
                    found.source = Some((*source).into());
                }
                _ => {}
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{in_namespace, ip, wait_for_addresses};

    fn index(name: &str) -> u32 {
        let shown = ip(&format!("-o link show {name}"));
        shown.split(':').next().unwrap().trim().parse().unwrap()
    }

    #[test]
    fn answers_name_a_source_only_where_needed() {
        in_namespace(|| {
            for (name, number) in [("one", 1), ("two", 2), ("three", 3)] {
                ip(&format!("link add {name} type veth peer name {name}-end"));
                ip(&format!("link set {name}-end up"));
                ip(&format!("link set {name} up"));
                ip(&format!("address add 10.0.{number}.2/24 dev {name}"));
                ip(&format!("address add fd00:{number}::2/64 dev {name} nodad"));
            }
            ip("link set lo up");
            ip("address add 10.9.9.9/32 dev lo");
            ip("address add fd00:9::9/128 dev lo nodad");
            ip("address add 10.0.1.3/24 dev one");
            ip("address add fd00:1::3/64 dev one nodad preferred_lft 0");
            wait_for_addresses();
            for (gateway, name, metric) in [("10.0.1.1", "one", 1), ("10.0.2.1", "two", 2)] {
                ip(&format!(
                    "route add default via {gateway} dev {name} metric {metric}"
                ));
            }
            for (gateway, name, metric) in [("fd00:1::1", "one", 1), ("fd00:2::1", "two", 2)] {
                ip(&format!(
                    "route add default via {gateway} dev {name} metric {metric}"
                ));
            }
            let mut lookup = ReplySourceLookup::open(Mark::BYPASS).unwrap();
            let one = index("one");
            for (local, interface, told) in [
                // The address and interface that the kernel chooses.
                ("10.0.1.2", "one", None),
                ("fd00:1::2", "one", None),
                // Other addresses, by the same interface.
                ("10.0.1.3", "one", Some(0)),
                ("10.9.9.9", "one", Some(0)),
                ("fd00:1::3", "one", Some(0)),
                ("fd00:9::9", "one", Some(0)),
                // By another interface, which has a route.
                ("10.0.2.2", "two", Some(index("two"))),
                ("fd00:2::2", "two", Some(index("two"))),
                // And by one that has none: on IPv4 the kernel would look for a neighbour there.
                ("10.0.3.2", "three", Some(0)),
            ] {
                let (remote, local) = if local.contains(':') {
                    ("[2001:db8::1]:1", local)
                } else {
                    ("198.51.100.1:1", local)
                };
                let address = local.parse().unwrap();
                let local = Local::new(address, index(interface)).unwrap();
                let expected = told.map(|interface| Local { address, interface });
                let found = lookup.to(remote.parse().unwrap(), local);
                assert_eq!(found, expected, "{local:?} by {interface}");
            }
            // Many machines with two uplinks have such a rule by source.
            ip("route add default via 10.0.2.1 dev two table 7");
            ip("rule add from 10.0.2.2 lookup 7");
            let local = Local::new("10.0.2.2".parse().unwrap(), index("two")).unwrap();
            let found = lookup.to("198.51.100.1:1".parse().unwrap(), local);
            assert_eq!(found.unwrap().interface, 0);
            // A deleted address or interface is no reason to fail.
            ip("link del two");
            let found = lookup.to("198.51.100.1:1".parse().unwrap(), local);
            assert_eq!(found.unwrap().interface, 0);
            let local = Local::new("10.0.1.2".parse().unwrap(), one).unwrap();
            assert_eq!(lookup.to("198.51.100.1:1".parse().unwrap(), local), None);
        });
    }
}
