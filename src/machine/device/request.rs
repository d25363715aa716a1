// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the device shall be.

use ipnet::IpNet;

use crate::{io::tap::Backend, machine::link::PortVlans};

/// What the device shall be.
#[derive(Clone, Debug)]
pub(crate) struct DeviceRequest {
    /// The name of the interface; it is made unless a TAP of this name exists. A NIC exists.
    pub name: String,
    /// The way to the kernel. With [`Backend::Packet`] only `queues` and `up` count besides.
    pub backend: Backend,
    /// How many queues, if the device can have several.
    pub queues: usize,
    /// The MAC address. None leaves an adopted device its own.
    pub mac: Option<[u8; 6]>,
    /// The MAC address of a new device when `mac` is None; the same after every start.
    pub default_mac: [u8; 6],
    /// The overlay MTU: bytes behind the Ethernet header.
    pub mtu: u32,
    /// The bridge to join. None leaves the device where it is.
    pub bridge: Option<String>,
    /// Whether the bridge may come later: the device waits for it then, without carrier.
    pub waits_for_bridge: bool,
    /// The VLANs to have as a port of that bridge. None leaves those that a bridge gives its ports.
    pub bridge_vlans: Option<PortVlans>,
    /// The addresses to have.
    pub addresses: Vec<IpNet>,
    /// Whether a NIC is set down while the carrier is off.
    pub link_loss_forwarding: bool,
    /// What IPv6 does by itself.
    pub ipv6: Ipv6Mode,
    /// Whether the device shall be up.
    pub up: bool,
}

/// What IPv6 does by itself on the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ipv6Mode {
    /// Nothing: no address and no frame.
    Silent,
    /// A link-local address. Whatever routers on the link advertise is ignored.
    LinkLocal,
    /// Addresses, routes and routers from router advertisements, even where this machine is a router.
    AcceptAdvertisements,
}
