// SPDX-License-Identifier: MIT OR Apache-2.0
//! `sendmsg`, `sendmmsg` and `recvmmsg` with the control messages of UDP segmentation.

use std::io;
use std::mem::{MaybeUninit, zeroed};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, BorrowedFd};

use socket2::{SockAddr, SockAddrStorage};

use super::check;
use super::faults::{self, Call};
use crate::wire::local::Local;

/// The most datagrams that one call of [`send_each`] or [`receive`] moves.
pub(crate) const MAX_BATCH: usize = 64;

/// Free bytes before every received datagram.
pub(crate) const HEADROOM: usize = 64;

/// More than the kernel ever merges into one UDP receive.
const CAPACITY: usize = 1 << 16;
const STRIDE: usize = HEADROOM + CAPACITY;

/// Room for control messages, aligned as their header requires.
#[derive(Clone, Copy)]
#[repr(C)]
union Control {
    bytes: [u8; 96],
    _align: libc::cmsghdr,
}

/// The room that a control message with a `T` takes.
const fn space<T>() -> usize {
    // SAFETY: CMSG_SPACE only computes.
    unsafe { libc::CMSG_SPACE(size_of::<T>() as u32) as usize }
}

/// Of the larger kind; a socket gets one.
const INFO_SPACE: usize = space::<libc::in6_pktinfo>();
const _: () = assert!(space::<libc::in_pktinfo>() <= INFO_SPACE);
/// How datagrams were merged, and their local address.
const RECEIVED_SPACE: usize = space::<libc::c_int>() + INFO_SPACE;
/// How to cut them, their time to live, and their source.
const SENT_SPACE: usize = space::<u16>() + space::<libc::c_int>() + INFO_SPACE;
const _: () = assert!(RECEIVED_SPACE <= size_of::<Control>() && SENT_SPACE <= size_of::<Control>());

/// Options of a datagram beside those of its socket.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct SendOptions {
    /// Its time to live, or hop limit.
    pub(crate) hops: Option<u8>,
    /// Its source.
    pub(crate) local: Option<Local>,
}

/// Control messages for the kernel, back to back.
struct Messages {
    room: Control,
    len: usize,
}

impl Messages {
    fn of(options: SendOptions, to: &SockAddr) -> Self {
        let mut messages = Self {
            room: Control { bytes: [0; _] },
            len: 0,
        };
        if let Some(hops) = options.hops {
            // An IPv6 socket takes the options of IPv4 for what leaves by IPv4.
            let (level, name) = match to.as_socket_ipv6() {
                Some(to) if to.ip().to_ipv4_mapped().is_none() => {
                    (libc::SOL_IPV6, libc::IPV6_HOPLIMIT)
                }
                _ => (libc::SOL_IP, libc::IP_TTL),
            };
            messages.push(level, name, libc::c_int::from(hops));
        }
        match options.local {
            Some(local) => messages.push_local(local, to),
            None => messages,
        }
    }

    fn push_local(mut self, local: Local, to: &SockAddr) -> Self {
        let Local { address, interface } = local;
        match (address, to.as_socket_ipv6()) {
            (IpAddr::V4(address), None) => {
                let info = libc::in_pktinfo {
                    ipi_ifindex: interface.cast_signed(),
                    ipi_spec_dst: libc::in_addr {
                        s_addr: u32::from_ne_bytes(address.octets()),
                    },
                    ipi_addr: libc::in_addr { s_addr: 0 },
                };
                self.push(libc::SOL_IP, libc::IP_PKTINFO, info);
            }
            (address, Some(_)) => {
                let address = match address {
                    IpAddr::V4(address) => address.to_ipv6_mapped(),
                    IpAddr::V6(address) => address,
                };
                let info = libc::in6_pktinfo {
                    ipi6_addr: libc::in6_addr {
                        s6_addr: address.octets(),
                    },
                    ipi6_ifindex: interface,
                };
                self.push(libc::SOL_IPV6, libc::IPV6_PKTINFO, info);
            }
            // Nothing can leave an IPv4 socket from there.
            (IpAddr::V6(_), None) => {}
        }
        self
    }

