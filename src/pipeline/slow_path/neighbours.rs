// SPDX-License-Identifier: MIT OR Apache-2.0
//! ARP and neighbour discovery: learns bindings, and answers requests on behalf of others.

use std::sync::Arc;

use patchcord_bridge::{
    Headers, Inside, PortId,
    neighbours::{Neighbours, NeighboursConfig},
};

use super::injector::Injector;
use crate::pipeline::shared::Shared;

/// Answers for stations that it knows; without a configuration, for none.
pub(super) struct NeighbourProxy {
    shared: Arc<Shared>,
    neighbours: Option<Neighbours>,
}

impl NeighbourProxy {
    pub(super) fn new(shared: Arc<Shared>, config: Option<NeighboursConfig>) -> Self {
        Self {
            shared,
            neighbours: config.map(Neighbours::new),
        }
    }

    /// Learns from a station's message, and returns whether others must hear of it.
    pub(super) fn learn(&mut self, ingress: PortId, inside: Inside, frame: &[u8]) -> bool {
        let now_s = self.now_s();
        let Some(neighbours) = &mut self.neighbours else {
            return false;
        };
        if self.shared.take_missed_binding() {
            // Which of the bindings was missed is unknown, so all of them are suspect.
            neighbours.clear();
        }
        let Ok(headers) = Headers::parse(frame) else {
            return false;
        };
        let learned = neighbours.learn(ingress, inside.vid, &headers, now_s);
        learned.is_news()
    }

    /// A request to all stations waits for this: it is answered here, or forwarded.
    ///
    /// A request that shows where a station is now is forwarded as well: others may know its old
    /// location.
    pub(super) fn handle(
        &mut self,
        ingress: PortId,
        inside: Inside,
        frame: &[u8],
        injector: &mut Injector,
    ) {
        let is_news = self.learn(ingress, inside, frame);
        let is_group = frame.first().is_some_and(|first| first & 1 == 1);
        if !is_group {
            return;
        }
        let now_s = self.now_s();
        let neighbours = self.neighbours.as_mut().filter(|_| !is_news);
        let headers = Headers::parse(frame).ok();
        let answer = neighbours
            .zip(headers)
            .and_then(|(known, headers)| known.answer(ingress, inside.vid, &headers, now_s));
        match answer {
            // It has the tag of the request.
            Some(answer) => injector.inject(ingress, inside, &answer),
            None => injector.flood(Some(ingress), inside, frame),
        }
    }

    pub(super) fn peer_down(&mut self, port: PortId) {
        if let Some(neighbours) = &mut self.neighbours {
            neighbours.flush_port(port);
        }
    }

    fn now_s(&self) -> u32 {
        self.shared.clock.now().seconds
    }
}
