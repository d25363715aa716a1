// SPDX-License-Identifier: MIT OR Apache-2.0
//! The promises of the queues, as models for [loom](https://docs.rs/loom), which tries each order
//! that threads and a weak memory allow. `tests/models` calls them. A lost wake is a thread that
//! sleeps for ever, which loom calls a deadlock.

use loom::{
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    thread,
};

use super::*;

/// The descriptors of a thread, each ready or not, as `eventfd` and `ppoll` have it: ready from a write
/// to the next read, whichever thread waits.
#[derive(Clone)]
struct Descriptor {
    all: Arc<(Mutex<u8>, Condvar)>,
    bit: u8,
}

impl Descriptor {
    fn new() -> Self {
        Self {
            all: Arc::new((Mutex::new(0), Condvar::new())),
            bit: 1,
        }
    }

    /// Another one that the same threads wait for.
    fn beside(&self) -> Self {
        Self {
            all: self.all.clone(),
            bit: self.bit << 1,
        }
    }

    fn wait(&self) {
        self.wait_beside(self);
    }

    /// Waits until this one is ready, or the other. Returns whether the other is.
    fn wait_beside(&self, other: &Self) -> bool {
        let (ready, changed) = &*self.all;
        let mut ready = ready.lock().expect("no panic");
        while *ready & (self.bit | other.bit) == 0 {
            ready = changed.wait(ready).expect("no panic");
        }
        *ready & other.bit != 0
    }
}

impl Wake for Descriptor {
    fn wake(&self) {
        let (ready, changed) = &*self.all;
        *ready.lock().expect("no panic") |= self.bit;
        changed.notify_all();
    }

    fn clear(&self) -> bool {
        let (ready, _) = &*self.all;
        let mut ready = ready.lock().expect("no panic");
        let was = *ready & self.bit != 0;
        *ready &= !self.bit;
        was
    }
}

/// Sleeps, and takes up to `most` items each time it is woken, until it has `count`.
fn take_all(mailbox: &Mailbox<u32, Descriptor>, most: usize, count: usize) -> Vec<u32> {
    let mut taken = Vec::new();
    while taken.len() < count {
        mailbox.waker().wait();
        mailbox.acknowledge();
        let before = taken.len();
        while let Some(item) = mailbox.take() {
            taken.push(item);
            if taken.len() - before == most && taken.len() < count {
                mailbox.rewake();
                break;
            }
        }
    }
    taken
}

/// An item that is sent to a thread that sleeps, or is about to, wakes it.
pub fn nothing_is_left_in_a_mailbox_whose_owner_sleeps() {
    model(|| {
        let (sender, mailbox) = mailbox(4, Descriptor::new());
        let other = sender.clone();
        let one = thread::spawn(move || assert!(sender.send(1) && sender.send(2)));
        let two = thread::spawn(move || assert!(other.send(3)));
        let taken = take_all(&mailbox, 4, 3);
        one.join().expect("no panic");
        two.join().expect("no panic");
        let place = |item| taken.iter().position(|taken| *taken == item);
        assert!(place(3).is_some() && place(1) < place(2), "{taken:?}");
        assert!(mailbox.is_empty());
    });
}

/// An owner that takes no more than fits returns for the rest.
pub fn items_that_an_owner_leaves_keep_it_awake() {
    model(|| {
        let (sender, mailbox) = mailbox(4, Descriptor::new());
        let sender = thread::spawn(move || (1..=3).for_each(|item| assert!(sender.send(item))));
        assert_eq!(take_all(&mailbox, 1, 3), [1, 2, 3]);
        sender.join().expect("no panic");
    });
}

