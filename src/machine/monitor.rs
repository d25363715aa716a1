// SPDX-License-Identifier: MIT OR Apache-2.0
//! The kernel's messages about changes to its network tables: links, addresses, routes and rules.
//!
//! Each listener to changes has a [`Monitor`] of its own, with one socket. The kernel then queues only the
//! groups that it asked for, keeps at most the socket's buffer for a slow reader, and reports an overrun.
//! So one rule holds for all of them: changes that cannot be reported event by event are
//! [`Event::Lost`], and the reader reads everything again.

use std::{collections::VecDeque, io, time::Duration};

use rtnetlink::{
    MulticastGroup,
    packet_core::{NetlinkMessage, NetlinkPayload},
    packet_route::{
        RouteNetlinkMessage, link::LinkMessage, route::RouteMessage, rule::RuleMessage,
    },
    sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket, protocols::NETLINK_ROUTE},
};
use tokio::time::{Instant, sleep_until};
use tracing::warn;

use crate::{io::sys, retry::Retry};

/// Bytes of the longest datagram that is read; the kernel's have a few thousand at most.
const LONGEST: usize = 16 << 10;
/// Netlink messages begin at multiples of this.
const ALIGNMENT: usize = 4;

/// The first pause after the socket failed.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LAST_PAUSE: Duration = Duration::from_secs(60);

/// A change by any program, this process included.
#[derive(Debug)]
pub(super) enum Event {
    /// A link appeared or changed, or else disappeared. A bridge reports its ports likewise.
    Link { link: LinkMessage, is_deleted: bool },
    /// An address came or went.
    Address,
    /// A route came or went.
    Route(RouteMessage),
    /// A rule came or went.
    Rule(RuleMessage),
    /// Another message of the groups.
    Other,
    /// Events were lost, or one cannot be parsed: read everything again.
    Lost,
}

/// Events of some groups in one network namespace. While the kernel's messages cannot be read, that is
/// logged and the socket is opened again; the gap is [`Event::Lost`].
pub(super) struct Monitor {
    /// For log lines.
    what: &'static str,
    groups: Vec<MulticastGroup>,
    optional: Vec<MulticastGroup>,
    /// None while the kernel's messages cannot be read.
    socket: Option<TokioSocket>,
    room: Box<[u8]>,
    /// Of the last datagram.
    events: VecDeque<Event>,
    retry: Retry,
    again_at: Instant,
}

impl Monitor {
    /// Events from now on in the namespace of this thread. Leaves out groups in `optional` that the
    /// kernel does not have. Must be called on a tokio runtime.
    pub(super) fn of(
        what: &'static str,
        groups: &[MulticastGroup],
        optional: &[MulticastGroup],
    ) -> Self {
        let mut monitor = Self {
            what,
            groups: groups.to_vec(),
            optional: optional.to_vec(),
            socket: None,
            room: vec![0; LONGEST].into(),
            events: VecDeque::new(),
            retry: Retry::new(FIRST_PAUSE, LAST_PAUSE),
            again_at: Instant::now(),
        };
        monitor.listen();
        monitor
    }

    /// The next event. Cancel safe.
    pub(super) async fn next(&mut self) -> Event {
        loop {
            if let Some(event) = self.events.pop_front() {
                return event;
            }
            let Some(socket) = &mut self.socket else {
                sleep_until(self.again_at).await;
                if self.listen() {
                    // Whatever changed meanwhile is unknown.
                    return Event::Lost;
                }
                continue;
            };
            match receive(socket, &mut self.room).await {
                Ok(datagram) => {
                    self.retry.is_over();
                    decode(datagram, &mut self.events);
                }
                // The kernel's queue overran. Its content is still read.
                Err(error) if error.raw_os_error() == Some(sys::ENOBUFS) => return Event::Lost,
                Err(error) => self.handle_failure(&error),
            }
        }
    }

    /// False on failure.
    fn listen(&mut self) -> bool {
        match self.open() {
            Ok(socket) => self.socket = Some(socket),
            Err(error) => self.handle_failure(&error),
        }
        self.socket.is_some()
    }

    fn open(&self) -> io::Result<TokioSocket> {
        let mut socket = TokioSocket::new(NETLINK_ROUTE)?;
        let inner = socket.socket_mut();
        inner.bind(&SocketAddr::new(0, 0))?;
        for group in &self.groups {
            inner.add_membership(*group as u32)?;
        }
        for group in &self.optional {
            let _ = inner.add_membership(*group as u32);
        }
        Ok(socket)
    }

    fn handle_failure(&mut self, error: &io::Error) {
        self.socket = None;
        let now = Instant::now();
        self.again_at = now + self.retry.next_pause();
        if self.retry.may_log(now.into()) {
            let what = self.what;
            warn!(%error, "cannot read the kernel's messages about {what}: changes are noticed late; opening the socket again");
        }
    }

    /// Simulates an error of the socket.
    #[cfg(test)]
    pub(super) fn break_off(&mut self) {
        self.handle_failure(&io::ErrorKind::ConnectionAborted.into());
    }
}

