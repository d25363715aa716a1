// SPDX-License-Identifier: MIT OR Apache-2.0
//! A pure layer-2 switch: frames in, forwarding decisions out.
//!
//! ```text
//!            ┌──────────────────── Switch::forward ───────────────────┐      Switch::leave
//!  ingress   │ frame ──> admit ──> learn ───> look up ────> limit     │      for each port:
//!  port ───> │ header    VLANs,    (VID, src)  (VID, dst)   what is   │ ──>  split horizon, VLANs
//!            │           guards        └── Fdb ──┘          flooded   │        ──> TagEdit
//!            └─────────────────────────────┬──────────────────────────┘
//!                                          └──> dropped, and why: DropReason
//! ```
//!
//! The ports are the local TAP ([`PortId::TAP`]) and the remote peers. The switch reads the
//! Ethernet header, learns where the sender is and decides where the frame must go ([`Egress`]),
//! and in what form ([`TagEdit`]). The caller moves the bytes: the crate has no sockets, no threads
//! and no clock (it is `no_std`, so the compiler makes sure of that), and takes time as a number
//! ([`Now`]). It never alters a frame.
//!
//! A port's policy is its [`PortConfig`]: VLANs ([`PortVlans`]), limits ([`FloodLimits`]), guards.
//! The switch looks behind the EtherType only on a port with a guard, or with something for the
//! slow path to see; the default port passes every frame unchanged, within its limits.
//!
//! The slow path receives few frames, those of a [`Kind`] other than data. It belongs to one
//! thread, which is not one of the data threads:
//!
//! | Module | Reads | Gives |
//! |---|---|---|
//! | [`loops`] | probes that return | probes to send, ports to block and open |
//! | [`membership`] | IGMP, MLD | where multicast goes, queries to send |
//! | [`neighbours`] | ARP, neighbour discovery | answers in the name of stations it knows |
//!
//! They keep state for what they have heard, in bounded memory whatever arrives.
//!
//! One [`Switch`] serves every data thread through `&self`; nothing on the path of a frame waits or
//! allocates.
//!
//! A frame and its answer, on two ports that pass everything:
//!
//! ```
//! use patchcord_bridge::{Egress, Now, PortId, Switch, SwitchConfig, TagEdit};
//!
//! let switch = Switch::new(SwitchConfig::default(), [1, 2]); // in earnest: a random key
//! let (tap, peer, now) = (PortId::TAP, PortId(1), Now::default());
//! let hello = [b"\xff\xff\xff\xff\xff\xff\x02\0\0\0\0\x01\x08\x06".as_slice(), &[0; 46]].concat();
//! let answer = [b"\x02\0\0\0\0\x01\x02\0\0\0\0\x02\x08\x06".as_slice(), &[0; 46]].concat();
//!
//! let decision = switch.forward_frame(tap, &hello, 1, now)?;
//! assert_eq!(decision.egress, Egress::Flood);
//! assert_eq!(switch.leave(tap, decision.inside, peer), Ok(TagEdit::Keep));
//!
//! let decision = switch.forward_frame(peer, &answer, 1, now)?;
//! assert_eq!(decision.egress, Egress::Port(tap));
//! assert_eq!(switch.fdb().entries(0).count(), 2);
//! # Ok::<_, patchcord_bridge::DropReason>(())
//! ```
//!
//! An access port in front of a trunk, where the same frame gets a tag:
//!
//! ```
//! use patchcord_bridge::{Now, PortConfig, PortId, PortVlans, Switch, SwitchConfig, TagEdit, Tpid, Vid};
//!
//! let vid = Vid::new(10).unwrap_or_default();
//! let access = PortVlans::access(vid)?;
//! let trunk = PortVlans::trunk([vid].into_iter().collect(), None, &[])?;
//! let ports = [access, trunk].map(|vlans| PortConfig { vlans, ..PortConfig::default() });
//! let config = SwitchConfig { ports: ports.into(), ..SwitchConfig::default() };
//! let switch = Switch::new(config, [1, 2]);
//! let hello = [b"\xff\xff\xff\xff\xff\xff\x02\0\0\0\0\x01\x08\x06".as_slice(), &[0; 46]].concat();
//!
//! let edit = switch
//!     .forward_frame(PortId::TAP, &hello, 1, Now::default())
//!     .and_then(|decision| switch.leave(PortId::TAP, decision.inside, PortId(1)));
//! assert_eq!(edit, Ok(TagEdit::Push { tpid: Tpid::Customer, tci: 10 }));
//! # Ok::<_, patchcord_bridge::VlanError>(())
//! ```
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod checksum;
mod config;
mod decision;
mod drop_reason;
pub mod ether_type;
pub mod ethernet;
pub mod fdb;
mod forward;
pub mod inspect;
mod ip;
pub mod ip_protocol;
mod limit;
pub mod loops;
mod mac;
pub mod membership;
pub mod neighbours;
mod port;
mod port_id;
mod port_set;
mod port_vlans;
mod sync;
mod time;
mod vlan;

pub use config::{
    BPDU_BLOCK_S, BpduPolicy, Guard, PortConfig, Sources, SourcesError, SwitchConfig,
};
pub use decision::{Decision, Egress, Kind, Now};
pub use drop_reason::DropReason;
pub use ethernet::Headers;
pub use fdb::Fdb;
pub use forward::Switch;
pub use limit::FloodLimits;
pub use mac::{MacAddr, ParseMacError};
pub use port::Blocks;
pub use port_id::PortId;
pub use port_set::PortSet;
pub use port_vlans::{PortVlans, VlanError};
pub use vlan::{EDIT_BYTES, Inside, Tag, TagEdit, Tpid, Vid, VidSet};
