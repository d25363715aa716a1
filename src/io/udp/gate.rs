// SPDX-License-Identifier: MIT OR Apache-2.0
//! Keeps datagrams that belong to no session from displacing those that do: the kernel puts
//! handshakes, and data with an index that no session has, into sockets of their own.
//!
//! A socket keeps the datagrams that have arrived until its thread takes them, and drops those
//! beyond its buffer. With only one socket for each lane, a sender that fills it with datagrams of
//! any kind would have those of the peers dropped too. So the program that chooses the socket of
//! each datagram also checks whether the index in its header is that of a session:
//!
//! | datagram | socket |
//! |---|---|
//! | data with the index of a session | that of its lane |
//! | handshake messages | the first of [`Gate::sockets`] |
//! | all else | the second |
//!
//! It considers only the first of the datagrams that the network stack has merged, so that both
//! sockets of the gate may also get data of a session, and a lane's socket data of none.
//!
//! Without it, for example where the kernel refuses the program, all of this goes to the socket of
//! the first lane.

use std::collections::HashSet;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;

use tracing::info;

use super::lanes::Spread;
use super::socket::UdpSocket;
use crate::io::sys::ebpf::{
    self, Instruction, Set, add, copy, end, load_length, load_word_at, look_up, set, shift_right,
    skip, skip_if, skip_if_less, store_word,
};
use crate::wire::{DATA_OVERHEAD, Lane, MessageType};

/// The socket memory that unauthenticated datagrams may take.
const UNAUTHENTICATED_BYTES: usize = 256 << 10;

/// The sockets beside those of the lanes, and the set of indices that the lanes' sockets accept.
#[derive(Debug)]
pub(crate) struct Gate {
    /// One for handshake messages, and one for datagrams that are neither handshakes nor data of a
    /// session.
    pub sockets: [UdpSocket; 2],
    /// Decides whose data gets to the lanes' sockets.
    pub filter: SessionFilter,
}

/// The indices of sessions, in a set of the kernel.
#[derive(Debug)]
pub(crate) struct SessionFilter {
    set: Set,
    present: HashSet<u32>,
}

impl SessionFilter {
    /// Makes these the indices of sessions. Data with an index that is missing here still arrives,
    /// by the socket for unauthenticated datagrams.
    pub(crate) fn admit(&mut self, indices: impl Iterator<Item = u32>) {
        let wanted: HashSet<u32> = indices.collect();
        let set = &self.set;
        // Removed indices make room for new ones.
        self.present
            .retain(|&index| wanted.contains(&index) || set.remove(index).is_err());
        for &index in &wanted {
            if !self.present.contains(&index) && set.insert(index).is_ok() {
                self.present.insert(index);
            }
        }
    }
}

impl UdpSocket {
    /// Opens the sockets of the gate, beside those of the lanes. Call it once no lane's socket will
    /// be closed any more and before [`bind_senders`](Self::bind_senders): the positions in the
    /// group are the order of binding. They receive nothing before [`Gate::restrict_to_sessions`].
    ///
    /// `capacity` is the largest number of sessions. Returns `None` if the kernel refuses.
    pub(crate) fn bind_gate(lanes: &[Self], capacity: u32) -> Option<Gate> {
        let first = lanes.first()?;
        let shared_before = first.socket.reuse_port().unwrap_or(true);
        let gate = log_refusal(first.open_gate(capacity));
        if gate.is_none() && !shared_before {
            // It can be set to its former value.
            let _ = first.socket.set_reuse_port(false);
        }
        gate
    }

    fn open_gate(&self, capacity: u32) -> io::Result<Gate> {
        // First, as the kernel may refuse this.
        let set = Set::new(capacity)?;
        let at = self.local_addr()?;
        self.socket.set_reuse_port(true)?;
        let open = || Self::bind_one(at, true).map_err(io::Error::other);
        let (handshakes, unauthenticated) = (open()?, open()?);
        unauthenticated
            .socket
            .set_recv_buffer_size(UNAUTHENTICATED_BYTES)?;
        let as_lanes = |socket: Self| Self {
            pauses: Arc::clone(&self.pauses),
            ..socket
        };
        Ok(Gate {
            sockets: [as_lanes(handshakes), as_lanes(unauthenticated)],
            filter: SessionFilter {
                set,
                present: HashSet::new(),
            },
        })
    }
}

/// Logs an error: the tunnel goes on without the gate.
fn log_refusal<T>(result: io::Result<T>) -> Option<T> {
    let log = |error: &io::Error| {
        info!(
            %error,
            "unauthenticated datagrams share the UDP receive buffers of the peers: the kernel rejected the \
             eBPF map or program that keeps them apart; grant CAP_BPF"
        );
    };
    result.inspect_err(log).ok()
}

impl Gate {
    /// From now on the lanes' sockets get only data of sessions. Returns `None`, and
    /// changes nothing, if the kernel refuses.
    pub(crate) fn restrict_to_sessions(self, spread: impl Into<Spread>) -> Option<Self> {
        let attached = ebpf::load_program(&program(spread.into(), &self.filter.set))
            .and_then(|program| ebpf::attach_to_port(self.sockets[0].as_fd(), program.as_fd()));
        log_refusal(attached).map(|()| self)
    }
}

