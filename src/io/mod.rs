// SPDX-License-Identifier: MIT OR Apache-2.0
//! Everything that touches the kernel: the TAP, the UDP socket, links, locks and the journal.
//!
//! ```text
//! device   one call that makes the TAP as asked for, and one that undoes it
//!   lock     no second process on a tunnel's name or on a device
//!   journal  what must be undone after a stop, or after a kill -9
//!   options  the kernel's options of one interface
//!   file     files that are whole or not there
//!   link     netlink: addresses, MTU, MAC, bridges; in `watch`, what others change
//! routing  which destinations go through the tunnel; in the same way, `lock` and `journal`
//! path     the machine's own way out, below every tunnel; in `changes`, when to look again
//! way      the way that datagrams take to an address
//! groups   the multicast groups of a link
//! icmp     what others say of datagrams that did not arrive
//! sockets  sockets through the tunnel, and outside of it by their `mark`
//! tap      frames in and out of the kernel; in `vnet`, what travels beside them, in `packet`, the
//!          NIC in place of a TAP; in `memory`, for fuzz targets, a device without a kernel
//! names    who resolves names, and proxy, which proxy programs find
//! namespace what people call a network namespace
//! retry    when to try again what the kernel refuses; in `netlink`, a connection that lasts
//! resolver addresses of names, looked up on a few threads that nobody waits for
//! power    sleep and wake-up of the machine; bus, where names and power ask
//! udp      datagrams in and out of the network
//! service  what the service manager hands over, and is told
//! signals  which signals end the program
//! waker    waiting for both, and ending a wait
//! sys      system calls, and all unsafe code
//! ```
//!
//! `io` knows bytes, never peers, keys or VLANs; `pipeline` brings them together. Sockets, devices
//! and netlink connections belong to the network namespace of the thread that opens them.

pub mod bus;
pub mod device;
pub(crate) mod file;
pub mod groups;
pub mod icmp;
pub mod link;
pub mod lock;
pub mod mark;
#[cfg(fuzzing)]
pub mod memory;
pub mod names;
pub mod namespace;
pub mod path;
pub mod power;
pub mod proxy;
pub(crate) mod resolver;
pub(crate) mod retry;
pub mod routing;
pub mod service;
pub mod signals;
pub mod sockets;
mod steering;
pub mod tap;
pub(crate) mod tripwire;
pub mod udp;
pub mod waker;
pub mod way;
pub mod way_back;

mod changes;
mod circle;
mod journal;
mod netlink;
mod options;
mod packet;
mod sys;
#[cfg(test)]
pub(crate) mod testing;
mod vnet;
mod watch;

/// Sets the precedence of the calling thread, from -20 (most) to 19. Above that of the process it
/// needs CAP_SYS_NICE.
///
/// # Errors
/// `EACCES` or `EPERM` without that capability.
pub fn set_thread_niceness(nice: i32) -> std::io::Result<()> {
    sys::set_thread_niceness(nice)
}

/// The precedence of the calling thread.
pub fn thread_niceness() -> i32 {
    sys::thread_niceness()
}

/// Whether an error of a system call says that the call was wrong, so that the same one again would be
/// in vain. Others may pass, also those that nobody has thought of.
pub(crate) fn is_mistake(error: &std::io::Error) -> bool {
    use sys::{EBADF, EFAULT, EINVAL, ENOSYS, ENOTSOCK, EOPNOTSUPP};
    let mistakes = [EBADF, EFAULT, EINVAL, ENOSYS, ENOTSOCK, EOPNOTSUPP];
    // An error without a code is of this program itself.
    error
        .raw_os_error()
        .is_none_or(|code| mistakes.contains(&code))
}

/// The user that this process acts as.
pub fn effective_user() -> u32 {
    sys::effective_uid()
}

/// Keeps this process's memory, with its keys, out of core dumps, and out of swap space as far as the
/// limits of the process allow.
///
/// # Errors
/// Never on Linux as it is, but for kernels and filters of system calls that refuse it.
pub fn keep_memory_private() -> std::io::Result<()> {
    sys::forbid_dumps()?;
    if !sys::forbid_swapping()? {
        tracing::debug!("memory may be swapped: RLIMIT_MEMLOCK is not unlimited");
    }
    Ok(())
}
