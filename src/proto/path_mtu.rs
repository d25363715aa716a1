// SPDX-License-Identifier: MIT OR Apache-2.0
//! The largest datagram that the path to a peer carries, found by probing (RFC 8899, DPLPMTUD).
//!
//! Nothing is configured and no ICMP is trusted. Datagrams carry DF. The search sends an echo
//! request of every size in a table; each answer proves its size. While traffic flows the present
//! size is proved again every few seconds; when it stops arriving, or the kernel says EMSGSIZE, the
//! size falls back to one that every path carries and the search begins anew. Each peer searches
//! its own direction.

use std::time::{Duration, Instant};

use super::limits::{PATH_MTU_BASE, PATH_MTU_MAX};

/// IP packet sizes worth asking for: the floors of RFC 791 and RFC 8200, common tunnels and access
/// lines, Ethernet, jumbo frames.
const SIZES: &[u16] = &[
    576,
    1000,
    1200,
    PATH_MTU_BASE,
    1300,
    1320,
    1340,
    1360,
    1380,
    1400,
    1420,
    1440,
    1460,
    1472,
    1480,
    1492,
    ETHERNET,
    1600,
    2000,
    3000,
    4000,
    4352,
    6000,
    8000,
    8900,
    9000,
    9198,
    PATH_MTU_MAX,
];
const ETHERNET: u16 = 1500;
/// What every IPv4 path carries (RFC 791: 576).
const FLOOR: u16 = SIZES[0];

/// Time for an answer before a probe counts as lost: three round trips, at least …
const PROBE_TIMEOUT: Duration = Duration::from_millis(300);
/// … and at most this.
const PROBE_TIMEOUT_MAX: Duration = Duration::from_secs(5);
/// How often the unanswered sizes of a search are asked for (RFC 8899: MAX_PROBES).
const ROUNDS: u8 = 3;
/// How often the present size is proved while traffic flows.
const CONFIRM_INTERVAL: Duration = Duration::from_secs(2);
/// A larger size is searched for this long after the last search (RFC 8899: PMTU_RAISE_TIMER).
const RAISE_INTERVAL: Duration = Duration::from_secs(600);
/// EMSGSIZE may come for each datagram of a batch; it counts once in this time.
const TOO_BIG_INTERVAL: Duration = Duration::from_millis(100);

/// A new endpoint begins a search at most once in this time.
const MOVED_INTERVAL: Duration = Duration::from_secs(5);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Asking for every size in (`current`, `limit`]; so many rounds are left.
    Search { limit: u16, rounds_left: u8 },
    /// Done; `current` is proved from time to time. So many proofs were lost in a row.
    Settled { lost: u8, proving: bool },
}

/// State of the search towards one peer.
#[derive(Debug)]
pub struct PathMtu {
    current: u16,
    phase: Phase,
    /// When the phase has something to do.
    due: Option<Instant>,
    /// Time for an answer.
    patience: Duration,
    next_confirm: Instant,
    raise_at: Instant,
    too_big_at: Option<Instant>,
    /// When a move last began a search.
    moved_at: Option<Instant>,
    /// Whether `current` was answered for since the search began; until then it is taken on trust.
    is_proved: bool,
    /// Probes that may still be answered: token and size.
    outstanding: Vec<(u64, u16)>,
    /// Sizes to ask for now.
    wanted: Vec<u16>,
}

impl PathMtu {
    /// Begins with the size that every path is taken to carry.
    pub fn new(now: Instant) -> Self {
        let mut path = Self {
            current: PATH_MTU_BASE,
            phase: Phase::Settled {
                lost: 0,
                proving: false,
            },
            due: None,
            patience: PROBE_TIMEOUT,
            next_confirm: now,
            raise_at: now,
            too_big_at: None,
            moved_at: None,
            is_proved: false,
            outstanding: Vec::new(),
            wanted: Vec::new(),
        };
        path.search_from(PATH_MTU_BASE, now);
        path
    }

    /// IP packet size known to arrive (or taken to, at the start).
    pub fn current(&self) -> u16 {
        self.current
    }

    /// A session begins: forget and search.
    pub fn restart(&mut self, now: Instant) {
        self.search_from(PATH_MTU_BASE, now);
    }

