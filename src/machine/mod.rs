// SPDX-License-Identifier: MIT OR Apache-2.0
//! The machine around the tunnel: set up before the first frame, watched meanwhile, and restored after
//! the last.
//!
//! ```text
//! device     one call that makes the TAP as asked for, and one that undoes it
//!   lock       no second process on a tunnel's name or on a device
//!   journal    what must be undone after a stop, or after a kill -9
//!   options    the kernel's options of one interface
//!   file       files that are whole or not there
//!   link       netlink: addresses, MTU, MAC, bridges, and what others change of them
//! routing    which destinations go through the tunnel; in the same way, `lock` and `journal`
//! dns        name servers for what is resolved here; `proxy`, which proxy programs find
//! path       the way out below every tunnel; `changes`, when to look again
//! route      the route to an address; `reply_source`, from which address and interface to answer
//! resolver   addresses of names, looked up on a few threads that nobody waits for
//! groups     the multicast groups of a link
//! sockets    sockets through the tunnel, and outside of it by their mark
//! namespace  the name that `ip netns` knows for a network namespace
//! netlink    a connection to the kernel that lasts
//! monitor    what the kernel tells of changes, and that some were lost
//! power      sleep and wake-up of the machine; `bus`, where `dns` and `power` ask
//! service    what the service manager hands over, and is told
//! signals    which signals end the program
//! ```
//!
//! `machine` uses `io` for the TAP and for system calls, and knows no peers, keys or VLANs. Netlink
//! connections belong to the network namespace of the thread that opens them.

pub(crate) mod bus;
pub(crate) mod device;
pub(crate) mod dns;
pub(crate) mod file;
pub(crate) mod groups;
pub(crate) mod link;
pub(crate) mod lock;
pub(crate) mod namespace;
pub(crate) mod path;
pub(crate) mod power;
pub(crate) mod proxy;
pub(crate) mod reply_source;
pub(crate) mod resolver;
pub(crate) mod route;
pub(crate) mod routing;
pub mod service;
pub mod signals;
pub(crate) mod sockets;

mod changes;
mod journal;
mod monitor;
mod netlink;
mod options;

use crate::io::sys;

/// The user that this process acts as.
pub(crate) fn effective_user() -> u32 {
    sys::effective_uid()
}

/// Keeps this process's memory, with its keys, out of core dumps, and out of swap space as far as the
/// limits of the process allow.
///
/// # Errors
/// Only with kernels and system call filters that refuse it; Linux itself never does.
pub fn keep_memory_private() -> std::io::Result<()> {
    sys::forbid_dumps()?;
    if !sys::forbid_swapping()? {
        tracing::debug!("memory with keys may be swapped: RLIMIT_MEMLOCK is not unlimited");
    }
    Ok(())
}
