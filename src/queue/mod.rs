// SPDX-License-Identifier: MIT OR Apache-2.0
//! Work for several threads that must come back in order.
//!
//! Batches are dealt to the workers in turn and collected in the same turn, so order is kept
//! without sorting and without a lock: one thread puts batches in, one thread takes them out, in
//! the same order. The price is that a slow worker holds up the others for as long as its batch
//! takes, which is short, and which order demands anyway.
//!
//! ```text
//!            ┌─> worker 1 ─┐
//!   Dealer ──┼─> worker 2 ─┼──> Collector      batches: A→1 B→2 C→3 D→1 …
//!      ^     └─> worker 3 ─┘        │          collected: A B C D …
//!      └────────── empties ─────────┘
//! ```
//! Every queue is bounded and nothing is allocated after [`ordered`]: batches are passed around.
//! While the workers are behind, the dealer waits, and further input stays in the kernel's queue of
//! the TAP or the socket, which is bounded too. Waiting is safe: no worker ever waits for a
//! dealer's other direction or for a peer. Carries batches, never frames; knows nothing of their
//! contents.
//!
//! [`mailbox()`] and [`Pending`] are for a thread that waits for descriptors or the like, and also
//! for items from other threads. `models` tests the promises of all three in each order of the
//! threads.

#[cfg(loom)]
pub mod models;

mod mailbox;
mod pending;
mod sync;

use std::time::Duration;

use crossbeam_channel::{RecvTimeoutError, SendError};

use self::sync::{Receiver, Sender, bounded};
pub(crate) use self::{
    mailbox::{Mailbox, MailboxSender, Wake, mailbox},
    pending::Pending,
};

/// Batches that may wait for one worker. A model has no time for more.
pub(crate) const DEPTH: usize = if cfg!(loom) { 1 } else { 4 };

/// Hands out batches.
#[derive(Debug)]
pub(crate) struct Dealer<T> {
    workers: Vec<Sender<T>>,
    turn: usize,
    empties: Receiver<T>,
}

/// Works on batches.
#[derive(Debug)]
pub(crate) struct Worker<T> {
    batches: Receiver<T>,
    done: Sender<T>,
}

/// The result of [`Collector::collect`].
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Collected<T> {
    /// The next batch.
    Batch(T),
    /// There was none in time.
    Timeout,
    /// The dealer is gone and all is collected.
    Ended,
}

/// Takes finished batches in the order in which they were dealt.
#[derive(Debug)]
pub(crate) struct Collector<T> {
    workers: Vec<Receiver<T>>,
    turn: usize,
    empties: Sender<T>,
}

/// A dealer, `workers` workers (at least one) and a collector, with as many batches as can be in
/// use at a time.
pub(crate) fn ordered<T: Default>(workers: usize) -> (Dealer<T>, Vec<Worker<T>>, Collector<T>) {
    // Each worker may have its queue full, one batch in hand and its results uncollected.
    let batches = workers * (2 * DEPTH + 1) + 1;
    let (give_back, empties) = bounded(batches);
    for _ in 0..batches {
        give_back
            .try_send(T::default())
            .unwrap_or_else(|_| unreachable!("there is room for all"));
    }
    let (mut senders, mut stages, mut outlets) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..workers {
        let (sender, batches) = bounded(DEPTH);
        let (done, outlet) = bounded(DEPTH);
        senders.push(sender);
        stages.push(Worker { batches, done });
        outlets.push(outlet);
    }
    let dealer = Dealer {
        workers: senders,
        turn: 0,
        empties,
    };
    let collector = Collector {
        workers: outlets,
        turn: 0,
        empties: give_back,
    };
    (dealer, stages, collector)
}

impl<T> Dealer<T> {
    /// An empty batch; waits for one to come back. `None` when the collector is gone.
    pub(crate) fn empty(&self) -> Option<T> {
        self.empties.recv().ok()
    }

    /// Gives a batch to the worker whose turn it is; waits while its queue is full.
    ///
    /// # Errors
    /// Hands the batch back when that worker is gone.
    pub(crate) fn deal(&mut self, batch: T) -> Result<(), T> {
        self.workers[self.turn]
            .send(batch)
            .map_err(SendError::into_inner)?;
        self.turn = (self.turn + 1) % self.workers.len();
        Ok(())
    }
}

impl<T> Worker<T> {
    /// Works on every batch until the dealer is gone.
    pub(crate) fn run(self, mut work: impl FnMut(&mut T)) {
        while let Ok(mut batch) = self.batches.recv() {
            work(&mut batch);
            if self.done.send(batch).is_err() {
                return;
            }
        }
    }
}

impl<T> Collector<T> {
    /// The next batch in order; waits for it, for `patience` at most (none: for ever).
    pub(crate) fn collect(&mut self, patience: Option<Duration>) -> Collected<T> {
        let worker = &self.workers[self.turn];
        let received = match patience {
            Some(patience) => worker.recv_timeout(patience),
            None => worker.recv().map_err(RecvTimeoutError::from),
        };
        match received {
            Ok(batch) => {
                self.turn = (self.turn + 1) % self.workers.len();
                Collected::Batch(batch)
            }
            Err(RecvTimeoutError::Timeout) => Collected::Timeout,
            Err(RecvTimeoutError::Disconnected) => Collected::Ended,
        }
    }

    /// Returns a batch for the next use.
    pub(crate) fn give_back(&self, batch: T) {
        // There is room for every batch; the send fails only when the dealer is gone.
        let _ = self.empties.try_send(batch);
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn batches_come_back_in_order_whatever_the_workers_take() {
        let (mut dealer, workers, mut collector) = ordered::<(u32, u32)>(3);
        thread::scope(|scope| {
            for (number, worker) in workers.into_iter().enumerate() {
                scope.spawn(move || {
                    worker.run(|batch| {
                        for _ in 0..(batch.0 as usize * (number + 1)) % 5 * 200 {
                            std::hint::spin_loop();
                        }
                        batch.1 = batch.0 * 2;
                    });
                });
            }
            let collected = scope.spawn(move || {
                let mut seen = Vec::new();
                while let Collected::Batch(batch) = collector.collect(None) {
                    seen.push(batch);
                    collector.give_back(batch);
                }
                seen
            });
            let dealt: Vec<_> = (0..20_000).map(|number| (number, number * 2)).collect();
            for &(number, _) in &dealt {
                dealer.empty().unwrap();
                dealer.deal((number, 0)).unwrap();
            }
            drop(dealer);
            assert_eq!(collected.join().unwrap(), dealt);
        });
    }

    #[test]
    fn there_are_as_many_batches_as_places_and_no_more() {
        let (dealer, _workers, collector) = ordered::<u8>(2);
        let batches = std::iter::from_fn(|| dealer.empties.try_recv().ok()).count();
        assert_eq!(batches, 2 * (2 * DEPTH + 1) + 1);
        collector.give_back(7);
        assert_eq!(dealer.empty(), Some(7));
    }

    #[test]
    fn everything_ends_when_the_dealer_goes() {
        let (mut dealer, workers, mut collector) = ordered::<u8>(2);
        dealer.deal(1).unwrap();
        dealer.deal(2).unwrap();
        drop(dealer);
        for worker in workers {
            worker.run(|batch| *batch += 10);
        }
        assert_eq!(
            (
                collector.collect(None),
                collector.collect(Some(Duration::ZERO)),
                collector.collect(None)
            ),
            (Collected::Batch(11), Collected::Batch(12), Collected::Ended)
        );
    }
}
