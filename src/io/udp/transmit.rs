// SPDX-License-Identifier: MIT OR Apache-2.0
//! A train on its way out: in one call where GSO works, else datagram by datagram.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Instant;

use socket2::SockAddr;

use super::error::{SendFailure, has_code, is_about_local, send_error};
use super::patience::{Patience, WAITS};
use super::pauses::Key;
use super::socket::{UdpSocket, now};
use crate::io::sys;
use crate::io::sys::mmsg::SendOptions;
use crate::wire::local::Local;

#[cfg(test)]
mod tests;

/// The most datagrams in one GSO send; newer kernels take 128.
const MAX_SEGMENTS: usize = 64;

/// The most bytes in one GSO send: with its headers it must fit the length field of an IP packet.
const MAX_TRAIN: usize = 65_000;

/// The outcome for the datagrams of a train.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct SendReport {
    /// Accepted by the kernel.
    pub sent: usize,
    /// Dropped here, because the kernel had no room for them.
    pub dropped: usize,
    /// They could not leave from the requested source, and left from the kernel's choice.
    pub from_elsewhere: bool,
}

impl UdpSocket {
    /// [`send_train_from`](Self::send_train_from) with the source that the kernel chooses.
    #[cfg(test)]
    pub(crate) fn send_train(
        &self,
        to: SocketAddr,
        train: &[u8],
        segment_size: usize,
    ) -> Result<SendReport, SendFailure> {
        self.send_train_from(None, to, train, segment_size)
    }

    /// Sends `train` as datagrams of `segment_size` bytes, the last of which may be shorter. It
    /// leaves from `local`, an address of ours, or from the kernel's choice if that is none or
    /// gone.
    ///
    /// # Errors
    /// When the kernel refuses; datagrams that were already sent are on their way, and the rest is
    /// not attempted. No error is lasting: the next call starts afresh.
    pub(crate) fn send_train_from(
        &self,
        local: Option<Local>,
        to: SocketAddr,
        train: &[u8],
        segment_size: usize,
    ) -> Result<SendReport, SendFailure> {
        let options = SendOptions { hops: None, local };
        self.send_with(
            &mut Patience::Endless,
            now,
            to,
            options,
            train,
            (segment_size, true),
        )
    }

    /// [`send_train_from`](Self::send_train_from) with the options that the socket itself does not
    /// have, and with a `clock` that is read when GSO has failed or the socket is full.
    pub(super) fn send_with(
        &self,
        patience: &mut Patience,
        clock: impl Fn() -> Instant + Copy,
        to: SocketAddr,
        options: SendOptions,
        train: &[u8],
        (segment_size, as_train): (usize, bool),
    ) -> Result<SendReport, SendFailure> {
        let failure = |sent, source| SendFailure {
            sent,
            error: send_error(to, segment_size.min(train.len()), source),
        };
        if segment_size == 0 {
            return Err(failure(0, io::ErrorKind::InvalidInput.into()));
        }
        let mut sending = Sending {
            socket: self,
            to: self.kernel_address(to),
            options,
            key: Key::of(to),
            segment_size,
            as_train,
            patience,
            waits: 0,
            report: SendReport::default(),
        };
        let segments = (MAX_TRAIN / segment_size).clamp(1, MAX_SEGMENTS);
        for part in train.chunks(segments * segment_size) {
            let result = sending.send_part(part, clock);
            result.map_err(|source| failure(sending.report.sent, source))?;
        }
        Ok(sending.report)
    }

    fn may_segment(&self, key: Key, clock: impl FnOnce() -> Instant) -> bool {
        self.capabilities.gso && !self.pauses.includes(key, clock)
    }

    /// Whether trains to `to` leave in one piece now. Where the interface or the kernel refuses to
    /// cut them, they leave as single datagrams for a minute; then one train is tried again.
    #[cfg(test)]
    pub(crate) fn uses_gso(&self, to: SocketAddr) -> bool {
        self.may_segment(Key::of(to), now)
    }
}

/// A train on its way out.
struct Sending<'a> {
    socket: &'a UdpSocket,
    to: SockAddr,
    options: SendOptions,
    key: Key,
    segment_size: usize,
    /// Whether GSO may be used, where it works.
    as_train: bool,
    patience: &'a mut Patience,
    /// How often it has waited for room in the socket.
    waits: u32,
    report: SendReport,
}