    fn push<T: Copy>(&mut self, level: libc::c_int, name: libc::c_int, value: T) {
        const { assert!(align_of::<T>() <= align_of::<libc::cmsghdr>()) }
        assert!(self.len + space::<T>() <= size_of::<Control>());
        // SAFETY: `room` has `space::<T>()` zeroed bytes behind `len`, as was checked, and `len` is a
        // sum of such spaces, which keep the alignment of a header. Its data has room for a `T`.
        unsafe {
            let message = (&raw mut self.room)
                .byte_add(self.len)
                .cast::<libc::cmsghdr>();
            (*message).cmsg_level = level;
            (*message).cmsg_type = name;
            (*message).cmsg_len = libc::CMSG_LEN(size_of::<T>() as u32) as _;
            libc::CMSG_DATA(message).cast::<T>().write_unaligned(value);
        }
        self.len += space::<T>();
    }

    /// Puts them into `header`, which borrows them by pointer.
    fn add_to(&mut self, header: &mut libc::msghdr) {
        if self.len > 0 {
            header.msg_control = (&raw mut self.room).cast();
            header.msg_controllen = self.len as _;
        }
    }
}

/// Sends `train` as datagrams of `segment_size` bytes in one call (UDP GSO).
pub(crate) fn send_segments(
    socket: BorrowedFd<'_>,
    to: &SockAddr,
    options: SendOptions,
    train: &[u8],
    segment_size: u16,
) -> io::Result<()> {
    faults::before(Call::SendSegments, 1)?;
    let mut messages = Messages::of(options, to);
    messages.push(libc::SOL_UDP, libc::UDP_SEGMENT, segment_size);
    let mut part = iovec(train);
    let mut header = header_to(to, &mut part);
    messages.add_to(&mut header);
    // SAFETY: the kernel reads `to`, `train` and `messages`, which outlive the call, and keeps no
    // pointer.
    let sent = unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const header, libc::MSG_DONTWAIT) };
    check(sent.clamp(-1, 0) as libc::c_int).map(drop)
}

/// Sends up to [`MAX_BATCH`] datagrams of `segment_size` bytes from the front of `train`; the last
/// one of the train may be shorter. Returns how many datagrams the kernel took.
pub(crate) fn send_each(
    socket: BorrowedFd<'_>,
    to: &SockAddr,
    options: SendOptions,
    train: &[u8],
    segment_size: usize,
) -> io::Result<usize> {
    let mut messages = Messages::of(options, to);
    let mut parts = [iovec(&[]); MAX_BATCH];
    let mut headers = [MaybeUninit::<libc::mmsghdr>::uninit(); MAX_BATCH];
    let mut count = 0;
    for ((datagram, part), header) in train.chunks(segment_size).zip(&mut parts).zip(&mut headers) {
        *part = iovec(datagram);
        let mut msg_hdr = header_to(to, part);
        messages.add_to(&mut msg_hdr);
        header.write(libc::mmsghdr {
            msg_hdr,
            msg_len: 0,
        });
        count += 1;
    }
    let count = faults::before(Call::SendEach, count)?;
    // SAFETY: the first `count` headers are written; their iovecs, addresses, control messages and
    // bytes outlive the call; the kernel writes `msg_len` only and keeps no pointer.
    let sent = unsafe {
        libc::sendmmsg(
            socket.as_raw_fd(),
            headers.as_mut_ptr().cast(),
            count as libc::c_uint,
            libc::MSG_DONTWAIT as _,
        )
    };
    check(sent).map(|sent| sent as usize)
}

/// Buffers for [`receive`], allocated once.
pub(crate) struct Slots {
    bytes: Box<[u8]>,
    arrived: Box<[Arrived]>,
}

/// The result of [`receive`] for one buffer.
#[derive(Clone, Copy)]
struct Arrived {
    source: Option<SocketAddr>,
    local: Option<Local>,
    len: usize,
    segment_size: usize,
}

