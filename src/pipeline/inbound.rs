// SPDX-License-Identifier: MIT OR Apache-2.0
//! Underlay to overlay: from datagrams off the wire to frames written to the TAP.
//!
//! 1. receive a batch   `UdpSocket::recv_batch` (GRO)        in order
//! 2. parse and open    `Arrivals::open`                     any order (a worker, when staged)
//! 3. accept once       `ReplayWindow::accept`               in order again
//! 4. unpack            `Chunks`, `Reassembly::add`          in order
//! 5. choose the port   `Switch::forward`                    in order
//! 6. write             `TapQueue::write`                    in order
//!
//! Functions appear in this order. Handshake messages leave at step 2 for the control thread, if
//! their mac1 is good; control messages leave at step 4.

use std::{collections::HashMap, net::SocketAddr, os::fd::AsFd, sync::Arc};

use patchcord_bridge::{Egress, PortId};

use super::shared::{CONTROL_BYTES, Notice, Shared, Stopped, TablesCache};
use crate::{
    io::{
        tap::{TapQueue, VnetHeader},
        udp::{RecvBatch, UdpSocket},
        waker,
    },
    proto::{
        limits::CONTROL_RATE,
        reassembly::Reassembly,
        replay::ReplayWindow,
        session::{Session, Tables},
    },
    queue::{Collector, Dealer},
    stats::{DropReason, Drops},
    wire::{
        self, Counter, DATA_HEADER_LEN, DataHeader, Lane, MessageType, SessionIndex, TAG_LEN,
        chunk::{Chunk, Chunks},
    },
};

/// Receive buffers of a batch. Each may be a train of 64 datagrams.
const BATCH_BUFFERS: usize = 8;

/// What one call received, and what opening it found.
pub(super) struct Arrivals {
    batch: RecvBatch,
    /// One entry for each datagram of the batch, in its order.
    opened: Vec<Opened>,
}

/// A datagram after step 2.
#[derive(Clone, Copy)]
enum Opened {
    /// Authentic.
    Data {
        message_type: MessageType,
        receiver: SessionIndex,
        counter: Counter,
    },
    /// Dropped and counted, or on its way to the control thread.
    Gone,
}

impl Default for Arrivals {
    fn default() -> Self {
        Self {
            batch: RecvBatch::new(BATCH_BUFFERS),
            opened: Vec::with_capacity(1024),
        }
    }
}

/// Where received batches go.
pub(super) enum Inlet {
    /// Opened and delivered on the spot.
    Inline {
        arrivals: Box<Arrivals>,
        opener: Opener,
        delivery: Box<Delivery>,
    },
    /// To the workers.
    Staged(Dealer<Arrivals>),
}

/// The first step; with an inline inlet, all six.
pub(super) struct Inbound {
    shared: Arc<Shared>,
    socket: UdpSocket,
    inlet: Inlet,
}

impl Inbound {
    pub(super) fn new(shared: Arc<Shared>, socket: UdpSocket, inlet: Inlet) -> Self {
        Self {
            shared,
            socket,
            inlet,
        }
    }

    /// Works until the tunnel stops.
    pub(super) fn run(mut self) -> Stopped {
        loop {
            match waker::wait(&[self.socket.as_fd(), self.shared.stop.as_fd()], None) {
                Ok(ready) if ready.is_readable(1) => return Stopped::Asked,
                Ok(_) => {}
                Err(error) => return Stopped::Failed(error),
            }
            if let Err(error) = self.receive_batch() {
                return Stopped::Failed(error);
            }
        }
    }

    fn receive_batch(&mut self) -> std::io::Result<()> {
        match &mut self.inlet {
            Inlet::Inline {
                arrivals,
                opener,
                delivery,
            } => {
                self.socket.recv_batch(&mut arrivals.batch)?;
                opener.open(arrivals);
                delivery.deliver(arrivals);
            }
            Inlet::Staged(dealer) => {
                let Some(mut arrivals) = dealer.empty() else {
                    return Ok(());
                };
                self.socket.recv_batch(&mut arrivals.batch)?;
                // Fails only when the workers are gone, and then the tunnel is being stopped.
                let _ = dealer.deal(arrivals);
            }
        }
        Ok(())
    }
}

/// Step 2.
pub(super) struct Opener {
    shared: Arc<Shared>,
    tables: TablesCache,
    drops: Arc<Drops>,
}

