// SPDX-License-Identifier: MIT OR Apache-2.0
//! The receive state of each lane of each session, and which lanes have unfinished frames.
//!
//! A delivering thread has one [`Lanes`]. After each batch it visits the lanes that this batch, or
//! an earlier one, left unfinished: the number of other lanes makes no difference.

use std::{collections::HashMap, sync::Arc, time::Instant};

use crate::{
    proto::{
        limits::CONTROL_RATE,
        reassembly::Reassembly,
        replay::ReplayWindow,
        session::{IndexHash, Session},
    },
    stats::DropReason,
    wire::{Lane, SessionIndex},
};

type Key = (SessionIndex, Lane);

/// The receive state of a lane of a session.
pub(super) struct LaneState {
    pub(super) number: Lane,
    pub(super) session: Arc<Session>,
    pub(super) window: ReplayWindow,
    pub(super) reassembly: Reassembly,
    pub(super) control_rate: ControlRate,
    /// A datagram or a frame of it is in hand.
    pub(super) is_busy: bool,
    /// Its frames have made this thread panic.
    pub(super) refused_until: Option<Instant>,
    /// When the latest batch with a datagram of it arrived.
    pub(super) last_arrival: Instant,
    /// Whether it is in [`Unfinished`].
    is_listed: bool,
}

impl LaneState {
    pub(super) fn new(
        number: Lane,
        session: Arc<Session>,
        reassembly: Reassembly,
        now: Instant,
    ) -> Self {
        Self {
            number,
            session,
            window: ReplayWindow::default(),
            reassembly,
            control_rate: ControlRate::default(),
            is_busy: false,
            refused_until: None,
            last_arrival: now,
            is_listed: false,
        }
    }
}

/// All lanes of one delivering thread.
#[derive(Default)]
pub(super) struct Lanes {
    all: HashMap<Key, LaneState, IndexHash>,
    unfinished: Unfinished,
}

/// The lanes to visit after a batch, each once. It has room for all of them.
#[derive(Default)]
pub(super) struct Unfinished(Vec<Key>);

impl Unfinished {
    /// Called after each datagram of the lane.
    pub(super) fn note(&mut self, key: Key, lane: &mut LaneState) {
        if !lane.is_listed && lane.reassembly.is_unfinished() {
            lane.is_listed = true;
            self.0.push(key);
        }
    }
}

impl Lanes {
    /// The lane of this key, a new one if need be.
    pub(super) fn find_or_begin(
        &mut self,
        key: Key,
        begin: impl FnOnce() -> Result<LaneState, DropReason>,
    ) -> Result<(&mut LaneState, &mut Unfinished), DropReason> {
        use std::collections::hash_map::Entry;
        let Self { all, unfinished } = self;
        let count = all.len() + 1;
        let lane = match all.entry(key) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => {
                let listed = unfinished.0.len();
                unfinished.0.reserve(count.saturating_sub(listed));
                entry.insert(begin()?)
            }
        };
        Ok((lane, unfinished))
    }

    /// Calls `look` for each unfinished lane; it returns whether the lane must be visited again
    /// even if nothing arrives for it. True if one must.
    pub(super) fn poll_unfinished(&mut self, mut look: impl FnMut(&mut LaneState) -> bool) -> bool {
        let Self { all, unfinished } = self;
        let mut place = 0;
        while let Some(key) = unfinished.0.get(place) {
            let is_waiting = all.get_mut(key).is_some_and(|lane| {
                lane.is_listed = look(lane);
                lane.is_listed
            });
            if is_waiting {
                place += 1;
            } else {
                unfinished.0.swap_remove(place);
            }
        }
        !unfinished.0.is_empty()
    }

    /// Removes all others.
    pub(super) fn retain(&mut self, mut is_kept: impl FnMut(SessionIndex, &LaneState) -> bool) {
        let Self { all, unfinished } = self;
        all.retain(|&(receiver, _), lane| is_kept(receiver, lane));
        unfinished.0.retain(|key| all.contains_key(key));
    }

    pub(super) fn values_mut(&mut self) -> impl Iterator<Item = &mut LaneState> {
        self.all.values_mut()
    }
}

