// SPDX-License-Identifier: MIT OR Apache-2.0
//! Frames of the interface for providers without an engine of their own (`NEPacketTunnelFlow`).

use std::{
    io,
    os::fd::AsFd,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use tokio::{sync::watch, task::coop};

use super::{settings::MTU_RANGE, status::StopReason};
use crate::io::{
    tap::{self, TapQueue, VnetHeader},
    waker::Readiness,
};

/// Frames that one call returns at most.
const BATCH_FRAMES: usize = 64;
/// An Ethernet header; fewer bytes are no frame.
const MIN_FRAME: usize = 14;
/// The most that a frame may have besides the MTU: the Ethernet header and two VLAN tags.
const OVERHEAD: usize = MIN_FRAME + 2 * 4;
/// The largest frame that a TAP delivers without offloads. The kernel would cut a larger one without a
/// sign.
const MAX_FRAME: usize = *MTU_RANGE.end() as usize + OVERHEAD;

/// Why frames do not flow.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FlowError {
    /// There is no interface before the first settings.
    #[error("there is no interface yet")]
    NotReady,
    /// The session has ended, or is about to.
    #[error("the session has ended ({0:?})")]
    Closed(StopReason),
    /// Another program deleted the interface.
    #[error("the interface was deleted")]
    InterfaceLost,
    /// The kernel refused.
    #[error("reading or writing frames failed")]
    Io(#[from] io::Error),
}

/// The result of a batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SendReport {
    /// Frames that the kernel took.
    pub accepted: usize,
    /// Frames that are too short or too long, or that the kernel refused.
    pub rejected: usize,
}

/// The part of a session that readers and writers see.
#[derive(Clone)]
pub(super) struct Flow {
    pub(super) queue: watch::Receiver<Option<Arc<TapQueue>>>,
    pub(super) stopping: watch::Receiver<Option<StopReason>>,
    pub(super) mtu: Arc<AtomicU32>,
}

impl Flow {
    fn queue(&self) -> Option<Arc<TapQueue>> {
        // Cloned at once: a borrow that is held keeps the host from removing the interface.
        self.queue.borrow().clone()
    }

    fn closed(&self) -> FlowError {
        FlowError::Closed(self.stopping.borrow().unwrap_or(StopReason::None))
    }

    /// The interface, which `recv_batch` waits for.
    async fn wait_for_queue(&mut self) -> Result<Arc<TapQueue>, FlowError> {
        tokio::select! {
            biased;
            _ = self.stopping.wait_for(Option::is_some) => None,
            queue = self.queue.wait_for(Option::is_some) => queue.ok().and_then(|queue| queue.clone()),
        }
        .ok_or_else(|| self.closed())
    }
}

/// Reads frames; there is one per session.
pub struct FrameReader {
    flow: Flow,
    frame: Box<[u8]>,
    /// The number of pending calls, so that the host can see that frames are read.
    waiting: Arc<AtomicUsize>,
}

/// Counts one pending call, until it is dropped.
struct Waiting(Arc<AtomicUsize>);

