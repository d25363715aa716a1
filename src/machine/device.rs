// SPDX-License-Identifier: MIT OR Apache-2.0
//! The tunnel's device, from nothing to ready and back.
//!
//! ```text
//! create   lock -> clear leftovers -> open TAP -> carrier off -> MAC -> MTU -> no autoconfiguration
//!          -> bridge -> addresses -> up
//! remove   the same backwards; a device that was adopted is left as it was found
//! ```
//!
//! A NIC ([`Backend::Packet`](crate::io::tap::Backend::Packet)) is an adopted device; nothing of it
//! changes, except that it is set up.
//!
//! A step that fails undoes the ones before it. Ties together `tap`, `link`, `lock` and `journal`;
//! the provider calls it when settings are applied, on the control thread.

mod drift;
mod error;
mod interface;
mod report;
mod request;

pub(crate) use self::{
    drift::Drift,
    interface::Device,
    report::DeviceReport,
    request::{DeviceRequest, Ipv6Mode},
};
pub use self::{error::DeviceError, report::DeviceInfo};
