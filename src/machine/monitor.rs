// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the kernel tells of changes to its network tables: links, addresses, routes and rules.
//!
//! Everything that follows changes does so by a [`Monitor`] of its own, with one socket. The kernel then
//! queues only the groups that it asked for, keeps at most the socket's buffer for a reader that is
//! slow, and says when that overran. So one rule holds for all of them: whatever cannot be told event by
//! event is [`Event::Lost`], and the reader looks at everything again.

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

/// After the kernel could not be heard.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LAST_PAUSE: Duration = Duration::from_secs(60);

/// What somebody, perhaps this process, changed.
#[derive(Debug)]
pub(super) enum Event {
    /// A link appeared or changed, or else disappeared. A bridge tells of its ports likewise.
    Link { link: LinkMessage, is_deleted: bool },
    /// An address came or went.
    Address,
    /// A route came or went.
    Route(RouteMessage),
    /// A rule came or went.
    Rule(RuleMessage),
    /// Something else in the groups that were asked for.
    Other,
    /// Events were lost, or one cannot be read: look at everything again.
    Lost,
}

/// Events of some groups in one network namespace. While the kernel cannot be heard, that is told in the
/// log and the socket is opened again; what was missed is [`Event::Lost`].
pub(super) struct Monitor {
    /// For people.
    what: &'static str,
    groups: Vec<MulticastGroup>,
    optional: Vec<MulticastGroup>,
    /// None while the kernel cannot be heard.
    socket: Option<TokioSocket>,
    room: Box<[u8]>,
    /// Of the last datagram.
    events: VecDeque<Event>,
    retry: Retry,
    again_at: Instant,
}

impl Monitor {
    /// Events from now on in the namespace of this thread. Groups in `optional` are left out where
    /// the kernel does not have them. Must be called on a tokio runtime.
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

    /// The next event. May be dropped and called again.
    pub(super) async fn next(&mut self) -> Event {
        loop {
            if let Some(event) = self.events.pop_front() {
                return event;
            }
            let Some(socket) = &mut self.socket else {
                sleep_until(self.again_at).await;
                if self.listen() {
                    // Nobody knows what changed meanwhile.
                    return Event::Lost;
                }
                continue;
            };
            match receive(socket, &mut self.room).await {
                Ok(datagram) => {
                    self.retry.is_over();
                    decode(datagram, &mut self.events);
                }
                // The kernel's queue overran. What it holds is still read.
                Err(error) if error.raw_os_error() == Some(sys::ENOBUFS) => return Event::Lost,
                Err(error) => self.lose(&error),
            }
        }
    }

    /// False if that fails.
    fn listen(&mut self) -> bool {
        match self.open() {
            Ok(socket) => self.socket = Some(socket),
            Err(error) => self.lose(&error),
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

    fn lose(&mut self, error: &io::Error) {
        self.socket = None;
        let now = Instant::now();
        self.again_at = now + self.retry.next_pause();
        if self.retry.may_log(now.into()) {
            let what = self.what;
            warn!(%error, "the kernel does not tell of {what} at the moment, so that they are noticed late; the socket is opened again");
        }
    }

    /// As after an error of the socket.
    #[cfg(test)]
    pub(super) fn break_off(&mut self) {
        self.lose(&io::ErrorKind::ConnectionAborted.into());
    }
}

/// The next datagram, or as much of it as there is room for.
async fn receive<'a>(socket: &mut TokioSocket, room: &'a mut [u8]) -> io::Result<&'a [u8]> {
    let mut rest = &mut *room;
    socket.recv(&mut rest).await?;
    let length = LONGEST - rest.len();
    Ok(&room[..length])
}

/// Adds the events of a datagram, which has one message as a rule.
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
    fn what_cannot_be_read_or_was_cut_off_is_lost() {
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
    fn an_overrun_is_told_and_what_is_queued_still_comes() {
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
    fn a_broken_socket_is_opened_again_and_that_is_a_loss() {
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
