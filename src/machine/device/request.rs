// SPDX-License-Identifier: MIT OR Apache-2.0
//! The requested state of the device.

use ipnet::IpNet;

use crate::{io::tap::Backend, machine::link::PortVlans};

/// The requested state of the device.
#[derive(Clone, Debug)]
pub(crate) struct DeviceRequest {
    /// The name of the interface; it is created unless a TAP of this name exists. A NIC exists.
    pub name: String,
    /// The interface to the kernel. With [`Backend::Packet`], only `queues` and `up` count besides.
    pub backend: Backend,
    /// How many queues, if the device can have several.
    pub queues: usize,
    /// One queue more, for flows that send little, if the device can have it.
    pub express: bool,
    /// The MAC address. None leaves an adopted device its own.
    pub mac: Option<[u8; 6]>,
    /// The MAC address of a new device when `mac` is None; the same after every start.
    pub default_mac: [u8; 6],
    /// The overlay MTU: bytes behind the Ethernet header.
    pub mtu: u32,
    /// The bridge to join. None leaves the device in its bridge, if any.
    pub bridge: Option<String>,
    /// Whether the bridge may appear later: until then the device waits, without carrier.
    pub waits_for_bridge: bool,
    /// Its VLANs as a port of that bridge. None leaves the bridge's defaults.
    pub bridge_vlans: Option<PortVlans>,
    /// The addresses of the device.
    pub addresses: Vec<IpNet>,
    /// Whether a NIC is set down while the carrier is off.
    pub link_loss_forwarding: bool,
    /// What IPv6 does by itself.
    pub ipv6: Ipv6Mode,
    /// Whether the device is to be up.
    pub up: bool,
}

/// What IPv6 does by itself on the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ipv6Mode {
    /// Nothing: no address and no frame.
    Silent,
    /// A link-local address. Router advertisements are ignored.
    LinkLocal,
    /// Addresses, routes and routers from router advertisements, even where this machine is a router.
    AcceptAdvertisements,
}