/// One filled buffer.
pub(crate) struct Slot<'a> {
    /// Its sender, as the socket sees it. `None` when the address cannot be parsed.
    pub(crate) source: Option<SocketAddr>,
    /// Its local address, if the kernel says.
    pub(crate) local: Option<Local>,
    /// [`HEADROOM`] bytes, then the received bytes.
    pub(crate) bytes: &'a mut [u8],
    /// The size of all datagrams in it but the last, as UDP GRO says; otherwise the whole length.
    pub(crate) segment_size: usize,
}

impl Slots {
    /// Buffers for `count` receives, at most [`MAX_BATCH`].
    pub(crate) fn new(count: usize) -> Self {
        let count = count.clamp(1, MAX_BATCH);
        let empty = Arrived {
            source: None,
            local: None,
            len: 0,
            segment_size: 0,
        };
        Self {
            bytes: vec![0; count * STRIDE].into_boxed_slice(),
            arrived: vec![empty; count].into_boxed_slice(),
        }
    }

    /// How many buffers there are.
    pub(crate) fn len(&self) -> usize {
        self.arrived.len()
    }

    /// Fills buffer `place` with datagrams of `segment_size` bytes that were received elsewhere.
    pub(crate) fn fill(
        &mut self,
        place: usize,
        (source, local): (SocketAddr, Option<Local>),
        segment_size: usize,
        train: &[u8],
    ) {
        let len = train.len().min(CAPACITY);
        let begin = place * STRIDE + HEADROOM;
        self.bytes[begin..begin + len].copy_from_slice(&train[..len]);
        self.arrived[place] = Arrived {
            source: Some(source),
            local,
            len,
            segment_size,
        };
    }

    /// The total of bytes in the first `count` buffers.
    pub(crate) fn filled_bytes(&self, count: usize) -> usize {
        self.arrived[..count]
            .iter()
            .map(|arrived| arrived.len)
            .sum()
    }

    /// The first `count` buffers.
    pub(crate) fn filled(&mut self, count: usize) -> impl Iterator<Item = Slot<'_>> {
        let slots = self
            .bytes
            .chunks_exact_mut(STRIDE)
            .zip(&self.arrived)
            .take(count);
        slots.map(|(bytes, arrived)| Slot {
            source: arrived.source,
            local: arrived.local,
            bytes: &mut bytes[..HEADROOM + arrived.len],
            segment_size: arrived.segment_size,
        })
    }
}

/// Receives the waiting datagrams into the first `offered` buffers, without blocking. Returns how
/// many buffers are filled.
pub(crate) fn receive(
    socket: BorrowedFd<'_>,
    slots: &mut Slots,
    offered: usize,
) -> io::Result<usize> {
    let mut parts = [iovec(&[]); MAX_BATCH];
    let mut headers = [MaybeUninit::<libc::mmsghdr>::uninit(); MAX_BATCH];
    let mut controls = [MaybeUninit::<Control>::uninit(); MAX_BATCH];
    let mut sources = [const { MaybeUninit::<SockAddrStorage>::uninit() }; MAX_BATCH];
    let mut count = 0;
    let buffers = slots.bytes.chunks_exact_mut(STRIDE).take(offered);
    for (slot, bytes) in buffers.enumerate() {
        let room = &mut bytes[HEADROOM..];
        parts[slot] = libc::iovec {
            iov_base: room.as_mut_ptr().cast(),
            iov_len: room.len(),
        };
        // SAFETY: `msghdr` is plain old data, for which all zeroes is a value.
        let mut header: libc::msghdr = unsafe { zeroed() };
        header.msg_name = sources[slot].write(SockAddrStorage::zeroed()) as *mut _ as *mut _;
        header.msg_namelen = size_of::<SockAddrStorage>() as libc::socklen_t;
        header.msg_iov = &raw mut parts[slot];
        header.msg_iovlen = 1;
        header.msg_control = controls[slot].as_mut_ptr().cast();
        header.msg_controllen = RECEIVED_SPACE as _;
        headers[slot].write(libc::mmsghdr {
            msg_hdr: header,
            msg_len: 0,
        });
        count += 1;
    }
    let count = faults::before(Call::Receive, count)?;
    // SAFETY: the first `count` headers are written. Each points to its own address, control and
    // data room with the length of it, all of which are live and exclusive until the call returns.
    // The kernel keeps no pointer. A null timeout means none.
    let received = unsafe {
        libc::recvmmsg(
            socket.as_raw_fd(),
            headers.as_mut_ptr().cast(),
            count as libc::c_uint,
            libc::MSG_DONTWAIT as _,
            std::ptr::null_mut(),
        )
    };
    let received = check(received)? as usize;
    for (slot, arrived) in slots.arrived[..received].iter_mut().enumerate() {
        // SAFETY: the loop above wrote the headers and sources of the first `count` slots, and the
        // kernel fills at most as many.
        let (header, source) = unsafe {
            (
                headers[slot].assume_init_ref(),
                sources[slot].assume_init_read(),
            )
        };
        *arrived = examine(header, source);
    }
    Ok(received)
}