impl Waiting {
    fn count(waiting: &Arc<AtomicUsize>) -> Self {
        waiting.fetch_add(1, Ordering::Relaxed);
        Self(waiting.clone())
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Writes frames. Clones write to the same interface.
#[derive(Clone)]
pub struct FrameWriter {
    flow: Flow,
}

impl FrameReader {
    pub(super) fn new(flow: Flow, waiting: Arc<AtomicUsize>) -> Self {
        Self {
            flow,
            frame: vec![0; MAX_FRAME].into(),
            waiting,
        }
    }

    /// Waits for at least one frame and appends the pending ones to `batch`, up to 64. Whole
    /// Ethernet frames, byte by byte as the kernel sent them. Dropping the future loses no frame.
    /// Frames wait in the kernel until they are read; it keeps 1,000 and counts the others as
    /// `tx_dropped` of the interface.
    ///
    /// # Errors
    /// [`FlowError::Closed`] as soon as the session is to end, for this call and later ones, so
    /// that a provider's loop ends with it; [`FlowError::InterfaceLost`].
    pub async fn recv_batch(&mut self, batch: &mut Vec<Bytes>) -> Result<usize, FlowError> {
        let _waiting = Waiting::count(&self.waiting);
        // A reader that never has to wait must let other tasks have their turn.
        coop::consume_budget().await;
        let queue = self.flow.wait_for_queue().await?;
        let read = self.read(&queue, batch)?;
        if read > 0 {
            return Ok(read);
        }
        let readiness = Readiness::of(queue.as_fd())?;
        loop {
            let is_stopping = tokio::select! {
                biased;
                _ = self.flow.stopping.wait_for(Option::is_some) => true,
                ready = readiness.wait() => {
                    // Cleared first: a frame that arrives after the read makes it ready again.
                    ready?.clear_ready();
                    false
                }
            };
            // No await between here and the return, as this future now owns the frames. A session
            // whose interface was deleted reports that.
            match self.read(&queue, batch)? {
                _ if is_stopping => return Err(self.flow.closed()),
                0 => {}
                read => return Ok(read),
            }
        }
    }

    /// Appends the pending frames.
    fn read(&mut self, queue: &TapQueue, batch: &mut Vec<Bytes>) -> Result<usize, FlowError> {
        let before = batch.len();
        while batch.len() - before < BATCH_FRAMES {
            match queue.try_read(&mut self.frame) {
                Ok(Some((vnet, at))) if vnet.is_finished() => {
                    batch.push(Bytes::copy_from_slice(&self.frame[at]));
                }
                // Only a NIC delivers such frames; see `Backend::Packet`.
                Ok(Some(_)) => {}
                Ok(None) => break,
                // The next call gets the error again.
                Err(_) if batch.len() > before => break,
                Err(error) => return Err(flow_error(error)),
            }
        }
        Ok(batch.len() - before)
    }

    /// The interface's descriptor, for providers that wait for it or read it in their own way;
    /// `None` before the first settings and after the session.
    ///
    /// The caller shares the descriptor with the host and must neither close it nor change its
    /// state. Frames that are read from it do not come out of [`Self::recv_batch`]. Drop it when
    /// [`ProviderContext::cancelled`](super::ProviderContext::cancelled) returns: the host removes
    /// the interface in any case; the descriptor is then useless, but stays open for as long as it
    /// is held.
    pub fn tap(&self) -> Option<Arc<TapQueue>> {
        self.flow.queue()
    }
}

impl FrameWriter {
    pub(super) fn new(flow: Flow) -> Self {
        Self { flow }
    }

    /// Writes frames without waiting. A refused frame does not stop the others: it is shorter than
    /// an Ethernet header, longer than the MTU allows with the header and two VLAN tags, or refused
    /// by the kernel, which takes none while the interface is down.
    ///
    /// # Errors
    /// [`FlowError::NotReady`] before the first settings, [`FlowError::Closed`] when the interface
    /// was removed, [`FlowError::InterfaceLost`].
    pub fn try_send_batch<F: AsRef<[u8]>>(&self, frames: &[F]) -> Result<SendReport, FlowError> {
        let queue = self.queue()?;
        let mut report = SendReport::default();
        for frame in frames {
            report.count(self.write(&queue, frame.as_ref())?);
        }
        Ok(report)
    }

    /// Writes frames as [`Self::try_send_batch`] does, and lets other tasks have their turn after
    /// every 64.
    ///
    /// It waits only where the kernel reports that there is no space, which a TAP does if it has a
    /// send buffer (`TUNSETSNDBUF`; an adopted device may have one). Otherwise the kernel takes a
    /// frame through its stack within the call, and the receiver drops the excess. It does not wait
    /// for the first settings, as it could not know for which time these frames were meant.
    /// Dropping the future loses the frames not yet written.
    ///
    /// # Errors
    /// As [`Self::try_send_batch`], and [`FlowError::Closed`] when the session is to end meanwhile.
    pub async fn send_batch<F: AsRef<[u8]>>(&self, frames: &[F]) -> Result<SendReport, FlowError> {
        let queue = self.queue()?;
        let mut report = SendReport::default();
        for (at, frame) in frames.iter().enumerate() {
            if at > 0 && at % BATCH_FRAMES == 0 {
                tokio::task::yield_now().await;
            }
            let mut written = self.write(&queue, frame.as_ref())?;
            while written == Written::NoRoom {
                self.wait_for_room(&queue).await?;
                written = self.write(&queue, frame.as_ref())?;
            }
            report.count(written);
        }
        Ok(report)
    }

    async fn wait_for_room(&self, queue: &TapQueue) -> Result<(), FlowError> {
        let room = Readiness::of(queue.as_fd())?;
        let mut stopping = self.flow.stopping.clone();
        tokio::select! {
            biased;
            _ = stopping.wait_for(Option::is_some) => {}
            ready = room.wait_for_room() => return Ok(ready.map(drop)?),
        }
        Err(self.flow.closed())
    }

    fn queue(&self) -> Result<Arc<TapQueue>, FlowError> {
        let none = || match self.flow.closed() {
            FlowError::Closed(StopReason::None) => FlowError::NotReady,
            closed => closed,
        };
        self.flow.queue().ok_or_else(none)
    }

    fn write(&self, queue: &TapQueue, frame: &[u8]) -> Result<Written, FlowError> {
        let mtu = self.flow.mtu.load(Ordering::Relaxed) as usize;
        // The kernel takes frames of any length.
        if !(MIN_FRAME..=mtu + OVERHEAD).contains(&frame.len()) {
            return Ok(Written::Rejected);
        }
        match queue.write(&VnetHeader::NONE, frame) {
            Ok(()) => Ok(Written::Accepted),
            Err(error) if tap::is_deleted(&error) => Err(FlowError::InterfaceLost),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Written::NoRoom),
            Err(_) => Ok(Written::Rejected),
        }
    }

    /// The interface's descriptor, as [`FrameReader::tap`].
    pub fn tap(&self) -> Option<Arc<TapQueue>> {
        self.flow.queue()
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Written {
    Accepted,
    Rejected,
    NoRoom,
}

impl SendReport {
    fn count(&mut self, written: Written) {
        match written {
            Written::Accepted => self.accepted += 1,
            Written::Rejected | Written::NoRoom => self.rejected += 1,
        }
    }
}

fn flow_error(error: io::Error) -> FlowError {
    if tap::is_deleted(&error) {
        FlowError::InterfaceLost
    } else {
        FlowError::Io(error)
    }
}
