// SPDX-License-Identifier: MIT OR Apache-2.0
//! Reports about the peers for `show`, the log and the owner.

use std::os::fd::AsFd;

use patchcord_bridge::PortId;
use tracing::{info, warn};

use super::{ControlTask, name};
use crate::{
    machine::receive_offload,
    pipeline::{
        clock::now,
        fdb_admin::Addresses,
        reports,
        view::{EngineEvent, EngineView, PeerReport, PortView},
    },
    proto::{
        limits::FRAME_OVERHEAD,
        node::{PeerView, Refused},
    },
    stats::{DropReason, Flow},
    tripwire,
    wire::Lane,
};

impl ControlTask {
    pub(super) fn name(&self, port: PortId) -> &str {
        name(&self.labels, port)
    }

    /// Once per second.
    pub(super) fn handle_tick(&mut self) {
        tripwire::task("control");
        let now = now();
        self.shared.notices.report_late_moves();
        // The data threads only count these; the log must explain them.
        if let Some(from) = self.shared.take_bad_mac() {
            self.log_refusal(&Refused {
                reason: DropReason::BadMac,
                from,
                key: None,
                port: None,
            });
        }
        self.note_late_names(now);
        let views = self.node.views(now);
        for (meter, view) in self.meters.iter_mut().zip(&views) {
            meter.read(now, &view.traffic);
        }
        self.note_single_datagrams(&views);
        let names = self.labels.iter().map(|(name, _)| name.as_str());
        let summary = reports::summary(&names.zip(&views).collect::<Vec<_>>());
        if summary != self.summary {
            // Reported with the next tick if the owner is behind.
            let event = EngineEvent::Summary(summary.clone());
            if self.events.try_send(event).is_ok() {
                self.summary = summary;
            }
        }
    }

    /// Without UDP GRO of its own, a single datagram is what the tunnel asked for.
    fn note_single_datagrams(&mut self, views: &[PeerView]) {
        if !self.socket.capabilities().gro {
            return;
        }
        let off_at = |index| {
            let off = receive_offload::off_at(self.socket.as_fd(), index);
            // An interface that has gone.
            off.unwrap_or_default()
        };
        for (place, (singles, view)) in self.singles.iter_mut().zip(views).enumerate() {
            if singles.read(&view.traffic.inbound, off_at)
                && let Some(interface) = singles.culprit()
            {
                let port = PortId(place as u16 + 1);
                let peer = name(&self.labels, port);
                self.reports.unmerged(port, peer, interface, now());
            }
        }
    }

    pub(super) fn log_up(&self, port: PortId) {
        let views = self.node.views(now());
        let Some(view) = views.get(usize::from(port.0) - 1) else {
            return;
        };
        let cipher = view.cipher.map_or("none", |cipher| cipher.name());
        info!(peer = self.name(port), cipher, "peer is up");
        if view.max_frame != 0 && u32::from(view.max_frame) < self.shared.max_frame() {
            warn!(
                peer = self.name(port),
                their_mtu = u32::from(view.max_frame).saturating_sub(FRAME_OVERHEAD),
                our_mtu = self.shared.max_frame().saturating_sub(FRAME_OVERHEAD),
                "the peer's device has a smaller MTU than ours, so larger frames are lost there; give both ends the same device.mtu"
            );
        }
    }

    pub(super) fn log_trouble(&mut self, port: PortId) {
        let label = self.labels.get(usize::from(port.0).wrapping_sub(1));
        let host = label.and_then(|(_, host)| host.clone());
        let address = || Some(self.node.endpoint(port)?.to_string());
        let endpoint = host.or_else(address);
        let Some(last) = self.node.last_trouble(port) else {
            return;
        };
        let peer = (name(&self.labels, port), endpoint.as_deref());
        self.reports.trouble(port, peer, last, now());
    }

    pub(super) fn log_refusal(&mut self, refused: &Refused) {
        let peer = refused.port.map(|port| name(&self.labels, port));
        self.reports.refused(refused, peer, now());
    }

    fn ports(&self) -> Vec<PortView> {
        let now_us = self.shared.clock.now().micros;
        let loops = self.shared.slow_view().loops;
        let switch = self.shared.switch();
        let view = |port: PortId| PortView {
            blocked_by_loop: loops.iter().find(|blocked| blocked.port == port).copied(),
            blocked_by_bpdu: switch.blocks(port).by_bpdu,
            refused: switch.refusals(port).collect(),
            now_us,
        };
        switch.ports().map(view).collect()
    }

    pub(super) fn view(&self) -> EngineView {
        let names = self.labels.iter().map(|(name, _)| name.clone());
        let flow = |flow: &Flow| (flow.frames(), flow.bytes());
        let addresses = self.addresses();
        let (fdb, fdb_omitted) = addresses.first();
        EngineView {
            peers: names
                .zip(self.node.views(now()))
                .zip(self.meters.iter().zip(&self.singles))
                .map(|((name, view), (meter, singles))| PeerReport {
                    name,
                    view,
                    rates: meter.rates(),
                    unmerged_at: singles.culprit().map(str::to_owned),
                })
                .collect(),
            tap: [
                flow(&self.shared.tap.outbound),
                flow(&self.shared.tap.inbound),
            ],
            express: [&self.shared.tap.outbound, &self.shared.tap.inbound].map(express_frames),
            drops: self.shared.total_drops(),
            ports: self.ports(),
            groups: self.shared.slow_view().groups,
            switch: addresses.summary(),
            fdb,
            fdb_omitted,
        }
    }

    pub(super) fn addresses(&self) -> Addresses<'_> {
        Addresses {
            fdb: &self.shared.fdb,
            peers: self.labels.iter().map(|(name, _)| name.as_str()).collect(),
            now_s: self.shared.clock.now().seconds,
        }
    }
}

fn express_frames(flow: &Flow) -> u64 {
    let lanes = [Lane::EXPRESS, Lane::EXPRESS_ONWARD];
    lanes.iter().map(|lane| flow.of(lane.0).frames()).sum()
}
