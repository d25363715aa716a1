// SPDX-License-Identifier: MIT OR Apache-2.0
//! Ports of the switch: the keys of `[device.port]` and `[peer.port]`, which are the same. Pure.

use patchcord_bridge::{
    BpduPolicy, FloodLimits, Guard, PortConfig, PortVlans, Sources, Tpid, Vid, VlanError,
};
use toml::de::DeValue;

use super::error::Report;
use super::schema::{
    Effect::{Live, Restart},
    Key, Schema,
};
use super::section::Section;
use super::stations::Stations;
use super::value::{Parsed, choice, integer, mac_address, shown, string, wrong_type};
use super::vlan::{MAX_VID, vid, vid_number, vids};

pub(super) const OF_DEVICE: Schema = Schema {
    name: "port",
    header: "[device.port]",
    about: ABOUT,
    keys: KEYS,
    port: None,
};

pub(super) const OF_PEER: Schema = Schema {
    name: "port",
    header: "[peer.port]",
    about: ABOUT,
    keys: KEYS,
    port: None,
};

const ABOUT: &str = "The port of the switch to the device, or to the `[[peer]]` above; both have the same \
                          keys. A port has at most one of `trunk`, `access` and `tunnel`; without any, \
                          every frame passes unaltered. Not in wire mode.";

const KEYS: &[Key] = &[
    Key {
        name: "trunk",
        kind: "VLANs",
        default: "none",
        range: "1 to 4094",
        effect: Live,
        about: "Tagged VLANs that pass: `\"10, 20-29\"`, or `[10, \"20-29\"]`.",
    },
    Key {
        name: "native",
        kind: "integer",
        default: "none",
        range: "0 to 4094, with `trunk`",
        effect: Live,
        about: "VLAN of the untagged frames of a trunk; 0 lets them stay untagged. If absent, they \
                do not pass.",
    },
    Key {
        name: "translate",
        kind: "table",
        default: "none",
        range: "1 to 4094, with `trunk`",
        effect: Live,
        about: "VLAN outside and inside, `{ 10 = 110 }`; `trunk` and `native` have the numbers \
                inside.",
    },
    Key {
        name: "access",
        kind: "integer",
        default: "none",
        range: "0 to 4094",
        effect: Live,
        about: "VLAN of all frames, which are untagged outside; tagged frames do not pass.",
    },
    Key {
        name: "tunnel",
        kind: "integer",
        default: "none",
        range: "1 to 4094",
        effect: Restart,
        about: "VLAN of all frames, whatever tags they have (QinQ).",
    },
    Key {
        name: "tag",
        kind: "string",
        default: "`\"802.1ad\"`",
        range: "`802.1ad`, `802.1q`, with `tunnel`",
        effect: Restart,
        about: "Tag that the VLAN of a `tunnel` has at other ports.",
    },
    Key {
        name: "max-broadcast",
        kind: "integer",
        default: "`5000`",
        range: "0 to 4294967295",
        effect: Live,
        about: "Broadcasts per second from the port; 0 is no limit, here and below.",
    },
    Key {
        name: "max-multicast",
        kind: "integer",
        default: "`50000`",
        range: "0 to 4294967295",
        effect: Live,
        about: "Frames per second to groups.",
    },
    Key {
        name: "max-unknown",
        kind: "integer",
        default: "`10000`",
        range: "0 to 4294967295",
        effect: Live,
        about: "Frames per second to addresses that the switch does not know.",
    },
    Key {
        name: "bpdu",
        kind: "string",
        default: "`\"pass\"`",
        range: "`pass`, `drop`, `guard`",
        effect: Live,
        about: "Spanning tree frames from the port; `guard` drops them and blocks the port for 30 \
                s.",
    },
    Key {
        name: "dhcp-server",
        kind: "string",
        default: "`\"allow\"`",
        range: "`allow`, `drop`",
        effect: Live,
        about: "What DHCP servers behind the port send.",
    },
    Key {
        name: "router-advertisements",
        kind: "string",
        default: "`\"allow\"`",
        range: "`allow`, `drop`",
        effect: Live,
        about: "What IPv6 routers behind the port advertise.",
    },
    Key {
        name: "spoof-guard",
        kind: "boolean",
        default: "`false`",
        range: "",
        effect: Restart,
        about: "Refuse frames from addresses that live behind another port.",
    },
    Key {
        name: "sources",
        kind: "array",
        default: "any",
        range: "one unicast address or more",
        effect: Live,
        about: "The only addresses that may send, for example `[\"02:00:5e:10:00:01\"]`.",
    },
    Key {
        name: "stations",
        kind: "array",
        default: "none",
        range: "up to an eighth of `capacity`",
        effect: Restart,
        about: "static entries: addresses, or tables `{ mac = \"...\", vlan = 10 }`. Without \
                `vlan`, the VLAN of the port's untagged frames.",
    },
    Key {
        name: "neighbour-suppression",
        kind: "boolean",
        default: "`false`",
        range: "",
        effect: Restart,
        about: "Answer ARP and neighbour discovery from what is known.",
    },
    Key {
        name: "multicast-snooping",
        kind: "boolean",
        default: "`false`",
        range: "",
        effect: Restart,
        about: "Send groups only to ports that asked for them.",
    },
];

