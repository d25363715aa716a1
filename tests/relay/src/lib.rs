// SPDX-License-Identifier: MIT OR Apache-2.0
//! A cable that loses, delays, repeats and reorders the Ethernet frames that pass it.
//!
//! ```text
//!  site A ── veth ── port a ═══ relay ═══ port b ── veth ── site B
//! ```
//!
//! For tests and measurements of tunnels on machines without a network emulator in the kernel. It
//! carries frames of any kind, so that a path can be measured with a tunnel and without. One thread for
//! each direction copies frames from one raw socket to another ([`Relay`]) and asks [`harm`] for the
//! fate of each. ARP and neighbour discovery are never harmed.
//!
//! The relay forwards frames as they are: segmentation and checksum offloads must be off at both sites
//! (`ethtool -K wan tx off tso off gso off gro off tx-udp-segmentation off`), or it receives frames
//! that no wire carries. It counts them.
#![deny(unsafe_code)]

mod frame;
pub mod harm;
mod packet;
mod relay;

pub use harm::Harm;
pub use relay::{Counters, Relay, Report};
