// SPDX-License-Identifier: MIT OR Apache-2.0
//! The UDP socket: trains of datagrams out (GSO), merged datagrams in (GRO).
//!
//! A *train* is one piece of memory with datagrams of equal size back to back, of which the last
//! may be shorter. DF is always set and the path MTU that the kernel has learnt is ignored: the
//! tunnel finds it itself, and a forged ICMP message changes nothing. The socket is never
//! connected, so that no ICMP error ends up in it.
//!
//! Where GSO fails, datagrams leave one by one: the failed train at once, later ones to the same
//! address for as long as `pauses` says.
//!
//! The pipeline's threads call this; a full socket holds them for 2 ms at most.

#[cfg(test)]
pub(crate) use self::batch::Received;
pub(crate) use self::batch::RecvBatch;
pub(crate) use self::error::{SendError, SendFailure};
pub(crate) use self::gate::SessionFilter;
pub(crate) use self::lanes::Spread;
pub(crate) use self::senders::Senders;
pub(crate) use self::socket::{Capabilities, UdpSocket, is_here};

mod batch;
mod error;
mod gate;
mod lanes;
mod patience;
mod pauses;
mod senders;
mod socket;
mod testing;
mod transmit;
