// SPDX-License-Identifier: MIT OR Apache-2.0
//! A raw socket on one interface: batches of whole Ethernet frames, tags in their place.
//!
//! Owns the system calls. Does not receive frames that this machine itself sends out of the interface,
//! so that two relayed interfaces do not feed each other.
// The fence of this crate's unsafe code: each block is one system call, or reads what one has written.
#![allow(unsafe_code)]

use std::io;
use std::mem::{size_of, zeroed};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use socket2::{Domain, SockAddr, Socket, Type};

use crate::frame::Frame;

/// The most frames that one call moves.
pub(crate) const BATCH: usize = 64;

/// Room for a burst while the relay is not scheduled; the kernel drops and counts the excess.
const RECEIVE_BUFFER_BYTES: usize = 8 << 20;

/// Room for the control message of one frame, aligned as its header wants it.
type Control = [u64; 8];

// SAFETY: CMSG_SPACE only computes.
const CONTROL_SPACE: usize =
    unsafe { libc::CMSG_SPACE(size_of::<libc::tpacket_auxdata>() as u32) } as usize;
const _: () = assert!(CONTROL_SPACE <= size_of::<Control>());

/// The properties of a received frame besides its bytes.
#[derive(Clone, Copy, Default)]
pub(crate) struct Arrived {
    /// Longer than a [`Frame`]: cut off. Segmentation offload is on at the other end of the cable.
    pub(crate) too_long: bool,
    /// The sender left the checksum to a network card. Checksum offload is on at the other end.
    pub(crate) unfinished_checksum: bool,
}

/// One interface.
pub(crate) struct Port {
    socket: Socket,
}

impl Port {
    /// Opens the interface in the network namespace of this thread.
    pub(crate) fn open(interface: &str) -> io::Result<Self> {
        let index = nix::net::if_::if_nametoindex(interface).map_err(|error| {
            io::Error::new(
                io::Error::from(error).kind(),
                format!("interface {interface}: {error}"),
            )
        })?;
        // Without a protocol it receives nothing before it is bound to the interface.
        let socket = Socket::new(Domain::PACKET, Type::RAW, None)?;
        let port = Self { socket };
        let promiscuous = libc::packet_mreq {
            mr_ifindex: index as libc::c_int,
            mr_type: libc::PACKET_MR_PROMISC as libc::c_ushort,
            mr_alen: 0,
            mr_address: [0; 8],
        };
        let (on, room) = (1 as libc::c_int, RECEIVE_BUFFER_BYTES as libc::c_int);
        port.set(libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, &room)?;
        port.set(libc::SOL_PACKET, libc::PACKET_IGNORE_OUTGOING, &on)?;
        port.set(libc::SOL_PACKET, libc::PACKET_AUXDATA, &on)?;
        port.set(libc::SOL_PACKET, libc::PACKET_ADD_MEMBERSHIP, &promiscuous)?;
        port.socket.bind(&every_frame_of(index)?)?;
        Ok(port)
    }

    fn set<T>(&self, level: libc::c_int, name: libc::c_int, value: &T) -> io::Result<()> {
        // SAFETY: pointer and length describe `value`, which the kernel copies before it returns.
        let result = unsafe {
            libc::setsockopt(
                self.socket.as_raw_fd(),
                level,
                name,
                std::ptr::from_ref(value).cast(),
                size_of::<T>() as libc::socklen_t,
            )
        };
        check(result).map(drop)
    }

    /// Receives pending frames, without waiting, into the first of `frames`. Returns their number.
    pub(crate) fn receive(
        &self,
        frames: &mut [Frame],
        arrived: &mut [Arrived; BATCH],
    ) -> io::Result<usize> {
        let mut controls: [Control; BATCH] = [[0; 8]; BATCH];
        // SAFETY: both are plain old data, for which all zeroes is a value.
        let (mut parts, mut headers): ([libc::iovec; BATCH], [libc::mmsghdr; BATCH]) =
            unsafe { (zeroed(), zeroed()) };
        let count = frames.len().min(BATCH);
        for slot in 0..count {
            let room = frames[slot].room();
            parts[slot].iov_base = room.as_mut_ptr().cast();
            parts[slot].iov_len = room.len();
            let header = &mut headers[slot].msg_hdr;
            header.msg_iov = &raw mut parts[slot];
            header.msg_iovlen = 1;
            header.msg_control = (&raw mut controls[slot]).cast();
            header.msg_controllen = CONTROL_SPACE as _;
        }
        // SAFETY: each of the first `count` headers points to its own part and control room with the
        // length of it, and each part to its own frame; all are live and exclusive until the call
        // returns. The kernel keeps no pointer. A null timeout means none.
        let received = unsafe {
            libc::recvmmsg(
                self.socket.as_raw_fd(),
                headers.as_mut_ptr(),
                count as libc::c_uint,
                libc::MSG_DONTWAIT as _,
                std::ptr::null_mut(),
            )
        };
        let received = check(received)? as usize;
        for slot in 0..received {
            arrived[slot] = examine(&headers[slot], &mut frames[slot]);
        }
        Ok(received)
    }