/// Control datagrams of the present second. One peer must not keep the control thread from the
/// others.
#[derive(Default)]
pub(super) struct ControlRate {
    second: u32,
    count: u32,
}

impl ControlRate {
    pub(super) fn take(&mut self, now_s: u32) -> Result<(), DropReason> {
        if self.second != now_s {
            *self = Self {
                second: now_s,
                count: 0,
            };
        }
        self.count += 1;
        if self.count > CONTROL_RATE {
            return Err(DropReason::ControlRateLimited);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{proto::testing::looped_session, wire::chunk::Fragment};

    /// A piece of a frame that has two.
    fn piece(frame_id: u32, offset: u32) -> Fragment {
        Fragment {
            frame_id,
            total: 200,
            offset,
        }
    }

    /// As many lanes as a hub with very many peers has.
    fn lanes(count: u32) -> (Lanes, Vec<Key>) {
        let (mut lanes, session) = (Lanes::default(), looped_session());
        #[expect(clippy::disallowed_methods, reason = "tests have a real clock")]
        let now = Instant::now();
        let keys: Vec<_> = (1..=count)
            .map(|n| (SessionIndex::from_low_bits(n), Lane(1)))
            .collect();
        for &key in &keys {
            let begin = || {
                Ok(LaneState::new(
                    key.1,
                    session.clone(),
                    Reassembly::new(1522),
                    now,
                ))
            };
            lanes.find_or_begin(key, begin).unwrap();
        }
        (lanes, keys)
    }

    fn add(lanes: &mut Lanes, key: Key, fragment: Fragment) {
        let none = || Err(DropReason::UnknownSession);
        let (lane, unfinished) = lanes.find_or_begin(key, none).unwrap();
        if lane.reassembly.add(0, fragment, &[7; 100]).unwrap() {
            lane.reassembly.take_whole().unwrap();
        }
        unfinished.note(key, lane);
    }

    #[test]
    fn only_lanes_with_something_unfinished_are_looked_at() {
        let (mut lanes, keys) = lanes(5000);
        let looked_at = |lanes: &mut Lanes, is_waiting| {
            let mut count = 0;
            let left = lanes.poll_unfinished(|_| {
                count += 1;
                is_waiting
            });
            assert_eq!(left, is_waiting && count > 0);
            count
        };
        assert_eq!(looked_at(&mut lanes, true), 0);
        // One that is complete, and two that are not; each once, however many pieces arrive.
        for (key, offset) in [(0, 0), (0, 100), (1, 0), (2, 100)] {
            add(&mut lanes, keys[key], piece(1, offset));
        }
        for frame_id in 2..20 {
            add(&mut lanes, keys[1], piece(frame_id, 0));
        }
        // A datagram without pieces leaves nothing behind.
        let none = || Err(DropReason::UnknownSession);
        let (lane, unfinished) = lanes.find_or_begin(keys[3], none).unwrap();
        unfinished.note(keys[3], lane);
        // The first was unfinished for a while.
        assert_eq!(looked_at(&mut lanes, true), 3);
        assert_eq!(looked_at(&mut lanes, false), 3);
        assert_eq!(looked_at(&mut lanes, true), 0, "nothing waits any more");
        // A later piece counts again.
        add(&mut lanes, keys[2], piece(2, 0));
        assert_eq!(looked_at(&mut lanes, true), 1);
        lanes.retain(|receiver, _| receiver != keys[2].0);
        assert_eq!(looked_at(&mut lanes, true), 0, "it is gone");
    }

    #[test]
    fn nothing_allocates_when_every_lane_is_unfinished() {
        let (mut lanes, keys) = lanes(1000);
        let room = lanes.unfinished.0.capacity();
        assert!(room >= 1000, "{room}");
        for &key in &keys {
            add(&mut lanes, key, piece(1, 0));
        }
        assert_eq!(lanes.unfinished.0.capacity(), room);
    }

    #[test]
    fn a_session_has_so_many_control_datagrams_in_a_second() {
        let mut rate = ControlRate::default();
        for second in [7, 8] {
            for _ in 0..CONTROL_RATE {
                assert_eq!(rate.take(second), Ok(()));
            }
            assert_eq!(rate.take(second), Err(DropReason::ControlRateLimited));
        }
    }
}
