// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the device is, and what the kernel says of it.

use crate::machine::link::{KernelCounters, PortReport};

/// What the device is.
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
    /// Whether its cable is in, as its users see it.
    pub carrier: bool,
    /// The bridge that is not there, and is joined when it comes.
    pub waits_for: Option<String>,
    /// Whether somebody moved it to another network namespace.
    pub moved: bool,
}

/// What the kernel says of the device now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DeviceReport {
    /// What it is.
    pub info: DeviceInfo,
    /// What its bridge does with it.
    pub port: Option<PortReport>,
    /// What the kernel counted.
    pub counters: KernelCounters,
    /// What keeps frames from passing it, for people, with what to do.
    pub remedies: Vec<String>,
}

impl DeviceReport {
    /// What is known without asking the kernel.
    pub(crate) fn of(info: DeviceInfo) -> Self {
        Self {
            info,
            port: None,
            counters: KernelCounters::default(),
            remedies: Vec::new(),
        }
    }
}
