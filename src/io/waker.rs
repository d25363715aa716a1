// SPDX-License-Identifier: MIT OR Apache-2.0
//! Waiting for several descriptors at once, and ending such a wait from another thread.
//!
//! A data thread waits for its TAP queue or socket together with a [`Waker`]; a thread that has
//! work for it, or wants it to stop, wakes it.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use super::sys;
use crate::queue::Wake;

pub(crate) use super::sys::readiness::Readiness;

/// Ends a [`wait`] from any thread. Clones share one state: awake or not.
#[derive(Clone, Debug)]
pub(crate) struct Waker {
    event: Arc<File>,
}

impl Waker {
    /// A waker that has not been called yet.
    ///
    /// # Errors
    /// When the process has too many open files.
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {
            event: Arc::new(sys::eventfd()?),
        })
    }

    /// Makes the descriptor ready until [`clear`](Self::clear) is called. Never blocks.
    pub(crate) fn wake(&self) {
        // Fails only when the counter is full, and then the descriptor is ready anyway.
        let _ = (&*self.event).write(&1u64.to_ne_bytes());
    }

    /// Goes back to sleep. Returns whether [`wake`](Self::wake) had been called.
    ///
    /// Clear first and check for work second, or a wake between the two is lost.
    pub(crate) fn clear(&self) -> bool {
        (&*self.event).read(&mut [0; 8]).is_ok()
    }
}

impl Wake for Waker {
    fn wake(&self) {
        Self::wake(self);
    }

    fn clear(&self) -> bool {
        Self::clear(self)
    }
}

impl AsFd for Waker {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

/// The most descriptors that one [`wait`] takes.
pub(crate) const MAX_FDS: usize = 16;

/// Which descriptors of a [`wait`] are ready, by their position.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ready {
    readable: u16,
    broken: u16,
}

impl Ready {
    /// Whether a read of descriptor `position` returns something, be it an error.
    pub(crate) fn is_readable(self, position: usize) -> bool {
        self.readable >> position & 1 == 1
    }

    /// Whether descriptor `position` is in error, was hung up or is not open. A TAP whose device
    /// was deleted shows this.
    pub(crate) fn is_broken(self, position: usize) -> bool {
        self.broken >> position & 1 == 1
    }

    /// Whether nothing happened before the timeout.
    pub(crate) fn is_timeout(self) -> bool {
        self == Self::default()
    }
}

/// Waits until one of `fds` is readable or broken, or `timeout` is over (none: for ever).
///
/// A signal ends the wait like a timeout does.
///
/// # Errors
/// When there are more than [`MAX_FDS`] descriptors.
pub(crate) fn wait(fds: &[BorrowedFd<'_>], timeout: Option<Duration>) -> io::Result<Ready> {
    if fds.len() > MAX_FDS {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "too many descriptors to wait for",
        ));
    }
    let mut entries = [sys::PollEntry::unused(); MAX_FDS];
    for (entry, &fd) in entries.iter_mut().zip(fds) {
        *entry = sys::PollEntry::new(fd, sys::POLLIN);
    }
    let entries = &mut entries[..fds.len()];
    match sys::poll(entries, timeout) {
        Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(Ready::default()),
        result => result?,
    };
    let mut ready = Ready::default();
    for (position, entry) in entries.iter().enumerate() {
        let has = |events| u16::from(entry.ready() & events != 0) << position;
        ready.readable |= has(sys::POLLIN);
        ready.broken |= has(sys::POLLERR | sys::POLLHUP | sys::POLLNVAL);
    }
    Ok(ready)
}

#[cfg(test)]
mod tests {
    use std::thread;
    use std::time::Instant;

    use super::*;

    #[test]
    fn a_wait_ends_when_another_thread_wakes() {
        let (idle, waker) = (Waker::new().unwrap(), Waker::new().unwrap());
        let remote = waker.clone();
        let thread = thread::spawn(move || remote.wake());
        let ready = wait(&[idle.as_fd(), waker.as_fd()], None).unwrap();
        thread.join().unwrap();
        assert!(!ready.is_readable(0) && ready.is_readable(1) && !ready.is_broken(1));
        assert!(waker.clear() && !waker.clear());
    }

    #[test]
    fn a_wait_without_events_ends_at_its_timeout() {
        let waker = Waker::new().unwrap();
        let start = Instant::now();
        let ready = wait(&[waker.as_fd()], Some(Duration::from_micros(1500))).unwrap();
        assert!(ready.is_timeout());
        assert!(start.elapsed() >= Duration::from_micros(1500));
    }

    #[test]
    fn waking_twice_is_one_wake() {
        let waker = Waker::new().unwrap();
        waker.wake();
        waker.wake();
        assert!(waker.clear());
        assert!(
            wait(&[waker.as_fd()], Some(Duration::ZERO))
                .unwrap()
                .is_timeout()
        );
    }

    #[test]
    fn too_many_descriptors_are_refused() {
        let waker = Waker::new().unwrap();
        assert!(wait(&[waker.as_fd(); MAX_FDS], Some(Duration::ZERO)).is_ok());
        assert!(wait(&[waker.as_fd(); MAX_FDS + 1], Some(Duration::ZERO)).is_err());
    }
}
