// SPDX-License-Identifier: MIT OR Apache-2.0
//! The frames of a NIC, in and out.

use std::fs::File;
use std::io::{self, IoSlice, Write};
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use patchcord_bridge::ether_type;
use patchcord_bridge::ethernet::{ADDRESSES_LEN, TAG_LEN};
use zerocopy::IntoBytes;

use crate::io::own_traffic;
use crate::io::sys::{self, bpf, packet};
use crate::io::vnet::VnetHeader;

#[cfg(test)]
mod tests;

/// How long a writer waits for a NIC that is behind.
const PATIENCE: Duration = Duration::from_millis(2);
/// Bytes of the longest super-frame of Linux (GSO_MAX_SIZE), which a NIC has if its `gro_max_size` says
/// so, and a veth if that of its peer's `gso_max_size` does.
pub(in crate::io) const LONGEST_PACKET: usize = 8 * 65_535;
/// Bytes of the header of a frame without a tag.
const ETHERNET_HEADER: usize = ADDRESSES_LEN + 2;

/// The frames of one NIC, or those of some flows.
#[derive(Debug)]
pub(in crate::io) struct PacketSocket {
    pub(super) file: File,
    pub(super) index: u32,
    pub(super) has_vnet_header: bool,
}

impl PacketSocket {
    /// Reads one frame into `buf` and returns its range there; `None` when there is no frame, or
    /// while the interface is down. A frame that cannot be restored to its form on the wire is
    /// [`VnetHeader::BROKEN`].
    ///
    /// # Errors
    /// `ENODEV` when the interface was deleted.
    pub(in crate::io) fn try_read(
        &self,
        buf: &mut [u8],
    ) -> io::Result<Option<(VnetHeader, Range<usize>)>> {
        let mut header = VnetHeader::NONE;
        let in_front = if self.has_vnet_header {
            header.as_mut_bytes()
        } else {
            &mut []
        };
        let header_len = in_front.len();
        // Room for the tag is in front, so that only the addresses must move to insert it.
        let Some(room) = buf.get_mut(TAG_LEN..) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let received = match packet::receive(self.file.as_fd(), in_front, room) {
            Ok(received) => received,
            Err(error) => return self.explain(error),
        };
        let len = received.len.saturating_sub(header_len);
        let is_described = self.has_vnet_header || !received.is_open;
        if received.is_cut || len < ADDRESSES_LEN || !is_described {
            return Ok(Some((VnetHeader::BROKEN, 0..0)));
        }
        let Some((tpid, tci)) = received.tag else {
            return Ok(Some((header, TAG_LEN..TAG_LEN + len)));
        };
        buf.copy_within(TAG_LEN..TAG_LEN + ADDRESSES_LEN, 0);
        buf[ADDRESSES_LEN..ADDRESSES_LEN + 2].copy_from_slice(&tpid.to_be_bytes());
        buf[ADDRESSES_LEN + 2..ADDRESSES_LEN + TAG_LEN].copy_from_slice(&tci.to_be_bytes());
        header.insert(TAG_LEN as u16);
        Ok(Some((header, 0..TAG_LEN + len)))
    }

    /// From now on UDP datagrams to this port of this machine are not read.
    pub(in crate::io) fn leave_out_datagrams_to(&self, port: u16) -> io::Result<()> {
        bpf::attach_filter(self.file.as_fd(), &own_traffic::all_but_datagrams_to(port))
    }

    /// The meaning of an error of a read.
    fn explain(&self, error: io::Error) -> io::Result<Option<(VnetHeader, Range<usize>)>> {
        match error.raw_os_error() {
            Some(sys::EAGAIN) => Ok(None),
            Some(sys::ENETDOWN) if self.is_deleted() => {
                Err(io::Error::from_raw_os_error(sys::ENODEV))
            }
            // The socket works again by itself when the interface comes up.
            Some(sys::ENETDOWN) => Ok(None),
            // The kernel itself cannot describe the frame, which is lost: the NIC joined it (LRO).
            Some(sys::EINVAL) => Ok(Some((VnetHeader::BROKEN, 0..0))),
            _ => Err(error),
        }
    }

    /// Whether the interface was deleted, or moved to another namespace.
    pub(in crate::io) fn is_deleted(&self) -> bool {
        packet::binding(self.file.as_fd()).is_ok_and(|binding| binding.index < 0)
    }

    /// Writes one frame, `parts`, of which the first is `vnet` itself if there are such headers. Waits
    /// a moment while the NIC is behind.
    ///
    /// # Errors
    /// `EMSGSIZE` when the frame, or a segment of it, is larger than the interface takes, `ENETDOWN`
    /// while it is down, `EAGAIN` and `ENOBUFS` when it is too far behind, `EINVAL` when header and
    /// frame do not fit together, `ENXIO` when it was deleted.
    pub(in crate::io) fn write(&self, vnet: &VnetHeader, parts: &[IoSlice<'_>]) -> io::Result<()> {
        if vnet.gso_type != VnetHeader::GSO_NONE {
            self.check_segments(vnet, parts)?;
        }
        match (&self.file).write_vectored(parts) {
            Err(error) if error.raw_os_error() == Some(sys::EAGAIN) => {
                let entry = sys::PollEntry::new(self.file.as_fd(), sys::POLLOUT);
                sys::poll(&mut [entry], Some(PATIENCE))?;
                (&self.file).write_vectored(parts)
            }
            result => result,
        }
        .map(drop)
    }

    /// The kernel compares finished frames with the MTU, and trusts that segments fit.
    fn check_segments(&self, vnet: &VnetHeader, parts: &[IoSlice<'_>]) -> io::Result<()> {
        let head = parts.get(1).map_or(&[][..], |part| part);
        let tags = head.get(ADDRESSES_LEN..).map_or(0, |rest| {
            rest.chunks_exact(TAG_LEN)
                .take_while(|tag| is_vlan(tag))
                .count()
        });
        let total: usize = parts.iter().skip(1).map(|part| part.len()).sum();
        let segment = total.min(usize::from(vnet.hdr_len) + usize::from(vnet.gso_size));
        let mtu = packet::mtu(self.file.as_fd(), self.index)? as usize;
        if segment > mtu + ETHERNET_HEADER + tags * TAG_LEN {
            return Err(io::Error::from_raw_os_error(sys::EMSGSIZE));
        }
        Ok(())
    }
}

fn is_vlan(tag: &[u8]) -> bool {
    use ether_type::{CUSTOMER_TAG, OLD_STACKED_TAG, SERVICE_TAG};
    let tpid = tag.first_chunk().map(|tpid| u16::from_be_bytes(*tpid));
    matches!(tpid, Some(CUSTOMER_TAG | SERVICE_TAG | OLD_STACKED_TAG))
}

impl AsFd for PacketSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}
