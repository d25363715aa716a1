// SPDX-License-Identifier: MIT OR Apache-2.0
//! That something changed in the kernel's network tables, not what: for those who look themselves.
//!
//! Unlike `watch`, it says nothing of what a message says. So none is missed that this program cannot
//! parse, and an overrun of the kernel's queue is a change like any other.

use std::{io, time::Duration};

use rtnetlink::{
    MulticastGroup,
    sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket, protocols::NETLINK_ROUTE},
};
use tokio::time::{Instant, sleep, sleep_until};

use super::sys;

/// A change is told when it has been quiet for so long.
const QUIET: Duration = Duration::from_millis(100);
/// Or, if it never is, so long after the first.
const AT_LATEST: Duration = Duration::from_secs(1);
/// Enough for what tells one change from another; of a longer message there is the start.
const MESSAGE: usize = 512;

/// Changes of some kinds in one network namespace.
pub(super) struct Changes {
    socket: TokioSocket,
}

impl Changes {
    /// Changes from now on in the namespace of this thread. Groups in `optional` are left out where
    /// the kernel does not have them. Must be called on a tokio runtime.
    pub(super) fn of(groups: &[MulticastGroup], optional: &[MulticastGroup]) -> io::Result<Self> {
        let mut socket = TokioSocket::new(NETLINK_ROUTE)?;
        let inner = socket.socket_mut();
        inner.bind(&SocketAddr::new(0, 0))?;
        for group in groups {
            inner.add_membership(*group as u32)?;
        }
        for group in optional {
            let _ = inner.add_membership(*group as u32);
        }
        Ok(Self { socket })
    }

    /// Waits for a change, and then until it is over: a burst of them is one, and so is each second
    /// of a flood.
    pub(super) async fn next(&mut self) -> io::Result<()> {
        self.next_that(|_| true).await
    }

    /// The same, but of the messages (or their starts) only those count that `matter`, and lost ones.
    pub(super) async fn next_that(&mut self, matter: impl Fn(&[u8]) -> bool) -> io::Result<()> {
        self.message(&matter).await?;
        let end = sleep_until(Instant::now() + AT_LATEST);
        let mut end = std::pin::pin!(end);
        loop {
            tokio::select! {
                message = self.message(&matter) => message?,
                () = sleep(QUIET) => return Ok(()),
                () = &mut end => return Ok(()),
            }
        }
    }

    async fn message(&mut self, matter: impl Fn(&[u8]) -> bool) -> io::Result<()> {
        loop {
            let mut room = [0; MESSAGE];
            let mut rest = room.as_mut_slice();
            let outcome = self.socket.recv(&mut rest).await;
            let length = MESSAGE - rest.len();
            match outcome {
                Ok(()) if !matter(&room[..length]) => {}
                Err(error) if error.raw_os_error() != Some(sys::ENOBUFS) => return Err(error),
                _ => return Ok(()),
            }
        }
    }
}
