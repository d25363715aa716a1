// SPDX-License-Identifier: MIT OR Apache-2.0
//! Reassembles frames that arrived in pieces (PROTOCOL.md, "Fragments" and "Offloads").
//!
//! One for each session, lane and receiving thread. Memory is bounded in bytes, not in frames: on a
//! path that reorders datagrams, as many frames are unfinished as the sender sends in that time.
//! When the bytes are used up, the oldest frame is evicted. Every piece is from an authentic
//! datagram that the replay window accepted once, so the remaining cases are loss, reordering, and
//! a peer that lies about its own frames.
//!
//! An ordinary frame with a hole is lost. A super-frame with holes is delivered as the runs of
//! segments that are whole ([`Reassembly::poll_run`]): when a later frame between the same stations
//! is about to overtake it, when much has arrived since, or when nothing arrives any more. Pieces
//! that arrive even later are delivered in the same way.

mod buffer;
mod pool;

use std::ops::Range;

use self::{buffer::Buffer, pool::BufferPool};
use super::{
    limits::{REASSEMBLY_LANE_BYTES, REORDERING, REPLAY_WINDOW},
    superframe::{HEADER_ROOM, Layout, MAX_SUPERFRAME},
};
use crate::{
    stats::DropReason,
    wire::{
        chunk::{CutFrame, Fragment},
        offload::Offload,
    },
};

/// How many super-frames that were delivered to the end are kept: their headers may arrive once
/// more.
const FINISHED: usize = 64;

/// Destination and source address: frames with the same pair stay in order.
pub type Stations = [u8; 12];

/// A frame that is whole.
#[derive(Clone, Copy, Debug)]
pub struct Whole<'a> {
    /// All of it.
    pub frame: &'a [u8],
    /// Its pending offload.
    pub offload: Option<Offload>,
    /// Of a super-frame.
    pub layout: Option<Layout>,
}

/// Segments of a super-frame that are whole.
#[derive(Debug)]
pub struct Run<'a> {
    /// The headers of these segments alone.
    pub headers: &'a [u8],
    /// Their payload.
    pub payload: &'a [u8],
    /// Their pending offload.
    pub offload: Offload,
    /// Of more than one segment.
    pub layout: Option<Layout>,
}

/// Which broken super-frames [`Reassembly::poll_run`] considers.
#[derive(Clone, Copy, Debug)]
pub enum Which<'a> {
    /// Those that a frame between these stations is about to overtake.
    Between(&'a Stations),
    /// Those that the datagrams up to this sequence number have left behind, and those of which
    /// segments were delivered before.
    LeftBehind(u64),
    /// All of them.
    All,
}

/// An unfinished frame.
#[derive(Clone, Copy, Debug)]
struct Live {
    frame_id: u32,
    is_super: bool,
    /// Its buffer.
    at: usize,
    /// The sequence number of the datagram with its latest piece.
    newest: u64,
}

/// Frames of one lane that are not complete yet.
#[derive(Debug)]
pub struct Reassembly {
    max_frame: u32,
    pool: BufferPool,
    /// In the order in which they were begun.
    live: Vec<Live>,
    /// Super-frames among them.
    supers: usize,
    /// The buffer of the frame that is complete and was not taken yet.
    whole: Option<usize>,
    finished: [Option<CutFrame>; FINISHED],
    /// The position of the next one.
    next_finished: usize,
    headers: [u8; HEADER_ROOM],
    evicted: u64,
    lost_segments: u64,
}

impl Reassembly {
    /// `max_frame`: bytes of the largest frame or segment that is accepted.
    pub fn new(max_frame: u32) -> Self {
        Self::with_budget(max_frame, REASSEMBLY_LANE_BYTES)
    }

    /// The same with this many bytes for unfinished frames; see
    /// [`limits::reassembly_bytes`](super::limits::reassembly_bytes).
    pub fn with_budget(max_frame: u32, budget: usize) -> Self {
        Self {
            max_frame,
            pool: BufferPool::new(budget, MAX_SUPERFRAME.max(max_frame as usize)),
            live: Vec::new(),
            supers: 0,
            whole: None,
            finished: [None; FINISHED],
            next_finished: 0,
            headers: [0; HEADER_ROOM],
            evicted: 0,
            lost_segments: 0,
        }
    }

