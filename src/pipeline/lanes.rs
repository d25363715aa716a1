// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which inbound thread a lane belongs to, and how datagrams that arrive elsewhere reach it.
//!
//! A lane's replay window and unfinished frames belong to one thread, whose socket receives the
//! lane's datagrams. There are exceptions: the network stack may merge datagrams of several lanes
//! into one train, and then considers only the first of them. The thread that receives such a train
//! copies the datagrams of other threads into their inboxes, still sealed. A thread that owns all
//! that it receives pays for this with a check of each datagram's lane, and of an empty inbox for
//! each batch.
//!
//! No thread waits for another one: a full inbox drops. Datagrams keep the order in which they pass
//! through an inbox, but not relative to those that arrive on the owner's own socket meanwhile.
//! Senders that run this program do not mix lanes in a train; see `io::udp`.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
    sync::Arc,
    time::Duration,
};

use crossbeam_channel::{Receiver, Sender, bounded};

use super::shared::DatagramPath;
use crate::{
    io::{
        udp::{RecvBatch, Spread},
        waker::{self, Ready, Waker},
    },
    queue::{Mailbox, MailboxSender, mailbox},
    stats::{DropReason, Drops},
    wire::{DataHeader, Lane, MessageType},
};

/// Items that wait for one thread; each is as long as a train at most.
const DEPTH: usize = 32;

/// The lanes of one inbound thread.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shard {
    place: usize,
    spread: Spread,
}

impl Shard {
    /// The only thread has every lane.
    pub(super) const ALL: Self = Self {
        place: 0,
        spread: Spread::ONE,
    };

    /// Whether the lane belongs to this thread.
    pub(super) fn has(self, lane: Lane) -> bool {
        self.owner(lane) == self.place
    }

    /// The position of a lane's thread, which is that of the lane's socket.
    pub(super) fn owner(self, lane: Lane) -> usize {
        self.spread.place_of(lane)
    }

    /// The thread that owns `datagram`. A datagram that is not data may stay where it is.
    fn owner_of(self, datagram: &[u8]) -> usize {
        match MessageType::of(datagram) {
            Ok(MessageType::Frame | MessageType::Chunks) => DataHeader::parse(datagram)
                .map_or(self.place, |header| self.owner(header.counter().lane())),
            _ => self.place,
        }
    }
}

/// Datagrams of one sender, back to back, that belong to one thread.
struct WorkItem {
    from: DatagramPath,
    stride: usize,
    bytes: Vec<u8>,
}

/// The sending half of the queues between the threads of lanes.
pub(super) struct ShardSender {
    shard: Shard,
    /// Of every thread, in the order of their positions.
    inboxes: Arc<[MailboxSender<WorkItem, Waker>]>,
    /// Buffers of consumed items, for the next ones.
    spare: Receiver<Vec<u8>>,
    drops: Arc<Drops>,
}

/// One inbound thread's connection to the others.
pub(super) struct ShardQueues {
    sender: ShardSender,
    inbox: Mailbox<WorkItem, Waker>,
    used: Sender<Vec<u8>>,
}

impl ShardQueues {
    /// One for the thread of each socket.
    pub(super) fn between(
        spread: impl Into<Spread>,
        new_drops: impl Fn() -> Arc<Drops>,
    ) -> io::Result<Vec<Self>> {
        let spread = spread.into();
        let threads = spread.sockets();
        let (used, spare) = bounded(DEPTH * threads);
        let mut senders = Vec::new();
        let mut inboxes = Vec::new();
        for _ in 0..threads {
            let (sender, inbox) = mailbox(DEPTH, Waker::new()?);
            senders.push(sender);
            inboxes.push(inbox);
        }
        let senders: Arc<[_]> = senders.into();
        let all_queues = inboxes.into_iter().enumerate().map(|(place, inbox)| Self {
            sender: ShardSender {
                shard: Shard { place, spread },
                inboxes: Arc::clone(&senders),
                spare: spare.clone(),
                drops: new_drops(),
            },
            inbox,
            used: used.clone(),
        });
        Ok(all_queues.collect())
    }

