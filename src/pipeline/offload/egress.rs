// SPDX-License-Identifier: MIT OR Apache-2.0
//! A frame that leaves: to the TAP with its pending offload, or finished.

use std::{
    io::{self, IoSlice},
    ops::Range,
};

use patchcord_bridge::{
    EDIT_BYTES, TagEdit,
    ethernet::{Fields, Headers, Network},
};

use super::signal::{Signal, lone};
use crate::{
    io::tap::{TapQueue, VnetHeader},
    pipeline::frame_buf::{FrameBuf, MIN_FRAME},
    proto::{
        ecn,
        merge::Mergeable,
        mss::TooLarge,
        partial_checksum::finish_checksum,
        superframe::{self, HEADER_ROOM, Layout, MAX_HEADERS},
        train::PendingOffload,
    },
    stats::DropReason,
    wire::offload::{Checksum, Offload, Transport},
};

/// A frame on its way to the TAP: its front with all headers, the rest, and its pending offload.
#[derive(Clone, Copy)]
pub(in crate::pipeline) struct EgressFrame<'a> {
    /// Its parsed headers, if there are any.
    pub(super) fields: Option<Fields>,
    pub(in crate::pipeline) head: &'a [u8],
    pub(in crate::pipeline) rest: &'a [u8],
    pub(in crate::pipeline) pending: Option<(Offload, Option<Layout>)>,
}

impl<'a> EgressFrame<'a> {
    /// Without a pending offload.
    pub(in crate::pipeline) fn finished(frame: &'a [u8]) -> Self {
        Self::of_parts(frame, &[], None)
    }

    /// The one place where the headers of a frame from a peer are parsed.
    pub(in crate::pipeline) fn of_parts(
        head: &'a [u8],
        rest: &'a [u8],
        pending: Option<(Offload, Option<Layout>)>,
    ) -> Self {
        Self {
            fields: Fields::parse(head).ok(),
            head,
            rest,
            pending,
        }
    }

