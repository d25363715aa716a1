// SPDX-License-Identifier: MIT OR Apache-2.0
//! The device's attributes and state, as far as patchcord and the kernel know them.

use crate::machine::link::{KernelCounters, PortReport};

/// The attributes of the device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// The name of the interface.
    pub name: String,
    /// Its index.
    pub index: u32,
    /// Its MAC address.
    pub mac: [u8; 6],
    /// Its overlay MTU.
    pub mtu: u32,
    /// The bridge that it is in.
    pub bridge: Option<String>,
    /// `vnet`, `plain` or `packet`.
    pub backend: &'static str,
    /// Whether it existed before and will stay.
    pub adopted: bool,
    /// Whether it is administratively up.
    pub up: bool,
    /// Whether its carrier is on, as its users see it.
    pub carrier: bool,
    /// The bridge that does not exist yet, and that the device joins when it appears.
    pub waits_for: Option<String>,
    /// Whether another program moved it to another network namespace.
    pub moved: bool,
}

/// The state of the device in the kernel now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DeviceReport {
    /// Its attributes.
    pub info: DeviceInfo,
    /// Its state as a port of its bridge.
    pub port: Option<PortReport>,
    /// The counters of the kernel.
    pub counters: KernelCounters,
    /// What keeps frames from passing it, with a remedy, for users.
    pub remedies: Vec<String>,
}

impl DeviceReport {
    /// The part that is known without asking the kernel.
    pub(crate) fn of(info: DeviceInfo) -> Self {
        Self {
            info,
            port: None,
            counters: KernelCounters::default(),
            remedies: Vec::new(),
        }
    }
}
