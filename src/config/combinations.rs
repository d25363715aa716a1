// SPDX-License-Identifier: MIT OR Apache-2.0
//! What keys and sections demand of each other: refuses combinations that cannot work, as the file alone
//! shows. Those that can work, but are rarely meant, are in `warnings`. Pure.

use std::collections::HashSet;
use std::hash::Hash;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::ops::Range;

use patchcord_bridge::{PortVlans, Vid};

use super::device::{DeviceConfig, Mode};
use super::error::Report;
use super::peer::{Endpoint, PeerConfig, Spans};
use super::section::Section;
use super::tunnel::TunnelConfig;

/// The MTU below which the kernel drops every IPv6 address of an interface.
const IPV6_MIN_MTU: u32 = 1280;

pub(super) fn check_device(
    section: &Section<'_, '_>,
    device: &DeviceConfig,
    peers: usize,
    report: &mut Report<'_>,
) {
    if device.mode == Mode::Wire && peers > 1 {
        refuse_third_end(section, peers, report);
    }
    if device.is_nic {
        refuse_beside_nic(section, device, report);
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
            let problem = "applies to a bridge port; write `bridge` too, or remove it";
            section.refuse(key, report, problem.into());
        }
    }
    if device.accept_router_advertisements {
        refuse_advertisements(section, device, report);
    }
    if !device.addresses.is_empty() {
        check_station(section, device, report);
    }
}

/// Whether there is a VLAN that both ports have.
fn share_a_vlan(one: &PortVlans, other: &PortVlans) -> bool {
    let mut all = (0..u16::MAX).map_while(Vid::new);
    all.any(|vid| one.has(vid) && other.has(vid))
}

fn refuse_third_end(section: &Section<'_, '_>, peers: usize, report: &mut Report<'_>) {
    let (key, other) = match section.holds("mode") {
        true => ("mode", "write `mode = \"switch\"`"),
        false => ("nic", "make a TAP with `name` instead of `nic`"),
    };
    let problem = format!(
        "a wire has two ends, and there are {peers} peers; leave one `[[peer]]`, or {other}"
    );
    section.refuse(key, report, problem);
}

/// A NIC keeps its settings, so no key may set them.
fn refuse_beside_nic(section: &Section<'_, '_>, device: &DeviceConfig, report: &mut Report<'_>) {
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
            "this machine is not a station of the wire; remove them, or make a TAP with `name`",
        ),
        (
            "accept-router-advertisements",
            "this machine is not a station of the wire; remove it, or make a TAP with `name`",
        ),
        (
            "carrier",
            "a NIC has the carrier of its cable; remove it, or make a TAP with `name`",
        ),
        ("backend", "it is for a TAP; remove it"),
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

/// Only a station that speaks IPv6 takes router advertisements.
fn refuse_advertisements(
    section: &Section<'_, '_>,
    device: &DeviceConfig,
    report: &mut Report<'_>,
) {
    let problem = if device.bridge.is_some() {
        "needs a station, and a bridge port is not one; remove it, or set \
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

/// A device with addresses is a station: its frames must pass its own port.
fn check_station(section: &Section<'_, '_>, device: &DeviceConfig, report: &mut Report<'_>) {
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
            "this machine does not answer at an address of a bridge port; give it to the bridge \
             (`ip address add {net} dev {bridge}`, or in what configures the network) and remove it, \
             or remove `bridge`"
        );
        section.refuse("addresses", report, problem);
    } else if port.vlans.untagged_vid().is_none() {
        let problem = format!(
            "this machine sends untagged frames at `{name}`, which the trunk of [device.port] drops; \
             write `native` there, or give the address to an interface of the VLAN (`ip link add \
             link {name} name {name}.10 type vlan id 10`) and remove it"
        );
        section.refuse("addresses", report, problem);
    }
    if let (Some(mac), Some(sources)) = (device.mac, &port.allowed_sources)
        && !sources.contains(mac)
    {
        let problem = format!(
            "`{mac}` is not among the `sources` of [device.port], so every frame of this machine is \
             dropped; add it there"
        );
        section.refuse("mac", report, problem);
    }
}

