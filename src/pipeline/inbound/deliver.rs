// SPDX-License-Identifier: MIT OR Apache-2.0
//! Steps 3 to 6 for each datagram of a batch: the lanes, and recovery after a panic over a frame.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use patchcord_bridge::{Now, PortId};

use super::{
    decrypt::{Decryptor, Opened, RxBatch, sender},
    merger::Merger,
    tap_writer::TapWriter,
    unpack::{Arrival, Unpacker},
};
use crate::{
    io::{tap::TapQueue, udp::RecvBatch},
    pipeline::{
        clock,
        dispatch::{Dispatch, TrainSink},
        lane_states::{LaneState, Lanes},
        recovery::{Offender, Recovery},
        shared::{DatagramPath, GroupsCache, IDLE, Shared, SwitchCache, TablesCache},
        watchdog::Heartbeat,
    },
    proto::{
        codel::Codel,
        limits::{REASSEMBLY_PATIENCE, reassembly_bytes},
        reassembly::{Reassembly, Which},
        session::Tables,
    },
    queue::{Collected, Collector},
    stats::{DropReason, Drops},
    wire::{DATA_HEADER_LEN, Lane, TAG_LEN},
};

type Offenders = HashMap<PortId, Offender>;

/// Steps 3 to 6.
pub(in crate::pipeline) struct Delivery {
    shared: Arc<Shared>,
    tables: TablesCache,
    groups: GroupsCache,
    switch: SwitchCache,
    /// The snapshot that `lanes` was last swept for.
    swept_for: Arc<Tables>,
    lanes: Lanes,
    drops: Arc<Drops>,
    merger: Merger,
    /// In a hub: to other peers.
    dispatch: Option<Dispatch>,
    /// For frames to other peers.
    scratch: Vec<u8>,
    codel: Codel,
    /// A super-frame left since this was last reset.
    pub(super) has_bulk: bool,
    /// When the present batch arrived.
    now: Instant,
    /// CoDel asked for a mark: set CE on, or drop from, the next bulk flow.
    must_signal: bool,
    /// Peers whose frames have made this thread panic.
    offenders: Offenders,
}

/// How long to wait for the next batch.
pub(super) fn patience_for(is_waiting: bool) -> Duration {
    match is_waiting {
        true => REASSEMBLY_PATIENCE,
        false => IDLE,
    }
}

/// How long segments wait for missing ones before them.
#[derive(Clone, Copy)]
enum Patience {
    Some,
    None,
}

impl Delivery {
    /// In a hub, `sink` leads to other peers, on a lane of its own.
    pub(in crate::pipeline) fn new(
        shared: Arc<Shared>,
        tap: Arc<TapQueue>,
        sink: Option<(Lane, TrainSink)>,
    ) -> Self {
        let drops = shared.new_drops();
        let dispatch = sink.map(|(lane, sink)| {
            Dispatch::new(drops.clone(), lane, sink).lowering_mss(shared.lowers_mss)
        });
        let now = clock::now();
        Self {
            merger: Merger::new(shared.clone(), drops.clone(), tap, now),
            tables: shared.subscribe(),
            groups: shared.subscribe_groups(),
            switch: shared.subscribe_switch(),
            swept_for: Arc::default(),
            lanes: Lanes::default(),
            drops,
            shared,
            dispatch,
            scratch: Vec::new(),
            codel: Codel::default(),
            has_bulk: false,
            now,
            must_signal: false,
            offenders: HashMap::new(),
        }
    }

    /// Delivers what the workers have decrypted until the first step has ended.
    pub(in crate::pipeline) fn run(
        mut self,
        mut opened: Collector<RxBatch>,
        heartbeat: &Heartbeat,
    ) {
        let mut recovery = Recovery::new(self.shared.clone());
        let mut patience = Some(IDLE);
        loop {
            heartbeat.rest();
            let collected = opened.collect(patience);
            heartbeat.work();
            let is_waiting = match collected {
                Collected::Batch(mut rx_batch) => {
                    let is_waiting = self.deliver(&mut rx_batch, &mut recovery);
                    opened.give_back(rx_batch);
                    is_waiting
                }
                Collected::Timeout => self.forward_incomplete(&mut recovery),
                Collected::Ended => return,
            };
            patience = Some(patience_for(is_waiting));
        }
    }

