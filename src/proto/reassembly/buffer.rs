// SPDX-License-Identifier: MIT OR Apache-2.0
//! One unfinished frame: its bytes, which of them have arrived, and which segments can leave.

use std::ops::Range;

use patchcord_bridge::Headers;

use crate::{
    proto::{
        limits::REASSEMBLY_PARTS,
        partial_checksum::check_checksum,
        superframe::{Layout, MAX_SEGMENTS},
    },
    stats::DropReason,
    wire::{chunk::CutFrame, offload::Offload},
};

/// A frame that is being reassembled.
#[derive(Debug, Default)]
pub(super) struct Buffer {
    /// Length of the whole frame.
    pub(super) total: usize,
    /// At least `total` of them.
    pub(super) bytes: Vec<u8>,
    /// The parts that have arrived: sorted, apart from each other, never empty.
    pub(super) present: Vec<Range<u32>>,
    /// The pending offload of the frame; `None` until its offload chunk has arrived, and in
    /// finished frames.
    pub(super) offload: Option<Offload>,
    /// Of a super-frame whose offload chunk has arrived.
    pub(super) layout: Option<Layout>,
    /// Segments were delivered before the frame was whole.
    pub(super) is_broken: bool,
    /// Something arrived since all whole segments were delivered.
    pub(super) has_news: bool,
    /// Whether `ready` is kept up to date, which begins when segments are first requested.
    is_tracked: bool,
    /// Segments that are whole and were not delivered.
    pub(super) ready: Segments,
    /// How many were delivered.
    pub(super) handed_out: usize,
}

/// A set of segments of one super-frame.
#[derive(Debug)]
pub(super) struct Segments([u64; MAX_SEGMENTS / 64]);

impl Default for Segments {
    fn default() -> Self {
        Self([0; MAX_SEGMENTS / 64])
    }
}

impl Segments {
    fn has(&self, segment: usize) -> bool {
        self.0
            .get(segment / 64)
            .is_some_and(|word| word >> (segment % 64) & 1 == 1)
    }

    fn insert(&mut self, segment: usize) {
        self.0[segment / 64] |= 1 << (segment % 64);
    }

    pub(super) fn remove(&mut self, segments: Range<usize>) {
        for segment in segments {
            self.0[segment / 64] &= !(1 << (segment % 64));
        }
    }

    /// The first segments in a row.
    fn first_run(&self) -> Option<Range<usize>> {
        let word = self.0.iter().position(|&word| word != 0)?;
        let first = word * 64 + self.0[word].trailing_zeros() as usize;
        let end = (first..).find(|&segment| !self.has(segment))?;
        Some(first..end)
    }
}

impl Buffer {
    pub(super) fn is_complete(&self) -> bool {
        matches!(&self.present[..], [only] if only.start == 0 && only.end as usize == self.total)
    }

    /// Begins the next frame in the same buffer. There is room for `total` bytes.
    pub(super) fn begin(&mut self, frame: CutFrame) {
        self.present.clear();
        self.offload = None;
        self.layout = None;
        self.has_news = false;
        self.is_broken = false;
        self.handed_out = 0;
        if std::mem::take(&mut self.is_tracked) {
            self.ready = Segments::default();
        }
        // Bytes of an earlier frame may stay in the buffer: only bytes that were written for this
        // frame are delivered.
        self.total = frame.total as usize;
    }

    /// Records the range as present.
    fn insert(&mut self, piece: Range<u32>) -> Result<(), DropReason> {
        let at = self
            .present
            .partition_point(|range| range.end < piece.start);
        let is_full = self.present.len() == REASSEMBLY_PARTS;
        match self.present.get_mut(at) {
            Some(next) if next.end == piece.start => {
                next.end = piece.end;
                self.join_with_following(at)
            }
            Some(next) if next.start < piece.end => Err(DropReason::Malformed),
            Some(next) if next.start == piece.end => {
                next.start = piece.start;
                Ok(())
            }
            _ if is_full => Err(DropReason::Malformed),
            _ => {
                self.present.insert(at, piece);
                Ok(())
            }
        }
    }

    fn join_with_following(&mut self, at: usize) -> Result<(), DropReason> {
        let end = self.present[at].end;
        match self.present.get(at + 1) {
            Some(following) if following.start < end => Err(DropReason::Malformed),
            Some(following) if following.start == end => {
                self.present[at].end = following.end;
                self.present.remove(at + 1);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    pub(super) fn write(&mut self, offset: u32, piece: &[u8]) -> Result<(), DropReason> {
        let end = offset
            .checked_add(piece.len() as u32)
            .ok_or(DropReason::Malformed)?;
        if piece.is_empty() || end as usize > self.total {
            return Err(DropReason::Malformed);
        }
        self.insert(offset..end)?;
        self.bytes[offset as usize..end as usize].copy_from_slice(piece);
        if let Some(layout) = self.layout {
            if self.is_tracked {
                self.track(layout, layout.segments_of(offset as usize..end as usize));
            } else {
                self.has_news = true;
            }
        }
        Ok(())
    }

    /// Records the pending offload of the frame, and its first bytes. Returns the same when the
    /// chunk arrives again.
    pub(super) fn describe(
        &mut self,
        offload: Offload,
        head: &[u8],
        max_frame: u32,
    ) -> Result<(), DropReason> {
        if self.offload.is_some() {
            return Ok(());
        }
        let layout = match offload.segmentation {
            None => {
                let headers = Headers::parse(head).map_err(|_| DropReason::BadOffload)?;
                check_checksum(&headers, self.total, offload.checksum)?;
                None
            }
            Some(_) => {
                let layout = Layout::parse(head, self.total, &offload, max_frame as usize)?;
                Some(layout)
            }
        };
        if layout.is_some_and(|layout| layout.headers_len() != head.len()) {
            return Err(DropReason::BadOffload);
        }
        self.write(0, head)?;
        self.offload = Some(offload);
        self.layout = layout;
        self.has_news = layout.is_some();
        Ok(())
    }

    /// Records which of these segments are whole. No piece is recorded twice, so no segment is
    /// recorded again after it was delivered.
    fn track(&mut self, layout: Layout, segments: Range<usize>) {
        for segment in segments {
            let bytes = layout.payload(segment..segment + 1);
            let at = self
                .present
                .partition_point(|part| (part.end as usize) < bytes.end);
            let part = self.present.get(at);
            if part.is_some_and(|part| part.start as usize <= bytes.start) {
                self.ready.insert(segment);
                self.has_news = true;
            }
        }
    }

    /// The first segments that are whole and were not delivered.
    pub(super) fn next_run(&mut self) -> Option<(Layout, Range<usize>)> {
        let layout = self.layout?;
        if !std::mem::replace(&mut self.is_tracked, true) {
            self.track(layout, 0..layout.segments());
        }
        Some((layout, self.ready.first_run()?))
    }
}

#[cfg(test)]
impl Buffer {
    /// Bytes of the list of parts.
    pub(super) fn parts_bytes(&self) -> usize {
        self.present.capacity() * size_of::<Range<u32>>()
    }
}