/// Wire mode has no guards. A file that asks for one is refused, not taken without effect.
pub(super) fn refuse_beside_wire(
    is_nic: bool,
    switch: &Section<'_, '_>,
    device: &Section<'_, '_>,
    peers: &[Section<'_, '_>],
    report: &mut Report<'_>,
) {
    let other = match is_nic {
        true => "make a TAP with `name` instead of `nic`",
        false => "write `mode = \"switch\"`",
    };
    let problem =
        format!("wire mode inspects no frame, so this has no effect; remove it, or {other}");
    switch.refuse_whole(report, problem.clone());
    let ends = std::iter::once(device).chain(peers);
    for end in ends.filter(|end| end.holds("port")) {
        end.refuse("port", report, problem.clone());
    }
}

pub(super) fn check_initiator(
    tunnel: &Section<'_, '_>,
    peers: &[Section<'_, '_>],
    report: &mut Report<'_>,
) {
    if peers.is_empty() || tunnel.has("listen") || peers.iter().any(|p| p.has("endpoint")) {
        return;
    }
    let problem = "is missing and no peer has an `endpoint`, so neither side can initiate; \
                   write `listen = \"[::]:51830\"` or give a peer an `endpoint`";
    tunnel.refuse("listen", report, problem.into());
}

pub(super) fn check_peers_fit(
    tunnel: &TunnelConfig,
    peers: &[(Spans, PeerConfig)],
    report: &mut Report<'_>,
) {
    let own = tunnel.private_key.public_key();
    for (spans, peer) in peers {
        if peer.public_key == own {
            let problem = "is this tunnel's own public key; write the peer's, which \
                           `patchcord pubkey` prints there";
            report.add(&spans.public_key, "[[peer]] public-key", problem.into());
        }
        if let Some(Endpoint::Addr(endpoint)) = peer.endpoint
            && !is_reachable(tunnel.listen, endpoint)
        {
            let listen = tunnel.listen;
            let problem = format!(
                "`{endpoint}` cannot be reached from `listen = \"{listen}\"`, which is of the \
                 other IP version; write `listen = \"[::]:{}\"`",
                listen.port()
            );
            report.add(&spans.endpoint, "[[peer]] endpoint", problem);
        }
        if let Some(Endpoint::Addr(endpoint)) = peer.endpoint
            && is_own(tunnel.listen, endpoint)
        {
            let problem = format!("`{endpoint}` is where this tunnel listens; write the peer's");
            report.add(&spans.endpoint, "[[peer]] endpoint", problem);
        }
    }
}

/// Whether datagrams to `endpoint` come back to the socket that listens at `listen`.
fn is_own(listen: SocketAddr, endpoint: SocketAddr) -> bool {
    let (own, ip) = (listen.ip().to_canonical(), endpoint.ip().to_canonical());
    let is_here = own == ip || (own.is_unspecified() && ip.is_loopback());
    listen.port() == endpoint.port() && is_here
}

/// Whether a socket bound to `listen` can send to `endpoint`.
fn is_reachable(listen: SocketAddr, endpoint: SocketAddr) -> bool {
    match listen.ip() {
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => true,
        ip => ip.is_ipv4() == endpoint.is_ipv4(),
    }
}

/// Without a hub, a peer's frames go to the device only.
pub(super) fn check_ports_meet(
    device: &DeviceConfig,
    peers: &[(Spans, PeerConfig)],
    report: &mut Report<'_>,
) {
    for (spans, peer) in peers {
        if !share_a_vlan(&device.port.vlans, &peer.port.vlans) {
            let problem = format!(
                "peer `{}` shares no VLAN with [device.port], so no frame passes between them; \
                 give both the same one, by its number inside the switch",
                peer.name
            );
            report.add(&spans.port, "[peer.port]", problem);
        }
    }
}

pub(super) fn check_peers_differ(peers: &[(Spans, PeerConfig)], report: &mut Report<'_>) {
    let keys = peers
        .iter()
        .map(|(spans, peer)| (&peer.public_key, &spans.public_key));
    for (span, _) in repeated(keys) {
        let problem = "is also the key of an earlier peer; each peer has its own key pair";
        report.add(&span, "[[peer]] public-key", problem.into());
    }
    let names = peers.iter().map(|(spans, peer)| (&peer.name, &spans.name));
    for (span, name) in repeated(names) {
        let problem = format!("`{name}` is also the name of an earlier peer; rename one");
        report.add(&span, "[[peer]] name", problem);
    }
}

