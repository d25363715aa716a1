// SPDX-License-Identifier: MIT OR Apache-2.0
//! Steps 3 and 4: accepts a counter once, then unpacks the frames, fragments and control chunks of
//! a datagram.

use std::time::Instant;

use super::tap_writer::TapWriter;
use crate::{
    pipeline::{
        lane_states::LaneState,
        notices::{CONTROL_BYTES, Control},
        offload::EgressFrame,
        shared::DatagramPath,
    },
    proto::{partial_checksum::check_checksum, reassembly::Which},
    stats::DropReason,
    wire::{
        Counter, Lane, MessageType, SessionIndex,
        chunk::{Chunk, Chunks},
        offload::{Checksum, Offload},
    },
};

/// An authentic datagram on its way through steps 3 and 4.
#[derive(Clone, Copy)]
pub(super) struct Arrival {
    pub(super) message_type: MessageType,
    pub(super) receiver: SessionIndex,
    pub(super) counter: Counter,
    pub(super) from: DatagramPath,
    /// GRO would have merged it with the one before it.
    pub(super) is_mergeable: bool,
}

/// Unpacks plaintext, and passes each frame that is whole to the TAP writer.
pub(super) struct Unpacker<'a> {
    pub(super) writer: TapWriter<'a>,
}

impl Unpacker<'_> {
    pub(super) fn accept(
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
            from: (from, local),
            is_mergeable,
        } = arrival;
        let newest = lane.window.accept(counter.sequence())?;
        lane.last_arrival = arrived;
        let port = lane.session.port;
        lane.session.confirm();
        self.writer.lane = lane.number;
        let flow = lane.session.traffic.inbound.of(lane.number.0);
        flow.add_datagrams(1);
        if is_mergeable {
            flow.add_mergeable(1);
        }
        if counter.lane() == Lane::CONTROL {
            if message_type != MessageType::Chunks {
                return Err(DropReason::Malformed);
            }
            lane.control_rate.take(self.writer.now.seconds)?;
            let mut bytes = [0; CONTROL_BYTES];
            let len = plaintext.len().min(CONTROL_BYTES);
            bytes[..len].copy_from_slice(&plaintext[..len]);
            let control = Control {
                from,
                local,
                receiver,
                newest,
                bytes,
            };
            self.writer.shared.notify_control(port, control);
            return Ok(());
        }
        if lane.refused_until.is_some_and(|until| arrived < until) {
            return Err(DropReason::InternalError);
        }
        let route = self.writer.tables.route(port);
        if newest && route.is_some_and(|route| route.endpoint != Some(from)) {
            let notices = &self.writer.shared.notices;
            notices.set_roamed(port, receiver, from, self.writer.now);
        }
        if message_type == MessageType::Frame {
            return self.forward_small(lane, EgressFrame::finished(plaintext));
        }
        self.unpack(lane, counter.sequence(), plaintext);
        Ok(())
    }

    fn unpack(&mut self, lane: &mut LaneState, sequence: u64, plaintext: &[u8]) {
        for chunk in Chunks::new(plaintext) {
            let forwarded = match chunk {
                Ok(Chunk::Frame(frame)) => self.forward_small(lane, EgressFrame::finished(frame)),
                Ok(Chunk::PartialChecksum(checksum, frame)) => {
                    self.forward_partial(lane, checksum, frame)
                }
                Ok(Chunk::Fragment(fragment, piece)) => lane
                    .reassembly
                    .add(sequence, fragment, piece)
                    .and_then(|is_whole| self.forward_if_whole(lane, is_whole)),
                Ok(Chunk::Offload(frame, offload, head)) => lane
                    .reassembly
                    .describe(sequence, frame, offload, head)
                    .and_then(|is_whole| self.forward_if_whole(lane, is_whole)),
                // Control chunks have a lane of their own.
                Ok(Chunk::Control(_)) => Err(DropReason::Malformed),
                Err(reason) => Err(reason),
            };
            // One bad frame does not affect the others in the datagram.
            if let Err(reason) = forwarded {
                self.writer.drops.count(reason);
            }
        }
    }

    fn forward_partial(
        &mut self,
        lane: &mut LaneState,
        checksum: Checksum,
        frame: &[u8],
    ) -> Result<(), DropReason> {
        let offload = Offload {
            checksum,
            segmentation: None,
        };
        let frame = EgressFrame::of_parts(frame, &[], Some((offload, None)));
        let headers = frame.headers().ok_or(DropReason::BadOffload)?;
        check_checksum(&headers, frame.len(), checksum)?;
        self.forward_small(lane, frame)
    }

    /// A frame that was not cut. Segments that arrived before it leave before it.
    fn forward_small(
        &mut self,
        lane: &mut LaneState,
        frame: EgressFrame<'_>,
    ) -> Result<(), DropReason> {
        if let Some(stations) = frame.head.first_chunk() {
            self.forward_runs(lane, Which::Between(stations));
        }
        self.writer.forward(&lane.session, frame)
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
        let pending = whole.offload.map(|offload| (offload, whole.layout));
        let frame = EgressFrame::of_parts(whole.frame, &[], pending);
        self.writer.forward(&lane.session, frame)
    }

    /// Forwards the runs of whole segments of super-frames with holes.
    pub(super) fn forward_runs(&mut self, lane: &mut LaneState, which: Which<'_>) {
        self.writer.lane = lane.number;
        while let Some(run) = lane.reassembly.poll_run(which) {
            let pending = Some((run.offload, run.layout));
            let frame = EgressFrame::of_parts(run.headers, run.payload, pending);
            if let Err(reason) = self.writer.forward(&lane.session, frame) {
                self.writer.drops.count(reason);
            }
        }
    }
}