    /// Adds a piece from datagram number `sequence`. True when its frame is whole: then
    /// [`Self::take_whole`] has it.
    ///
    /// # Errors
    /// [`DropReason::Malformed`] for a piece that contradicts itself or an earlier one, or leaves
    /// too many gaps (the frame is discarded then), [`DropReason::Oversize`] for a frame larger
    /// than allowed.
    pub fn add(
        &mut self,
        sequence: u64,
        fragment: Fragment,
        piece: &[u8],
    ) -> Result<bool, DropReason> {
        let Fragment {
            frame_id,
            total,
            offset,
        } = fragment;
        let frame = CutFrame { frame_id, total };
        self.file(sequence, frame, |buffer, _| buffer.write(offset, piece))
    }

    /// Adds an offload chunk: the pending offload of a frame, and its first bytes.
    ///
    /// # Errors
    /// As [`Self::add`], and [`DropReason::BadOffload`].
    pub fn describe(
        &mut self,
        sequence: u64,
        frame: CutFrame,
        offload: Offload,
        head: &[u8],
    ) -> Result<bool, DropReason> {
        let is_live = |live: &Live| live.frame_id == frame.frame_id;
        if self.finished.contains(&Some(frame)) && !self.live.iter().any(is_live) {
            return Ok(false);
        }
        self.file(sequence, frame, |buffer, max_frame| {
            buffer.describe(offload, head, max_frame)
        })
    }

    fn file(
        &mut self,
        sequence: u64,
        frame: CutFrame,
        add: impl FnOnce(&mut Buffer, u32) -> Result<(), DropReason>,
    ) -> Result<bool, DropReason> {
        if frame.total as usize > MAX_SUPERFRAME.max(self.max_frame as usize) {
            return Err(DropReason::Oversize);
        }
        let nth = self.find_or_begin(frame)?;
        let live = &mut self.live[nth];
        live.newest = live.newest.max(sequence);
        let (at, max_frame) = (live.at, self.max_frame);
        let buffer = &mut self.pool[at];
        let added = if buffer.total == frame.total as usize {
            add(buffer, max_frame)
        } else {
            Err(DropReason::Malformed)
        };
        if let Err(reason) = added {
            self.free(nth);
            return Err(reason);
        }
        if buffer.layout.is_some() && !std::mem::replace(&mut live.is_super, true) {
            self.supers += 1;
        }
        if buffer.is_broken || !buffer.is_complete() {
            return Ok(false);
        }
        if buffer.layout.is_none() && buffer.total > max_frame as usize {
            self.free(nth);
            return Err(DropReason::Oversize);
        }
        self.whole = Some(at);
        Ok(true)
    }

    /// The stations of the frame that is whole.
    pub fn whole_stations(&self) -> Option<Stations> {
        self.pool[self.whole?].bytes.first_chunk().copied()
    }

