// SPDX-License-Identifier: MIT OR Apache-2.0
//! Each frame goes where it belongs: the FDB, VLANs, multicast groups, neighbours, storms, loops, and
//! what a port refuses.

mod addresses;
mod forwarding;
mod guard;
mod loops;
mod many;
mod multicast;
mod neighbours;
mod storm;
mod vlan;
