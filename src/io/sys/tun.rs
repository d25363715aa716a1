// SPDX-License-Identifier: MIT OR Apache-2.0
//! The ioctls of `/dev/net/tun`.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use super::{check, set_nonblocking};

/// The longest name of an interface, in bytes.
pub(crate) const MAX_NAME: usize = libc::IFNAMSIZ - 1;

/// How to attach a queue to a TAP with vnet headers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Attach {
    /// Create the device; fail with `EBUSY` when an interface of this name exists.
    pub(crate) create: bool,
    /// Must agree with an existing device, or the kernel answers `EINVAL`.
    pub(crate) multi_queue: bool,
}

/// What the TAP's reader accepts: bits of TUNSETOFFLOAD.
pub(crate) const OFFLOAD_CHECKSUM: u32 = libc::TUN_F_CSUM;
pub(crate) const OFFLOAD_TSO: u32 = libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_TSO_ECN;
pub(crate) const OFFLOAD_USO: u32 = libc::TUN_F_USO4 | libc::TUN_F_USO6;

/// Opens `/dev/net/tun`; the file has no function until it is attached.
pub(crate) fn open() -> io::Result<File> {
    // std adds O_CLOEXEC.
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open("/dev/net/tun")
}

/// Makes `tun` a queue of the TAP `name`: no packet information, a vnet header before every frame.
/// Kernels since 6.0 leave the carrier off; older ones do not know the flag and switch it on.
pub(crate) fn attach(tun: &File, name: &str, attach: Attach) -> io::Result<()> {
    let mut flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_NO_CARRIER;
    if attach.create {
        flags |= libc::IFF_TUN_EXCL;
    }
    if attach.multi_queue {
        flags |= libc::IFF_MULTI_QUEUE;
    }
    set_interface(tun, name, flags)
}

fn set_interface(tun: &File, name: &str, flags: libc::c_int) -> io::Result<()> {
    // SAFETY: `ifreq` is plain old data, for which all zeroes is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.is_empty() || name.len() > MAX_NAME {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    // Shorter than the array, so that a NUL is left at the end.
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    // IFF_TUN_EXCL is bit 15: the sign of a short.
    request.ifr_ifru.ifru_flags = flags as u16 as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes one `ifreq`, which is live and exclusive here.
    check(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF, &raw mut request) }).map(drop)
}

/// Opens the TAP `name` with one queue and without vnet headers, through `tun-tap`.
pub(crate) fn open_plain(name: &str) -> io::Result<File> {
    let device = tun_tap::Iface::without_packet_info(name, tun_tap::Mode::Tap)?;
    // SAFETY: `into_raw_fd` gives up ownership of an open descriptor, and we take it.
    let queue = unsafe { OwnedFd::from_raw_fd(device.into_raw_fd()) };
    set_nonblocking(&queue)?;
    Ok(queue.into())
}

/// Sets the size of the vnet header, which an earlier user of a persistent TAP may have changed.
pub(crate) fn set_vnet_header_size(queue: &File, bytes: usize) -> io::Result<()> {
    let bytes = bytes as libc::c_int;
    // SAFETY: TUNSETVNETHDRSZ reads one int.
    check(unsafe { libc::ioctl(queue.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const bytes) })
        .map(drop)
}

/// Tells the kernel what the reader accepts; device-wide.
pub(crate) fn set_offloads(queue: &File, bits: u32) -> io::Result<()> {
    // SAFETY: TUNSETOFFLOAD takes a number, no pointer.
    let result = unsafe {
        libc::ioctl(
            queue.as_raw_fd(),
            libc::TUNSETOFFLOAD,
            libc::c_ulong::from(bits),
        )
    };
    check(result).map(drop)
}

/// Makes `program` choose the queue of each frame that the kernel sends, or the kernel itself
/// again.
pub(crate) fn set_steering(queue: &File, program: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let program = program.map_or(-1, |program| program.as_raw_fd());
    // SAFETY: TUNSETSTEERINGEBPF reads one int; the kernel takes a reference of its own.
    check(unsafe {
        libc::ioctl(
            queue.as_raw_fd(),
            libc::TUNSETSTEERINGEBPF,
            &raw const program,
        )
    })
    .map(drop)
}