    /// The frame that is whole; once.
    pub fn take_whole(&mut self) -> Option<Whole<'_>> {
        let at = self.whole.take()?;
        let nth = self.nth_at(at)?;
        self.finish(nth);
        let buffer = &self.pool[at];
        Some(Whole {
            frame: &buffer.bytes[..buffer.total],
            offload: buffer.offload,
            layout: buffer.layout,
        })
    }

    /// Whether a super-frame waits for its missing pieces: call [`Self::poll_run`] for all of them
    /// when nothing arrives for a while.
    pub fn is_waiting(&self) -> bool {
        let waits = |live: &Live| live.is_super && self.pool[live.at].has_news;
        self.supers > 0 && self.live.iter().any(waits)
    }

    /// Whether there is anything to deliver, to give up or to count.
    pub fn is_unfinished(&self) -> bool {
        !self.live.is_empty() || self.evicted + self.lost_segments > 0
    }

    /// Segments to deliver from super-frames that are not whole, the oldest first.
    pub fn poll_run(&mut self, which: Which<'_>) -> Option<Run<'_>> {
        if self.supers == 0 {
            return None;
        }
        let (nth, layout, run) = self.next_run(which)?;
        let at = self.live[nth].at;
        let buffer = &mut self.pool[at];
        buffer.is_broken = true;
        buffer.handed_out += run.len();
        buffer.ready.remove(run.clone());
        let (offload, of_run) = layout.emit_headers(&buffer.bytes, run.clone(), &mut self.headers);
        if buffer.handed_out == layout.segments() {
            self.finish(nth);
        }
        Some(Run {
            headers: &self.headers[..layout.headers_len()],
            payload: &self.pool[at].bytes[layout.payload(run)],
            offload,
            layout: of_run,
        })
    }

    /// A frame that was begun later than the whole one does not leave before it.
    fn next_run(&mut self, which: Which<'_>) -> Option<(usize, Layout, Range<usize>)> {
        let end = match self.whole {
            Some(at) => self.nth_at(at)?,
            None => self.live.len(),
        };
        for (nth, live) in self.live[..end].iter().enumerate() {
            if !live.is_super || !is_asked_for(live, &self.pool[live.at], which) {
                continue;
            }
            let buffer = &mut self.pool[live.at];
            if let Some((layout, run)) = buffer.next_run() {
                return Some((nth, layout, run));
            }
            buffer.has_news = false;
        }
        None
    }

    /// Gives up frames that the datagrams up to this sequence number have left far behind.
    pub fn forget(&mut self, sequence: u64) {
        for nth in (0..self.live.len()).rev() {
            if self.live[nth].newest + REPLAY_WINDOW < sequence {
                self.give_up(nth);
            }
        }
    }

    /// Frames given up since the last call because their pieces were lost.
    pub fn take_evicted(&mut self) -> u64 {
        std::mem::take(&mut self.evicted)
    }

    /// Segments given up since the last call, of super-frames of which others were delivered.
    pub fn take_lost_segments(&mut self) -> u64 {
        std::mem::take(&mut self.lost_segments)
    }

    fn nth_at(&self, at: usize) -> Option<usize> {
        self.live.iter().rposition(|live| live.at == at)
    }

    /// Frees the buffer of a frame that was delivered to the end.
    fn finish(&mut self, nth: usize) {
        let Live { frame_id, at, .. } = self.live[nth];
        let buffer = &self.pool[at];
        if buffer.layout.is_some() {
            let total = buffer.total as u32;
            self.finished[self.next_finished] = Some(CutFrame { frame_id, total });
            self.next_finished = (self.next_finished + 1) % FINISHED;
        }
        self.free(nth);
    }

    fn free(&mut self, nth: usize) {
        let live = self.live.remove(nth);
        self.supers -= usize::from(live.is_super);
        self.pool.give_back(live.at);
    }

    /// Finds the unfinished frame of a piece; a new frame replaces the oldest if there is no room
    /// beside it.
    fn find_or_begin(&mut self, frame: CutFrame) -> Result<usize, DropReason> {
        // From the end: most pieces belong to the frame that was begun last.
        let is_it = |live: &Live| live.frame_id == frame.frame_id;
        if let Some(nth) = self.live.iter().rposition(is_it) {
            return Ok(nth);
        }
        let at = loop {
            if let Some(at) = self.pool.take(frame.total as usize) {
                break at;
            }
            if self.live.is_empty() {
                return Err(DropReason::ReassemblyEvicted);
            }
            self.give_up(0);
        };
        self.pool[at].begin(frame);
        self.live.push(Live {
            frame_id: frame.frame_id,
            is_super: false,
            at,
            newest: 0,
        });
        Ok(self.live.len() - 1)
    }

    fn give_up(&mut self, nth: usize) {
        let buffer = &self.pool[self.live[nth].at];
        match buffer.layout {
            Some(layout) if buffer.is_broken => {
                self.lost_segments += (layout.segments() - buffer.handed_out) as u64;
            }
            _ => self.evicted += 1,
        }
        self.free(nth);
    }
}

/// Whether the whole segments of a super-frame may leave.
fn is_asked_for(live: &Live, buffer: &Buffer, which: Which<'_>) -> bool {
    buffer.has_news
        && match which {
            Which::Between(stations) => buffer.bytes.starts_with(stations),
            Which::LeftBehind(sequence) => buffer.is_broken || live.newest + REORDERING < sequence,
            Which::All => true,
        }
}

#[cfg(test)]
mod tests;
