// SPDX-License-Identifier: MIT OR Apache-2.0
//! Overlay to underlay: from frames read from the TAP to datagrams on the wire.
//!
//! 1. take a burst      `Burst::fill`, small flows first     in order, flow by flow
//! 2. choose the ports  `Switch::forward`                    in order
//! 3. edit the tag      `Switch::leave`, for each port       in order
//! 4. number, pack, seal, send: see `Dispatch`
//!
//! Functions appear in this order. The frames that one wake-up found on the TAP are sent at once:
//! no timer delays a frame. Nothing here waits for a peer; while sealing or sending is behind,
//! frames wait in the TAP's own queue, where the kernel drops the excess.

use std::{os::fd::AsFd, sync::Arc};

use patchcord_bridge::{Decision, Egress, Kind, Now, PortId, TagEdit, ethernet::Fields};

use super::{
    burst::{Arrived, Burst},
    clock,
    dispatch::{Dispatch, TrainSink},
    error_backoff::ErrorBackoff,
    express::Order,
    frame_buf::FrameBuf,
    offload::{self, DeviceFrame, Signal},
    recovery::Recovery,
    shared::{GroupsCache, IDLE, InjectedFrames, Shared, SwitchCache, TablesCache},
    slow_path::event::{InjectedFrame, To},
    thread_priority::ThreadPriority,
    view::Stopped,
    watchdog::Heartbeat,
};
use crate::{
    io::{tap::TapQueue, waker},
    proto::{codel::Codel, cut::Cut, ecn, session::Tables, train::PendingOffload},
    stats::{DropReason, Drops},
    tripwire,
    wire::Lane,
};

/// Every step of one lane.
pub(super) struct Outbound {
    shared: Arc<Shared>,
    tables: TablesCache,
    groups: GroupsCache,
    switch: SwitchCache,
    drops: Arc<Drops>,
    tap: Arc<TapQueue>,
    dispatch: Dispatch,
    burst: Burst,
    codel: Codel,
    /// CoDel asked for a mark: set CE on, or drop from, the next bulk flow.
    must_signal: bool,
    /// Frames that this node originates; the first lane sends them.
    injected: Option<InjectedFrames>,
    order: Order<Arc<TapQueue>>,
    /// Of [`TapQueue::moved_flows`].
    moved_flows: u64,
    scratch: Vec<u8>,
}

impl Outbound {
    pub(super) fn new(
        shared: Arc<Shared>,
        tap: Arc<TapQueue>,
        injected: Option<InjectedFrames>,
        lane: Lane,
        sink: TrainSink,
    ) -> Self {
        let drops = shared.new_drops();
        Self {
            tables: shared.subscribe(),
            groups: shared.subscribe_groups(),
            switch: shared.subscribe_switch(),
            dispatch: Dispatch::new(drops.clone(), lane, sink).lowering_mss(shared.lowers_mss),
            drops,
            shared,
            burst: Burst::new(tap.longest_frame()),
            tap,
            codel: Codel::default(),
            must_signal: false,
            injected,
            order: Order::None,
            moved_flows: 0,
            scratch: Vec::new(),
        }
    }

    /// The same with this part in the order between lanes.
    pub(super) fn with_order(mut self, order: Order<Arc<TapQueue>>) -> Self {
        self.order = order;
        self
    }

    /// Works until the tunnel stops or the TAP is gone.
    pub(super) fn run(mut self, nice: i32, heartbeat: &Heartbeat) -> Stopped {
        let mut priority = ThreadPriority::of_this_thread(self.shared.clone(), nice);
        let mut recovery = Recovery::new(self.shared.clone());
        let mut backoff = ErrorBackoff::default();
        loop {
            heartbeat.rest();
            let (tap, stop) = (self.tap.as_fd(), self.shared.stop.as_fd());
            let ready = match &self.injected {
                None => waker::wait(&[tap, stop], Some(IDLE)),
                Some(injected) => waker::wait(&[tap, stop, injected.waker().as_fd()], Some(IDLE)),
            };
            heartbeat.work();
            match ready {
                Ok(ready) if ready.is_readable(1) => return Stopped::Asked,
                Ok(ready) if ready.is_broken(0) && self.tap.is_lost() => return Stopped::TapLost,
                Ok(ready) if ready.is_readable(2) => self.send_injected(&mut recovery),
                Ok(_) => {}
                Err(error) => {
                    if let Err(stopped) = backoff.back_off(error, &self.shared) {
                        return stopped;
                    }
                    continue;
                }
            }
            self.order.begin();
            let forwarded = self.forward_burst(&mut recovery);
            self.order.end(forwarded.is_ok() && !self.burst.is_full());
            let outcome = match forwarded {
                Ok(has_bulk) => {
                    backoff.reset();
                    priority.observe(has_bulk);
                    continue;
                }
                Err(Stopped::Failed(error)) => backoff.back_off(error, &self.shared),
                Err(stopped) => Err(stopped),
            };
            if let Err(stopped) = outcome {
                return stopped;
            }
        }
    }

