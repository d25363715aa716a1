// SPDX-License-Identifier: MIT OR Apache-2.0
//! When an address moves, and when it has moved too often.

use patchcord_bridge::PortId;

/// More moves than this in so many seconds, and an address stays for so many.
const MAX_MOVES: u64 = 5;
const WINDOW_S: u64 = 10;
const DAMPENED_S: u64 = 60;

/// How an address has moved since `since_s`, or since when it may not.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Moves {
    /// Where it was before.
    pub(crate) first: PortId,
    since_s: u64,
    count: u64,
}

impl Moves {
    /// Whether the address stays where it is.
    pub(crate) fn is_dampened(self, now_s: u64) -> bool {
        self.count > MAX_MOVES && now_s - self.since_s < DAMPENED_S
    }
}

/// The address lives on `from` and was seen on `to`: where it lives now, unless nothing changes.
pub(crate) fn relocate(
    moves: &mut Option<Moves>,
    from: PortId,
    to: PortId,
    now_s: u64,
) -> Option<PortId> {
    if moves.is_some_and(|moves| moves.is_dampened(now_s)) {
        return None;
    }
    let begun = Moves {
        first: from,
        since_s: now_s,
        count: 0,
    };
    let going_on =
        moves.filter(|moves| moves.count <= MAX_MOVES && now_s - moves.since_s < WINDOW_S);
    let moved = moves.insert(going_on.unwrap_or(begun));
    moved.count += 1;
    if moved.count <= MAX_MOVES {
        return Some(to);
    }
    moved.since_s = now_s;
    Some(moved.first)
}
