// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which peers went up and down, on the way from the control task to the slow path. There is at
//! most one change for each peer, so that none is lost, however far behind the slow path is.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use patchcord_bridge::PortId;
use tokio::sync::Notify;

use super::slow_path::event::SlowPathEvent;

/// The change of a peer since the slow path last asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    /// The peer is up.
    Up,
    /// The peer is down.
    Down,
    /// The peer was down, and is up again.
    Restarted,
}

/// No data thread takes this lock.
#[derive(Default)]
pub(super) struct Presence {
    changes: Mutex<BTreeMap<PortId, Change>>,
    told: Notify,
}

impl Presence {
    /// A peer is up.
    pub(super) fn peer_up(&self, port: PortId) {
        let mut changes = self.lock();
        let change = match changes.get(&port) {
            Some(Change::Down | Change::Restarted) => Change::Restarted,
            Some(Change::Up) | None => Change::Up,
        };
        changes.insert(port, change);
        self.told.notify_one();
    }

    /// A peer is down.
    pub(super) fn peer_down(&self, port: PortId) {
        self.lock().insert(port, Change::Down);
        self.told.notify_one();
    }

    /// Waits until there is something to take.
    pub(super) async fn changed(&self) {
        self.told.notified().await;
    }

    /// The changes since the last call.
    pub(super) fn take(&self) -> Vec<SlowPathEvent> {
        let changes = std::mem::take(&mut *self.lock());
        let events = changes.into_iter().flat_map(|(port, change)| {
            let down = (change != Change::Up).then_some(SlowPathEvent::PeerDown(port));
            let up = (change != Change::Down).then_some(SlowPathEvent::PeerUp(port));
            down.into_iter().chain(up)
        });
        events.collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<PortId, Change>> {
        self.changes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Peers, and whether they are up.
    fn taken(presence: &Presence) -> Vec<(PortId, bool)> {
        let seen = |event| match event {
            SlowPathEvent::PeerUp(port) => (port, true),
            SlowPathEvent::PeerDown(port) => (port, false),
            SlowPathEvent::Punted(_) => unreachable!("frames go another way"),
        };
        presence.take().into_iter().map(seen).collect()
    }

    #[test]
    fn the_latest_of_each_peer_is_told_and_that_it_was_gone() {
        let presence = Presence::default();
        let [steady, flaps, goes] = [1, 2, 3].map(PortId);
        for _ in 0..10_000 {
            presence.peer_up(steady);
            presence.peer_down(flaps);
            presence.peer_up(flaps);
            presence.peer_up(goes);
            presence.peer_down(goes);
        }
        let expected = [(steady, true), (flaps, false), (flaps, true), (goes, false)];
        assert_eq!(taken(&presence), expected);
        assert_eq!(taken(&presence), [], "told once");
        presence.peer_up(flaps);
        assert_eq!(taken(&presence), [(flaps, true)]);
    }
}
