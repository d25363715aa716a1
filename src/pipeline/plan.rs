// SPDX-License-Identifier: MIT OR Apache-2.0
//! The core plan: which threads there are, and on which cores they run.
//!
//! - *inline*: several lanes, and in each of them one thread for each direction that does everything.
//!   Flows are spread over the lanes, so that they share neither queues nor locks.
//! - *staged*: one lane, in which reading, sealing and sending are threads of their own, and
//!   several seal (or open) one flow at the same time; see [`crate::queue`].
//!
//! Chosen once at start, shown by `show`, overridden by `[pipeline]`.

use core_affinity::CoreId;

/// Lanes that a plan chooses by itself.
const MAX_CHOSEN_LANES: usize = 8;
/// With fewer cores than this there is one lane: the other end and the system need some too.
const SEVERAL_LANES_FROM_CORES: usize = 4;
/// Workers per direction that a plan chooses by itself.
const MAX_CHOSEN_WORKERS: usize = 8;
/// Everything that waits for the tunnel also waits while the tunnel waits for a core. The kernel's
/// own tunnels have priority too: they work in interrupts.
const CHOSEN_NICENESS: i32 = -20;
/// Threads of the staged plan beside the workers: two ends for each direction.
const ENDS: usize = 4;

/// The requested values.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct PlanRequest {
    /// Staged, or inline.
    pub staged: bool,
    /// Lanes of the inline plan; `None`: by the number of cores. The staged plan has one.
    pub lanes: Option<usize>,
    /// Workers per direction; `None`: by the number of cores.
    pub workers: Option<usize>,
    /// Whether to pin threads; `None`: if there is a core for each, and one to spare.
    pub pin: Option<bool>,
    /// Niceness of the data threads; `None`: -20.
    pub nice: Option<i32>,
}

/// The plan of one tunnel.
#[derive(Clone, Debug)]
pub(crate) struct CorePlan {
    /// Lanes: TAP queues, each with an outbound thread.
    pub lanes: usize,
    /// UDP sockets, each with an inbound thread: as many as lanes, or one for all.
    pub receivers: usize,
    /// Workers per direction of the staged plan; `None`: inline.
    pub workers: Option<usize>,
    /// The cores that this process may use.
    pub cores: Vec<CoreId>,
    /// Whether threads are pinned.
    pub pinned: bool,
    /// Niceness of the data threads.
    pub nice: i32,
}

impl CorePlan {
    /// Makes a plan for the cores of this machine.
    pub(crate) fn choose(request: PlanRequest) -> Self {
        Self::choose_for(core_affinity::get_core_ids().unwrap_or_default(), request)
    }

    fn choose_for(cores: Vec<CoreId>, request: PlanRequest) -> Self {
        let chosen_lanes = if cores.len() < SEVERAL_LANES_FROM_CORES {
            1
        } else {
            (cores.len() / 2).min(MAX_CHOSEN_LANES)
        };
        let lanes = if request.staged {
            1
        } else {
            request.lanes.unwrap_or(chosen_lanes).max(1)
        };
        let workers = request.staged.then(|| {
            let spare = cores.len().saturating_sub(ENDS) / 2;
            request
                .workers
                .unwrap_or_else(|| spare.clamp(1, MAX_CHOSEN_WORKERS))
        });
        let mut plan = Self {
            lanes,
            receivers: lanes,
            workers,
            cores,
            pinned: false,
            nice: request.nice.unwrap_or(CHOSEN_NICENESS),
        };
        let has_spare_core = plan.cores.len() > plan.thread_names().len();
        plan.pinned = !plan.cores.is_empty() && request.pin.unwrap_or(has_spare_core);
        plan
    }

    /// `inline` or `staged`.
    pub(crate) fn name(&self) -> &'static str {
        if self.workers.is_some() {
            "staged"
        } else {
            "inline"
        }
    }

    /// The data threads.
    pub(crate) fn thread_names(&self) -> Vec<String> {
        let Some(workers) = self.workers else {
            let outbound = (0..self.lanes).map(|lane| numbered("outbound", lane, self.lanes));
            let inbound = (0..self.receivers).map(|lane| numbered("inbound", lane, self.receivers));
            return outbound.chain(inbound).collect();
        };
        let numbered = |name: &'static str| (1..=workers).map(move |n| format!("{name}-{n}"));
        let mut names = vec!["tap-rx".to_owned()];
        names.extend(numbered("seal"));
        names.extend(["udp-tx".to_owned(), "udp-rx".to_owned()]);
        names.extend(numbered("open"));
        names.push("tap-tx".to_owned());
        names
    }

    /// The core of a data thread, if threads are pinned. Core 0 is used last: interrupts often run
    /// there.
    pub(crate) fn core_of(&self, thread: &str) -> Option<CoreId> {
        if !self.pinned {
            return None;
        }
        let place = self.thread_names().iter().position(|name| name == thread)?;
        Some(self.cores[(place + 1) % self.cores.len()])
    }
}

/// The name of a thread: with its number, counted from 1, if there are several.
pub(super) fn numbered(name: &str, place: usize, of: usize) -> String {
    if of == 1 {
        name.to_owned()
    } else {
        format!("{name}-{}", place + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(cores: usize, request: PlanRequest) -> CorePlan {
        CorePlan::choose_for((0..cores).map(|id| CoreId { id }).collect(), request)
    }

    #[test]
    fn lanes_follow_the_cores_and_threads_are_pinned_if_one_is_to_spare() {
        for (cores, lanes, pinned) in [
            (0, 1, false),
            (1, 1, false),
            (2, 1, false),
            (3, 1, true),
            (4, 2, false),
            (5, 2, true),
            (8, 4, false),
            (9, 4, true),
            (16, 8, false),
            (17, 8, true),
            (64, 8, true),
        ] {
            let plan = plan(cores, PlanRequest::default());
            assert_eq!(
                (plan.lanes, plan.receivers, plan.workers, plan.pinned),
                (lanes, lanes, None, pinned),
                "{cores} cores"
            );
        }
    }

    #[test]
    fn the_threads_of_several_lanes_have_numbers() {
        let lanes = |lanes| PlanRequest {
            lanes: Some(lanes),
            ..PlanRequest::default()
        };
        let mut two = plan(8, lanes(2));
        let names = ["outbound-1", "outbound-2", "inbound-1", "inbound-2"];
        assert_eq!(two.thread_names(), names);
        assert_eq!(two.core_of("inbound-2"), Some(CoreId { id: 4 }));
        assert_eq!(plan(8, lanes(1)).thread_names(), ["outbound", "inbound"]);
        two.receivers = 1;
        let names = ["outbound-1", "outbound-2", "inbound"];
        assert_eq!(two.thread_names(), names);
    }

    #[test]
    fn the_staged_plan_has_one_lane_and_workers_by_the_cores() {
        for (cores, workers, pinned) in [(2, 1, false), (8, 2, false), (9, 2, true), (64, 8, true)]
        {
            let request = PlanRequest {
                staged: true,
                lanes: Some(4),
                ..PlanRequest::default()
            };
            let plan = plan(cores, request);
            assert_eq!(
                (plan.lanes, plan.workers, plan.pinned),
                (1, Some(workers), pinned),
                "{cores} cores"
            );
        }
    }

    #[test]
    fn requests_override() {
        let request = PlanRequest {
            staged: true,
            lanes: None,
            workers: Some(3),
            pin: Some(true),
            nice: Some(-5),
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