    /// Forwards the frames that the TAP has now, up to a burst. True if there is bulk among them.
    pub(super) fn forward_burst(&mut self, recovery: &mut Recovery) -> Result<bool, Stopped> {
        let mut burst = std::mem::take(&mut self.burst);
        let outcome = burst.fill(&self.tap).map_err(Stopped::of_tap);
        let moved_flows = self.tap.moved_flows();
        if moved_flows != self.moved_flows {
            self.moved_flows = moved_flows;
            self.order.let_pass();
        }
        // Loaded after the frames were read: a session that is new by then may carry them.
        let tables = self.tables.take();
        let (began, now) = (clock::now(), self.shared.clock.now());
        self.dispatch.begin(began);
        if self.tables.have_changed() {
            self.dispatch.forget_sessions();
        }
        self.must_signal = match burst.is_full() {
            true => self.codel.observe(began, true) || self.must_signal,
            false => self.codel.observe(began, false),
        };
        let (frames, bytes) = (burst.frames(), burst.bytes());
        let read = &self.shared.tap.outbound;
        read.of(self.dispatch.lane().0).add_frames(frames, bytes);
        let first = recovery.catch(|| burst.put_small_flows_first());
        if first.is_none() {
            recovery.blame(Some(PortId::TAP));
        }
        let mut next = 0;
        while recovery
            .catch(|| self.forward_rest(&tables, &mut burst, first.unwrap_or(0), &mut next, now))
            .is_none()
        {
            self.dispatch.recover();
            recovery.blame(Some(PortId::TAP));
            next += 1;
        }
        self.tables.give_back(tables);
        let has_bulk = burst.has_bulk();
        self.burst = burst;
        outcome.map(|()| has_bulk)
    }

    /// Forwards the frames from the one at `next` on, which is always the one in hand. From `first`
    /// on they are those of bulk transfers.
    fn forward_rest(
        &mut self,
        tables: &Tables,
        burst: &mut Burst,
        first: usize,
        next: &mut usize,
        now: Now,
    ) {
        while *next < burst.frames() as usize {
            if *next == first {
                // Small flows do not wait until bulk has filled their trains.
                self.dispatch.flush_all();
            }
            let frame = burst.frame(*next);
            let may_signal = *next >= first;
            if let Err(reason) = self.forward(tables, frame, may_signal, now) {
                self.drops.count(reason);
            }
            *next += 1;
        }
        self.dispatch.flush_all();
    }

    fn forward(
        &mut self,
        tables: &Tables,
        arrived: Arrived<'_>,
        may_signal: bool,
        now: Now,
    ) -> Result<(), DropReason> {
        let Arrived {
            vnet,
            fields,
            mut buf,
        } = arrived;
        tripwire::frame(buf.frame());
        let mut pending = match offload::check_device_frame(&vnet, fields, &mut buf)? {
            DeviceFrame::Whole(pending) => pending,
            DeviceFrame::InPieces(cut) => {
                return self.forward_pieces(tables, &cut, fields, buf, may_signal, now);
            }
        };
        let frame = buf.frame_mut();
        if self.must_signal && may_signal && frame.len() >= offload::SIGNAL_BYTES {
            let signal = offload::signal(frame, fields, pending);
            self.must_signal = matches!(signal, Signal::Vain);
            match signal {
                Signal::Marked((_, marked)) => pending = marked,
                Signal::Shortened((len, shortened)) => {
                    self.drops.count(DropReason::StandingQueue);
                    buf.truncate(len);
                    pending = shortened;
                }
                Signal::Dropped => return Err(DropReason::StandingQueue),
                Signal::Vain => {}
            }
        }
        if self.shared.wire {
            let (port, edit) = (PortId(1), TagEdit::Keep);
            self.dispatch
                .push_edited(tables, port, edit, &mut buf, None, pending);
            return Ok(());
        }
        let frame = buf.frame();
        let segments = pending.map_or(1, |pending| pending.segments(frame.len()));
        match self.decide(fields, frame, segments, now)? {
            Some((fields, decision)) => self.send(tables, decision, fields, buf, pending),
            None => Ok(()),
        }
    }

