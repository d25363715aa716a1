// SPDX-License-Identifier: MIT OR Apache-2.0
//! The one place that reads clocks; everything pure gets its time as an argument.

use std::time::{Instant, SystemTime};

use patchcord_bridge::Now;

/// Monotonic time for the protocol.
#[expect(clippy::disallowed_methods, reason = "this is the clock")]
pub(crate) fn now() -> Instant {
    Instant::now()
}

/// Time of day, for the timestamps of handshakes.
#[expect(clippy::disallowed_methods, reason = "this is the clock")]
pub(crate) fn wall() -> SystemTime {
    SystemTime::now()
}

/// Time since the start of the engine, for the switch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SwitchClock {
    start: Instant,
}

impl SwitchClock {
    pub(crate) fn start() -> Self {
        Self { start: now() }
    }

    /// To be read once per batch.
    pub(crate) fn now(self) -> Now {
        let passed = now().saturating_duration_since(self.start).as_micros();
        Now::from_micros(u64::try_from(passed).unwrap_or(u64::MAX))
    }
}
