// SPDX-License-Identifier: MIT OR Apache-2.0
//! Puts frames together that came in pieces (PROTOCOL.md, "Fragments" and "Offloads").
//!
//! One for each session, lane and receiving thread. Memory is bounded in bytes, not in frames: on a
//! path that lets datagrams overtake each other, as many frames are unfinished as the sender sends
//! in that time. When the bytes are used up, the oldest frame makes room. Every piece comes from an
//! authentic datagram that the replay window let through once, so what remains to be handled is
//! loss, reordering, and a peer that lies about its own frames.
//!
//! An ordinary frame with a hole is lost. A super-frame with holes is handed out as the runs of
//! segments that are whole ([`Reassembly::poll_run`]): when a later frame between the same stations
//! is about to overtake it, when much has arrived since, or when nothing arrives any more. Pieces
//! that come even later are handed out in the same way.

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

/// So many super-frames that were handed out to the end are remembered: their headers may come once
/// more.
const FINISHED: usize = 64;

/// Destination and source address: frames with the same pair stay in order.
pub type Stations = [u8; 12];

/// A frame that is whole.
#[derive(Clone, Copy, Debug)]
pub struct Whole<'a> {
    /// All of it.
    pub frame: &'a [u8],
    /// What is open in it.
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
    /// What is open in them.
    pub offload: Offload,
    /// Of more than one segment.
    pub layout: Option<Layout>,
}

/// Which broken super-frames [`Reassembly::poll_run`] looks at.
#[derive(Clone, Copy, Debug)]
pub enum Which<'a> {
    /// Those that a frame between these stations is about to overtake.
    Between(&'a Stations),
    /// Those that the datagrams up to this sequence number have left behind, and those of which
    /// something was handed out before.
    LeftBehind(u64),
    /// All of them.
    All,
}

/// An unfinished frame.
#[derive(Clone, Copy, Debug)]
struct Live {
    frame_id: u32,
    is_super: bool,
    /// Where it is.
    at: usize,
    /// The sequence number of the datagram that brought the latest piece.
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
    /// The place of the frame that is complete and was not taken yet.
    whole: Option<usize>,
    finished: [Option<CutFrame>; FINISHED],
    /// Where the next one goes.
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

    /// The same with so many bytes for unfinished frames; see
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

    /// Adds a piece, which datagram number `sequence` brought. True when its frame is whole: then
    /// [`Self::take_whole`] has it.
    ///
    /// # Errors
    /// [`DropReason::Malformed`] for a piece that contradicts itself or an earlier one, or leaves too
    /// many gaps (the frame is forgotten then), [`DropReason::Oversize`] for a frame larger than
    /// allowed.
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

    /// Adds an offload chunk: what is open in a frame, and its first bytes.
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

    /// Whether a super-frame waits for its missing pieces: [`Self::poll_run`] should be asked for
    /// all when nothing comes for a while.
    pub fn is_waiting(&self) -> bool {
        let waits = |live: &Live| live.is_super && self.pool[live.at].has_news;
        self.supers > 0 && self.live.iter().any(waits)
    }

    /// Whether there is anything to hand out, to give up or to count.
    pub fn is_unfinished(&self) -> bool {
        !self.live.is_empty() || self.evicted + self.lost_segments > 0
    }

    /// Segments to hand out from super-frames that are not whole, the oldest first.
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

    /// What is begun later than the frame that is whole does not leave before it.
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

    /// Gives up what the datagrams up to this sequence number have left far behind.
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

    /// Segments given up since the last call, of super-frames of which others were handed out.
    pub fn take_lost_segments(&mut self) -> u64 {
        std::mem::take(&mut self.lost_segments)
    }

    fn nth_at(&self, at: usize) -> Option<usize> {
        self.live.iter().rposition(|live| live.at == at)
    }

    /// Frees the place of a frame that was handed out to the end.
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

    /// Which of the unfinished frames it is; a new one takes the place of the oldest if there is no
    /// room beside it.
    fn find_or_begin(&mut self, frame: CutFrame) -> Result<usize, DropReason> {
        // From the end: most pieces belong to what was begun last.
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

/// Whether what is whole of a super-frame may leave.
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