pub(super) fn read(
    section: &Section<'_, '_>,
    stations: &mut Stations,
    report: &mut Report<'_>,
) -> PortConfig {
    if !section.is_readable() {
        return PortConfig::default();
    }
    let default = FloodLimits::default();
    let mut limit = |key, default| {
        let limit = section.read(key, report, |value| frames_per_s(value, key, default));
        limit.unwrap_or(default)
    };
    let limits = FloodLimits {
        broadcast: limit("max-broadcast", default.broadcast),
        multicast: limit("max-multicast", default.multicast),
        unknown: limit("max-unknown", default.unknown),
    };
    let mut is_on = |key| section.read_flag(key, report).unwrap_or(false);
    let spoof_guard = is_on("spoof-guard");
    let neighbour_suppression = is_on("neighbour-suppression");
    let multicast_snooping = is_on("multicast-snooping");
    let vlans = vlans(section, report);
    let stations = stations.of_port(section, &vlans, report);
    let mut guard = |key| section.read(key, report, guard).unwrap_or_default();
    PortConfig {
        limits,
        dhcp_server: guard("dhcp-server"),
        router_advertisements: guard("router-advertisements"),
        neighbour_suppression,
        multicast_snooping,
        spoof_guard,
        bpdus: section.read("bpdu", report, bpdus).unwrap_or_default(),
        allowed_sources: section.read("sources", report, sources),
        vlans,
        stations,
    }
}

/// A port has at most one of these keys.
const KINDS: [&str; 3] = ["trunk", "access", "tunnel"];

fn vlans(section: &Section<'_, '_>, report: &mut Report<'_>) -> PortVlans {
    refuse_second_kind(section, report);
    for (key, kind, example) in [
        ("native", "trunk", "trunk = \"10, 20-29\""),
        ("translate", "trunk", "trunk = \"110\""),
        ("tag", "tunnel", "tunnel = 200"),
    ] {
        if section.has(key) && !section.has(kind) {
            let problem = format!("applies to a {kind} only; write for example `{example}` too");
            section.refuse(key, report, problem);
        }
    }
    let allowed = section.read("trunk", report, vids);
    let native = section.read("native", report, |value| vid(value, 0, "native = 5"));
    let translate = section.read("translate", report, translation);
    let access = section.read("access", report, |value| vid(value, 0, "access = 42"));
    let tunnel = section.read("tunnel", report, |value| vid(value, 1, "tunnel = 200"));
    let tpid = section.read("tag", report, tag).unwrap_or(Tpid::Service);

    let is_native_wrong = native.is_none() && section.has("native");
    let vlans = match (allowed, access, tunnel) {
        // Its error is reported, and further checks would yield errors that are not there.
        (Some(_), ..) if is_native_wrong => return PortVlans::transparent(),
        (Some(allowed), ..) => PortVlans::trunk(allowed, native, &translate.unwrap_or_default()),
        (None, Some(vid), _) => PortVlans::access(vid),
        (None, None, Some(vid)) => PortVlans::tunnel(vid, tpid),
        (None, None, None) => return PortVlans::transparent(),
    };
    vlans.unwrap_or_else(|error| {
        let (key, remedy) = remedy(error);
        section.refuse(key, report, format!("{error}; {remedy}"));
        PortVlans::transparent()
    })
}

