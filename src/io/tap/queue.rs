// SPDX-License-Identifier: MIT OR Apache-2.0
//! One queue: frames in and out.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use zerocopy::IntoBytes;

use crate::io::own_traffic;
use crate::io::packet::{self, PacketSocket};
use crate::io::steering::express::FlowTable;
use crate::io::sys;
use crate::io::sys::bpf;
use crate::io::sys::faults::{self, Call};
use crate::io::vnet::VnetHeader;

/// Whether an error of a queue means that the device was deleted.
pub(crate) fn is_deleted(error: &io::Error) -> bool {
    let code = error.raw_os_error();
    matches!(code, Some(sys::EBADFD | sys::ENODEV | sys::ENXIO))
}

/// Whether an error of a write means that the frame is larger than the NIC takes.
pub(crate) fn is_too_big(error: &io::Error) -> bool {
    error.raw_os_error() == Some(sys::EMSGSIZE)
}

/// One queue of a TAP, or of a NIC; one thread reads it and one writes it.
#[derive(Debug)]
pub struct TapQueue {
    pub(super) has_vnet_header: bool,
    pub(super) end: End,
    pub(super) is_express: bool,
    /// Of a device with an express queue.
    pub(super) flows: Option<Arc<FlowTable>>,
}

#[derive(Debug)]
pub(super) enum End {
    Tap(File),
    Nic(PacketSocket),
    #[cfg(fuzzing)]
    Memory(crate::io::memory::Device),
}

/// The most parts of a frame for [`TapQueue::write_parts`].
pub(crate) const MAX_PARTS: usize = 127;

impl TapQueue {
    /// Of a device without a kernel.
    #[cfg(fuzzing)]
    pub fn in_memory(device: crate::io::memory::Device, has_vnet_header: bool) -> Self {
        Self {
            has_vnet_header,
            end: End::Memory(device),
            is_express: false,
            flows: None,
        }
    }

    /// Whether frames may be written with more than [`VnetHeader::NONE`].
    pub fn takes_offloads(&self) -> bool {
        self.has_vnet_header
    }

    /// Whether the kernel itself cuts super-frames that are written. A NIC may do it in hardware, and
    /// number the packets in its own way.
    pub fn is_cut_by_kernel(&self) -> bool {
        self.has_vnet_header && !matches!(self.end, End::Nic(_))
    }

    /// Whether it is the queue for flows that send little: the last of its device, and only there
    /// if it was asked for and the kernel can do this.
    pub fn is_express(&self) -> bool {
        self.is_express
    }

    /// How many flows have been moved from the express queue to one for bulk so far. Who sees the
    /// first frame of such a flow in a queue sees the new number.
    pub fn moved_flows(&self) -> u64 {
        self.flows.as_ref().map_or(0, |flows| flows.changes())
    }

    /// Bytes of the longest frame that the kernel may hand over.
    pub fn longest_frame(&self) -> usize {
        // With room for an Ethernet header, tags, and the extra header of IPv6 packets of more than
        // 64 KiB.
        const ROOM: usize = 64;
        match &self.end {
            // A TAP's limit is GSO_LEGACY_MAX_SIZE; the kernel cuts longer frames before they reach
            // it.
            End::Tap(_) => 65_536 + ROOM,
            End::Nic(_) => packet::LONGEST_PACKET + ROOM,
            #[cfg(fuzzing)]
            End::Memory(_) => packet::LONGEST_PACKET + ROOM,
        }
    }

    /// Whether a queue that is in error (`Ready::is_broken`) stays so, because the device was
    /// deleted. A queue of a NIC that went down is in error until it is read, and works again when
    /// the NIC is up.
    pub fn is_lost(&self) -> bool {
        match &self.end {
            End::Tap(_) => true,
            End::Nic(socket) => socket.is_deleted(),
            #[cfg(fuzzing)]
            End::Memory(_) => false,
        }
    }

    /// From now on the datagrams of the tunnel itself are not read, so that the tunnel does not
    /// carry itself. Of a TAP, those are the datagrams that this machine sends from UDP port `port`
    /// by a socket with [`Mark::BYPASS`](crate::io::mark::Mark::BYPASS), for all queues; of a NIC,
    /// those that arrive for this machine and that port, for this queue.
    ///
    /// # Errors
    /// When the kernel has no memory for the filter, or the device was deleted.
    pub fn leave_out_tunnel(&self, port: u16) -> io::Result<()> {
        match &self.end {
            End::Tap(file) => bpf::attach_to_tap(file, &own_traffic::all_but_datagrams_from(port)),
            End::Nic(socket) => socket.leave_out_datagrams_to(port),
            #[cfg(fuzzing)]
            End::Memory(_) => Ok(()),
        }
    }

