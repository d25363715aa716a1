// SPDX-License-Identifier: MIT OR Apache-2.0
//! The channels below this module's queues, and the atomics: those of a model that tries every
//! order of threads and everything that a weak memory may do. `tests/models` builds this with
//! `cfg(loom)`; nothing else does.

#[cfg(not(loom))]
pub(super) use std::sync::atomic::AtomicU64;

#[cfg(not(loom))]
pub(super) use crossbeam_channel::{Receiver, Sender, bounded};

#[cfg(loom)]
pub(super) use loom::sync::atomic::AtomicU64;

#[cfg(loom)]
pub(super) use self::model::{Receiver, Sender, bounded};

/// The promises of a crossbeam bounded channel, as far as they are used here. No thread waits for a
/// time in a model: it is over at once.
#[cfg(loom)]
mod model {
    use std::{collections::VecDeque, time::Duration};

    use crossbeam_channel::{RecvError, RecvTimeoutError, SendError, TryRecvError, TrySendError};
    use loom::sync::{Arc, Condvar, Mutex, MutexGuard};

    #[derive(Debug)]
    struct Channel<T> {
        state: Mutex<State<T>>,
        changed: Condvar,
    }

    #[derive(Debug)]
    struct State<T> {
        items: VecDeque<T>,
        room: usize,
        senders: usize,
        receivers: usize,
    }

    #[derive(Debug)]
    pub(in super::super) struct Sender<T>(Arc<Channel<T>>);

    #[derive(Debug)]
    pub(in super::super) struct Receiver<T>(Arc<Channel<T>>);

    pub(in super::super) fn bounded<T>(room: usize) -> (Sender<T>, Receiver<T>) {
        let state = State {
            items: VecDeque::new(),
            room,
            senders: 1,
            receivers: 1,
        };
        let channel = Arc::new(Channel {
            state: Mutex::new(state),
            changed: Condvar::new(),
        });
        (Sender(channel.clone()), Receiver(channel))
    }

    impl<T> Channel<T> {
        fn state(&self) -> MutexGuard<'_, State<T>> {
            self.state.lock().expect("no thread panicked")
        }

        fn wait<'a>(&self, state: MutexGuard<'a, State<T>>) -> MutexGuard<'a, State<T>> {
            self.changed.wait(state).expect("no thread panicked")
        }
    }

    impl<T> Sender<T> {
        pub(in super::super) fn send(&self, item: T) -> Result<(), SendError<T>> {
            let mut state = self.0.state();
            while state.items.len() == state.room && state.receivers > 0 {
                state = self.0.wait(state);
            }
            if state.receivers == 0 {
                return Err(SendError(item));
            }
            state.items.push_back(item);
            self.0.changed.notify_all();
            Ok(())
        }

        pub(in super::super) fn try_send(&self, item: T) -> Result<(), TrySendError<T>> {
            let mut state = self.0.state();
            if state.receivers == 0 {
                return Err(TrySendError::Disconnected(item));
            }
            if state.items.len() == state.room {
                return Err(TrySendError::Full(item));
            }
            state.items.push_back(item);
            self.0.changed.notify_all();
            Ok(())
        }

        pub(in super::super) fn len(&self) -> usize {
            self.0.state().items.len()
        }

        pub(in super::super) fn is_full(&self) -> bool {
            let state = self.0.state();
            state.items.len() == state.room
        }
    }

    impl<T> Receiver<T> {
        pub(in super::super) fn recv(&self) -> Result<T, RecvError> {
            let mut state = self.0.state();
            loop {
                if let Some(item) = state.items.pop_front() {
                    self.0.changed.notify_all();
                    return Ok(item);
                }
                if state.senders == 0 {
                    return Err(RecvError);
                }
                state = self.0.wait(state);
            }
        }

        pub(in super::super) fn try_recv(&self) -> Result<T, TryRecvError> {
            let mut state = self.0.state();
            match state.items.pop_front() {
                Some(item) => {
                    self.0.changed.notify_all();
                    Ok(item)
                }
                None if state.senders == 0 => Err(TryRecvError::Disconnected),
                None => Err(TryRecvError::Empty),
            }
        }

        pub(in super::super) fn recv_timeout(&self, _: Duration) -> Result<T, RecvTimeoutError> {
            self.try_recv().map_err(|error| match error {
                TryRecvError::Empty => RecvTimeoutError::Timeout,
                TryRecvError::Disconnected => RecvTimeoutError::Disconnected,
            })
        }

        pub(in super::super) fn is_empty(&self) -> bool {
            self.0.state().items.is_empty()
        }
    }

    impl<T> Clone for Sender<T> {
        fn clone(&self) -> Self {
            self.0.state().senders += 1;
            Self(self.0.clone())
        }
    }

    impl<T> Drop for Sender<T> {
        fn drop(&mut self) {
            self.0.state().senders -= 1;
            self.0.changed.notify_all();
        }
    }

    impl<T> Drop for Receiver<T> {
        fn drop(&mut self) {
            self.0.state().receivers -= 1;
            self.0.changed.notify_all();
        }
    }
}
