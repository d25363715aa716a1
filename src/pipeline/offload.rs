// SPDX-License-Identifier: MIT OR Apache-2.0
//! Between the kernel's header of a frame at the TAP and the pending offload that travels with it.
//!
//! Outbound, a frame that would pass the checks of a peer crosses as it is, and any other is cut or
//! finished here: a device of this machine is trusted as the kernel trusts it. Inbound, no claim of
//! a peer reaches the kernel unless `proto::superframe` has checked it or it is computed here.

use std::{
    io::{self, IoSlice},
    ops::Range,
};

use patchcord_bridge::{
    EDIT_BYTES, TagEdit,
    ethernet::{Fields, Headers, Network},
};

use super::frame_buf::{FrameBuf, MIN_FRAME};
use crate::{
    io::tap::{TapQueue, VnetHeader},
    proto::{
        cut::{self, Cut},
        ecn,
        partial_checksum::{check_checksum, finish_any, finish_checksum},
        superframe::{self, HEADER_ROOM, Layout, MAX_HEADERS},
        train::PendingOffload,
    },
    stats::DropReason,
    wire::offload::{Checksum, Offload, Segmentation, Transport},
};

/// Only frames of this size are marked or dropped while a queue is standing.
pub(super) const SIGNAL_BYTES: usize = 512;

/// A frame that a device of this machine handed over.
pub(super) enum Handed {
    /// It crosses as it is, with this pending offload.
    Whole(Option<PendingOffload>),
    /// A peer would refuse it as it is: [`each_piece`] crosses.
    InPieces(Cut),
}

/// Checks a frame that was read from the TAP or the NIC, or finishes it here. `fields` is `None`
/// for a frame without headers.
///
/// # Errors
/// [`DropReason::BadOffload`] when the kernel's header does not describe the frame.
pub(super) fn handed_over(
    vnet: &VnetHeader,
    fields: Option<Fields>,
    buf: &mut FrameBuf<'_>,
) -> Result<Handed, DropReason> {
    let is_partial = vnet.flags & VnetHeader::NEEDS_CHECKSUM != 0;
    let checksum = is_partial.then_some(Checksum {
        start: vnet.csum_start,
        offset: vnet.csum_offset,
    });
    let transport = match vnet.gso_type & !(VnetHeader::GSO_ECN | VnetHeader::GSO_TUNNEL) {
        VnetHeader::GSO_NONE => {
            return match checksum {
                None => Ok(Handed::Whole(None)),
                Some(checksum) => {
                    partial_checksum(checksum, fields, buf.frame_mut()).map(Handed::Whole)
                }
            };
        }
        VnetHeader::GSO_TCPV4 | VnetHeader::GSO_TCPV6 => Transport::Tcp,
        VnetHeader::GSO_UDP_L4 => Transport::Udp,
        _ => return Err(DropReason::BadOffload),
    };
    let segmentation = Segmentation {
        transport,
        size: vnet.gso_size,
        cwr: vnet.gso_type & VnetHeader::GSO_ECN != 0,
    };
    let frame = buf.frame();
    if let (Some(checksum), Some(fields)) = (checksum, fields) {
        let offload = Offload {
            checksum,
            segmentation: Some(segmentation),
        };
        // Segments larger than the far end takes are up to the far end.
        let headers = fields.of(frame);
        if let Ok(layout) = Layout::of(&headers, frame.len(), &offload, usize::MAX) {
            return Ok(Handed::Whole(Some(PendingOffload {
                offload,
                headers_len: layout.headers_len(),
            })));
        }
    }
    cut(segmentation, checksum, fields, buf).map(Handed::InPieces)
}

/// How to cut a super-frame that a peer would refuse.
fn cut(
    segmentation: Segmentation,
    checksum: Option<Checksum>,
    fields: Option<Fields>,
    buf: &mut FrameBuf<'_>,
) -> Result<Cut, DropReason> {
    let network = network_of(fields, buf.frame());
    let by = cut::leave_out_jumbo_option(buf.frame_mut(), network);
    buf.skip(by);
    let checksum = checksum.map(|checksum| Checksum {
        start: checksum.start.saturating_sub(by as u16),
        ..checksum
    });
    Cut::find(buf.frame(), segmentation, checksum).ok_or(DropReason::BadOffload)
}

