// SPDX-License-Identifier: MIT OR Apache-2.0
//! The interface of a session, as a provider sees it.

use crate::machine::device::DeviceInfo;

/// The interface of a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its index in the network namespace.
    pub index: u32,
    /// Its name, for log lines.
    pub name: String,
}

impl Interface {
    pub(super) fn of(info: &DeviceInfo) -> Self {
        Self {
            index: info.index,
            name: info.name.clone(),
        }
    }
}