    /// The path changed (another endpoint): search, or only prove the size if a search has just
    /// begun. Who moves all the time gets no burst of probes for each move.
    pub fn handle_moved(&mut self, now: Instant) {
        if self.moved_at.is_some_and(|at| now < at + MOVED_INTERVAL) {
            return self.handle_network_change(now);
        }
        self.moved_at = Some(now);
        self.search_from(PATH_MTU_BASE, now);
    }

    /// The kernel refused a datagram as too big (EMSGSIZE).
    pub fn handle_too_big(&mut self, now: Instant) {
        if self
            .too_big_at
            .is_some_and(|at| now < at + TOO_BIG_INTERVAL)
        {
            return;
        }
        self.too_big_at = Some(now);
        self.fall_back(now);
    }

    /// Traffic went out: prove the size again if it is time.
    pub fn handle_traffic(&mut self, now: Instant) {
        if let Phase::Settled { proving: false, .. } = self.phase
            && now >= self.next_confirm
        {
            self.prove(0, now);
        }
    }

    /// A round trip was measured.
    pub fn handle_rtt(&mut self, rtt: Duration) {
        self.patience = (3 * rtt).clamp(PROBE_TIMEOUT, PROBE_TIMEOUT_MAX);
    }

    /// Routes changed, perhaps the one to the peer: prove the size now.
    pub fn handle_network_change(&mut self, now: Instant) {
        self.next_confirm = now;
        self.handle_traffic(now);
    }

    /// An echo reply came. True if `current` changed.
    pub fn handle_reply(&mut self, token: u64, now: Instant) -> bool {
        let Some(at) = self.outstanding.iter().position(|&(sent, _)| sent == token) else {
            return false;
        };
        let (_, size) = self.outstanding.swap_remove(at);
        match self.phase {
            Phase::Settled { .. } if size == self.current => self.settle(now),
            Phase::Settled { .. } => {}
            Phase::Search { limit, .. } => {
                let changed = size > self.current;
                self.is_proved = true;
                self.current = self.current.max(size);
                if self.current == limit && limit < PATH_MTU_MAX {
                    self.ask(PATH_MTU_MAX, ROUNDS, now);
                } else if self.current == limit {
                    self.settle(now);
                }
                return changed;
            }
        }
        false
    }

    /// Time passed. True if `current` changed.
    pub fn handle_timeout(&mut self, now: Instant) -> bool {
        if self.due.is_none_or(|due| now < due) {
            return false;
        }
        match self.phase {
            Phase::Search {
                limit,
                rounds_left: rounds_left @ 1..,
            } => {
                self.ask(limit, rounds_left, now);
                false
            }
            Phase::Search { .. } if !self.is_proved && self.current > FLOOR => {
                self.fall_back(now);
                true
            }
            Phase::Search { .. } => {
                self.settle(now);
                false
            }
            Phase::Settled {
                lost,
                proving: true,
            } if lost + 1 < ROUNDS => {
                self.prove(lost + 1, now);
                false
            }
            Phase::Settled { proving: true, .. } => {
                self.fall_back(now);
                true
            }
            Phase::Settled { proving: false, .. } => {
                self.ask(PATH_MTU_MAX, 1, now);
                false
            }
        }
    }

    /// Time passed in which nothing at all arrived: that says nothing about sizes.
    pub fn handle_silence(&mut self, now: Instant) {
        if self.due.is_some_and(|due| now >= due) {
            self.due = Some(now + self.patience);
        }
    }

    /// The next size to send an echo request of, as an IP packet.
    pub fn poll_probe(&mut self) -> Option<u16> {
        self.wanted.pop()
    }

    /// The probe that [`Self::poll_probe`] asked for went out with this token.
    pub fn handle_sent(&mut self, token: u64, size: u16) {
        self.outstanding.push((token, size));
    }