// Registers. Loads put their result into R0 and want the datagram in R6; R7 survives them.
const R0: u8 = 0;
const R1: u8 = 1;
const R2: u8 = 2;
const R6: u8 = 6;
const HEAD: u8 = 7;
const STACK: u8 = 10;

/// Chooses the socket of a datagram.
fn program(spread: Spread, sessions: &Set) -> Vec<Instruction> {
    let first_byte = |message_type: MessageType| u32::from(message_type.first_byte());
    let (bulk, sockets) = (spread.bulk as u32, spread.sockets() as u32);
    let more = if spread.express { 2 } else { 0 };
    let mut lane = vec![
        Instruction::new(0x30, 0, 0, 0, super::lanes::LANE_OFFSET), // load a byte
        skip_if(R0, 0, 2 + more),
    ];
    if spread.express {
        lane.push(skip_if(R0, Lane::EXPRESS.0.into(), 4));
        lane.push(skip_if(R0, Lane::EXPRESS_ONWARD.0.into(), 3));
    }
    lane.extend([
        Instruction::new(0x04, R0, 0, 0, 1_u32.wrapping_neg()), // 32-bit sum
        Instruction::new(0x94, R0, 0, 0, bulk),                 // 32-bit remainder
        end(),
    ]);
    if spread.express {
        lane.extend([set(R0, bulk), end()]);
    }
    let mut data = vec![
        Instruction::new(0x54, HEAD, 0, 0, 0x00ff_ffff), // 32-bit and
        store_word(STACK, -4, HEAD),
        copy(R2, STACK),
        add(R2, 4_u32.wrapping_neg()),
    ];
    data.extend(sessions.load_into(R1));
    data.extend([look_up(), skip_if(R0, 0, lane.len())]);
    data.extend(lane);

    const DATA: usize = 12;
    let unauthenticated = DATA + data.len();
    let handshakes = unauthenticated + 2;
    let begin: [Instruction; DATA] = [
        copy(R6, R1),
        load_length(R2, R6),
        skip_if_less(R2, DATA_OVERHEAD as u32, unauthenticated - 3),
        load_word_at(0),
        copy(HEAD, R0),
        shift_right(R0, 24),
        skip_if(R0, first_byte(MessageType::Frame), DATA - 7),
        skip_if(R0, first_byte(MessageType::Chunks), DATA - 8),
        skip_if(R0, first_byte(MessageType::Initiation), handshakes - 9),
        skip_if(R0, first_byte(MessageType::Response), handshakes - 10),
        skip_if(R0, first_byte(MessageType::CookieReply), handshakes - 11),
        skip(data.len()),
    ];
    let mut program = begin.to_vec();
    program.extend(data);
    program.extend([set(R0, sockets + 1), end()]);
    program.extend([set(R0, sockets), end()]);
    program
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::os::fd::BorrowedFd;
    use std::time::Duration;

    use super::super::RecvBatch;
    use super::super::testing::{at, bind, port};
    use super::*;
    use crate::io::sys;
    use crate::io::sys::faults::{Call, Fault, finish, script};
    use crate::io::waker;
    use crate::testing::{in_namespace, ip};

    const LANES: Spread = Spread {
        bulk: 3,
        express: true,
    };
    const EXPRESS: usize = 3;
    const HANDSHAKES: usize = 4;
    const UNAUTHENTICATED: usize = 5;

    /// The lanes' sockets, that of handshakes and that of unauthenticated datagrams.
    fn behind_gate(listen: &str) -> (Vec<UdpSocket>, SessionFilter) {
        let mut sockets = UdpSocket::bind_lanes(at(listen), LANES).unwrap();
        let gate = UdpSocket::bind_gate(&sockets, 64).unwrap();
        // As in the engine, these are bound in between.
        let _senders = UdpSocket::bind_senders(&sockets, LANES, 2);
        let gate = gate.restrict_to_sessions(LANES).unwrap();
        sockets.extend(gate.sockets);
        (sockets, gate.filter)
    }

    fn datagram(first_byte: u8, index: u32, lane: u8, len: usize) -> Vec<u8> {
        let mut datagram = index.to_be_bytes().to_vec();
        datagram[0] = first_byte;
        datagram.push(lane);
        datagram.resize(len, lane);
        datagram
    }

    /// The position of the socket that gets it.
    fn place_of(sockets: &[UdpSocket], datagram: &[u8]) -> usize {
        let to = SocketAddr::new(at("127.0.0.1:0").ip(), port(&sockets[0]));
        let sender = bind("127.0.0.1:0");
        let address = sender.kernel_address(to);
        sender.socket.send_to(datagram, &address).unwrap();
        let fds: Vec<BorrowedFd<'_>> = sockets.iter().map(AsFd::as_fd).collect();
        let ready = waker::wait(&fds, Some(Duration::from_secs(20))).unwrap();
        let place = (0..fds.len()).find(|&place| ready.is_readable(place));
        let place = place.expect("it arrives");
        let mut batch = RecvBatch::new(2);
        assert_eq!(sockets[place].recv_batch(&mut batch).unwrap(), 1);
        place
    }

    #[test]
    fn only_what_belongs_to_a_session_gets_to_a_lane() {
        in_namespace(|| {
            ip("link set lo up");
            for listen in ["127.0.0.1:0", "[::]:0"] {
                let (sockets, mut list) = behind_gate(listen);
                list.admit([7, 0x00ff_ffff].into_iter());
                for (first_byte, index, lane, len, place) in [
                    (0x14, 7, 0, 28, 0),
                    (0x14, 7, 1, 100, 0),
                    (0x15, 7, 2, 1400, 1),
                    (0x15, 0x00ff_ffff, 3, 100, 2),
                    (0x15, 7, 4, 100, 0),
                    (0x15, 7, 255, 100, 2),
                    (0x14, 7, 9, 100, EXPRESS),
                    (0x15, 7, 10, 100, EXPRESS),
                    (0x15, 7, 11, 100, 1),
                    (0x14, 8, 9, 100, UNAUTHENTICATED),
                    (0x15, 8, 2, 100, UNAUTHENTICATED),
                    (0x14, 0, 1, 100, UNAUTHENTICATED),
                    (0x14, 7, 1, 27, UNAUTHENTICATED),
                    (0x14, 7, 1, 5, UNAUTHENTICATED),
                    (0x11, 7, 1, 100, HANDSHAKES),
                    (0x12, 8, 1, 100, HANDSHAKES),
                    (0x13, 9, 1, 100, HANDSHAKES),
                    (0x10, 7, 1, 100, UNAUTHENTICATED),
                    (0x16, 7, 1, 100, UNAUTHENTICATED),
                    (0x24, 7, 1, 100, UNAUTHENTICATED),
                ] {
                    let found = place_of(&sockets, &datagram(first_byte, index, lane, len));
                    assert_eq!(
                        found, place,
                        "{first_byte:#x} {index} {lane} {len} {listen}"
                    );
                }
                assert_eq!(place_of(&sockets, &[]), UNAUTHENTICATED);
            }
        });
    }

    #[test]
    fn the_set_follows_the_sessions() {
        in_namespace(|| {
            ip("link set lo up");
            let (sockets, mut list) = behind_gate("127.0.0.1:0");
            let place = |index| place_of(&sockets, &datagram(0x15, index, 2, 100));
            assert_eq!(place(7), UNAUTHENTICATED);
            list.admit([7].into_iter());
            assert_eq!([place(7), place(8)], [1, UNAUTHENTICATED]);
            list.admit([7, 8].into_iter());
            assert_eq!([place(7), place(8)], [1, 1]);
            list.admit([8].into_iter());
            assert_eq!([place(7), place(8)], [UNAUTHENTICATED, 1]);
            // More than fit: the rest count as unauthenticated until others are removed.
            list.admit(100..200);
            list.admit(300..310);
            assert_eq!(
                [place(8), place(150), place(305)],
                [UNAUTHENTICATED, UNAUTHENTICATED, 1]
            );
        });
    }

    #[test]
    fn a_flood_of_unauthenticated_datagrams_leaves_the_room_of_the_lanes() {
        in_namespace(|| {
            ip("link set lo up");
            let (sockets, mut list) = behind_gate("127.0.0.1:0");
            list.admit([7].into_iter());
            let to = SocketAddr::new(at("127.0.0.1:0").ip(), port(&sockets[0]));
            let sender = bind("127.0.0.1:0");
            let address = sender.kernel_address(to);
            // More than any socket has room for, to each lane.
            let junk = datagram(0x15, 8, 1, 1400);
            for nth in 0..30_000_u32 {
                let mut junk = junk.clone();
                junk[4] = (nth % 4) as u8;
                let _ = sender.socket.send_to(&junk, &address);
            }
            for lane in 1..=3 {
                let sent = datagram(0x15, 7, lane, 100);
                sender.socket.send_to(&sent, &address).unwrap();
                let mut batch = RecvBatch::new(8);
                let socket = &sockets[usize::from(lane) - 1];
                assert_eq!(socket.recv_batch(&mut batch).unwrap(), 1, "lane {lane}");
                assert_eq!(batch.iter_mut().next().unwrap().bytes(), sent);
            }
        });
    }

    #[test]
    fn a_kernel_without_sets_has_no_gate() {
        in_namespace(|| {
            ip("link set lo up");
            let sockets = UdpSocket::bind_lanes(at("127.0.0.1:0"), LANES).unwrap();
            script(&[(Call::LoadProgram, Fault::Errno(sys::EPERM))]);
            assert!(UdpSocket::bind_gate(&sockets, 64).is_none());
            finish();
            let data = datagram(0x15, 8, 2, 100);
            assert_eq!(place_of(&sockets, &data), 1);
        });
    }
}
