// SPDX-License-Identifier: MIT OR Apache-2.0
//! A device without a kernel, for fuzz targets: they supply the frames that are read, and collect
//! those that are written. In no other build.
#![cfg(fuzzing)]

use std::{
    collections::VecDeque,
    fs::File,
    io::{self, IoSlice},
    ops::Range,
    os::fd::{AsFd, BorrowedFd},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::{sys, vnet::VnetHeader};

/// A frame and the kernel's header of it.
pub type Described = (VnetHeader, Vec<u8>);

/// Which writes fail.
#[derive(Clone, Copy, Debug)]
pub struct Refusals {
    /// Larger frames are too big, as for a NIC; super-frames count by their segments.
    pub longest: usize,
    /// `EINVAL` for super-frames of UDP, as of a kernel before 6.2 …
    pub udp: bool,
    /// … and for those with more segments, as of later ones.
    pub udp_segments: usize,
}

/// Both ends of the device.
#[derive(Clone, Debug)]
pub struct Device {
    frames: Arc<Mutex<Frames>>,
    refusals: Refusals,
    /// Readable at all times.
    file: Arc<File>,
}

#[derive(Debug, Default)]
struct Frames {
    to_read: VecDeque<Described>,
    written: Vec<Described>,
    refused: u64,
}

impl Device {
    /// With nothing to read.
    ///
    /// # Errors
    /// Without a `/dev/null`.
    pub fn new(refusals: Refusals) -> io::Result<Self> {
        Ok(Self {
            frames: Arc::default(),
            refusals,
            file: Arc::new(File::open("/dev/null")?),
        })
    }

    fn frames(&self) -> MutexGuard<'_, Frames> {
        self.frames.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Supplies a frame to read.
    pub fn put(&self, frame: Described) {
        self.frames().to_read.push_back(frame);
    }

    /// The frames that were written since the last call.
    pub fn take_written(&self) -> Vec<Described> {
        std::mem::take(&mut self.frames().written)
    }

    /// How many writes failed.
    pub fn refused(&self) -> u64 {
        self.frames().refused
    }

    pub(super) fn try_read(&self, buf: &mut [u8]) -> Option<(VnetHeader, Range<usize>)> {
        let (vnet, frame) = self.frames().to_read.pop_front()?;
        // The rest is cut off, as a TAP does.
        let len = frame.len().min(buf.len());
        buf[..len].copy_from_slice(&frame[..len]);
        Some((vnet, 0..len))
    }

    pub(super) fn write(&self, vnet: &VnetHeader, parts: &[IoSlice<'_>]) -> io::Result<()> {
        let frame: Vec<u8> = parts.iter().flat_map(|part| part.iter().copied()).collect();
        let refused = self.refused_because(vnet, frame.len());
        let mut frames = self.frames();
        if let Some(code) = refused {
            frames.refused += 1;
            return Err(io::Error::from_raw_os_error(code));
        }
        frames.written.push((*vnet, frame));
        Ok(())
    }

    fn refused_because(&self, vnet: &VnetHeader, len: usize) -> Option<i32> {
        let Refusals {
            longest,
            udp,
            udp_segments,
        } = self.refusals;
        let (segment, segments) = match vnet.gso_type {
            VnetHeader::GSO_NONE => (len, 1),
            _ => {
                let size = usize::from(vnet.gso_size).max(1);
                let headers = usize::from(vnet.hdr_len);
                (headers + size, len.saturating_sub(headers).div_ceil(size))
            }
        };
        if vnet.gso_type == VnetHeader::GSO_UDP_L4 && (udp || segments > udp_segments) {
            return Some(sys::EINVAL);
        }
        (segment > longest).then_some(sys::EMSGSIZE)
    }
}

impl AsFd for Device {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}
