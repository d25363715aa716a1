// SPDX-License-Identifier: MIT OR Apache-2.0
//! When larger sizes are probed again after a search: where the path carries less than it might,
//! soon and then at growing intervals, and at each sign that the route has changed. Nothing makes
//! it more often than every [`FIRST`].

use std::time::{Duration, Instant};

/// From the end of a search to the next probe for more, then twice as long each time …
const FIRST: Duration = Duration::from_secs(4);
/// … and at last this long (RFC 8899: PMTU_RAISE_TIMER) …
const LONGEST: Duration = Duration::from_secs(600);
/// … but where the probe costs next to nothing, only this long.
const LONGEST_IF_CHEAP: Duration = Duration::from_secs(8);

/// The reason to probe soon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reason {
    /// The path carries the usual size, and all that it has carried.
    None,
    /// It carries less.
    Less,
    /// It carries less, and a probe costs next to nothing.
    Cheap,
}

#[derive(Debug)]
pub(super) struct Raise {
    at: Instant,
    /// Counted from the end of the next search that finds nothing larger.
    distance: Duration,
    /// When a sign last made it due.
    by_sign: Option<Instant>,
}

impl Raise {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            at: now,
            distance: FIRST,
            by_sign: None,
        }
    }

    /// When it is due.
    pub(super) fn at(&self) -> Instant {
        self.at
    }

    /// The size has changed.
    pub(super) fn begin_anew(&mut self) {
        self.distance = FIRST;
    }

    pub(super) fn handle_end_of_search(&mut self, now: Instant, reason: Reason) {
        let distance = match reason {
            Reason::None => LONGEST,
            Reason::Less => self.distance.min(LONGEST),
            Reason::Cheap => self.distance.min(LONGEST_IF_CHEAP),
        };
        self.at = now + distance;
        self.distance = 2 * distance;
    }

    /// The route to the peer has changed. The first sign counts at once; those that follow soon are
    /// taken together.
    pub(super) fn handle_sign(&mut self, now: Instant) {
        let at = match self.by_sign {
            Some(at) if at > now => at,
            Some(at) => now.max(at + FIRST),
            None => now,
        };
        self.by_sign = Some(at);
        self.at = self.at.min(at);
        self.begin_anew();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secs(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    #[test]
    fn the_distance_doubles_up_to_its_bound() {
        for (reason, distances) in [
            (Reason::None, [600; 10]),
            (Reason::Less, [4, 8, 16, 32, 64, 128, 256, 512, 600, 600]),
            (Reason::Cheap, [4, 8, 8, 8, 8, 8, 8, 8, 8, 8]),
        ] {
            let now = Instant::now();
            let mut raise = Raise::new(now);
            for distance in distances {
                raise.handle_end_of_search(now, reason);
                assert_eq!(raise.at() - now, secs(distance));
            }
            raise.begin_anew();
            raise.handle_end_of_search(now, reason);
            assert_eq!(raise.at() - now, secs(distances[0]));
        }
    }

    #[test]
    fn signs_count_at_once_and_not_too_often() {
        let start = Instant::now();
        let mut raise = Raise::new(start);
        let mut times = 0;
        for tenth in 0..=1000 {
            let now = start + Duration::from_millis(100) * tenth;
            raise.handle_sign(now);
            if now >= raise.at() {
                assert!(tenth > 0 || times == 0);
                times += 1;
                raise.handle_end_of_search(now, Reason::Less);
            }
        }
        assert_eq!(times, 26, "in 100 s");
    }
}
