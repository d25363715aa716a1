// SPDX-License-Identifier: MIT OR Apache-2.0
//! Raises a data thread's priority above local applications while it carries bulk traffic.
//!
//! With bulk, a frame that waits for a core is a frame in a queue. In a flood of small frames the
//! default priority is better: the scheduler would wake the thread for each frame, and waiting
//! makes bursts.

use crate::io::{set_thread_niceness, thread_niceness};

/// After this many bursts in a row without bulk, bulk is considered over.
const LIGHT_BURSTS: u32 = 64;

/// The priority of one thread.
pub(super) struct ThreadPriority {
    high: i32,
    usual: i32,
    is_high: bool,
    light: u32,
}

impl ThreadPriority {
    /// Of the calling thread: `high` is its niceness while there is bulk.
    pub(super) fn of_this_thread(high: i32) -> Self {
        Self {
            high,
            usual: thread_niceness(),
            is_high: false,
            light: 0,
        }
    }

    /// Takes in one burst. Makes a system call only when things change.
    pub(super) fn observe(&mut self, has_bulk: bool) {
        if has_bulk {
            self.light = 0;
        } else {
            self.light = self.light.saturating_add(1);
        }
        let wanted = has_bulk || self.is_high && self.light < LIGHT_BURSTS;
        if wanted != self.is_high {
            self.is_high = wanted;
            let nice = if wanted { self.high } else { self.usual };
            // Refused without CAP_SYS_NICE; the priority then stays as it is.
            let _ = set_thread_niceness(nice);
        }
    }
}
