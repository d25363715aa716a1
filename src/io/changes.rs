// SPDX-License-Identifier: MIT OR Apache-2.0
//! That something changed in the kernel's network tables, not what: for those who look themselves.
//!
//! Unlike `watch`, it reads no message. So it misses none that this program cannot parse, and an
//! overrun of the kernel's queue is a change like any other.

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
/// The start of a message is enough.
const MESSAGE: usize = 64;

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
        self.message().await?;
        let end = sleep_until(Instant::now() + AT_LATEST);
        let mut end = std::pin::pin!(end);
        loop {
            tokio::select! {
                message = self.message() => message?,
                () = sleep(QUIET) => return Ok(()),
                () = &mut end => return Ok(()),
            }
        }
    }

    async fn message(&mut self) -> io::Result<()> {
        let mut room = [0; MESSAGE];
        match self.socket.recv(&mut room.as_mut_slice()).await {
            Err(error) if error.raw_os_error() != Some(sys::ENOBUFS) => Err(error),
            _ => Ok(()),
        }
    }
}
