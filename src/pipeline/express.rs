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
//! No time is in this: a thread waits until the express thread has taken all that its queue had, and
//! has handed it on, however late the scheduler lets it run. A flood in the express lane holds up the
//! others for [`TURNS`] turns of the express thread at most.
//!
//! A flow returns to the express lane when it has been silent for longer than the queues of another
//! lane can stand (`io::steering::express`); the express thread waits for no one.

use std::{
    os::fd::AsFd,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use crate::io::waker::{self, Waker};

/// Enough to take what waits in the queue of a TAP, or a third of a second of what a sender puts on
/// the express lane.
const TURNS: u64 = 64;
/// Times to offer the core to the express thread, before sleeping.
const YIELDS: u32 = 32;
/// The first nap, and how often the next one is twice as long.
const NAP: Duration = Duration::from_micros(20);
const LONGER_NAPS: u32 = 5;

/// The turns of an express thread.
#[derive(Debug, Default)]
pub(super) struct Turns {
    /// How many there were, twice, and one more while it is at work.
    steps: AtomicU64,
    /// As `steps` was in the last turn that left nothing in the queue.
    emptied: AtomicU64,
}

impl Turns {
    /// Called before the thread takes frames from its queue.
    pub(super) fn begin(&self) {
        self.steps.fetch_add(1, Ordering::SeqCst);
    }

    /// Called when it has handed all of them on; `is_emptied` if the queue had no more.
    pub(super) fn end(&self, is_emptied: bool) {
        if is_emptied {
            self.emptied.store(self.now(), Ordering::SeqCst);
        }
        self.steps.fetch_add(1, Ordering::SeqCst);
    }

    fn now(&self) -> u64 {
        self.steps.load(Ordering::SeqCst)
    }

    /// Whether a turn is over that began after `steps` were so many, and that emptied the queue.
    fn have_emptied_since(&self, steps: u64) -> bool {
        self.emptied.load(Ordering::SeqCst) > steps
    }
}

/// The express lane, as a thread of another lane sees it.
#[derive(Debug)]
pub(super) struct Ahead<Q> {
    queue: Q,
    turns: Arc<Turns>,
    /// The tunnel stops: the express thread may have ended.
    stop: Waker,
}

impl<Q: AsFd> Ahead<Q> {
    pub(super) fn new(queue: Q, turns: Arc<Turns>, stop: Waker) -> Self {
        Self { queue, turns, stop }
    }

    /// Waits until the express thread has handed on what was in its queue. Costs a system call if
    /// that is nothing.
    pub(super) fn let_pass(&self) {
        if self.is_clear() {
            return;
        }
        // The turn that it is in, if any, may have begun before.
        let began = self.turns.now().next_multiple_of(2);
        let mut tries = 0;
        while !self.has_passed(began) && !self.stops_after(tries) {
            tries += 1;
        }
    }

    fn has_passed(&self, began: u64) -> bool {
        self.turns.have_emptied_since(began)
            || self.turns.now() >= began + 2 * TURNS
            || self.is_clear()
    }

    /// In this order: what is not in the queue any more, the thread has in hand, or has handed on.
    fn is_clear(&self) -> bool {
        let ready = waker::wait(&[self.queue.as_fd()], Some(Duration::ZERO));
        !ready.is_ok_and(|ready| ready.is_readable(0)) && self.turns.now().is_multiple_of(2)
    }

    /// Gives the core to the express thread for a while. True if the tunnel stops.
    fn stops_after(&self, tries: u32) -> bool {
        let Some(naps) = tries.checked_sub(YIELDS) else {
            thread::yield_now();
            return false;
        };
        let nap = NAP * (1 << naps.min(LONGER_NAPS));
        let ready = waker::wait(&[self.stop.as_fd()], Some(nap));
        ready.is_ok_and(|ready| ready.is_readable(0))
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

    /// When they have been handed on; `is_emptied` if the queue had no more.
    pub(super) fn end(&self, is_emptied: bool) {
        if let Self::Express(turns) = self {
            turns.end(is_emptied);
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
        let stop = Waker::new().unwrap();
        let ahead = Ahead::new(queue.try_clone().unwrap(), turns.clone(), stop);
        assert!(!ahead.is_clear());
        (queue, turns, ahead)
    }

    /// Lets `express` pass while it works.
    fn let_pass(ahead: &Ahead<UdpSocket>, express: impl FnOnce(&AtomicU64) + Send) -> u64 {
        let delivered = AtomicU64::new(0);
        thread::scope(|scope| {
            scope.spawn(|| express(&delivered));
            ahead.let_pass();
            delivered.load(Ordering::SeqCst)
        })
    }

    #[test]
    fn what_waits_in_the_express_queue_and_what_is_in_hand_passes_first() {
        in_namespace(|| {
            ip("link set lo up");
            for _ in 0..20 {
                let (queue, turns, ahead) = waiting();
                let delivered = let_pass(&ahead, |delivered| {
                    turns.begin();
                    queue.recv(&mut [0]).unwrap();
                    thread::sleep(Duration::from_millis(1));
                    delivered.store(1, Ordering::SeqCst);
                    turns.end(true);
                });
                assert_eq!(delivered, 1);
                assert!(ahead.is_clear());
            }
        });
    }

    #[test]
    fn a_thread_that_is_late_passes_first_too() {
        in_namespace(|| {
            ip("link set lo up");
            let (queue, turns, ahead) = waiting();
            let delivered = let_pass(&ahead, |delivered| {
                // As if another program had the core.
                thread::sleep(Duration::from_millis(1500));
                turns.begin();
                queue.recv(&mut [0]).unwrap();
                thread::sleep(Duration::from_millis(500));
                delivered.store(1, Ordering::SeqCst);
                turns.end(true);
            });
            assert_eq!(delivered, 1);
        });
    }

    #[test]
    fn a_turn_that_began_before_does_not_count() {
        in_namespace(|| {
            ip("link set lo up");
            let (queue, turns, ahead) = waiting();
            // It has looked into the queue, and the datagram came after that.
            turns.begin();
            let delivered = let_pass(&ahead, |delivered| {
                thread::sleep(Duration::from_millis(5));
                turns.end(true);
                thread::sleep(Duration::from_millis(5));
                turns.begin();
                queue.recv(&mut [0]).unwrap();
                delivered.store(1, Ordering::SeqCst);
                turns.end(true);
            });
            assert_eq!(delivered, 1);
        });
    }

    #[test]
    fn a_tunnel_that_stops_waits_for_no_turn() {
        in_namespace(|| {
            ip("link set lo up");
            let (_queue, turns, ahead) = waiting();
            turns.begin();
            let stop = ahead.stop.clone();
            assert_eq!(let_pass(&ahead, move |_| stop.wake()), 0);
        });
    }

    #[test]
    fn what_comes_later_is_not_waited_for() {
        let turns = Turns::default();
        turns.begin();
        let began = turns.now().next_multiple_of(2);
        let has_passed = |is_emptied| {
            turns.end(is_emptied);
            let has_passed = turns.have_emptied_since(began);
            turns.begin();
            has_passed
        };
        assert!(!has_passed(true), "this turn began before");
        assert!(!has_passed(false));
        assert!(has_passed(true), "whatever is in the queue by now");
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
                        turns.end(false);
                    }
                });
                ahead.let_pass();
                is_through.store(1, Ordering::SeqCst);
            });
            assert!(turns.now() >= 2 * TURNS);
        });
    }
}
