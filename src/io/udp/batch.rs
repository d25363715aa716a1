// SPDX-License-Identifier: MIT OR Apache-2.0
//! The result of one receive call: buffers for several trains, and their datagrams one by one.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::BorrowedFd;

use crate::io::sys;
use crate::wire::local::Local;

/// The initial size of an adaptive batch. This many whole trains stay in the cache until they have
/// been decrypted and written out.
const FEW: usize = 8;

/// Bytes of a batch that the cache holds.
const CACHED_BYTES: usize = FEW << 16;

/// Buffers for [`recv_batch`](super::UdpSocket::recv_batch), allocated once; 64 KiB each, because
/// one may be a train.
pub(crate) struct RecvBatch {
    slots: sys::mmsg::Slots,
    /// Buffers that the next call may fill.
    offered: usize,
    is_adaptive: bool,
    filled: usize,
    is_full: bool,
}

impl RecvBatch {
    /// Free bytes before the received bytes, for a header in front of them.
    pub(crate) const HEADROOM: usize = sys::mmsg::HEADROOM;

    /// A batch of `buffers` buffers, from 1 to 64.
    #[cfg(test)]
    pub(crate) fn new(buffers: usize) -> Self {
        let buffers = buffers.clamp(1, sys::mmsg::MAX_BATCH);
        Self {
            slots: sys::mmsg::Slots::new(buffers),
            offered: buffers,
            is_adaptive: false,
            filled: 0,
            is_full: false,
        }
    }

    /// A batch of 8 to 64 buffers, depending on the last call: few while trains arrive, many while
    /// single datagrams arrive and queue up.
    pub(crate) fn adaptive() -> Self {
        Self {
            slots: sys::mmsg::Slots::new(sys::mmsg::MAX_BATCH),
            offered: FEW,
            is_adaptive: true,
            filled: 0,
            is_full: false,
        }
    }

    /// Fills buffers with the datagrams that have arrived, without waiting. Returns how many; none
    /// on an error.
    pub(super) fn receive(&mut self, socket: BorrowedFd<'_>) -> io::Result<usize> {
        self.filled = 0;
        self.is_full = false;
        self.filled = sys::mmsg::receive(socket, &mut self.slots, self.offered)?;
        self.is_full = self.filled == self.offered;
        if self.is_adaptive {
            let bytes = self.slots.filled_bytes(self.filled);
            self.offered = next_offer(self.offered, self.filled, bytes);
        }
        Ok(self.filled)
    }

    /// Whether anything arrived.
    pub(crate) fn has_some(&self) -> bool {
        self.filled > 0
    }

    /// Whether the socket may have had more.
    pub(crate) fn is_full(&self) -> bool {
        self.is_full
    }

    /// Empties the batch, for [`push`](Self::push).
    pub(crate) fn clear(&mut self) {
        self.filled = 0;
        self.is_full = false;
    }

    /// Whether there is a free buffer.
    pub(crate) fn has_room(&self) -> bool {
        self.filled < self.slots.len()
    }

    /// Adds datagrams that lie `stride` bytes apart and were received by another socket, if there is
    /// [room](Self::has_room).
    pub(crate) fn push(
        &mut self,
        (from, to): (SocketAddr, Option<Local>),
        stride: usize,
        train: &[u8],
    ) {
        if self.has_room() {
            self.slots.fill(self.filled, (from, to), stride, train);
            self.filled += 1;
        }
    }

    /// The datagrams of the last [`recv_batch`](super::UdpSocket::recv_batch), in the order of
    /// arrival.
    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = Received<'_>> {
        let mut before = None;
        self.slots.filled(self.filled).filter_map(move |slot| {
            let stride = slot.segment_size.max(1);
            let source = slot.source?;
            let len = slot.bytes.len() - Self::HEADROOM;
            let single = (len == stride).then_some((len, source));
            let is_mergeable = single.is_some() && single == before;
            before = single;
            Some(Received {
                from: canonical(source),
                to: slot.local,
                stride,
                is_mergeable,
                buffer: slot.bytes,
            })
        })
    }
}

/// How many buffers to offer after a call that filled `filled` of `offered` with `bytes`.
fn next_offer(offered: usize, filled: usize, bytes: usize) -> usize {
    let wanted = if filled == offered {
        offered * 2
    } else if filled < offered / 2 {
        offered / 2
    } else {
        offered
    };
    let cached = CACHED_BYTES * filled / bytes.max(1);
    wanted.min(cached).clamp(FEW, sys::mmsg::MAX_BATCH)
}

/// One received train: one or more datagrams of the same sender.
#[derive(Debug)]
pub(crate) struct Received<'a> {
    /// The sender; IPv4 senders have an IPv4 address on every socket.
    pub from: SocketAddr,
    /// The local address and interface at which it arrived, if the kernel says.
    pub to: Option<Local>,
    /// Datagrams are this far apart, the last may be shorter. At least 1, for `chunks_mut`.
    pub stride: usize,
    /// Whether it is a single datagram that GRO would have merged with the one before: of the same
    /// sender, and of the same size.
    pub is_mergeable: bool,
    buffer: &'a mut [u8],
}

