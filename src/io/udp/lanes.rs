// SPDX-License-Identifier: MIT OR Apache-2.0
//! One socket for each lane, all on one port: the kernel hands each datagram to the socket of its
//! lane, so that lanes share neither a queue nor a lock.
//!
//! The sockets are a SO_REUSEPORT group with a program that reads the lane from the head of the
//! datagram. It returns the position of a socket in the group, which is the order of binding for as
//! long as all of them are open. The express lanes, for flows that send little, have the last socket
//! if they are to have one ([`Spread`]).
//!
//! Datagrams leave with a time to live that differs from lane to lane. The receiver's network stack
//! merges adjacent datagrams with the same addresses and ports, but not with different times to
//! live (the tests show it for the kernel that they run on); so lanes stay apart at the far end
//! too.
//!
//! A program of the same user that asks for SO_REUSEPORT can join the group later on, unnoticed. It
//! gets no datagram, unless it also replaces our program by its own: a program that can run as our
//! user could attach a debugger just as well.

use std::io;
use std::iter;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::Arc;

use tracing::warn;

use super::error::{BindError, has_code};
use super::socket::UdpSocket;
use crate::io::sys;
use crate::io::sys::bpf::{self, Instruction};
use crate::wire::{Lane, MessageType};

/// The time to live of the first lane, the default of Linux; further ones have less.
const TIME_TO_LIVE: u8 = 64;
/// Lanes of different times to live; the next lane has that of the first one again.
const TIMES_TO_LIVE: usize = 16;

/// Offset of the lane in a data datagram: the top byte of the counter.
pub(super) const LANE_OFFSET: u32 = 4;

/// The sockets of a tunnel: which lanes arrive at which.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Spread {
    /// The sockets for lanes that are not express lanes: at least one.
    pub bulk: usize,
    /// Whether the express lanes have a socket of their own, behind those.
    pub express: bool,
}

impl From<usize> for Spread {
    fn from(bulk: usize) -> Self {
        Self {
            bulk,
            express: false,
        }
    }
}

impl Spread {
    /// One socket for everything.
    pub(crate) const ONE: Self = Self {
        bulk: 1,
        express: false,
    };

    /// How many sockets there are.
    pub(crate) fn sockets(self) -> usize {
        self.bulk + usize::from(self.express)
    }

    /// The position of the socket of a lane: lane 1 has the first, a lane beyond the last the first
    /// again, and so has the control lane.
    pub(crate) fn place_of(self, lane: Lane) -> usize {
        if self.express && lane.is_express() {
            return self.bulk;
        }
        usize::from(lane.0).saturating_sub(1) % self.bulk
    }
}

impl UdpSocket {
    /// Opens the sockets of `spread` at `listen`, all on the same port, also when `listen` leaves
    /// its choice to the kernel. A single one is as [`bind`](Self::bind), and shares its port with
    /// no other socket.
    ///
    /// Data arrives at the socket that [`Spread::place_of`] says, and everything that is not data at
    /// the first. Two kinds of datagrams arrive at other sockets, and a receiver must take them:
    ///
    /// - those that arrive before this returns;
    /// - those that the network stack has merged behind one of another lane. It considers addresses
    ///   and sizes alone, so a train may change its lane in the middle.
    ///
    /// Returns one socket for all lanes if the kernel cannot do this.
    ///
    /// # Errors
    /// As [`bind`](Self::bind); the port is taken even if its owner would share it.
    pub(crate) fn bind_lanes(
        listen: SocketAddr,
        spread: impl Into<Spread>,
    ) -> Result<Vec<Self>, BindError> {
        let Spread { bulk, express } = spread.into();
        // Alone at first: bound like this, the kernel refuses the port to every other socket,
        // whoever owns it.
        let mut first = Self::bind(listen)?;
        // A lane's number is one byte.
        let spread = Spread {
            bulk: bulk.clamp(1, 255),
            express,
        };
        if spread == Spread::ONE {
            return Ok(vec![first]);
        }
        match first.share_port(spread) {
            Ok(others) => Ok(iter::once(first).chain(others).collect()),
            Err(error) => {
                warn!(%error, "using one UDP socket and one inbound thread for all lanes: the kernel rejected the BPF program that spreads datagrams over sockets");
                // It could be set a moment ago, so it can be set again.
                let _ = first.socket.set_reuse_port(false);
                Ok(vec![first])
            }
        }
    }