    /// True if frames wait for missing pieces.
    pub(in crate::pipeline) fn deliver(
        &mut self,
        rx_batch: &mut RxBatch,
        recovery: &mut Recovery,
    ) -> bool {
        let tables = self.tables.take();
        let RxBatch { batch, opened } = rx_batch;
        self.begin(&tables, Some(batch.is_full()));
        let open = |place: usize, _, _: &mut [u8]| opened.get(place).map_or(Opened::Gone, |it| *it);
        self.deliver_all(&tables, batch, open, recovery);
        self.end(tables, recovery)
    }

    /// Steps 2 to 6 for each datagram in turn: it is still in the cache when it is delivered, and
    /// the first one does not wait for the last.
    pub(in crate::pipeline) fn open_and_deliver(
        &mut self,
        decryptor: &mut Decryptor,
        rx_batch: &mut RxBatch,
        is_full: Option<bool>,
        recovery: &mut Recovery,
    ) -> bool {
        let tables = self.tables.take();
        self.begin(&tables, is_full);
        let arrived = self.now;
        let open =
            |_, from, datagram: &mut [u8]| decryptor.open_one(&tables, from, datagram, arrived);
        self.deliver_all(&tables, &mut rx_batch.batch, open, recovery);
        self.end(tables, recovery)
    }

    /// Delivers each datagram of a batch; one that panics is left out.
    fn deliver_all(
        &mut self,
        tables: &Tables,
        batch: &mut RecvBatch,
        mut open: impl FnMut(usize, DatagramPath, &mut [u8]) -> Opened,
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
        open: &mut impl FnMut(usize, DatagramPath, &mut [u8]) -> Opened,
        next: &mut usize,
        now: Now,
    ) {
        let mut place = 0;
        for mut received in batch.iter_mut() {
            let (from, is_mergeable) = ((received.from, received.to), received.is_mergeable);
            for datagram in received.datagrams() {
                if place == *next {
                    let opened = open(place, from, datagram);
                    self.deliver_one(tables, (from, is_mergeable), opened, datagram, now);
                    *next += 1;
                }
                place += 1;
            }
        }
    }

    /// Renews what a panic may have left half done. Returns the peer whose frame it was, if a lane
    /// had one in hand.
    ///
    /// Its replay window stays: what it has accepted must not be accepted again.
    fn recover(&mut self) -> Option<PortId> {
        if let Some(dispatch) = &mut self.dispatch {
            dispatch.recover();
        }
        let max_frame = self.shared.max_frame();
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
    fn end(&mut self, tables: Arc<Tables>, recovery: &mut Recovery) -> bool {
        let is_waiting = self.leave(&tables, Patience::Some, recovery);
        self.tables.give_back(tables);
        is_waiting
    }

    fn leave(&mut self, tables: &Tables, patience: Patience, recovery: &mut Recovery) -> bool {
        let left = recovery.catch(|| {
            let is_waiting = self.forward_left_behind(tables, patience);
            self.flush();
            is_waiting
        });
        left.unwrap_or_else(|| {
            let from = self.recover();
            self.note_offence(from, recovery);
            // Frames of other lanes may still wait.
            true
        })
    }

    fn flush(&mut self) {
        self.merger.flush();
        if let Some(dispatch) = &mut self.dispatch {
            dispatch.flush_all();
        }
    }

    /// Before a batch. A full one means that the socket may have had more; `None` is for a batch
    /// from another thread.
    fn begin(&mut self, tables: &Arc<Tables>, is_full: Option<bool>) {
        self.sweep(tables);
        self.now = clock::now();
        self.merger.begin(self.now);
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
        (from, is_mergeable): (DatagramPath, bool),
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
            is_mergeable,
        };
        let plaintext = &datagram[DATA_HEADER_LEN..datagram.len() - TAG_LEN];
        if let Err(reason) = self.accept(tables, arrival, plaintext, now) {
            self.drops.count(reason);
        }
    }

