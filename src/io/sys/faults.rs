// SPDX-License-Identifier: MIT OR Apache-2.0
//! Makes system calls behave in tests as the kernel does on other machines, or under failure.
//!
//! A test scripts the next calls of its own thread. Outside of tests every call passes, and none of
//! this is compiled in.

use std::io;

/// A call that can be made to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    AttachFilter,
    LoadProgram,
    OfferVnetHeader,
    Receive,
    ReceiveFrame,
    SendEach,
    SendSegments,
    SyncFolder,
    WriteSuperFrame,
}

/// Called before `call` moves `count` messages: returns how many it may move, or how it fails.
#[cfg(not(test))]
#[inline(always)]
pub(crate) fn before(_call: Call, count: usize) -> io::Result<usize> {
    Ok(count)
}

#[cfg(test)]
pub(crate) use scripted::{Fault, before, finish, script};

#[cfg(test)]
mod scripted {
    use std::cell::RefCell;
    use std::collections::VecDeque;

    use super::{Call, io};

    /// The outcome of one call.
    #[derive(Clone, Copy, Debug)]
    pub(crate) enum Fault {
        /// The kernel is not called.
        Errno(i32),
        /// The kernel sees this many messages.
        AtMost(usize),
        /// The kernel decides.
        Pass,
    }

    thread_local! {
        static SCRIPT: RefCell<VecDeque<(Call, Fault)>> = const { RefCell::new(VecDeque::new()) };
    }

    /// The next calls of this thread, in this order; those after them pass.
    pub(crate) fn script(steps: &[(Call, Fault)]) {
        SCRIPT.with_borrow_mut(|script| script.extend(steps));
    }

    /// Fails the test if a step was not reached.
    #[track_caller]
    pub(crate) fn finish() {
        let left = SCRIPT.take();
        assert!(left.is_empty(), "calls that were not made: {left:?}");
    }

    pub(crate) fn before(call: Call, count: usize) -> io::Result<usize> {
        let Some((expected, fault)) = SCRIPT.with_borrow_mut(VecDeque::pop_front) else {
            return Ok(count);
        };
        assert_eq!(call, expected, "before {fault:?}");
        match fault {
            Fault::Errno(code) => Err(io::Error::from_raw_os_error(code)),
            Fault::AtMost(limit) => Ok(count.min(limit)),
            Fault::Pass => Ok(count),
        }
    }
}