/// Switches the carrier on or off.
pub(crate) fn set_carrier(queue: &File, on: bool) -> io::Result<()> {
    let on = libc::c_int::from(on);
    // SAFETY: TUNSETCARRIER reads one int.
    check(unsafe { libc::ioctl(queue.as_raw_fd(), libc::TUNSETCARRIER, &raw const on) }).map(drop)
}

/// What a queue is attached to, according to the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Attached {
    /// The present name of the device.
    pub(crate) name: String,
    /// Whether every frame has a vnet header in front.
    pub(crate) vnet_header: bool,
    /// Whether it is a TAP, and not a TUN.
    pub(crate) tap: bool,
}

/// What `queue` is attached to.
///
/// # Errors
/// `EBADFD` when the device was deleted.
pub(crate) fn attached(queue: &File) -> io::Result<Attached> {
    // SAFETY: `ifreq` is plain old data, for which all zeroes is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // SAFETY: TUNGETIFF writes one `ifreq`, which is live and exclusive here.
    check(unsafe { libc::ioctl(queue.as_raw_fd(), libc::TUNGETIFF, &raw mut request) })?;
    // SAFETY: TUNGETIFF fills in the flags; every bit pattern is a number.
    let flags = i32::from(unsafe { request.ifr_ifru.ifru_flags });
    let name = request.ifr_name.iter().take_while(|byte| **byte != 0);
    let name: Vec<u8> = name.map(|byte| *byte as u8).collect();
    Ok(Attached {
        name: String::from_utf8_lossy(&name).into_owned(),
        vnet_header: flags & libc::IFF_VNET_HDR != 0,
        tap: flags & libc::IFF_TAP != 0,
    })
}

/// The size of the vnet header that the kernel expects.
pub(crate) fn vnet_header_size(queue: &File) -> io::Result<usize> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: TUNGETVNETHDRSZ writes one int, which is live and exclusive here.
    check(unsafe { libc::ioctl(queue.as_raw_fd(), libc::TUNGETVNETHDRSZ, &raw mut bytes) })?;
    Ok(usize::try_from(bytes).unwrap_or(0))
}

/// Makes the byte order of the vnet header that of this machine, whatever an earlier user set.
pub(crate) fn set_native_byte_order(queue: &File) -> io::Result<()> {
    let little = libc::c_int::from(cfg!(target_endian = "little"));
    // SAFETY: TUNSETVNETLE reads one int.
    check(unsafe { libc::ioctl(queue.as_raw_fd(), libc::TUNSETVNETLE, &raw const little) })
        .map(drop)
}

/// The network namespace in which the device is now.
///
/// # Errors
/// `EINVAL` from kernels before 5.2, which do not know the request.
pub(crate) fn namespace(queue: &File) -> io::Result<File> {
    // SAFETY: TUNGETDEVNETNS takes no argument and returns a descriptor.
    let fd = check(unsafe { libc::ioctl(queue.as_raw_fd(), libc::TUNGETDEVNETNS) })?;
    // SAFETY: the kernel made it just now, so no other owner exists.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) }.into())
}

/// Makes `program` filter the frames that the kernel sends, or lets every frame through again,
/// whatever a program of an earlier user did.
pub(crate) fn set_filter(queue: &File, program: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let program = program.map_or(-1, |program| program.as_raw_fd());
    // SAFETY: TUNSETFILTEREBPF reads one int; the kernel takes a reference of its own.
    check(unsafe {
        libc::ioctl(
            queue.as_raw_fd(),
            libc::TUNSETFILTEREBPF,
            &raw const program,
        )
    })
    .map(drop)
}

/// Holds a multi-queue TAP as other programs do that want it to stay: attached, with frames that
/// are bare or behind packet information, and with the queue out of use.
#[cfg(test)]
pub(crate) fn hold(name: &str, bare: bool) -> io::Result<File> {
    let tun = open()?;
    let flags = libc::IFF_TAP | libc::IFF_MULTI_QUEUE;
    let in_front = if bare { libc::IFF_NO_PI } else { 0 };
    set_interface(&tun, name, flags | in_front)?;
    // SAFETY: `ifreq` is plain old data, for which all zeroes is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_ifru.ifru_flags = libc::IFF_DETACH_QUEUE as libc::c_short;
    // SAFETY: TUNSETQUEUE reads one `ifreq`.
    check(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETQUEUE, &raw const request) })?;
    Ok(tun)
}
