// SPDX-License-Identifier: MIT OR Apache-2.0
//! The core plan: which threads there are, and on which cores they run.
//!
//! - *inline*: one thread for each direction does everything. Best for latency, and for throughput
//!   too as long as a core keeps up with sealing.
//! - *staged*: reading, sealing and sending are threads of their own, and several seal (or open) one
//!   flow at the same time; see [`crate::queue`].
//!
//! Chosen once at start, shown by `show`, overridden by `[pipeline]`.

use core_affinity::CoreId;

/// With fewer cores than this the stages of one tunnel would wait for each other.
const STAGED_FROM_CORES: usize = 6;
/// Workers per direction that a plan chooses by itself.
const MAX_CHOSEN_WORKERS: usize = 8;
/// Threads of the staged plan beside the workers: two ends for each direction.
const ENDS: usize = 4;

/// What was asked for.
#[derive(Clone, Copy, Debug, Default)]
pub struct PlanRequest {
    /// `Some(true)`: staged, `Some(false)`: inline, `None`: by the number of cores.
    pub staged: Option<bool>,
    /// Workers per direction; `None`: by the number of cores.
    pub workers: Option<usize>,
    /// Whether to pin threads; `None`: if there is a core for each, and one to spare.
    pub pin: Option<bool>,
}

/// The plan of one tunnel.
#[derive(Clone, Debug)]
pub struct CorePlan {
    /// Workers per direction of the staged plan; `None`: inline.
    pub workers: Option<usize>,
    /// The cores that this process may use.
    pub cores: Vec<CoreId>,
    /// Whether threads are pinned.
    pub pinned: bool,
}

impl CorePlan {
    /// Makes a plan for the cores of this machine.
    pub fn choose(request: PlanRequest) -> Self {
        Self::choose_for(core_affinity::get_core_ids().unwrap_or_default(), request)
    }

    fn choose_for(cores: Vec<CoreId>, request: PlanRequest) -> Self {
        let staged = request.staged.unwrap_or(cores.len() >= STAGED_FROM_CORES);
        let workers = staged.then(|| {
            let spare = cores.len().saturating_sub(ENDS) / 2;
            request
                .workers
                .unwrap_or_else(|| spare.clamp(1, MAX_CHOSEN_WORKERS))
        });
        let mut plan = Self {
            workers,
            cores,
            pinned: false,
        };
        let has_spare_core = plan.cores.len() > plan.thread_names().len();
        plan.pinned = !plan.cores.is_empty() && request.pin.unwrap_or(has_spare_core);
        plan
    }

    /// `inline` or `staged`.
    pub fn name(&self) -> &'static str {
        if self.workers.is_some() {
            "staged"
        } else {
            "inline"
        }
    }

    /// The data threads.
    pub fn thread_names(&self) -> Vec<String> {
        let Some(workers) = self.workers else {
            return vec!["outbound".into(), "inbound".into()];
        };
        let numbered = |name: &'static str| (1..=workers).map(move |n| format!("{name}-{n}"));
        let mut names = vec!["tap-rx".to_owned()];
        names.extend(numbered("seal"));
        names.extend(["udp-tx".to_owned(), "udp-rx".to_owned()]);
        names.extend(numbered("open"));
        names.push("tap-tx".to_owned());
        names
    }

    /// The core of a data thread, if threads are pinned. Core 0 comes last: interrupts like it.
    pub fn core_of(&self, thread: &str) -> Option<CoreId> {
        if !self.pinned {
            return None;
        }
        let place = self.thread_names().iter().position(|name| name == thread)?;
        Some(self.cores[(place + 1) % self.cores.len()])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(cores: usize, request: PlanRequest) -> CorePlan {
        CorePlan::choose_for((0..cores).map(|id| CoreId { id }).collect(), request)
    }

    #[test]
    fn few_cores_run_inline_and_many_are_staged() {
        for (cores, workers, pinned) in [
            (1, None, false),
            (2, None, false),
            (4, None, true),
            (8, Some(2), false), // 4 ends and 4 workers leave no core to spare
            (9, Some(2), true),
            (64, Some(8), true),
        ] {
            let plan = plan(cores, PlanRequest::default());
            assert_eq!(
                (plan.workers, plan.pinned),
                (workers, pinned),
                "{cores} cores"
            );
        }
    }

    #[test]
    fn requests_override() {
        let request = PlanRequest {
            staged: Some(true),
            workers: Some(3),
            pin: Some(true),
        };
        let plan = plan(2, request);
        assert_eq!(plan.name(), "staged");
        assert_eq!(
            plan.thread_names(),
            [
                "tap-rx", "seal-1", "seal-2", "seal-3", "udp-tx", "udp-rx", "open-1", "open-2",
                "open-3", "tap-tx"
            ]
        );
        assert_eq!(plan.core_of("tap-rx"), Some(CoreId { id: 1 }));
        assert_eq!(plan.core_of("seal-1"), Some(CoreId { id: 0 }));
        assert_eq!(plan.core_of("control"), None);
    }
}