    pub(super) fn shard(&self) -> Shard {
        self.sender.shard
    }

    /// The sending half for a thread that has no lane.
    pub(super) fn sender(&self, drops: Arc<Drops>) -> ShardSender {
        let spread = self.sender.shard.spread;
        ShardSender {
            shard: Shard {
                place: spread.sockets(),
                spread,
            },
            inboxes: Arc::clone(&self.sender.inboxes),
            spare: self.sender.spare.clone(),
            drops,
        }
    }

    /// Waits for the two descriptors, which are at 0 and 1 of the answer, and for datagrams that
    /// others have received for this thread.
    pub(super) fn wait(
        &self,
        socket: BorrowedFd<'_>,
        stop: BorrowedFd<'_>,
        patience: Option<Duration>,
    ) -> io::Result<Ready> {
        let ready = waker::wait(&[socket, stop, self.inbox.waker().as_fd()], patience)?;
        if ready.is_readable(2) {
            self.inbox.acknowledge();
        }
        Ok(ready)
    }

    /// Fills `batch` with datagrams that others have received for this thread. False if there are
    /// none.
    pub(super) fn receive(&self, batch: &mut RecvBatch) -> bool {
        if self.inbox.is_empty() {
            return false;
        }
        batch.clear();
        while batch.has_room() {
            let Some(item) = self.inbox.take() else {
                return true;
            };
            batch.push(item.from, item.stride, &item.bytes);
            // There is room for every buffer.
            let _ = self.used.try_send(item.bytes);
        }
        // The rest follows after a check of the socket.
        self.inbox.rewake();
        true
    }

    /// Passes on datagrams that were received for others. They stay in `batch`, and the decryptor
    /// skips them.
    pub(super) fn send_others(&self, batch: &mut RecvBatch) {
        if self.sender.shard.spread != Spread::ONE {
            self.sender.send_others(batch);
        }
    }
}

impl ShardSender {
    pub(super) fn shard(&self) -> Shard {
        self.shard
    }

    fn send_others(&self, batch: &mut RecvBatch) {
        for mut received in batch.iter_mut() {
            let (from, stride) = ((received.from, received.to), received.stride);
            let train = &*received.bytes();
            let mut begin = 0;
            while begin < train.len() {
                let owner = self.shard.owner_of(&train[begin..]);
                let mut end = begin;
                while end < train.len() && self.shard.owner_of(&train[end..]) == owner {
                    end = (end + stride).min(train.len());
                }
                if owner != self.shard.place {
                    self.send(owner, from, stride, &train[begin..end]);
                }
                begin = end;
            }
        }
    }

    /// Hands datagrams to the thread in this position.
    pub(super) fn send(&self, owner: usize, from: DatagramPath, stride: usize, datagrams: &[u8]) {
        let inbox = &self.inboxes[owner];
        let count = || datagrams.len().div_ceil(stride) as u64;
        if inbox.is_full() {
            return self.drops.add(DropReason::LaneQueueFull, count());
        }
        let mut bytes = self.spare.try_recv().unwrap_or_default();
        bytes.clear();
        bytes.extend_from_slice(datagrams);
        let item = WorkItem {
            from,
            stride,
            bytes,
        };
        if !inbox.send(item) {
            self.drops.add(DropReason::LaneQueueFull, count());
        }
    }
}

#[cfg(test)]
mod tests {
    use zerocopy::IntoBytes;

    use super::*;
    use crate::wire::{Counter, SessionIndex};

    const FROM: ([u8; 4], u16) = ([192, 0, 2, 1], 1);

    /// A train of data datagrams of these lanes, 100 bytes each.
    fn train(lanes: &[u8]) -> Vec<u8> {
        let datagram = |(&lane, sequence): (&u8, u64)| {
            let index = SessionIndex::from_low_bits(7);
            let counter = Counter::new(Lane(lane), sequence);
            let header = DataHeader::new(MessageType::Chunks, index, counter);
            [header.as_bytes(), &[lane; 100 - 12]].concat()
        };
        lanes.iter().zip(0..).flat_map(datagram).collect()
    }

