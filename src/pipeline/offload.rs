// SPDX-License-Identifier: MIT OR Apache-2.0
//! Between the kernel's header of a frame at the TAP and the pending offload that travels with it.
//!
//! Outbound, a frame that would pass the checks of a peer crosses as it is, and any other is cut or
//! finished here: a device of this machine is trusted as the kernel trusts it. Inbound, no claim of
//! a peer reaches the kernel unless `proto::superframe` has checked it or it is computed here.

mod device;
mod egress;
mod signal;
#[cfg(test)]
mod tests;

pub(super) use self::{
    device::{DeviceFrame, check_device_frame, each_piece},
    egress::{EgressFrame, each_finished, may_stay_pending},
    signal::{SIGNAL_BYTES, Signal, signal},
};
