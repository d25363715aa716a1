// SPDX-License-Identifier: MIT OR Apache-2.0
//! Overlay to underlay: from frames read off the TAP to datagrams on the wire.
//!
//! 1. take a portion    `Portion::fill`, small flows first   in order, flow by flow
//! 2. choose the ports  `Switch::forward`                    in order
//! 3. number and pack   `Train::push`                        in order
//! 4. seal              `Train::seal`                        any order (a worker, when staged)
//! 5. send              `Departures::send`                   in order again
//!
//! Functions appear in this order. What one wake-up found on the TAP is sent at once: no timer holds
//! a frame back. Nothing here waits on a peer; while sealing or sending is behind, frames wait in
//! the TAP's own queue, where the kernel drops what is too much.

use std::{os::fd::AsFd, sync::Arc};

use patchcord_bridge::{Egress, PortId};

use super::{
    clock,
    offload::{self, Signal},
    portion::Portion,
    precedence::Precedence,
    shared::{Notice, Shared, Stopped, TablesCache},
};
use crate::{
    io::{
        tap::{TapQueue, VnetHeader},
        udp::{SendError, UdpSocket},
        waker,
    },
    proto::{
        codel::Codel,
        session::Tables,
        train::{Open, Outgoing, Pushed, Train},
    },
    queue::{Collected, Collector, Dealer},
    stats::{DropReason, Drops},
    wire::Lane,
};

/// Trains that may be filling at the same time, one for each peer that has frames in this batch.
const OPEN_TRAINS: usize = 8;

/// Where full trains go.
pub(super) enum Outlet {
    /// Sealed and sent on the spot.
    Inline {
        departures: Departures,
        empties: Vec<Train>,
    },
    /// To the workers.
    Staged(Dealer<Train>),
}

/// The first three steps; with an inline outlet, all five.
pub(super) struct Outbound {
    shared: Arc<Shared>,
    tables: TablesCache,
    drops: Arc<Drops>,
    tap: Arc<TapQueue>,
    lane: Lane,
    outlet: Outlet,
    /// Trains that are filling, with their ports.
    filling: Vec<(PortId, Train)>,
    portion: Portion,
    codel: Codel,
    /// The next sender of much is told to slow down.
    must_signal: bool,
    next_frame_id: u32,
}

impl Outbound {
    pub(super) fn new(shared: Arc<Shared>, tap: Arc<TapQueue>, lane: Lane, outlet: Outlet) -> Self {
        Self {
            tables: shared.subscribe(),
            drops: shared.new_drops(),
            shared,
            tap,
            lane,
            outlet,
            filling: Vec::with_capacity(OPEN_TRAINS),
            portion: Portion::new(),
            codel: Codel::default(),
            must_signal: false,
            next_frame_id: 0,
        }
    }

    /// Works until the tunnel stops or the TAP is gone.
    pub(super) fn run(mut self, nice: i32) -> Stopped {
        let mut precedence = Precedence::of_this_thread(nice);
        loop {
            match waker::wait(&[self.tap.as_fd(), self.shared.stop.as_fd()], None) {
                Ok(ready) if ready.is_readable(1) => return Stopped::Asked,
                Ok(ready) if ready.is_broken(0) => return Stopped::TapLost,
                Ok(_) => {}
                Err(error) => return Stopped::Failed(error),
            }
            match self.forward_portion() {
                Ok(has_bulk) => precedence.observe(has_bulk),
                Err(stopped) => return stopped,
            }
        }
    }

    /// Forwards what the TAP has now, up to a portion. True if there is bulk in it.
    pub(super) fn forward_portion(&mut self) -> Result<bool, Stopped> {
        let mut portion = std::mem::take(&mut self.portion);
        let outcome = portion.fill(&self.tap).map_err(Stopped::of_tap);
        // Loaded after the frames were read: a session that is new by then may have them.
        let tables = self.tables.load();
        let now_s = self.shared.clock.seconds();
        self.must_signal = match portion.is_full() {
            true => self.codel.observe(clock::now(), true) || self.must_signal,
            false => self.codel.observe(clock::now(), false),
        };
        let first = portion.put_small_flows_first();
        for at in 0..portion.frames() as usize {
            if at == first {
                // What may overtake must not wait for the rest of its train.
                self.depart_all();
            }
            let (vnet, frame) = portion.frame(at);
            let may_signal = at >= first;
            self.forward(&tables, &vnet, frame, may_signal, now_s);
        }
        let (frames, bytes) = (portion.frames(), portion.bytes());
        self.shared.tap.outbound.add_frames(frames, bytes);
        self.depart_all();
        let has_bulk = portion.has_bulk();
        self.portion = portion;
        outcome.map(|()| has_bulk)
    }

    fn forward(
        &mut self,
        tables: &Tables,
        vnet: &VnetHeader,
        frame: &mut [u8],
        may_signal: bool,
        now_s: u32,
    ) {
        let mut leaving = match offload::opened(vnet, frame) {
            Ok(open) => (frame.len(), open),
            Err(reason) => return self.drops.count(reason),
        };
        if self.must_signal && may_signal && frame.len() >= offload::SIGNAL_BYTES {
            let signal = offload::signal(frame, leaving.1);
            self.must_signal = matches!(signal, Signal::Vain);
            match signal {
                Signal::Marked(marked) => leaving = marked,
                Signal::Shortened(shortened) => {
                    self.drops.count(DropReason::QueueStands);
                    leaving = shortened;
                }
                Signal::Dropped => return self.drops.count(DropReason::QueueStands),
                Signal::Vain => {}
            }
        }
        let (len, open) = leaving;
        let frame = &frame[..len];
        match self.shared.switch.forward(PortId::TAP, frame, now_s) {
            Ok(Egress::Port(port)) => self.push(tables, port, frame, open),
            Ok(Egress::Flood) => {
                for port in 1..=tables.routes.len() as u16 {
                    self.push(tables, PortId(port), frame, open);
                }
            }
            Err(reason) => self.drops.count(reason.into()),
        }
    }