    /// Its headers; none if it is too short for them.
    pub(in crate::pipeline) fn headers(&self) -> Option<Headers<'a>> {
        self.fields.map(|fields| fields.of(self.head))
    }

    pub(in crate::pipeline) fn network(&self) -> Option<Network> {
        self.headers()?.network()
    }

    /// As a device of this machine or a peer has handed it over.
    ///
    /// # Errors
    /// [`DropReason::BadOffload`] when `pending` does not describe the frame.
    pub(super) fn of(frame: &'a [u8], pending: PendingOffload) -> Result<Self, DropReason> {
        let PendingOffload { offload, .. } = pending;
        let layout = match offload.segmentation {
            None => None,
            Some(_) => Some(Layout::parse(frame, frame.len(), &offload, usize::MAX)?),
        };
        Ok(Self {
            pending: Some((offload, layout)),
            ..Self::finished(frame)
        })
    }

    pub(in crate::pipeline) fn len(&self) -> usize {
        self.head.len() + self.rest.len()
    }

    pub(in crate::pipeline) fn is_super(&self) -> bool {
        matches!(self.pending, Some((_, Some(_))))
    }

    /// The number of frames that it stands for.
    pub(in crate::pipeline) fn segments(&self) -> u32 {
        let layout = self.pending.and_then(|(_, layout)| layout);
        layout.map_or(1, |layout| layout.segments() as u32)
    }

    /// Its pending offload, for a frame that is forwarded to another peer.
    pub(in crate::pipeline) fn as_pending(&self) -> Option<PendingOffload> {
        let (offload, layout) = self.pending?;
        let checksum = offload.checksum;
        let headers_len = match layout {
            Some(layout) => layout.headers_len(),
            None => usize::from(checksum.start) + usize::from(checksum.offset) + 2,
        };
        Some(PendingOffload {
            offload,
            headers_len,
        })
    }

    /// The same with another tag. `front` takes a copy of the headers.
    pub(in crate::pipeline) fn edited(
        self,
        edit: TagEdit,
        front: &'a mut [u8; HEADER_ROOM],
    ) -> Self {
        let mut tag = [0; EDIT_BYTES];
        let (len, replaced) = edit.apply(self.head, &mut tag);
        if len == 0 {
            return self;
        }
        let layout = self.pending.and_then(|(_, layout)| layout);
        let copied = match (self.rest, layout) {
            ([], Some(layout)) => layout.headers_len(),
            ([], None) => self.head.len().min(MAX_HEADERS),
            _ => self.head.len(),
        };
        let mut end = len + copied - replaced;
        front[..len].copy_from_slice(&tag[..len]);
        front[len..end].copy_from_slice(&self.head[replaced..copied]);
        let mut rest = match self.rest {
            [] => &self.head[copied..],
            rest => rest,
        };
        if replaced > len && layout.is_none() && end + rest.len() < MIN_FRAME {
            front[end..end + rest.len()].copy_from_slice(rest);
            front[end + rest.len()..MIN_FRAME].fill(0);
            (end, rest) = (MIN_FRAME, &[]);
        }
        let by = edit.delta();
        let shift = |(offload, layout): (Offload, Option<Layout>)| {
            (offload.shifted(by), layout.map(|layout| layout.shifted(by)))
        };
        Self::of_parts(&front[..end], rest, self.pending.map(shift))
    }

    /// The same with a lower maximum segment size, in a SYN. `front` takes a copy of the headers.
    pub(in crate::pipeline) fn announcing_less(
        self,
        announced: TooLarge,
        front: &'a mut [u8; HEADER_ROOM],
    ) -> Self {
        let copied = self.head.len().min(MAX_HEADERS);
        front[..copied].copy_from_slice(&self.head[..copied]);
        announced.lower(&mut front[..copied], self.pending.is_some());
        Self {
            head: &front[..copied],
            rest: match self.rest {
                [] => &self.head[copied..],
                rest => rest,
            },
            ..self
        }
    }

    /// Signals its sender to slow down, as [`signal`](super::signal()) does.
    pub(in crate::pipeline) fn signalled(self, headers: &'a mut [u8; HEADER_ROOM]) -> Signal<Self> {
        let layout = self.pending.and_then(|(_, layout)| layout);
        let copied = match layout {
            Some(layout) => layout.headers_len(),
            None => self.head.len().min(MAX_HEADERS),
        };
        headers[..copied].copy_from_slice(&self.head[..copied]);
        let rest = match self.rest {
            [] => &self.head[copied..],
            rest => rest,
        };
        let network = self.network();
        if ecn::mark_congestion(&mut headers[..copied], network) {
            return Signal::Marked(Self {
                head: &headers[..copied],
                rest,
                ..self
            });
        }
        let Some(layout) = layout.filter(|layout| layout.segments() > 1) else {
            return lone(self.head, network);
        };
        let run = 0..layout.segments() - 1;
        let pending = layout.emit_headers(self.head, run.clone(), headers);
        Signal::Shortened(Self {
            head: &headers[..copied],
            rest: &rest[..layout.payload(run).len()],
            pending: Some(pending),
            ..self
        })
    }

    /// As a part of a super-frame, if it may be one.
    pub(in crate::pipeline) fn mergeable(&self) -> Option<Mergeable<'a>> {
        let open = match self.pending {
            None => None,
            Some((offload, None)) => Some(offload.checksum),
            Some((_, Some(_))) => return None,
        };
        Mergeable::of(&self.headers()?, self.rest, open)
    }

    /// Writes it, finished first if the back-end cannot leave that to the kernel.
    pub(in crate::pipeline) fn write(
        &self,
        tap: &TapQueue,
        scratch: &mut Vec<u8>,
    ) -> io::Result<()> {
        match self.pending {
            Some(_) if !tap.takes_offloads() => self.write_finished(tap, scratch),
            Some((_, Some(_))) => self.write_pending(tap).or_else(|error| {
                // Kernels before 6.2 know no UDP super-frames, and later ones have some limits.
                if error.kind() == io::ErrorKind::InvalidInput {
                    self.write_finished(tap, scratch)
                } else {
                    Err(error)
                }
            }),
            _ => self.write_pending(tap),
        }
    }

    /// Writes it as it is.
    pub(in crate::pipeline) fn write_pending(&self, tap: &TapQueue) -> io::Result<()> {
        if self.rest.is_empty() {
            return tap.write(&self.vnet(), self.head);
        }
        let parts = [IoSlice::new(self.head), IoSlice::new(self.rest)];
        tap.write_parts(&self.vnet(), &parts)
    }

    pub(super) fn vnet(&self) -> VnetHeader {
        let Some((offload, layout)) = self.pending else {
            return VnetHeader::NONE;
        };
        let mut vnet = VnetHeader {
            flags: VnetHeader::NEEDS_CHECKSUM,
            csum_start: offload.checksum.start,
            csum_offset: offload.checksum.offset,
            ..VnetHeader::NONE
        };
        if let (Some(segmentation), Some(layout)) = (offload.segmentation, layout) {
            vnet.gso_type = match (segmentation.transport, layout.is_ipv6()) {
                (Transport::Tcp, false) => VnetHeader::GSO_TCPV4,
                (Transport::Tcp, true) => VnetHeader::GSO_TCPV6,
                (Transport::Udp, _) => VnetHeader::GSO_UDP_L4,
            };
            if segmentation.cwr {
                vnet.gso_type |= VnetHeader::GSO_ECN;
            }
            vnet.gso_size = segmentation.size;
            vnet.hdr_len = layout.headers_len() as u16;
        }
        vnet
    }

    /// Bytes of the payload of a super-frame, counted from the start of the frame.
    fn part(&self, bytes: Range<usize>) -> &'a [u8] {
        match self.rest {
            [] => &self.head[bytes],
            rest => &rest[bytes.start - self.head.len()..bytes.end - self.head.len()],
        }
    }

    /// Writes every frame that it stands for on its own, its checksum finished, and shows the
    /// length of each and whether the kernel took it.
    pub(in crate::pipeline) fn write_apart(
        &self,
        tap: &TapQueue,
        scratch: &mut Vec<u8>,
        mut show: impl FnMut(usize, io::Result<()>),
    ) {
        // Its checksum lies inside of it.
        let _ = self.try_each_finished(scratch, |frame| {
            let written = tap.write(&VnetHeader::NONE, frame.frame());
            show(frame.frame().len(), written);
            Ok::<_, io::Error>(())
        });
    }

    /// The slow path of the plain back-end.
    fn write_finished(&self, tap: &TapQueue, scratch: &mut Vec<u8>) -> io::Result<()> {
        self.try_each_finished(scratch, |frame| tap.write(&VnetHeader::NONE, frame.frame()))
    }

    /// Shows every frame that this one stands for, its checksum finished.
    pub(super) fn try_each_finished<E: From<BadChecksum>>(
        &self,
        scratch: &mut Vec<u8>,
        mut show: impl FnMut(&mut FrameBuf<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let Some((offload, layout)) = self.pending else {
            return show(&mut FrameBuf::copy(scratch, &[self.head, self.rest]));
        };
        let Some(layout) = layout else {
            let mut whole = FrameBuf::copy(scratch, &[self.head, self.rest]);
            finish(&mut whole, offload.checksum)?;
            return show(&mut whole);
        };
        for segment in 0..layout.segments() {
            let mut headers = [0; HEADER_ROOM];
            let run = segment..segment + 1;
            let (pending, _) = layout.emit_headers(self.head, run.clone(), &mut headers);
            let headers = &headers[..layout.headers_len()];
            let mut frame = FrameBuf::copy(scratch, &[headers, self.part(layout.payload(run))]);
            finish(&mut frame, pending.checksum)?;
            show(&mut frame)?;
        }
        Ok(())
    }
}

