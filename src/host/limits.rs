// SPDX-License-Identifier: MIT OR Apache-2.0
//! Limits of a host's socket: how many connections each user may have, and how often it may connect and
//! send requests.
//!
//! Root, and the user that the host runs as, have connections reserved that no other user can take, and
//! no rate limit; no other user can take the connections or the time of all.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use crate::rate::{Bucket, Rate};

/// For root and the host's own user, each.
const OF_OWNERS: usize = 64;
/// For any other user …
const OF_EACH: usize = 16;
/// … and for all of them.
const OF_OTHERS: usize = 128;

/// The limit of new connections of one user.
const CALLS: Rate = Rate {
    per_second: 10,
    burst: 32,
};
/// The limit of requests of one user, over all its connections. Each may cost as much as the list of
/// all tunnels.
const REQUESTS: Rate = Rate {
    per_second: 20,
    burst: 40,
};
/// Users in the table; one process may have the IDs of 65,536.
const MAX_USERS: usize = 1024;

/// Users, their connections and rates. Clones share the table.
#[derive(Clone, Default)]
pub(super) struct Limits(Arc<Mutex<HashMap<u32, User>>>);

struct User {
    connections: usize,
    calls: Bucket,
    requests: Bucket,
}

impl User {
    fn new(now: Instant) -> Self {
        Self {
            connections: 0,
            calls: Bucket::new(now),
            requests: Bucket::new(now),
        }
    }

    /// Whether the entry equals that of an unknown user.
    fn is_idle(&self, now: Instant) -> bool {
        self.connections == 0 && self.calls.is_full(now) && self.requests.is_full(now)
    }
}

/// The reservation of one connection, until it is dropped.
pub(super) struct Permit {
    limits: Limits,
    user: u32,
}

impl Limits {
    /// Reserves a connection for this user; `None` when it has enough, or connects too often.
    pub(super) fn take(&self, user: u32, now: Instant) -> Option<Permit> {
        // Asked for once: the table may be long.
        let owners = owners();
        let mut users = self.lock();
        if users.len() >= MAX_USERS {
            users.retain(|_, user| !user.is_idle(now));
        }
        let others = users.iter().filter(|(user, _)| !owners.contains(user));
        let others: usize = others.map(|(_, other)| other.connections).sum();
        if users.len() >= MAX_USERS && !users.contains_key(&user) && !owners.contains(&user) {
            return None;
        }
        let entry = users.entry(user).or_insert_with(|| User::new(now));
        let is_free = match owners.contains(&user) {
            true => entry.connections < OF_OWNERS,
            false => {
                entry.calls.take(now, CALLS) && entry.connections < OF_EACH && others < OF_OTHERS
            }
        };
        is_free.then(|| {
            entry.connections += 1;
            Permit {
                limits: self.clone(),
                user,
            }
        })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u32, User>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Permit {
    /// The time at which the user may send the next request; none if it may now.
    pub(super) fn next_request(&self, now: Instant) -> Option<Instant> {
        if owners().contains(&self.user) {
            return None;
        }
        let users = self.limits.lock();
        let ready = users.get(&self.user)?.requests.ready_at(REQUESTS);
        (ready > now).then_some(ready)
    }

    /// Counts a request of the user.
    pub(super) fn note_request(&self, now: Instant) {
        if let Some(user) = self.limits.lock().get_mut(&self.user) {
            user.requests.take(now, REQUESTS);
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if let Some(user) = self.limits.lock().get_mut(&self.user) {
            user.connections -= 1;
        }
    }
}

/// Root, and the user that the host runs as.
fn owners() -> [u32; 2] {
    [0, crate::machine::effective_user()]
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "a test has a real clock")]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn no_user_takes_the_permits_of_others_and_they_come_back() {
        let (limits, now) = (Limits::default(), Instant::now());
        let take = |user, wanted: usize, now| {
            let taken = (0..wanted).map_while(|_| limits.take(user, now));
            taken.collect::<Vec<_>>()
        };
        let greedy = take(1000, 1000, now);
        assert_eq!(greedy.len(), OF_EACH);
        let crowd: Vec<_> = (2000..2100).flat_map(|user| take(user, 2, now)).collect();
        assert_eq!(crowd.len(), OF_OTHERS - OF_EACH);
        let owners = take(0, 1000, now);
        assert_eq!(owners.len(), OF_OWNERS, "whatever the others have");
        drop((greedy, crowd, owners));
        let later = now + Duration::from_secs(60);
        assert_eq!(take(1000, 1000, later).len(), OF_EACH);
        let is_idle = |user: &User| user.is_idle(later + Duration::from_secs(60));
        assert!(limits.lock().values().all(is_idle), "they can be forgotten");
    }

    #[test]
    fn a_user_connects_and_asks_so_often_and_owners_as_they_like() {
        let (limits, start) = (Limits::default(), Instant::now());
        // For ten seconds.
        let times = || (0..10_000).map(|ms| start + Duration::from_millis(ms));
        let calls = |user| {
            let taken = times().filter(|&now| limits.take(user, now).is_some());
            taken.count() as u32
        };
        let most = CALLS.burst + 10 * CALLS.per_second;
        assert!((most - 1..=most).contains(&calls(1000)));
        assert_eq!(calls(0), 10_000);
        let requests = |user| {
            let later = start + Duration::from_secs(60);
            let permit = limits.take(user, later).unwrap();
            let may = |now: &Instant| permit.next_request(*now).is_none();
            let asked = times().map(|now| now + Duration::from_secs(60)).filter(may);
            asked.inspect(|&now| permit.note_request(now)).count() as u32
        };
        let most = REQUESTS.burst + 10 * REQUESTS.per_second;
        assert!((most - 1..=most).contains(&requests(1000)));
        assert_eq!(requests(0), 10_000);
    }

    #[test]
    fn users_that_are_not_there_any_more_take_no_room() {
        let (limits, now) = (Limits::default(), Instant::now());
        let come = |users: std::ops::Range<u32>, now| {
            users
                .filter(|&user| limits.take(user, now).is_some())
                .count()
        };
        assert_eq!(come(1000..1000 + 4 * MAX_USERS as u32, now), MAX_USERS);
        assert_eq!(come(70_000..70_001, now), 0);
        assert!(limits.take(0, now).is_some(), "root is never one too many");
        let later = now + Duration::from_secs(10);
        assert_eq!(come(70_000..70_100, later), 100);
    }
}
