// SPDX-License-Identifier: MIT OR Apache-2.0
//! `[switch]`: what it becomes, its keys, and how they are read. Pure.

use std::ops::RangeInclusive;
use std::time::Duration;

use patchcord_bridge::SwitchConfig;
use toml::de::DeValue;

use super::error::Report;
use super::schema::{Effect::Restart, Key, Schema};
use super::section::Section;
use super::value::{Parsed, duration, integer};

/// `[switch]`: settings for all ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SwitchSettings {
    /// `hub`: whether frames pass from peer to peer, as they do not in a mesh.
    pub hub: bool,
    /// `capacity`: addresses that the FDB has room for, 8 to 1048576; twice as many as all ports may have
    /// when absent, see [`SwitchConfig::usual_capacity`].
    pub capacity: Option<usize>,
    /// `ageing`: how long the FDB keeps an address that sends nothing, 1 s to 1 d; 300 s when absent.
    pub ageing: Duration,
    /// `dampening`: an address that moved too often moves at most once in this time, 0 s to 60 s; 1 s when
    /// absent.
    pub dampening: Duration,
    /// `max-addresses`: addresses that the FDB learns for one port, 1 to 1048576 and at most `capacity`;
    /// 4096 when absent.
    pub max_addresses: usize,
    /// `loop-guard`: whether loops are found and cut; true when absent.
    pub loop_guard: bool,
    /// `querier`: whether this node asks stations for their multicast groups.
    pub querier: bool,
}

impl SwitchSettings {
    /// The addresses that the FDB of a switch with so many ports, that of the device included, has room for.
    pub fn room(&self, ports: usize) -> usize {
        let usual = || SwitchConfig::usual_capacity(ports, self.max_addresses);
        self.capacity.unwrap_or_else(usual)
    }
}

impl Default for SwitchSettings {
    fn default() -> Self {
        let switch = SwitchConfig::default();
        Self {
            hub: switch.hub,
            capacity: None,
            ageing: Duration::from_secs(switch.ageing_s.into()),
            dampening: Duration::from_secs(switch.dampening_s.into()),
            max_addresses: switch.max_per_port,
            loop_guard: true,
            querier: false,
        }
    }
}

pub(super) const SCHEMA: Schema = Schema {
    name: "switch",
    header: "[switch]",
    about: "For all ports. Not in wire mode.",
    keys: &[
        Key {
            name: "hub",
            kind: "boolean",
            default: "`false`",
            range: "",
            effect: Restart,
            about: "Whether frames pass from peer to peer: for the centre of a star, never inside a \
                    mesh.",
        },
        Key {
            name: "capacity",
            kind: "integer",
            default: "twice what all ports may have by `max-addresses`",
            range: "8 to 1048576",
            effect: Restart,
            about: "Addresses that the FDB has room for: without the key 16384 with one peer, 32768 with \
                    two or three, and so on. Write twice as many as there are stations; rounded up to a power of two. \
                    Each takes 32 bytes, used or not: 8 MiB with 30 peers, 32 MiB at most.",
        },
        Key {
            name: "ageing",
            kind: "duration",
            default: "`\"300s\"`",
            range: "1 s to 1 d",
            effect: Restart,
            about: "How long the FDB remembers an address that sends nothing.",
        },
        Key {
            name: "dampening",
            kind: "duration",
            default: "`\"1s\"`",
            range: "0 s to 60 s",
            effect: Restart,
            about: "An address that moved more than 5 times in 10 s moves at most once in this time, \
                    until it has stayed on one port for 10 s.",
        },
        Key {
            name: "max-addresses",
            kind: "integer",
            default: "`4096`",
            range: "1 to 1048576, at most `capacity`",
            effect: Restart,
            about: "Addresses that the FDB learns for one port.",
        },
        Key {
            name: "loop-guard",
            kind: "boolean",
            default: "`true`",
            range: "",
            effect: Restart,
            about: "Find loops and cut them.",
        },
        Key {
            name: "querier",
            kind: "boolean",
            default: "`false`",
            range: "",
            effect: Restart,
            about: "Ask the stations, in each VLAN that has some, which multicast groups they want.",
        },
    ],
    port: None,
};

pub(super) fn read(section: &Section<'_, '_>, report: &mut Report<'_>) -> SwitchSettings {
    let default = SwitchSettings::default();
    let most = 1 << 20;
    let capacity = section.read("capacity", report, |value| {
        stations(value, 8..=most, "capacity = 8192")
    });
    let max_addresses = section.read("max-addresses", report, |value| {
        stations(value, 1..=most, "max-addresses = 4096")
    });
    if let (Some(max_addresses), Some(room)) = (max_addresses, capacity)
        && max_addresses > room
    {
        let problem = format!(
            "{max_addresses} is more than the FDB has room for, which is {room}; write a \
             `capacity` of twice as many as there are stations"
        );
        section.refuse("max-addresses", report, problem);
    }
    SwitchSettings {
        hub: section.read_flag("hub", report).unwrap_or(default.hub),
        capacity,
        ageing: section
            .read("ageing", report, ageing)
            .unwrap_or(default.ageing),
        dampening: section
            .read("dampening", report, dampening)
            .unwrap_or(default.dampening),
        max_addresses: max_addresses.unwrap_or(default.max_addresses),
        loop_guard: section
            .read_flag("loop-guard", report)
            .unwrap_or(default.loop_guard),
        querier: section
            .read_flag("querier", report)
            .unwrap_or(default.querier),
    }
}

/// A number of addresses, of the switch or of one port.
fn stations(value: &DeValue<'_>, range: RangeInclusive<i64>, example: &str) -> Parsed<usize> {
    integer(value, range, example).map(|stations| stations as usize)
}

fn ageing(value: &DeValue<'_>) -> Parsed<Duration> {
    duration(
        value,
        Duration::from_secs(1)..=Duration::from_secs(24 * 3600),
        "300s",
    )
}

fn dampening(value: &DeValue<'_>) -> Parsed<Duration> {
    duration(value, Duration::ZERO..=Duration::from_secs(60), "1s")
}

#[cfg(test)]
mod tests {
    use crate::config::testing::{minimal, parse};

    #[test]
    fn there_is_room_for_twice_what_all_ports_may_have_unless_the_file_says_otherwise() {
        for (line, ports, room) in [
            ("", 2, 16_384),
            ("", 3, 32_768),
            ("", 4, 32_768),
            ("", 1000, 1 << 20),
            ("max-addresses = 5", 4, 8192),
            ("max-addresses = 10_000", 2, 65_536),
            ("max-addresses = 1048576", 2, 1 << 20),
            ("capacity = 64\nmax-addresses = 60", 4, 64),
            ("capacity = 100000", 2, 100_000),
        ] {
            let text = format!("{}\n[switch]\n{line}", minimal());
            let config = parse(&text).unwrap();
            assert_eq!(config.switch.room(ports), room, "{line}, {ports} ports");
        }
    }
}
