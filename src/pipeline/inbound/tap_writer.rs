// SPDX-License-Identifier: MIT OR Apache-2.0
//! Steps 5 and 6: a frame of a peer to the port that the switch chooses, which is the TAP, or in a
//! hub other peers.

use patchcord_bridge::{Egress, Kind, Now, PortId, Switch, TagEdit};

use super::merger::Merger;
use crate::{
    pipeline::{
        dispatch::Dispatch,
        frame_buf::FrameBuf,
        offload::{EgressFrame, SIGNAL_BYTES, Signal},
        shared::{GroupsCache, Shared},
    },
    proto::{
        mss,
        session::{Session, Tables},
        superframe::HEADER_ROOM,
    },
    stats::{DropReason, Drops},
    tripwire,
    wire::Lane,
};

/// The state that a frame needs to leave the tunnel.
pub(super) struct TapWriter<'a> {
    pub(super) shared: &'a Shared,
    pub(super) tables: &'a Tables,
    pub(super) switch: &'a Switch,
    pub(super) groups: &'a mut GroupsCache,
    pub(super) drops: &'a Drops,
    pub(super) merger: &'a mut Merger,
    pub(super) dispatch: Option<&'a mut Dispatch>,
    pub(super) scratch: &'a mut Vec<u8>,
    pub(super) must_signal: &'a mut bool,
    pub(super) has_bulk: &'a mut bool,
    pub(super) now: Now,
    /// The lane on which the frame in hand came; its counters are this thread's.
    pub(super) lane: Lane,
}

impl TapWriter<'_> {
    pub(super) fn forward(
        &mut self,
        session: &Session,
        frame: EgressFrame<'_>,
    ) -> Result<(), DropReason> {
        // The segments that answer this SYN go to the peer.
        if self.shared.lowers_mss
            && let Some(route) = self.tables.route(session.port)
            && let Some(announced) = mss::find(frame.head, route.datagram_len, 0)
        {
            let mut headers = [0; HEADER_ROOM];
            return self.forward_as_is(session, frame.announcing_less(announced, &mut headers));
        }
        self.forward_as_is(session, frame)
    }

    fn forward_as_is(
        &mut self,
        session: &Session,
        frame: EgressFrame<'_>,
    ) -> Result<(), DropReason> {
        if frame.len() > self.shared.max_frame() as usize && !frame.is_super() {
            return Err(DropReason::Oversize);
        }
        if *self.must_signal && frame.len() >= SIGNAL_BYTES {
            let mut headers = [0; HEADER_ROOM];
            let signal = frame.signalled(&mut headers);
            *self.must_signal = matches!(signal, Signal::Vain);
            return match signal {
                Signal::Marked(marked) => self.hand_over(session, marked),
                Signal::Shortened(shortened) => {
                    self.drops.count(DropReason::StandingQueue);
                    self.hand_over(session, shortened)
                }
                Signal::Dropped => Err(DropReason::StandingQueue),
                Signal::Vain => self.hand_over(session, frame),
            };
        }
        self.hand_over(session, frame)
    }

    fn hand_over(&mut self, session: &Session, frame: EgressFrame<'_>) -> Result<(), DropReason> {
        tripwire::frame(frame.head);
        *self.has_bulk |= frame.is_super();
        let flow = session.traffic.inbound.of(self.lane.0);
        flow.add_frames(1, frame.len() as u64);
        if self.shared.wire {
            return self.write(TagEdit::Keep, frame);
        }
        let (ingress, switch) = (session.port, self.switch);
        let headers = frame
            .headers()
            .ok_or_else(|| switch.refuse_runt(ingress, frame.segments()))?;
        let decision = switch.forward(ingress, &headers, frame.segments(), self.now)?;
        let leave = |port| switch.leave(ingress, decision.inside, port);
        if decision.kind != Kind::Data {
            let EgressFrame { head, rest, .. } = frame;
            if self.shared.punt(ingress, &decision, head, rest) {
                return Ok(());
            }
        }
        let wanted = self.groups.egress(&decision.inside, &headers);
        match decision.egress {
            // No host behind this port wants the group.
            Egress::Port(port) if wanted.is_some_and(|wanted| !wanted.contains(port)) => Ok(()),
            Egress::Port(PortId::TAP) => match leave(PortId::TAP) {
                Ok(edit) => self.write(edit, frame),
                // The loss of a probe does no harm.
                Err(_) if decision.kind == Kind::Probe => Ok(()),
                Err(reason) => Err(reason.into()),
            },
            Egress::Port(port) => {
                let to = [(port, leave(port)?)].into_iter();
                forward_to_peer(
                    self.dispatch.as_deref_mut(),
                    self.tables,
                    self.scratch,
                    to,
                    frame,
                );
                Ok(())
            }
            Egress::Flood => {
                // A port outside the frame's VLAN is skipped, not counted as a drop.
                let leave = |port: PortId| {
                    let is_wanted = wanted.is_none_or(|wanted| wanted.contains(port));
                    is_wanted.then(|| leave(port).ok()).flatten()
                };
                let edit = leave(PortId::TAP);
                let peers = (1..=self.tables.routes.len() as u16).map(PortId);
                let to = peers.filter_map(|port| Some((port, leave(port)?)));
                forward_to_peer(
                    self.dispatch.as_deref_mut(),
                    self.tables,
                    self.scratch,
                    to,
                    frame,
                );
                edit.map_or(Ok(()), |edit| self.write(edit, frame))
            }
            Egress::Nowhere => Ok(()),
        }
    }

    fn write(&mut self, edit: TagEdit, frame: EgressFrame<'_>) -> Result<(), DropReason> {
        let mut headers = [0; HEADER_ROOM];
        self.merger.count_under(self.lane);
        self.merger.write(&frame.edited(edit, &mut headers))
    }
}

/// From peer to peer, which only a hub does.
fn forward_to_peer(
    dispatch: Option<&mut Dispatch>,
    tables: &Tables,
    scratch: &mut Vec<u8>,
    to: impl Iterator<Item = (PortId, TagEdit)>,
    frame: EgressFrame<'_>,
) {
    let Some(dispatch) = dispatch else {
        return;
    };
    let mut buf = FrameBuf::copy(scratch, &[frame.head, frame.rest]);
    let pending = frame.as_pending();
    let network = pending.and_then(|_| frame.network());
    for (port, edit) in to {
        dispatch.push_edited(tables, port, edit, &mut buf, network, pending);
    }
}