    /// Lays the frame out in the train of `port`, and in further ones as they fill.
    fn push(&mut self, tables: &Tables, port: PortId, frame: &[u8], open: Option<Open>) {
        let frame_id = self.next_frame_id;
        self.next_frame_id = frame_id.wrapping_add(1);
        let mut outgoing = Outgoing::new(frame, frame_id, open);
        loop {
            let lane = self.lane;
            let pushed = self
                .train_for(tables, port)
                .and_then(|train| train.push(lane, &mut outgoing));
            match pushed {
                Ok(Pushed::Done) => break,
                Ok(Pushed::Full) => self.depart_one(port),
                Err(reason) => return self.drops.count(reason),
            }
        }
        if let Some(train) = self.train_of(port)
            && let Some(session) = train.session()
        {
            session.traffic.outbound.add_frames(1, frame.len() as u64);
        }
    }

    fn train_of(&mut self, port: PortId) -> Option<&mut Train> {
        self.filling
            .iter_mut()
            .find(|(owner, _)| *owner == port)
            .map(|(_, train)| train)
    }

    /// The train of `port`, a new one if need be.
    fn train_for(&mut self, tables: &Tables, port: PortId) -> Result<&mut Train, DropReason> {
        if self.train_of(port).is_none() {
            let route = tables.route(port).ok_or(DropReason::NoPort)?;
            let session = route.session.clone().ok_or(DropReason::NoSession)?;
            let to = route.endpoint.ok_or(DropReason::NoSession)?;
            if self.filling.len() == OPEN_TRAINS {
                self.depart_all();
            }
            let mut train = self.outlet.empty().ok_or(DropReason::NoPort)?;
            train.bind(session, to, route.datagram_len);
            self.filling.push((port, train));
        }
        self.train_of(port).ok_or(DropReason::NoPort)
    }

    fn depart_one(&mut self, port: PortId) {
        if let Some(place) = self.filling.iter().position(|(owner, _)| *owner == port) {
            let (_, train) = self.filling.swap_remove(place);
            self.depart(train);
        }
    }

    fn depart_all(&mut self) {
        while let Some((_, train)) = self.filling.pop() {
            self.depart(train);
        }
    }

    fn depart(&mut self, mut train: Train) {
        if let Err(reason) = train.close(self.lane) {
            self.drops.count(reason);
        }
        match &mut self.outlet {
            Outlet::Inline {
                departures,
                empties,
            } => {
                train.seal();
                departures.send(&train);
                train.clear();
                empties.push(train);
            }
            Outlet::Staged(dealer) => {
                // Fails only when the workers are gone, and then the tunnel is being stopped.
                let _ = dealer.deal(train);
            }
        }
    }
}

impl Outlet {
    pub(super) fn inline(departures: Departures) -> Self {
        Self::Inline {
            departures,
            empties: std::iter::repeat_with(Train::default)
                .take(OPEN_TRAINS)
                .collect(),
        }
    }

    fn empty(&mut self) -> Option<Train> {
        match self {
            Self::Inline { empties, .. } => empties.pop(),
            Self::Staged(dealer) => dealer.empty(),
        }
    }
}

/// The last step.
pub(super) struct Departures {
    shared: Arc<Shared>,
    drops: Arc<Drops>,
    socket: UdpSocket,
}

impl Departures {
    pub(super) fn new(shared: Arc<Shared>, socket: UdpSocket) -> Self {
        Self {
            drops: shared.new_drops(),
            shared,
            socket,
        }
    }

    /// Sends what the workers have sealed until the first step has ended.
    pub(super) fn run(mut self, mut sealed: Collector<Train>) {
        while let Collected::Batch(mut train) = sealed.collect(None) {
            self.send(&train);
            train.clear();
            sealed.give_back(train);
        }
    }

    fn send(&mut self, train: &Train) {
        let (Some(to), Some(session)) = (train.destination(), train.session()) else {
            return;
        };
        let mut sent = 0;
        for (run, size) in train.runs() {
            match self.socket.send_train(to, run, size) {
                Ok(report) => {
                    sent += report.sent as u64;
                    self.drops
                        .add(DropReason::SendFailed, report.dropped as u64);
                }
                Err(error) => {
                    self.handle_send_error(&error, session.port, run.len().div_ceil(size))
                }
            }
        }
        session.traffic.outbound.add_datagrams(sent);
    }

    fn handle_send_error(&mut self, error: &SendError, port: PortId, datagrams: usize) {
        if let SendError::TooBig { .. } = error {
            self.drops.add(DropReason::DatagramTooBig, datagrams as u64);
            self.shared.notify(Notice::TooBig { port });
        } else {
            self.drops.add(DropReason::SendFailed, datagrams as u64);
        }
    }
}
