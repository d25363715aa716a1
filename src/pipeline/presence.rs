// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which peers came and went, on the way from the control task to the slow path. There is at most one
//! change for each peer, so that none is lost, however far behind the slow path is.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use patchcord_bridge::PortId;
use tokio::sync::Notify;

/// What became of a peer since the slow path last asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// There is somebody behind this port.
    Came,
    /// There is nobody behind it any more.
    Gone,
    /// There was nobody behind it for a while.
    Back,
}

/// No data thread takes this lock.
#[derive(Default)]
pub(super) struct Presence {
    changes: Mutex<BTreeMap<PortId, Change>>,
    told: Notify,
}

impl Presence {
    /// A peer is up.
    pub(super) fn tell_came(&self, port: PortId) {
        let mut changes = self.lock();
        let change = match changes.get(&port) {
            Some(Change::Gone | Change::Back) => Change::Back,
            Some(Change::Came) | None => Change::Came,
        };
        changes.insert(port, change);
        self.told.notify_one();
    }

    /// A peer is down.
    pub(super) fn tell_gone(&self, port: PortId) {
        self.lock().insert(port, Change::Gone);
        self.told.notify_one();
    }

    /// Waits until there is something to take.
    pub(super) async fn changed(&self) {
        self.told.notified().await;
    }

    /// What has changed since this was last asked.
    pub(super) fn take(&self) -> BTreeMap<PortId, Change> {
        std::mem::take(&mut self.lock())
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<PortId, Change>> {
        self.changes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_of_each_peer_is_told_and_that_it_was_gone() {
        let presence = Presence::default();
        let [steady, flaps, goes] = [1, 2, 3].map(PortId);
        for _ in 0..10_000 {
            presence.tell_came(steady);
            presence.tell_gone(flaps);
            presence.tell_came(flaps);
            presence.tell_came(goes);
            presence.tell_gone(goes);
        }
        let changes = presence.take();
        let expected = [
            (steady, Change::Came),
            (flaps, Change::Back),
            (goes, Change::Gone),
        ];
        assert_eq!(changes, expected.into());
        assert!(presence.take().is_empty(), "told once");
        presence.tell_came(flaps);
        assert_eq!(presence.take(), [(flaps, Change::Came)].into());
    }
}
