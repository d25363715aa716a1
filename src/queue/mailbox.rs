// SPDX-License-Identifier: MIT OR Apache-2.0
//! Items of several threads for one that does not sleep on a channel, but for example in `ppoll`.
//!
//! A sender sends before it wakes; a receiver clears the wake-up before it takes, and wakes itself
//! when it leaves something. So nothing is left behind while it sleeps, and it sleeps when there is
//! nothing.

use super::sync::{Receiver, Sender, bounded};

/// Ends a thread's sleep, be it now or later. Clones share one state: awake or not.
pub(crate) trait Wake: Clone {
    /// From now on no thread sleeps by it, until one [clears](Self::clear) it.
    fn wake(&self);

    /// Whether it was awake; it is not any more.
    fn clear(&self) -> bool;
}

/// The sending half of a mailbox.
#[derive(Clone, Debug)]
pub(crate) struct MailboxSender<T, W> {
    items: Sender<T>,
    waker: W,
}

/// Items for one thread.
#[derive(Debug)]
pub(crate) struct Mailbox<T, W> {
    items: Receiver<T>,
    waker: W,
}

/// A mailbox for `room` items, whose owner sleeps by `waker`.
pub(crate) fn mailbox<T, W: Wake>(room: usize, waker: W) -> (MailboxSender<T, W>, Mailbox<T, W>) {
    let (sender, items) = bounded(room);
    let sender = MailboxSender {
        items: sender,
        waker: waker.clone(),
    };
    (sender, Mailbox { items, waker })
}

impl<T, W: Wake> MailboxSender<T, W> {
    /// Sends an item to the owner. False, and the item is dropped, if there is no room or no owner.
    pub(crate) fn send(&self, item: T) -> bool {
        let is_sent = self.items.try_send(item).is_ok();
        if is_sent {
            self.waker.wake();
        }
        is_sent
    }

    /// Whether there is no room at the moment.
    pub(crate) fn is_full(&self) -> bool {
        self.items.is_full()
    }

    /// How many items wait.
    pub(crate) fn waiting(&self) -> usize {
        self.items.len()
    }
}

impl<T, W: Wake> Mailbox<T, W> {
    /// The waker by which its owner sleeps.
    pub(crate) fn waker(&self) -> &W {
        &self.waker
    }

    /// To be called when the owner was woken, and before it [takes](Self::take) anything.
    pub(crate) fn acknowledge(&self) {
        self.waker.clear();
    }

    /// The next item.
    pub(crate) fn take(&self) -> Option<T> {
        self.items.try_recv().ok()
    }

    /// Whether there is none.
    pub(crate) fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// To be called when the owner leaves items for the next time: it does not sleep before.
    pub(crate) fn rewake(&self) {
        self.waker.wake();
    }
}
