// SPDX-License-Identifier: MIT OR Apache-2.0
//! How long a full socket may hold a thread that sends. Time is an argument.

use std::time::{Duration, Instant};

/// How long one train waits for room in the socket before the rest of it is dropped.
const PATIENCE: Duration = Duration::from_millis(2);

/// In this many pieces: the kernel may report room, and then have none.
pub(super) const WAITS: u32 = 3;

/// A thread that sends to several destinations waits for room for at most one part in this many of
/// its time.
const WAITING_SHARE: u32 = 10;

/// How long a thread may wait for room in its sockets, beside the limit of each train.
#[derive(Debug)]
pub(super) enum Patience {
    Endless,
    Limited { left: Duration, as_of: Instant },
}

impl Patience {
    pub(super) fn limited(now: Instant) -> Self {
        Self::Limited {
            left: PATIENCE,
            as_of: now,
        }
    }

    /// How long to wait now.
    pub(super) fn next_wait(&mut self, now: Instant) -> Option<Duration> {
        const PIECE: Duration = Duration::from_nanos(PATIENCE.as_nanos() as u64 / WAITS as u64);
        let Self::Limited { left, as_of } = self else {
            return Some(PIECE);
        };
        let gained = now.saturating_duration_since(*as_of) / WAITING_SHARE;
        (*left, *as_of) = ((*left + gained).min(PATIENCE), now);
        (*left >= PIECE).then_some(PIECE)
    }

    /// A wait is over.
    pub(super) fn spend(&mut self, now: Instant) {
        if let Self::Limited { left, as_of } = self {
            *left = left.saturating_sub(now.saturating_duration_since(*as_of));
            *as_of = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_sends_to_several_peers_waits_a_tenth_of_the_time() {
        let begin = Instant::now();
        let mut patience = Patience::limited(begin);
        let (mut now, mut waited) = (begin, Duration::ZERO);
        while now < begin + Duration::from_secs(10) {
            match patience.next_wait(now) {
                Some(wait) => {
                    now += wait;
                    waited += wait;
                    patience.spend(now);
                }
                None => now += Duration::from_micros(100),
            }
        }
        let most = Duration::from_millis(1010);
        assert!(waited <= most && waited > most / 2, "{waited:?}");
        let mut endless = Patience::Endless;
        assert!((0..1000).all(|_| endless.next_wait(now).is_some()));
    }
}
