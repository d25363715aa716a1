// SPDX-License-Identifier: MIT OR Apache-2.0
//! Whether a peer is reachable: silence while this node sends means that something is wrong.
//!
//! The data threads keep no timers. A few times a second the control thread samples their counters:
//! if datagrams were sent and nothing authentic came back, it sends an echo request, then starts a
//! handshake (the peer may have restarted), then declares the peer down. On an idle link it sends
//! one echo request per keepalive interval, so this works without traffic too.

use std::time::{Duration, Instant};

use super::limits::{DOWN_AFTER, REKEY_WHEN_SILENT_AFTER, SAMPLE_INTERVAL, SUSPECT_AFTER};

/// The actions that a sample of the counters asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Findings {
    /// Datagrams were sent since the last sample.
    pub(crate) sent: bool,
    /// Send an echo request.
    pub(crate) echo: bool,
    /// Start a handshake.
    pub(crate) rekey: bool,
    /// The peer counts as down.
    pub(crate) down: bool,
}

/// State of one peer.
#[derive(Debug)]
pub(crate) struct Liveness {
    sent: u64,
    received: u64,
    /// The last sample that found datagrams sent.
    last_sent: Instant,
    last_heard: Option<Instant>,
    /// Since when datagrams have been sent without an answer.
    silent_since: Option<Instant>,
    next_sample: Instant,
}

impl Liveness {
    pub(crate) fn new(now: Instant) -> Self {
        let (last_heard, silent_since) = (None, None);
        Self {
            sent: 0,
            received: 0,
            last_sent: now,
            last_heard,
            silent_since,
            next_sample: now,
        }
    }

    /// When the next sample is due.
    pub(crate) fn next_sample(&self) -> Instant {
        self.next_sample
    }

    /// There is no session to judge: sample again later.
    pub(crate) fn postpone(&mut self, now: Instant) {
        self.next_sample = now + SAMPLE_INTERVAL;
    }

    pub(crate) fn last_heard(&self) -> Option<Instant> {
        self.last_heard
    }

    /// Whether nothing has been heard for so long that the peer may be gone.
    pub(crate) fn is_suspect(&self, now: Instant) -> bool {
        self.silent_for(now) >= SUSPECT_AFTER
    }

    /// Something authentic arrived outside the data path's counters (a handshake).
    pub(crate) fn handle_heard(&mut self, now: Instant) {
        self.last_heard = Some(now);
        self.silent_since = None;
    }

    /// Takes a sample: how many datagrams were sent and received until now. `rtt`: the round-trip
    /// time.
    pub(crate) fn sample(
        &mut self,
        now: Instant,
        sent: u64,
        received: u64,
        keepalive: Duration,
        rtt: Duration,
    ) -> Findings {
        self.postpone(now);
        let has_sent = std::mem::replace(&mut self.sent, sent) != sent;
        let has_heard = std::mem::replace(&mut self.received, received) != received;
        if has_sent {
            self.last_sent = now;
        }
        if has_heard {
            self.handle_heard(now);
        } else if has_sent && self.silent_since.is_none() {
            self.silent_since = Some(now);
        }
        // Silence begins when an answer could have arrived.
        let silent_for = self.silent_for(now).saturating_sub(rtt);
        let idle_for = now.saturating_duration_since(self.last_sent);
        Findings {
            sent: has_sent,
            echo: silent_for >= SUSPECT_AFTER || idle_for >= keepalive,
            rekey: silent_for >= REKEY_WHEN_SILENT_AFTER,
            down: silent_for >= DOWN_AFTER,
        }
    }

    fn silent_for(&self, now: Instant) -> Duration {
        self.silent_since
            .map_or(Duration::ZERO, |since| now.saturating_duration_since(since))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEEPALIVE: Duration = Duration::from_secs(10);

    #[test]
    fn silence_leads_from_a_question_to_a_handshake_to_down() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let findings = |sent, echo, rekey, down| Findings {
            sent,
            echo,
            rekey,
            down,
        };
        let mut liveness = Liveness::new(start);
        for (millis, sent, received, expected) in [
            (0, 0, 0, findings(false, false, false, false)),
            (250, 5, 5, findings(true, false, false, false)),
            (500, 6, 5, findings(true, false, false, false)), // silence begins
            (750, 9, 5, findings(true, false, false, false)),
            (1000, 9, 5, findings(false, true, false, false)),
            (1500, 10, 5, findings(true, true, true, false)),
            (1750, 10, 6, findings(false, false, false, false)), // an answer
            (11_500, 10, 6, findings(false, true, false, false)), // idle: keepalive
            (11_750, 11, 6, findings(true, false, false, false)),
            (12_750, 11, 6, findings(false, true, true, false)),
            (16_750, 12, 6, findings(true, true, true, true)),
        ] {
            let found = liveness.sample(at(millis), sent, received, KEEPALIVE, Duration::ZERO);
            assert_eq!(found, expected, "at {millis} ms");
        }
        liveness.handle_heard(at(17_000));
        assert!(
            !liveness
                .sample(at(17_000), 12, 6, KEEPALIVE, Duration::ZERO)
                .down
        );
    }
}
