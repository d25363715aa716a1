// SPDX-License-Identifier: MIT OR Apache-2.0
//! Frames whose port is known, to datagrams on the wire.
//!
//! 1. number and pack   `Train::push`          in order
//! 2. seal              `Train::seal`          any order (a worker, when staged)
//! 3. send              `Departures::send`     in order again
//!
//! Each thread that sends frames has one of its own, on a lane of its own: the outbound threads, and
//! in a hub the inbound ones for what they pass on. Functions appear in this order.

use std::sync::Arc;

use patchcord_bridge::{PortId, TagEdit};

use super::{
    portion::Slot,
    shared::{Notice, Shared},
};
use crate::{
    io::udp::{SendError, UdpSocket},
    proto::{
        session::Tables,
        train::{Open, Outgoing, Pushed, Train},
    },
    queue::{Collected, Collector, Dealer},
    stats::{DropReason, Drops},
    wire::Lane,
};

/// Trains that may be filling at the same time, one for each peer that has frames in this batch.
const INLINE_TRAINS: usize = 32;
/// … where the others of the pool are at work meanwhile.
const STAGED_TRAINS: usize = 8;

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

/// The first step; with an inline outlet, all three.
pub(super) struct Dispatch {
    drops: Arc<Drops>,
    lane: Lane,
    outlet: Outlet,
    /// Trains that are filling, with their ports.
    filling: Vec<(PortId, Train)>,
    most_filling: usize,
    next_frame_id: u32,
}

impl Dispatch {
    pub(super) fn new(drops: Arc<Drops>, lane: Lane, outlet: Outlet) -> Self {
        let most_filling = match &outlet {
            Outlet::Inline { empties, .. } => empties.len(),
            Outlet::Staged(_) => STAGED_TRAINS,
        };
        Self {
            drops,
            lane,
            outlet,
            filling: Vec::with_capacity(most_filling),
            most_filling,
            next_frame_id: 0,
        }
    }

    /// The same as [`Self::push`] for the frame with another tag; it has its own again afterwards.
    pub(super) fn push_edited(
        &mut self,
        tables: &Tables,
        port: PortId,
        edit: TagEdit,
        slot: &mut Slot<'_>,
        open: Option<Open>,
    ) {
        if edit == TagEdit::Keep {
            return self.push(tables, port, slot.frame(), open);
        }
        let open = open.map(|open| open.shifted(edit.delta()));
        slot.with_edit(edit, |frame| self.push(tables, port, frame, open));
    }

    /// Lays the frame out in the train of `port`, and in further ones as they fill.
    pub(super) fn push(&mut self, tables: &Tables, port: PortId, frame: &[u8], open: Option<Open>) {
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
            if self.filling.len() == self.most_filling {
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

    /// Sends what is waiting for more.
    pub(super) fn depart_all(&mut self) {
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
    /// With trains for as many `peers` as have frames at the same time.
    pub(super) fn inline(departures: Departures, peers: usize) -> Self {
        Self::Inline {
            departures,
            empties: std::iter::repeat_with(Train::default)
                .take(peers.clamp(1, INLINE_TRAINS))
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
