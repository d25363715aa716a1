// SPDX-License-Identifier: MIT OR Apache-2.0
//! The number of a port.

/// A port of the switch: the TAP, or one peer. What stands behind a number is up to the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PortId(pub u16);

impl PortId {
    /// The local port. Peers are numbered from 1.
    pub const TAP: Self = Self(0);
}
