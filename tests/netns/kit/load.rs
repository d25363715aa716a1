// SPDX-License-Identifier: MIT OR Apache-2.0
//! Turns at the cores. Most tests wait, and many of them do so side by side; a test that moves much, or
//! measures how fast something is, takes a turn here.
//!
//! A test takes its turn before anything that has a deadline begins.

use std::cell::Cell;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// The number of streams and transfers that can run together without making each other late.
const PLACES: u8 = 4;

/// First come, first served, so that a test that wants all places gets them in the end.
struct Queue {
    free: u8,
    /// The numbers of the next test that comes, and of the next one that is served.
    next: u64,
    served: u64,
}

static QUEUE: Mutex<Queue> = Mutex::new(Queue {
    free: PLACES,
    next: 0,
    served: 0,
});
static NEWS: Condvar = Condvar::new();

thread_local! {
    static HAS_A_TURN: Cell<bool> = const { Cell::new(false) };
}

/// Lasts as long as the value, which stays in its thread.
#[must_use]
pub(crate) struct Turn {
    places: u8,
}

/// For frames, and for transfers that have to be right and not fast.
pub(crate) fn some() -> Turn {
    Turn::take(1)
}

/// For tests that send as fast as they can, and for tests that measure a silence.
pub(crate) fn half() -> Turn {
    Turn::take(PLACES / 2)
}

/// For storms, for events with a time limit, and for flows that must lose nothing for seconds.
pub(crate) fn all() -> Turn {
    Turn::take(PLACES)
}

impl Turn {
    fn take(places: u8) -> Self {
        assert!(
            !HAS_A_TURN.replace(true),
            "a second turn would wait for the first one, of the same test"
        );
        let mut queue = queue();
        let number = queue.next;
        queue.next += 1;
        let is_ours = |queue: &Queue| queue.served == number && queue.free >= places;
        let waited = NEWS.wait_while(queue, |queue| !is_ours(queue));
        queue = waited.unwrap_or_else(PoisonError::into_inner);
        queue.free -= places;
        queue.served += 1;
        NEWS.notify_all();
        Self { places }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        HAS_A_TURN.set(false);
        queue().free += self.places;
        NEWS.notify_all();
    }
}

/// A test that fails returns its turn, and does not poison the queue.
fn queue() -> MutexGuard<'static, Queue> {
    QUEUE.lock().unwrap_or_else(PoisonError::into_inner)
}
