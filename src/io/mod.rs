// SPDX-License-Identifier: MIT OR Apache-2.0
//! Frames and datagrams in and out of the kernel.
//!
//! ```text
//! tap          Ethernet frames of a TAP; in `packet`, of a NIC in place of one
//!   vnet         the header that travels beside a frame (virtio)
//!   steering     the eBPF program that keeps a flow on one queue
//!   own_traffic  the filter that withholds the tunnel's own datagrams
//!   memory       for fuzz targets, a device without a kernel
//! udp          datagrams, in batches and trains (GSO, GRO), in lanes
//!   mark         by which routing rules tell the tunnel's own datagrams
//!   icmp         what routers say of datagrams that did not arrive
//! waker        waits for both, and ends a wait
//! sys          system calls, and all unsafe code
//! ```
//!
//! `io` knows bytes, never peers, keys or VLANs; `pipeline` brings them together. The surroundings
//! of the frames (interfaces, addresses, routes) belong to `machine`, which `io` never uses.
//! Sockets and devices belong to the network namespace of the thread that opens them.

use std::{fs, os::unix::fs::MetadataExt};

pub(crate) mod icmp;
pub(crate) mod mark;
#[cfg(fuzzing)]
pub mod memory;
pub(crate) mod tap;
pub(crate) mod udp;
pub(crate) mod waker;

pub(crate) mod sys;

mod own_traffic;
mod packet;
mod steering;
mod vnet;

/// Sets the niceness of the calling thread, from -20 (first) to 19. Below that of the process it
/// needs CAP_SYS_NICE.
///
/// # Errors
/// `EACCES` or `EPERM` without that capability.
pub(crate) fn set_thread_niceness(nice: i32) -> std::io::Result<()> {
    sys::set_thread_niceness(nice)
}

/// Sets the niceness of the calling thread, and how long it may run while others wait as well.
///
/// # Errors
/// Without CAP_SYS_NICE, if it is to be less than now.
pub(crate) fn set_thread_slice(nice: i32, slice: std::time::Duration) -> std::io::Result<()> {
    sys::set_thread_slice(nice, slice)
}

/// The niceness of the calling thread.
pub(crate) fn thread_niceness() -> i32 {
    sys::thread_niceness()
}

/// Whether an error of a system call means that the call was wrong, so that a retry would be in
/// vain. Others may pass, unexpected ones included.
pub(crate) fn is_mistake(error: &std::io::Error) -> bool {
    use sys::{EBADF, EFAULT, EINVAL, ENOSYS, ENOTSOCK, EOPNOTSUPP};
    let mistakes = [EBADF, EFAULT, EINVAL, ENOSYS, ENOTSOCK, EOPNOTSUPP];
    // An error without a code is an error of this program itself.
    error
        .raw_os_error()
        .is_none_or(|code| mistakes.contains(&code))
}

/// Where the kernel shows the network namespace of a thread.
pub(crate) const NAMESPACE: &str = "/proc/thread-self/ns/net";

/// The number that distinguishes the network namespace of this thread from every other one that
/// exists now.
pub(crate) fn namespace_inode() -> std::io::Result<u64> {
    Ok(fs::metadata(NAMESPACE)?.ino())
}
