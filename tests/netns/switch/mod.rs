// SPDX-License-Identifier: MIT OR Apache-2.0
//! Each frame goes where it belongs: the FDB, VLANs, multicast groups, neighbours, storms, loops, and
//! what a port refuses.

mod addresses;
pub(crate) mod forwarding;
mod guard;
mod loops;
mod many;
mod multicast;
pub(crate) mod neighbours;
mod storm;
mod vlan;
