// SPDX-License-Identifier: MIT OR Apache-2.0
//! Whether datagrams that the kernel gets as one train (UDP GSO) arrive at a peer.
//!
//! A network card, its driver, or their emulation in a virtual machine, may lose trains, or cut
//! them wrongly, and yet pass single datagrams. Handshakes, echoes and the probes of the path MTU
//! are single ones, so everything looks well and no large frame arrives.
//!
//! So the node sends echo requests both ways, all of the size that the path carries: two in one
//! train, and a third one by itself. A *round* in which the third is answered and neither of the
//! others is speaks against trains. After [`ROUNDS`] of them in a row the node stops sending trains
//! to that peer. One answer to a train makes it resume: it checks trains from time to time either
//! way. Where a third of the requests stays unanswered, however they were sent, a check is wrong
//! once in about 2500: (1/3 · 1/3 · 2/3)³.
//!
//! Pure: time is an argument. `proto::node` sends the requests and passes on the answers.

use std::time::{Duration, Instant};

/// Rounds in a row that speak against trains before they end.
const ROUNDS: u8 = 3;
/// When the next check of trains is due, while datagrams are sent.
const INTERVAL: Duration = Duration::from_secs(60);
/// After a new session or a new route, as the search for the path MTU begins then, too.
const DELAY: Duration = Duration::from_secs(1);

/// The requests of a round, and which of them were answered.
#[derive(Debug)]
struct Round {
    /// Of the two in one train, and of the single one.
    tokens: [u64; 3],
    trains_arrive: bool,
    singles_arrive: bool,
    ends: Instant,
}

/// The trains to one peer.
#[derive(Debug)]
pub(crate) struct Trains {
    are_lost: bool,
    /// Rounds in a row that spoke against them.
    against: u8,
    round: Option<Round>,
    next: Instant,
    /// Datagrams were sent since the last round.
    has_traffic: bool,
}

