// SPDX-License-Identifier: MIT OR Apache-2.0
//! A token bucket that remembers one moment: when it will be full again (the generic cell rate
//! algorithm of ATM, ITU-T I.371). However often it is asked, no fraction of a token is lost.

use std::time::{Duration, Instant};

/// So many tokens in a second, and so many at once.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rate {
    pub(crate) per_second: u32,
    pub(crate) burst: u32,
}

impl Rate {
    fn interval(self) -> Duration {
        Duration::from_secs(1) / self.per_second
    }
}

/// See the module. It begins full.
#[derive(Debug)]
pub(crate) struct Bucket {
    full_at: Instant,
}

impl Bucket {
    pub(crate) fn new(now: Instant) -> Self {
        Self { full_at: now }
    }

    /// Takes a token. False if there is none.
    pub(crate) fn take(&mut self, now: Instant, rate: Rate) -> bool {
        let full_at = self.full_at.max(now) + rate.interval();
        let is_there = full_at <= now + rate.interval() * rate.burst;
        if is_there {
            self.full_at = full_at;
        }
        is_there
    }

    /// From when on there is a token.
    pub(crate) fn ready_at(&self, rate: Rate) -> Instant {
        let others = rate.interval() * (rate.burst - 1);
        self.full_at.checked_sub(others).unwrap_or(self.full_at)
    }

    pub(crate) fn is_full(&self, now: Instant) -> bool {
        now >= self.full_at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: Rate = Rate {
        per_second: 20,
        burst: 5,
    };

    #[test]
    fn the_burst_goes_at_once_and_then_the_rate_holds_however_often_it_is_asked() {
        let start = Instant::now();
        for step_us in [10, 999, 7000, 50_000, 400_000] {
            let mut bucket = Bucket::new(start);
            let at = |step: u64| start + Duration::from_micros(step * step_us);
            let steps = 10_000_000 / step_us;
            let taken = (0..=steps).filter(|&step| bucket.take(at(step), RATE));
            // A second has room for 20, or for as many as there are questions, the last of the
            // burst is taken at the start.
            let possible = (20 * 10 + 5).min(steps + 1);
            let taken = taken.count() as u64;
            assert!(
                (possible - 1..=possible).contains(&taken),
                "{taken} of {possible} every {step_us} us"
            );
        }
    }

    #[test]
    fn it_says_from_when_on_there_is_a_token() {
        let start = Instant::now();
        let mut bucket = Bucket::new(start);
        let mut now = start;
        for _ in 0..100 {
            while bucket.take(now, RATE) {}
            let ready = bucket.ready_at(RATE);
            assert!(ready > now && !bucket.is_full(now));
            assert!(!bucket.take(ready - Duration::from_nanos(1), RATE));
            assert!(bucket.take(ready, RATE));
            now = ready;
        }
        assert!(bucket.is_full(now + Duration::from_secs(1)));
    }
}
