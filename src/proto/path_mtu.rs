// SPDX-License-Identifier: MIT OR Apache-2.0
//! The largest datagram that the path to a peer carries, found by probing (RFC 8899, DPLPMTUD).
//!
//! Nothing is configured and no ICMP is trusted. Datagrams carry DF. A search takes steps
//! (`steps`): each sends echo requests of several sizes at once, and each answer proves its size.
//! Sizes that our own kernel refuses (EMSGSIZE) are known at once. The search ends when the largest
//! size that arrives and the smallest that does not are next to each other.
//!
//! While traffic flows the present size is proved again every few seconds; when it stops arriving,
//! or the kernel says EMSGSIZE, the size falls back to one that every path carries and the search
//! starts over. Larger sizes are probed again soon after, and then at growing intervals (`raise`):
//! the cause of the narrow path may have passed. Before that the present size is proved, so that a
//! path that has become narrower meanwhile is noticed just as soon. Each peer searches its own
//! direction.

mod raise;
mod steps;
mod tests;

use std::time::{Duration, Instant};

use self::{
    raise::{Raise, Reason},
    steps::{ETHERNET, NO_CEILING},
};
use super::limits::{PATH_MTU_BASE, PATH_MTU_FLOOR};

/// Time for an answer before a probe counts as lost: three round trips, at least …
const PROBE_TIMEOUT: Duration = Duration::from_millis(300);
/// … and at most this.
const PROBE_TIMEOUT_MAX: Duration = Duration::from_secs(5);
/// How often the unanswered sizes of a step are probed (RFC 8899: MAX_PROBES).
const ROUNDS: u8 = 3;
/// How often the present size is proved while traffic flows.
const CONFIRM_INTERVAL: Duration = Duration::from_secs(2);
/// EMSGSIZE may occur for each datagram of a batch; it counts once in this time.
const TOO_BIG_INTERVAL: Duration = Duration::from_millis(100);
/// A new endpoint, or a peer that was down, begins a search at most once in this time.
const RESTART_INTERVAL: Duration = Duration::from_secs(5);
/// Probes that may still be answered; those of earlier rounds and steps are dropped first.
const OUTSTANDING: usize = 64;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Probing the sizes in `probed`; this many rounds are left.
    Search { rounds_left: u8 },
    /// Done; `current` is proved from time to time. This many proofs were lost in a row.
    Settled { lost: u8, proving: bool },
}

/// State of the search towards one peer.
#[derive(Debug)]
pub(crate) struct PathMtu {
    current: u16,
    /// Whether `current` was answered since the search began; until then it is assumed to arrive.
    is_proved: bool,
    /// The smallest size that does not arrive, as far as this search knows.
    ceiling: u16,
    /// The largest size that has arrived since the path last changed.
    best: u16,
    phase: Phase,
    /// When the phase has something to do.
    due: Instant,
    /// Time for an answer.
    patience: Duration,
    next_confirm: Instant,
    raise: Raise,
    /// In this search our own kernel refused the size of an Ethernet.
    is_own_link: bool,
    /// A search has just found that not even the smallest size arrives.
    has_failed: bool,
    too_big_at: Option<Instant>,
    /// When a move or a new session last began a search.
    restarted_at: Option<Instant>,
    /// The sizes of the present step, ascending.
    probed: Vec<u16>,
    /// Sizes to probe now, and since when.
    unsent: Vec<u16>,
    unsent_since: Instant,
    /// Probes that may still be answered: token and size.
    outstanding: Vec<(u64, u16)>,
}

impl PathMtu {
    /// Begins with the size that every path is assumed to carry.
    pub(crate) fn new(now: Instant) -> Self {
        let mut path = Self {
            current: PATH_MTU_BASE,
            is_proved: false,
            ceiling: NO_CEILING,
            best: 0,
            phase: Phase::Settled {
                lost: 0,
                proving: false,
            },
            due: now,
            patience: PROBE_TIMEOUT,
            next_confirm: now,
            raise: Raise::new(now),
            is_own_link: false,
            has_failed: false,
            too_big_at: None,
            restarted_at: None,
            probed: Vec::new(),
            unsent: Vec::new(),
            unsent_since: now,
            outstanding: Vec::new(),
        };
        path.search_from(PATH_MTU_BASE, now);
        path
    }

    /// IP packet size known to arrive (or assumed to, at the start).
    pub(crate) fn current(&self) -> u16 {
        self.current
    }

    /// Not even the smallest size arrives.
    pub(crate) fn is_too_narrow(&self) -> bool {
        matches!(self.phase, Phase::Settled { .. }) && !self.is_proved
    }

    /// Whether a search has just found that; true once for each search.
    pub(crate) fn take_too_narrow(&mut self) -> bool {
        std::mem::take(&mut self.has_failed)
    }

