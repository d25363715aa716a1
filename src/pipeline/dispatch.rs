// SPDX-License-Identifier: MIT OR Apache-2.0
//! Frames whose port is known, to datagrams on the wire.
//!
//! 1. number and pack   `Train::push`          in order
//! 2. seal              `Train::seal`          any order (a worker, when staged)
//! 3. send              `UdpTx::send`          in order again
//!
//! Each thread that sends frames has a `Dispatch` of its own, on a lane of its own: the outbound
//! threads, and in a hub the inbound ones for the frames that they forward. Functions appear in
//! this order.

use std::{net::SocketAddr, sync::Arc, time::Instant};

use patchcord_bridge::{PortId, TagEdit, ethernet::Network};

use super::{
    clock,
    frame_buf::FrameBuf,
    offload,
    recovery::Recovery,
    shared::{Shared, TablesCache},
    watchdog::Heartbeat,
};
use crate::{
    io::udp::{SendError, SendFailure, Senders},
    proto::{
        mss,
        session::Tables,
        train::{Outgoing, PendingOffload, Pushed, Train},
    },
    queue::{Collected, Collector, Dealer, Worker},
    stats::{DropReason, Drops},
    wire::{Lane, local::Local},
};

/// Trains that may be filling at the same time, one for each peer that has frames in this batch.
const INLINE_TRAINS: usize = 32;
/// … where the others of the pool are being sealed or sent meanwhile.
const STAGED_TRAINS: usize = 8;
/// There is always an empty one while fewer than these fill.
const NO_TRAIN: DropReason = DropReason::Switch(patchcord_bridge::DropReason::NoPort);

/// The destination of full trains.
pub(super) enum TrainSink {
    /// Sealed and sent in this thread.
    Inline { udp_tx: UdpTx, empties: Vec<Train> },
    /// Handed to the workers.
    Staged(Dealer<Train>),
    /// Sealed in this thread, and kept for the test.
    #[cfg(fuzzing)]
    Kept { kept: Kept, empties: Vec<Train> },
}

/// Sealed datagrams, and the ports of their peers.
#[cfg(fuzzing)]
pub(super) type Kept = Arc<std::sync::Mutex<Vec<(PortId, Vec<u8>)>>>;

/// The first step; with an inline sink, all three.
pub(super) struct Dispatch {
    drops: Arc<Drops>,
    lane: Lane,
    sink: TrainSink,
    /// Trains that are filling, with their ports.
    filling: Vec<(PortId, Train)>,
    most_filling: usize,
    lowers_mss: bool,
    next_frame_id: u32,
    /// A train is being changed.
    is_busy: bool,
    scratch: Vec<u8>,
    /// When the present batch arrived.
    now: Instant,
}

impl Dispatch {
    pub(super) fn new(drops: Arc<Drops>, lane: Lane, sink: TrainSink) -> Self {
        let most_filling = match &sink {
            TrainSink::Inline { empties, .. } => empties.len(),
            #[cfg(fuzzing)]
            TrainSink::Kept { empties, .. } => empties.len(),
            TrainSink::Staged(_) => STAGED_TRAINS,
        };
        Self {
            drops,
            lane,
            sink,
            filling: Vec::with_capacity(most_filling),
            most_filling,
            lowers_mss: false,
            next_frame_id: 0,
            is_busy: false,
            scratch: Vec::new(),
            now: clock::now(),
        }
    }

    /// The same, altering the SYNs of TCP or not.
    pub(super) fn lowering_mss(mut self, lowers_mss: bool) -> Self {
        self.lowers_mss = lowers_mss;
        self
    }

    /// The lane on which it sends.
    pub(super) fn lane(&self) -> Lane {
        self.lane
    }

    /// Sessions may have ended: their keys must not stay in empty trains and former tables.
    pub(super) fn forget_sessions(&mut self) {
        match &mut self.sink {
            TrainSink::Inline { udp_tx, empties } => {
                empties.iter_mut().for_each(Train::forget);
                udp_tx.tables.present();
            }
            // The last step does it.
            TrainSink::Staged(_) => {}
            #[cfg(fuzzing)]
            TrainSink::Kept { empties, .. } => empties.iter_mut().for_each(Train::forget),
        }
    }

    /// Before each batch.
    pub(super) fn begin(&mut self, now: Instant) {
        self.now = now;
    }

