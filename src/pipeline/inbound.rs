// SPDX-License-Identifier: MIT OR Apache-2.0
//! Underlay to overlay: from datagrams off the wire to frames written to the TAP.
//!
//! 1. receive a batch   `UdpSocket::recv_batch` (GRO)        in order
//!    hand other lanes' datagrams to their threads          `Handover::pass_on`
//! 2. parse and open    `Arrivals::open`                     any order (a worker, when staged)
//! 3. accept once       `ReplayWindow::accept`               in order again
//! 4. unpack            `Chunks`, `Reassembly::add`          in order
//! 5. choose the port   `Switch::forward`                    in order
//! 6. write             `TapQueue::write`                    in order
//!    or, in a hub, send to another peer: see `Dispatch`
//!
//! Functions appear in this order. Handshake messages leave at step 2 for the control thread, if
//! their mac1 is good; control messages leave at step 4.

use std::{
    collections::HashMap,
    os::fd::AsFd,
    sync::Arc,
    time::{Duration, Instant},
};

use patchcord_bridge::{Egress, Kind, Now, PortId, TagEdit};

use super::{
    clock,
    dispatch::{Dispatch, Outlet},
    lane_states::{LaneState, Lanes},
    lanes::{Handover, Share},
    notices::{CONTROL_BYTES, Control},
    offload::{Leaving, SIGNAL_BYTES, Signal},
    portion::Slot,
    precedence::Precedence,
    recovery::{Offender, Recovery},
    shared::{Caller, GroupsCache, IDLE, Shared, TablesCache},
    trouble::Trouble,
    view::Stopped,
    vitals::Pulse,
};
use crate::{
    io::{
        tap::{self, TapQueue},
        udp::{RecvBatch, UdpSocket},
        waker,
    },
    proto::{
        codel::Codel,
        limits::{REASSEMBLY_PATIENCE, reassembly_bytes},
        reassembly::{Reassembly, Which},
        session::{Session, Tables},
        superframe::{self, HEADER_ROOM},
    },
    queue::{Collected, Collector, Dealer, Worker},
    stats::{DropReason, Drops},
    tripwire,
    wire::{
        self, Counter, DATA_HEADER_LEN, DataHeader, Lane, MessageType, SessionIndex, TAG_LEN,
        chunk::{Chunk, Chunks},
        offload::{Checksum, Offload},
    },
};

/// What one call received, and what opening it found.
pub(super) struct Arrivals {
    pub(super) batch: RecvBatch,
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
    /// Dropped and counted, or on its way to the control thread or that of its lane.
    Gone,
}

