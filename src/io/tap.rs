// SPDX-License-Identifier: MIT OR Apache-2.0
//! The TAP: Ethernet frames to and from the kernel.
//!
//! Three back-ends, one interface:
//!
//! | back-end | queues | frames | for |
//! |---|---|---|---|
//! | vnet   | one or more | behind a [`VnetHeader`], offloads possible | every kernel since 2.6.34 |
//! | plain  | one | bare, complete and checksummed | anything else, and comparisons |
//! | packet | one or more | as vnet | a NIC, or any other Ethernet interface that exists (`packet`) |
//!
//! A device that does not exist is created and disappears with its last queue. One that exists
//! already (`ip tuntap add`) is *adopted*: it stays. This module has only the device and its
//! frames; `link` sets MAC, MTU, addresses and bridges, and `device` ties them together.
//!
//! The kernel accepts frames far larger than the MTU from a writer; the caller must bound them. A
//! write fails with `EIO` while the device is down, and with `EINVAL` for less than 14 bytes.

mod device;
mod error;
mod opening;
mod options;
mod queue;
#[cfg(test)]
mod tests;

pub(crate) use self::{
    device::{Tap, Whereabouts},
    options::TapOptions,
    queue::{is_deleted, is_too_big},
};
pub use self::{error::TapError, options::Backend, queue::TapQueue};
pub use super::{
    packet::NicError,
    vnet::{Offloads, VnetHeader},
};
