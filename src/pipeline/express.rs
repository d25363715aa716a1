// SPDX-License-Identifier: MIT OR Apache-2.0
//! Order between the express lane and the others.
//!
//! A flow begins in the express lane, and moves to another lane when it sends much. Its first frame
//! there must not overtake those before. So each thread of another lane, once it has taken frames
//! from its queue, lets the express thread hand on what is in the express queue by then. In the
//! outbound direction the kernel says when a flow has moved
//! ([`moved_flows`](crate::io::tap::TapQueue::moved_flows)), and threads wait only then. Inbound
//! threads wait whenever there is something to wait for.
//!
//! A thread waits for [`TURNS`] turns of the express thread at most, and for [`PATIENCE`]: a flood in
//! the express lane does not hold up the others.

use std::{
    os::fd::AsFd,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use super::clock;
use crate::io::waker;

/// More than what waits in a queue without a flood.
const TURNS: u64 = 8;
/// Longer than a thread with the highest priority waits for a core on a busy machine. Only if the
/// express thread has ended, others wait for this long.
const PATIENCE: Duration = Duration::from_millis(200);
/// Times to offer the core to the express thread, before sleeping.
const YIELDS: u32 = 32;
const NAP: Duration = Duration::from_micros(20);

/// The turns of an express thread so far, twice, and one more while it is at work.
#[derive(Debug, Default)]
pub(super) struct Turns(AtomicU64);

impl Turns {
    /// Called before the thread takes frames from its queue.
    pub(super) fn begin(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }

    /// Called when it has handed all of them on.
    pub(super) fn end(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }

    fn now(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }
}

/// The express lane, as a thread of another lane sees it.
#[derive(Debug)]
pub(super) struct Ahead<Q> {
    queue: Q,
    turns: Arc<Turns>,
}

impl<Q: AsFd> Ahead<Q> {
    pub(super) fn new(queue: Q, turns: Arc<Turns>) -> Self {
        Self { queue, turns }
    }

    /// Waits until the express thread has handed on what was in its queue. Costs a system call if
    /// that is nothing.
    pub(super) fn let_pass(&self) {
        if self.is_clear() {
            return;
        }
        // The turn that it is in, if any, may have begun before.
        let enough = self.turns.now().next_multiple_of(2) + 2 * TURNS;
        let began = clock::now();
        let mut tries = 0;
        while !self.is_clear() && self.turns.now() < enough && began.elapsed() < PATIENCE {
            tries += 1;
            match tries {
                ..=YIELDS => thread::yield_now(),
                _ => drop(waker::wait(&[], Some(NAP))),
            }
        }
    }

    /// In this order: what is not in the queue any more, the thread has in hand, or has handed on.
    fn is_clear(&self) -> bool {
        let ready = waker::wait(&[self.queue.as_fd()], Some(Duration::ZERO));
        !ready.is_ok_and(|ready| ready.is_readable(0)) && self.turns.now().is_multiple_of(2)
    }
}

/// What a thread does about the express lane of its direction.
#[derive(Debug, Default)]
pub(super) enum Order<Q> {
    /// There is none.
    #[default]
    None,
    /// It is the express thread.
    Express(Arc<Turns>),
    /// It lets the express thread pass.
    Behind(Ahead<Q>),
}

impl<Q: AsFd> Order<Q> {
    /// Before frames are taken from the queue.
    pub(super) fn begin(&self) {
        if let Self::Express(turns) = self {
            turns.begin();
        }
    }

    /// When they have been handed on.
    pub(super) fn end(&self) {
        if let Self::Express(turns) = self {
            turns.end();
        }
    }

    /// After frames were taken from the queue.
    pub(super) fn let_pass(&self) {
        if let Self::Behind(ahead) = self {
            ahead.let_pass();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;
    use crate::testing::in_namespace;
    use crate::testing::ip;

    /// A queue in which a datagram waits, and the express lane as others see it.
    fn waiting() -> (UdpSocket, Arc<Turns>, Ahead<UdpSocket>) {
        let queue = UdpSocket::bind("127.0.0.1:0").unwrap();
        let to = queue.local_addr().unwrap();
        queue.send_to(&[7], to).unwrap();
        let turns = Arc::<Turns>::default();
        let ahead = Ahead::new(queue.try_clone().unwrap(), turns.clone());
        assert!(!ahead.is_clear());
        (queue, turns, ahead)
    }

    #[test]
    fn what_waits_in_the_express_queue_and_what_is_in_hand_passes_first() {
        in_namespace(|| {
            ip("link set lo up");
            for _ in 0..20 {
                let (queue, turns, ahead) = waiting();
                let delivered = AtomicU64::new(0);
                thread::scope(|scope| {
                    scope.spawn(|| {
                        turns.begin();
                        queue.recv(&mut [0]).unwrap();
                        thread::sleep(Duration::from_millis(1));
                        delivered.store(1, Ordering::SeqCst);
                        turns.end();
                    });
                    let began = clock::now();
                    ahead.let_pass();
                    let has_waited_long = began.elapsed() >= PATIENCE;
                    assert!(delivered.load(Ordering::SeqCst) == 1 || has_waited_long);
                });
                assert!(ahead.is_clear());
            }
        });
    }

    #[test]
    fn a_thread_that_takes_nothing_does_not_hold_up_others_for_good() {
        in_namespace(|| {
            ip("link set lo up");
            let (_queue, _turns, ahead) = waiting();
            ahead.let_pass();
            let (_queue, turns, ahead) = waiting();
            turns.begin();
            ahead.let_pass();
        });
    }

    #[test]
    fn a_queue_that_is_never_empty_holds_up_others_for_some_turns() {
        in_namespace(|| {
            ip("link set lo up");
            let (_queue, turns, ahead) = waiting();
            let is_through = AtomicU64::new(0);
            thread::scope(|scope| {
                scope.spawn(|| {
                    while is_through.load(Ordering::SeqCst) == 0 {
                        turns.begin();
                        turns.end();
                    }
                });
                ahead.let_pass();
                is_through.store(1, Ordering::SeqCst);
            });
        });
    }
}
