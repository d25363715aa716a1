// SPDX-License-Identifier: MIT OR Apache-2.0
//! Frames that this node originates, on their way to the TAP or to the thread that sends to peers.

use std::sync::Arc;

use patchcord_bridge::{Inside, PortId};

use super::event::{InjectedFrame, To};
use crate::{
    io::tap::{TapQueue, VnetHeader},
    pipeline::{frame_buf::FrameBuf, shared::Shared},
    stats::{DropReason, Drops},
};

/// Sends the frames of the slow path.
pub(super) struct Injector {
    shared: Arc<Shared>,
    tap: Arc<TapQueue>,
    drops: Arc<Drops>,
    scratch: Vec<u8>,
}

impl Injector {
    pub(super) fn new(shared: Arc<Shared>, tap: Arc<TapQueue>) -> Self {
        Self {
            drops: shared.new_drops(),
            shared,
            tap,
            scratch: Vec::new(),
        }
    }

    /// To one port. A port outside the frame's VLAN is skipped, not counted as a drop.
    pub(super) fn inject(&mut self, port: PortId, inside: Inside, frame: &[u8]) {
        let Ok(edit) = self.shared.switch().originate(inside, port) else {
            return;
        };
        if port != PortId::TAP {
            return self.shared.inject(InjectedFrame {
                to: To::Peer(port),
                inside,
                frame: frame.into(),
            });
        }
        let mut buf = FrameBuf::copy(&mut self.scratch, &[frame]);
        let written = buf.with_edit(edit, |frame| self.tap.write(&VnetHeader::NONE, frame));
        if written.is_err() {
            self.drops.count(DropReason::TapWriteFailed);
        }
    }

    /// To every port that may get it, after a frame from `ingress` or of this node.
    pub(super) fn flood(&mut self, ingress: Option<PortId>, inside: Inside, frame: &[u8]) {
        if ingress != Some(PortId::TAP) {
            self.inject(PortId::TAP, inside, frame);
        }
        let switch = self.shared.switch();
        if switch.is_hub() || ingress.is_none_or(|ingress| ingress == PortId::TAP) {
            self.shared.inject(InjectedFrame {
                to: To::Peers(ingress),
                inside,
                frame: frame.into(),
            });
        }
    }
}
