// SPDX-License-Identifier: MIT OR Apache-2.0
//! Signals the sender of a frame to slow down.

use patchcord_bridge::ethernet::{Fields, Network};

use crate::proto::{
    ecn,
    superframe::{HEADER_ROOM, Layout},
    train::PendingOffload,
};

/// Only frames of this size are marked or dropped while a queue is standing.
pub(in crate::pipeline) const SIGNAL_BYTES: usize = 512;
/// The outcome for a frame whose sender is to slow down.
pub(in crate::pipeline) enum Signal<T> {
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
pub(in crate::pipeline) fn signal(
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

pub(super) fn lone<T>(head: &[u8], network: Option<Network>) -> Signal<T> {
    if ecn::heeds_loss(head, network) {
        Signal::Dropped
    } else {
        Signal::Vain
    }
}

pub(super) fn network_of(fields: Option<Fields>, frame: &[u8]) -> Option<Network> {
    fields?.of(frame).network()
}
