// SPDX-License-Identifier: MIT OR Apache-2.0
//! When to signal senders that one of our queues is standing: CoDel's control law (RFC 8289,
//! section 4).
//!
//! CoDel measures how long packets waited. Neither a TAP nor a socket says that, but both say when
//! they are empty. A thread that drains a queue one bounded burst at a time detects a standing
//! queue: its bursts keep being full. The target is thus a burst, which is much less than a
//! millisecond's worth; the interval is as in RFC 8289 the time in which senders can react.

use std::time::{Duration, Instant};

/// A queue may be standing this long before the first signal, and signals are this far apart at
/// first.
pub(crate) const INTERVAL: Duration = Duration::from_millis(4);

/// After this many signals the distance shrinks no further: a flood that heeds none must not make
/// every burst pay.
const MAX_SIGNALS: u32 = 1 << 12;

/// The state of one queue.
#[derive(Debug, Default)]
pub(crate) struct Codel {
    /// When the queue will have been standing for an interval; `None` while it is not.
    due: Option<Instant>,
    /// Signals since it has been standing.
    signals: u32,
    /// Signals when it last was.
    last_signals: u32,
    ended: Option<Instant>,
    observed: Option<Instant>,
    /// The queue is standing, whatever the clock says.
    #[cfg(fuzzing)]
    insists: bool,
}

impl Codel {
    /// The next burst is one of a standing queue.
    #[cfg(fuzzing)]
    pub(crate) fn insist(&mut self) {
        self.insists = true;
    }

    /// Takes in one burst. True if one sender should be signalled to slow down, now.
    pub(crate) fn observe(&mut self, now: Instant, is_full: bool) -> bool {
        #[cfg(fuzzing)]
        if std::mem::take(&mut self.insists) {
            return true;
        }
        let since = |earlier: Option<Instant>| {
            earlier.map(|earlier| now.saturating_duration_since(earlier))
        };
        let pause = since(self.observed.replace(now));
        if !is_full || pause.is_some_and(|pause| pause > INTERVAL) {
            if self.due.take().is_some() && self.signals > 0 {
                self.last_signals = self.signals;
                self.ended = Some(now);
            }
            self.signals = 0;
        }
        if !is_full {
            return false;
        }
        let due = *self.due.get_or_insert(now + INTERVAL);
        if now < due {
            return false;
        }
        self.signals = (self.signals + 1).min(MAX_SIGNALS);
        if self.signals == 1 {
            // The queue was short for a moment only: continue about where it left off.
            let is_recent = since(self.ended).is_some_and(|ended| ended < 16 * INTERVAL);
            if is_recent && self.last_signals > 2 {
                self.signals = self.last_signals - 2;
            }
        }
        let distance = INTERVAL.div_f64(f64::from(self.signals).sqrt());
        // From the last due time, so that the rate holds; but never a burst after a pause.
        self.due = Some((due + distance).max(now));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Milliseconds at which signals are due while every burst, each 0.1 ms, is full.
    fn signals(codel: &mut Codel, start: Instant, tenths: u32) -> Vec<u32> {
        (0..tenths)
            .filter(|&at| codel.observe(start + Duration::from_micros(100) * at, true))
            .collect()
    }

    #[test]
    fn a_burst_is_no_queue() {
        let (mut codel, start) = (Codel::default(), Instant::now());
        assert!(signals(&mut codel, start, 39).is_empty());
        assert!(!codel.observe(start + INTERVAL, false));
        assert!(signals(&mut codel, start + INTERVAL, 39).is_empty());
    }

    #[test]
    fn signals_come_closer_until_the_queue_is_gone() {
        let (mut codel, start) = (Codel::default(), Instant::now());
        let seen = signals(&mut codel, start, 200);
        assert_eq!(seen[0], 40);
        let gaps: Vec<u32> = seen.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert!(
            gaps.is_sorted_by(|a, b| a >= b) && gaps.first() > gaps.last(),
            "{gaps:?}"
        );

        let end = start + Duration::from_millis(20);
        assert!(!codel.observe(end, false));
        // It is standing again at once: the rate is not learnt anew.
        let again = signals(&mut codel, end, 80);
        assert!(again.len() > seen.iter().filter(|&&at| at < 80).count());
    }
}
