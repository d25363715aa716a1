// SPDX-License-Identifier: MIT OR Apache-2.0
//! How many connections each user of a host's socket may have.
//!
//! Root, and the user that the host runs as, have places of their own, which nobody else can take;
//! of the others no one can take those of all.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// For root and the host's own user, each.
const OF_OWNERS: usize = 64;
/// For any other user …
const OF_EACH: usize = 16;
/// … and for all of them.
const OF_OTHERS: usize = 128;

/// Connections by user. Clones are the same.
#[derive(Clone, Default)]
pub(super) struct Places(Arc<Mutex<HashMap<u32, usize>>>);

/// A place of one connection, until it is dropped.
pub(super) struct Place {
    places: Places,
    user: u32,
}

impl Places {
    /// A place for a connection of this user; `None` when that has enough.
    pub(super) fn take(&self, user: u32) -> Option<Place> {
        let mut taken = self.lock();
        let own = taken.get(&user).copied().unwrap_or(0);
        let others = taken.iter().filter(|(user, _)| !is_owner(**user));
        let is_free = match is_owner(user) {
            true => own < OF_OWNERS,
            false => own < OF_EACH && others.map(|(_, count)| count).sum::<usize>() < OF_OTHERS,
        };
        is_free.then(|| {
            taken.insert(user, own + 1);
            Place {
                places: self.clone(),
                user,
            }
        })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u32, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.lock();
        if let Some(count) = taken.get_mut(&self.user) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.user);
            }
        }
    }
}

fn is_owner(user: u32) -> bool {
    user == 0 || user == crate::io::effective_user()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_takes_the_places_of_others_and_they_come_back() {
        let places = Places::default();
        let take = |user, wanted: usize| {
            let taken = (0..wanted).map_while(|_| places.take(user));
            taken.collect::<Vec<_>>()
        };
        let greedy = take(1000, 1000);
        assert_eq!(greedy.len(), OF_EACH);
        let crowd: Vec<_> = (2000..2100).flat_map(|user| take(user, 2)).collect();
        assert_eq!(crowd.len(), OF_OTHERS - OF_EACH);
        let owners = take(0, 1000);
        assert_eq!(owners.len(), OF_OWNERS, "whatever the others have");
        drop((greedy, crowd, owners));
        assert!(places.lock().is_empty());
        assert_eq!(take(1000, 1000).len(), OF_EACH);
    }
}
