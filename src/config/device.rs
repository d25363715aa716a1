// SPDX-License-Identifier: MIT OR Apache-2.0
//! `[device]`: what it becomes, its keys, and how they are read. Pure.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;
use patchcord_bridge::{MacAddr, PortConfig, Vid, VidSet};
use toml::de::DeValue;

use super::error::Report;
use super::port;
use super::schema::{
    Effect::{Live, Restart},
    Key, Schema,
};
use super::section::Section;
use super::stations::Stations;
use super::value::{
    Parsed, choice, integer, interface_name, mac_address, shown, string, wrong_type,
};
use super::vlan::{vid, vids};

/// `[device]`: the TAP, or a NIC.
#[derive(Debug)]
pub struct DeviceConfig {
    /// `name`, or `nic`: 1 to 15 bytes that the kernel takes as an interface name.
    pub name: String,
    /// Whether it was `nic`: a NIC that exists, and keeps its MTU, addresses and so on. Only `mode` and
    /// `link-loss-forwarding` go with it.
    pub is_nic: bool,
    /// `mode`: [`Mode::Wire`] with `nic`.
    pub mode: Mode,
    /// `mtu`: the overlay MTU, 68 to 65521, 1500 when absent; 1280 or more with an IPv6 address. A
    /// NIC ignores it.
    pub mtu: u32,
    /// `bridge`: the Linux bridge to become a port of.
    pub bridge: Option<String>,
    /// `bridge-vlans` and `bridge-native`: the VLANs of the bridge port. Without both the bridge chooses.
    pub bridge_vlans: Option<BridgeVlans>,
    /// `mac`: a unicast address.
    pub mac: Option<MacAddr>,
    /// `addresses`: without duplicates.
    pub addresses: Vec<IpNet>,
    /// `accept-router-advertisements`: whether routers behind the tunnel configure this machine; false
    /// when absent.
    pub accept_router_advertisements: bool,
    /// `carrier`
    pub carrier: Carrier,
    /// `link-loss-forwarding`: whether a NIC is set down while the peer cannot be reached.
    pub link_loss_forwarding: bool,
    /// `backend`
    pub backend: Backend,
    /// `[device.port]`: its port of the switch.
    pub port: PortConfig,
}

/// The VLANs of a port of a Linux bridge: these and no others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BridgeVlans {
    /// `bridge-vlans`: VLANs whose frames are tagged at that port.
    pub tagged: VidSet,
    /// `bridge-native`: the VLAN whose frames are untagged there.
    pub native: Option<Vid>,
}

/// How frames pass between the device and the peers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// A switch, which learns where stations are.
    #[default]
    Switch,
    /// No switch: each frame of the device goes to the one peer, and each frame of the peer to the device.
    Wire,
}

impl Mode {
    /// Its name in the file.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Switch => "switch",
            Self::Wire => "wire",
        }
    }
}

/// When the device has carrier.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Carrier {
    /// While a peer can be reached.
    #[default]
    Peer,
    /// From the start to the end.
    Always,
}

/// How the TAP is opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Backend {
    /// `vnet` where the kernel can, else `plain`.
    #[default]
    Auto,
    /// With the virtio header: offloads and several queues.
    Vnet,
    /// One queue, no offloads: any kernel.
    Plain,
}