/// A partial checksum that does not lie inside of its frame.
pub(super) struct BadChecksum;

impl From<BadChecksum> for io::Error {
    fn from(_: BadChecksum) -> Self {
        io::ErrorKind::InvalidData.into()
    }
}

impl From<BadChecksum> for DropReason {
    fn from(_: BadChecksum) -> Self {
        Self::BadOffload
    }
}

fn finish(frame: &mut FrameBuf<'_>, checksum: Checksum) -> Result<(), BadChecksum> {
    finish_checksum(frame.frame_mut(), checksum).map_err(|_| BadChecksum)
}

/// Whether the offload of `frame` may stay pending when the frame leaves with this edit: a peer
/// accepts headers of at most [`MAX_HEADERS`], as many tags, and no bytes behind the IP packet.
pub(in crate::pipeline) fn may_stay_pending(
    frame_len: usize,
    network: Option<Network>,
    pending: &PendingOffload,
    edit: TagEdit,
) -> bool {
    let by = edit.delta();
    let is_padded = by < 0 && frame_len.saturating_add_signed(by) < MIN_FRAME;
    !is_padded
        && pending.headers_len.saturating_add_signed(by) <= MAX_HEADERS
        && (by <= 0 || superframe::has_room_for_tag(network))
}

/// Shows every frame that this one stands for, without a pending offload.
///
/// # Errors
/// [`DropReason::BadOffload`] when `pending` does not describe the frame.
pub(in crate::pipeline) fn each_finished(
    frame: &[u8],
    pending: PendingOffload,
    scratch: &mut Vec<u8>,
    mut show: impl FnMut(&mut FrameBuf<'_>),
) -> Result<(), DropReason> {
    EgressFrame::of(frame, pending)?.try_each_finished(scratch, |frame| {
        show(frame);
        Ok(())
    })
}
