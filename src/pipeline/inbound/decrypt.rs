// SPDX-License-Identifier: MIT OR Apache-2.0
//! Step 2: datagrams to authentic plaintext, in place.

use std::{sync::Arc, time::Instant};

use patchcord_bridge::PortId;

use crate::{
    io::udp::RecvBatch,
    pipeline::{
        clock,
        lanes::Shard,
        recovery::Recovery,
        shared::{DatagramPath, Shared, TablesCache},
        watchdog::Heartbeat,
    },
    proto::session::Tables,
    queue::Worker,
    stats::{DropReason, Drops},
    wire::{self, Counter, DataHeader, MessageType, SessionIndex},
};

/// The datagrams of one receive call, and the result of decrypting each.
pub(in crate::pipeline) struct RxBatch {
    pub(in crate::pipeline) batch: RecvBatch,
    /// One entry for each datagram of the batch, in its order.
    pub(super) opened: Vec<Opened>,
}

/// A datagram after step 2.
#[derive(Clone, Copy)]
pub(super) enum Opened {
    /// Authentic.
    Data {
        message_type: MessageType,
        receiver: SessionIndex,
        counter: Counter,
    },
    /// Dropped and counted, or on its way to the control thread or to the thread of its lane.
    Gone,
}

impl Default for RxBatch {
    fn default() -> Self {
        Self {
            batch: RecvBatch::adaptive(),
            opened: Vec::with_capacity(1024),
        }
    }
}

/// Step 2.
pub(in crate::pipeline) struct Decryptor {
    shared: Arc<Shared>,
    shard: Shard,
    tables: TablesCache,
    drops: Arc<Drops>,
}

impl Decryptor {
    pub(in crate::pipeline) fn new(shared: Arc<Shared>, shard: Shard) -> Self {
        Self {
            tables: shared.subscribe(),
            drops: shared.new_drops(),
            shared,
            shard,
        }
    }

    /// The work of one worker.
    pub(in crate::pipeline) fn run(mut self, worker: Worker<RxBatch>, heartbeat: &Heartbeat) {
        let mut recovery = Recovery::new(self.shared.clone());
        heartbeat.rest();
        worker.run(|rx_batch| {
            heartbeat.work();
            self.open(rx_batch, &mut recovery);
            heartbeat.rest();
        });
    }

    pub(in crate::pipeline) fn open(&mut self, rx_batch: &mut RxBatch, recovery: &mut Recovery) {
        // Loaded after the datagrams were received: a session is published before the message that
        // makes the peer use it is sent.
        let tables = self.tables.take();
        let now = clock::now();
        rx_batch.opened.clear();
        let RxBatch { batch, opened } = rx_batch;
        while recovery
            .catch(|| self.open_rest(&tables, batch, opened, now))
            .is_none()
        {
            recovery.blame(sender(&tables, batch, opened.len()));
            opened.push(Opened::Gone);
        }
        self.tables.give_back(tables);
    }

    fn open_rest(
        &self,
        tables: &Tables,
        batch: &mut RecvBatch,
        opened: &mut Vec<Opened>,
        now: Instant,
    ) {
        let mut left_out = opened.len();
        for mut received in batch.iter_mut() {
            let from = (received.from, received.to);
            for datagram in received.datagrams() {
                if left_out > 0 {
                    left_out -= 1;
                    continue;
                }
                opened.push(self.open_one(tables, from, datagram, now));
            }
        }
    }

    /// Takes a datagram that is not data: it reaches the control thread, or is dropped and counted.
    pub(in crate::pipeline) fn take_message(
        &self,
        tables: &Tables,
        from: DatagramPath,
        datagram: &mut [u8],
        now: Instant,
    ) {
        self.open_one(tables, from, datagram, now);
    }

    pub(super) fn open_one(
        &self,
        tables: &Tables,
        from: DatagramPath,
        datagram: &mut [u8],
        now: Instant,
    ) -> Opened {
        self.try_open(tables, from, datagram, now)
            .unwrap_or_else(|reason| {
                self.drops.count(reason);
                Opened::Gone
            })
    }

    fn try_open(
        &self,
        tables: &Tables,
        from: DatagramPath,
        datagram: &mut [u8],
        now: Instant,
    ) -> Result<Opened, DropReason> {
        let message_type = MessageType::of(datagram)?;
        if !matches!(message_type, MessageType::Frame | MessageType::Chunks) {
            self.hand_to_control(tables, message_type, from, datagram)?;
            return Ok(Opened::Gone);
        }
        let header = DataHeader::parse(datagram)?;
        if !self.shard.has(header.counter().lane()) {
            return Ok(Opened::Gone);
        }
        let receiver = header.receiver();
        let session = tables.session(receiver, now)?;
        let (counter, _) = session.open(datagram)?;
        Ok(Opened::Data {
            message_type,
            receiver,
            counter,
        })
    }

    /// Passes initiations with a valid mac1 to the control thread, and answers to an initiation of
    /// ours.
    fn hand_to_control(
        &self,
        tables: &Tables,
        message_type: MessageType,
        from: DatagramPath,
        datagram: &[u8],
    ) -> Result<(), DropReason> {
        if message_type != MessageType::Initiation
            && !tables.attempts.contains(&wire::index_of(datagram)?)
        {
            return Err(DropReason::UnknownSession);
        }
        if message_type != MessageType::CookieReply {
            let checked = self.shared.mac1.check(datagram);
            checked.inspect_err(|_| self.shared.note_bad_mac(from.0))?;
        }
        self.shared.notify_handshake(from, datagram)
    }
}

/// The port of the peer that sent the datagram in this position, by its receiver index.
pub(super) fn sender(tables: &Tables, batch: &mut RecvBatch, place: usize) -> Option<PortId> {
    let mut passed = 0;
    for mut received in batch.iter_mut() {
        for datagram in received.datagrams() {
            if passed == place {
                let receiver = DataHeader::parse(datagram).ok()?.receiver();
                return Some(tables.sessions.get(&receiver)?.port);
            }
            passed += 1;
        }
    }
    None
}