    /// Sends frames, and returns how many the kernel took; an error is about the first one.
    pub(crate) fn send(&self, frames: &[Frame]) -> io::Result<usize> {
        // SAFETY: both are plain old data, for which all zeroes is a value.
        let (mut parts, mut headers): ([libc::iovec; BATCH], [libc::mmsghdr; BATCH]) =
            unsafe { (zeroed(), zeroed()) };
        let count = frames.len().min(BATCH);
        for slot in 0..count {
            let bytes = frames[slot].as_ref();
            // The kernel only reads what a part of an outgoing message points to.
            parts[slot].iov_base = bytes.as_ptr().cast_mut().cast();
            parts[slot].iov_len = bytes.len();
            headers[slot].msg_hdr.msg_iov = &raw mut parts[slot];
            headers[slot].msg_hdr.msg_iovlen = 1;
        }
        // SAFETY: each of the first `count` headers points to its own part, and each part to a frame
        // of its length; all outlive the call. The kernel writes `msg_len` only, keeps no pointer.
        let sent = unsafe {
            libc::sendmmsg(
                self.socket.as_raw_fd(),
                headers.as_mut_ptr(),
                count as libc::c_uint,
                0,
            )
        };
        check(sent).map(|sent| sent as usize)
    }

    /// The number of frames that the kernel dropped since the last call, because the receive buffer
    /// was full.
    pub(crate) fn overrun(&self) -> io::Result<u64> {
        // SAFETY: plain old data, for which all zeroes is a value.
        let mut stats: libc::tpacket_stats = unsafe { zeroed() };
        let mut len = size_of::<libc::tpacket_stats>() as libc::socklen_t;
        // SAFETY: pointer and length describe `stats`, which is live and exclusive during the call.
        let result = unsafe {
            libc::getsockopt(
                self.socket.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_STATISTICS,
                (&raw mut stats).cast(),
                &raw mut len,
            )
        };
        check(result)?;
        Ok(stats.tp_drops.into())
    }
}

impl AsFd for Port {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// The address that binds a socket to an interface and all protocols.
fn every_frame_of(index: u32) -> io::Result<SockAddr> {
    let all = (libc::ETH_P_ALL as u16).to_be();
    // SAFETY: the storage is zeroed, aligned for every address and larger than a `sockaddr_ll`, of
    // which the length is returned.
    let ((), address) = unsafe {
        SockAddr::try_init(|storage, len| {
            let address = &mut *storage.cast::<libc::sockaddr_ll>();
            address.sll_family = libc::AF_PACKET as libc::c_ushort;
            address.sll_protocol = all;
            address.sll_ifindex = index as libc::c_int;
            *len = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
            Ok(())
        })?
    };
    Ok(address)
}

/// Gives a received frame its length and its tag.
fn examine(header: &libc::mmsghdr, frame: &mut Frame) -> Arrived {
    frame.set_len(header.msg_len as usize);
    let Some(facts) = auxdata(&header.msg_hdr) else {
        return Arrived::default();
    };
    if facts.tp_status & libc::TP_STATUS_VLAN_VALID != 0 {
        let known = facts.tp_status & libc::TP_STATUS_VLAN_TPID_VALID != 0;
        let tpid = if known { facts.tp_vlan_tpid } else { 0x8100 };
        frame.insert_tag(tpid, facts.tp_vlan_tci);
    }
    Arrived {
        too_long: header.msg_hdr.msg_flags & libc::MSG_TRUNC != 0,
        unfinished_checksum: facts.tp_status & libc::TP_STATUS_CSUMNOTREADY != 0,
    }
}

fn auxdata(header: &libc::msghdr) -> Option<libc::tpacket_auxdata> {
    // SAFETY: `header` is as `recvmmsg` left it, and its control room is still there. CMSG_FIRSTHDR
    // gives null or a header within the room; data of CMSG_LEN(size_of T) bytes holds a T.
    unsafe {
        let message = libc::CMSG_FIRSTHDR(header).as_ref()?;
        let holds_it = message.cmsg_level == libc::SOL_PACKET
            && message.cmsg_type == libc::PACKET_AUXDATA
            && message.cmsg_len as usize
                >= libc::CMSG_LEN(size_of::<libc::tpacket_auxdata>() as u32) as usize;
        holds_it.then(|| {
            libc::CMSG_DATA(message)
                .cast::<libc::tpacket_auxdata>()
                .read_unaligned()
        })
    }
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result)
}