    /// When [`Self::handle_timeout`] wants to be called.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.due
    }

    fn search_from(&mut self, size: u16, now: Instant) {
        self.current = size;
        self.is_proved = false;
        self.outstanding.clear();
        self.ask(ETHERNET, ROUNDS, now);
    }

    /// Below the base only if the base itself does not arrive.
    fn fall_back(&mut self, now: Instant) {
        let size = if self.current > PATH_MTU_BASE {
            PATH_MTU_BASE
        } else {
            FLOOR
        };
        self.search_from(size, now);
    }

    fn ask(&mut self, limit: u16, rounds: u8, now: Instant) {
        self.phase = Phase::Search {
            limit,
            rounds_left: rounds - 1,
        };
        self.due = Some(now + self.patience);
        self.outstanding.truncate(SIZES.len());
        self.wanted = SIZES
            .iter()
            .copied()
            .filter(|&size| size > self.current || size == self.current && !self.is_proved)
            .filter(|&size| size <= limit)
            .collect();
    }

    fn prove(&mut self, lost: u8, now: Instant) {
        self.phase = Phase::Settled {
            lost,
            proving: true,
        };
        self.due = Some(now + self.patience);
        self.wanted = vec![self.current];
    }

    fn settle(&mut self, now: Instant) {
        if matches!(self.phase, Phase::Search { .. }) {
            self.raise_at = now + RAISE_INTERVAL;
        }
        self.phase = Phase::Settled {
            lost: 0,
            proving: false,
        };
        self.due = Some(self.raise_at);
        self.next_confirm = now + CONFIRM_INTERVAL;
        self.outstanding.clear();
        self.wanted.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs for `seconds` over a path that carries packets up to `carries`.
    fn run(path: &mut PathMtu, now: &mut Instant, token: &mut u64, carries: u16, seconds: u64) {
        let end = *now + Duration::from_secs(seconds);
        while *now < end {
            path.handle_traffic(*now);
            path.handle_timeout(*now);
            while let Some(size) = path.poll_probe() {
                *token += 1;
                path.handle_sent(*token, size);
                if size <= carries {
                    path.handle_reply(*token, *now);
                }
            }
            *now += Duration::from_millis(50);
        }
    }

    #[test]
    fn finds_the_largest_size_of_the_table_that_arrives() {
        for (carries, found) in [
            (1500, 1500),
            (1492, 1492),
            (1419, 1400),
            (1280, 1280),
            (1100, 1000),
            (576, 576),
            (9000, 9000),
            (65535, PATH_MTU_MAX),
        ] {
            let mut now = Instant::now();
            let mut path = PathMtu::new(now);
            run(&mut path, &mut now, &mut 0, carries, 8);
            assert_eq!(path.current(), found, "a path of {carries}");
        }
    }

    #[test]
    fn a_path_below_the_base_is_found_out_within_a_second() {
        let mut now = Instant::now();
        let mut path = PathMtu::new(now);
        run(&mut path, &mut now, &mut 0, 1100, 1);
        assert_eq!(path.current(), 1000);
    }

    #[test]
    fn a_path_that_shrinks_or_grows_is_noticed() {
        let (mut now, mut token) = (Instant::now(), 0);
        let mut path = PathMtu::new(now);
        run(&mut path, &mut now, &mut token, 1500, 3);
        assert_eq!(path.current(), 1500);
        run(&mut path, &mut now, &mut token, 1400, 6);
        assert_eq!(path.current(), 1400, "a black hole");
        run(&mut path, &mut now, &mut token, 9000, 610);
        assert_eq!(path.current(), 9000, "the raise timer");
        path.handle_too_big(now);
        assert_eq!(path.current(), PATH_MTU_BASE, "EMSGSIZE");
        run(&mut path, &mut now, &mut token, 1500, 2);
        assert_eq!(path.current(), 1500);
    }

    #[test]
    fn who_moves_all_the_time_is_not_probed_all_the_time() {
        let (mut now, mut probes) = (Instant::now(), 0);
        let mut path = PathMtu::new(now);
        for _ in 0..1000 {
            path.handle_moved(now);
            path.handle_timeout(now);
            probes += std::iter::from_fn(|| path.poll_probe()).count();
            now += Duration::from_millis(2);
        }
        assert!(probes < 100, "{probes} probes in two seconds");
    }

    #[test]
    fn silence_keeps_the_size() {
        let (mut now, mut token) = (Instant::now(), 0);
        let mut path = PathMtu::new(now);
        run(&mut path, &mut now, &mut token, 1500, 3);
        run(&mut path, &mut now, &mut token, 0, 1);
        for _ in 0..100 {
            path.handle_silence(now);
            now += PROBE_TIMEOUT;
        }
        run(&mut path, &mut now, &mut token, 1500, 3);
        assert_eq!(path.current(), 1500);
    }

    #[test]
    fn replies_nobody_asked_for_change_nothing() {
        let now = Instant::now();
        let mut path = PathMtu::new(now);
        assert!(!path.handle_reply(99, now));
        assert_eq!(path.current(), PATH_MTU_BASE);
    }
}
