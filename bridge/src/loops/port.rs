// SPDX-License-Identifier: MIT OR Apache-2.0
//! The state of a port: its turns, a loop that is contested, a block.

use alloc::vec::Vec;

use super::timing::{MS, S};
use super::verdict::{Cause, Verdict};
use crate::port_id::PortId;
use crate::vlan::Vid;

#[derive(Debug)]
pub(super) struct Port {
    pub(super) rank: u64,
    pub(super) vlans: Vec<Vid>,
    pub(super) next_vlan: usize,
    pub(super) contest: Option<Contest>,
    pub(super) block: Option<Block>,
    /// What the caller was told.
    pub(super) is_blocked: bool,
    /// How long the last block for a loop outlasted it, and when it ended.
    pub(super) last_hold: Option<(u64, u64)>,
    pub(super) warned_us: Option<u64>,
    /// Whether changes that others announce here are about stations behind this port.
    pub(super) is_confined: bool,
}

/// A loop that was seen and not yet cut; it belongs to the port that would be blocked.
#[derive(Clone, Copy, Debug)]
pub(super) struct Contest {
    pub(super) other: PortId,
    pub(super) vid: Vid,
    pub(super) since_us: u64,
    pub(super) decide_us: u64,
    pub(super) seen_us: u64,
    pub(super) last_sequence: u32,
    /// How many probes have returned. Copies of one count once.
    pub(super) distinct: u64,
}

impl Contest {
    pub(super) fn idle_us(&self, now_us: u64) -> u64 {
        now_us.saturating_sub(self.seen_us)
    }

    /// Whether it is time to cut, and this node's task.
    pub(super) fn is_won(&self, is_led: bool, now_us: u64) -> bool {
        let gives_way = is_led && now_us.saturating_sub(self.since_us) < MAX_DEFER_US;
        let is_sure = self.distinct >= 2 && self.idle_us(now_us) <= RECENT_US;
        now_us >= self.decide_us && is_sure && !gives_way
    }
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Block {
    pub(super) cause: Cause,
    pub(super) since_us: u64,
    pub(super) seen_us: u64,
    pub(super) hold_us: u64,
    pub(super) count: u64,
}

impl Block {
    pub(super) fn new(cause: Cause, hold_us: u64, now_us: u64) -> Self {
        Self {
            cause,
            since_us: now_us,
            seen_us: now_us,
            hold_us,
            count: 0,
        }
    }

    pub(super) fn unblocks_us(&self) -> u64 {
        self.seen_us + self.hold_us
    }

    pub(super) fn record_probe(&mut self, now_us: u64) {
        self.seen_us = self.seen_us.max(now_us);
        self.count += 1;
    }
}

/// A node defers no longer than this, however many seniors there seem to be.
const MAX_DEFER_US: u64 = 6 * S;
/// Before a port is blocked the loop must have been seen this recently.
const RECENT_US: u64 = 500 * MS;
const HOLD_US: u64 = 10 * S;
const MAX_HOLD_US: u64 = 300 * S;
/// After this long without a block the next one starts with the shortest hold again.
const QUIET_US: u64 = 600 * S;

impl Port {
    pub(super) fn new() -> Self {
        Self {
            rank: 0,
            vlans: Vec::new(),
            next_vlan: 0,
            contest: None,
            block: None,
            is_blocked: false,
            last_hold: None,
            warned_us: None,
            is_confined: false,
        }
    }

    pub(super) fn is_cut(&self) -> bool {
        self.block.is_some()
    }

    /// The VLANs whose turn it is.
    pub(super) fn take_turns(&mut self, most: usize) -> impl Iterator<Item = Vid> + use<'_> {
        let count = self.vlans.len().min(most);
        let first = self.next_vlan;
        self.next_vlan = (first + count) % self.vlans.len().max(1);
        self.vlans.iter().copied().cycle().skip(first).take(count)
    }

    /// Where a loop was seen for which this port is, or would be, blocked.
    pub(super) fn suspects(&self, port: PortId) -> impl Iterator<Item = (PortId, Vid)> + use<> {
        let contest = self.contest.map(|contest| (contest.other, contest.vid));
        let block = self.block.map(|block| (block.cause.other, block.cause.vid));
        let both = [contest, block].into_iter().flatten();
        both.flat_map(move |(other, vid)| [(port, vid), (other, vid)])
    }

    /// Blocks for longer than last time, if that was not long ago.
    pub(super) fn new_block(&self, contest: &Contest, now_us: u64) -> Block {
        let hold_us = match self.last_hold {
            Some((hold_us, opened_us)) if now_us.saturating_sub(opened_us) < QUIET_US => {
                (hold_us * 2).min(MAX_HOLD_US)
            }
            _ => HOLD_US,
        };
        let Contest { other, vid, .. } = *contest;
        Block {
            seen_us: contest.seen_us,
            count: contest.distinct,
            ..Block::new(Cause { other, vid }, hold_us, now_us)
        }
    }

    pub(super) fn expire(&mut self, now_us: u64) {
        let is_past = |block: &Block| now_us >= block.unblocks_us();
        if let Some(block) = self.block.take_if(|block| is_past(block)) {
            self.last_hold = Some((block.hold_us, now_us));
        }
    }

    pub(super) fn announce(&mut self, port: PortId) -> Option<Verdict> {
        let block = self.block;
        if block.is_some() == self.is_blocked {
            return None;
        }
        self.is_blocked = block.is_some();
        Some(match block {
            Some(Block { cause, .. }) => Verdict::Block { port, cause },
            None => Verdict::Unblock { port },
        })
    }
}