    /// The same as [`Self::push`] for the frame with another tag; it has its own again afterwards.
    /// Its pending offload is finished here if a peer would refuse it; a SYN stays lowered for the
    /// ports that follow. `network` is the position of
    /// the frame's network header before the edit.
    pub(super) fn push_edited(
        &mut self,
        tables: &Tables,
        port: PortId,
        edit: TagEdit,
        buf: &mut FrameBuf<'_>,
        network: Option<Network>,
        pending: Option<PendingOffload>,
    ) {
        if self.lowers_mss {
            lower_mss(tables, port, edit, buf.frame_mut(), pending.is_some());
        }
        if let Some(pending) = pending
            && !offload::may_stay_pending(buf.frame().len(), network, &pending, edit)
        {
            return self.push_finished(tables, port, edit, buf.frame(), pending);
        }
        if edit == TagEdit::Keep {
            return self.push(tables, port, buf.frame(), pending);
        }
        let pending = pending.map(|pending| pending.shifted(edit.delta()));
        buf.with_edit(edit, |frame| self.push(tables, port, frame, pending));
    }

    fn push_finished(
        &mut self,
        tables: &Tables,
        port: PortId,
        edit: TagEdit,
        frame: &[u8],
        pending: PendingOffload,
    ) {
        let mut scratch = std::mem::take(&mut self.scratch);
        let finished = offload::each_finished(frame, pending, &mut scratch, |frame| {
            self.push_edited(tables, port, edit, frame, None, None);
        });
        self.scratch = scratch;
        if let Err(reason) = finished {
            self.drops.count(reason);
        }
    }

    /// Lays the frame out in the train of `port`, and in further ones as they fill.
    pub(super) fn push(
        &mut self,
        tables: &Tables,
        port: PortId,
        frame: &[u8],
        pending: Option<PendingOffload>,
    ) {
        let frame_id = self.next_frame_id;
        self.next_frame_id = frame_id.wrapping_add(1);
        let mut outgoing = Outgoing::new(frame, frame_id, pending);
        self.is_busy = true;
        let pushed = self.lay_out(tables, port, &mut outgoing);
        self.is_busy = false;
        if let Err(reason) = pushed {
            return self.drops.count(reason);
        }
        let lane = self.lane.0;
        if let Some(train) = self.train_of(port)
            && let Some(session) = train.session()
        {
            let flow = session.traffic.outbound.of(lane);
            flow.add_frames(1, frame.len() as u64);
        }
    }

    fn lay_out(
        &mut self,
        tables: &Tables,
        port: PortId,
        outgoing: &mut Outgoing<'_>,
    ) -> Result<(), DropReason> {
        loop {
            let lane = self.lane;
            let pushed = self
                .train_for(tables, port)
                .and_then(|train| train.push(lane, outgoing))?;
            match pushed {
                Pushed::Done => return Ok(()),
                Pushed::Full => self.flush_one(port),
            }
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
            let (session, to, datagram_len) = tables.route_to(port, self.now)?;
            if self.filling.len() == self.most_filling {
                self.flush_all();
            }
            let mut train = self.sink.empty().ok_or(NO_TRAIN)?;
            train.bind(session, to, datagram_len);
            self.filling.push((port, train));
        }
        self.train_of(port).ok_or(NO_TRAIN)
    }

    fn flush_one(&mut self, port: PortId) {
        if let Some(place) = self.filling.iter().position(|(owner, _)| *owner == port) {
            self.flush(place);
        }
    }

    /// Sends the trains that wait for more frames.
    pub(super) fn flush_all(&mut self) {
        let was_busy = std::mem::replace(&mut self.is_busy, true);
        while let Some(last) = self.filling.len().checked_sub(1) {
            self.flush(last);
        }
        self.is_busy = was_busy;
    }

    fn flush(&mut self, place: usize) {
        if let Err(reason) = self.filling[place].1.close(self.lane) {
            self.drops.count(reason);
        }
        let (_, mut train) = self.filling.swap_remove(place);
        match &mut self.sink {
            TrainSink::Inline { udp_tx, empties } => {
                train.seal();
                udp_tx.send(&train);
                train.clear();
                empties.push(train);
            }
            TrainSink::Staged(dealer) => {
                // Fails only when the workers are gone, and then the tunnel is being stopped.
                let _ = dealer.deal(train);
            }
            #[cfg(fuzzing)]
            TrainSink::Kept { kept, empties } => {
                train.seal();
                if let (Some(session), Ok(mut kept)) = (train.session(), kept.lock()) {
                    let datagrams = train.runs().flat_map(|(run, size)| run.chunks(size));
                    kept.extend(datagrams.map(|datagram| (session.port, datagram.to_vec())));
                }
                train.clear();
                empties.push(train);
            }
        }
    }

