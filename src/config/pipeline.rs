// SPDX-License-Identifier: MIT OR Apache-2.0
//! `[pipeline]`: what it becomes, its keys, and how they are read. Pure.

use toml::de::DeValue;

use super::error::Report;
use super::schema::{Effect::Restart, Key, Schema};
use super::section::Section;
use super::value::{Parsed, choice, integer};

/// `[pipeline]`: how work is spread over cores; the defaults suit nearly every machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PipelineConfig {
    /// `plan`
    pub plan: PlanChoice,
    /// `lanes`: 1 to 8; chosen by the number of cores when absent.
    pub lanes: Option<usize>,
    /// `workers`: 1 to 64; chosen by the number of cores when absent.
    pub workers: Option<usize>,
    /// `pin`: whether threads are pinned to cores; if absent, they are where each has a core.
    pub pin: Option<bool>,
    /// `nice`: priority of the data threads while they carry bulk traffic, -20 (first) to 19; -20 if
    /// absent.
    pub nice: Option<i32>,
    /// `latency`: the longest time in microseconds that idle cores may take to wake up while frames
    /// cross, 0 to 10,000; left to the machine if absent.
    pub latency: Option<u32>,
    /// `express`: whether flows that send little have a lane of their own; false if absent.
    pub express: bool,
    /// `udp-gso`: whether the kernel or the network card may cut trains of datagrams.
    pub udp_gso: OffloadChoice,
    /// `udp-gro`: whether the kernel may hand over datagrams as trains.
    pub udp_gro: OffloadChoice,
}

/// Whether an offload is used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OffloadChoice {
    /// Where the kernel has it.
    #[default]
    Auto,
    /// Not at all.
    Off,
}

/// Which core plan to use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PlanChoice {
    /// Inline, on every machine.
    #[default]
    Auto,
    /// Each direction of a lane runs to completion in one thread.
    Inline,
    /// One lane, in which workers seal and open.
    Staged,
}

pub(super) const SCHEMA: Schema = Schema {
    name: "pipeline",
    header: "[pipeline]",
    about: "The defaults suit nearly every machine.",
    keys: &[
        Key {
            name: "plan",
            kind: "string",
            default: "`\"auto\"`",
            range: "`auto`, `inline`, `staged`",
            effect: Restart,
            about: "`inline`: one thread for each direction of a lane; `staged`: one lane, in which \
                    workers seal and open; `auto`: inline.",
        },
        Key {
            name: "lanes",
            kind: "integer",
            default: "half of the cores, at most 8; 1 on up to 3 cores",
            range: "1 to 8; 1 if `staged`",
            effect: Restart,
            about: "RX/TX queue pairs, over which flows are spread. The ends may differ.",
        },
        Key {
            name: "workers",
            kind: "integer",
            default: "(cores - 4) / 2, 1 to 8",
            range: "1 to 64",
            effect: Restart,
            about: "Workers for each direction, if `staged`.",
        },
        Key {
            name: "pin",
            kind: "boolean",
            default: "`true` if there is a core for each thread and one to spare",
            range: "",
            effect: Restart,
            about: "Pin threads to cores.",
        },
        Key {
            name: "nice",
            kind: "integer",
            default: "`-20`",
            range: "-20 (first) to 19 (last)",
            effect: Restart,
            about: "Priority of the data threads while they carry bulk traffic; needs CAP_SYS_NICE, \
                    and stays unchanged without it.",
        },
        Key {
            name: "latency",
            kind: "string or integer",
            default: "`\"auto\"`",
            range: "`auto`, `low`, 0 to 10000",
            effect: Restart,
            about: "Microseconds that idle cores may take to wake up while frames cross; `low` is 0: \
                    they poll in place of halting, which takes power. `auto`: as the machine is set.",
        },
        Key {
            name: "express",
            kind: "boolean",
            default: "`false`",
            range: "",
            effect: Restart,
            about: "Flows that send little (less than 4 Mbit/s, and 2000 frames a second) have a lane \
                    and threads of their own, so that they do not wait behind others. Not if \
                    `staged`, with a network card, or in a hub with 8 lanes. On Linux 5.10 and \
                    6.1, flows were reordered when they changed their lane; on 6.12 they were not.",
        },
        Key {
            name: "udp-gso",
            kind: "string",
            default: "`\"auto\"`",
            range: "`auto`, `off`",
            effect: Restart,
            about: "`off`: send datagrams one by one, without UDP_SEGMENT. For a card or driver that \
                    segments wrongly: with `auto` the peer counts `bad-tag` or loses datagrams, and \
                    with `off` it does not.",
        },
        Key {
            name: "udp-gro",
            kind: "string",
            default: "`\"auto\"`",
            range: "`auto`, `off`",
            effect: Restart,
            about: "`off`: receive datagrams one by one, without UDP_GRO.",
        },
    ],
    port: None,
};

pub(super) fn read(section: &Section<'_, '_>, report: &mut Report<'_>) -> PipelineConfig {
    let plan = section.read("plan", report, plan).unwrap_or_default();
    let lanes = section.read("lanes", report, lanes);
    if plan == PlanChoice::Staged && lanes.is_some_and(|lanes| lanes > 1) {
        let problem = "the staged plan has one lane; write `plan = \"inline\"`, or `lanes = 1`";
        section.refuse("lanes", report, problem.into());
    }
    PipelineConfig {
        plan,
        lanes,
        workers: section.read("workers", report, workers),
        pin: section.read_flag("pin", report),
        nice: section.read("nice", report, nice),
        latency: section.read("latency", report, latency).flatten(),
        express: section.read_flag("express", report).unwrap_or(false),
        udp_gso: section.read("udp-gso", report, offload).unwrap_or_default(),
        udp_gro: section.read("udp-gro", report, offload).unwrap_or_default(),
    }
}

fn plan(value: &DeValue<'_>) -> Parsed<PlanChoice> {
    choice(
        value,
        &[
            ("auto", PlanChoice::Auto),
            ("inline", PlanChoice::Inline),
            ("staged", PlanChoice::Staged),
        ],
    )
}

fn offload(value: &DeValue<'_>) -> Parsed<OffloadChoice> {
    choice(
        value,
        &[("auto", OffloadChoice::Auto), ("off", OffloadChoice::Off)],
    )
}

fn lanes(value: &DeValue<'_>) -> Parsed<usize> {
    integer(value, 1..=8, "lanes = 2").map(|lanes| lanes as usize)
}

fn workers(value: &DeValue<'_>) -> Parsed<usize> {
    integer(value, 1..=64, "workers = 2").map(|workers| workers as usize)
}

fn latency(value: &DeValue<'_>) -> Parsed<Option<u32>> {
    match value {
        DeValue::Integer(_) => {
            integer(value, 0..=10_000, "latency = 20").map(|bound_us| Some(bound_us as u32))
        }
        _ => choice(value, &[("auto", None), ("low", Some(0))]),
    }
}

fn nice(value: &DeValue<'_>) -> Parsed<i32> {
    integer(value, -20..=19, "nice = -10").map(|nice| nice as i32)
}
