// SPDX-License-Identifier: MIT OR Apache-2.0
//! The frames that one visit to the TAP found.
//!
//! The queue of a TAP cannot be measured, only drained. So a thread reads a whole burst before it
//! works on it: a full burst is the sign of a standing queue ([`crate::proto::codel`]), and within
//! a burst frames of small flows may go first.

use std::{io, ops::Range};

use patchcord_bridge::ethernet::Fields;

use super::frame_buf::{FrameBuf, HEADROOM};
use crate::{
    io::tap::{TapQueue, VnetHeader},
    proto::flow::flow_of,
};

/// Bytes of a full burst: a quarter of a millisecond at 8 Gbit/s, and half of a core's cache.
const BURST_BYTES: usize = 256 << 10;
/// Frames of a full burst.
const BURST_FRAMES: usize = 128;
/// Where the first frame begins: on a cache line, with room in front.
const FIRST: usize = 64;
/// A flow with a frame of this size in the burst is a bulk transfer; others may overtake it.
const BULK_BYTES: usize = 2048;
/// Bulk flows of a burst that are distinguished; with more, no frame overtakes another.
const BULK_FLOWS: usize = 8;

/// A burst of frames, and the order in which they leave. The default has no room.
#[derive(Default)]
pub(super) struct Burst {
    bytes: Box<[u8]>,
    frames: Vec<Entry>,
    /// The parsed headers of each, in the order of arrival.
    fields: Vec<Option<Fields>>,
    used: usize,
    is_full: bool,
    has_bulk: bool,
}

/// A frame of a burst.
#[derive(Clone)]
struct Entry {
    vnet: VnetHeader,
    bytes: Range<usize>,
    /// Its position in the order of arrival.
    place: u16,
}

/// A frame as it was read, before any processing.
pub(super) struct Arrived<'a> {
    /// The kernel's header of it.
    pub(super) vnet: VnetHeader,
    /// Its parsed headers; `None` if it is too short for them.
    pub(super) fields: Option<Fields>,
    pub(super) buf: FrameBuf<'a>,
}

impl Burst {
    /// With room for frames of up to `longest` bytes.
    pub(super) fn new(longest: usize) -> Self {
        Self {
            bytes: vec![0; FIRST + BURST_BYTES + longest].into(),
            frames: Vec::with_capacity(BURST_FRAMES),
            fields: Vec::with_capacity(BURST_FRAMES),
            used: 0,
            is_full: false,
            has_bulk: false,
        }
    }

    /// Replaces its contents with the frames that the TAP has, as many as fit.
    ///
    /// # Errors
    /// As [`TapQueue::try_read`]; the frames that were read before can be used.
    pub(super) fn fill(&mut self, tap: &TapQueue) -> io::Result<()> {
        self.frames.clear();
        self.fields.clear();
        self.used = FIRST;
        self.is_full = false;
        self.has_bulk = false;
        while self.used < FIRST + BURST_BYTES && self.frames.len() < BURST_FRAMES {
            let Some((vnet, at)) = tap.try_read(&mut self.bytes[self.used..])? else {
                return Ok(());
            };
            self.has_bulk |= at.len() >= BULK_BYTES;
            let (start, end) = (self.used + at.start, self.used + at.end);
            self.frames.push(Entry {
                vnet,
                bytes: start..end,
                place: self.fields.len() as u16,
            });
            // The one place where the headers of a frame of the overlay are parsed.
            self.fields
                .push(Fields::parse(&self.bytes[start..end]).ok());
            // The next frame begins on a cache line of its own, with room in front.
            self.used = (end + HEADROOM).next_multiple_of(FIRST);
        }
        self.is_full = true;
        Ok(())
    }

    /// Whether the TAP may have had more.
    pub(super) fn is_full(&self) -> bool {
        self.is_full
    }

    /// Whether it contains frames of a bulk transfer.
    pub(super) fn has_bulk(&self) -> bool {
        self.has_bulk
    }

    pub(super) fn frames(&self) -> u64 {
        self.frames.len() as u64
    }

    pub(super) fn bytes(&self) -> u64 {
        let lens = self.frames.iter().map(|entry| entry.bytes.len() as u64);
        lens.sum()
    }

    /// Moves frames of flows without bulk to the front, if there is bulk at all; both groups keep
    /// their order. Returns how many such frames there are.
    pub(super) fn put_small_flows_first(&mut self) -> usize {
        if !self.has_bulk {
            return 0;
        }
        let mut bulk = [0; BULK_FLOWS];
        let mut bulk_flows = 0;
        for entry in &self.frames {
            if entry.bytes.len() >= BULK_BYTES {
                let flow = self.flow(entry);
                if !bulk[..bulk_flows].contains(&flow) {
                    if bulk_flows == BULK_FLOWS {
                        return 0;
                    }
                    bulk[bulk_flows] = flow;
                    bulk_flows += 1;
                }
            }
        }
        if bulk_flows == 0 || bulk_flows == self.frames.len() {
            return 0;
        }
        let bulk = &bulk[..bulk_flows];
        let mut first = 0;
        for at in 0..self.frames.len() {
            let entry = &self.frames[at];
            let is_bulk = entry.bytes.len() >= BULK_BYTES || bulk.contains(&self.flow(entry));
            if !is_bulk {
                self.frames[first..=at].rotate_right(1);
                first += 1;
            }
        }
        first
    }

    fn flow(&self, entry: &Entry) -> u64 {
        let frame = &self.bytes[entry.bytes.clone()];
        let fields = self.fields[usize::from(entry.place)];
        flow_of(frame, fields.and_then(|it| it.of(frame).network()))
    }

    /// The frame that leaves in this position.
    pub(super) fn frame(&mut self, at: usize) -> Arrived<'_> {
        let Entry { vnet, bytes, place } = self.frames[at].clone();
        Arrived {
            vnet,
            fields: self.fields[usize::from(place)],
            buf: FrameBuf::of(&mut self.bytes[bytes.start - HEADROOM..bytes.end]),
        }
    }
}
