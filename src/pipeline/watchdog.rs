// SPDX-License-Identifier: MIT OR Apache-2.0
//! Whether the threads and tasks of an engine make progress.
//!
//! Each has a [`Heartbeat`]. A data thread signals when it waits for the kernel, which may take
//! days, and when it works, which takes milliseconds; a task beats at least once a second. A
//! [check] once a second detects a heartbeat that has stopped. The watchdog counts checks and not
//! time, which passes even while the whole process is suspended.
//!
//! [check]: Watchdog::check

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

/// After this many checks in a row without progress the service manager is no longer told that all
/// is well …
const SUSPECT_CHECKS: u32 = 5;
/// … and after which the engine is broken.
const STALLED_CHECKS: u32 = 30;

/// Written by one thread or task.
#[derive(Debug, Default)]
#[repr(align(64))]
pub(super) struct Heartbeat(AtomicU64);

impl Heartbeat {
    /// From now on it waits. Calling it twice is the same as once.
    pub(super) fn rest(&self) {
        self.step(0);
    }

    /// From now on it works.
    pub(super) fn work(&self) {
        self.step(1);
    }

    /// To the next number that is odd while there is work.
    fn step(&self, working: u64) {
        let beat = self.0.load(Ordering::Relaxed);
        let next = (beat | 1).wrapping_add(1) | working;
        self.0.store(next, Ordering::Relaxed);
    }

    fn beat(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

struct Watched {
    name: String,
    heartbeat: Arc<Heartbeat>,
    seen: u64,
    /// Checks that found it at work, and no further than before.
    still: u32,
}

/// The heartbeats of an engine.
#[derive(Default)]
pub(crate) struct Watchdog {
    watched: Mutex<Vec<Watched>>,
    is_suspect: AtomicBool,
}

impl Watchdog {
    /// For a thread or task of this name.
    pub(super) fn heartbeat(&self, name: &str) -> Arc<Heartbeat> {
        let heartbeat = Arc::new(Heartbeat::default());
        let thread = Watched {
            name: name.to_owned(),
            heartbeat: heartbeat.clone(),
            seen: 0,
            still: 0,
        };
        let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        watched.push(thread);
        heartbeat
    }

    /// To be called once a second. Returns the first thread whose work has made no progress for too
    /// long.
    pub(super) fn check(&self) -> Option<String> {
        let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        for thread in &mut *watched {
            let beat = thread.heartbeat.beat();
            let is_still = beat & 1 == 1 && beat == thread.seen;
            thread.still = if is_still { thread.still + 1 } else { 0 };
            thread.seen = beat;
        }
        let longest = watched.iter().max_by_key(|thread| thread.still)?;
        let is_suspect = longest.still >= SUSPECT_CHECKS;
        self.is_suspect.store(is_suspect, Ordering::Relaxed);
        (longest.still >= STALLED_CHECKS).then(|| longest.name.clone())
    }

    /// As of the last check.
    pub(crate) fn is_healthy(&self) -> bool {
        !self.is_suspect.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_waiting_thread_is_healthy_and_a_stalled_one_is_named() {
        let watchdog = Watchdog::default();
        let [waits, works, hangs] =
            ["waits", "works", "hangs"].map(|name| watchdog.heartbeat(name));
        waits.work();
        waits.rest();
        hangs.work();
        for check in 0..=STALLED_CHECKS {
            works.work();
            let found = watchdog.check();
            assert_eq!(watchdog.is_healthy(), check < SUSPECT_CHECKS, "{check}");
            assert_eq!(
                found.as_deref(),
                (check == STALLED_CHECKS).then_some("hangs")
            );
        }
        hangs.rest();
        assert_eq!(watchdog.check(), None);
        assert!(watchdog.is_healthy());
    }

    #[test]
    fn each_step_is_another_number_and_odd_at_work() {
        let heartbeat = Heartbeat::default();
        let mut beats = vec![heartbeat.beat()];
        for is_work in [true, true, false, false, true] {
            if is_work {
                heartbeat.work()
            } else {
                heartbeat.rest()
            }
            assert_eq!(heartbeat.beat() & 1 == 1, is_work);
            assert!(heartbeat.beat() > *beats.last().unwrap());
            beats.push(heartbeat.beat());
        }
    }
}