    /// After a panic: if a train was being changed, its frames are lost. The number of trains stays
    /// the same.
    #[cold]
    pub(super) fn recover(&mut self) {
        if !std::mem::take(&mut self.is_busy) {
            return;
        }
        let filling = self.filling.drain(..);
        match &mut self.sink {
            TrainSink::Inline { empties, .. } => {
                drop(filling);
                // The train in hand was lost.
                empties.resize_with(self.most_filling, Train::default);
            }
            #[cfg(fuzzing)]
            TrainSink::Kept { empties, .. } => {
                drop(filling);
                empties.resize_with(self.most_filling, Train::default);
            }
            // These are passed around, and no train is in hand for long enough to be lost.
            TrainSink::Staged(dealer) => {
                for (_, mut train) in filling {
                    train.clear();
                    let _ = dealer.deal(train);
                }
            }
        }
    }
}

/// Lowers what a SYN announces to what one datagram to the peer carries: this node knows the path
/// there, and takes the one back, which the segments take, to be as wide.
fn lower_mss(
    tables: &Tables,
    port: PortId,
    edit: TagEdit,
    frame: &mut [u8],
    has_partial_checksum: bool,
) {
    let tags = edit.delta().max(0) as usize;
    if let Some(route) = tables.route(port)
        && let Some(announced) = mss::find(frame, route.datagram_len, tags)
    {
        announced.lower(frame, has_partial_checksum);
    }
}

impl TrainSink {
    /// With trains for as many `peers` as have frames at the same time.
    pub(super) fn inline(udp_tx: UdpTx, peers: usize) -> Self {
        Self::Inline {
            udp_tx,
            empties: std::iter::repeat_with(Train::default)
                .take(peers.clamp(1, INLINE_TRAINS))
                .collect(),
        }
    }

    fn empty(&mut self) -> Option<Train> {
        match self {
            Self::Inline { empties, .. } => empties.pop(),
            #[cfg(fuzzing)]
            Self::Kept { empties, .. } => empties.pop(),
            Self::Staged(dealer) => dealer.empty(),
        }
    }
}

/// The second step, by a worker.
pub(super) fn seal(shared: Arc<Shared>, worker: Worker<Train>, heartbeat: &Heartbeat) {
    let mut recovery = Recovery::new(shared);
    heartbeat.rest();
    worker.run(|train| {
        heartbeat.work();
        if recovery.catch(|| train.seal()).is_none() {
            recovery.blame(Some(PortId::TAP));
            train.clear();
        }
        heartbeat.rest();
    });
}

/// The last step.
pub(super) struct UdpTx {
    shared: Arc<Shared>,
    drops: Arc<Drops>,
    tables: TablesCache,
    senders: Senders,
}

impl UdpTx {
    /// The position of a destination in `senders` is that of its peer.
    pub(super) fn new(shared: Arc<Shared>, senders: Senders) -> Self {
        Self {
            drops: shared.new_drops(),
            tables: shared.subscribe(),
            shared,
            senders,
        }
    }

    /// Sends the trains that the workers have sealed until the first step has ended.
    pub(super) fn run(mut self, mut sealed: Collector<Train>, heartbeat: &Heartbeat) {
        let mut recovery = Recovery::new(self.shared.clone());
        heartbeat.rest();
        while let Collected::Batch(mut train) = sealed.collect(None) {
            heartbeat.work();
            if recovery.catch(|| self.send(&train)).is_none() {
                recovery.blame(Some(PortId::TAP));
            }
            train.clear();
            // It may wait for long, in a thread that knows nothing of sessions.
            train.forget();
            sealed.give_back(train);
            heartbeat.rest();
        }
    }

    fn send(&mut self, train: &Train) {
        let (Some(to), Some(session)) = (train.destination(), train.session()) else {
            return;
        };
        let place = usize::from(session.port.0).wrapping_sub(1);
        let (local, as_train) = self.send_options(session.port, to);
        let mut sent = 0;
        for (run, size) in train.runs() {
            match self.senders.send(place, (local, to), run, (size, as_train)) {
                Ok(report) => {
                    sent += report.sent as u64;
                    if report.from_elsewhere {
                        self.shared.notices.set_local_lost(session.port);
                    }
                    self.drops
                        .add(DropReason::SendFailed, report.dropped as u64);
                }
                Err(failure) => {
                    sent += failure.sent as u64;
                    self.count_failed(&failure, session.port, run.len().div_ceil(size));
                }
            }
        }
        // The thread that sends a lane is not always the one that fills it, but each counts
        // something else.
        if let Some(lane) = train.lane() {
            session.traffic.outbound.of(lane.0).add_datagrams(sent);
        }
    }