    /// Removes lanes of sessions that ended.
    fn sweep(&mut self, tables: &Arc<Tables>) {
        if !Arc::ptr_eq(tables, &self.swept_for) {
            self.lanes
                .retain(|receiver, lane| tables.has(receiver, &lane.session));
            self.swept_for = tables.clone();
            if let Some(dispatch) = &mut self.dispatch {
                dispatch.forget_sessions();
            }
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
        let (mut unpacker, lanes, offenders) = self.unpacker(tables, now);
        let key = (receiver, counter.lane());
        let (lane, unfinished) = lanes.find_or_begin(key, || {
            let session = tables
                .sessions
                .get(&receiver)
                .ok_or(DropReason::UnknownSession)?;
            let budget =
                reassembly_bytes(tables.routes.len(), session.agreement.remote_lanes.count());
            let reassembly = Reassembly::with_budget(unpacker.writer.shared.max_frame(), budget);
            let mut lane = LaneState::new(counter.lane(), session.clone(), reassembly, arrived);
            lane.refused_until = offenders.get(&session.port).and_then(|it| it.refused_until);
            Ok(lane)
        })?;
        lane.is_busy = true;
        let accepted = unpacker.accept(lane, arrival, plaintext, arrived);
        lane.is_busy = false;
        unfinished.note(key, lane);
        accepted
    }

    /// Marks the next bulk flow, as if CoDel had asked for it.
    #[cfg(fuzzing)]
    pub(in crate::pipeline) fn insist_on_signal(&mut self) {
        self.codel.insist();
    }

    /// Nothing arrived for a while. True if frames still wait for missing pieces.
    pub(in crate::pipeline) fn forward_incomplete(&mut self, recovery: &mut Recovery) -> bool {
        let tables = self.tables.take();
        self.sweep(&tables);
        let is_waiting = self.leave(&tables, Patience::None, recovery);
        self.tables.give_back(tables);
        is_waiting
    }

    /// Forwards, as they are, frames that will not be completed any more; `patience` says how long
    /// to wait. True if some frame still waits.
    fn forward_left_behind(&mut self, tables: &Tables, patience: Patience) -> bool {
        let (arrived, now) = (self.now, self.shared.clock.now());
        let (mut unpacker, lanes, _) = self.unpacker(tables, now);
        lanes.poll_unfinished(|lane| {
            lane.is_busy = true;
            let newest = lane.window.newest();
            let which = match patience {
                // Other lanes may receive while nothing arrives on this one.
                Patience::Some if arrived < lane.last_arrival + REASSEMBLY_PATIENCE => {
                    Which::LeftBehind(newest)
                }
                _ => Which::All,
            };
            unpacker.forward_runs(lane, which);
            lane.reassembly.forget(newest);
            lane.is_busy = false;
            let evicted = lane.reassembly.take_evicted();
            let lost = lane.reassembly.take_lost_segments();
            if evicted + lost > 0 {
                unpacker
                    .writer
                    .drops
                    .add(DropReason::ReassemblyEvicted, evicted);
                unpacker.writer.drops.add(DropReason::SegmentLost, lost);
            }
            lane.reassembly.is_waiting()
        })
    }

    /// The path out of the tunnel, and apart from it the lanes that frames arrive on.
    fn unpacker<'a>(
        &'a mut self,
        tables: &'a Tables,
        now: Now,
    ) -> (Unpacker<'a>, &'a mut Lanes, &'a Offenders) {
        let writer = TapWriter {
            shared: &self.shared,
            tables,
            groups: &mut self.groups,
            switch: self.switch.present(),
            drops: &self.drops,
            merger: &mut self.merger,
            dispatch: self.dispatch.as_mut(),
            scratch: &mut self.scratch,
            must_signal: &mut self.must_signal,
            has_bulk: &mut self.has_bulk,
            now,
            lane: Lane::CONTROL,
        };
        (Unpacker { writer }, &mut self.lanes, &self.offenders)
    }
}
