// SPDX-License-Identifier: MIT OR Apache-2.0
//! Frames of the interface for providers without an engine of their own (`NEPacketTunnelFlow`).

use std::{
    io,
    os::fd::AsFd,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::{Bytes, BytesMut};
use tokio::sync::watch;

use crate::io::{
    tap::{self, TapQueue, VnetHeader},
    waker::Readiness,
};

/// Frames that one call returns at most.
const BATCH_FRAMES: usize = 64;
/// The largest frame that a TAP hands over without offloads, with room for tags.
const MAX_FRAME: usize = 65_536;
/// Shorter than an Ethernet header.
const MIN_FRAME: usize = 14;

/// Why frames do not flow.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FlowError {
    /// There is no interface before the first settings.
    #[error("there is no interface yet")]
    NotReady,
    /// The session has ended.
    #[error("the session has ended")]
    Closed,
    /// Somebody deleted the interface.
    #[error("the interface was deleted")]
    InterfaceLost,
    /// The kernel refused.
    #[error("reading or writing frames failed")]
    Io(#[from] io::Error),
}

/// What became of a batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SendReport {
    /// Frames that the kernel took.
    pub accepted: usize,
    /// Frames that are no Ethernet frames, or that the kernel refused.
    pub rejected: usize,
}

type Queue = watch::Receiver<Option<Arc<TapQueue>>>;

/// Reads frames; there is one per session.
pub struct FrameReader {
    queue: Queue,
    frame: Box<[u8]>,
    /// How many calls wait, for the host to see that frames are read.
    waiting: Arc<AtomicUsize>,
}

/// Counts one call that waits, until it is dropped.
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
    queue: Queue,
}

impl FrameReader {
    pub(super) fn new(queue: Queue, waiting: Arc<AtomicUsize>) -> Self {
        Self {
            queue,
            frame: vec![0; MAX_FRAME].into(),
            waiting,
        }
    }

    /// Waits for at least one frame and appends what is there to `batch`, up to 64. Whole Ethernet
    /// frames, byte by byte as the kernel sent them. Losing the future loses no frame.
    ///
    /// # Errors
    /// [`FlowError::Closed`] when the session has ended, [`FlowError::InterfaceLost`].
    pub async fn recv_batch(&mut self, batch: &mut Vec<Bytes>) -> Result<usize, FlowError> {
        let _waiting = Waiting::count(&self.waiting);
        loop {
            // Cloned at once: who holds on to what `wait_for` returns keeps the host from removing
            // the interface.
            let queue = self
                .queue
                .wait_for(Option::is_some)
                .await
                .map_err(|_| FlowError::Closed)?
                .clone();
            let Some(queue) = queue else { continue };
            let readiness = Readiness::of(queue.as_fd())?;
            let mut ready = readiness.wait().await?;
            let before = batch.len();
            while batch.len() - before < BATCH_FRAMES {
                match queue.try_read(&mut self.frame) {
                    Ok(Some((_, len))) => batch.push(BytesMut::from(&self.frame[..len]).freeze()),
                    Ok(None) => break,
                    Err(error) => return Err(flow_error(error)),
                }
            }
            if batch.len() > before {
                return Ok(batch.len() - before);
            }
            ready.clear_ready();
        }
    }
}

impl FrameWriter {
    pub(super) fn new(queue: Queue) -> Self {
        Self { queue }
    }

    /// Writes frames without waiting. One that is refused does not stop the others.
    ///
    /// # Errors
    /// [`FlowError::NotReady`] before the first settings, [`FlowError::InterfaceLost`].
    pub fn try_send_batch<F: AsRef<[u8]>>(&self, frames: &[F]) -> Result<SendReport, FlowError> {
        let queue = self.queue.borrow().clone().ok_or(FlowError::NotReady)?;
        let mut report = SendReport::default();
        for frame in frames.iter().map(AsRef::as_ref) {
            if !(MIN_FRAME..=MAX_FRAME).contains(&frame.len()) {
                report.rejected += 1;
                continue;
            }
            match queue.write(&VnetHeader::NONE, frame).map_err(flow_error) {
                Ok(()) => report.accepted += 1,
                Err(FlowError::InterfaceLost) => return Err(FlowError::InterfaceLost),
                Err(_) => report.rejected += 1,
            }
        }
        Ok(report)
    }
}

fn flow_error(error: io::Error) -> FlowError {
    if tap::is_deleted(&error) {
        FlowError::InterfaceLost
    } else {
        FlowError::Io(error)
    }
}