    /// The source address of a datagram, if the kernel is to be told, and whether it may be part of
    /// a train.
    fn send_options(&mut self, port: PortId, to: SocketAddr) -> (Option<Local>, bool) {
        let route = self.tables.present().route(port);
        match route.filter(|route| route.endpoint == Some(to)) {
            Some(route) => (route.local, route.takes_trains),
            None => (None, true),
        }
    }

    /// Counts how many of these datagrams were not sent.
    fn count_failed(&self, failure: &SendFailure, port: PortId, datagrams: usize) {
        let failed = datagrams.saturating_sub(failure.sent) as u64;
        if let SendError::TooBig { .. } = failure.error {
            self.drops.add(DropReason::DatagramTooBig, failed);
            self.shared.notices.set_too_big(port);
        } else {
            self.drops.add(DropReason::SendFailed, failed);
        }
    }
}

#[cfg(test)]
mod tests {
    use nix::errno::Errno;
    use patchcord_bridge::{Headers, Tpid};

    use super::*;
    use crate::{
        io::udp::UdpSocket,
        proto::{
            reassembly::Reassembly,
            session::Route,
            testing::{DESTINATION, LANE, Network, Opened, Stream, looped_session},
        },
        queue::ordered,
        testing::{assert_all_refused, in_namespace, ip, refuse_to_send_after},
        wire::{chunk::Chunk, offload::Transport},
    };

    const PUSH: TagEdit = TagEdit::Push {
        tpid: Tpid::Customer,
        tci: 7,
    };

    /// The frames that arrive at the peer, on a path that carries datagrams of this size, and
    /// whether each has a pending offload.
    fn arrived(
        frame: &[u8],
        pending: PendingOffload,
        edit: TagEdit,
        datagram_len: usize,
    ) -> Vec<(Vec<u8>, bool)> {
        let tables = Tables {
            routes: vec![Route {
                session: Some(looped_session()),
                endpoint: Some(DESTINATION),
                local: None,
                takes_trains: true,
                datagram_len,
            }],
            ..Tables::default()
        };
        let (dealer, workers, mut collector) = ordered(1);
        let drops = Arc::<Drops>::default();
        let mut dispatch = Dispatch::new(drops.clone(), LANE, TrainSink::Staged(dealer));
        let mut room = Vec::new();
        let mut buf = FrameBuf::copy(&mut room, &[frame]);
        let headers = Headers::parse(frame).ok();
        let network = headers.and_then(|it| it.network());
        dispatch.push_edited(&tables, PortId(1), edit, &mut buf, network, Some(pending));
        assert_eq!(buf.frame(), frame, "changed for the next port");
        dispatch.flush_all();
        drop(dispatch);
        for worker in workers {
            worker.run(Train::seal);
        }
        let mut datagrams = Vec::new();
        while let Collected::Batch(train) = collector.collect(None) {
            let runs = train.runs();
            datagrams.extend(runs.flat_map(|(run, size)| run.chunks(size).map(<[u8]>::to_vec)));
        }
        assert_eq!(drops.nonzero().count(), 0);
        unpacked(&Opened::all(&datagrams))
    }

    fn unpacked(datagrams: &[Opened]) -> Vec<(Vec<u8>, bool)> {
        let mut reassembly = Reassembly::new(9000);
        let mut frames = Vec::new();
        for chunk in datagrams.iter().flat_map(Opened::chunks) {
            match chunk {
                Chunk::Frame(frame) => frames.push((frame.to_vec(), false)),
                Chunk::PartialChecksum(_, frame) => frames.push((frame.to_vec(), true)),
                Chunk::Fragment(at, piece) => drop(reassembly.add(0, at, piece).unwrap()),
                Chunk::Offload(frame, offload, head) => {
                    reassembly.describe(0, frame, offload, head).unwrap();
                }
                other => panic!("{other:?}"),
            }
            let whole = reassembly.take_whole();
            frames.extend(whole.map(|whole| (whole.frame.to_vec(), whole.offload.is_some())));
        }
        frames
    }

    /// With this many bytes of headers.
    fn stream(headers: usize, transport: Transport, size: u16, payload: usize) -> Stream {
        let units = (headers - 14 - 40 - 8) / 8;
        let stream = Stream {
            network: Network::V6(vec![(60, units)]),
            transport,
            tcp_options: 0,
            ..Stream::tcp_v4(size, payload)
        };
        assert!(stream.headers_len() >= headers);
        stream
    }

