// SPDX-License-Identifier: MIT OR Apache-2.0
//! A pure layer-2 switch: frames in, forwarding decisions out.
//!
//! ```text
//!            ┌──────────────── Switch ────────────────┐
//!  ingress   │ frame ──> learn ──> look up ──> egress │   Port | Flood | dropped, and why
//!  port ───> │ header    (VID, src)  (VID, dst)       │ ──>
//!            │               └── Fdb ──┘              │
//!            └────────────────────────────────────────┘
//! ```
//!
//! The ports are the local TAP ([`PortId::TAP`]) and the remote peers. The switch reads the Ethernet
//! header, learns where the sender lives and says where the frame must go. Moving bytes is the
//! caller's work: the crate has no sockets, no threads and no clock (it is `no_std`, so the compiler
//! sees to that), and time comes in as seconds. It never alters a frame, and never looks behind the
//! EtherType.
//!
//! One [`Switch`] serves every data thread through `&self`; nothing in it waits or, after `new`,
//! allocates.
//!
//! ```
//! use patchcord_bridge::{Egress, PortId, Switch, SwitchConfig};
//!
//! let switch = Switch::new(SwitchConfig::default(), [1, 2]); // in earnest: a random key
//! let peer = PortId(1);
//! let hello = [b"\xff\xff\xff\xff\xff\xff\x02\0\0\0\0\x01\x08\x06".as_slice(), &[0; 46]].concat();
//! let answer = [b"\x02\0\0\0\0\x01\x02\0\0\0\0\x02\x08\x06".as_slice(), &[0; 46]].concat();
//!
//! assert_eq!(switch.forward(PortId::TAP, &hello, 0), Ok(Egress::Flood));
//! assert_eq!(switch.forward(peer, &answer, 0), Ok(Egress::Port(PortId::TAP)));
//! assert_eq!(switch.fdb().entries(0).count(), 2);
//! ```
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod fdb;
mod forward;
pub mod frame;
mod limit;
mod mac;
mod port;
mod vlan;

pub use fdb::Fdb;
pub use forward::{DropReason, Egress, Switch, SwitchConfig};
pub use frame::FrameHeader;
pub use limit::FloodLimits;
pub use mac::{MacAddr, ParseMacError};
pub use port::PortId;
pub use vlan::{EDIT_BYTES, Inside, PortVlans, Tag, TagEdit, Tpid, Vid, VidSet, VlanError};