/// Reads what the kernel wrote beside the bytes of one receive.
fn examine(header: &libc::mmsghdr, source: SockAddrStorage) -> Arrived {
    // SAFETY: the kernel wrote an address of `msg_namelen` bytes into `source`, which was zeroed.
    let source = unsafe { SockAddr::new(source, header.msg_hdr.msg_namelen) }.as_socket();
    // A datagram that does not fit a buffer of 64 KiB is none of ours; without bytes it is ignored.
    let truncated = header.msg_hdr.msg_flags & libc::MSG_TRUNC != 0;
    let len = if truncated {
        0
    } else {
        header.msg_len as usize
    };
    let mut arrived = Arrived {
        source,
        local: None,
        len,
        segment_size: len,
    };
    read_messages(&header.msg_hdr, &mut arrived);
    arrived
}

/// Records the segment size that UDP GRO reports, if this is not a single datagram, and the local
/// address.
fn read_messages(header: &libc::msghdr, arrived: &mut Arrived) {
    // SAFETY: `msg_control` and `msg_controllen` describe what the kernel wrote, and the room
    // outlives this call; CMSG_FIRSTHDR and CMSG_NXTHDR stay inside of it, and the data of each
    // message has the type that its level and number stand for.
    unsafe {
        let mut message = libc::CMSG_FIRSTHDR(header);
        while !message.is_null() {
            let data = libc::CMSG_DATA(message);
            match ((*message).cmsg_level, (*message).cmsg_type) {
                (libc::SOL_UDP, libc::UDP_GRO) => {
                    let size = data.cast::<libc::c_int>().read_unaligned();
                    if let Ok(size @ 1..) = usize::try_from(size) {
                        arrived.segment_size = size;
                    }
                }
                (libc::SOL_IP, libc::IP_PKTINFO) => {
                    let info = data.cast::<libc::in_pktinfo>().read_unaligned();
                    let address = Ipv4Addr::from(info.ipi_spec_dst.s_addr.to_ne_bytes());
                    arrived.local = Local::new(address.into(), info.ipi_ifindex.cast_unsigned());
                }
                (libc::SOL_IPV6, libc::IPV6_PKTINFO) => {
                    let info = data.cast::<libc::in6_pktinfo>().read_unaligned();
                    let address = Ipv6Addr::from(info.ipi6_addr.s6_addr);
                    arrived.local = Local::new(address.into(), info.ipi6_ifindex);
                }
                _ => {}
            }
            message = libc::CMSG_NXTHDR(header, message);
        }
    }
}

/// A part that the kernel only reads from.
fn iovec(bytes: &[u8]) -> libc::iovec {
    libc::iovec {
        iov_base: bytes.as_ptr().cast_mut().cast(),
        iov_len: bytes.len(),
    }
}

/// The header of a message to send; it borrows both arguments by pointer.
fn header_to(to: &SockAddr, part: &mut libc::iovec) -> libc::msghdr {
    // SAFETY: `msghdr` is plain old data, for which all zeroes is a value.
    let mut header: libc::msghdr = unsafe { zeroed() };
    header.msg_name = to.as_ptr().cast_mut().cast();
    header.msg_namelen = to.len();
    header.msg_iov = part;
    header.msg_iovlen = 1;
    header
}
