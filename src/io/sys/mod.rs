// SPDX-License-Identifier: MIT OR Apache-2.0
//! System calls that the standard library does not offer, each behind a safe function.
//!
//! The only module with unsafe code. It makes no decisions: arguments are checked, errors are the
//! kernel's, and every other module of `io` calls it.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

pub(crate) mod bpf;
pub(crate) mod ebpf;
pub(crate) mod ethtool;
pub(crate) mod faults;
pub(crate) mod mmsg;
pub(crate) mod packet;
pub(crate) mod readiness;
pub(crate) mod tun;

pub(crate) use libc::{
    EADDRINUSE, EADDRNOTAVAIL, EAFNOSUPPORT, EAGAIN, EBADF, EBADFD, EBUSY, ECONNREFUSED, EFAULT,
    EHOSTDOWN, EHOSTUNREACH, EINTR, EINVAL, EIO, EMSGSIZE, ENETDOWN, ENETUNREACH, ENOBUFS, ENODEV,
    ENOENT, ENOPROTOOPT, ENOSYS, ENOTSOCK, ENXIO, EOPNOTSUPP, EPERM, ESRCH, O_NOFOLLOW, POLLERR,
    POLLHUP, POLLIN, POLLNVAL, POLLOUT,
};

/// Turns the `-1` of a system call into the error that it set.
fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// Socket options that neither std nor `socket2` can set.
#[derive(Clone, Copy, Debug)]
pub(crate) enum SocketOption {
    Ipv4MtuDiscover,
    Ipv4PacketInfo,
    Ipv6MtuDiscover,
    Ipv6PacketInfo,
    #[cfg(test)]
    NoChecksum,
    PacketAuxdata,
    PacketIgnoreOutgoing,
    PacketVnetHeader,
    ReceiveBufferForce,
    SendBufferForce,
    UdpGro,
    UdpSegment,
}

/// The value of [`SocketOption::Ipv4MtuDiscover`] that sets DF and ignores the path MTU which the
/// kernel has learnt; the one for IPv6 has the same number.
pub(crate) const PMTUDISC_PROBE: i32 = libc::IP_PMTUDISC_PROBE;
const _: () = assert!(libc::IP_PMTUDISC_PROBE == libc::IPV6_PMTUDISC_PROBE);

impl SocketOption {
    fn level_and_name(self) -> (libc::c_int, libc::c_int) {
        match self {
            Self::Ipv4MtuDiscover => (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER),
            Self::Ipv4PacketInfo => (libc::IPPROTO_IP, libc::IP_PKTINFO),
            Self::Ipv6PacketInfo => (libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO),
            Self::Ipv6MtuDiscover => (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER),
            #[cfg(test)]
            Self::NoChecksum => (libc::SOL_SOCKET, libc::SO_NO_CHECK),
            Self::PacketAuxdata => (libc::SOL_PACKET, libc::PACKET_AUXDATA),
            Self::PacketIgnoreOutgoing => (libc::SOL_PACKET, libc::PACKET_IGNORE_OUTGOING),
            Self::PacketVnetHeader => (libc::SOL_PACKET, libc::PACKET_VNET_HDR),
            Self::ReceiveBufferForce => (libc::SOL_SOCKET, libc::SO_RCVBUFFORCE),
            Self::SendBufferForce => (libc::SOL_SOCKET, libc::SO_SNDBUFFORCE),
            Self::UdpGro => (libc::SOL_UDP, libc::UDP_GRO),
            Self::UdpSegment => (libc::SOL_UDP, libc::UDP_SEGMENT),
        }
    }
}

/// Sets an integer option of a socket.
pub(crate) fn set_option(
    socket: BorrowedFd<'_>,
    option: SocketOption,
    value: i32,
) -> io::Result<()> {
    let (level, name) = option.level_and_name();
    // SAFETY: the pointer and the length describe `value`, which the kernel copies before it
    // returns.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            (&raw const value).cast(),
            size_of_val(&value) as libc::socklen_t,
        )
    };
    check(result).map(drop)
}

/// One descriptor of [`poll`]: the events to wait for, and those that occurred.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(crate) struct PollEntry<'fd> {
    raw: libc::pollfd,
    fd: std::marker::PhantomData<BorrowedFd<'fd>>,
}

impl<'fd> PollEntry<'fd> {
    /// Waits for `events` (`POLLIN`, `POLLOUT`) on `fd`; errors are always reported.
    pub(crate) fn new(fd: BorrowedFd<'fd>, events: i16) -> Self {
        let raw = libc::pollfd {
            fd: fd.as_raw_fd(),
            events,
            revents: 0,
        };
        Self {
            raw,
            fd: std::marker::PhantomData,
        }
    }

    /// Waits for nothing; fills the unused entries of an array.
    pub(crate) const fn unused() -> Self {
        let raw = libc::pollfd {
            fd: -1,
            events: 0,
            revents: 0,
        };
        Self {
            raw,
            fd: std::marker::PhantomData,
        }
    }

    /// The events that occurred.
    pub(crate) fn ready(&self) -> i16 {
        self.raw.revents
    }
}

