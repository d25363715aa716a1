// SPDX-License-Identifier: MIT OR Apache-2.0
//! Whether a tunnel carries bulk traffic: one answer for all of its threads, and for the priority of
//! the process.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use patchcord_bridge::Now;
use tokio::sync::Notify;

/// After this time without bulk, bulk is considered over.
const HOLD: Duration = Duration::from_millis(100);
/// A thread does not write the time of the last bulk more often: other threads read it.
const STEP: Duration = Duration::from_millis(10);

/// When the data threads of a tunnel last saw bulk traffic, in either direction.
#[derive(Debug, Default)]
pub(super) struct LastBulk {
    /// Microseconds of the switch's clock at which bulk is over; 0: there was none.
    until: AtomicU64,
    begins: Notify,
}

impl LastBulk {
    /// Takes in what a thread found in one burst. True if the tunnel carries bulk.
    pub(super) fn observe(&self, has_bulk: bool, now: Now) -> bool {
        let until = self.until.load(Ordering::Relaxed);
        let now = now.micros;
        if has_bulk && until < now + micros(HOLD - STEP) {
            self.until.store(now + micros(HOLD), Ordering::Relaxed);
            if until <= now {
                self.begins.notify_one();
            }
        }
        has_bulk || now < until
    }

    /// Returns when bulk begins.
    pub(super) async fn begins(&self) {
        self.begins.notified().await;
    }

    /// Whether the tunnel carries bulk.
    pub(super) fn is_now(&self, now: Now) -> bool {
        now.micros < self.until.load(Ordering::Relaxed)
    }
}

fn micros(time: Duration) -> u64 {
    time.as_micros() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bulk_holds_for_a_while_and_for_every_thread() {
        let last = LastBulk::default();
        let at = |millis: u64| Now::from_micros(millis * 1000);
        assert!(!last.observe(false, at(5)), "none yet");
        assert!(last.observe(true, at(1000)));
        assert!(last.observe(false, at(1099)), "another thread");
        assert!(!last.observe(false, at(1101)));
        assert!(last.observe(true, at(2000)));
        assert!(last.observe(true, at(2050)), "it goes on");
        assert!(last.observe(false, at(2149)), "counted from the latest");
        assert!(!last.observe(false, at(2151)));
    }
}
