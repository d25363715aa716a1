// SPDX-License-Identifier: MIT OR Apache-2.0
//! A NIC as the end of a wire: every frame that arrives at it, and frames out of it, past bridges
//! and the rest of the machine's network stack.
//!
//! The frames are those of a packet socket (packet(7)), restored to the form that they had on the
//! wire:
//!
//! | what the kernel did | what is done about it |
//! |---|---|
//! | took the outermost VLAN tag out, VID 0 included | it is put back, and offsets behind it move |
//! | joined segments (GRO), or got them so from a veth | they stay so, described by a [`VnetHeader`](super::vnet::VnetHeader) |
//! | left a checksum open | likewise |
//! | sees what this machine sends by the NIC | not read: this end sends it too |
//! | sees the datagrams of the tunnel, if they come by this NIC | not read (`own_traffic`) |
//! | drops frames to other stations | the NIC is promiscuous for as long as the socket is open |
//!
//! `tap` presents it as a queue of a TAP. The NIC's name, MTU and addresses stay unchanged.

pub use self::error::NicError;
pub(super) use self::opening::{Opened, open};
pub(super) use self::socket::{LONGEST_PACKET, PacketSocket};

mod error;
mod opening;
mod socket;
mod testing;