/// Waits until one of `entries` is ready, for `timeout` or for ever. Returns how many are.
pub(crate) fn poll(entries: &mut [PollEntry<'_>], timeout: Option<Duration>) -> io::Result<usize> {
    let timeout = timeout.map(|timeout| libc::timespec {
        tv_sec: libc::time_t::try_from(timeout.as_secs()).unwrap_or(libc::time_t::MAX),
        tv_nsec: timeout.subsec_nanos() as _,
    });
    let timeout = timeout
        .as_ref()
        .map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: `PollEntry` is a transparent `pollfd`, so pointer and length describe an exclusive
    // array of them; its descriptors are borrowed and open; `timeout` is null or points to a live
    // value. A null signal mask is allowed. The kernel keeps nothing.
    let ready = unsafe {
        libc::ppoll(
            entries.as_mut_ptr().cast(),
            entries.len() as libc::nfds_t,
            timeout,
            std::ptr::null(),
        )
    };
    check(ready).map(|ready| ready as usize)
}

/// Opens an eventfd that never blocks.
pub(crate) fn eventfd() -> io::Result<File> {
    // SAFETY: takes no pointers.
    let fd = check(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) })?;
    // SAFETY: `fd` was just opened and has no other owner.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) }.into())
}

/// Keeps this process's memory out of core dumps, and from the debuggers of other users.
pub(crate) fn forbid_dumps() -> io::Result<()> {
    // SAFETY: PR_SET_DUMPABLE takes one number and no pointers.
    check(unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0) }).map(drop)
}

/// Keeps all memory of this process, including later allocations, out of swap space. False where a
/// limit forbids that: under a limit, a later allocation could fail.
pub(crate) fn forbid_swapping() -> io::Result<bool> {
    let unlimited = libc::rlimit {
        rlim_cur: libc::RLIM_INFINITY,
        rlim_max: libc::RLIM_INFINITY,
    };
    // SAFETY: the pointer is to a struct of the kernel's layout, which is read.
    if unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const unlimited) } < 0 {
        return Ok(false);
    }
    // Pages are locked when they are used: stacks and tables take no more memory than before.
    let flags = libc::MCL_CURRENT | libc::MCL_FUTURE | libc::MCL_ONFAULT;
    // SAFETY: takes one number and no pointers.
    check(unsafe { libc::mlockall(flags) }).map(|_| true)
}

/// Sets the niceness of the calling thread; on Linux it is a property of threads.
pub(crate) fn set_thread_niceness(nice: i32) -> io::Result<()> {
    // SAFETY: takes numbers and no pointers; 0 means the calling thread.
    check(unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, nice) }).map(drop)
}

/// Sets the niceness of the calling thread, and the time that it may run in one go; kernels before
/// 6.12 ignore the time.
pub(crate) fn set_thread_slice(nice: i32, slice: Duration) -> io::Result<()> {
    /// `struct sched_attr` in its first version; all zeroes but these is the usual policy.
    #[repr(C)]
    #[derive(Default)]
    struct Attributes {
        size: u32,
        policy: u32,
        flags: u64,
        nice: i32,
        priority: u32,
        runtime: u64,
        deadline: u64,
        period: u64,
    }
    let attributes = Attributes {
        size: size_of::<Attributes>() as u32,
        nice,
        runtime: slice.as_nanos() as u64,
        ..Attributes::default()
    };
    // SAFETY: the structure says its own size, and lives until the call returns; the kernel only
    // reads it. Thread 0 is the calling one.
    let status = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) };
    check(status as libc::c_int).map(drop)
}

/// The niceness of the calling thread.
pub(crate) fn thread_niceness() -> i32 {
    // SAFETY: takes numbers and no pointers; it cannot fail for the calling thread.
    unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) }
}

/// Whether this process leads its session, as a service does.
pub(crate) fn is_session_leader() -> bool {
    // SAFETY: both take no pointers; 0 means the calling process, for which it cannot fail.
    unsafe { libc::getsid(0) == libc::getpid() }
}

/// The user that this process acts as.
pub(crate) fn effective_uid() -> u32 {
    // SAFETY: takes nothing and cannot fail.
    unsafe { libc::geteuid() }
}

/// Another descriptor of the file that this process has open under a number.
pub(crate) fn duplicate(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: takes numbers and no pointers; one that is not open is an error.
    let fd = check(unsafe { libc::fcntl(number, libc::F_DUPFD_CLOEXEC, 0) })?;
    // SAFETY: the kernel made it just now, so no other owner exists.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Makes reads and writes of `fd` return `WouldBlock` instead of waiting.
fn set_nonblocking(fd: impl AsFd) -> io::Result<()> {
    let raw = fd.as_fd().as_raw_fd();
    // SAFETY: F_GETFL takes no pointers, and `raw` is open for as long as `fd` is borrowed.
    let flags = check(unsafe { libc::fcntl(raw, libc::F_GETFL) })?;
    // SAFETY: as above, for F_SETFL.
    check(unsafe { libc::fcntl(raw, libc::F_SETFL, flags | libc::O_NONBLOCK) }).map(drop)
}

/// The index of the interface `name` in the network namespace of this thread.
pub(crate) fn interface_index(name: &str) -> io::Result<u32> {
    let name = CString::new(name)?;
    // SAFETY: `name` is NUL-terminated and lives until the call returns.
    match unsafe { libc::if_nametoindex(name.as_ptr()) } {
        0 => Err(io::Error::last_os_error()),
        index => Ok(index),
    }
}
