// SPDX-License-Identifier: MIT OR Apache-2.0
//! Formats a [`Status`], or an FDB, for a terminal.

mod device;
mod fdb;
mod peer;
#[cfg(test)]
mod tests;

use std::iter;

use patchcord::control::message::{
    BlockStatus, ExpressStatus, LatencyState, LatencyStatus, PortStatus, Status,
};

use self::{
    device::{device, device_trouble},
    fdb::{address, vlan},
    peer::{inbound, outbound, peers},
};
pub(super) use self::{fdb::addresses, peer::peer};
use super::output::{age, ago, bytes, number, plural, row, table};

/// One line per tunnel.
pub(super) fn list(running: &[Status]) -> String {
    if running.is_empty() {
        return "no tunnel is running\n".into();
    }
    let rows = running.iter().map(|status| {
        let up = status
            .peers
            .iter()
            .filter(|peer| peer.state == "up")
            .count();
        vec![
            status.tunnel.clone(),
            state(status).to_owned(),
            status.device.name.clone(),
            format!("{up} of {} up", plural(status.peers.len(), "peer")),
            format!("{} out", bytes(status.counters.outbound_bytes)),
            format!("{} in", bytes(status.counters.inbound_bytes)),
            format!("for {}", age(status.uptime_s)),
        ]
    });
    table("", rows.collect())
}

/// So many peers are shown in full; of more, each gets a line.
const PEERS_IN_FULL: usize = 4;

/// Everything about one tunnel; of many peers only with `verbose`.
pub(super) fn page(status: &Status, verbose: bool) -> String {
    let mut sections = vec![overview(status)];
    if verbose || status.peers.len() <= PEERS_IN_FULL {
        sections.extend(status.peers.iter().map(peer));
    } else {
        sections.push(peers(status));
    }
    if !status.drops.is_empty() {
        let rows = status
            .drops
            .iter()
            .map(|(reason, n)| vec![reason.clone(), number(*n)]);
        sections.push(format!("drops\n{}", table("  ", rows.collect())));
    }
    let ports: Vec<_> = status.ports.iter().filter_map(port).collect();
    if !ports.is_empty() {
        sections.push(format!("ports\n{}", table("  ", ports)));
    }
    if !status.groups.is_empty() {
        let rows = status.groups.iter().map(|group| {
            let ports = group.ports.join(", ");
            vec![group.group.clone(), vlan(group.vid), ports]
        });
        sections.push(format!("groups\n{}", table("  ", rows.collect())));
    }
    let switch = switch(status);
    if !switch.is_empty() {
        sections.push(format!("switch\n{}", table("  ", switch)));
    }
    if !status.fdb.is_empty() && known(status) <= LISTED {
        let rows = status.fdb.iter().map(|entry| address(entry).into());
        sections.push(format!("addresses\n{}", table("  ", rows.collect())));
    }
    sections.join("\n")
}

/// The number of addresses on the page of a tunnel; of more, it shows how many.
const LISTED: u64 = 20;

/// The number of addresses that the tunnel knows.
fn known(status: &Status) -> u64 {
    status.fdb.len() as u64 + status.fdb_omitted
}

/// The lines about the FDB as a whole.
fn switch(status: &Status) -> Vec<Vec<String>> {
    let mut rows = Vec::new();
    if known(status) > LISTED {
        let name = &status.tunnel;
        let counts = &status.switch.addresses;
        let by_origin = [
            (counts.learned, "learned"),
            (counts.fixed, "static"),
            (counts.controller, "by a controller"),
        ];
        let by_origin = by_origin.iter().filter(|(count, _)| *count > 0);
        let by_origin: Vec<_> = by_origin
            .map(|(count, origin)| format!("{} {origin}", number(*count)))
            .collect();
        let text = match by_origin.is_empty() {
            true => number(known(status)),
            false => by_origin.join(", "),
        };
        rows.push(row(
            "addresses",
            format!("{text}; `patchcord fdb show {name}` lists them"),
        ));
    }
    let counters = &status.switch.counters;
    if counters.dampened > 0 {
        let text = format!(
            "{}, {} of them too often: a loop, or two stations with one address",
            number(counters.moved),
            number(counters.dampened)
        );
        rows.push(row("moved", text));
    }
    let refused = [
        (counters.limited, "more addresses than a port may have"),
        (counters.full, "no place in the table"),
    ];
    let refused = refused.iter().filter(|(count, _)| *count > 0);
    rows.extend(refused.map(|(count, why)| {
        row(
            "not learned",
            format!("{}: {why}", plural(*count as usize, "frame")),
        )
    }));
    rows
}

