// SPDX-License-Identifier: MIT OR Apache-2.0
//! Links and addresses, through netlink.
//!
//! Belongs to the network namespace of the thread that calls [`Links::connect`], and runs on its
//! tokio runtime. The control thread calls this, mostly through `device`; `watch` tells what others
//! change.

mod error;
mod info;
mod links;
mod netfilter;
mod port;
mod vlans;
mod watch;

pub use self::error::LinkError;
pub(super) use self::error::io_error;
pub(super) use self::port::forward_policies;
pub(crate) use self::{
    info::{ADDR_GEN_NONE, LinkInfo, is_radio},
    links::Links,
    netfilter::ForwardChain,
    port::{KernelCounters, PortReport, ranges},
    vlans::PortVlans,
    watch::LinkEvent,
};