impl Trains {
    /// Trains are assumed to arrive until they are lost.
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            are_lost: false,
            against: 0,
            round: None,
            next: now + DELAY,
            has_traffic: false,
        }
    }

    /// Whether trains are lost while single datagrams arrive.
    pub(crate) fn are_lost(&self) -> bool {
        self.are_lost
    }

    /// There is a new session, or the route to the peer has changed: check soon.
    pub(crate) fn restart(&mut self, now: Instant) {
        self.round = None;
        self.against = 0;
        self.next = self.next.min(now + DELAY);
    }

    /// Datagrams are sent. Where there are none, it does not matter how they would arrive.
    pub(crate) fn handle_traffic(&mut self) {
        self.has_traffic = true;
    }

    /// When to call [`Self::is_due`] or [`Self::handle_timeout`].
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        let next = self.has_traffic.then_some(self.next);
        self.round.as_ref().map(|round| round.ends).or(next)
    }

    /// Whether to send a round now.
    pub(crate) fn is_due(&self, now: Instant) -> bool {
        self.round.is_none() && self.has_traffic && now >= self.next
    }

    /// A round cannot be sent now.
    pub(crate) fn postpone(&mut self, now: Instant) {
        self.next = now + DELAY;
    }

    /// A round was sent, with these tokens: those of the train, and the single one.
    pub(crate) fn handle_sent(&mut self, tokens: [u64; 3], patience: Duration, now: Instant) {
        self.round = Some(Round {
            tokens,
            trains_arrive: false,
            singles_arrive: false,
            ends: now + patience,
        });
    }

    /// An echo reply came.
    pub(crate) fn handle_reply(&mut self, token: u64) {
        if let Some(round) = &mut self.round {
            let [first, second, single] = round.tokens;
            round.trains_arrive |= token == first || token == second;
            round.singles_arrive |= token == single;
        }
    }

    /// Evaluates a round that has ended. True if trains are lost now and were not, or the other way
    /// round.
    pub(crate) fn handle_timeout(&mut self, now: Instant) -> bool {
        let Some(round) = self.round.take_if(|round| now >= round.ends) else {
            return false;
        };
        let before = self.are_lost;
        self.next = now + INTERVAL;
        self.has_traffic = false;
        if round.trains_arrive {
            (self.are_lost, self.against) = (false, 0);
        } else if round.singles_arrive && !self.are_lost {
            self.against += 1;
            self.are_lost = self.against >= ROUNDS;
            if !self.are_lost {
                (self.next, self.has_traffic) = (now, true);
            }
        }
        self.are_lost != before
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_millis(300);

    /// Does rounds until none is due; those with these numbers are answered so. Returns the state
    /// at the end, and how many rounds there were.
    fn look(
        trains: &mut Trains,
        now: &mut Instant,
        answered: impl Fn(u64) -> [bool; 3],
    ) -> (bool, u64) {
        let mut rounds = 0;
        *now += INTERVAL;
        assert!(!trains.is_due(*now), "nothing is sent");
        trains.handle_traffic();
        while trains.is_due(*now) {
            let tokens = [0, 1, 2].map(|place| 10 * rounds + place);
            trains.handle_sent(tokens, PATIENCE, *now);
            assert!(!trains.is_due(*now), "one round at a time");
            for (token, comes) in tokens.into_iter().zip(answered(rounds)) {
                if comes {
                    trains.handle_reply(token);
                }
            }
            assert!(!trains.handle_timeout(*now), "it is too early");
            *now += PATIENCE;
            let before = trains.are_lost();
            assert_eq!(trains.handle_timeout(*now), trains.are_lost() != before);
            rounds += 1;
        }
        (trains.are_lost(), rounds)
    }

    #[test]
    fn trains_are_lost_when_single_datagrams_arrive_and_they_never_do() {
        let mut now = Instant::now();
        let mut trains = Trains::new(now);
        let mut is_lost = |answered: [bool; 3]| look(&mut trains, &mut now, |_| answered);
        assert_eq!(is_lost([true, true, true]), (false, 1));
        assert_eq!(
            is_lost([false, true, true]),
            (false, 1),
            "one of two is lost on many paths"
        );
        assert_eq!(is_lost([true, false, false]), (false, 1));
        assert_eq!(
            is_lost([false, false, false]),
            (false, 1),
            "nothing arrives"
        );
        assert_eq!(is_lost([false, false, true]), (true, 3));
        assert_eq!(is_lost([false, false, true]), (true, 1), "no better");
        assert_eq!(is_lost([false, false, false]), (true, 1), "no news");
        assert_eq!(is_lost([false, true, true]), (false, 1), "they are back");
        assert_eq!(is_lost([false, false, true]), (true, 3));
    }

    #[test]
    fn rounds_count_in_a_row_only() {
        let mut now = Instant::now();
        let mut trains = Trains::new(now);
        let answered = |round| [round == 2, false, true];
        assert_eq!(look(&mut trains, &mut now, answered), (false, 3));
        // Answers of an earlier round do not count.
        trains.restart(now);
        trains.handle_traffic();
        now += DELAY;
        assert!(trains.is_due(now));
        trains.handle_sent([1, 2, 3], PATIENCE, now);
        trains.handle_reply(7);
        trains.handle_reply(3);
        now += PATIENCE;
        assert!(!trains.handle_timeout(now));
        assert!(trains.is_due(now), "nobody has answered for the train");
    }

    #[test]
    fn a_changed_route_is_checked_soon() {
        let start = Instant::now();
        let mut trains = Trains::new(start);
        let mut now = start;
        assert_eq!(
            look(&mut trains, &mut now, |_| [false, false, true]),
            (true, 3)
        );
        trains.handle_traffic();
        assert!(!trains.is_due(now + DELAY));
        trains.restart(now);
        assert!(
            trains.is_due(now + DELAY) && trains.are_lost(),
            "until it is known better"
        );
    }
}
