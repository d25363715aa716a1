// SPDX-License-Identifier: MIT OR Apache-2.0
//! The machine around the tunnel: set up before the first frame, watched meanwhile, and restored after
//! the last.
//!
//! ```text
//! device     creates the TAP as requested, and undoes that
//!   lock       keeps a second process off a tunnel's name and off a device
//!   journal    the changes to undo after a stop, or after a kill -9
//!   options    the kernel's options of one interface
//!   file       files that are complete or absent
//!   link       netlink: addresses, MTU, MAC, bridges, and changes of them by other programs
//! routing    which destinations go through the tunnel; uses `lock` and `journal` too
//! dns        the name servers of this machine; `proxy`, the proxy for programs
//! path       the path to the Internet below every tunnel; `changes`, when to look again
//! route      the route to an address; `reply_source`, the address and interface of answers
//! resolver   addresses of names, looked up on a few threads that no caller waits for
//! groups     the multicast groups of a link
//! sockets    sockets through the tunnel, and outside of it by their mark
//! namespace  the name that `ip netns` knows for a network namespace
//! netlink    a connection to the kernel that lasts
//! monitor    the kernel's messages about changes, and that some were lost
//! power      sleep and wake-up of the machine; `bus`, D-Bus for `dns` and `power`
//! service    sockets from the service manager, and notifications to it
//! signals    which signals end the program
//! cpu_latency  how long idle cores may take to wake up
//! receive_offload  whether an interface merges what it receives
//! autogroup  the priority of this process among the programs of other sessions
//! ```
//!
//! `machine` uses `io` for the TAP and for system calls, and knows no peers, keys or VLANs. Netlink
//! connections belong to the network namespace of the thread that opens them.

pub(crate) mod autogroup;
pub(crate) mod bus;
pub(crate) mod cpu_latency;
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
pub(crate) mod receive_offload;
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
