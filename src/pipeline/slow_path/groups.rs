// SPDX-License-Identifier: MIT OR Apache-2.0
//! Multicast groups: reports of hosts in, a table for the data threads and queries out.

use std::{collections::BTreeSet, sync::Arc};

use patchcord_bridge::{
    Headers, Inside, PortId, Vid,
    membership::{GroupEntry, QueryFrame, Snooping, SnoopingConfig},
};

use super::injector::Injector;
use crate::pipeline::shared::Shared;

/// The groups that hosts want, by port.
pub(super) struct Groups {
    shared: Arc<Shared>,
    snooping: Snooping,
    /// Ports to peers that are up.
    present: BTreeSet<PortId>,
    /// VLANs of tunnels: the customers behind them have queriers of their own.
    customers: BTreeSet<Vid>,
    /// The earliest time to make the next table.
    due_us: u64,
}

impl Groups {
    pub(super) fn new(
        shared: Arc<Shared>,
        config: SnoopingConfig,
        customers: BTreeSet<Vid>,
    ) -> Self {
        let now_s = shared.clock.now().seconds;
        Self {
            shared,
            snooping: Snooping::new(config, now_s),
            present: BTreeSet::new(),
            customers,
            due_us: 0,
        }
    }

    /// Takes in a report, a query or a router's message.
    pub(super) fn handle(
        &mut self,
        ingress: PortId,
        inside: Inside,
        frame: &[u8],
        injector: &mut Injector,
    ) {
        let Ok(headers) = Headers::parse(frame) else {
            return;
        };
        let now_s = self.now_s();
        self.snooping.handle(ingress, inside.vid, &headers, now_s);
        if self.snooping.is_query_due(now_s) {
            self.send_queries(injector);
        }
    }

    /// A port that comes up missed earlier queries, so the switch floods all groups to it until its
    /// hosts have had time to report. With the first peer the TAP comes up as well.
    pub(super) fn peer_up(&mut self, port: PortId, injector: &mut Injector) {
        let now_s = self.now_s();
        let is_first = self.present.is_empty();
        self.present.insert(port);
        self.snooping.port_up(port, now_s);
        if is_first {
            self.snooping.port_up(PortId::TAP, now_s);
        }
        self.send_queries(injector);
    }

    pub(super) fn peer_down(&mut self, port: PortId) {
        self.present.remove(&port);
        self.snooping.flush_port(port);
    }

    /// Queries the VLANs of these stations, and sends the queries that are due.
    pub(super) fn tick(
        &mut self,
        stations: impl FnOnce() -> BTreeSet<(Vid, PortId)>,
        injector: &mut Injector,
    ) {
        if self.snooping.is_querier() {
            let mut stations = stations();
            stations.retain(|(vid, _)| !self.customers.contains(vid));
            self.snooping.watch(&stations, self.now_s());
        }
        self.send_queries(injector);
    }

    fn send_queries(&mut self, injector: &mut Injector) {
        for QueryFrame { vid, frame } in self.snooping.poll(self.now_s()) {
            injector.flood(None, Inside::tagged(vid), &frame);
        }
    }

    /// When there is a change to publish.
    pub(super) fn next_due_us(&self) -> u64 {
        match self.snooping.is_changed() {
            true => self.due_us,
            false => u64::MAX,
        }
    }

    /// Publishes changes to the data threads, together with the frame that caused them. Making a
    /// table takes time for each group, and a station can change it with each frame: no more than a
    /// twentieth of the time is spent on that.
    pub(super) fn publish(&mut self) {
        const SHARE: u64 = 20;
        let begin_us = self.shared.clock.now().micros;
        if begin_us < self.due_us || !self.snooping.is_changed() {
            return;
        }
        self.snooping.take_changed();
        self.shared.set_groups(self.snooping.table());
        let now_us = self.shared.clock.now().micros;
        self.due_us = now_us + SHARE * (now_us - begin_us);
    }

    /// The groups and the ports that want them.
    pub(super) fn entries(&self) -> impl Iterator<Item = GroupEntry> + '_ {
        self.snooping.groups(self.now_s())
    }

    fn now_s(&self) -> u32 {
        self.shared.clock.now().seconds
    }

    #[cfg(test)]
    pub(super) fn is_changed(&self) -> bool {
        self.snooping.is_changed()
    }

    #[cfg(test)]
    pub(super) fn present(&self) -> BTreeSet<PortId> {
        self.present.clone()
    }

    #[cfg(test)]
    pub(super) fn set_due(&mut self) {
        self.due_us = 0;
    }
}