pub(super) const SCHEMA: Schema = Schema {
    name: "device",
    header: "[device]",
    about: "The interface that carries the frames: a TAP, or a network card.",
    keys: &[
        Key {
            name: "name",
            kind: "string",
            default: "required, or `nic`",
            range: "1 to 15 bytes",
            effect: Restart,
            about: "TAP interface; made, or adopted if it exists.",
        },
        Key {
            name: "nic",
            kind: "string",
            default: "none",
            range: "1 to 15 bytes",
            effect: Restart,
            about: "In place of `name`: a network card that is one end of a wire; the tunnel waits \
                    for one that does not exist. It keeps its MTU, addresses and so on; only `mode` \
                    and `link-loss-forwarding` go with it.",
        },
        Key {
            name: "mode",
            kind: "string",
            default: "`\"switch\"`; with `nic` `\"wire\"`",
            range: "`switch`, `wire`",
            effect: Restart,
            about: "`wire`: no switch; every frame goes to the one peer that is allowed, and none is \
                    inspected.",
        },
        Key {
            name: "mtu",
            kind: "integer",
            default: "`1500`",
            range: "68 to 65521; with IPv6 1280 and more",
            effect: Live,
            about: "Overlay MTU; two VLAN tags fit in addition up to 65513. Give both ends the same.",
        },
        Key {
            name: "bridge",
            kind: "string",
            default: "none",
            range: "1 to 15 bytes",
            effect: Live,
            about: "Linux bridge to become a port of; the tunnel waits for one that does not exist.",
        },
        Key {
            name: "bridge-vlans",
            kind: "integer, string or array",
            default: "what the bridge gives its ports",
            range: "1 to 4094, ranges",
            effect: Live,
            about: "VLANs that have a tag at that port, in a bridge with `vlan_filtering 1`: \
                    `\"10, 20-29\"`. The port has these, and that of `bridge-native`, and no others.",
        },
        Key {
            name: "bridge-native",
            kind: "integer",
            default: "none beside `bridge-vlans`",
            range: "1 to 4094",
            effect: Live,
            about: "VLAN that has no tag at that port.",
        },
        Key {
            name: "mac",
            kind: "string",
            default: "derived from key and name",
            range: "unicast",
            effect: Live,
            about: "Ethernet address, the same at each start; an adopted device keeps its own unless \
                    this is set.",
        },
        Key {
            name: "addresses",
            kind: "array",
            default: "none",
            range: "`ADDRESS/PREFIX`",
            effect: Live,
            about: "IP addresses of the interface, for example `[\"10.99.0.1/24\", \"fd00::1/64\"]`.",
        },
        Key {
            name: "accept-router-advertisements",
            kind: "boolean",
            default: "`false`",
            range: "",
            effect: Live,
            about: "Whether routers of the far LAN configure this machine by IPv6: addresses, routes, \
                    a default router. Without it the interface ignores router advertisements and \
                    redirects.",
        },
        Key {
            name: "carrier",
            kind: "string",
            default: "`\"peer\"`",
            range: "`peer`, `always`",
            effect: Live,
            about: "When the interface has carrier: while a peer can be reached, or always. With \
                    `always`, a bridge with spanning tree does not hold the port for 30 s after each \
                    cut of the path.",
        },
        Key {
            name: "link-loss-forwarding",
            kind: "boolean",
            default: "`false`",
            range: "with `nic`",
            effect: Restart,
            about: "Set the card down while the peer cannot be reached.",
        },
        Key {
            name: "backend",
            kind: "string",
            default: "`\"auto\"`",
            range: "`auto`, `vnet`, `plain`",
            effect: Restart,
            about: "How the TAP is opened: `vnet` has offloads and several queues, `plain` runs on any \
                    kernel, `auto` takes `vnet` where the kernel can.",
        },
    ],
    port: Some(&port::OF_DEVICE),
};

/// With an empty name where an error about the name was reported.
pub(super) fn read(
    section: &Section<'_, '_>,
    stations: &mut Stations,
    report: &mut Report<'_>,
) -> DeviceConfig {
    let is_nic = section.holds("nic");
    let name = if is_nic {
        section.read("nic", report, interface_name)
    } else {
        let remedy = "name the interface, for example `name = \"pc0\"`, or a network card that \
                      is one end of a wire, for example `nic = \"eth1\"`";
        section.require("name", report, remedy, interface_name)
    };
    let mode = section.read("mode", report, mode);
    let overlay_mtu = section.read("mtu", report, overlay_mtu).unwrap_or(1500);
    let bridge = section.read("bridge", report, interface_name);
    let bridge_vlans = bridge_vlans(section, report);
    let mac = section.read("mac", report, mac);
    let addresses = section
        .read("addresses", report, addresses)
        .unwrap_or_default();
    let accept_router_advertisements = section.read_flag("accept-router-advertisements", report);
    let carrier = section.read("carrier", report, carrier).unwrap_or_default();
    let link_loss_forwarding = section.read_flag("link-loss-forwarding", report);
    let backend = section.read("backend", report, backend).unwrap_or_default();
    let port = port::read(&section.nested(&port::OF_DEVICE, report), stations, report);
    DeviceConfig {
        name: name.unwrap_or_default(),
        is_nic,
        mode: mode.unwrap_or(if is_nic { Mode::Wire } else { Mode::Switch }),
        mtu: overlay_mtu,
        bridge,
        bridge_vlans,
        mac,
        addresses,
        accept_router_advertisements: accept_router_advertisements.unwrap_or(false),
        carrier,
        link_loss_forwarding: link_loss_forwarding.unwrap_or(false),
        backend,
        port,
    }
}

/// The VLANs of the bridge port; none if the file has neither key.
fn bridge_vlans(section: &Section<'_, '_>, report: &mut Report<'_>) -> Option<BridgeVlans> {
    let tagged = section.read("bridge-vlans", report, vids);
    let native = section.read("bridge-native", report, |value| {
        vid(value, 1, "bridge-native = 1")
    });
    (tagged.is_some() || native.is_some()).then(|| BridgeVlans {
        tagged: tagged.unwrap_or(VidSet::EMPTY),
        native,
    })
}

fn overlay_mtu(value: &DeValue<'_>) -> Parsed<u32> {
    // The kernel's limit for a TAP: a frame with its header still fits in 65535 bytes.
    integer(value, 68..=65521, "mtu = 1500").map(|mtu| mtu as u32)
}