fn network_of(fields: Option<Fields>, frame: &[u8]) -> Option<Network> {
    fields?.of(frame).network()
}

fn partial_checksum(
    checksum: Checksum,
    fields: Option<Fields>,
    frame: &mut [u8],
) -> Result<Option<PendingOffload>, DropReason> {
    let headers_len = usize::from(checksum.start) + usize::from(checksum.offset) + 2;
    let is_right = |headers: Headers<'_>| check_checksum(&headers, frame.len(), checksum).is_ok();
    let is_known = fields.is_some_and(|fields| is_right(fields.of(frame)));
    if headers_len > MAX_HEADERS || !is_known {
        // Deep inside other headers, for example, and rare.
        finish_any(frame, checksum)?;
        return Ok(None);
    }
    let offload = Offload {
        checksum,
        segmentation: None,
    };
    Ok(Some(PendingOffload {
        offload,
        headers_len,
    }))
}

/// Shows the first `segments` of the frame that `cut` was found for, in pieces that a peer accepts.
pub(super) fn each_piece(
    cut: &Cut,
    whole: &[u8],
    segments: usize,
    scratch: &mut Vec<u8>,
    mut show: impl FnMut(FrameBuf<'_>, Option<PendingOffload>),
) {
    let headers = &whole[..cut.headers_len()];
    for run in cut.pieces(segments) {
        let mut piece = FrameBuf::copy(scratch, &[headers, &whole[cut.payload(&run)]]);
        let pending = cut.finish(piece.frame_mut(), &run);
        show(piece, pending);
    }
}

/// The outcome for a frame whose sender is to slow down.
pub(super) enum Signal<T> {
    /// It carries a mark.
    Marked(T),
    /// Its last segment was removed.
    Shortened(T),
    /// It was one segment, and is to be dropped.
    Dropped,
    /// Its sender would not react to the loss. The frame is forwarded as it is.
    Vain,
}

/// Signals the sender of a frame to slow down: by a mark if it supports ECN, else by the loss of
/// one segment. Returns the new length and pending offload.
pub(super) fn signal(
    frame: &mut [u8],
    fields: Option<Fields>,
    pending: Option<PendingOffload>,
) -> Signal<(usize, Option<PendingOffload>)> {
    let network = network_of(fields, frame);
    if ecn::mark_congestion(frame, network) {
        return Signal::Marked((frame.len(), pending));
    }
    let layout = fields
        .zip(pending)
        .and_then(|(fields, PendingOffload { offload, .. })| {
            Layout::of(&fields.of(frame), frame.len(), &offload, usize::MAX).ok()
        })
        .filter(|layout| layout.segments() > 1);
    let Some(layout) = layout else {
        return lone(frame, network);
    };
    let run = 0..layout.segments() - 1;
    let mut headers = [0; HEADER_ROOM];
    let (offload, _) = layout.emit_headers(frame, run.clone(), &mut headers);
    let headers_len = layout.headers_len();
    frame[..headers_len].copy_from_slice(&headers[..headers_len]);
    let pending = PendingOffload {
        offload,
        headers_len,
    };
    Signal::Shortened((layout.payload(run).end, Some(pending)))
}

fn lone<T>(head: &[u8], network: Option<Network>) -> Signal<T> {
    if ecn::heeds_loss(head, network) {
        Signal::Dropped
    } else {
        Signal::Vain
    }
}

/// A frame on its way to the TAP: its front with all headers, the rest, and its pending offload.
#[derive(Clone, Copy)]
pub(super) struct EgressFrame<'a> {
    /// Its parsed headers, if there are any.
    fields: Option<Fields>,
    pub(super) head: &'a [u8],
    pub(super) rest: &'a [u8],
    pub(super) pending: Option<(Offload, Option<Layout>)>,
}

