// SPDX-License-Identifier: MIT OR Apache-2.0
//! A socket for each destination, which sends datagrams and receives none.
//!
//! The kernel charges a socket with each datagram until the datagram has left the machine: behind a
//! slow interface with a deep queue for seconds. One socket for all destinations would be full for
//! all of them as soon as it is full for one. So each destination has a socket of its own, and with
//! it a share of the buffer; and a thread that sends to several destinations waits for room a tenth
//! of its time at most.
//!
//! These sockets are in the group of the lanes' sockets, behind them, and have the same port. The
//! program of that group never chooses them. A single destination needs none: its datagrams leave
//! by the socket of their lane.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::Arc;

use tracing::warn;

use super::error::SendFailure;
use super::lanes::{self, Spread};
use super::patience::Patience;
use super::socket::{self, BUFFER_BYTES, UdpSocket};
use super::transmit::SendReport;
use crate::io::sys::bpf;
use crate::io::sys::mmsg::SendOptions;
use crate::wire::local::Local;

/// The buffers of all sockets of a tunnel together, as long as each has [`LEAST_BYTES`].
const ALL_BYTES: usize = 64 << 20;
/// A few trains; enough for 8 ms at 500 Mbit/s.
const LEAST_BYTES: usize = 512 << 10;

impl UdpSocket {
    /// Opens a socket for each of this many destinations, beside those of the lanes. Call it once
    /// no lane's socket will be closed any more: the positions in the group are the order of
    /// binding.
    ///
    /// Returns none for a single destination, and if the kernel refuses: then all share the sockets
    /// of the lanes.
    pub(crate) fn bind_senders(
        lanes: &[Self],
        spread: impl Into<Spread>,
        destinations: usize,
    ) -> Vec<Self> {
        let Some(first) = lanes.first().filter(|_| destinations > 1) else {
            return Vec::new();
        };
        first
            .open_senders(spread.into(), destinations)
            .unwrap_or_else(|error| {
                warn!(
                    %error,
                    "all peers share a UDP send buffer, and one behind a slow link can keep the others waiting; allow more open files (LimitNOFILE) or fewer peers"
                );
                if lanes.len() == 1 {
                    // It could be set a moment ago, so it can be set again.
                    let _ = first.socket.set_reuse_port(false);
                }
                Vec::new()
            })
    }

    fn open_senders(&self, spread: Spread, destinations: usize) -> io::Result<Vec<Self>> {
        let at = self.local_addr()?;
        let mark = self.socket.mark()?;
        let bytes = buffer_bytes(destinations);
        self.socket.set_reuse_port(true)?;
        let senders = (0..destinations).map(|_| {
            let sender = Self::bind_one(at, true).map_err(io::Error::other)?;
            sender.socket.set_mark(mark)?;
            sender.shrink_to(bytes)?;
            Ok(Self {
                pauses: Arc::clone(&self.pauses),
                // Nothing is read from it.
                capabilities: self.capabilities,
                ..sender
            })
        });
        let senders = senders.collect::<io::Result<Vec<_>>>()?;
        bpf::attach_to_port(self.socket.as_fd(), &lanes::program(spread))?;
        Ok(senders)
    }

    /// Nothing is read from it, so it needs no receive buffer.
    fn shrink_to(&self, send_bytes: usize) -> io::Result<()> {
        self.socket.set_recv_buffer_size(0)?;
        if send_bytes < BUFFER_BYTES {
            self.socket.set_send_buffer_size(send_bytes)?;
        }
        Ok(())
    }
}

/// The share of one destination.
fn buffer_bytes(destinations: usize) -> usize {
    (ALL_BYTES / destinations.max(1)).clamp(LEAST_BYTES, BUFFER_BYTES)
}

/// The sockets by which one thread sends.
#[derive(Debug)]
pub(crate) struct Senders {
    lane: UdpSocket,
    own: Arc<[UdpSocket]>,
    patience: Patience,
}

impl Senders {
    /// `lane` for all, or for each destination the socket of [`UdpSocket::bind_senders`] in its
    /// position.
    pub(crate) fn new(lane: UdpSocket, own: Arc<[UdpSocket]>) -> Self {
        let patience = if own.is_empty() {
            Patience::Endless
        } else {
            Patience::limited(socket::now())
        };
        Self {
            lane,
            own,
            patience,
        }
    }