impl Sending<'_> {
    /// Sends as much as fits one GSO send, in one call where possible.
    fn send_part(&mut self, part: &[u8], clock: impl Fn() -> Instant + Copy) -> io::Result<()> {
        let UdpSocket { pauses, .. } = self.socket;
        let is_single = part.len() <= self.segment_size || !self.as_train;
        if is_single || !self.socket.may_segment(self.key, clock) {
            return self.send_one_by_one(part, clock);
        }
        // A send that fails has sent nothing of its part.
        match self.send_segments(part, clock) {
            // The interface cannot checksum: GSO will not work there the next time either.
            Err(error) if has_code(&error, sys::EIO) => {
                pauses.begin(self.key, clock());
                self.send_one_by_one(part, clock)
            }
            // Older kernels report this when a segment exceeds the MTU, some with IPv6 over virtio.
            // Single datagrams show which: only if they pass, GSO was the cause.
            Err(error) if has_code(&error, sys::EINVAL) => {
                self.send_one_by_one(part, clock)?;
                pauses.strike(self.key, clock());
                Ok(())
            }
            result => result,
        }
    }

    fn send_segments(&mut self, part: &[u8], clock: impl Fn() -> Instant + Copy) -> io::Result<()> {
        // More than one segment in at most MAX_TRAIN bytes: the size fits 16 bits.
        let size = self.segment_size as u16;
        let taken = self.with_patience(clock, |fd, to, options| {
            sys::mmsg::send_segments(fd, to, options, part, size)
        })?;
        let datagrams = part.len().div_ceil(self.segment_size);
        if taken.is_some() {
            self.socket.pauses.end(self.key);
            self.report.sent += datagrams;
        } else {
            self.report.dropped += datagrams;
        }
        Ok(())
    }

    fn send_one_by_one(
        &mut self,
        mut rest: &[u8],
        clock: impl Fn() -> Instant + Copy,
    ) -> io::Result<()> {
        let size = self.segment_size;
        while !rest.is_empty() {
            let taken = self.with_patience(clock, |fd, to, options| {
                sys::mmsg::send_each(fd, to, options, rest, size)
            })?;
            let Some(sent) = taken else {
                self.report.dropped += rest.len().div_ceil(size);
                break;
            };
            self.report.sent += sent;
            rest = rest.get(sent * size..).unwrap_or_default();
        }
        Ok(())
    }

    /// Repeats `send` while the socket is full. `None`: it still is, and the patience is used up.
    fn with_patience<T>(
        &mut self,
        clock: impl Fn() -> Instant,
        send: impl Fn(BorrowedFd<'_>, &SockAddr, SendOptions) -> io::Result<T>,
    ) -> io::Result<Option<T>> {
        loop {
            match send(self.socket.as_fd(), &self.to, self.options) {
                Ok(value) => return Ok(Some(value)),
                Err(error) => match error.raw_os_error() {
                    Some(sys::EINTR) => {}
                    Some(sys::EAGAIN | sys::ENOBUFS) if self.waits == WAITS => return Ok(None),
                    Some(sys::EAGAIN | sys::ENOBUFS) => {
                        if !self.wait_for_room(&clock)? {
                            return Ok(None);
                        }
                    }
                    _ => return self.try_from_elsewhere(error, send).map(Some),
                },
            }
        }
    }

    /// Retries without the local address, if that may be the reason of the refusal.
    fn try_from_elsewhere<T>(
        &mut self,
        error: io::Error,
        send: impl Fn(BorrowedFd<'_>, &SockAddr, SendOptions) -> io::Result<T>,
    ) -> io::Result<T> {
        if self.options.local.is_none() || !is_about_local(&error) {
            return Err(error);
        }
        self.options.local = None;
        let sent = send(self.socket.as_fd(), &self.to, self.options)?;
        self.report.from_elsewhere = true;
        Ok(sent)
    }

    /// False if there is no time to wait.
    fn wait_for_room(&mut self, clock: impl Fn() -> Instant) -> io::Result<bool> {
        self.waits += 1;
        let Some(wait) = self.patience.next_wait(clock()) else {
            return Ok(false);
        };
        let entry = sys::PollEntry::new(self.socket.as_fd(), sys::POLLOUT);
        let waited = sys::poll(&mut [entry], Some(wait));
        self.patience.spend(clock());
        match waited {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => Err(error),
            _ => Ok(true),
        }
    }
}
