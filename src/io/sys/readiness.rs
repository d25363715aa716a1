// SPDX-License-Identifier: MIT OR Apache-2.0
//! Waiting for a descriptor inside the async runtime.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use tokio::io::unix::{AsyncFd, AsyncFdReadyGuard};

/// A descriptor of its own for the same open file, registered with the runtime.
#[derive(Debug)]
pub(crate) struct Readiness(AsyncFd<OwnedFd>);

impl Readiness {
    /// Must be called inside a tokio runtime with its I/O driver on.
    pub(crate) fn of(fd: BorrowedFd<'_>) -> io::Result<Self> {
        let fd = fd.try_clone_to_owned()?;
        // SAFETY: an `OwnedFd` has one descriptor for life and keeps it open; it is moved into the
        // registration, which is undone before the descriptor is closed.
        unsafe { AsyncFd::register(fd) }
            .map(Self)
            .map_err(io::Error::from)
    }

    /// Waits until the file can be read. Clear the guard when a read finds nothing.
    pub(crate) async fn wait(&self) -> io::Result<AsyncFdReadyGuard<'_, OwnedFd>> {
        self.0.readable().await
    }

    /// Waits until the file can be written. Clear the guard when a write finds no room.
    pub(crate) async fn wait_for_room(&self) -> io::Result<AsyncFdReadyGuard<'_, OwnedFd>> {
        self.0.writable().await
    }
}