    /// Sends a train of datagrams of this size to the destination in this position: see
    /// [`UdpSocket::send_train_from`]. Unless `as_train`, the kernel gets them one by one.
    ///
    /// # Errors
    /// As there.
    pub(crate) fn send(
        &mut self,
        place: usize,
        (local, to): (Option<Local>, SocketAddr),
        train: &[u8],
        (segment_size, as_train): (usize, bool),
    ) -> Result<SendReport, SendFailure> {
        let (socket, hops) = match self.own.get(place) {
            Some(own) => (own, self.lane.hops),
            None => (&self.lane, None),
        };
        socket.send_with(
            &mut self.patience,
            socket::now,
            to,
            SendOptions { hops, local },
            train,
            (segment_size, as_train),
        )
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::time::Duration;

    use super::super::RecvBatch;
    use super::super::testing::{at, bind, cable, port};
    use super::*;
    use crate::io::waker;
    use crate::testing::{in_namespace, ip, wait_for_addresses};

    /// The sockets of this many lanes, and senders for two destinations by each of them.
    fn open(listen: &str, lanes: usize) -> (Vec<UdpSocket>, Vec<Senders>) {
        let sockets = UdpSocket::bind_lanes(at(listen), lanes).unwrap();
        let own: Arc<[_]> = UdpSocket::bind_senders(&sockets, sockets.len(), 2).into();
        assert_eq!(own.len(), 2);
        let by = |lane: &UdpSocket| Senders::new(lane.try_clone().unwrap(), own.clone());
        let senders = sockets.iter().map(by).collect();
        (sockets, senders)
    }

    /// The datagrams that arrive within a second, and the ports of their senders.
    fn receive(socket: &UdpSocket, count: usize) -> Vec<(u16, Vec<u8>)> {
        let (mut batch, mut datagrams) = (RecvBatch::new(8), Vec::new());
        while datagrams.len() < count {
            let wait = Some(Duration::from_secs(1));
            if waker::wait(&[socket.as_fd()], wait).unwrap().is_timeout() {
                break;
            }
            socket.recv_batch(&mut batch).unwrap();
            for mut received in batch.iter_mut() {
                let from = received.from.port();
                datagrams.extend(received.datagrams().map(|bytes| (from, bytes.to_vec())));
            }
        }
        datagrams
    }

    fn tool(program: &str, arguments: &str) {
        let arguments = arguments.split_whitespace();
        let output = Command::new(program).args(arguments).output().unwrap();
        assert!(output.status.success(), "{program}: {output:?}");
    }

    #[test]
    fn datagrams_leave_from_the_port_of_the_lanes_and_come_to_these_only() {
        in_namespace(|| {
            ip("link set lo up");
            for (listen, to) in [("127.0.0.1:0", "127.0.0.1"), ("[::]:0", "[::1]")] {
                for lanes in [1, 3] {
                    let (sockets, mut senders) = open(listen, lanes);
                    let other = bind(&format!("{to}:0"));
                    let there = other.local_addr().unwrap();
                    let own_port = port(&sockets[0]);
                    for place in 0..3 {
                        for sender in &mut senders {
                            sender
                                .send(place, (None, there), b"there", (5, true))
                                .unwrap();
                        }
                    }
                    let expected = vec![(own_port, b"there".to_vec()); 3 * lanes];
                    assert_eq!(receive(&other, 3 * lanes), expected);
                    let back = at(&format!("{to}:{own_port}"));
                    for _ in 0..200 {
                        // From another port each time, which a hash would spread.
                        bind(&format!("{to}:0"))
                            .send_train(back, b"back", 4)
                            .unwrap();
                    }
                    assert_eq!(receive(&sockets[0], 200).len(), 200);
                }
            }
        });
    }

    #[test]
    fn one_destination_has_the_socket_of_the_lane() {
        in_namespace(|| {
            let sockets = UdpSocket::bind_lanes(at("127.0.0.1:0"), 1).unwrap();
            assert!(UdpSocket::bind_senders(&sockets, sockets.len(), 1).is_empty());
            assert!(!sockets[0].socket.reuse_port().unwrap());
        });
    }

    #[test]
    fn a_datagram_has_the_time_to_live_of_its_lane() {
        let (left, right) = cable();
        left.run(|| ip("address add fd00::1/64 dev veth0 nodad"));
        right.run(|| ip("address add fd00::2/64 dev veth1 nodad"));
        left.run(wait_for_addresses);
        right.run(wait_for_addresses);
        right.run(|| {
            tool("nft", "add table inet t");
            tool(
                "nft",
                "add chain inet t in { type filter hook input priority 0 ; }",
            );
            for match_ in ["ip ttl != 62", "ip6 hoplimit != 62"] {
                tool(
                    "nft",
                    &format!("add rule inet t in udp dport 4789 {match_} drop"),
                );
            }
        });
        let receiver = right.run(|| bind("[::]:4789"));
        for listen in ["0.0.0.0:0", "[::]:0"] {
            let (_sockets, mut senders) = left.run(|| open(listen, 3));
            for to in ["10.0.0.2:4789", "[fd00::2]:4789"] {
                if listen == "0.0.0.0:0" && to.starts_with('[') {
                    continue;
                }
                for sender in &mut senders {
                    // Alone, and cut by the kernel.
                    for train in [vec![7; 100], vec![7; 300]] {
                        sender.send(1, (None, at(to)), &train, (100, true)).unwrap();
                    }
                }
                let came = receive(&receiver, 12).len();
                assert_eq!(came, 4, "from {listen} to {to}");
            }
        }
    }

    /// The free buffer of a socket does not depend on where else datagrams are queued.
    #[test]
    fn a_slow_interface_fills_the_socket_of_its_destination_only() {
        let (left, _right) = cable();
        left.run(|| {
            tool(
                "tc",
                "qdisc add dev veth0 root tbf rate 8kbit burst 16k limit 100m",
            );
            ip("link set lo up");
            let (_sockets, mut senders) = open("0.0.0.0:0", 1);
            let receiver = bind("127.0.0.1:0");
            let (slow, fast) = (at("10.0.0.2:9"), receiver.local_addr().unwrap());
            let mut fill = || {
                senders[0]
                    .send(0, (None, slow), &[1; 60_000], (1000, true))
                    .unwrap()
            };
            while fill().dropped == 0 {}
            for _ in 0..100 {
                // A few of them wait, the others cost next to nothing.
                assert_eq!(
                    senders[0]
                        .send(0, (None, slow), &[1; 60_000], (1000, true))
                        .unwrap()
                        .sent,
                    0
                );
                let sent = senders[0]
                    .send(1, (None, fast), &[2; 5000], (1000, true))
                    .unwrap();
                assert_eq!((sent.sent, sent.dropped), (5, 0));
            }
            assert_eq!(receive(&receiver, 500).len(), 500);
        });
    }

    #[test]
    fn room_is_shared_and_each_has_some() {
        for (destinations, bytes) in [(2, 8 << 20), (16, 4 << 20), (1000, 512 << 10)] {
            assert_eq!(buffer_bytes(destinations), bytes);
        }
    }
}