impl Default for Arrivals {
    fn default() -> Self {
        Self {
            batch: RecvBatch::adaptive(),
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
    /// None if this thread has every lane.
    handover: Option<Handover>,
    inlet: Inlet,
}

impl Inbound {
    pub(super) fn new(
        shared: Arc<Shared>,
        socket: UdpSocket,
        handover: Option<Handover>,
        inlet: Inlet,
    ) -> Self {
        Self {
            shared,
            socket,
            handover,
            inlet,
        }
    }

    /// Works until the tunnel stops.
    pub(super) fn run(mut self, nice: i32, pulse: &Pulse) -> Stopped {
        let mut patience = Some(IDLE);
        let mut precedence = Precedence::of_this_thread(nice);
        let mut recovery = Recovery::new(self.shared.clone());
        let mut trouble = Trouble::default();
        loop {
            pulse.rest();
            let (socket, stop) = (self.socket.as_fd(), self.shared.stop.as_fd());
            let ready = match &self.handover {
                None => waker::wait(&[socket, stop], patience),
                Some(handover) => handover.wait(socket, stop, patience),
            };
            pulse.work();
            let outcome = match ready {
                Ok(ready) if ready.is_readable(1) => return Stopped::Asked,
                Ok(ready) if ready.is_timeout() => Ok(self.give_up_waiting(&mut recovery)),
                Ok(_) => self.receive_batch(&mut precedence, &mut recovery),
                Err(error) => Err(error),
            };
            match outcome {
                Ok(is_waiting) => {
                    trouble.is_over();
                    patience = Some(patience_for(is_waiting));
                }
                Err(error) => {
                    if let Err(stopped) = trouble.bear(error, &self.shared) {
                        return stopped;
                    }
                }
            }
        }
    }

    /// Nothing came for a while.
    fn give_up_waiting(&mut self, recovery: &mut Recovery) -> bool {
        match &mut self.inlet {
            Inlet::Inline { delivery, .. } => delivery.forward_incomplete(recovery),
            // Whoever collects does this.
            Inlet::Staged(_) => false,
        }
    }

    /// True if frames wait for missing pieces.
    fn receive_batch(
        &mut self,
        precedence: &mut Precedence,
        recovery: &mut Recovery,
    ) -> std::io::Result<bool> {
        match &mut self.inlet {
            Inlet::Inline {
                arrivals,
                opener,
                delivery,
            } => {
                if let Some(handover) = &self.handover
                    && handover.take_in(&mut arrivals.batch)
                {
                    delivery.open_and_deliver(opener, arrivals, None, recovery);
                }
                self.socket.recv_batch(&mut arrivals.batch)?;
                if let Some(handover) = &self.handover {
                    handover.pass_on(&mut arrivals.batch);
                }
                let is_full = Some(arrivals.batch.is_full());
                let is_waiting = delivery.open_and_deliver(opener, arrivals, is_full, recovery);
                if arrivals.batch.has_some() {
                    precedence.observe(std::mem::take(&mut delivery.has_bulk));
                }
                Ok(is_waiting)
            }
            Inlet::Staged(dealer) => {
                let Some(mut arrivals) = dealer.empty() else {
                    return Ok(false);
                };
                let received = self.socket.recv_batch(&mut arrivals.batch);
                // Also one in which nothing came, as batches go round. Fails only when the workers are gone, and then the tunnel is being stopped.
                let _ = dealer.deal(arrivals);
                received.map(|_| false)
            }
        }
    }
}

/// Step 2.
pub(super) struct Opener {
    shared: Arc<Shared>,
    share: Share,
    tables: TablesCache,
    drops: Arc<Drops>,
}

impl Opener {
    pub(super) fn new(shared: Arc<Shared>, share: Share) -> Self {
        Self {
            tables: shared.subscribe(),
            drops: shared.new_drops(),
            shared,
            share,
        }
    }

    /// The work of one worker.
    pub(super) fn run(mut self, worker: Worker<Arrivals>, pulse: &Pulse) {
        let mut recovery = Recovery::new(self.shared.clone());
        pulse.rest();
        worker.run(|arrivals| {
            pulse.work();
            self.open(arrivals, &mut recovery);
            pulse.rest();
        });
    }

    pub(super) fn open(&mut self, arrivals: &mut Arrivals, recovery: &mut Recovery) {
        // Loaded after the datagrams were received: a session is published before the message that
        // makes the peer use it is sent.
        let tables = self.tables.load();
        let now = clock::now();
        arrivals.opened.clear();
        let Arrivals { batch, opened } = arrivals;
        while recovery
            .catch(|| self.open_rest(&tables, batch, opened, now))
            .is_none()
        {
            recovery.blame(sender(&tables, batch, opened.len()));
            opened.push(Opened::Gone);
        }
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

    fn open_one(&self, tables: &Tables, from: Caller, datagram: &mut [u8], now: Instant) -> Opened {
        self.try_open(tables, from, datagram, now)
            .unwrap_or_else(|reason| {
                self.drops.count(reason);
                Opened::Gone
            })
    }

    fn try_open(
        &self,
        tables: &Tables,
        from: Caller,
        datagram: &mut [u8],
        now: Instant,
    ) -> Result<Opened, DropReason> {
        let message_type = MessageType::of(datagram)?;
        if !matches!(message_type, MessageType::Frame | MessageType::Chunks) {
            self.hand_to_control(tables, message_type, from, datagram)?;
            return Ok(Opened::Gone);
        }
        let header = DataHeader::parse(datagram)?;
        if !self.share.has(header.counter().lane()) {
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

    /// Initiations with a good mac1 reach the control thread, and what answers an initiation of ours.
    fn hand_to_control(
        &self,
        tables: &Tables,
        message_type: MessageType,
        from: Caller,
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

type Offenders = HashMap<PortId, Offender>;

/// The port of whoever sent the datagram at this place, as far as its head tells.
fn sender(tables: &Tables, batch: &mut RecvBatch, place: usize) -> Option<PortId> {
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

/// Steps 3 to 6.
pub(super) struct Delivery {
    shared: Arc<Shared>,
    tables: TablesCache,
    groups: GroupsCache,
    /// The snapshot that `lanes` was last swept for.
    swept_for: Arc<Tables>,
    lanes: Lanes,
    drops: Arc<Drops>,
    tap: Arc<TapQueue>,
    /// In a hub: to other peers.
    dispatch: Option<Dispatch>,
    /// For a back-end without offloads, and for what goes to other peers.
    scratch: Vec<u8>,
    codel: Codel,
    /// A super-frame left since this was last reset.
    has_bulk: bool,
    /// When the present batch came.
    now: Instant,
    /// The next sender of much is told to slow down.
    must_signal: bool,
    /// Peers whose frames have made this thread panic.
    offenders: Offenders,
}

/// How long to wait for the next batch.
fn patience_for(is_waiting: bool) -> Duration {
    match is_waiting {
        true => REASSEMBLY_PATIENCE,
        false => IDLE,
    }
}

/// How long segments wait for those that are missing before them.
#[derive(Clone, Copy)]
enum Patience {
    Some,
    None,
}

impl Delivery {
    /// In a hub, `outlet` leads to other peers, on a lane of its own.
    pub(super) fn new(
        shared: Arc<Shared>,
        tap: Arc<TapQueue>,
        outlet: Option<(Lane, Outlet)>,
    ) -> Self {
        let drops = shared.new_drops();
        let dispatch = outlet.map(|(lane, outlet)| Dispatch::new(drops.clone(), lane, outlet));
        Self {
            tables: shared.subscribe(),
            groups: shared.subscribe_groups(),
            swept_for: Arc::default(),
            lanes: Lanes::default(),
            drops,
            shared,
            tap,
            dispatch,
            scratch: Vec::new(),
            codel: Codel::default(),
            has_bulk: false,
            now: clock::now(),
            must_signal: false,
            offenders: HashMap::new(),
        }
    }

    /// Delivers what the workers have opened until the first step has ended.
    pub(super) fn run(mut self, mut opened: Collector<Arrivals>, pulse: &Pulse) {
        let mut recovery = Recovery::new(self.shared.clone());
        let mut patience = Some(IDLE);
        loop {
            pulse.rest();
            let collected = opened.collect(patience);
            pulse.work();
            let is_waiting = match collected {
                Collected::Batch(mut arrivals) => {
                    let is_waiting = self.deliver(&mut arrivals, &mut recovery);
                    opened.give_back(arrivals);
                    is_waiting
                }
                Collected::Timeout => self.forward_incomplete(&mut recovery),
                Collected::Ended => return,
            };
            patience = Some(patience_for(is_waiting));
        }
    }

    /// True if frames wait for missing pieces.
    pub(super) fn deliver(&mut self, arrivals: &mut Arrivals, recovery: &mut Recovery) -> bool {
        let tables = self.tables.load();
        let Arrivals { batch, opened } = arrivals;
        self.begin(&tables, Some(batch.is_full()));
        let open = |place: usize, _, _: &mut [u8]| opened.get(place).map_or(Opened::Gone, |it| *it);
        self.deliver_all(&tables, batch, open, recovery);
        self.end(&tables, recovery)
    }

    /// Steps 2 to 6 for each datagram in turn: it is still in the cache when it is delivered, and
    /// the first one does not wait for the last.
    pub(super) fn open_and_deliver(
        &mut self,
        opener: &mut Opener,
        arrivals: &mut Arrivals,
        is_full: Option<bool>,
        recovery: &mut Recovery,
    ) -> bool {
        let tables = self.tables.load();
        self.begin(&tables, is_full);
        let arrived = self.now;
        let open = |_, from, datagram: &mut [u8]| opener.open_one(&tables, from, datagram, arrived);
        self.deliver_all(&tables, &mut arrivals.batch, open, recovery);
        self.end(&tables, recovery)
    }

    /// Delivers each datagram of a batch; one that panics is left out.
    fn deliver_all(
        &mut self,
        tables: &Tables,
        batch: &mut RecvBatch,
        mut open: impl FnMut(usize, Caller, &mut [u8]) -> Opened,
        recovery: &mut Recovery,
    ) {
        let now = self.shared.clock.now();
        let mut next = 0;
        while recovery
            .catch(|| self.deliver_rest(tables, batch, &mut open, &mut next, now))
            .is_none()
        {
            let from = self.recover().or_else(|| sender(tables, batch, next));
            self.note_offence(from, recovery);
            next += 1;
        }
    }

    /// Delivers the datagrams from the one at `next` on, which is always the one in hand.
    fn deliver_rest(
        &mut self,
        tables: &Tables,
        batch: &mut RecvBatch,
        open: &mut impl FnMut(usize, Caller, &mut [u8]) -> Opened,
        next: &mut usize,
        now: Now,
    ) {
        let mut place = 0;
        for mut received in batch.iter_mut() {
            let from = (received.from, received.to);
            for datagram in received.datagrams() {
                if place == *next {
                    let opened = open(place, from, datagram);
                    self.deliver_one(tables, from, opened, datagram, now);
                    *next += 1;
                }
                place += 1;
            }
        }
    }

    /// Makes new what a panic may have left half done. Whose frame it was, if a lane had one in hand.
    ///
    /// Its replay window stays: what it has accepted must not be accepted again.
    fn recover(&mut self) -> Option<PortId> {
        if let Some(dispatch) = &mut self.dispatch {
            dispatch.recover();
        }
        let max_frame = self.shared.max_frame;
        let lane = self.lanes.values_mut().find(|lane| lane.is_busy)?;
        lane.is_busy = false;
        lane.reassembly = Reassembly::new(max_frame);
        Some(lane.session.port)
    }

    fn note_offence(&mut self, from: Option<PortId>, recovery: &mut Recovery) {
        recovery.blame(from);
        let Some(port) = from else { return };
        let offender = self.offenders.entry(port).or_default();
        if !offender.add(clock::now()) {
            return;
        }
        let lanes = self.lanes.values_mut();
        for lane in lanes.filter(|lane| lane.session.port == port) {
            lane.refused_until = offender.refused_until;
        }
    }

    /// After a batch. True if frames wait for missing pieces.
    fn end(&mut self, tables: &Tables, recovery: &mut Recovery) -> bool {
        self.leave(tables, Patience::Some, recovery)
    }

    fn leave(&mut self, tables: &Tables, patience: Patience, recovery: &mut Recovery) -> bool {
        let left = recovery.catch(|| {
            let is_waiting = self.forward_left_behind(tables, patience);
            self.depart();
            is_waiting
        });
        left.unwrap_or_else(|| {
            let from = self.recover();
            self.note_offence(from, recovery);
            // Of other lanes something may.
            true
        })
    }

    fn depart(&mut self) {
        if let Some(dispatch) = &mut self.dispatch {
            dispatch.depart_all();
        }
    }

    /// Before a batch. A full one means that the socket may have had more; `None` is one that came
    /// from another thread.
    fn begin(&mut self, tables: &Arc<Tables>, is_full: Option<bool>) {
        self.sweep(tables);
        self.now = clock::now();
        if let Some(dispatch) = &mut self.dispatch {
            dispatch.begin(self.now);
        }
        self.must_signal = match is_full {
            Some(true) => self.codel.observe(self.now, true) || self.must_signal,
            Some(false) => self.codel.observe(self.now, false),
            None => self.must_signal,
        };
    }

    fn deliver_one(
        &mut self,
        tables: &Tables,
        from: Caller,
        opened: Opened,
        datagram: &[u8],
        now: Now,
    ) {
        let Opened::Data {
            message_type,
            receiver,
            counter,
        } = opened
        else {
            return;
        };
        let arrival = Arrival {
            message_type,
            receiver,
            counter,
            from,
        };
        let plaintext = &datagram[DATA_HEADER_LEN..datagram.len() - TAG_LEN];
        if let Err(reason) = self.accept(tables, arrival, plaintext, now) {
            self.drops.count(reason);
        }
    }

    /// Forgets lanes of sessions that ended.
    fn sweep(&mut self, tables: &Arc<Tables>) {
        if !Arc::ptr_eq(tables, &self.swept_for) {
            self.lanes
                .retain(|receiver, lane| tables.has(receiver, &lane.session));
            self.swept_for = tables.clone();
        }
    }

    fn accept(
        &mut self,
        tables: &Tables,
        arrival: Arrival,
        plaintext: &[u8],
        now: Now,
    ) -> Result<(), DropReason> {
        let Arrival {
            receiver, counter, ..
        } = arrival;
        let arrived = self.now;
        let (mut exit, lanes, offenders) = self.exit(tables, now);
        let key = (receiver, counter.lane());
        let (lane, unfinished) = lanes.find_or_begin(key, || {
            let session = tables
                .sessions
                .get(&receiver)
                .ok_or(DropReason::UnknownSession)?;
            let budget = reassembly_bytes(tables.routes.len(), session.agreement.remote_lanes);
            let reassembly = Reassembly::with_budget(exit.shared.max_frame, budget);
            let mut lane = LaneState::new(session.clone(), reassembly, arrived);
            lane.refused_until = offenders.get(&session.port).and_then(|it| it.refused_until);
            Ok(lane)
        })?;
        lane.is_busy = true;
        let accepted = exit.accept(lane, arrival, plaintext, arrived);
        lane.is_busy = false;
        unfinished.note(key, lane);
        accepted
    }

    /// Has the next sender of much told to slow down.
    #[cfg(fuzzing)]
    pub(super) fn insist_on_signal(&mut self) {
        self.codel.insist();
    }

    /// Nothing came for a while. True if frames go on waiting for missing pieces.
    pub(super) fn forward_incomplete(&mut self, recovery: &mut Recovery) -> bool {
        let tables = self.tables.load();
        self.sweep(&tables);
        self.leave(&tables, Patience::None, recovery)
    }

    /// What nothing will complete any more leaves as it is; `patience` says how long to hope. True if
    /// something goes on waiting.
    fn forward_left_behind(&mut self, tables: &Tables, patience: Patience) -> bool {
        let (arrived, now) = (self.now, self.shared.clock.now());
        let (mut exit, lanes, _) = self.exit(tables, now);
        lanes.look_at_unfinished(|lane| {
            lane.is_busy = true;
            let newest = lane.window.newest();
            let which = match patience {
                // Other lanes may go on while nothing comes on this one.
                Patience::Some if arrived < lane.last_arrival + REASSEMBLY_PATIENCE => {
                    Which::LeftBehind(newest)
                }
                _ => Which::All,
            };
            exit.forward_runs(lane, which);
            lane.reassembly.forget(newest);
            lane.is_busy = false;
            let evicted = lane.reassembly.take_evicted();
            let lost = lane.reassembly.take_lost_segments();
            if evicted + lost > 0 {
                exit.drops.add(DropReason::ReassemblyEvicted, evicted);
                exit.drops.add(DropReason::SegmentLost, lost);
            }
            lane.reassembly.is_waiting()
        })
    }

    /// The way out of the tunnel, and apart from it the lanes that frames come from.
    fn exit<'a>(
        &'a mut self,
        tables: &'a Tables,
        now: Now,
    ) -> (Exit<'a>, &'a mut Lanes, &'a Offenders) {
        let exit = Exit {
            shared: &self.shared,
            tables,
            groups: &mut self.groups,
            drops: &self.drops,
            tap: &self.tap,
            dispatch: self.dispatch.as_mut(),
            scratch: &mut self.scratch,
            must_signal: &mut self.must_signal,
            has_bulk: &mut self.has_bulk,
            now,
        };
        (exit, &mut self.lanes, &self.offenders)
    }
}

/// An authentic datagram on its way through steps 3 and 4.
#[derive(Clone, Copy)]
struct Arrival {
    message_type: MessageType,
    receiver: SessionIndex,
    counter: Counter,
    from: Caller,
}

/// What a frame needs to leave the tunnel.
struct Exit<'a> {
    shared: &'a Shared,
    tables: &'a Tables,
    groups: &'a mut GroupsCache,
    drops: &'a Drops,
    tap: &'a TapQueue,
    dispatch: Option<&'a mut Dispatch>,
    scratch: &'a mut Vec<u8>,
    must_signal: &'a mut bool,
    has_bulk: &'a mut bool,
    now: Now,
}

impl Exit<'_> {
    fn accept(
        &mut self,
        lane: &mut LaneState,
        arrival: Arrival,
        plaintext: &[u8],
        arrived: Instant,
    ) -> Result<(), DropReason> {
        let Arrival {
            message_type,
            receiver,
            counter,
            from: (from, called),
        } = arrival;
        let newest = lane.window.accept(counter.sequence())?;
        lane.last_arrival = arrived;
        let port = lane.session.port;
        lane.session.confirm();
        lane.session.traffic.inbound.add_datagrams(1);
        if counter.lane() == Lane::CONTROL {
            if message_type != MessageType::Chunks {
                return Err(DropReason::Malformed);
            }
            lane.control_rate.take(self.now.seconds)?;
            let mut bytes = [0; CONTROL_BYTES];
            let len = plaintext.len().min(CONTROL_BYTES);
            bytes[..len].copy_from_slice(&plaintext[..len]);
            let control = Control {
                from,
                called,
                receiver,
                newest,
                bytes,
            };
            self.shared.notify_control(port, control);
            return Ok(());
        }
        if lane.refused_until.is_some_and(|until| arrived < until) {
            return Err(DropReason::InternalError);
        }
        if newest
            && self
                .tables
                .route(port)
                .is_some_and(|route| route.endpoint != Some(from))
        {
            let notices = &self.shared.notices;
            notices.set_roamed(port, receiver, from, self.now);
        }
        if message_type == MessageType::Frame {
            return self.forward_small(lane, Leaving::finished(plaintext));
        }
        self.unpack(lane, counter.sequence(), plaintext);
        Ok(())
    }

    fn unpack(&mut self, lane: &mut LaneState, sequence: u64, plaintext: &[u8]) {
        for chunk in Chunks::new(plaintext) {
            let forwarded = match chunk {
                Ok(Chunk::Frame(frame)) => self.forward_small(lane, Leaving::finished(frame)),
                Ok(Chunk::OpenFrame(checksum, frame)) => self.forward_open(lane, checksum, frame),
                Ok(Chunk::Fragment(fragment, piece)) => lane
                    .reassembly
                    .add(sequence, fragment, piece)
                    .and_then(|is_whole| self.forward_if_whole(lane, is_whole)),
                Ok(Chunk::Offload(frame, offload, head)) => lane
                    .reassembly
                    .describe(sequence, frame, offload, head)
                    .and_then(|is_whole| self.forward_if_whole(lane, is_whole)),
                // Control chunks have a lane of their own.
                Ok(Chunk::EchoRequest { .. } | Chunk::EchoReply { .. } | Chunk::Close) => {
                    Err(DropReason::Malformed)
                }
                Err(reason) => Err(reason),
            };
            // One bad frame does not cost its neighbours in the datagram.
            if let Err(reason) = forwarded {
                self.drops.count(reason);
            }
        }
    }

    fn forward_open(
        &mut self,
        lane: &mut LaneState,
        checksum: Checksum,
        frame: &[u8],
    ) -> Result<(), DropReason> {
        superframe::check_checksum(frame, frame.len(), checksum)?;
        let offload = Offload {
            checksum,
            segmentation: None,
        };
        let leaving = Leaving {
            open: Some((offload, None)),
            ..Leaving::finished(frame)
        };
        self.forward_small(lane, leaving)
    }

    /// A frame that was not cut. Segments that came before it leave before it.
    fn forward_small(
        &mut self,
        lane: &mut LaneState,
        frame: Leaving<'_>,
    ) -> Result<(), DropReason> {
        if let Some(stations) = frame.head.first_chunk() {
            self.forward_runs(lane, Which::Between(stations));
        }
        self.forward(&lane.session, frame)
    }

    fn forward_if_whole(&mut self, lane: &mut LaneState, is_whole: bool) -> Result<(), DropReason> {
        if !is_whole {
            return Ok(());
        }
        if let Some(stations) = lane.reassembly.whole_stations() {
            self.forward_runs(lane, Which::Between(&stations));
        }
        let Some(whole) = lane.reassembly.take_whole() else {
            return Ok(());
        };
        let leaving = Leaving {
            open: whole.offload.map(|offload| (offload, whole.layout)),
            ..Leaving::finished(whole.frame)
        };
        self.forward(&lane.session, leaving)
    }

    /// What can be saved of super-frames with holes.
    fn forward_runs(&mut self, lane: &mut LaneState, which: Which<'_>) {
        while let Some(run) = lane.reassembly.poll_run(which) {
            let leaving = Leaving {
                head: run.headers,
                rest: run.payload,
                open: Some((run.offload, run.layout)),
            };
            if let Err(reason) = self.forward(&lane.session, leaving) {
                self.drops.count(reason);
            }
        }
    }

    fn forward(&mut self, session: &Session, frame: Leaving<'_>) -> Result<(), DropReason> {
        if frame.len() > self.shared.max_frame as usize && !frame.is_super() {
            return Err(DropReason::Oversize);
        }
        if *self.must_signal && frame.len() >= SIGNAL_BYTES {
            let mut headers = [0; HEADER_ROOM];
            let signal = frame.signalled(&mut headers);
            *self.must_signal = matches!(signal, Signal::Vain);
            return match signal {
                Signal::Marked(marked) => self.hand_over(session, marked),
                Signal::Shortened(shortened) => {
                    self.drops.count(DropReason::QueueStands);
                    self.hand_over(session, shortened)
                }
                Signal::Dropped => Err(DropReason::QueueStands),
                Signal::Vain => self.hand_over(session, frame),
            };
        }
        self.hand_over(session, frame)
    }

    fn hand_over(&mut self, session: &Session, frame: Leaving<'_>) -> Result<(), DropReason> {
        tripwire::frame(frame.head);
        *self.has_bulk |= frame.is_super();
        session.traffic.inbound.add_frames(1, frame.len() as u64);
        if self.shared.wire {
            return self.write(TagEdit::Keep, frame);
        }
        let (ingress, switch) = (session.port, &self.shared.switch);
        let decision = switch.forward(ingress, frame.head, frame.segments(), self.now)?;
        let leave = |port| switch.leave(ingress, decision.inside, port);
        if decision.kind != Kind::Data {
            let Leaving { head, rest, .. } = frame;
            if self.shared.show(ingress, &decision, head, rest) {
                return Ok(());
            }
        }
        let wanted = self.groups.egress(&decision.inside, frame.head);
        match decision.egress {
            // Somebody elsewhere wants it, or nobody.
            Egress::Port(port) if wanted.is_some_and(|wanted| !wanted.contains(port)) => Ok(()),
            Egress::Port(PortId::TAP) => match leave(PortId::TAP) {
                Ok(edit) => self.write(edit, frame),
                // Nobody misses it.
                Err(_) if decision.kind == Kind::Probe => Ok(()),
                Err(reason) => Err(reason.into()),
            },
            Egress::Port(port) => {
                let to = [(port, leave(port)?)].into_iter();
                pass_on(
                    self.dispatch.as_deref_mut(),
                    self.tables,
                    self.scratch,
                    to,
                    frame,
                );
                Ok(())
            }
            Egress::Flood => {
                // That a port has not the frame's VLAN is no loss.
                let leave = |port: PortId| {
                    let is_wanted = wanted.is_none_or(|wanted| wanted.contains(port));
                    is_wanted.then(|| leave(port).ok()).flatten()
                };
                let edit = leave(PortId::TAP);
                let peers = (1..=self.tables.routes.len() as u16).map(PortId);
                let to = peers.filter_map(|port| Some((port, leave(port)?)));
                pass_on(
                    self.dispatch.as_deref_mut(),
                    self.tables,
                    self.scratch,
                    to,
                    frame,
                );
                edit.map_or(Ok(()), |edit| self.write(edit, frame))
            }
            Egress::Nowhere => Ok(()),
        }
    }

    fn write(&mut self, edit: TagEdit, frame: Leaving<'_>) -> Result<(), DropReason> {
        let mut headers = [0; HEADER_ROOM];
        let frame = frame.edited(edit, &mut headers);
        let written = frame.write(self.tap, self.scratch);
        written.map_err(|error| drop_reason_of_write(&error))?;
        self.shared.tap.inbound.add_frames(1, frame.len() as u64);
        Ok(())
    }
}

/// What a frame is lost to when the kernel does not take it.
fn drop_reason_of_write(error: &std::io::Error) -> DropReason {
    if tap::is_too_big(error) {
        DropReason::NicMtu
    } else {
        DropReason::TapWriteFailed
    }
}

/// From peer to peer, which only a hub does.
fn pass_on(
    dispatch: Option<&mut Dispatch>,
    tables: &Tables,
    scratch: &mut Vec<u8>,
    to: impl Iterator<Item = (PortId, TagEdit)>,
    frame: Leaving<'_>,
) {
    let Some(dispatch) = dispatch else {
        return;
    };
    let mut slot = Slot::copy(scratch, &[frame.head, frame.rest]);
    for (port, edit) in to {
        dispatch.push_edited(tables, port, edit, &mut slot, frame.as_open());
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc, thread, time::Duration};

    use nix::errno::Errno;

    use super::*;
    use crate::{
        io::tap::{Backend, Tap, TapOptions},
        testing::{assert_all_refused, in_namespace, ip, refuse_to_receive},
    };

    /// Works on a thread of its own, in this namespace, where the first attempts to receive fail.
    fn receive_after(codes: &[i32], shared: &Arc<Shared>) -> (Stopped, u64) {
        let options = TapOptions {
            name: "pc-rx".to_owned(),
            backend: Backend::Vnet,
        };
        let (_, mut queues) = Tap::open(&options, 1).unwrap();
        let socket = UdpSocket::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let to = socket.local_addr().unwrap();
        let inlet = Inlet::Inline {
            arrivals: Box::default(),
            opener: Opener::new(shared.clone(), Share::ALL),
            delivery: Box::new(Delivery::new(
                shared.clone(),
                Arc::new(queues.remove(0)),
                None,
            )),
        };
        let inbound = Inbound::new(shared.clone(), socket, None, inlet);
        let caller = UdpSocket::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        caller.send_train(to, &[0xff; 40], 40).unwrap();
        let received = || {
            let drops = shared.total_drops().into_iter();
            drops.map(|(_, count)| count).sum::<u64>()
        };
        let (ended, end) = mpsc::channel();
        thread::scope(|scope| {
            scope.spawn(|| {
                refuse_to_receive(codes);
                let stopped = inbound.run(0, &Pulse::default());
                assert_all_refused();
                ended.send(stopped).unwrap();
            });
            let deadline = clock::now() + Duration::from_secs(30);
            let stopped = loop {
                let stopped = end.recv_timeout(Duration::from_millis(5));
                if received() > 0 || stopped.is_ok() {
                    shared.stop.wake();
                    break stopped.unwrap_or_else(|_| end.recv().unwrap());
                }
                assert!(clock::now() < deadline, "it goes on or ends");
            };
            (stopped, received())
        })
    }

    #[test]
    fn what_may_pass_does_not_end_a_thread() {
        in_namespace(|| {
            ip("link set lo up");
            // Some that nobody has thought of among them.
            let codes = [Errno::ENOMEM, Errno::ENFILE, Errno::EIO, Errno::EREMOTEIO];
            let codes = codes.map(|code| code as i32);
            let (stopped, received) = receive_after(&codes, &Shared::alone());
            assert!(matches!(stopped, Stopped::Asked), "{stopped:?}");
            assert_eq!(received, 1);
        });
    }

    #[test]
    fn a_mistake_of_ours_ends_a_thread_and_is_told() {
        in_namespace(|| {
            ip("link set lo up");
            let (stopped, received) = receive_after(&[Errno::EBADF as i32], &Shared::alone());
            assert!(matches!(stopped, Stopped::Failed(_)), "{stopped:?}");
            assert_eq!(received, 0);
        });
    }
}
