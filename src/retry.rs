// SPDX-License-Identifier: MIT OR Apache-2.0
//! When to retry a refused action, and when to log the failure.

use std::time::{Duration, Instant};

const LOG_INTERVAL: Duration = Duration::from_secs(60);

/// The attempts at one action.
#[derive(Debug)]
pub(crate) struct Retry {
    first: Duration,
    last: Duration,
    /// The pause before the present attempt; none after a success.
    pause: Option<Duration>,
    quiet_until: Option<Instant>,
}

impl Retry {
    /// Waits for `first` before the second attempt, and then longer and longer, up to `last`.
    pub(crate) fn new(first: Duration, last: Duration) -> Self {
        Self {
            first,
            last,
            pause: None,
            quiet_until: None,
        }
    }

    /// The action succeeded.
    pub(crate) fn is_over(&mut self) {
        self.pause = None;
    }

    /// How long to wait after a failure.
    pub(crate) fn next_pause(&mut self) -> Duration {
        let pause = self.pause.map_or(self.first, |pause| 2 * pause);
        *self.pause.insert(pause.min(self.last))
    }

    /// Whether to log a failure now: once a minute.
    pub(crate) fn may_log(&mut self, now: Instant) -> bool {
        let may = self.quiet_until.is_none_or(|until| now >= until);
        if may {
            self.quiet_until = Some(now + LOG_INTERVAL);
        }
        may
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_and_end() {
        let last = Duration::from_millis(500);
        let mut retry = Retry::new(Duration::from_millis(1), last);
        let pauses: Vec<_> = (0..12).map(|_| retry.next_pause()).collect();
        assert_eq!(pauses[..3], [1, 2, 4].map(Duration::from_millis));
        assert_eq!(pauses[11], last);
        retry.is_over();
        assert_eq!(retry.next_pause(), Duration::from_millis(1));
    }

    #[test]
    fn a_failure_is_logged_once_a_minute() {
        let mut retry = Retry::new(Duration::ZERO, Duration::ZERO);
        let start = tokio::time::Instant::now().into_std();
        let told = (0..600).filter(|&tenth| {
            let now = start + tenth * Duration::from_millis(100);
            retry.may_log(now)
        });
        assert_eq!(told.count(), 1);
        assert!(retry.may_log(start + LOG_INTERVAL));
    }
}