    /// Reads one frame into `buf` and returns its range there, the Ethernet header first; `None`
    /// when there is no frame. A TAP's frame that is longer than `buf` is cut off there without
    /// notice. A frame of a NIC that the kernel could not hand over unchanged is
    /// [`VnetHeader::BROKEN`].
    ///
    /// # Errors
    /// `EBADFD` or `ENODEV` when the device was deleted.
    pub fn try_read(&self, buf: &mut [u8]) -> io::Result<Option<(VnetHeader, Range<usize>)>> {
        let mut file = match &self.end {
            End::Tap(file) => file,
            End::Nic(socket) => return socket.try_read(buf),
            #[cfg(fuzzing)]
            End::Memory(device) => return Ok(device.try_read(buf)),
        };
        let mut header = VnetHeader::NONE;
        let result = if self.has_vnet_header {
            let mut parts = [IoSliceMut::new(header.as_mut_bytes()), IoSliceMut::new(buf)];
            file.read_vectored(&mut parts)
        } else {
            file.read(buf)
        };
        let len = match result {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            result => result?,
        };
        let in_front = if self.has_vnet_header {
            size_of::<VnetHeader>()
        } else {
            0
        };
        Ok(Some((header, 0..len.saturating_sub(in_front))))
    }

    /// Writes one frame. The plain back-end takes [`VnetHeader::NONE`] only.
    ///
    /// # Errors
    /// `EIO` while the device is down, `EINVAL` when header and frame do not fit together, `EBADFD`
    /// when the device was deleted. For a NIC, `ENETDOWN` and `ENXIO` in the same order, `EMSGSIZE`
    /// when the frame is too large for it (`is_too_big`), `EAGAIN` or `ENOBUFS` when it is behind.
    pub fn write(&self, vnet: &VnetHeader, frame: &[u8]) -> io::Result<()> {
        self.write_all(vnet, &[IoSlice::new(vnet.as_bytes()), IoSlice::new(frame)])
    }

    /// Writes one frame that lies in up to `MAX_PARTS` pieces.
    ///
    /// # Errors
    /// As [`write`](Self::write), and `InvalidInput` for too many pieces.
    pub fn write_parts(&self, vnet: &VnetHeader, frame: &[IoSlice<'_>]) -> io::Result<()> {
        // Two sizes, because most frames have few parts and clearing the large array is not free.
        if frame.len() < 8 {
            self.write_with_room::<8>(vnet, frame)
        } else if frame.len() <= MAX_PARTS {
            self.write_with_room::<{ MAX_PARTS + 1 }>(vnet, frame)
        } else {
            Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "a frame of too many parts",
            ))
        }
    }

    fn write_with_room<const N: usize>(
        &self,
        vnet: &VnetHeader,
        frame: &[IoSlice<'_>],
    ) -> io::Result<()> {
        let mut parts = [IoSlice::new(&[]); N];
        parts[0] = IoSlice::new(vnet.as_bytes());
        parts[1..=frame.len()].copy_from_slice(frame);
        self.write_all(vnet, &parts[..=frame.len()])
    }

    /// Writes `parts`, of which the first is `vnet` itself.
    fn write_all(&self, vnet: &VnetHeader, parts: &[IoSlice<'_>]) -> io::Result<()> {
        let parts = if self.has_vnet_header {
            parts
        } else if *vnet == VnetHeader::NONE {
            &parts[1..]
        } else {
            let message = "the plain back-end takes finished frames only";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        };
        if vnet.gso_type != VnetHeader::GSO_NONE {
            faults::before(Call::WriteSuperFrame, 1)?;
        }
        match &self.end {
            // The kernel takes a frame whole or not at all.
            End::Tap(file) => (&mut &*file).write_vectored(parts).map(drop),
            End::Nic(socket) => socket.write(vnet, parts),
            #[cfg(fuzzing)]
            End::Memory(device) => device.write(vnet, &parts[usize::from(self.has_vnet_header)..]),
        }
    }
}

impl AsFd for TapQueue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.end {
            End::Tap(file) => file.as_fd(),
            End::Nic(socket) => socket.as_fd(),
            #[cfg(fuzzing)]
            End::Memory(device) => device.as_fd(),
        }
    }
}