/// The line of a port, if there is something to report.
fn port(port: &PortStatus) -> Option<Vec<String>> {
    let blocked = port.blocked.as_ref().map(|block| match block {
        BlockStatus::Loop {
            other,
            vlan,
            for_s,
            opens_in_s,
            probes,
        } => {
            let vlan = match vlan {
                0 => String::new(),
                vlan => format!(" in VLAN {vlan}"),
            };
            format!(
                "blocked {}: a loop with {other}{vlan}; {} came back, opens in {} if no more do",
                ago(*for_s),
                plural(*probes as usize, "probe"),
                age(*opens_in_s),
            )
        }
        BlockStatus::Bpdu => "blocked: a bridge is behind it".to_owned(),
    });
    let refused: Vec<_> = port
        .refused
        .iter()
        .map(|(reason, n)| format!("{reason} {}", number(*n)))
        .collect();
    let refused = (!refused.is_empty()).then(|| format!("refused: {}", refused.join(", ")));
    let texts: Vec<_> = blocked.into_iter().chain(refused).collect();
    (!texts.is_empty()).then(|| vec![port.port.clone(), texts.join("; ")])
}

/// What `show` and `host list` call the state of a tunnel.
pub(super) fn state(status: &Status) -> &str {
    match status.condition.as_str() {
        // An older version runs the tunnel.
        "" => &status.state,
        condition => condition,
    }
}

fn overview(status: &Status) -> String {
    let mut rows = vec![
        row(
            "state",
            format!("{}, started {}", state(status), ago(status.uptime_s)),
        ),
        row("public key", status.public_key.clone()),
        row("listen", listen(status)),
        row("device", device(&status.device)),
    ];
    rows.extend(device_trouble(&status.device));
    rows.push(row("core plan", core_plan(status)));
    rows.extend((status.core_plan.express.iter()).map(|it| row("express", express(it))));
    rows.extend(status.latency.iter().map(|it| row("latency", latency(it))));
    rows.extend([
        row("outbound", outbound(&status.counters)),
        row("inbound", inbound(&status.counters)),
        row(
            "process",
            format!("{}, patchcord {}", status.pid, status.version),
        ),
    ]);
    format!("tunnel {}\n{}", status.tunnel, table("  ", rows))
}

fn listen(status: &Status) -> String {
    let without = |has: bool, what: &'static str| (!has).then_some(what);
    let without = [
        without(
            status.listen_is_here,
            "an address that is not on this machine yet",
        ),
        without(status.udp_gso, "no UDP GSO"),
        without(status.udp_gro, "no UDP GRO"),
    ];
    let parts = iter::once(status.listen.as_str()).chain(without.into_iter().flatten());
    parts.collect::<Vec<_>>().join(", ")
}

fn latency(status: &LatencyStatus) -> String {
    let bound = match status.bound_us {
        0 => "idle cores poll".to_owned(),
        bound_us => format!("idle cores wake up within {bound_us} us"),
    };
    match (status.state, &status.problem) {
        (LatencyState::Held, _) => format!("held: {bound}"),
        (LatencyState::Idle, _) => format!("not held: {bound} only while frames cross"),
        (LatencyState::Unavailable, problem) => {
            let problem = problem.as_deref().unwrap_or("the kernel refuses");
            format!("not available: {problem}")
        }
    }
}

fn express(status: &ExpressStatus) -> String {
    let [out, back] = [status.outbound_frames, status.inbound_frames].map(number);
    format!("frames of flows that send little: {out} out, {back} in")
}

fn core_plan(status: &Status) -> String {
    let plan = &status.core_plan;
    let threads: Vec<_> = plan
        .threads
        .iter()
        .map(|thread| match thread.core {
            Some(core) => format!("{} on core {core}", thread.name),
            None => thread.name.clone(),
        })
        .collect();
    format!(
        "{}, {} on {}: {}",
        plan.plan,
        plural(plan.lanes, "lane"),
        plural(plan.cores, "core"),
        threads.join(", ")
    )
}