    fn batch(train: &[u8]) -> RecvBatch {
        let mut batch = RecvBatch::new(2);
        batch.clear();
        batch.push((FROM.into(), None), 100, train);
        batch
    }

    /// The lanes of the datagrams in a batch.
    fn lanes(batch: &mut RecvBatch) -> Vec<u8> {
        let lanes = |mut received: crate::io::udp::Received<'_>| {
            assert_eq!((received.from, received.stride), (FROM.into(), 100));
            received
                .bytes()
                .chunks(100)
                .map(|datagram| datagram[99])
                .collect::<Vec<_>>()
        };
        batch.iter_mut().flat_map(lanes).collect()
    }

    #[test]
    fn every_lane_has_one_owner() {
        for (bulk, express) in (1..=8).flat_map(|bulk| [(bulk, false), (bulk, true)]) {
            let spread = Spread { bulk, express };
            for lane in 0..=16 {
                let shares = (0..spread.sockets()).map(|place| Shard { place, spread });
                let owners: Vec<_> = shares.filter(|shard| shard.has(Lane(lane))).collect();
                let place = match lane {
                    9 | 10 if express => bulk,
                    _ => usize::from(lane.max(1) - 1) % bulk,
                };
                assert!(
                    matches!(owners[..], [Shard { place: owner, .. }] if owner == place),
                    "lane {lane} of {spread:?}: {owners:?}"
                );
            }
        }
    }

    #[test]
    fn datagrams_reach_the_thread_of_their_lane_in_order() {
        let drops = Arc::<Drops>::default();
        let all_queues = ShardQueues::between(3, || drops.clone()).unwrap();
        // Lane 4 is the first thread's again, and lane 0 is too.
        let mut mixed = batch(&train(&[2, 3, 3, 1, 6, 2, 0, 4, 5]));
        for _ in 0..2 {
            all_queues[0].send_others(&mut mixed);
        }
        let mut taken = RecvBatch::new(2);
        assert!(
            !all_queues[0].receive(&mut taken),
            "its own stay where they are"
        );
        let mut all = |place: usize| {
            let mut all = Vec::new();
            while all_queues[place].receive(&mut taken) {
                all.extend(lanes(&mut taken));
            }
            all
        };
        assert_eq!(all(1), [2, 2, 5, 2, 2, 5]);
        assert_eq!(all(2), [3, 3, 6, 3, 3, 6]);
        assert_eq!(drops.nonzero().count(), 0);
    }

    #[test]
    fn datagrams_that_are_not_data_or_cut_off_stay() {
        let all_queues = ShardQueues::between(2, Arc::default).unwrap();
        let mut other = train(&[2]);
        other[0] = 0x11;
        all_queues[0].send_others(&mut batch(&other));
        all_queues[0].send_others(&mut batch(&train(&[2])[..11]));
        all_queues[0].send_others(&mut batch(&[]));
        assert!(!all_queues[1].receive(&mut RecvBatch::new(1)));
    }

    #[test]
    fn a_full_inbox_drops_and_counts_and_wakes_until_it_is_empty() {
        let drops = Arc::<Drops>::default();
        let all_queues = ShardQueues::between(2, || drops.clone()).unwrap();
        let [waiting, asked] = [(); 2].map(|()| Waker::new().unwrap());
        let is_woken = || {
            let (socket, stop) = (waiting.as_fd(), asked.as_fd());
            let ready = all_queues[1].wait(socket, stop, Some(Duration::ZERO));
            ready.unwrap().is_readable(2)
        };
        assert!(!is_woken());
        for _ in 0..DEPTH + 3 {
            all_queues[0].send_others(&mut batch(&train(&[2, 2])));
        }
        assert_eq!(drops.total(DropReason::LaneQueueFull), 6);
        let mut taken = RecvBatch::new(DEPTH / 2);
        for _ in 0..2 {
            assert!(is_woken());
            assert!(all_queues[1].receive(&mut taken));
            assert_eq!(lanes(&mut taken).len(), DEPTH);
        }
        assert!(is_woken(), "once more, for nothing");
        assert!(!all_queues[1].receive(&mut taken) && !is_woken());
    }
}