    /// The forwarding decision; `None` if the slow path has taken the frame.
    fn decide(
        &mut self,
        fields: Option<Fields>,
        frame: &[u8],
        segments: u32,
        now: Now,
    ) -> Result<Option<(Fields, Decision)>, DropReason> {
        let (switch, tap) = (self.switch.present(), PortId::TAP);
        let fields = fields.ok_or_else(|| switch.refuse_runt(tap, segments))?;
        let decision = switch.forward(tap, &fields.of(frame), segments, now)?;
        let is_taken = decision.kind != Kind::Data && self.shared.punt(tap, &decision, frame, &[]);
        Ok((!is_taken).then_some((fields, decision)))
    }

    /// The same for a super-frame that cannot cross as it is.
    fn forward_pieces(
        &mut self,
        tables: &Tables,
        cut: &Cut,
        fields: Option<Fields>,
        mut buf: FrameBuf<'_>,
        may_signal: bool,
        now: Now,
    ) -> Result<(), DropReason> {
        let mut segments = cut.segments();
        if self.must_signal && may_signal && segments > 1 {
            self.must_signal = false;
            let network = fields.and_then(|fields| fields.of(buf.frame()).network());
            if !ecn::mark_congestion(buf.frame_mut(), network) {
                self.drops.count(DropReason::StandingQueue);
                segments -= 1;
            }
        }
        let frame = buf.frame();
        let decision = match self.shared.wire {
            true => None,
            false => match self.decide(fields, frame, segments as u32, now)? {
                None => return Ok(()),
                decision => decision,
            },
        };
        let mut scratch = std::mem::take(&mut self.scratch);
        offload::each_piece(cut, frame, segments, &mut scratch, |piece, pending| {
            let Some((fields, decision)) = decision else {
                return self
                    .dispatch
                    .push(tables, PortId(1), piece.frame(), pending);
            };
            if let Err(reason) = self.send(tables, decision, fields, piece, pending) {
                self.drops.count(reason);
            }
        });
        self.scratch = scratch;
        Ok(())
    }

    fn send(
        &mut self,
        tables: &Tables,
        decision: Decision,
        fields: Fields,
        mut buf: FrameBuf<'_>,
        pending: Option<PendingOffload>,
    ) -> Result<(), DropReason> {
        let headers = fields.of(buf.frame());
        let network = pending.and_then(|_| headers.network());
        let switch = self.switch.present();
        let leave = |port| switch.leave(PortId::TAP, decision.inside, port);
        match decision.egress {
            Egress::Port(port) => {
                let edit = leave(port)?;
                self.dispatch
                    .push_edited(tables, port, edit, &mut buf, network, pending);
            }
            Egress::Flood => {
                let wanted = self.groups.egress(&decision.inside, &headers);
                for port in (1..=tables.routes.len() as u16).map(PortId) {
                    if wanted.is_some_and(|wanted| !wanted.contains(port)) {
                        continue;
                    }
                    // A port outside the frame's VLAN is skipped, not counted as a drop.
                    if let Ok(edit) = leave(port) {
                        self.dispatch
                            .push_edited(tables, port, edit, &mut buf, network, pending);
                    }
                }
            }
            Egress::Nowhere => {}
        }
        Ok(())
    }

    /// Marks the next bulk flow, as if CoDel had asked for it.
    #[cfg(fuzzing)]
    pub(super) fn insist_on_signal(&mut self) {
        self.codel.insist();
    }

    pub(super) fn send_injected(&mut self, recovery: &mut Recovery) {
        if let Some(injected) = &self.injected {
            injected.acknowledge();
        }
        while recovery.catch(|| self.send_waiting_injected()).is_none() {
            self.dispatch.recover();
            recovery.blame(None);
        }
    }

    fn send_waiting_injected(&mut self) {
        let Some(injected) = &self.injected else {
            return;
        };
        self.dispatch.begin(clock::now());
        let tables = self.tables.present();
        let switch = self.switch.present();
        while let Some(InjectedFrame { to, inside, frame }) = injected.take() {
            let mut buf = FrameBuf::copy(&mut self.scratch, &[&frame]);
            let peers = match to {
                To::Peer(port) => port.0..=port.0,
                To::Peers(_) => 1..=tables.routes.len() as u16,
            };
            for port in peers.map(PortId) {
                // The port may have been blocked since the frame was made.
                let edit = match to {
                    To::Peers(Some(ingress)) => switch.leave(ingress, inside, port),
                    _ => switch.originate(inside, port),
                };
                if let Ok(edit) = edit {
                    self.dispatch
                        .push_edited(tables, port, edit, &mut buf, None, None);
                }
            }
        }
        self.dispatch.flush_all();
    }
}
