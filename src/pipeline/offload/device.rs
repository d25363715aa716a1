// SPDX-License-Identifier: MIT OR Apache-2.0
//! A frame of a device of this machine: crosses as it is, or is cut or finished here.

use patchcord_bridge::ethernet::{Fields, Headers};

use super::signal::network_of;
use crate::{
    io::tap::VnetHeader,
    pipeline::frame_buf::FrameBuf,
    proto::{
        cut::{self, Cut},
        partial_checksum::{check_checksum, finish_any},
        superframe::{Layout, MAX_HEADERS},
        train::PendingOffload,
    },
    stats::DropReason,
    wire::offload::{Checksum, Offload, Segmentation, Transport},
};

/// A frame that a device of this machine handed over.
pub(in crate::pipeline) enum DeviceFrame {
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
pub(in crate::pipeline) fn check_device_frame(
    vnet: &VnetHeader,
    fields: Option<Fields>,
    buf: &mut FrameBuf<'_>,
) -> Result<DeviceFrame, DropReason> {
    let is_partial = vnet.flags & VnetHeader::NEEDS_CHECKSUM != 0;
    let checksum = is_partial.then_some(Checksum {
        start: vnet.csum_start,
        offset: vnet.csum_offset,
    });
    let transport = match vnet.gso_type & !(VnetHeader::GSO_ECN | VnetHeader::GSO_TUNNEL) {
        VnetHeader::GSO_NONE => {
            return match checksum {
                None => Ok(DeviceFrame::Whole(None)),
                Some(checksum) => {
                    partial_checksum(checksum, fields, buf.frame_mut()).map(DeviceFrame::Whole)
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
            return Ok(DeviceFrame::Whole(Some(PendingOffload {
                offload,
                headers_len: layout.headers_len(),
            })));
        }
    }
    cut(segmentation, checksum, fields, buf).map(DeviceFrame::InPieces)
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
pub(in crate::pipeline) fn each_piece(
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
