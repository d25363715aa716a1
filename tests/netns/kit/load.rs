// SPDX-License-Identifier: MIT OR Apache-2.0
//! Turns at the cores. Most tests wait, and many of them do so side by side; what moves much, or
//! measures how fast something is, takes its turn here.
//!
//! Nothing that has a deadline begins before its turn does.

use std::cell::Cell;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Streams of frames and transfers that go together without one of them being late.
const PLACES: u8 = 4;

/// First come, first served: who wants all places is not overtaken for ever.
struct Queue {
    free: u8,
    /// Numbers of the next one that comes, and of the next one that is served.
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

/// Lasts as long as its value, which stays in its thread.
#[must_use]
pub(crate) struct Turn {
    places: u8,
}

/// For frames, and for transfers that have to be right and not fast.
pub(crate) fn some() -> Turn {
    Turn::take(1)
}

/// For what sends as fast as it can, and for what measures a silence.
pub(crate) fn half() -> Turn {
    Turn::take(PLACES / 2)
}

/// For storms, for what must be found in time, and for what may lose nothing for seconds.
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

/// A test that fails gives its turn back, and spoils nothing for the others.
fn queue() -> MutexGuard<'static, Queue> {
    QUEUE.lock().unwrap_or_else(PoisonError::into_inner)
}
