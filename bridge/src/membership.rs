// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which ports want which multicast: IGMP and MLD snooping, RFC 4541, and a querier.
//!
//! ```text
//!  reports, leaves ──> groups: (VLAN, address) ──> ports, each until it expires ──┐
//!  queries ──────────> routers: (VLAN, family) ──> ports, each until it expires ──┼──> GroupTable
//!                      querier, ours or another's: VLANs without one are flooded ─┘
//! ```
//!
//! It must never withhold wanted traffic; when in doubt it floods:
//!
//! - all groups, in a VLAN without a querier, and until hosts have had time to answer the first query;
//! - all groups, to a port that has just come up, for the same time;
//! - all groups, to a port with more memberships than fit;
//! - link-local groups, always.
//!
//! It never drops a message of a host or a router. It tracks groups as a whole and ignores the sources
//! that a host selects.
//!
//! In a mesh, peers do not forward frames of one peer to another. A source's site must therefore
//! know all sites with members itself, and reports from the TAP go to every peer and not only
//! towards routers.
//!
//! Called by the control thread, with seconds on a clock that may wrap. Data threads read the
//! [`GroupTable`]s that it makes.

mod config;
mod entry;
mod family;
mod message;
mod queried_vlans;
mod snooping;
mod table;
mod vlan;

pub use self::config::{Querier, SnoopingConfig};
pub use self::entry::{GroupEntry, Handled, QueryFrame, SnoopingCounters, VlanEntry};
pub use self::family::Family;
pub use self::snooping::Snooping;
pub use self::table::GroupTable;
