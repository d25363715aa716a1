// SPDX-License-Identifier: MIT OR Apache-2.0
//! A frame in a buffer with headroom, whose tag can be edited in place.

use patchcord_bridge::{EDIT_BYTES, TagEdit};

/// Bytes of the shortest Ethernet frame without its check sequence (IEEE 802.3). A frame that loses
/// its tag is padded with zeros again, since no network card that forwards it knows how long it
/// was.
pub(super) const MIN_FRAME: usize = 60;
/// Room in front of a frame, for a tag.
pub(super) const HEADROOM: usize = 4;

/// A frame and the room in front of it.
pub(super) struct FrameBuf<'a>(&'a mut [u8]);

impl<'a> FrameBuf<'a> {
    /// Of a frame with [`HEADROOM`] bytes in front of it.
    pub(super) fn of(room: &'a mut [u8]) -> Self {
        Self(room)
    }

    /// Of a copy in `room`, replacing its contents.
    pub(super) fn copy(room: &'a mut Vec<u8>, parts: &[&[u8]]) -> Self {
        room.clear();
        room.extend_from_slice(&[0; HEADROOM]);
        for part in parts {
            room.extend_from_slice(part);
        }
        Self(room)
    }

    pub(super) fn frame(&self) -> &[u8] {
        &self.0[HEADROOM..]
    }

    pub(super) fn frame_mut(&mut self) -> &mut [u8] {
        &mut self.0[HEADROOM..]
    }

    /// Keeps this many bytes of the frame.
    pub(super) fn truncate(&mut self, len: usize) {
        let room = std::mem::take(&mut self.0);
        self.0 = &mut room[..HEADROOM + len];
    }

    /// Removes this many bytes from the front of the frame.
    pub(super) fn skip(&mut self, len: usize) {
        let room = std::mem::take(&mut self.0);
        self.0 = &mut room[len..];
    }

    /// Shows the frame with another tag, and takes the change back.
    pub(super) fn with_edit<T>(&mut self, edit: TagEdit, show: impl FnOnce(&[u8]) -> T) -> T {
        let mut front = [0; EDIT_BYTES];
        let (len, replaced) = edit.apply(self.frame(), &mut front);
        let end = HEADROOM + replaced;
        if replaced > len && self.0.len() - end + len < MIN_FRAME {
            let mut padded = [0; MIN_FRAME];
            let rest = &self.0[end..];
            padded[..len].copy_from_slice(&front[..len]);
            padded[len..len + rest.len()].copy_from_slice(rest);
            return show(&padded);
        }
        let mut before = [0; HEADROOM + EDIT_BYTES];
        before[..end].copy_from_slice(&self.0[..end]);
        self.0[end - len..end].copy_from_slice(&front[..len]);
        let shown = show(&self.0[end - len..]);
        self.0[..end].copy_from_slice(&before[..end]);
        shown
    }
}
