// SPDX-License-Identifier: MIT OR Apache-2.0
//! The core plan: which threads there are, and on which cores they run.
//!
//! - *inline*: several lanes, and in each of them one thread for each direction that does everything.
//!   Flows are spread over the lanes, so that they share neither queues nor locks. Flows that send
//!   little have a lane and threads of their own, the express lane.
//! - *staged*: one lane, in which reading, sealing and sending are threads of their own, and
//!   several seal (or open) one flow at the same time; see [`crate::queue`].
//!
//! Chosen once at start, shown by `show`, overridden by `[pipeline]`.

use core_affinity::CoreId;

use crate::{
    io::udp::Spread,
    proto::limits::MAX_LANES,
    wire::{Lane, LaneSet},
};

/// Lanes that a plan chooses by itself.
const MAX_CHOSEN_LANES: usize = 8;
/// With fewer cores than this there is one lane: the other end and the system need some too.
const SEVERAL_LANES_FROM_CORES: usize = 4;
/// Workers per direction that a plan chooses by itself.
const MAX_CHOSEN_WORKERS: usize = 8;
/// Everything that waits for the tunnel also waits while the tunnel waits for a core. The kernel's
/// own tunnels have priority too: they work in interrupts.
const CHOSEN_NICENESS: i32 = -20;
/// The threads of the express lane.
pub(super) const EXPRESS_OUT: &str = "express-out";
pub(super) const EXPRESS_IN: &str = "express-in";
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
    /// Whether to have an express lane. The staged plan has none, nor has a hub whose lanes take all
    /// numbers.
    pub express: bool,
    /// Whether the inbound threads forward on lanes of their own.
    pub hub: bool,
}

/// The plan of one tunnel.
#[derive(Clone, Debug)]
pub(crate) struct CorePlan {
    /// Lanes beside the express lane: TAP queues, each with an outbound thread.
    pub lanes: usize,
    /// Whether there is an express lane: a further TAP queue with a thread.
    pub express: bool,
    /// UDP sockets, each with an inbound thread: as many as lanes, or one for all.
    pub receivers: Spread,
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
        let is_full = request.hub && 2 * lanes + 2 > usize::from(MAX_LANES);
        let mut plan = Self {
            lanes,
            express: request.express && !request.staged && !is_full,
            receivers: lanes.into(),
            workers,
            cores,
            pinned: false,
            nice: request.nice.unwrap_or(CHOSEN_NICENESS),
        };
        plan.receivers.express = plan.express;
        let has_spare_core = plan.cores.len() > plan.bulk_threads().len();
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

    /// The lane of the queue in this position, and behind the queues of the inbound threads in
    /// their order, which a hub has for forwarding. None takes the number of an express lane if
    /// there is one.
    pub(crate) fn lane(&self, place: usize) -> Lane {
        let number = Lane::FIRST_DATA.0 + place as u8;
        let skipped = self.express && number >= Lane::EXPRESS.0;
        Lane(if skipped { number + 2 } else { number })
    }

    /// The lanes on which this node sends.
    pub(crate) fn lane_set(&self, is_hub: bool) -> LaneSet {
        let onward = if is_hub { self.receivers.bulk } else { 0 };
        let bulk = self.lane(self.lanes + onward - 1).0;
        let express = match (self.express, is_hub && self.receivers.express) {
            (true, true) => Lane::EXPRESS_ONWARD,
            (true, false) => Lane::EXPRESS,
            (false, _) => return bulk.into(),
        };
        LaneSet {
            highest: bulk.max(express.0),
            bulk: if bulk < express.0 { bulk } else { 0 },
        }
    }

    /// The data threads.
    pub(crate) fn thread_names(&self) -> Vec<String> {
        let mut names = self.bulk_threads();
        names.extend(self.express.then(|| EXPRESS_OUT.to_owned()));
        names.extend(self.receivers.express.then(|| EXPRESS_IN.to_owned()));
        names
    }

    /// Those that may be pinned. The threads of the express lane run where a core is free.
    fn bulk_threads(&self) -> Vec<String> {
        let Some(workers) = self.workers else {
            let outbound = (0..self.lanes).map(|lane| numbered("outbound", lane, self.lanes));
            let receivers = self.receivers.bulk;
            let inbound = (0..receivers).map(|lane| numbered("inbound", lane, receivers));
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
        let place = self.bulk_threads().iter().position(|name| name == thread)?;
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
                (lanes, lanes.into(), None, pinned),
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
        two.receivers = Spread::ONE;
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
    fn the_express_lane_has_threads_of_its_own_that_run_on_any_core() {
        let request = PlanRequest {
            express: true,
            ..PlanRequest::default()
        };
        let plan = plan(3, request);
        let names = ["outbound", "inbound", "express-out", "express-in"];
        assert_eq!(plan.thread_names(), names);
        assert!(plan.pinned && plan.core_of("inbound").is_some());
        assert_eq!(plan.core_of("express-in"), None);
    }

    #[test]
    fn no_lane_has_two_threads() {
        for (lanes, express, is_hub) in (1..=8)
            .flat_map(|lanes| [(lanes, false), (lanes, true)])
            .flat_map(|(lanes, express)| [(lanes, express, false), (lanes, express, true)])
            // These are more than a peer receives.
            .filter(|&config| config != (8, true, true))
        {
            let request = PlanRequest {
                lanes: Some(lanes),
                express,
                ..PlanRequest::default()
            };
            let plan = plan(8, request);
            let bulk = if is_hub { 2 * lanes } else { lanes };
            let mut used: Vec<_> = (0..bulk).map(|place| plan.lane(place)).collect();
            if express {
                assert!(!used.iter().any(|lane| lane.is_express()));
                used.push(Lane::EXPRESS);
            }
            if express && is_hub {
                used.push(Lane::EXPRESS_ONWARD);
            }
            used.sort();
            let set = plan.lane_set(is_hub);
            let announced = (1..=16).map(Lane).filter(|&lane| set.has(lane));
            // A hub has both in between, even if the device has but one.
            assert_eq!(
                announced.collect::<Vec<_>>(),
                used,
                "{lanes} {express} {is_hub}"
            );
            assert_eq!(usize::from(set.count()), used.len());
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
            express: true,
            hub: false,
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