/// The next datagram, or as much of it as there is room for.
async fn receive<'a>(socket: &mut TokioSocket, room: &'a mut [u8]) -> io::Result<&'a [u8]> {
    let mut rest = &mut *room;
    socket.recv(&mut rest).await?;
    let length = LONGEST - rest.len();
    Ok(&room[..length])
}

/// Adds the events of a datagram, which usually has one message.
fn decode(mut datagram: &[u8], events: &mut VecDeque<Event>) {
    if datagram.len() >= LONGEST {
        // It may have been longer.
        events.push_back(Event::Lost);
        return;
    }
    while !datagram.is_empty() {
        let Ok(message) = NetlinkMessage::deserialize(datagram) else {
            events.push_back(Event::Lost);
            return;
        };
        let length = (message.header.length as usize).next_multiple_of(ALIGNMENT);
        datagram = datagram.get(length..).unwrap_or_default();
        events.push_back(message.into());
    }
}

impl From<NetlinkMessage<RouteNetlinkMessage>> for Event {
    fn from(message: NetlinkMessage<RouteNetlinkMessage>) -> Self {
        use RouteNetlinkMessage::{
            DelAddress, DelLink, DelRoute, DelRule, NewAddress, NewLink, NewRoute, NewRule,
        };
        let link = |link, is_deleted| Self::Link { link, is_deleted };
        match message.payload {
            NetlinkPayload::InnerMessage(NewLink(it)) => link(it, false),
            NetlinkPayload::InnerMessage(DelLink(it)) => link(it, true),
            NetlinkPayload::InnerMessage(NewAddress(_) | DelAddress(_)) => Self::Address,
            NetlinkPayload::InnerMessage(NewRoute(route) | DelRoute(route)) => Self::Route(route),
            NetlinkPayload::InnerMessage(NewRule(rule) | DelRule(rule)) => Self::Rule(rule),
            NetlinkPayload::Overrun(_) => Self::Lost,
            _ => Self::Other,
        }
    }
}

#[cfg(test)]
mod tests {
    use rtnetlink::packet_route::address::AddressMessage;
    use tokio::time::timeout;

    use super::*;
    use crate::testing::{block_on, in_namespace, ip};

    async fn next(monitor: &mut Monitor) -> Event {
        let limit = Duration::from_secs(20);
        timeout(limit, monitor.next()).await.expect("an event")
    }

    fn message(message: RouteNetlinkMessage) -> Vec<u8> {
        let mut message = NetlinkMessage::from(message);
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        bytes
    }

    fn decoded(datagram: &[u8]) -> VecDeque<Event> {
        let mut events = VecDeque::new();
        decode(datagram, &mut events);
        events
    }

    #[test]
    fn a_datagram_is_read_message_by_message() {
        let link = message(RouteNetlinkMessage::DelLink(LinkMessage::default()));
        let address = message(RouteNetlinkMessage::NewAddress(AddressMessage::default()));
        let mut events = decoded(&[link, address].concat()).into_iter();
        let gone = events.next();
        assert!(
            matches!(
                gone,
                Some(Event::Link {
                    is_deleted: true,
                    ..
                })
            ),
            "{gone:?}"
        );
        assert!(matches!(events.next(), Some(Event::Address)));
        assert!(events.next().is_none());
    }

    #[test]
    fn a_message_that_is_invalid_or_cut_off_counts_as_lost() {
        let link = message(RouteNetlinkMessage::NewLink(LinkMessage::default()));
        let mut unknown = link.clone();
        unknown[4..6].copy_from_slice(&999_u16.to_ne_bytes());
        let too_long = vec![0; LONGEST];
        for (datagram, events) in [
            (&link[..link.len() - 1], 1),
            (&[0; 64][..], 1),
            (&unknown, 1),
            (&too_long, 1),
            (&[&link[..], &unknown].concat(), 2),
        ] {
            let found = decoded(datagram);
            assert_eq!(found.len(), events, "{found:?}");
            assert!(matches!(found.back(), Some(Event::Lost)), "{found:?}");
        }
    }

    #[test]
    fn an_overrun_is_reported_and_queued_messages_still_come() {
        in_namespace(|| {
            block_on(async {
                let mut monitor = Monitor::of("links", &[MulticastGroup::Link], &[]);
                let socket = monitor.socket.as_mut().expect("a socket").socket_mut();
                socket.set_rx_buf_sz(1).expect("the smallest");
                for _ in 0..10 {
                    ip("link set lo up");
                    ip("link set lo down");
                }
                assert!(matches!(next(&mut monitor).await, Event::Lost));
                assert!(matches!(next(&mut monitor).await, Event::Link { .. }));
            });
        });
    }

    #[test]
    fn a_broken_socket_is_opened_again_and_counts_as_a_loss() {
        in_namespace(|| {
            block_on(async {
                let mut monitor = Monitor::of("links", &[MulticastGroup::Link], &[]);
                monitor.break_off();
                assert!(matches!(next(&mut monitor).await, Event::Lost));
                ip("link set lo up");
                assert!(matches!(next(&mut monitor).await, Event::Link { .. }));
            });
        });
    }
}