impl Opener {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self {
            tables: shared.subscribe(),
            drops: shared.new_drops(),
            shared,
        }
    }

    pub(super) fn open(&mut self, arrivals: &mut Arrivals) {
        // Loaded after the datagrams were received: a session is published before the message that
        // makes the peer use it is sent.
        let tables = self.tables.load();
        arrivals.opened.clear();
        for mut received in arrivals.batch.iter_mut() {
            let from = received.from;
            for datagram in received.datagrams() {
                let opened = self
                    .open_one(&tables, from, datagram)
                    .unwrap_or_else(|reason| {
                        self.drops.count(reason);
                        Opened::Gone
                    });
                arrivals.opened.push(opened);
            }
        }
    }

    fn open_one(
        &self,
        tables: &Tables,
        from: SocketAddr,
        datagram: &mut [u8],
    ) -> Result<Opened, DropReason> {
        let message_type = MessageType::of(datagram)?;
        if !matches!(message_type, MessageType::Frame | MessageType::Chunks) {
            self.hand_to_control(tables, message_type, from, datagram)?;
            return Ok(Opened::Gone);
        }
        let receiver = DataHeader::parse(datagram)?.receiver();
        let session = tables
            .sessions
            .get(&receiver)
            .ok_or(DropReason::UnknownSession)?;
        let (counter, _) = session.open(datagram)?;
        Ok(Opened::Data {
            message_type,
            receiver,
            counter,
        })
    }

    /// Initiations with a good mac1 reach the control thread, and what answers an initiation of ours.
    fn hand_to_control(
        &self,
        tables: &Tables,
        message_type: MessageType,
        from: SocketAddr,
        datagram: &[u8],
    ) -> Result<(), DropReason> {
        if message_type != MessageType::Initiation
            && !tables.attempts.contains(&wire::index_of(datagram)?)
        {
            return Err(DropReason::UnknownSession);
        }
        if message_type != MessageType::CookieReply {
            self.shared.mac1.check(datagram)?;
        }
        self.shared.notify_handshake(from, datagram)
    }
}

/// What a lane of a session has received.
struct LaneState {
    session: Arc<Session>,
    window: ReplayWindow,
    reassembly: Reassembly,
    control_rate: ControlRate,
}

/// Control datagrams of the present second. One peer must not keep the control thread from the
/// others.
#[derive(Default)]
struct ControlRate {
    second: u32,
    count: u32,
}

impl ControlRate {
    fn take(&mut self, now_s: u32) -> Result<(), DropReason> {
        if self.second != now_s {
            *self = Self {
                second: now_s,
                count: 0,
            };
        }
        self.count += 1;
        if self.count > CONTROL_RATE {
            return Err(DropReason::ControlRateLimited);
        }
        Ok(())
    }
}

/// Steps 3 to 6.
pub(super) struct Delivery {
    shared: Arc<Shared>,
    tables: TablesCache,
    /// The snapshot that `lanes` was last swept for.
    swept_for: Arc<Tables>,
    lanes: HashMap<(SessionIndex, Lane), LaneState>,
    drops: Arc<Drops>,
    tap: Arc<TapQueue>,
}

impl Delivery {
    pub(super) fn new(shared: Arc<Shared>, tap: Arc<TapQueue>) -> Self {
        Self {
            tables: shared.subscribe(),
            swept_for: Arc::default(),
            lanes: HashMap::new(),
            drops: shared.new_drops(),
            shared,
            tap,
        }
    }

    /// Delivers what the workers have opened until the first step has ended.
    pub(super) fn run(mut self, mut opened: Collector<Arrivals>) {
        while let Some(mut arrivals) = opened.collect() {
            self.deliver(&mut arrivals);
            opened.give_back(arrivals);
        }
    }

    pub(super) fn deliver(&mut self, arrivals: &mut Arrivals) {
        let tables = self.tables.load();
        self.sweep(&tables);
        let now_s = self.shared.clock.seconds();
        let mut opened = arrivals.opened.iter();
        for mut received in arrivals.batch.iter_mut() {
            let from = received.from;
            for (datagram, opened) in received.datagrams().zip(&mut opened) {
                let &Opened::Data {
                    message_type,
                    receiver,
                    counter,
                } = opened
                else {
                    continue;
                };
                let arrival = Arrival {
                    message_type,
                    receiver,
                    counter,
                    from,
                };
                let plaintext = &datagram[DATA_HEADER_LEN..datagram.len() - TAG_LEN];
                if let Err(reason) = self.accept(&tables, arrival, plaintext, now_s) {
                    self.drops.count(reason);
                }
            }
        }
    }

    /// Forgets lanes of sessions that ended.
    fn sweep(&mut self, tables: &Arc<Tables>) {
        if !Arc::ptr_eq(tables, &self.swept_for) {
            self.lanes
                .retain(|(receiver, _), lane| tables.has(*receiver, &lane.session));
            self.swept_for = tables.clone();
        }
    }

