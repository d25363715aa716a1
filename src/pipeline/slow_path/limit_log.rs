// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which limits of the switch were exceeded: logged at once, and then at most once a minute for
//! each port and limit, with the count since the last line.
//!
//! The data threads only count. The slow path compares the counts once a second.

use std::collections::HashMap;

use patchcord_bridge::{DropReason, Fdb, PortId, Switch, fdb::Move};
use tracing::warn;

use super::fdb_scan::FdbScan;
use crate::pipeline::port_names::PortNames;

/// A limit of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Limit {
    /// Of frames that it may flood.
    Flood(DropReason),
    /// Of addresses that are learned on it.
    Addresses,
    /// Of addresses that fit, whatever their port.
    Capacity,
    /// Of the moves of one address.
    Moves,
}

impl Limit {
    /// `None` for frames that are refused for other reasons.
    pub(super) fn of(reason: DropReason) -> Option<Self> {
        matches!(
            reason,
            DropReason::BroadcastLimited
                | DropReason::MulticastLimited
                | DropReason::UnknownLimited
                | DropReason::ProbeLimited
        )
        .then_some(Self::Flood(reason))
    }

    /// The name under which `show` counts it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Flood(reason) => reason.name(),
            Self::Addresses => "limited",
            Self::Capacity => "full",
            Self::Moves => "dampened",
        }
    }

    /// What to do about it.
    pub(super) fn remedy(self) -> &'static str {
        match self {
            Self::Flood(DropReason::BroadcastLimited) => {
                "look for a loop or a broken station behind the port; if neither is there, raise its max-broadcast"
            }
            Self::Flood(DropReason::MulticastLimited) => {
                "look for a loop or a source of multicast streams behind the port; if the streams are wanted, raise its max-multicast"
            }
            Self::Flood(DropReason::UnknownLimited) => {
                "look for a station behind the port that sends to addresses which never answer; if that is intended, raise its max-unknown"
            }
            Self::Flood(_) => {
                "look for a loop behind the port, or for a station that forges loop probes; a network with very many nodes causes this too and needs no action"
            }
            Self::Addresses => {
                "look for a host that forges source addresses; if there really are this many stations, raise switch.max-addresses"
            }
            Self::Moves => {
                "look for a loop, for two stations with one address, or for a station that alternates between two links; if there is none, shorten switch.dampening"
            }
            Self::Capacity => "raise switch.capacity to twice the number of stations",
        }
    }
}

/// A limit that was exceeded, for the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Excess {
    pub(super) port: Option<PortId>,
    pub(super) limit: Limit,
    /// Frames since the last line; of moves, how often an address began to move too often.
    pub(super) frames: u64,
}

/// What was logged, and when.
#[derive(Default)]
pub(super) struct LimitLog {
    told: HashMap<(Option<PortId>, Limit), Told>,
}

struct Told {
    count: u64,
    at_s: u32,
}

impl LimitLog {
    const INTERVAL_S: u32 = 60;

    /// Reports which limits were exceeded, at most once a minute for each.
    pub(super) fn check(&mut self, switch: &Switch, scan: &FdbScan, names: &PortNames, now_s: u32) {
        let mut seen = Vec::new();
        for port in switch.ports() {
            let limits = switch.refusals(port);
            let limits = limits.filter_map(|(reason, count)| Some((Limit::of(reason)?, count)));
            seen.extend(limits.map(|(limit, count)| (Some(port), limit, count)));
        }
        let counters = switch.fdb().counters();
        seen.push((None, Limit::Addresses, counters.limited));
        seen.push((None, Limit::Capacity, counters.full));
        seen.push((None, Limit::Moves, counters.dampened));
        for (port, limit, count) in seen {
            let Some(mut excess) = self.note(port, limit, count, now_s) else {
                continue;
            };
            if limit == Limit::Addresses {
                // The count is that of all ports. The port with the most addresses has reached the
                // limit.
                let ports = (0..).map(PortId).zip(scan.addresses());
                excess.port = ports.max_by_key(|&(_, count)| count).map(|(port, _)| port);
            }
            log_excess(excess, switch, names, now_s);
        }
    }