/// Every value but the first of those that are equal.
fn repeated<'a, T: Eq + Hash>(
    values: impl Iterator<Item = (&'a T, &'a Range<usize>)>,
) -> Vec<(Range<usize>, &'a T)> {
    let mut seen = HashSet::new();
    values
        .filter(|(value, _)| !seen.insert(*value))
        .map(|(value, span)| (span.clone(), value))
        .collect()
}

#[cfg(test)]
mod tests {
    use crate::config::testing::{PEER_A, parse, with_device};

    #[test]
    fn link_loss_is_forwarded_by_a_nic_only() {
        let nic = with_device("nic = 'eth1'\nlink-loss-forwarding = true", 1);
        assert!(nic.unwrap().device.link_loss_forwarding);
        let tap = with_device(
            "name = 'pc0'\nmode = 'wire'\nlink-loss-forwarding = true",
            1,
        );
        let text = tap.unwrap_err().to_string();
        assert!(text.contains("goes with `nic` only"), "{text}");
    }

    #[test]
    fn what_does_not_go_with_a_nic_or_a_wire_is_said_with_its_remedy() {
        let nic = "does not go with `nic`: ";
        for (device, peers, key, problem) in [
            ("nic = 'eth1'\nname = 'pc0'", 1, "name", format!("{nic}the device is the NIC; remove one of the two")),
            ("nic = 'eth1'\nbridge = 'br0'", 1, "bridge", format!("{nic}its frames go to the peer alone; remove it, or make a TAP with `name`")),
            ("nic = 'eth1'\naddresses = []", 1, "addresses", format!("{nic}this machine is not a station of the wire; remove them, or make a TAP with `name`")),
            ("nic = 'eth1'\nmac = '02:00:5e:10:00:01'", 1, "mac", format!("{nic}a NIC keeps its own; remove it")),
            ("nic = 'eth1'\nmtu = 1500", 1, "mtu", format!("{nic}a NIC keeps its own; remove it, and use `ip link set NIC mtu …`")),
            ("nic = 'eth1'\ncarrier = 'always'", 1, "carrier", format!("{nic}a NIC has the carrier of its cable; remove it, or make a TAP with `name`")),
            ("nic = 'eth1'\naccept-router-advertisements = true", 1, "accept-router-advertisements", format!("{nic}this machine is not a station of the wire; remove it, or make a TAP with `name`")),
            ("name = 'pc0'\nbridge = 'br0'\naccept-router-advertisements = true", 1, "accept-router-advertisements", "needs a station, and a bridge port is not one; remove it, or set `net.ipv6.conf.BRIDGE.accept_ra` of the bridge".to_owned()),
            ("name = 'pc0'\nbridge = 'br0'\naddresses = ['10.0.0.1/24', 'fd00::1/64']", 1, "addresses", "this machine does not answer at an address of a bridge port; give it to the bridge (`ip address add 10.0.0.1/24 dev br0`, or in what configures the network) and remove it, or remove `bridge`".to_owned()),
            ("name = 'pc0'\nbridge-vlans = '10'", 1, "bridge-vlans", "applies to a bridge port; write `bridge` too, or remove it".to_owned()),
            ("name = 'pc0'\nbridge = 'br0'\nbridge-native = 0", 1, "bridge-native", "`0` is out of range; write 1 to 4094".to_owned()),
            ("nic = 'eth1'\nbridge-native = 1", 1, "bridge-native", format!("{nic}its frames go to the peer alone; remove it, or make a TAP with `name`")),
            ("name = 'pc0'\naddresses = ['10.0.0.1/24']\nport.trunk = '10'", 1, "addresses", "this machine sends untagged frames at `pc0`, which the trunk of [device.port] drops; write `native` there, or give the address to an interface of the VLAN (`ip link add link pc0 name pc0.10 type vlan id 10`) and remove it".to_owned()),
            ("name = 'pc0'\nmac = '02:00:00:00:00:01'\naddresses = ['10.0.0.1/24']\nport.sources = ['02:00:00:00:00:02']", 1, "mac", "`02:00:00:00:00:01` is not among the `sources` of [device.port], so every frame of this machine is dropped; add it there".to_owned()),
            ("name = 'pc0'\nmtu = 1000\naccept-router-advertisements = true", 1, "accept-router-advertisements", "needs IPv6, which needs an MTU of 1280, not 1000; remove it".to_owned()),
            ("nic = 'eth1'\nbackend = 'vnet'", 1, "backend", format!("{nic}it is for a TAP; remove it")),
            ("nic = 'eth1'\nmode = 'switch'", 1, "mode", "does not go with `nic`, which is one end of a wire; write `wire`, or leave it out".to_owned()),
            ("name = 'pc0'\nmode = 'wire'", 2, "mode", "a wire has two ends, and there are 2 peers; leave one `[[peer]]`, or write `mode = \"switch\"`".to_owned()),
            ("mode = 'wire'\nnic = 'eth1'", 2, "mode", "a wire has two ends, and there are 2 peers; leave one `[[peer]]`, or write `mode = \"switch\"`".to_owned()),
            ("mtu = 1500\nname = 'pc0'\nmode = 'cord'", 1, "mode", "`cord` is not a choice; write `switch` or `wire`".to_owned()),
        ] {
            let errors = with_device(device, peers).unwrap_err();
            let seen: Vec<_> = errors.iter().map(|error| (error.key(), error.problem())).collect();
            let key = format!("[device] {key}");
            assert_eq!(seen, [(key.as_str(), problem.as_str())], "{device}");
        }
        for (device, other) in [
            ("nic = 'eth1'", "make a TAP with `name` instead of `nic`"),
            ("name = 'pc0'\nmode = 'wire'", "write `mode = \"switch\"`"),
        ] {
            let policy = "[device.port]\nspoof-guard = true\n[switch]\nhub = false";
            let errors = with_device(&format!("{device}\n{policy}"), 1).unwrap_err();
            let problem = format!(
                "wire mode inspects no frame, so this has no effect; remove it, or {other}"
            );
            let seen: Vec<_> = errors
                .iter()
                .map(|error| (error.key(), error.problem()))
                .collect();
            let expected = ["[device] port", "[switch]"].map(|key| (key, problem.as_str()));
            assert_eq!(seen, expected, "{device}");
        }
        let errors = with_device("nic = 'eth1'", 2).unwrap_err();
        let expected = "/etc/patchcord/site-a.toml:6:7: [device] nic: a wire has two ends, and there \
                        are 2 peers; leave one `[[peer]]`, or make a TAP with `name` instead of `nic`";
        assert_eq!(errors.to_string(), expected);
    }

