// SPDX-License-Identifier: MIT OR Apache-2.0
//! Changes that other programs made to the device.

use crate::machine::link::ForwardChain;

/// A change that another program made and patchcord took back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Drift {
    /// `bridge`, `MTU` and so on.
    pub what: String,
    /// The value that was found.
    pub found: String,
    /// The value that it has again.
    pub wanted: String,
}

/// Warnings about the bridge that were logged, so that each is logged once.
#[derive(Debug, Default)]
pub(super) struct Told {
    pub(super) wider: Option<(String, u32)>,
    pub(super) netfilter: Option<String>,
    /// The chains that the last warning named.
    pub(super) forward: Option<Vec<ForwardChain>>,
}

/// As `ip` shows a MAC address.
pub(super) fn hex(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}
