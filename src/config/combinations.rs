// SPDX-License-Identifier: MIT OR Apache-2.0
//! What one key of `[device]` or of a port demands of another, where it is known from the file alone that
//! nothing would work. What may work, and is seldom meant, is in `warnings`. Pure.

use patchcord_bridge::{PortVlans, Vid};

use super::error::Report;
use super::model::{DeviceConfig, Mode};
use super::section::Section;

/// The MTU below which the kernel drops every IPv6 address of an interface.
const IPV6_MIN_MTU: u32 = 1280;

pub(super) fn check_device(
    section: &Section<'_, '_>,
    report: &mut Report<'_>,
    device: &DeviceConfig,
    peers: usize,
) {
    if device.mode == Mode::Wire && peers > 1 {
        refuse_third_end(section, report, peers);
    }
    if device.is_nic {
        refuse_beside_nic(section, report, device);
        return;
    }
    if device.link_loss_forwarding {
        let problem = "goes with `nic` only: a TAP has no carrier while the peer cannot be \
                       reached; remove it";
        section.refuse("link-loss-forwarding", report, problem.into());
    }
    if device.bridge.as_ref() == Some(&device.name) {
        let problem = "is the name of the device itself; name the bridge that it joins";
        section.refuse("bridge", report, problem.into());
    }
    for key in ["bridge-vlans", "bridge-native"] {
        if section.holds(key) && !section.holds("bridge") {
            let problem = "is about a port of a bridge; write `bridge` too, or remove it";
            section.refuse(key, report, problem.into());
        }
    }
    if device.accept_router_advertisements {
        refuse_advertisements(section, report, device);
    }
    if !device.addresses.is_empty() {
        check_station(section, report, device);
    }
}

/// Whether there is a VLAN that both ports have.
pub(super) fn share_a_vlan(one: &PortVlans, other: &PortVlans) -> bool {
    let mut all = (0..u16::MAX).map_while(Vid::new);
    all.any(|vid| one.has(vid) && other.has(vid))
}

fn refuse_third_end(section: &Section<'_, '_>, report: &mut Report<'_>, peers: usize) {
    let (key, other) = match section.holds("mode") {
        true => ("mode", "write `mode = \"switch\"`"),
        false => ("nic", "make a TAP with `name` instead of `nic`"),
    };
    let problem = format!(
        "a wire has two ends, and there are {peers} peers; leave one `[[peer]]`, or {other}"
    );
    section.refuse(key, report, problem);
}

/// Nothing of a NIC is ours to set.
fn refuse_beside_nic(section: &Section<'_, '_>, report: &mut Report<'_>, device: &DeviceConfig) {
    for (key, remedy) in [
        ("name", "the device is the NIC; remove one of the two"),
        (
            "mtu",
            "a NIC keeps its own; remove it, and use `ip link set NIC mtu …`",
        ),
        (
            "bridge",
            "its frames go to the peer alone; remove it, or make a TAP with `name`",
        ),
        (
            "bridge-vlans",
            "its frames go to the peer alone; remove it, or make a TAP with `name`",
        ),
        (
            "bridge-native",
            "its frames go to the peer alone; remove it, or make a TAP with `name`",
        ),
        ("mac", "a NIC keeps its own; remove it"),
        (
            "addresses",
            "this machine is no station of the wire; remove them, or make a TAP with `name`",
        ),
        (
            "accept-router-advertisements",
            "this machine is no station of the wire; remove it, or make a TAP with `name`",
        ),
        (
            "carrier",
            "a NIC has a cable of its own; remove it, or make a TAP with `name`",
        ),
        ("backend", "that is how a TAP is opened; remove it"),
    ] {
        if section.holds(key) {
            section.refuse(key, report, format!("does not go with `nic`: {remedy}"));
        }
    }
    if device.mode == Mode::Switch {
        let problem = "does not go with `nic`, which is one end of a wire; write `wire`, or leave \
                       it out";
        section.refuse("mode", report, problem.into());
    }
}

/// Router advertisements are for a station that speaks IPv6.
fn refuse_advertisements(
    section: &Section<'_, '_>,
    report: &mut Report<'_>,
    device: &DeviceConfig,
) {
    let problem = if device.bridge.is_some() {
        "needs a station, and a port of a bridge is none; remove it, or set \
         `net.ipv6.conf.BRIDGE.accept_ra` of the bridge"
            .to_owned()
    } else if device.mtu < IPV6_MIN_MTU {
        let mtu = device.mtu;
        format!("needs IPv6, which needs an MTU of {IPV6_MIN_MTU}, not {mtu}; remove it")
    } else {
        return;
    };
    section.refuse("accept-router-advertisements", report, problem);
}

/// A device with addresses is a station, which must be able to speak.
fn check_station(section: &Section<'_, '_>, report: &mut Report<'_>, device: &DeviceConfig) {
    let DeviceConfig {
        name,
        mtu,
        addresses,
        port,
        ..
    } = device;
    if *mtu < IPV6_MIN_MTU && addresses.iter().any(|net| net.addr().is_ipv6()) {
        let problem =
            format!("{mtu} is too small for the IPv6 address; write {IPV6_MIN_MTU} or more");
        section.refuse("mtu", report, problem);
    }
    if let (Some(bridge), Some(net)) = (&device.bridge, addresses.first()) {
        let problem = format!(
            "this machine does not answer at an address of a port of a bridge; give it to the bridge \
             (`ip address add {net} dev {bridge}`, or in what configures the network) and remove it, \
             or remove `bridge`"
        );
        section.refuse("addresses", report, problem);
    } else if port.vlans.untagged_vid().is_none() {
        let problem = format!(
            "this machine speaks at `{name}` without tags, which the trunk of [device.port] refuses; \
             write `native` there, or give the address to an interface of the VLAN (`ip link add \
             link {name} name {name}.10 type vlan id 10`) and remove it"
        );
        section.refuse("addresses", report, problem);
    }
    if let (Some(mac), Some(sources)) = (device.mac, &port.allowed_sources)
        && !sources.contains(mac)
    {
        let problem = format!(
            "`{mac}` is not among the `sources` of [device.port], so nothing that this machine sends \
             passes; add it there"
        );
        section.refuse("mac", report, problem);
    }
}
