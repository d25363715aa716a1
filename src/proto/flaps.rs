// SPDX-License-Identifier: MIT OR Apache-2.0
//! A peer that flaps counts as down until it stays up, so that carrier, log and bridges do not
//! follow each change: route flap damping (RFC 2439) for peers.
//!
//! Each loss adds one to a penalty, which halves every ten seconds. Above the limit the peer is
//! held down until the penalty is low again, 20 s after the last loss at most. Losses that are 4.2
//! s apart never reach the limit: detection of silence, and recovery, take longer. Traffic to and
//! from the peer continues meanwhile.

use std::time::{Duration, Instant};

use super::limits::{FLAP_HALF_LIFE, FLAP_LIMIT, FLAP_MOST, FLAP_REUSE};

/// State of one peer.
#[derive(Debug, Default)]
pub(crate) struct Flaps {
    /// At the time of the last loss.
    penalty: f64,
    lost_at: Option<Instant>,
    is_held: bool,
}

impl Flaps {
    /// The peer was lost. True if it is held down from now on.
    pub(crate) fn handle_lost(&mut self, now: Instant) -> bool {
        self.is_held_down(now);
        self.penalty = (self.penalty(now) + 1.0).min(FLAP_MOST);
        self.lost_at = Some(now);
        let begins = !self.is_held && self.penalty > FLAP_LIMIT;
        self.is_held |= begins;
        begins
    }

    /// Whether the peer counts as down even if it is reachable.
    pub(crate) fn is_held_down(&mut self, now: Instant) -> bool {
        self.is_held &= self.held_until().is_some_and(|until| now < until);
        self.is_held
    }

    /// When the hold-down ends, if there is one.
    pub(crate) fn held_until(&self) -> Option<Instant> {
        let lost_at = self.lost_at.filter(|_| self.is_held)?;
        let half_lives = (self.penalty / FLAP_REUSE).log2();
        Some(lost_at + FLAP_HALF_LIFE.mul_f64(half_lives.max(0.0)))
    }

    fn penalty(&self, now: Instant) -> f64 {
        let since = |at| now.saturating_duration_since(at);
        let passed = self.lost_at.map_or(Duration::ZERO, since);
        self.penalty * 0.5_f64.powf(passed.div_duration_f64(FLAP_HALF_LIFE))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Losses at this distance: how many until the peer is held down, if it ever is.
    fn losses_until_held(distance_ms: u64) -> Option<u64> {
        let start = Instant::now();
        let mut flaps = Flaps::default();
        (0..1000).find(|n| flaps.handle_lost(start + Duration::from_millis(n * distance_ms)))
    }

    #[test]
    fn a_peer_that_flaps_is_held_down_and_one_lost_now_and_then_is_not() {
        assert_eq!(losses_until_held(50), Some(4));
        assert_eq!(losses_until_held(1000), Some(4));
        assert!(losses_until_held(4000).is_some());
        for seconds in [5, 6, 60] {
            assert_eq!(losses_until_held(seconds * 1000), None, "every {seconds} s");
        }
    }

    #[test]
    fn it_is_held_for_twenty_seconds_after_the_last_of_very_many_losses() {
        let start = Instant::now();
        let mut flaps = Flaps::default();
        let at = |millis| start + Duration::from_millis(millis);
        assert!(!flaps.is_held_down(start));
        let began = (0..160).filter(|n| flaps.handle_lost(at(n * 50))).count();
        assert_eq!(began, 1, "told once");
        let until = flaps.held_until().unwrap();
        let last = at(159 * 50);
        assert_eq!((until - last).as_secs_f64().round(), 20.0);
        assert!(flaps.is_held_down(until - Duration::from_millis(1)));
        assert!(!flaps.is_held_down(until));
        assert_eq!(flaps.held_until(), None);
    }
}
