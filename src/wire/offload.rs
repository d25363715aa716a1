// SPDX-License-Identifier: MIT OR Apache-2.0
//! The work that the kernel left pending in a frame, and the description that travels with it so
//! that the other end's kernel can finish it (PROTOCOL.md, "Offloads"). Values only;
//! `proto::superframe` checks them.

/// A checksum that holds the sum of the pseudo-header only: the next sender sums up
/// everything from `start` to the end and writes the result at `start + offset`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checksum {
    /// Where the transport header starts, in bytes from the start of the frame.
    pub start: u16,
    /// Where the checksum is, in bytes from `start`.
    pub offset: u16,
}

/// What segments are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Transport {
    /// TCP segments of one stream.
    Tcp = 1,
    /// UDP datagrams of equal size.
    Udp = 2,
}

impl Transport {
    /// The protocol with this number on the wire.
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            1 => Some(Self::Tcp),
            2 => Some(Self::Udp),
            _ => None,
        }
    }
}

/// How to cut a super-frame into frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segmentation {
    /// What the segments are.
    pub transport: Transport,
    /// Payload bytes of each segment; the last may have fewer.
    pub size: u16,
    /// Only the first segment has the TCP flag CWR.
    pub cwr: bool,
}

/// The pending offload of a frame. A super-frame's checksum is always pending.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offload {
    /// The checksum to finish.
    pub checksum: Checksum,
    /// For a super-frame.
    pub segmentation: Option<Segmentation>,
}

impl Offload {
    /// The same for the frame with its headers shifted back by `by` bytes.
    #[must_use]
    pub fn shifted(self, by: isize) -> Self {
        let start = usize::from(self.checksum.start).saturating_add_signed(by);
        Self {
            checksum: Checksum {
                start: start as u16,
                ..self.checksum
            },
            ..self
        }
    }
}