fn mac(value: &DeValue<'_>) -> Parsed<MacAddr> {
    let text = string(value, "mac = \"02:00:5e:10:00:01\"")?;
    let remedy = "write for example `02:00:5e:10:00:01`, or leave it out";
    let mac = mac_address(text, remedy)?;
    if mac.0 == [0xff; 6] {
        return Err(format!("`{mac}` is the broadcast address; {remedy}"));
    }
    if mac.is_group() {
        return Err(format!(
            "`{mac}` is a multicast address (odd first byte); {remedy}"
        ));
    }
    if mac.is_zero() {
        return Err(format!("`{mac}` is all zero; {remedy}"));
    }
    Ok(mac)
}

fn addresses(value: &DeValue<'_>) -> Parsed<Vec<IpNet>> {
    const EXAMPLE: &str = "addresses = [\"10.99.0.1/24\"]";
    let DeValue::Array(items) = value else {
        return Err(wrong_type(value, "an array", EXAMPLE));
    };
    let mut addresses = Vec::new();
    for item in items.iter() {
        let net = address(string(item.get_ref(), EXAMPLE)?)?;
        if addresses
            .iter()
            .any(|seen: &IpNet| seen.addr() == net.addr())
        {
            return Err(format!("`{}` is listed twice; remove one", net.addr()));
        }
        addresses.push(net);
    }
    Ok(addresses)
}

fn address(text: &str) -> Parsed<IpNet> {
    if let Ok(ip) = text.parse::<IpAddr>() {
        let prefix = if ip.is_ipv4() { 24 } else { 64 };
        return Err(format!(
            "`{ip}` has no prefix length; write for example `{ip}/{prefix}`"
        ));
    }
    let remedy = "write for example `10.99.0.1/24`";
    let net: IpNet = text
        .parse()
        .map_err(|_| format!("{} is not ADDRESS/PREFIX; {remedy}", shown(text)))?;
    let broadcast = IpAddr::V4(Ipv4Addr::BROADCAST);
    if net.addr().is_multicast() || net.addr().is_unspecified() || net.addr() == broadcast {
        return Err(format!("`{net}` cannot be the address of a host; {remedy}"));
    }
    if net.addr() == net.broadcast() && net.addr().is_ipv4() && net.prefix_len() < 31 {
        return Err(format!(
            "`{net}` is the broadcast address of its network; {remedy}"
        ));
    }
    Ok(net)
}

fn backend(value: &DeValue<'_>) -> Parsed<Backend> {
    choice(
        value,
        &[
            ("auto", Backend::Auto),
            ("vnet", Backend::Vnet),
            ("plain", Backend::Plain),
        ],
    )
}

fn carrier(value: &DeValue<'_>) -> Parsed<Carrier> {
    choice(
        value,
        &[("peer", Carrier::Peer), ("always", Carrier::Always)],
    )
}

fn mode(value: &DeValue<'_>) -> Parsed<Mode> {
    choice(value, &[("switch", Mode::Switch), ("wire", Mode::Wire)])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::testing::with_device;

    #[test]
    fn a_nic_is_one_end_of_a_wire() {
        for (device, mode, is_nic) in [
            ("nic = 'eth1'", Mode::Wire, true),
            ("nic = 'eth1'\nmode = 'wire'", Mode::Wire, true),
            ("name = 'eth1'\nmode = 'wire'", Mode::Wire, false),
            ("name = 'eth1'\nmode = 'switch'", Mode::Switch, false),
        ] {
            let device = with_device(device, 1).unwrap().device;
            assert!(!device.link_loss_forwarding);
            let seen = (device.name.as_str(), device.mode, device.is_nic);
            assert_eq!(seen, ("eth1", mode, is_nic));
        }
    }

    #[test]
    fn a_port_of_a_bridge_may_have_vlans_of_its_own() {
        for (keys, expected) in [
            ("", None),
            (
                "bridge-vlans = '10, 20-22'",
                Some((vec![10, 20, 21, 22], None)),
            ),
            ("bridge-native = 5", Some((vec![], Some(5)))),
            (
                "bridge-vlans = [10]\nbridge-native = 5",
                Some((vec![10], Some(5))),
            ),
        ] {
            let device = with_device(&format!("name = 'pc0'\nbridge = 'br0'\n{keys}"), 1);
            let vlans = device.unwrap().device.bridge_vlans;
            let seen = vlans.map(|vlans| {
                let tagged: Vec<_> = vlans.tagged.iter().map(Vid::value).collect();
                (tagged, vlans.native.map(Vid::value))
            });
            assert_eq!(seen, expected, "{keys}");
        }
    }

    #[test]
    fn a_tap_is_a_port_of_a_bridge_or_a_station() {
        let device = with_device("name = 'pc0'\nbridge = 'br-lan'", 1)
            .unwrap()
            .device;
        assert_eq!(device.bridge.as_deref(), Some("br-lan"));
        assert!(device.addresses.is_empty());
    }
}