impl<'a> Received<'a> {
    /// The datagrams, back to back. Empty for an empty datagram.
    pub(crate) fn bytes(&mut self) -> &mut [u8] {
        &mut self.buffer[RecvBatch::HEADROOM..]
    }

    /// The datagrams one by one.
    pub(crate) fn datagrams(&mut self) -> impl Iterator<Item = &mut [u8]> {
        let stride = self.stride;
        self.bytes().chunks_mut(stride)
    }
}

/// IPv4-mapped addresses as IPv4; scope and flow of real IPv6 addresses stay.
fn canonical(address: SocketAddr) -> SocketAddr {
    match address.ip().to_canonical() {
        IpAddr::V4(v4) => SocketAddr::new(v4.into(), address.port()),
        IpAddr::V6(_) => address,
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::bind;
    use super::*;
    use crate::testing::{in_namespace, ip};

    #[test]
    fn a_batch_grows_with_single_datagrams_and_shrinks_with_trains() {
        const TRAIN: usize = 44 * 1472;
        for (offered, filled, size, next) in [
            (8, 8, 1472, 16),
            (32, 32, 1472, 64),
            (64, 64, 1472, 64),
            (64, 64, 0, 64),
            (64, 64, 8972, 58),
            (8, 8, TRAIN, 8),
            (64, 64, TRAIN, 8),
            (64, 1, TRAIN, 8),
            (16, 16, 20_000, 26),
            // Alternating load does not change it, quieter times do.
            (32, 20, 1472, 32),
            (32, 16, 1472, 32),
            (32, 15, 1472, 16),
            (16, 1, 1472, 8),
            (8, 1, 1472, 8),
            (64, 0, 0, 8),
        ] {
            let found = next_offer(offered, filled, filled * size);
            assert_eq!(found, next, "{filled} of {offered} with {size} bytes each");
        }
    }

    #[test]
    fn a_batch_takes_what_another_socket_has_received() {
        let from = "192.0.2.1:1".parse().unwrap();
        let mut batch = RecvBatch::new(2);
        for round in 0..2u8 {
            batch.clear();
            for (stride, train) in [(2, [round; 5]), (5, [7; 5])] {
                assert!(batch.has_room());
                batch.push((from, None), stride, &train);
            }
            assert!(!batch.has_room());
            batch.push((from, None), 1, &[9]);
            let seen: Vec<_> = batch
                .iter_mut()
                .map(|mut received| {
                    let lens: Vec<_> = received
                        .datagrams()
                        .map(|datagram| datagram.len())
                        .collect();
                    (received.from, lens, received.bytes()[0])
                })
                .collect();
            assert_eq!(seen, [(from, vec![2, 2, 1], round), (from, vec![5], 7)]);
        }
    }

    #[test]
    fn single_datagrams_of_one_size_in_a_row_could_have_been_a_train() {
        let (one, other) = (
            "192.0.2.1:1".parse().unwrap(),
            "192.0.2.1:2".parse().unwrap(),
        );
        let mut batch = RecvBatch::new(9);
        for (from, stride, len, _) in RECEIVED_IN_A_ROW {
            let from = if from == 1 { one } else { other };
            batch.push((from, None), stride, &[0; 200][..len]);
        }
        let seen = batch.iter_mut().map(|received| received.is_mergeable);
        let expected = RECEIVED_IN_A_ROW.map(|(.., is_mergeable)| is_mergeable);
        assert_eq!(seen.collect::<Vec<_>>(), expected);
    }

    /// Sender, stride, length, and whether it could have been merged.
    const RECEIVED_IN_A_ROW: [(u8, usize, usize, bool); 9] = [
        (1, 100, 100, false),
        (1, 100, 100, true),
        (1, 100, 100, true),
        (1, 99, 99, false),
        (2, 99, 99, false),
        (2, 99, 99, true),
        (2, 99, 198, false),
        (2, 99, 99, false),
        (2, 99, 99, true),
    ];

    #[test]
    fn a_batch_takes_what_was_offered_and_loses_nothing() {
        in_namespace(|| {
            ip("link set lo up");
            let (sender, receiver) = (bind("127.0.0.1:0"), bind("127.0.0.1:0"));
            let to = receiver.local_addr().unwrap();
            for number in 0..200u8 {
                sender.send_train(to, &[number; 100], 100).unwrap();
            }
            for _ in 0..12 {
                sender.send_train(to, &[200; 64_000], 1000).unwrap();
            }
            let mut expected = 0..200u8;
            for (mut batch, counts) in [
                (RecvBatch::adaptive(), &[8, 16, 32, 64, 64, 28, 0][..]),
                (RecvBatch::new(3), &[0]),
            ] {
                for &count in counts {
                    assert_eq!(receiver.recv_batch(&mut batch).unwrap(), count);
                    for mut received in batch.iter_mut() {
                        let number = expected.next().unwrap_or(200);
                        assert!(received.datagrams().all(|datagram| datagram[0] == number));
                    }
                }
            }
            assert!(expected.next().is_none());
        });
    }
}
