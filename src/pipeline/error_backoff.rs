// SPDX-License-Identifier: MIT OR Apache-2.0
//! Retries of a data thread when the kernel refuses to wait, receive or read: a little later each
//! time. A machine that is short of memory for a while keeps its tunnel.
//!
//! Only an error that shows a fault of this program ends the tunnel, as a retry would be in vain.

use std::{io, os::fd::AsFd, time::Duration};

use tracing::warn;

use super::{clock, shared::Shared, view::Stopped};
use crate::{
    io::{is_mistake, waker},
    retry::Retry,
};

const FIRST_PAUSE: Duration = Duration::from_millis(1);
const LAST_PAUSE: Duration = Duration::from_millis(500);

/// The errors of one thread.
pub(super) struct ErrorBackoff(Retry);

impl Default for ErrorBackoff {
    fn default() -> Self {
        Self(Retry::new(FIRST_PAUSE, LAST_PAUSE))
    }
}

impl ErrorBackoff {
    /// The last call succeeded.
    pub(super) fn reset(&mut self) {
        self.0.is_over();
    }

    /// Waits before the next attempt, and less if the tunnel stops meanwhile. Logs the error once
    /// in a while.
    ///
    /// # Errors
    /// The end of the thread, if another attempt would be in vain.
    pub(super) fn back_off(&mut self, error: io::Error, shared: &Shared) -> Result<(), Stopped> {
        if is_mistake(&error) {
            return Err(Stopped::Failed(error));
        }
        if self.0.may_log(clock::now()) {
            warn!(
                %error,
                "the kernel refuses to receive or read; retrying. Check whether this machine is short of memory"
            );
        }
        let pause = self.0.next_pause();
        if waker::wait(&[shared.stop.as_fd()], Some(pause)).is_err() {
            sleep(pause);
        }
        Ok(())
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "where not even a wait is possible"
)]
fn sleep(pause: Duration) {
    std::thread::sleep(pause);
}
