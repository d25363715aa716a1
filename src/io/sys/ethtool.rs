// SPDX-License-Identifier: MIT OR Apache-2.0
//! The ioctls of ethtool(8).

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::check;

/// linux/ethtool.h; libc does not have it.
const ETHTOOL_GGRO: u32 = 0x2b;

/// `struct ethtool_value`.
#[repr(C)]
struct Value {
    command: u32,
    data: u32,
}

/// The name of the interface `index`.
pub(crate) fn interface_name(index: u32) -> io::Result<String> {
    let mut name = [0; libc::IF_NAMESIZE];
    // SAFETY: the kernel writes a name and its NUL, IF_NAMESIZE bytes at most, into `name`.
    let found = unsafe { libc::if_indextoname(index, name.as_mut_ptr()) };
    if found.is_null() {
        return Err(io::Error::last_os_error());
    }
    let name = name.map(|byte| byte as u8);
    let name = CStr::from_bytes_until_nul(&name).unwrap_or_default();
    Ok(name.to_string_lossy().into_owned())
}

/// Whether the interface `name` merges what it receives (GRO). `socket`: any, in the interface's
/// network namespace.
pub(crate) fn has_gro(socket: BorrowedFd<'_>, name: &str) -> io::Result<bool> {
    let mut value = Value {
        command: ETHTOOL_GGRO,
        data: 0,
    };
    // SAFETY: `ifreq` is plain old data, for which all zeroes is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.len() >= request.ifr_name.len() {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    // Shorter than the array, so that a NUL is left at the end.
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_data = (&raw mut value).cast();
    // SAFETY: SIOCETHTOOL reads the request, and with ETHTOOL_GGRO reads and writes the `Value`
    // behind its pointer; both are live and exclusive here.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL, &raw mut request) })?;
    Ok(value.data != 0)
}