    /// Opens the sockets of the other lanes.
    fn share_port(&mut self, spread: Spread) -> io::Result<Vec<Self>> {
        let at = self.local_addr()?;
        self.socket.set_reuse_port(true)?;
        self.set_time_to_live(time_to_live(0))?;
        let others = (1..spread.sockets()).map(|lane| {
            let mut other = Self::bind_one(at, true).map_err(io::Error::other)?;
            other.set_time_to_live(time_to_live(lane))?;
            Ok(Self {
                pauses: Arc::clone(&self.pauses),
                ..other
            })
        });
        let others = others.collect::<io::Result<Vec<_>>>()?;
        bpf::attach_to_port(self.socket.as_fd(), &program(spread))?;
        Ok(others)
    }

    /// For IPv4, and for IPv6 if the socket has it.
    fn set_time_to_live(&mut self, hops: u8) -> io::Result<()> {
        self.hops = Some(hops);
        let hops = u32::from(hops);
        if self.is_ipv6 {
            self.socket.set_unicast_hops_v6(hops)?;
        }
        // Refused where the kernel has no IPv4, and then not needed.
        match self.socket.set_ttl_v4(hops) {
            Err(error) if !(self.is_ipv6 && has_code(&error, sys::ENOPROTOOPT)) => Err(error),
            _ => Ok(()),
        }
    }
}

/// The time to live of the lane after this many others.
fn time_to_live(lanes_before: usize) -> u8 {
    TIME_TO_LIVE - (lanes_before % TIMES_TO_LIVE) as u8
}

