// SPDX-License-Identifier: MIT OR Apache-2.0
//! Limits the cost of a panic of a data thread: a frame, or a peer for a while, and never the
//! tunnel.
//!
//! A thread catches panics around its batch, drops the frame in hand, renews what that frame may
//! have left half done, and continues with the next frame. A peer whose frames cause panics again
//! and again loses all of them for a while. A thread that still panics more often than [`MOST`]
//! times a minute has a fault that no frame explains, and ends the tunnel. No valid frame is lost
//! by any of this.

use std::{
    panic::{self, AssertUnwindSafe},
    sync::Arc,
    time::{Duration, Instant},
};

use patchcord_bridge::PortId;
use tracing::error;

use super::{clock, shared::Shared};
use crate::stats::{DropReason, Drops};

const PERIOD: Duration = Duration::from_secs(60);
/// Panics of one thread in a period.
const MOST: u32 = 100;
/// … and of one peer, before its frames are refused for as long.
const MOST_OF_PEER: u32 = 3;
const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// Catches the panics of one thread.
pub(super) struct Recovery {
    shared: Arc<Shared>,
    drops: Arc<Drops>,
    panics: Count,
    quiet_until: Option<Instant>,
}

impl Recovery {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self {
            drops: shared.new_drops(),
            shared,
            panics: Count::default(),
            quiet_until: None,
        }
    }

    /// Runs `work`. `None` if that panicked, which is counted; the caller then renews its state.
    ///
    /// # Panics
    /// When that happened too often.
    pub(super) fn catch<T>(&mut self, work: impl FnOnce() -> T) -> Option<T> {
        let outcome = panic::catch_unwind(AssertUnwindSafe(work));
        if outcome.is_err() {
            self.note_panic();
        }
        outcome.ok()
    }

    #[cold]
    fn note_panic(&mut self) {
        self.drops.count(DropReason::InternalError);
        if self.panics.add(clock::now()) > MOST {
            let problem = format!("it panicked more than {MOST} times within a minute");
            panic::resume_unwind(Box::new(problem));
        }
    }

    /// Records whose frame it was.
    pub(super) fn blame(&mut self, from: Option<PortId>) {
        let now = clock::now();
        if self.quiet_until.is_some_and(|until| now < until) {
            return;
        }
        self.quiet_until = Some(now + LOG_INTERVAL);
        error!(
            from = from.map(|port| self.shared.port_name(port)),
            "a data thread panicked over a frame, which is dropped; please report this with the lines above"
        );
    }
}

/// Panics in the present period.
#[derive(Clone, Copy, Debug, Default)]
struct Count {
    until: Option<Instant>,
    panics: u32,
}

impl Count {
    /// The number of panics, including this one.
    fn add(&mut self, now: Instant) -> u32 {
        if self.until.is_none_or(|until| now >= until) {
            *self = Self {
                until: Some(now + PERIOD),
                panics: 0,
            };
        }
        self.panics += 1;
        self.panics
    }
}

/// The panics that one peer's frames have caused.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Offender {
    panics: Count,
    /// Its frames are refused until then.
    pub(super) refused_until: Option<Instant>,
}

impl Offender {
    /// One more panic. True if it is one too many.
    pub(super) fn add(&mut self, now: Instant) -> bool {
        let is_too_many = self.panics.add(now) >= MOST_OF_PEER;
        if is_too_many {
            self.refused_until = Some(now + PERIOD);
        }
        is_too_many
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_is_refused_for_panics_that_come_close_to_each_other() {
        let start = clock::now();
        let mut seldom = Offender::default();
        for minute in 0..100 {
            assert!(!seldom.add(start + minute * PERIOD));
        }
        assert_eq!(seldom.refused_until, None);
        let mut often = Offender::default();
        let verdicts = [0, 1, 2].map(|second| often.add(start + Duration::from_secs(second)));
        assert_eq!(verdicts, [false, false, true]);
        let until = often.refused_until.unwrap();
        assert_eq!(until, start + Duration::from_secs(2) + PERIOD);
    }
}