    /// The path has changed (a new endpoint, a peer that was down): search, or only prove the size
    /// if a search has just begun. A peer that moves all the time does not cause a burst of probes
    /// for each move.
    pub(crate) fn restart(&mut self, now: Instant) {
        if self
            .restarted_at
            .is_some_and(|at| now < at + RESTART_INTERVAL)
        {
            self.next_confirm = now;
            return;
        }
        self.restarted_at = Some(now);
        self.best = 0;
        self.search_from(PATH_MTU_BASE, now);
    }

    /// The kernel refused a datagram as too big (EMSGSIZE).
    pub(crate) fn handle_too_big(&mut self, now: Instant) {
        let is_repeated = self
            .too_big_at
            .is_some_and(|at| now < at + TOO_BIG_INTERVAL);
        // Below the floor there is nothing to fall back to.
        if is_repeated || self.is_too_narrow() {
            return;
        }
        self.too_big_at = Some(now);
        self.fall_back(now);
    }

    /// The kernel refused a probe of this size. True if `current` changed.
    pub(crate) fn handle_refused(&mut self, size: u16, now: Instant) -> bool {
        let before = self.current;
        match self.phase {
            Phase::Settled { .. } if size == before => self.handle_too_big(now),
            Phase::Settled { .. } => {}
            Phase::Search { .. } => {
                self.is_own_link |= size <= ETHERNET;
                self.ceiling = self.ceiling.min(size);
                self.end_step_early(now);
            }
        }
        self.current != before
    }

    /// Traffic was sent: prove the size again if it is time.
    pub(crate) fn handle_traffic(&mut self, now: Instant) {
        if let Phase::Settled { proving: false, .. } = self.phase
            && self.is_proved
            && now >= self.next_confirm
        {
            self.prove(0, now);
        }
    }

    /// How long to wait for the answer to a probe.
    pub(crate) fn patience(&self) -> Duration {
        self.patience
    }

    /// A round trip was measured.
    pub(crate) fn handle_rtt(&mut self, rtt: Duration) {
        self.patience = (3 * rtt).clamp(PROBE_TIMEOUT, PROBE_TIMEOUT_MAX);
    }

    /// The route to the peer, or our own link there, has changed: prove the size, and probe for
    /// more.
    pub(crate) fn handle_route_change(&mut self, now: Instant) {
        self.next_confirm = now;
        self.raise.handle_sign(now);
        if let Phase::Settled { proving: false, .. } = self.phase {
            self.due = self.raise.at();
            self.handle_traffic(now);
        }
    }

    /// An echo reply arrived. True if `current` changed.
    pub(crate) fn handle_reply(&mut self, token: u64, now: Instant) -> bool {
        let Some(at) = self.outstanding.iter().position(|&(sent, _)| sent == token) else {
            return false;
        };
        let (_, size) = self.outstanding.remove(at);
        match self.phase {
            Phase::Settled { .. } if size == self.current => {
                self.handle_proof(now);
                false
            }
            Phase::Settled { .. } => false,
            Phase::Search { .. } => {
                let has_grown = self.handle_arrival(size, now);
                self.end_step_early(now);
                has_grown
            }
        }
    }

    /// Time passed. True if `current` changed.
    pub(crate) fn handle_timeout(&mut self, now: Instant) -> bool {
        if now < self.due {
            return false;
        }
        let before = self.current;
        match self.phase {
            Phase::Search { rounds_left: 0 } => self.end_step(now),
            Phase::Search { rounds_left } => self.begin_round(rounds_left - 1, now),
            Phase::Settled {
                lost,
                proving: true,
            } if lost + 1 < ROUNDS => self.prove(lost + 1, now),
            Phase::Settled { proving: true, .. } if self.is_proved => self.fall_back(now),
            Phase::Settled { proving: true, .. } => self.settle(now),
            // The kernel refuses at once: that does not delay any proof.
            Phase::Settled { proving: false, .. } if self.is_own_link && self.is_proved => {
                self.probe_larger(now);
            }
            Phase::Settled { proving: false, .. } => self.prove(0, now),
        }
        self.current != before
    }

    /// Time passed in which nothing at all arrived: that says nothing about sizes.
    pub(crate) fn handle_silence(&mut self, now: Instant) {
        if now >= self.due {
            self.due = now + self.patience;
        }
    }

    /// The size of the next echo request to send, as an IP packet.
    pub(crate) fn poll_probe(&mut self) -> Option<u16> {
        self.unsent.pop()
    }

    /// The probe that [`Self::poll_probe`] asked for was sent with this token.
    pub(crate) fn handle_sent(&mut self, token: u64, size: u16) {
        if self.outstanding.len() == OUTSTANDING {
            self.outstanding.remove(0);
        }
        self.outstanding.push((token, size));
    }

