// SPDX-License-Identifier: MIT OR Apache-2.0
//! `pipeline.latency`: keeps idle cores from sleeping deeper than a bound while frames cross.
//!
//! A core that halts takes longer to wake up than all other steps of a frame together. The data
//! threads know nothing of this: [`WakeBound::follow`] reads their counters a few times a second, and
//! only a tunnel with the key runs it. So the first frames after a pause still meet cores that halt.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::{MissedTickBehavior, interval};
use tracing::warn;

use crate::{
    control::message::{LatencyState, LatencyStatus},
    machine::cpu_latency::{self, CpuLatencyError, CpuLatencyRequest},
};

/// Between two looks at the counters.
const INTERVAL: Duration = Duration::from_millis(250);
/// The traffic of so many intervals, a second, is considered …
const LOOKS: usize = 4;
/// … and is none if it has fewer frames than this, and than two more for each peer: loop probes, ARP
/// and neighbour discovery never end.
const ACTIVE_FRAMES: u64 = 10;

/// The bound of one tunnel on the wake-up time of idle cores.
pub(super) struct WakeBound {
    bound_us: u32,
    active_frames: u64,
    state: Mutex<State>,
}

enum State {
    Held(#[expect(dead_code, reason = "lasts until it is dropped")] CpuLatencyRequest),
    Idle,
    Unavailable(String),
}

impl WakeBound {
    /// Of a tunnel with so many peers. Warns if the kernel takes no such request.
    pub(super) fn new(bound_us: u32, peers: usize) -> Self {
        let it = Self {
            bound_us,
            active_frames: ACTIVE_FRAMES + 2 * peers as u64,
            state: Mutex::new(State::Idle),
        };
        // To learn at the start, and not with the first frame, that it cannot be had.
        it.hold();
        it.release();
        it
    }

    /// Holds the bound while `frames`, a counter, grows.
    pub(super) async fn follow(&self, frames: impl Fn() -> u64) {
        let mut activity = Activity::new(frames());
        let mut look = interval(INTERVAL);
        look.set_missed_tick_behavior(MissedTickBehavior::Skip);
        loop {
            look.tick().await;
            match activity.observe(frames()) >= self.active_frames {
                true => self.hold(),
                false => self.release(),
            }
        }
    }

    /// For `show`.
    pub(super) fn status(&self) -> LatencyStatus {
        let (state, problem) = match &*self.state.lock().unwrap_or_else(PoisonError::into_inner) {
            State::Held(_) => (LatencyState::Held, None),
            State::Idle => (LatencyState::Idle, None),
            State::Unavailable(problem) => (LatencyState::Unavailable, Some(problem.clone())),
        };
        LatencyStatus {
            bound_us: self.bound_us,
            state,
            problem,
        }
    }

    fn hold(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if matches!(*state, State::Idle) {
            *state = match cpu_latency::request(self.bound_us) {
                Ok(request) => State::Held(request),
                Err(error) => unavailable(&error),
            };
        }
    }

    /// A problem stays: it is one of the surroundings of the process.
    fn release(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if matches!(*state, State::Held(_)) {
            *state = State::Idle;
        }
    }
}

fn unavailable(error: &CpuLatencyError) -> State {
    let problem = error.to_string();
    warn!("cannot keep idle cores from halting, as `pipeline.latency` asks: {problem}");
    State::Unavailable(problem)
}

/// How many frames cross.
struct Activity {
    /// The counts of the last looks, and the place of the oldest.
    counts: [u64; LOOKS],
    oldest: usize,
}

impl Activity {
    fn new(frames: u64) -> Self {
        Self {
            counts: [frames; LOOKS],
            oldest: 0,
        }
    }

    /// Takes in the present count of frames. Returns those of the last second.
    fn observe(&mut self, frames: u64) -> u64 {
        let before = std::mem::replace(&mut self.counts[self.oldest], frames);
        self.oldest = (self.oldest + 1) % LOOKS;
        frames.saturating_sub(before)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn traffic_is_that_of_the_last_second() {
        let mut activity = Activity::new(70);
        for (frames, crossed) in [
            (70, 0),
            (74, 4),
            (78, 8),
            (79, 9),
            (80, 10),
            (84, 10),
            (84, 6),
            (1000, 921),
            (1000, 920),
            (1000, 916),
            (1000, 916),
            (1000, 0),
        ] {
            assert_eq!(activity.observe(frames), crossed, "{frames}");
        }
    }
}
