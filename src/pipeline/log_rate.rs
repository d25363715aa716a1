// SPDX-License-Identifier: MIT OR Apache-2.0
//! How often a line that others can cause may be logged: once in an interval for each topic, and
//! for a bounded number of topics, since a host that forges addresses can use any number of them.

use std::{
    collections::HashMap,
    hash::Hash,
    time::{Duration, Instant},
};

/// What was logged, and when each topic may be logged again.
#[derive(Debug)]
pub(super) struct LogRate<T> {
    topics: HashMap<T, Quiet>,
    /// This many topics are distinguished at the same time. Lines about others are left out, and
    /// counted.
    room: usize,
    /// Lines of topics for which there was no room.
    others: u64,
}

#[derive(Debug)]
struct Quiet {
    until: Instant,
    left_out: u64,
}

/// What a line that may be logged should add about lines that were left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct LeftOut {
    /// Lines of the same topic since it was last logged.
    pub(super) repeated: Option<u64>,
    /// Lines of topics beyond the limit.
    pub(super) others: Option<u64>,
}

impl<T: Eq + Hash> LogRate<T> {
    /// For this many topics at the same time.
    pub(super) fn new(room: usize) -> Self {
        Self {
            topics: HashMap::new(),
            room,
            others: 0,
        }
    }

    /// `Some` if a line about `topic` may be logged now.
    pub(super) fn may(&mut self, topic: T, interval: Duration, now: Instant) -> Option<LeftOut> {
        if let Some(quiet) = self.topics.get_mut(&topic) {
            if now < quiet.until {
                quiet.left_out += 1;
                return None;
            }
        } else if !self.has_room(now) {
            self.others += 1;
            return None;
        }
        let quiet = Quiet {
            until: now + interval,
            left_out: 0,
        };
        let former = self.topics.insert(topic, quiet);
        let count = |count: u64| (count > 0).then_some(count);
        Some(LeftOut {
            repeated: count(former.map_or(0, |former| former.left_out)),
            others: count(std::mem::take(&mut self.others)),
        })
    }

    fn has_room(&mut self, now: Instant) -> bool {
        if self.topics.len() >= self.room {
            self.topics.retain(|_, quiet| now < quiet.until);
        }
        self.topics.len() < self.room
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn a_topic_is_logged_once_in_an_interval_with_what_was_left_out() {
        let mut rate = LogRate::new(2);
        let begin = Instant::now();
        let mut may = |topic, s| rate.may(topic, MINUTE, begin + Duration::from_secs(s));
        assert_eq!(may("a", 0), Some(LeftOut::default()));
        assert_eq!(may("b", 1), Some(LeftOut::default()));
        assert_eq!((may("a", 2), may("a", 59)), (None, None));
        let repeated = |repeated| {
            Some(LeftOut {
                repeated,
                others: None,
            })
        };
        assert_eq!(may("a", 60), repeated(Some(2)));
        assert_eq!(may("a", 120), repeated(None));
    }

    #[test]
    fn topics_without_end_are_a_bounded_number_of_lines() {
        let mut rate = LogRate::new(64);
        let begin = Instant::now();
        let logged = (0..10_000).filter(|topic| rate.may(*topic, MINUTE, begin).is_some());
        assert_eq!(logged.count(), 64);
        let others = Some(10_000 - 64);
        let told = rate.may(20_000, MINUTE, begin + MINUTE).unwrap();
        assert_eq!((told.repeated, told.others), (None, others));
        assert_eq!(
            rate.topics.len(),
            1,
            "what may be logged again is forgotten"
        );
    }
}
