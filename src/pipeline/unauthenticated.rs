// SPDX-License-Identifier: MIT OR Apache-2.0
//! Handshakes, and datagrams of no session: a thread of its own takes them from the sockets where
//! the kernel puts them (`io::udp::Gate`), so that they take neither the time of a lane's thread
//! nor its buffer.
//!
//! Handshakes come first; other datagrams that are not data are dropped and counted. Data of a
//! session arrives here only if the network stack has merged it behind an unauthenticated datagram;
//! it goes to the thread of its lane.

use std::{io, os::fd::AsFd, sync::Arc};

use super::{
    clock,
    error_backoff::ErrorBackoff,
    inbound::Decryptor,
    lanes::ShardSender,
    shared::{IDLE, Shared, TablesCache},
    view::Stopped,
    watchdog::Heartbeat,
};
use crate::{
    io::{
        udp::{RecvBatch, UdpSocket},
        waker,
    },
    proto::session::Tables,
    stats::{DropReason, Drops},
    wire::{DataHeader, MessageType},
};

pub(super) struct Unauthenticated {
    shared: Arc<Shared>,
    /// One for handshakes, one for everything else.
    sockets: [UdpSocket; 2],
    sender: ShardSender,
    decryptor: Decryptor,
    tables: TablesCache,
    drops: Arc<Drops>,
    batch: RecvBatch,
}

impl Unauthenticated {
    pub(super) fn new(shared: Arc<Shared>, sockets: [UdpSocket; 2], sender: ShardSender) -> Self {
        Self {
            decryptor: Decryptor::new(shared.clone(), sender.shard()),
            tables: shared.subscribe(),
            drops: shared.new_drops(),
            batch: RecvBatch::adaptive(),
            sender,
            sockets,
            shared,
        }
    }

    /// Works until the tunnel stops.
    pub(super) fn run(mut self, heartbeat: &Heartbeat) -> Stopped {
        let mut backoff = ErrorBackoff::default();
        loop {
            heartbeat.rest();
            let [handshakes, others] = &self.sockets;
            let fds = [self.shared.stop.as_fd(), handshakes.as_fd(), others.as_fd()];
            let ready = waker::wait(&fds, Some(IDLE));
            heartbeat.work();
            let outcome = match ready {
                Ok(ready) if ready.is_readable(0) => return Stopped::Asked,
                Ok(_) => self.receive(),
                Err(error) => Err(error),
            };
            match outcome {
                Ok(()) => backoff.reset(),
                Err(error) => {
                    if let Err(stopped) = backoff.back_off(error, &self.shared) {
                        return stopped;
                    }
                }
            }
        }
    }

    /// A batch of each kind, so that a flood of one leaves room for the other. Also when nothing
    /// arrived, to reload old tables: see [`IDLE`].
    fn receive(&mut self) -> io::Result<()> {
        for socket in &self.sockets {
            socket.recv_batch(&mut self.batch)?;
            // Loaded after the datagrams were received: see `Decryptor::open`.
            let (tables, now) = (self.tables.present(), clock::now());
            for mut received in self.batch.iter_mut() {
                let from = (received.from, received.to);
                for datagram in received.datagrams() {
                    match owner_of_data(tables, &self.sender, datagram) {
                        Ok(Some(owner)) => {
                            self.sender.send(owner, from, datagram.len(), datagram);
                        }
                        Ok(None) => self.decryptor.take_message(tables, from, datagram, now),
                        Err(reason) => self.drops.count(reason),
                    }
                }
            }
        }
        Ok(())
    }
}

/// The position of the thread that owns it; `None` for datagrams that are not data.
fn owner_of_data(
    tables: &Tables,
    sender: &ShardSender,
    datagram: &[u8],
) -> Result<Option<usize>, DropReason> {
    let message_type = MessageType::of(datagram)?;
    if !matches!(message_type, MessageType::Frame | MessageType::Chunks) {
        return Ok(None);
    }
    let header = DataHeader::parse(datagram)?;
    match tables.sessions.contains_key(&header.receiver()) {
        true => Ok(Some(sender.shard().owner(header.counter().lane()))),
        false => Err(DropReason::UnknownSession),
    }
}