/// A full mailbox reports each item that it refuses, and all others arrive: nothing is lost
/// silently.
pub fn a_full_mailbox_refuses_and_loses_nothing() {
    model(|| {
        let (sender, mailbox) = mailbox(1, Descriptor::new());
        let other = sender.clone();
        let send =
            |sender: MailboxSender<u32, Descriptor>, item| thread::spawn(move || sender.send(item));
        let senders = [send(sender, 1), send(other, 2)];
        let first = take_all(&mailbox, 2, 1);
        let sent = senders.map(|sender| sender.join().expect("no panic"));
        let rest: Vec<_> = std::iter::from_fn(|| mailbox.take()).collect();
        let sent = sent.into_iter().filter(|is_sent| *is_sent).count();
        assert_eq!(first.len() + rest.len(), sent, "{first:?} {rest:?}");
    });
}

/// Threads that have datagrams for each other, as lanes do, wait for none of them.
pub fn two_threads_that_send_to_each_other_both_get_everything() {
    model(|| {
        let [(to_one, of_one), (to_two, of_two)] = [(); 2].map(|()| mailbox(1, Descriptor::new()));
        let two = thread::spawn(move || {
            assert!(to_one.send(1));
            take_all(&of_two, 1, 1)
        });
        assert!(to_two.send(2));
        assert_eq!(take_all(&of_one, 1, 1), [1]);
        assert_eq!(two.join().expect("no panic"), [2]);
    });
}

/// A stop, which is final, reaches every thread, whatever else it waits for.
pub fn a_stop_ends_every_thread() {
    model(|| {
        let stop = Descriptor::new();
        let (sender, mailbox) = mailbox(2, stop.beside());
        let own = stop.clone();
        let busy = thread::spawn(move || {
            while !mailbox.waker().wait_beside(&own) {
                mailbox.acknowledge();
                while mailbox.take().is_some() {}
            }
        });
        let own = stop.clone();
        let idle = thread::spawn(move || own.wait());
        sender.send(1);
        stop.wake();
        busy.join().expect("no panic");
        idle.join().expect("no panic");
    });
}

/// Batches come out as they were dealt, whichever worker is first, and all threads end with the dealer.
pub fn batches_come_back_in_order_and_all_ends_with_the_dealer() {
    model(|| {
        let (mut dealer, workers, mut collector) = ordered::<u32>(2);
        let mut threads = Vec::new();
        for worker in workers {
            threads.push(thread::spawn(move || worker.run(|batch| *batch += 10)));
        }
        for number in 1..=3 {
            dealer.empty().expect("there is one");
            dealer.deal(number).expect("the worker is there");
        }
        drop(dealer);
        for number in 11..=13 {
            assert_eq!(collector.collect(None), Collected::Batch(number));
            collector.give_back(0);
        }
        assert_eq!(collector.collect(None), Collected::Ended);
        for thread in threads {
            thread.join().expect("no panic");
        }
    });
}

/// A thread that learns that a place has something sees its value, and the last value is not left
/// behind.
pub fn the_value_of_a_bit_is_seen_with_it() {
    model(|| {
        let pending = Arc::new(Pending::new(2));
        let said = Arc::new([AtomicU32::new(0), AtomicU32::new(0)]);
        let news = Descriptor::new();
        let speakers = [0, 1].map(|place| {
            let (pending, said, news) = (pending.clone(), said.clone(), news.clone());
            thread::spawn(move || {
                for word in 1..=2 {
                    said[place].store(word, Ordering::Relaxed);
                    if pending.set(place) {
                        news.wake();
                    }
                }
            })
        });
        let mut heard = [0; 2];
        while heard != [2; 2] {
            news.wait();
            news.clear();
            while let Some(place) = pending.take(0) {
                let word = said[place].load(Ordering::Relaxed);
                assert!(word > 0 && word >= heard[place], "of {place}: {word}");
                heard[place] = word;
            }
        }
        for speaker in speakers {
            speaker.join().expect("no panic");
        }
    });
}

fn model(check: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    // Of all orders, those with at most this many interruptions of a thread that is not waiting.
    builder.preemption_bound = Some(2);
    builder.max_branches = 20_000;
    builder.check(check);
}
