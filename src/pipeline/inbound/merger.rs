// SPDX-License-Identifier: MIT OR Apache-2.0
//! Step 6, the write: small UDP frames of a flow that follow each other in a batch leave as one
//! super-frame, which the kernel cuts into the same frames again (`proto::merge`). One write costs
//! as much as the kernel's path of several frames.
//!
//! A frame waits for the end of its batch at most, and for [`PATIENCE`] bytes of others. It never
//! changes places with a frame of its flow, nor with one between the same stations that cannot be
//! merged.

use std::{
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    io::tap::{self, TapQueue},
    pipeline::{offload::EgressFrame, shared::Shared},
    proto::merge::{Merge, Mergeable},
    stats::{DropReason, Drops, LaneFlow},
    wire::Lane,
};

/// Flows that are merged at once.
const FLOWS: usize = 8;
/// Bytes that may pass a frame that waits: a train.
const PATIENCE: usize = 64 * 1024;
/// What a frame costs beside its bytes, in bytes.
const PER_FRAME: usize = 64;
/// The kernel refused a super-frame: how long none is tried again. Kernels before 6.2 know none of
/// UDP.
const REST: Duration = Duration::from_secs(60);

/// The frames that wait, and the way to the TAP.
pub(super) struct Merger {
    shared: Arc<Shared>,
    drops: Arc<Drops>,
    tap: Arc<TapQueue>,
    /// None for a back-end that takes finished frames only.
    flows: Vec<Merge>,
    /// The place of the flow that came first, and leaves first if another needs room.
    oldest: usize,
    /// The bytes that have passed since no frame waited.
    passed: usize,
    rests_until: Option<Instant>,
    now: Instant,
    /// A lane of this thread, under which frames are counted as they leave.
    lane: Lane,
    /// For frames that leave finished.
    scratch: Vec<u8>,
}

impl Merger {
    pub(super) fn new(
        shared: Arc<Shared>,
        drops: Arc<Drops>,
        tap: Arc<TapQueue>,
        now: Instant,
    ) -> Self {
        let flows = if tap.is_cut_by_kernel() { FLOWS } else { 0 };
        Self {
            shared,
            drops,
            tap,
            flows: (0..flows).map(|_| Merge::default()).collect(),
            oldest: 0,
            passed: 0,
            rests_until: None,
            now,
            lane: Lane::CONTROL,
            scratch: Vec::new(),
        }
    }

    /// Before a batch, which arrived now.
    pub(super) fn begin(&mut self, now: Instant) {
        self.now = now;
    }

    /// The next frame came on this lane.
    pub(super) fn count_under(&mut self, lane: Lane) {
        self.lane = lane;
    }

    /// Writes a frame now, or with others at the end of the batch.
    pub(super) fn write(&mut self, frame: &EgressFrame<'_>) -> Result<(), DropReason> {
        if self.flows.is_empty() {
            return self.write_alone(frame);
        }
        self.let_pass(frame.len());
        let is_resting = self.rests_until.is_some_and(|until| self.now < until);
        match frame.mergeable() {
            Some(frame) if !is_resting => {
                self.hold(&frame);
                Ok(())
            }
            _ => {
                self.flush_between_stations_of(frame.head);
                self.write_alone(frame)
            }
        }
    }

    /// After a batch.
    pub(super) fn flush(&mut self) {
        for place in 0..self.flows.len() {
            self.flush_one(place);
        }
        self.passed = 0;
    }

    fn let_pass(&mut self, len: usize) {
        self.passed += len + PER_FRAME;
        if self.passed > PATIENCE {
            self.flush();
        }
    }

    fn hold(&mut self, frame: &Mergeable<'_>) {
        let mut flows = self.flows.iter();
        let place = match flows.position(|flow| flow.has_flow_of(frame)) {
            Some(place) if self.flows[place].join(frame) => {
                if self.flows[place].is_full() {
                    self.flush();
                }
                return;
            }
            Some(place) => place,
            None => self.free_place(),
        };
        self.flush_one(place);
        self.flows[place].begin(frame);
    }

    fn free_place(&mut self) -> usize {
        let free = self.flows.iter().position(Merge::is_empty);
        free.unwrap_or_else(|| {
            self.oldest = (self.oldest + 1) % self.flows.len();
            self.oldest
        })
    }

    fn flush_between_stations_of(&mut self, frame: &[u8]) {
        for place in 0..self.flows.len() {
            if self.flows[place].has_stations_of(frame) {
                self.flush_one(place);
            }
        }
    }

    fn flush_one(&mut self, place: usize) {
        let Some(merged) = self.flows[place].finish() else {
            return;
        };
        let (frames, bytes) = (merged.frames as u64, merged.bytes as u64);
        let frame = EgressFrame::of_parts(merged.frame, &[], merged.pending);
        let error = match frame.write_pending(&self.tap) {
            Ok(()) => return self.counters().add_frames(frames, bytes),
            Err(error) => error,
        };
        if frames == 1 {
            return self.drops.count(drop_reason_of_write(&error));
        }
        if error.kind() == io::ErrorKind::InvalidInput {
            self.rests_until = Some(self.now + REST);
        }
        // What is wrong with one of them may not be wrong with all.
        let inbound = self.shared.tap.inbound.of(self.lane.0);
        let drops = &self.drops;
        frame.write_apart(&self.tap, &mut self.scratch, |len, written| match written {
            Ok(()) => inbound.add_frames(1, len as u64),
            Err(error) => drops.count(drop_reason_of_write(&error)),
        });
    }

    fn write_alone(&mut self, frame: &EgressFrame<'_>) -> Result<(), DropReason> {
        let written = frame.write(&self.tap, &mut self.scratch);
        written.map_err(|error| drop_reason_of_write(&error))?;
        self.counters().add_frames(1, frame.len() as u64);
        Ok(())
    }

    fn counters(&self) -> &LaneFlow {
        self.shared.tap.inbound.of(self.lane.0)
    }
}

/// The drop reason when the kernel does not take a frame.
fn drop_reason_of_write(error: &io::Error) -> DropReason {
    if tap::is_too_big(error) {
        DropReason::NicMtu
    } else {
        DropReason::TapWriteFailed
    }
}

#[cfg(test)]
mod tests;
