// SPDX-License-Identifier: MIT OR Apache-2.0
//! Packet sockets (packet(7)): the frames of one interface as they are on its wire.

use std::fs::File;
use std::io;
use std::mem::zeroed;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use super::check;
use super::faults::{self, Call};

/// `sll_hatype` of Ethernet.
pub(crate) const ETHERNET: u16 = libc::ARPHRD_ETHER;

/// Opens a non-blocking socket that receives nothing yet.
pub(crate) fn open() -> io::Result<File> {
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: takes no pointers.
    let fd = check(unsafe { libc::socket(libc::AF_PACKET, kind, 0) })?;
    // SAFETY: `fd` was just opened and has no other owner.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) }.into())
}

/// From now on the socket receives the frames of this interface, of every EtherType. One that is
/// down is bound as well, and the socket is in error until the next read.
pub(crate) fn bind(socket: BorrowedFd<'_>, index: u32) -> io::Result<()> {
    let index = libc::c_int::try_from(index).map_err(io::Error::other)?;
    // SAFETY: `sockaddr_ll` is plain old data, for which all zeroes is a value.
    let mut address: libc::sockaddr_ll = unsafe { zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
    address.sll_ifindex = index;
    // SAFETY: pointer and length describe `address`, which the kernel copies before it returns.
    check(unsafe {
        libc::bind(
            socket.as_raw_fd(),
            (&raw const address).cast(),
            size_of_val(&address) as libc::socklen_t,
        )
    })
    .map(drop)
}

/// Keeps the interface promiscuous as long as the socket is open.
pub(crate) fn make_promiscuous(socket: BorrowedFd<'_>, index: u32) -> io::Result<()> {
    let request = libc::packet_mreq {
        mr_ifindex: libc::c_int::try_from(index).map_err(io::Error::other)?,
        mr_type: libc::PACKET_MR_PROMISC as libc::c_ushort,
        mr_alen: 0,
        mr_address: [0; 8],
    };
    // SAFETY: pointer and length describe `request`, which the kernel copies before it returns.
    check(unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_ADD_MEMBERSHIP,
            (&raw const request).cast(),
            size_of_val(&request) as libc::socklen_t,
        )
    })
    .map(drop)
}

/// Makes bound sockets of one interface share its frames, all those of a flow at the same socket.
pub(crate) fn share(sockets: &[File]) -> io::Result<()> {
    // The first one makes a group with an unused number, the others join it.
    let mut group = libc::PACKET_FANOUT_FLAG_UNIQUEID << 16;
    for socket in sockets {
        let request = group | libc::PACKET_FANOUT_HASH << 16;
        // SAFETY: pointer and length describe `request`, which the kernel copies before it returns.
        check(unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_FANOUT,
                (&raw const request).cast(),
                size_of_val(&request) as libc::socklen_t,
            )
        })?;
        let mut len = size_of_val(&group) as libc::socklen_t;
        // SAFETY: `group` is live and exclusive, and `len` says how large it is; the kernel writes no
        // more than that and keeps no pointer.
        check(unsafe {
            libc::getsockopt(
                socket.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_FANOUT,
                (&raw mut group).cast(),
                &raw mut len,
            )
        })?;
        // Above the number are the kind and the flags of the group.
        group &= 0xffff;
    }
    Ok(())
}

/// The binding of a socket.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Binding {
    /// The interface; negative after it was deleted.
    pub(crate) index: i32,
    /// Its kind of hardware, [`ETHERNET`] for example.
    pub(crate) hardware: u16,
}

/// The binding of the socket.
pub(crate) fn binding(socket: BorrowedFd<'_>) -> io::Result<Binding> {
    // SAFETY: `sockaddr_ll` is plain old data, for which all zeroes is a value.
    let mut address: libc::sockaddr_ll = unsafe { zeroed() };
    let mut len = size_of_val(&address) as libc::socklen_t;
    // SAFETY: `address` is live and exclusive, and `len` says how large it is; the kernel writes no
    // more than that and keeps no pointer.
    check(unsafe {
        libc::getsockname(socket.as_raw_fd(), (&raw mut address).cast(), &raw mut len)
    })?;
    Ok(Binding {
        index: address.sll_ifindex,
        hardware: address.sll_hatype,
    })
}

