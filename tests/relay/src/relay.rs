// SPDX-License-Identifier: MIT OR Apache-2.0
//! The two threads of a relay: frames in, the time, frames out.
// The clock is read here and passed to `harm` as an argument.
#![allow(clippy::disallowed_methods)]

use std::io;
use std::mem;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use serde::Serialize;

use crate::frame::Frame;
use crate::harm::{Fates, Harm, Path};
use crate::packet::{Arrived, BATCH, Port};

/// The time until a thread notices that it is to end.
const ATTENTION: Duration = Duration::from_millis(20);

/// The counters of one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counters {
    /// Frames that came in.
    pub received: u64,
    /// Frames that went out.
    pub sent: u64,
    /// ARP, neighbour discovery and all that is not IP: passed unchanged.
    pub untouched: u64,
    /// The fate of the others.
    #[serde(flatten)]
    pub fates: Fates,
    /// Dropped before they came in, because this program was not fast enough.
    pub overrun: u64,
    /// Dropped because they were longer than any frame of a cable: segmentation offload is on.
    pub too_long: u64,
    /// Passed with a checksum that is wrong by now: checksum offload is on.
    pub unfinished_checksum: u64,
    /// Refused by the outgoing interface: it is down, or its MTU is smaller.
    pub send_failed: u64,
}

/// The counters of both directions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// From the first port to the second.
    pub a_to_b: Counters,
    /// And back.
    pub b_to_a: Counters,
}

/// A relay at work; it ends with its value.
pub struct Relay {
    stop: Arc<AtomicBool>,
    directions: Vec<JoinHandle<io::Result<Counters>>>,
}

impl Relay {
    /// Joins two interfaces of the network namespace that the calling thread is in.
    ///
    /// # Errors
    /// When there is no such interface, or the caller may not open raw sockets.
    pub fn start(port_a: &str, port_b: &str, harm: &Harm) -> io::Result<Self> {
        let ports = [Arc::new(Port::open(port_a)?), Arc::new(Port::open(port_b)?)];
        let stop = Arc::new(AtomicBool::new(false));
        let directions = ["a-to-b", "b-to-a"].into_iter().enumerate();
        let directions = directions.map(|(from, name)| {
            let direction = Direction {
                from: Arc::clone(&ports[from]),
                to: Arc::clone(&ports[1 - from]),
                path: Path::new(harm, from as u64),
                counters: Counters::default(),
                outbox: Vec::with_capacity(BATCH),
                spares: Vec::with_capacity(BATCH),
            };
            let stop = Arc::clone(&stop);
            thread::Builder::new()
                .name(name.to_owned())
                .spawn(move || direction.run(&stop))
        });
        Ok(Self {
            directions: directions.collect::<io::Result<_>>()?,
            stop,
        })
    }

    /// Whether a direction has ended by itself, as it does when its interface goes away.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        self.directions.iter().any(JoinHandle::is_finished)
    }

    /// Ends it. Frames on their way are lost.
    ///
    /// # Errors
    /// The error that ended a direction before.
    pub fn stop(mut self) -> io::Result<Report> {
        self.stop.store(true, Ordering::Relaxed);
        let mut counters = self.directions.drain(..).map(|direction| {
            direction
                .join()
                .unwrap_or_else(|_| Err(io::Error::other("the relay panicked")))
        });
        let mut next = || counters.next().unwrap_or_else(|| Ok(Counters::default()));
        Ok(Report {
            a_to_b: next()?,
            b_to_a: next()?,
        })
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for direction in self.directions.drain(..) {
            let _ = direction.join();
        }
    }
}

struct Direction {
    from: Arc<Port>,
    to: Arc<Port>,
    path: Path<Frame>,
    counters: Counters,
    outbox: Vec<Frame>,
    /// Buffers of frames that have left.
    spares: Vec<Frame>,
}

impl Direction {
    fn run(mut self, stop: &AtomicBool) -> io::Result<Counters> {
        let begun = Instant::now();
        let mut inbox: Vec<_> = (0..BATCH).map(|_| Frame::new()).collect();
        let mut arrived = [Arrived::default(); BATCH];
        while !stop.load(Ordering::Relaxed) {
            let received = or_none_yet(self.from.receive(&mut inbox, &mut arrived))?;
            let now = begun.elapsed();
            for (frame, arrived) in inbox.iter_mut().zip(&arrived).take(received) {
                self.accept(frame, *arrived, now);
            }
            self.release(now);
            if received == 0 {
                let due = self.path.next_due();
                self.wait(due.map(|due| due.saturating_sub(begun.elapsed())))?;
            }
        }
        self.counters.fates = self.path.fates();
        self.counters.overrun = self.from.overrun()?;
        Ok(self.counters)
    }

    /// Takes a frame out of the inbox, and leaves an empty one in its place.
    fn accept(&mut self, frame: &mut Frame, arrived: Arrived, now: Duration) {
        self.counters.received += 1;
        self.counters.unfinished_checksum += u64::from(arrived.unfinished_checksum);
        if arrived.too_long {
            self.counters.too_long += 1;
            return;
        }
        let frame = mem::replace(frame, self.spares.pop().unwrap_or_else(Frame::new));
        if frame.may_be_harmed() {
            self.path.offer(frame, now);
        } else {
            self.counters.untouched += 1;
            self.outbox.push(frame);
        }
    }

    /// Sends the frames that are due by now.
    fn release(&mut self, now: Duration) {
        while let Some(frame) = self.path.poll(now) {
            self.outbox.push(frame);
            if self.outbox.len() >= BATCH {
                self.send();
            }
        }
        self.send();
    }

    fn send(&mut self) {
        let mut done = 0;
        while done < self.outbox.len() {
            match self.to.send(&self.outbox[done..]) {
                Ok(sent) => {
                    self.counters.sent += sent as u64;
                    done += sent;
                }
                // The first one is at fault: a wire would not carry it either.
                Err(_) => {
                    self.counters.send_failed += 1;
                    done += 1;
                }
            }
        }
        self.spares.append(&mut self.outbox);
        self.spares.truncate(4 * BATCH);
    }

    /// Waits until a frame comes, or `due` is over.
    fn wait(&self, due: Option<Duration>) -> io::Result<()> {
        let limit = due.unwrap_or(ATTENTION).min(ATTENTION);
        let mut entry = [PollFd::new(self.from.as_fd(), PollFlags::POLLIN)];
        match ppoll(&mut entry, Some(limit.into()), None) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

fn or_none_yet(received: io::Result<usize>) -> io::Result<usize> {
    match received {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
        // The interface was down for a moment; if it is gone, the next call reports it.
        Err(error) if error.raw_os_error() == Some(libc::ENETDOWN) => Ok(0),
        other => other,
    }
}