/// Refuses all kinds but the first in the file.
fn refuse_second_kind(section: &Section<'_, '_>, report: &mut Report<'_>) {
    let mut kinds: Vec<_> = KINDS.into_iter().filter(|kind| section.has(kind)).collect();
    kinds.sort_by_key(|kind| section.span_of(kind).start);
    let Some((first, others)) = kinds.split_first() else {
        return;
    };
    for kind in others {
        let problem = format!("the port has `{first}` already; remove one of the two");
        section.refuse(kind, report, problem);
    }
}

/// The key at fault, and the remedy.
fn remedy(error: VlanError) -> (&'static str, &'static str) {
    match error {
        VlanError::TranslatedInVain { .. } => {
            let remedy = "add it to `trunk`, which has the numbers inside";
            ("translate", remedy)
        }
        VlanError::OutsideTwice { .. } | VlanError::InsideTwice { .. } => {
            let remedy = "write each number once on each side, `{ OUTSIDE = INSIDE, ... }`";
            ("translate", remedy)
        }
        _ => ("trunk", "write for example `trunk = \"10, 20-29\"`"),
    }
}

/// Pairs of a number outside and inside.
fn translation(value: &DeValue<'_>) -> Parsed<Vec<(Vid, Vid)>> {
    const EXAMPLE: &str = "translate = { 10 = 110 }";
    let DeValue::Table(pairs) = value else {
        return Err(wrong_type(
            value,
            "a table of numbers outside and inside",
            EXAMPLE,
        ));
    };
    let pair = |(outside, inside): (&str, &DeValue<'_>)| {
        let number = vid_number(outside).filter(|number| (1..=MAX_VID).contains(number));
        let outside = number.and_then(Vid::new).ok_or_else(|| {
            let remedy = "write its number outside, 1 to 4094, before the `=`";
            format!("{} is not a VLAN; {remedy}", shown(outside))
        })?;
        Ok((outside, vid(inside, 1, EXAMPLE)?))
    };
    pairs
        .iter()
        .map(|(outside, inside)| pair((outside.get_ref(), inside.get_ref())))
        .collect()
}

fn tag(value: &DeValue<'_>) -> Parsed<Tpid> {
    let choices = [("802.1ad", Tpid::Service), ("802.1q", Tpid::Customer)];
    choice(value, &choices)
}

fn frames_per_s(value: &DeValue<'_>, key: &str, example: u32) -> Parsed<u32> {
    let range = 0..=u32::MAX.into();
    integer(value, range, &format!("{key} = {example}")).map(|frames| frames as u32)
}

fn bpdus(value: &DeValue<'_>) -> Parsed<BpduPolicy> {
    choice(
        value,
        &[
            ("pass", BpduPolicy::Pass),
            ("drop", BpduPolicy::Drop),
            ("guard", BpduPolicy::Guard),
        ],
    )
}

fn guard(value: &DeValue<'_>) -> Parsed<Guard> {
    choice(value, &[("allow", Guard::Allow), ("drop", Guard::Drop)])
}

fn sources(value: &DeValue<'_>) -> Parsed<Sources> {
    const EXAMPLE: &str = "sources = [\"02:00:5e:10:00:01\"]";
    let DeValue::Array(items) = value else {
        return Err(wrong_type(value, "an array", EXAMPLE));
    };
    let remedy = format!("write for example `{EXAMPLE}`, or leave it out");
    let macs: Result<_, _> = items
        .iter()
        .map(|item| mac_address(string(item.get_ref(), EXAMPLE)?, &remedy))
        .collect();
    Sources::new(macs?).map_err(|error| format!("{error}; {remedy}"))
}

#[cfg(test)]
mod tests;
