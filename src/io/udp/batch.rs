// SPDX-License-Identifier: MIT OR Apache-2.0
//! What one call receives: buffers for several trains, and their datagrams one by one.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::BorrowedFd;

use crate::io::sys;

/// Buffers for [`recv_batch`](super::UdpSocket::recv_batch), allocated once; 64 KiB each, because
/// one may be a train.
pub struct RecvBatch {
    slots: sys::mmsg::Slots,
    filled: usize,
}

impl RecvBatch {
    /// Free bytes before what was received, for a header in front of it.
    pub const HEADROOM: usize = sys::mmsg::HEADROOM;

    /// A batch of `buffers` buffers, from 1 to 64.
    pub fn new(buffers: usize) -> Self {
        Self {
            slots: sys::mmsg::Slots::new(buffers),
            filled: 0,
        }
    }

    /// Fills buffers with what has arrived, without waiting. Returns how many; none on an error.
    pub(super) fn receive(&mut self, socket: BorrowedFd<'_>) -> io::Result<usize> {
        self.filled = 0;
        self.filled = sys::mmsg::receive(socket, &mut self.slots)?;
        Ok(self.filled)
    }

    /// What the last [`recv_batch`](super::UdpSocket::recv_batch) brought, in the order of arrival.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = Received<'_>> {
        self.slots.filled(self.filled).filter_map(|slot| {
            let stride = slot.segment_size.max(1);
            Some(Received {
                from: canonical(slot.source?),
                stride,
                buffer: slot.bytes,
            })
        })
    }
}

/// One received train: one or more datagrams of the same sender.
#[derive(Debug)]
pub struct Received<'a> {
    /// The sender; IPv4 senders have an IPv4 address on every socket.
    pub from: SocketAddr,
    /// Datagrams are this far apart, the last may be shorter. At least 1, for `chunks_mut`.
    pub stride: usize,
    buffer: &'a mut [u8],
}

impl<'a> Received<'a> {
    /// The datagrams, back to back. Empty for an empty datagram.
    pub fn bytes(&mut self) -> &mut [u8] {
        &mut self.buffer[RecvBatch::HEADROOM..]
    }

    /// [`RecvBatch::HEADROOM`] free bytes, then the datagrams.
    pub fn with_headroom(self) -> &'a mut [u8] {
        self.buffer
    }

    /// The datagrams one by one.
    pub fn datagrams(&mut self) -> impl Iterator<Item = &mut [u8]> {
        let stride = self.stride;
        self.bytes().chunks_mut(stride)
    }
}

/// IPv4-mapped addresses as IPv4; scope and flow of real IPv6 addresses stay.
fn canonical(address: SocketAddr) -> SocketAddr {
    match address.ip().to_canonical() {
        IpAddr::V4(v4) => SocketAddr::new(v4.into(), address.port()),
        IpAddr::V6(_) => address,
    }
}