impl<'a> EgressFrame<'a> {
    /// Without a pending offload.
    pub(super) fn finished(frame: &'a [u8]) -> Self {
        Self::of_parts(frame, &[], None)
    }

    /// The one place where the headers of a frame from a peer are parsed.
    pub(super) fn of_parts(
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
    pub(super) fn headers(&self) -> Option<Headers<'a>> {
        self.fields.map(|fields| fields.of(self.head))
    }

    pub(super) fn network(&self) -> Option<Network> {
        self.headers()?.network()
    }

    /// As a device of this machine or a peer has handed it over.
    ///
    /// # Errors
    /// [`DropReason::BadOffload`] when `pending` does not describe the frame.
    fn of(frame: &'a [u8], pending: PendingOffload) -> Result<Self, DropReason> {
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

    pub(super) fn len(&self) -> usize {
        self.head.len() + self.rest.len()
    }

    pub(super) fn is_super(&self) -> bool {
        matches!(self.pending, Some((_, Some(_))))
    }

    /// The number of frames that it stands for.
    pub(super) fn segments(&self) -> u32 {
        let layout = self.pending.and_then(|(_, layout)| layout);
        layout.map_or(1, |layout| layout.segments() as u32)
    }

    /// Its pending offload, for a frame that is forwarded to another peer.
    pub(super) fn as_pending(&self) -> Option<PendingOffload> {
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
    pub(super) fn edited(self, edit: TagEdit, front: &'a mut [u8; HEADER_ROOM]) -> Self {
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

    /// Signals its sender to slow down, as [`signal`] does.
    pub(super) fn signalled(self, headers: &'a mut [u8; HEADER_ROOM]) -> Signal<Self> {
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

    /// Writes it, finished first if the back-end cannot leave that to the kernel.
    pub(super) fn write(&self, tap: &TapQueue, scratch: &mut Vec<u8>) -> io::Result<()> {
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

    fn write_pending(&self, tap: &TapQueue) -> io::Result<()> {
        if self.rest.is_empty() {
            return tap.write(&self.vnet(), self.head);
        }
        let parts = [IoSlice::new(self.head), IoSlice::new(self.rest)];
        tap.write_parts(&self.vnet(), &parts)
    }

    fn vnet(&self) -> VnetHeader {
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

    /// The slow path of the plain back-end.
    fn write_finished(&self, tap: &TapQueue, scratch: &mut Vec<u8>) -> io::Result<()> {
        self.try_each_finished(scratch, |frame| tap.write(&VnetHeader::NONE, frame.frame()))
    }

    /// Shows every frame that this one stands for, its checksum finished.
    fn try_each_finished<E: From<BadChecksum>>(
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
struct BadChecksum;

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
pub(super) fn may_stay_pending(
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
pub(super) fn each_finished(
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

#[cfg(test)]
mod tests {
    use etherparse::PacketBuilder;
    use patchcord_bridge::Tpid;

    use super::*;
    use crate::proto::testing::{Network, Stream};

    /// The pending offload of a frame that crosses as it is, and nothing if it was finished here.
    fn pending_of(
        vnet: &VnetHeader,
        frame: &mut Vec<u8>,
    ) -> Result<Option<PendingOffload>, DropReason> {
        let mut room = Vec::new();
        let mut buf = FrameBuf::copy(&mut room, &[frame]);
        let handed = handed_over(vnet, Fields::parse(frame).ok(), &mut buf)?;
        *frame = buf.frame().to_vec();
        match handed {
            Handed::Whole(pending) => Ok(pending),
            Handed::InPieces(_) => panic!("in pieces"),
        }
    }

    /// A frame of 5000 bytes of payload, and the kernel's header of it.
    fn super_frame(is_ipv6: bool, transport: Transport) -> (VnetHeader, Vec<u8>) {
        let ethernet = PacketBuilder::ethernet2([2; 6], [4; 6]);
        let ip = if is_ipv6 {
            ethernet.ipv6([1; 16], [2; 16], 64)
        } else {
            ethernet.ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
        };
        let (payload, mut frame) = ([7; 5000], Vec::new());
        match transport {
            Transport::Tcp => ip.tcp(1, 2, 3, 4).write(&mut frame, &payload),
            Transport::Udp => ip.udp(1, 2).write(&mut frame, &payload),
        }
        .unwrap();
        let vnet = VnetHeader {
            flags: VnetHeader::NEEDS_CHECKSUM,
            gso_type: match (transport, is_ipv6) {
                (Transport::Tcp, false) => VnetHeader::GSO_TCPV4,
                (Transport::Tcp, true) => VnetHeader::GSO_TCPV6,
                (Transport::Udp, _) => VnetHeader::GSO_UDP_L4,
            },
            hdr_len: (frame.len() - payload.len()) as u16,
            gso_size: 1000,
            csum_start: if is_ipv6 { 54 } else { 34 },
            csum_offset: match transport {
                Transport::Tcp => 16,
                Transport::Udp => 6,
            },
        };
        (vnet, frame)
    }

    /// The header that the far end gives its kernel, if its checks accept the frame.
    fn arrived(pending: PendingOffload, frame: &[u8]) -> VnetHeader {
        let layout = pending.offload.segmentation.map(|_| {
            let head = &frame[..pending.headers_len];
            Layout::parse(head, frame.len(), &pending.offload, 1522).unwrap()
        });
        let leaving = EgressFrame {
            pending: Some((pending.offload, layout)),
            ..EgressFrame::finished(frame)
        };
        leaving.vnet()
    }

    #[test]
    fn the_far_kernel_hears_what_the_near_one_said() {
        for is_ipv6 in [false, true] {
            for transport in [Transport::Tcp, Transport::Udp] {
                let (vnet, mut frame) = super_frame(is_ipv6, transport);
                let pending = pending_of(&vnet, &mut frame).unwrap().unwrap();
                assert_eq!(arrived(pending, &frame), vnet, "{transport:?}");
            }
            let (mut vnet, mut frame) = super_frame(is_ipv6, Transport::Tcp);
            vnet.gso_type |= VnetHeader::GSO_ECN;
            let pending = pending_of(&vnet, &mut frame).unwrap().unwrap();
            assert_eq!(arrived(pending, &frame), vnet);
        }
    }

    #[test]
    fn the_length_of_headers_is_not_believed() {
        for hdr_len in [0, 14, 60, u16::MAX] {
            let (expected, mut frame) = super_frame(false, Transport::Tcp);
            let vnet = VnetHeader {
                hdr_len,
                ..expected
            };
            let pending = pending_of(&vnet, &mut frame).unwrap().unwrap();
            assert_eq!(arrived(pending, &frame), expected);
        }
    }

    #[test]
    fn a_partial_checksum_travels_and_a_finished_frame_does_not_say_more() {
        let (mut vnet, mut frame) = super_frame(false, Transport::Udp);
        vnet.gso_type = VnetHeader::GSO_NONE;
        vnet.gso_size = 0;
        let pending = pending_of(&vnet, &mut frame).unwrap().unwrap();
        assert_eq!(pending.headers_len, 42);
        let expected = VnetHeader { hdr_len: 0, ..vnet };
        assert_eq!(arrived(pending, &frame), expected);
        for flags in [0, VnetHeader::DATA_VALID] {
            vnet.flags = flags;
            assert!(pending_of(&vnet, &mut frame).unwrap().is_none());
        }
        assert_eq!(EgressFrame::finished(&frame).vnet(), VnetHeader::NONE);
    }

    #[test]
    fn a_checksum_deep_inside_is_finished_here() {
        let mut frame = vec![7; 1000];
        let vnet = VnetHeader {
            flags: VnetHeader::NEEDS_CHECKSUM,
            csum_start: 300,
            csum_offset: 6,
            ..VnetHeader::NONE
        };
        assert!(pending_of(&vnet, &mut frame).unwrap().is_none());
        assert_ne!(frame[306..308], [7; 2]);
    }

    #[test]
    fn a_header_that_does_not_describe_the_frame_costs_the_frame() {
        type Change = fn(&mut VnetHeader);
        let changes: [Change; 7] = [
            |vnet| vnet.gso_type = 3,
            |vnet| vnet.gso_type = VnetHeader::GSO_TCPV4 | VnetHeader::GSO_UDP_L4 | 2,
            |vnet| vnet.gso_type = VnetHeader::GSO_UDP_L4,
            |vnet| vnet.gso_size = 0,
            |vnet| vnet.csum_start = 35,
            |vnet| vnet.csum_offset = 6,
            |vnet| {
                vnet.gso_type = VnetHeader::GSO_NONE;
                vnet.csum_start = 6000;
            },
        ];
        for (number, change) in changes.into_iter().enumerate() {
            let (mut vnet, mut frame) = super_frame(false, Transport::Tcp);
            change(&mut vnet);
            let refused = pending_of(&vnet, &mut frame).map(|_| ());
            assert_eq!(refused, Err(DropReason::BadOffload), "change {number}");
        }
    }

    #[test]
    fn the_longest_headers_have_room_for_a_tag_wherever_they_are_copied() {
        let push = TagEdit::Push {
            tpid: Tpid::Customer,
            tci: 7,
        };
        let stream = |tags| Stream {
            tags,
            network: Network::V6(vec![(60, 24)]),
            transport: Transport::Udp,
            ..Stream::tcp_v4(100, 20_000)
        };
        let (before, after) = (stream(vec![]), stream(vec![(0x8100, 7)]));
        assert_eq!(before.headers_len(), 254);
        let (whole, headers_len) = (before.whole(), before.headers_len());
        let one_piece = EgressFrame::of(&whole, before.pending()).unwrap();
        let in_two = EgressFrame {
            head: &whole[..headers_len],
            rest: &whole[headers_len..],
            ..one_piece
        };
        for leaving in [one_piece, in_two] {
            let mut headers = [0; HEADER_ROOM];
            let mut segments = Vec::new();
            leaving
                .edited(push, &mut headers)
                .try_each_finished(&mut Vec::new(), |frame| {
                    segments.push(frame.frame().to_vec());
                    Ok::<_, DropReason>(())
                })
                .unwrap();
            let expected: Vec<_> = (0..after.segments())
                .map(|at| after.frame(at..at + 1, true))
                .collect();
            assert!(segments == expected);
            let mut headers = [0; HEADER_ROOM];
            let Signal::Shortened(shorter) = leaving.signalled(&mut headers) else {
                panic!("nothing to mark");
            };
            assert_eq!(shorter.segments() as usize, before.segments() - 1);
        }
    }

    #[test]
    fn a_frame_that_loses_its_tag_is_not_shorter_than_ethernet_allows() {
        for (len, expected) in [
            (18, 60),
            (60, 60),
            (63, 60),
            (64, 60),
            (65, 61),
            (1500, 1496),
        ] {
            let mut frame: Vec<u8> = (0..len).map(|at| at as u8 | 1).collect();
            frame[12..16].copy_from_slice(&[0x81, 0, 0, 7]);
            let mut popped = [&frame[..12], &frame[16..]].concat();
            popped.resize(expected.max(popped.len()), 0);
            assert_eq!(popped.len(), expected);

            let mut room = Vec::new();
            let mut buf = FrameBuf::copy(&mut room, &[&frame]);
            buf.with_edit(TagEdit::Pop, |shown| assert_eq!(shown, popped));
            assert_eq!(buf.frame(), frame);

            let (head, rest) = frame.split_at(17);
            for leaving in [
                EgressFrame::finished(&frame),
                EgressFrame {
                    rest,
                    ..EgressFrame::finished(head)
                },
            ] {
                let mut headers = [7; HEADER_ROOM];
                let leaving = leaving.edited(TagEdit::Pop, &mut headers);
                assert_eq!([leaving.head, leaving.rest].concat(), popped);
            }
        }
    }
}