/// Chooses the socket of a datagram. A read beyond the end of it ends the program with 0.
pub(super) fn program(spread: Spread) -> Vec<Instruction> {
    let first_byte = |message_type: MessageType| u32::from(message_type.first_byte());
    let Spread { bulk, express } = spread;
    let more = if express { 2 } else { 0 };
    let mut program = vec![
        bpf::load_byte(0),
        bpf::skip_if(first_byte(MessageType::Frame), 1, 0),
        bpf::skip_if(first_byte(MessageType::Chunks), 0, 5 + more),
        bpf::load_byte(LANE_OFFSET),
        bpf::skip_if(0, 3 + more, 0),
    ];
    if express {
        program.push(bpf::skip_if(Lane::EXPRESS.0.into(), 5, 0));
        program.push(bpf::skip_if(Lane::EXPRESS_ONWARD.0.into(), 4, 0));
    }
    program.extend([
        bpf::subtract(1),
        bpf::remainder(bulk as u32),
        bpf::answer(),
        bpf::answer_with(0),
        bpf::answer_with(bulk as u32),
    ]);
    program
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};
    use std::os::fd::BorrowedFd;
    use std::time::Duration;

    use nix::unistd::{Uid, setfsuid};
    use socket2::{Domain, Socket, Type};
    use zerocopy::IntoBytes;

    use super::super::RecvBatch;
    use super::super::testing::{at, bind, cable, port};
    use super::super::transmit::SendReport;
    use super::*;
    use crate::io::sys::faults::{Fault, finish, script};
    use crate::io::waker;
    use crate::testing::{Namespace, in_namespace, ip, wait_for_addresses};
    use crate::wire::{Counter, DataHeader, Lane, SessionIndex};

    fn bind_lanes(listen: &str, spread: impl Into<Spread>) -> Vec<UdpSocket> {
        let spread = spread.into();
        let sockets = UdpSocket::bind_lanes(at(listen), spread).unwrap();
        assert_eq!(sockets.len(), spread.sockets());
        assert!(
            sockets
                .iter()
                .all(|socket| port(socket) == port(&sockets[0]))
        );
        sockets
    }

    fn data(message_type: MessageType, lane: u8, sequence: u64) -> Vec<u8> {
        let counter = Counter::new(Lane(lane), sequence);
        let index = SessionIndex::from_low_bits(7);
        DataHeader::new(message_type, index, counter)
            .as_bytes()
            .to_vec()
    }

    /// Datagrams of 1000 bytes back to back, numbered, each of its own lane.
    fn train(lanes: &[u8]) -> Vec<u8> {
        let mut train = Vec::new();
        for (sequence, &lane) in (1..).zip(lanes) {
            train.extend(data(MessageType::Chunks, lane, sequence));
            train.resize(1000 * sequence as usize, lane);
        }
        train
    }

    /// The datagrams that arrive at each socket, train by train, until `count` of them have
    /// arrived.
    fn receive(sockets: &[UdpSocket], mut count: usize) -> Vec<Vec<Vec<u8>>> {
        let mut batch = RecvBatch::new(8);
        let mut trains = vec![Vec::new(); sockets.len()];
        let fds: Vec<BorrowedFd<'_>> = sockets.iter().map(AsFd::as_fd).collect();
        while count > 0 {
            let ready = waker::wait(&fds, Some(Duration::from_secs(20))).unwrap();
            assert!(!ready.is_timeout(), "{count} are missing");
            for (socket, trains) in sockets.iter().zip(&mut trains) {
                socket.recv_batch(&mut batch).unwrap();
                for mut received in batch.iter_mut() {
                    count -= received.datagrams().count().max(1);
                    trains.push(received.bytes().to_vec());
                }
            }
        }
        trains
    }

    /// A socket of another program.
    fn stranger(listen: &str, shares_port: bool) -> io::Result<Socket> {
        let listen = at(listen);
        let socket = Socket::new(Domain::for_address(listen), Type::DGRAM, None)?;
        if listen.is_ipv6() {
            socket.set_only_v6(false)?;
        }
        socket.set_reuse_port(shares_port)?;
        socket.set_nonblocking(true)?;
        socket.bind(&listen.into())?;
        Ok(socket)
    }

    /// Runs `work` with the files and sockets of another user.
    fn as_another_user<T>(work: impl FnOnce() -> T) -> T {
        let user = setfsuid(Uid::from_raw(65534));
        let result = work();
        setfsuid(user);
        result
    }

    fn is_in_use<T>(result: io::Result<T>) -> bool {
        result.is_err_and(|error| error.raw_os_error() == Some(sys::EADDRINUSE))
    }

    #[test]
    fn every_lane_has_its_socket_and_the_rest_goes_to_the_first() {
        let first = Lane::CONTROL;
        let mut expected: Vec<(Lane, Vec<u8>)> = vec![
            (first, vec![]),
            (first, vec![0x14]),
            (first, vec![0x15, 0, 0, 0]),
            (first, vec![0x11, 0, 0, 0, 3]),
            (first, vec![0x12, 0, 0, 0, 3, 0]),
            (first, vec![0x13, 0, 0, 0, 3, 0]),
            (first, vec![0x16, 0, 0, 0, 3, 0]),
            (first, vec![0x04, 0, 0, 0, 3, 0]),
            (first, vec![0x24, 0, 0, 0, 3, 0]),
            (Lane(3), vec![0x14, 0, 0, 0, 3]),
        ];
        for message_type in [MessageType::Frame, MessageType::Chunks] {
            for lane in (0..=16).chain([255]) {
                expected.push((Lane(lane), data(message_type, lane, 0)));
            }
        }
        in_namespace(|| {
            ip("link set lo up");
            for (listen, from) in [
                ("127.0.0.1:0", "127.0.0.1:0"),
                ("0.0.0.0:0", "127.0.0.1:0"),
                ("[::1]:0", "[::1]:0"),
                ("[::]:0", "127.0.0.1:0"),
                ("[::]:0", "[::1]:0"),
            ] {
                let sender = bind(from);
                let with = |bulk, express| Spread { bulk, express };
                let spreads = [1, 2, 3, 8].map(|bulk| [with(bulk, false), with(bulk, true)]);
                for spread in spreads.into_iter().flatten() {
                    let sockets = bind_lanes(listen, spread);
                    let to = SocketAddr::new(at(from).ip(), port(&sockets[0]));
                    let mut per_socket = vec![Vec::new(); spread.sockets()];
                    for (lane, datagram) in &expected {
                        per_socket[spread.place_of(*lane)].push(datagram.clone());
                        sender
                            .socket
                            .send_to(datagram, &sender.kernel_address(to))
                            .unwrap();
                    }
                    let received = receive(&sockets, expected.len());
                    assert_eq!(received, per_socket, "{spread:?} at {listen} from {from}");
                }
            }
        });
    }

    #[test]
    fn trains_arrive_whole_at_the_socket_of_their_lane() {
        in_namespace(|| {
            ip("link set lo up");
            let sockets = bind_lanes("[::]:0", 3);
            for to in [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()] {
                let to = SocketAddr::new(to, port(&sockets[0]));
                for lane in [2, 3, 1] {
                    let train = train(&[lane; 40]);
                    // From one of them: answers leave from the port that all of them have.
                    sockets[0].send_train(to, &train, 1000).unwrap();
                    let mut trains = receive(&sockets, 40);
                    assert!(trains.swap_remove(usize::from(lane) - 1) == [train]);
                    assert_eq!(trains, [[[0u8; 0]; 0]; 2]);
                }
            }
        });
    }

    /// The cable of two namespaces as a real one: a train that is sent in one piece is cut, and the
    /// receiver's network stack merges what arrives, which a veth does only without TSO at its
    /// peer.
    fn merging_cable() -> (Namespace, Namespace) {
        let (left, right) = cable();
        left.run(|| ethtool("-K veth0 tx-udp-segmentation off tso off"));
        right.run(|| ethtool("-K veth1 gro on"));
        (left, right)
    }

    /// Makes the network stack of this namespace keep what arrives at `device` for two
    /// milliseconds, in case that more arrives to merge it with.
    fn waits_to_merge(device: &str) {
        let script = format!(
            "mount -t sysfs sysfs /sys && echo 2000000 > /sys/class/net/{device}/gro_flush_timeout"
        );
        let mut command = std::process::Command::new("unshare");
        let output = command
            .args(["--mount", "sh", "-c", &script])
            .output()
            .unwrap();
        assert!(output.status.success(), "{script}: {output:?}");
    }

    fn ethtool(arguments: &str) {
        let mut command = std::process::Command::new("ethtool");
        let output = command.args(arguments.split(' ')).output().unwrap();
        assert!(output.status.success(), "ethtool {arguments}: {output:?}");
    }

    #[test]
    fn merged_trains_arrive_at_the_socket_of_their_lane() {
        let (left, right) = merging_cable();
        let sender = left.run(|| bind("[::]:0"));
        let sockets = right.run(|| bind_lanes("[::]:4789", 3));
        for lane in [2, 3, 1] {
            let train = train(&[lane; 40]);
            let report = sender
                .send_train(at("10.0.0.2:4789"), &train, 1000)
                .unwrap();
            assert_eq!(
                report,
                SendReport {
                    sent: 40,
                    ..SendReport::default()
                }
            );
            let mut trains = receive(&sockets, 40);
            let mine = trains.swap_remove(usize::from(lane) - 1);
            assert!(
                mine.concat() == train && mine.len() < 40,
                "{} trains",
                mine.len()
            );
            assert_eq!(trains, [[[0u8; 0]; 0]; 2]);
        }
    }

    #[test]
    fn a_merged_train_may_change_its_lane_in_the_middle() {
        let (left, right) = merging_cable();
        let sender = left.run(|| bind("[::]:0"));
        let sockets = right.run(|| bind_lanes("[::]:4789", 2));
        let train = train(&[2, 1, 2]);
        // Whether these are merged is the kernel's choice each time.
        let is_whole = (0..20).any(|_| {
            let report = sender.send_train(at("10.0.0.2:4789"), &train, 1000);
            assert_eq!(report.unwrap().sent, 3);
            receive(&sockets, 3) == [vec![], vec![train.clone()]]
        });
        assert!(is_whole);
    }

    #[test]
    fn different_times_to_live_keep_lanes_apart() {
        let (left, right) = merging_cable();
        left.run(|| ip("address add fd00::1/64 dev veth0 nodad"));
        right.run(|| ip("address add fd00::2/64 dev veth1 nodad"));
        left.run(wait_for_addresses);
        right.run(wait_for_addresses);
        right.run(|| waits_to_merge("veth1"));
        for (from, to) in [
            ("[::]:0", "10.0.0.2:0"),
            ("0.0.0.0:0", "10.0.0.2:0"),
            ("[::]:0", "[fd00::2]:0"),
        ] {
            // One socket: on a veth, unlike on a wire, the receiver can distinguish the senders'
            // sockets.
            let mut sender = left.run(|| bind(from));
            for is_different in [false, true] {
                let sockets = right.run(|| bind_lanes("[::]:0", 3));
                let to = SocketAddr::new(at(to).ip(), port(&sockets[0]));
                for lane in [1, 2, 3].repeat(20) {
                    let lanes_before = if is_different { lane - 1 } else { 0 };
                    sender.set_time_to_live(time_to_live(lanes_before)).unwrap();
                    sender.send_train(to, &train(&[lane as u8]), 1000).unwrap();
                }
                let trains = receive(&sockets, 60);
                let is_apart = trains
                    .iter()
                    .zip(1..)
                    .all(|(trains, lane)| trains.concat() == train(&[lane]).repeat(20));
                assert_eq!(is_apart, is_different, "from {from} to {to}");
            }
        }
    }

    #[test]
    fn lanes_have_different_times_to_live() {
        in_namespace(|| {
            for (listen, lanes) in [("0.0.0.0:0", 8), ("[::]:0", 8)] {
                for (socket, hops) in bind_lanes(listen, lanes).iter().zip((57..=64).rev()) {
                    assert_eq!(socket.socket.ttl_v4().unwrap(), hops);
                    if socket.is_ipv6 {
                        assert_eq!(socket.socket.unicast_hops_v6().unwrap(), hops);
                    }
                }
            }
        });
    }

    // Each case has a port of its own: a socket that was closed may live on for a moment in a child
    // that the thread of another test is about to start.

    #[test]
    fn one_lane_shares_its_port_with_no_socket() {
        in_namespace(|| {
            for (listen, lanes) in [
                ("0.0.0.0:1", 0),
                ("0.0.0.0:2", 1),
                ("[::]:3", 0),
                ("[::]:4", 1),
            ] {
                let sockets = UdpSocket::bind_lanes(at(listen), lanes).unwrap();
                assert_eq!(sockets.len(), 1);
                assert!(!sockets[0].socket.reuse_port().unwrap());
                assert!(is_in_use(stranger(listen, true)));
            }
        });
    }

    #[test]
    fn a_port_of_others_is_in_use_even_if_they_would_share_it() {
        in_namespace(|| {
            ip("link set lo up");
            let mut udp_port = 0;
            for address in ["127.0.0.1", "0.0.0.0", "[::]"] {
                let mut refuses_beside = |stranger: &dyn Fn(&str) -> io::Result<Socket>| {
                    udp_port += 1;
                    let listen = format!("{address}:{udp_port}");
                    let _taken = stranger(&listen).unwrap();
                    for lanes in [1, 4] {
                        let error = UdpSocket::bind_lanes(at(&listen), lanes).unwrap_err();
                        assert!(matches!(error, BindError::InUse(_)), "{error:?}");
                    }
                };
                refuses_beside(&|listen| stranger(listen, false));
                refuses_beside(&|listen| stranger(listen, true));
                refuses_beside(&|listen| as_another_user(|| stranger(listen, true)));
            }
            let _lanes = bind_lanes("[::]:4789", 4);
            let error = UdpSocket::bind_lanes(at("[::]:4789"), 4).unwrap_err();
            assert!(matches!(error, BindError::InUse(_)), "{error:?}");
        });
    }

    #[test]
    fn a_program_that_joins_later_gets_nothing() {
        in_namespace(|| {
            ip("link set lo up");
            for (listen, to) in [("0.0.0.0:1", "127.0.0.1:1"), ("[::]:2", "[::1]:2")] {
                let sockets = bind_lanes(listen, 3);
                assert!(is_in_use(as_another_user(|| stranger(listen, true))));
                assert!(is_in_use(stranger(listen, false)));
                let stranger = stranger(listen, true).unwrap();
                let sender = bind("[::]:0");
                for lane in 0..=8 {
                    let datagram = data(MessageType::Frame, lane, 0);
                    sender.send_train(at(to), &datagram, 100).unwrap();
                }
                let arrived: Vec<_> = receive(&sockets, 9).iter().map(Vec::len).collect();
                assert_eq!(arrived, [4, 3, 2], "lanes 0, 1, 4, 7; 2, 5, 8; 3, 6");
                let nothing = stranger.peek_from(&mut [std::mem::MaybeUninit::uninit()]);
                assert_eq!(nothing.unwrap_err().kind(), io::ErrorKind::WouldBlock);
            }
        });
    }

    #[test]
    fn a_kernel_without_programs_gives_one_socket_of_its_own() {
        in_namespace(|| {
            ip("link set lo up");
            script(&[(sys::faults::Call::AttachFilter, Fault::Errno(sys::EPERM))]);
            let sockets = UdpSocket::bind_lanes(at("[::]:4789"), 4).unwrap();
            finish();
            assert_eq!(sockets.len(), 1);
            assert!(is_in_use(stranger("[::]:4789", true)));
            for lane in 0..=8 {
                let datagram = data(MessageType::Frame, lane, 0);
                sockets[0]
                    .send_train(at("[::1]:4789"), &datagram, 100)
                    .unwrap();
            }
            assert_eq!(receive(&sockets, 9)[0].len(), 9);
        });
    }
}