    fn accept(
        &mut self,
        tables: &Tables,
        arrival: Arrival,
        plaintext: &[u8],
        now_s: u32,
    ) -> Result<(), DropReason> {
        let Arrival {
            message_type,
            receiver,
            counter,
            from,
        } = arrival;
        let lane = match self.lanes.entry((receiver, counter.lane())) {
            std::collections::hash_map::Entry::Occupied(entry) => entry.into_mut(),
            std::collections::hash_map::Entry::Vacant(entry) => {
                let session = tables
                    .sessions
                    .get(&receiver)
                    .ok_or(DropReason::UnknownSession)?;
                entry.insert(LaneState {
                    session: session.clone(),
                    window: ReplayWindow::default(),
                    reassembly: Reassembly::new(self.shared.max_frame),
                    control_rate: ControlRate::default(),
                })
            }
        };
        let newest = lane.window.accept(counter.sequence())?;
        let port = lane.session.port;
        lane.session.confirm();
        lane.session.traffic.inbound.add_datagrams(1);
        if counter.lane() == Lane::CONTROL {
            if message_type != MessageType::Chunks {
                return Err(DropReason::Malformed);
            }
            lane.control_rate.take(now_s)?;
            let mut bytes = [0; CONTROL_BYTES];
            let len = plaintext.len().min(CONTROL_BYTES);
            bytes[..len].copy_from_slice(&plaintext[..len]);
            self.shared.notify(Notice::Control {
                from,
                receiver,
                newest,
                bytes,
            });
            return Ok(());
        }
        if newest
            && tables
                .route(port)
                .is_some_and(|route| route.endpoint != Some(from))
        {
            self.shared.notify(Notice::Roamed { receiver, from });
        }
        let exit = Exit {
            shared: &self.shared,
            drops: &self.drops,
            tap: &self.tap,
            now_s,
        };
        if message_type == MessageType::Frame {
            return exit.forward(&lane.session, plaintext);
        }
        exit.unpack(lane, plaintext)
    }
}

/// An authentic datagram on its way through steps 3 and 4.
#[derive(Clone, Copy)]
struct Arrival {
    message_type: MessageType,
    receiver: SessionIndex,
    counter: Counter,
    from: SocketAddr,
}

/// What a frame needs to leave the tunnel.
struct Exit<'a> {
    shared: &'a Shared,
    drops: &'a Drops,
    tap: &'a TapQueue,
    now_s: u32,
}

impl Exit<'_> {
    fn unpack(&self, lane: &mut LaneState, plaintext: &[u8]) -> Result<(), DropReason> {
        let LaneState {
            session,
            reassembly,
            ..
        } = lane;
        for chunk in Chunks::new(plaintext) {
            let forwarded = match chunk? {
                Chunk::Frame(frame) => self.forward(session, frame),
                Chunk::Fragment(fragment, piece) => match reassembly.add(fragment, piece) {
                    Ok(Some(frame)) => self.forward(session, frame),
                    Ok(None) => Ok(()),
                    Err(reason) => Err(reason),
                },
                // Control chunks have a lane of their own.
                Chunk::EchoRequest { .. } | Chunk::EchoReply { .. } | Chunk::Close => {
                    Err(DropReason::Malformed)
                }
            };
            // One bad frame does not cost its neighbours in the datagram.
            if let Err(reason) = forwarded {
                self.drops.count(reason);
            }
        }
        let evicted = reassembly.take_evicted();
        if evicted > 0 {
            self.drops.add(DropReason::ReassemblyEvicted, evicted);
        }
        Ok(())
    }

    fn forward(&self, session: &Session, frame: &[u8]) -> Result<(), DropReason> {
        if frame.len() > self.shared.max_frame as usize {
            return Err(DropReason::Oversize);
        }
        let bytes = frame.len() as u64;
        session.traffic.inbound.add_frames(1, bytes);
        match self
            .shared
            .switch
            .forward(session.port, frame, self.now_s)?
        {
            Egress::Port(PortId::TAP) | Egress::Flood => {
                self.tap
                    .write(&VnetHeader::NONE, frame)
                    .map_err(|_| DropReason::TapWriteFailed)?;
                self.shared.tap.inbound.add_frames(1, bytes);
                Ok(())
            }
            // Split horizon: the switch never names another peer.
            Egress::Port(_) => Err(DropReason::NoPort),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_has_so_many_control_datagrams_in_a_second() {
        let mut rate = ControlRate::default();
        for second in [7, 8] {
            for _ in 0..CONTROL_RATE {
                assert_eq!(rate.take(second), Ok(()));
            }
            assert_eq!(rate.take(second), Err(DropReason::ControlRateLimited));
        }
    }
}
