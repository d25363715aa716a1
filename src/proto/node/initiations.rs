// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which peer gets an initiation, and when (PROTOCOL.md, "Sessions", "Attempts").
//!
//! Each peer has its own intervals between initiations (`Peer::handle_attempt`), which no event at
//! other peers shortens. All peers share one rate: a node with many dead peers, or with hostile
//! ones, must have capacity for the live ones. A session that is to be replaced goes first, then
//! the peer that has waited longest.

use std::time::{Duration, Instant, SystemTime};

use patchcord_bridge::PortId;

use super::{event::Event, state::Node};
use crate::proto::{
    limits::{
        EARLY_ATTEMPTS, INITIATION_BURST, INITIATION_RATE, RESOLVE_AFTER_ATTEMPTS,
        ROUTE_INITIATION_INTERVAL,
    },
    peer::Peer,
    session::Session,
    trouble::Trouble,
};
use crate::rate::Rate;

const ALL_INITIATIONS: Rate = Rate {
    per_second: INITIATION_RATE,
    burst: INITIATION_BURST,
};

impl Node {
    /// Initiates handshakes with the peers for which one is due, as far as the rate allows.
    pub(super) fn initiate_due(&mut self, now: Instant, wall: SystemTime) {
        for peer in &mut self.peers {
            if peer.must_replace_session(now, self.config.rekey_interval) {
                peer.schedule_handshake(now);
            }
        }
        let mut due: Vec<_> = (0..self.peers.len())
            .filter(|&at| self.peers[at].schedule.due.is_some_and(|due| now >= due))
            .collect();
        due.sort_by_key(|&at| self.peers[at].urgency());
        for at in due {
            if !self.initiations.take(now, ALL_INITIATIONS) {
                break;
            }
            self.report_attempts(now, at);
            self.initiate(now, wall, at);
        }
    }

    fn report_attempts(&mut self, now: Instant, at: usize) {
        let peer = &self.peers[at];
        let (attempts, port) = (peer.schedule.attempts, peer.port);
        if peer.settings.has_name && attempts % RESOLVE_AFTER_ATTEMPTS == RESOLVE_AFTER_ATTEMPTS - 1
        {
            self.events.push_back(Event::Resolve(peer.port));
        }
        if attempts >= EARLY_ATTEMPTS {
            self.note_no_answer(now, port, attempts == EARLY_ATTEMPTS);
        }
    }

    /// The cause may have been recorded before, when it was too early to report it.
    fn note_no_answer(&mut self, now: Instant, port: PortId, is_due: bool) {
        let told = self.events.len();
        self.note_trouble(now, port, Trouble::NoAnswer);
        if is_due && self.events.len() == told {
            self.events.push_back(Event::Trouble(port));
        }
    }

    /// The route to the endpoint of this peer has changed: send it a datagram, so that it learns
    /// our new address. The caller limits how often this happens.
    pub fn handle_route_change(&mut self, now: Instant, port: PortId) {
        let Some(at) = usize::from(port.0).checked_sub(1) else {
            return;
        };
        let Some(peer) = self.peers.get_mut(at) else {
            return;
        };
        peer.path.handle_route_change(now);
        peer.trains.restart(now);
        if !peer.is_up {
            peer.initiate_by_new_route(now);
        }
        self.send_echo(now, at);
    }

    /// Our link towards this peer takes packets of another size than before.
    pub fn handle_link_mtu_change(&mut self, now: Instant, port: PortId) {
        if let Some(peer) = self.peer(port) {
            peer.path.handle_route_change(now);
            peer.trains.restart(now);
        }
    }

    /// When an initiation is due that the rate allows.
    pub(super) fn next_initiation(&self) -> Option<Instant> {
        let due = self.peers.iter().filter_map(|peer| peer.schedule.due).min();
        due.map(|due| due.max(self.initiations.ready_at(ALL_INITIATIONS)))
    }
}

impl Peer {
    fn must_replace_session(&self, now: Instant, interval: Duration) -> bool {
        let is_worn_out = |session: &std::sync::Arc<Session>| session.is_worn_out();
        self.rekey_at(interval).is_some_and(|rekey| now >= rekey)
            || self.current.as_ref().is_some_and(is_worn_out)
    }

    /// The smallest goes first.
    fn urgency(&self) -> (bool, Option<Instant>) {
        (!self.is_up, self.schedule.due)
    }

    /// The answer may have been lost on the former route.
    fn initiate_by_new_route(&mut self, now: Instant) {
        let schedule = &mut self.schedule;
        let is_early = schedule
            .by_new_route
            .is_some_and(|last| now < last + ROUTE_INITIATION_INTERVAL);
        if schedule.due.is_some_and(|due| due > now) && !is_early {
            schedule.by_new_route = Some(now);
            schedule.due = Some(now);
        }
    }
}
