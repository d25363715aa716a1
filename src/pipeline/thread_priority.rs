// SPDX-License-Identifier: MIT OR Apache-2.0
//! Raises the priority of a tunnel's data threads above local applications while it carries bulk
//! traffic.
//!
//! With bulk, a frame that waits for a core is a frame in a queue. In a flood of small frames the
//! default priority is better: the scheduler would wake the thread for each frame, and waiting
//! makes bursts.
//!
//! Bulk in one direction raises the threads of both. The acknowledgements and the replies take the
//! other direction, and behind a thread of the highest priority one of the default priority waits
//! for whole time slices.

use std::sync::Arc;

use super::shared::Shared;
use crate::io::{set_thread_niceness, thread_niceness};

/// The priority of one thread.
pub(super) struct ThreadPriority {
    shared: Arc<Shared>,
    high: i32,
    usual: i32,
    is_high: bool,
}

impl ThreadPriority {
    /// Of the calling thread: `high` is its niceness while the tunnel carries bulk.
    pub(super) fn of_this_thread(shared: Arc<Shared>, high: i32) -> Self {
        Self {
            shared,
            high,
            usual: thread_niceness(),
            is_high: false,
        }
    }

    /// Takes in one burst. Makes a system call only when things change.
    pub(super) fn observe(&mut self, has_bulk: bool) {
        let now = self.shared.clock.now();
        let wanted = self.shared.last_bulk.observe(has_bulk, now);
        if wanted != self.is_high {
            self.is_high = wanted;
            let nice = if wanted { self.high } else { self.usual };
            // Refused without CAP_SYS_NICE; the priority then stays as it is.
            let _ = set_thread_niceness(nice);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::eventually;

    #[test]
    fn threads_of_both_directions_follow_bulk_in_one() {
        let shared = Shared::alone();
        let usual = thread_niceness();
        let high = usual + 3;
        let mut outbound = ThreadPriority::of_this_thread(shared.clone(), high);
        outbound.observe(true);
        assert_eq!(thread_niceness(), high);
        let inbound = std::thread::spawn(move || {
            let mut priority = ThreadPriority::of_this_thread(shared, usual + 5);
            priority.usual = usual;
            priority.observe(false);
            let with_bulk = thread_niceness();
            let is_over = eventually(|| {
                priority.observe(false);
                (thread_niceness() == usual).then_some(())
            });
            assert!(is_over.is_some());
            with_bulk
        });
        assert_eq!(inbound.join().unwrap(), usual + 5);
        set_thread_niceness(usual).unwrap();
    }
}
