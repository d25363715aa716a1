// SPDX-License-Identifier: MIT OR Apache-2.0
//! When to relearn stations, because there are other paths to them.
//!
//! Called by [`LoopGuard`](super::LoopGuard) only.

use alloc::collections::BTreeSet;

use super::timing::S;
use super::verdict::Verdict;
use crate::port_id::PortId;

/// Between two times that stations are relearned because of other nodes.
const RELEARN_US: u64 = 2 * S;
/// After this long no frame is in flight that was sent before a cut. Frames that arrive by the old
/// path until then teach it again.
const RELEARN_AGAIN_US: u64 = S;

/// When to relearn stations.
#[derive(Clone, Debug, Default)]
pub(super) struct Relearning {
    /// Because another node has changed something.
    due: BTreeSet<Scope>,
    done_us: Option<u64>,
    /// Once more, because of frames that were in flight.
    again: BTreeSet<Scope>,
    again_us: Option<u64>,
    /// Scopes that are still to be returned.
    untold: BTreeSet<Scope>,
}

/// The stations behind a port, or all.
pub(super) type Scope = Option<PortId>;

impl Relearning {
    /// Another node has changed something.
    pub(super) fn due(&mut self, scope: Scope) {
        self.due.insert(scope);
    }

    /// This node has, and its caller relearns with the verdict that says so.
    pub(super) fn own_change(&mut self, now_us: u64) {
        self.again_at(&BTreeSet::from([None]), now_us + RELEARN_AGAIN_US);
    }

    fn again_at(&mut self, scopes: &BTreeSet<Scope>, at_us: u64) {
        self.again.extend(scopes);
        self.again_us = Some(at_us);
    }

    pub(super) fn due_us(&self) -> Option<u64> {
        let untold_us = (!self.untold.is_empty()).then_some(0);
        let next_us = || self.done_us.map_or(0, |then_us| then_us + RELEARN_US);
        let first_us = (!self.due.is_empty()).then(next_us);
        let all_us = first_us.into_iter().chain(self.again_us).chain(untold_us);
        all_us.min()
    }

    pub(super) fn poll(&mut self, now_us: u64) -> Option<Verdict> {
        if now_us < self.due_us()? {
            return None;
        }
        if self.again_us.is_some_and(|again_us| now_us >= again_us) {
            self.again_us = None;
            self.untold.append(&mut self.again);
        } else if self.untold.is_empty() {
            let due = core::mem::take(&mut self.due);
            self.done_us = Some(now_us);
            self.again_at(&due, now_us + RELEARN_AGAIN_US);
            self.untold = due;
        }
        let scope = self.untold.pop_first()?;
        Some(if let Some(port) = scope {
            Verdict::RelearnBehind { port }
        } else {
            // There is nothing else left.
            self.untold.clear();
            Verdict::Relearn
        })
    }
}
