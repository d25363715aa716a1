// SPDX-License-Identifier: MIT OR Apache-2.0
//! The state of another node.

use alloc::collections::BTreeMap;

use super::relearning::Scope;
use super::speakers::Copies;
use super::timing::S;

/// A senior that has not said so for this long no longer contends.
const SENIOR_US: u64 = S;
/// A node that is silent for this long may be replaced by another.
pub(super) const FORGET_US: u64 = 10 * S;

/// The last that was heard of another node.
#[derive(Clone, Debug)]
pub(super) struct Other {
    pub(super) sequence: u32,
    /// Changes by each confined port on which it was heard, and by all others together.
    pub(super) changes: BTreeMap<Scope, u16>,
    pub(super) heard_us: u64,
    pub(super) contended_us: Option<u64>,
    pub(super) copies: Copies,
}

impl Other {
    pub(super) fn is_silent(&self, for_us: u64, now_us: u64) -> bool {
        now_us.saturating_sub(self.heard_us) >= for_us
    }

    /// Whether it has contended recently. After its cut the probes of others still return for a
    /// while, so its claim outlasts the contest.
    pub(super) fn contends(&self, now_us: u64) -> bool {
        self.contended_us
            .is_some_and(|then_us| now_us.saturating_sub(then_us) < SENIOR_US)
    }
}