/// The MTU of an interface in the namespace of `socket`.
pub(crate) fn mtu(socket: BorrowedFd<'_>, index: u32) -> io::Result<u32> {
    // SAFETY: `ifreq` is plain old data, for which all zeroes is a value.
    let mut request: libc::ifreq = unsafe { zeroed() };
    request.ifr_ifru.ifru_ifindex = libc::c_int::try_from(index).map_err(io::Error::other)?;
    // By its number, because names may change. SAFETY: SIOCGIFNAME reads and writes one `ifreq`, which
    // is live and exclusive here.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFNAME, &raw mut request) })?;
    // SAFETY: as above, for SIOCGIFMTU; the name in it is what the kernel has just written.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFMTU, &raw mut request) })?;
    // SAFETY: after SIOCGIFMTU this is the field of the union that the kernel has written.
    let mtu = unsafe { request.ifr_ifru.ifru_mtu };
    u32::try_from(mtu).map_err(io::Error::other)
}

/// The result of one [`receive`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Received {
    /// Bytes, those of the header included.
    pub(crate) len: usize,
    /// The outermost VLAN tag, which the kernel takes out of the frame: TPID and TCI.
    pub(crate) tag: Option<(u16, u16)>,
    /// The frame was longer than its room.
    pub(crate) is_cut: bool,
    /// The checksum of its transport is not complete.
    pub(crate) is_open: bool,
}

/// Room for control messages, aligned as their header requires.
#[repr(C)]
union Control {
    bytes: [u8; 64],
    _align: libc::cmsghdr,
}

// SAFETY: CMSG_SPACE only computes.
const AUXDATA_SPACE: usize =
    unsafe { libc::CMSG_SPACE(size_of::<libc::tpacket_auxdata>() as u32) } as usize;
const _: () = assert!(AUXDATA_SPACE <= size_of::<Control>());

/// Receives one frame, with PACKET_AUXDATA: the first bytes into `header`, the others into `frame`.
pub(crate) fn receive(
    socket: BorrowedFd<'_>,
    header: &mut [u8],
    frame: &mut [u8],
) -> io::Result<Received> {
    faults::before(Call::ReceiveFrame, 1)?;
    let mut parts = [header, frame].map(|part| libc::iovec {
        iov_base: part.as_mut_ptr().cast(),
        iov_len: part.len(),
    });
    let mut control = Control { bytes: [0; 64] };
    // SAFETY: `msghdr` is plain old data, for which all zeroes is a value.
    let mut message: libc::msghdr = unsafe { zeroed() };
    message.msg_iov = parts.as_mut_ptr();
    message.msg_iovlen = parts.len() as _;
    message.msg_control = (&raw mut control).cast();
    message.msg_controllen = size_of_val(&control) as _;
    // SAFETY: the message points to both parts and to `control` with the length of each; all are live
    // and exclusive until the call returns, and the kernel keeps no pointer.
    let len = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_DONTWAIT) };
    let Ok(len) = usize::try_from(len) else {
        return Err(io::Error::last_os_error());
    };
    let mut received = Received {
        len,
        tag: None,
        is_cut: message.msg_flags & libc::MSG_TRUNC != 0,
        is_open: false,
    };
    if let Some(auxdata) = auxdata(&message) {
        let has = |bit| auxdata.tp_status & bit != 0;
        received.is_open = has(libc::TP_STATUS_CSUMNOTREADY);
        received.tag = has(libc::TP_STATUS_VLAN_VALID).then(|| {
            // Kernels before 3.14 know one TPID only.
            let tpid = match has(libc::TP_STATUS_VLAN_TPID_VALID) {
                true => auxdata.tp_vlan_tpid,
                false => libc::ETH_P_8021Q as u16,
            };
            (tpid, auxdata.tp_vlan_tci)
        });
    }
    Ok(received)
}

/// The kernel's description of a frame beside its bytes.
fn auxdata(message: &libc::msghdr) -> Option<libc::tpacket_auxdata> {
    // SAFETY: `msg_control` and `msg_controllen` describe what the kernel wrote, and the room
    // outlives this call; CMSG_FIRSTHDR and CMSG_NXTHDR stay inside of it, and the data of
    // PACKET_AUXDATA is a `tpacket_auxdata`, for which any bytes are a value.
    unsafe {
        let mut part = libc::CMSG_FIRSTHDR(message);
        while !part.is_null() {
            if (*part).cmsg_level == libc::SOL_PACKET && (*part).cmsg_type == libc::PACKET_AUXDATA {
                return Some(
                    libc::CMSG_DATA(part)
                        .cast::<libc::tpacket_auxdata>()
                        .read_unaligned(),
                );
            }
            part = libc::CMSG_NXTHDR(message, part);
        }
    }
    None
}
