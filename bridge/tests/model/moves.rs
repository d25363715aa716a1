// SPDX-License-Identifier: MIT OR Apache-2.0
//! When an address moves, and when it has moved too often.

use patchcord_bridge::PortId;

/// More moves than this in so many seconds, and an address is dampened, until it keeps its place for as
/// long.
const MAX_MOVES: u64 = 5;
const WINDOW_S: u64 = 10;
/// A dampened address moves once in so many seconds.
const DAMPENING_S: u64 = 1;

/// How an address has moved since `since_s`; or that it is dampened, and when it moved last.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Moves {
    since_s: u64,
    count: u64,
}

impl Moves {
    /// Whether the address has moved too often.
    pub(crate) fn is_dampened(self, now_s: u64) -> bool {
        self.count > MAX_MOVES && now_s - self.since_s < WINDOW_S
    }
}

/// The address lives on another port than `to`, where it was seen: where it lives now, unless nothing
/// changes.
pub(crate) fn relocate(moves: &mut Option<Moves>, to: PortId, now_s: u64) -> Option<PortId> {
    let begun = Moves {
        since_s: now_s,
        count: 0,
    };
    let going_on = moves.filter(|moves| now_s - moves.since_s < WINDOW_S);
    let moved = moves.insert(going_on.unwrap_or(begun));
    if moved.is_dampened(now_s) {
        let may_follow = now_s - moved.since_s >= DAMPENING_S;
        if may_follow {
            moved.since_s = now_s;
        }
        return may_follow.then_some(to);
    }
    moved.count += 1;
    if moved.count > MAX_MOVES {
        moved.since_s = now_s;
        return None;
    }
    Some(to)
}