    /// When to call [`Self::handle_timeout`] and then [`Self::poll_probe`].
    pub(crate) fn poll_timeout(&self) -> Instant {
        match self.unsent.is_empty() {
            true => self.due,
            false => self.unsent_since.min(self.due),
        }
    }

    fn search_from(&mut self, size: u16, now: Instant) {
        self.current = size;
        self.is_proved = false;
        self.ceiling = NO_CEILING;
        self.is_own_link = false;
        self.outstanding.clear();
        self.begin_step(steps::first(size), ROUNDS, now);
    }

    /// Below the base only if the base itself does not arrive.
    fn fall_back(&mut self, now: Instant) {
        let size = match self.current > PATH_MTU_BASE {
            true => PATH_MTU_BASE,
            false => PATH_MTU_FLOOR,
        };
        self.raise.begin_anew();
        self.search_from(size, now);
    }

    /// One round for sizes above `current`, which was proved just now.
    fn probe_larger(&mut self, now: Instant) {
        self.ceiling = NO_CEILING;
        self.is_own_link = false;
        match steps::above(self.current) {
            sizes if sizes.is_empty() => self.settle(now),
            sizes => self.begin_step(sizes, 1, now),
        }
    }

    fn begin_step(&mut self, sizes: Vec<u16>, rounds: u8, now: Instant) {
        self.probed = sizes;
        self.begin_round(rounds - 1, now);
    }

    fn begin_round(&mut self, rounds_left: u8, now: Instant) {
        self.phase = Phase::Search { rounds_left };
        self.unsent = self.unanswered().collect();
        (self.unsent_since, self.due) = (now, now + self.patience);
    }

    /// The sizes of this step of which nothing is known.
    fn unanswered(&self) -> impl Iterator<Item = u16> {
        let (least, ceiling) = (self.current + u16::from(self.is_proved), self.ceiling);
        let sizes = self.probed.iter().copied();
        sizes.filter(move |size| (least..ceiling).contains(size))
    }

    /// A probed size arrived. True if it is larger than any known before.
    fn handle_arrival(&mut self, size: u16, now: Instant) -> bool {
        self.is_proved = true;
        self.next_confirm = now + CONFIRM_INTERVAL;
        if size <= self.current {
            return false;
        }
        self.current = size;
        self.best = self.best.max(size);
        if self.current >= self.ceiling {
            // The answer was late, and the size was considered lost.
            self.ceiling = NO_CEILING;
        }
        self.raise.begin_anew();
        // This turns the one round of a raise into a search.
        self.phase = Phase::Search {
            rounds_left: ROUNDS - 1,
        };
        true
    }

    fn end_step_early(&mut self, now: Instant) {
        if self.unanswered().next().is_none() {
            self.end_step(now);
        }
    }

    /// A size that was not answered does not arrive.
    fn end_step(&mut self, now: Instant) {
        if !self.is_proved {
            return match self.current > PATH_MTU_FLOOR {
                true => self.fall_back(now),
                false => self.settle(now),
            };
        }
        let lost = self.unanswered().next();
        self.ceiling = lost.unwrap_or(self.ceiling);
        match steps::between(self.current, self.ceiling) {
            sizes if sizes.is_empty() => self.settle(now),
            sizes => self.begin_step(sizes, ROUNDS, now),
        }
    }

    fn prove(&mut self, lost: u8, now: Instant) {
        let proving = true;
        self.phase = Phase::Settled { lost, proving };
        self.unsent = vec![self.current];
        (self.unsent_since, self.due) = (now, now + self.patience);
    }

    /// `current` arrived.
    fn handle_proof(&mut self, now: Instant) {
        self.next_confirm = now + CONFIRM_INTERVAL;
        let was_too_narrow = !std::mem::replace(&mut self.is_proved, true);
        self.rest();
        if was_too_narrow || now >= self.raise.at() {
            self.probe_larger(now);
        }
    }

    /// The search is over.
    fn settle(&mut self, now: Instant) {
        let reason = self.reason_to_raise();
        self.raise.handle_end_of_search(now, reason);
        self.has_failed = !self.is_proved;
        self.rest();
    }

    fn reason_to_raise(&self) -> Reason {
        if self.is_own_link || !self.is_proved {
            // The kernel answers, or one small probe tells whether anything has changed.
            Reason::Cheap
        } else if self.current < self.best.max(ETHERNET) {
            Reason::Less
        } else {
            Reason::None
        }
    }

    fn rest(&mut self) {
        self.phase = Phase::Settled {
            lost: 0,
            proving: false,
        };
        self.due = self.raise.at();
        self.outstanding.clear();
        self.unsent.clear();
    }
}