    fn tagged(stream: &Stream) -> Stream {
        let mut tagged = stream.clone();
        tagged.tags.insert(0, (0x8100, 7));
        tagged
    }

    #[test]
    fn of_a_run_that_fails_half_way_the_rest_counts_as_failed() {
        in_namespace(|| {
            ip("link set lo up");
            let [socket, receiver] =
                [(); 2].map(|()| UdpSocket::bind("127.0.0.1:0".parse().unwrap()).unwrap());
            let (session, shared) = (looped_session(), Shared::alone());
            let mut train = Train::default();
            train.bind(&session, receiver.local_addr().unwrap(), 1472);
            for number in 0..5 {
                let mut frame = Outgoing::new(&[7; 1400], number, None);
                assert!(matches!(train.push(LANE, &mut frame), Ok(Pushed::Done)));
            }
            train.close(LANE).unwrap();
            train.seal();
            let senders = Senders::new(socket, Arc::new([]));
            let mut udp_tx = UdpTx::new(shared.clone(), senders);
            refuse_to_send_after(2, Errno::EHOSTUNREACH as i32);
            udp_tx.send(&train);
            assert_all_refused();
            assert_eq!(session.traffic.outbound.datagrams(), 2);
            assert_eq!(shared.total_drops(), [(DropReason::SendFailed, 3)]);
        });
    }

    #[test]
    fn a_partial_checksum_that_no_peer_would_believe_is_finished() {
        // The longest that stays pending, one that a tag makes too long, and two that always are.
        for (headers, edit, is_partial) in [
            (246, PUSH, true),
            (254, TagEdit::Keep, true),
            (254, PUSH, false),
            (262, TagEdit::Keep, false),
            (1454, TagEdit::Keep, false),
            (1454, PUSH, false),
        ] {
            let frame = stream(headers, Transport::Udp, 1400, 400);
            let whole = frame.frame(0..1, false);
            let pending = PendingOffload {
                offload: frame.offload(0..1),
                headers_len: frame.transport_at() + 8,
            };
            let leaves = match edit {
                PUSH => tagged(&frame),
                _ => frame,
            };
            for datagram_len in [548, 1472, 8972] {
                let frames = arrived(&whole, pending, edit, datagram_len);
                let expected = (leaves.frame(0..1, !is_partial), is_partial);
                assert!(frames == [expected], "{headers}, {edit:?}, {datagram_len}");
            }
        }
    }

    #[test]
    fn a_frame_that_is_padded_has_a_finished_checksum() {
        // Of the shortest that a kernel sends: 54 bytes and a tag.
        for (payload, is_partial) in [(1, false), (6, true), (100, true)] {
            let stream = Stream {
                tcp_options: 0,
                ..Stream::tcp_v4(1000, payload)
            };
            let frame = tagged(&stream);
            let pending = PendingOffload {
                offload: frame.offload(0..1),
                headers_len: 18 + 20 + 18,
            };
            let frames = arrived(&frame.frame(0..1, false), pending, TagEdit::Pop, 1472);
            let mut expected = stream.frame(0..1, !is_partial);
            expected.resize(expected.len().max(60), 0);
            assert_eq!(frames, [(expected, is_partial)]);
        }
    }

    #[test]
    fn a_super_frame_that_no_peer_would_believe_is_cut() {
        let with_tags = |tags| Stream {
            tags: vec![(0x88a8, 1); tags],
            ..Stream::tcp_v4(1448, 10_000)
        };
        for (stream, edit, is_cut) in [
            (stream(246, Transport::Udp, 100, 20_000), PUSH, false),
            (stream(254, Transport::Udp, 100, 20_000), PUSH, true),
            (
                stream(254, Transport::Udp, 100, 20_000),
                TagEdit::Keep,
                false,
            ),
            (with_tags(3), PUSH, false),
            (with_tags(4), PUSH, true),
        ] {
            let (whole, pending) = (stream.whole(), stream.pending());
            let leaves = match edit {
                PUSH => tagged(&stream),
                _ => stream,
            };
            let expected: Vec<_> = match is_cut {
                true => (0..leaves.segments())
                    .map(|at| (leaves.frame(at..at + 1, true), false))
                    .collect(),
                false => vec![(leaves.whole(), true)],
            };
            for datagram_len in [548, 1472, 8972] {
                let frames = arrived(&whole, pending, edit, datagram_len);
                assert!(frames == expected, "{leaves:?}, {edit:?}, {datagram_len}");
            }
        }
    }
}
