// SPDX-License-Identifier: MIT OR Apache-2.0
//! What others changed of the device.

use crate::machine::link::ForwardChain;

/// A change that somebody else made, and that was taken back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Drift {
    /// `bridge`, `MTU` and so on.
    pub what: String,
    /// What it was found to be.
    pub found: String,
    /// What it is again.
    pub wanted: String,
}

/// What was told of the bridge, so that it is told once.
#[derive(Debug, Default)]
pub(super) struct Told {
    pub(super) wider: Option<(String, u32)>,
    pub(super) netfilter: Option<String>,
    /// What it was told for.
    pub(super) forward: Option<Vec<ForwardChain>>,
}

/// As `ip` shows a MAC address.
pub(super) fn hex(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}