    #[test]
    fn a_peer_without_a_vlan_of_the_device_is_refused_unless_there_is_a_hub() {
        let file = |device: &str, peer: &str, hub: bool| {
            parse(&format!(
                "[tunnel]\nprivate-key-file = 'a.key'\nlisten = '[::]:1'\n\
                 [device]\nname = 'pc0'\n{device}\n[[peer]]\nname = 'b'\npublic-key = '{PEER_A}'\n\
                 {peer}\n[switch]\nhub = {hub}"
            ))
        };
        for (device, peer, is_refused) in [
            ("port.access = 10", "port.trunk = '20-29'", true),
            (
                "port.access = 10",
                "port.trunk = '20-29'\nport.native = 10",
                false,
            ),
            ("port.tunnel = 200", "port.access = 100", true),
            ("port.trunk = '10'", "port.access = 0", true),
            ("port.trunk = '10'", "", false),
            ("", "port.trunk = '10'", false),
            (
                "port.trunk = '10'\nport.translate = { 110 = 10 }",
                "port.access = 110",
                true,
            ),
        ] {
            assert!(file(device, peer, true).is_ok(), "{device}, {peer}");
            let seen = file(device, peer, false).map_err(|errors| errors.to_string());
            let expected = "[peer.port]: peer `b` shares no VLAN with [device.port]";
            match seen {
                Ok(_) => assert!(!is_refused, "{device}, {peer}"),
                Err(errors) => assert!(is_refused && errors.contains(expected), "{errors}"),
            }
        }
    }
}