    /// Takes in how many frames a limit has refused so far. Returns the excess if that is new, and
    /// due.
    pub(super) fn note(
        &mut self,
        port: Option<PortId>,
        limit: Limit,
        count: u64,
        now_s: u32,
    ) -> Option<Excess> {
        let told = self.told.get(&(port, limit));
        let frames = count - told.map_or(0, |told| told.count.min(count));
        let is_early = told.is_some_and(|told| now_s.wrapping_sub(told.at_s) < Self::INTERVAL_S);
        if frames == 0 || is_early {
            return None;
        }
        let told = Told { count, at_s: now_s };
        self.told.insert((port, limit), told);
        Some(Excess {
            port,
            limit,
            frames,
        })
    }
}

fn log_excess(excess: Excess, switch: &Switch, names: &PortNames, now_s: u32) {
    let Excess {
        port,
        limit,
        frames,
    } = excess;
    let (name, remedy) = (limit.name(), limit.remedy());
    let port = port.map(|port| names.name(port));
    match limit {
        Limit::Flood(_) => warn!(
            port,
            limit = name,
            frames,
            remedy,
            "a port floods more than its limit; the excess is dropped"
        ),
        Limit::Addresses | Limit::Capacity => warn!(
            port,
            limit = name,
            frames,
            remedy,
            "the limit of learned addresses is reached; frames to other stations are flooded"
        ),
        Limit::Moves => {
            let seen = restless(switch.fdb(), now_s);
            warn!(
                station = seen.map(|seen| seen.mac.to_string()),
                vlan = seen.map(|seen| seen.vid.value()),
                from = seen.map(|seen| names.name(seen.from)),
                to = seen.map(|seen| names.name(seen.to)),
                times = frames,
                remedy,
                "a station moves between ports too often; the switch follows it at a lower rate until it stays in place"
            );
        }
    }
}

/// The last move of an address that has moved too often.
fn restless(fdb: &Fdb, now_s: u32) -> Option<Move> {
    let is_restless = |seen: &Move| {
        let entry = fdb.find(seen.vid, seen.mac, now_s);
        entry.is_some_and(|entry| entry.dampened)
    };
    fdb.last_moves().into_iter().rev().find(is_restless)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_limit_is_told_at_once_and_then_once_a_minute() {
        let broadcast = Limit::of(DropReason::BroadcastLimited).unwrap();
        let multicast = Limit::of(DropReason::MulticastLimited).unwrap();
        let (one, two) = (Some(PortId(1)), Some(PortId(2)));
        let mut log = LimitLog::default();
        for (port, limit, count, now_s, told) in [
            (one, broadcast, 0, 5, None),
            (one, broadcast, 7, 6, Some(7)),
            (one, multicast, 3, 6, Some(3)),
            (two, broadcast, 2, 6, Some(2)),
            (one, broadcast, 9, 7, None),
            (one, broadcast, 20, 65, None),
            (one, broadcast, 20, 66, Some(13)),
            (one, broadcast, 20, 200, None),
            (None, Limit::Capacity, 1, 200, Some(1)),
            (one, broadcast, 21, 201, Some(1)),
        ] {
            let excess = log.note(port, limit, count, now_s);
            let frames = excess.map(|excess| excess.frames);
            assert_eq!(frames, told, "{limit:?} of {port:?}, {count} at {now_s}");
        }
    }

    #[test]
    fn refusals_by_rule_are_not_reported_as_limits() {
        let limits = DropReason::ALL
            .iter()
            .filter_map(|&reason| Limit::of(reason));
        assert!(
            limits
                .clone()
                .all(|limit| limit.name().ends_with("-limited"))
        );
        assert_eq!(limits.count(), 4);
    }
}
