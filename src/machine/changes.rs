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
use tracing::warn;

use crate::{io::sys, retry::Retry};

/// A change is told when it has been quiet for so long.
const QUIET: Duration = Duration::from_millis(100);
/// Or, if it never is, so long after the first.
const AT_LATEST: Duration = Duration::from_secs(1);
/// Enough for what tells one change from another; of a longer message there is the start.
const MESSAGE: usize = 512;

/// After the kernel could not be heard.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LAST_PAUSE: Duration = Duration::from_secs(60);

/// Changes of some kinds in one network namespace. When the kernel cannot be heard for a while, that is
/// told, and is a change in the end.
pub(super) struct Changes {
    /// For people.
    what: &'static str,
    groups: Vec<MulticastGroup>,
    optional: Vec<MulticastGroup>,
    /// None while the kernel cannot be heard.
    socket: Option<TokioSocket>,
    retry: Retry,
    again_at: Instant,
}

impl Changes {
    /// Changes from now on in the namespace of this thread. Groups in `optional` are left out where
    /// the kernel does not have them. Must be called on a tokio runtime.
    pub(super) fn of(
        what: &'static str,
        groups: &[MulticastGroup],
        optional: &[MulticastGroup],
    ) -> Self {
        let mut changes = Self {
            what,
            groups: groups.to_vec(),
            optional: optional.to_vec(),
            socket: None,
            retry: Retry::new(FIRST_PAUSE, LAST_PAUSE),
            again_at: Instant::now(),
        };
        changes.listen();
        changes
    }

    /// Waits for a change, and then until it is over: a burst of them is one, and so is each second
    /// of a flood.
    pub(super) async fn next(&mut self) {
        self.next_that(|_| true).await;
    }

    /// The same, but of the messages (or their starts) only those count that `matter`, and lost ones.
    pub(super) async fn next_that(&mut self, matter: impl Fn(&[u8]) -> bool) {
        self.message(&matter).await;
        let end = sleep_until(Instant::now() + AT_LATEST);
        let mut end = std::pin::pin!(end);
        loop {
            tokio::select! {
                () = self.message(&matter) => {}
                () = sleep(QUIET) => return,
                () = &mut end => return,
            }
        }
    }

    async fn message(&mut self, matter: impl Fn(&[u8]) -> bool) {
        loop {
            let Some(socket) = &mut self.socket else {
                sleep_until(self.again_at).await;
                if self.listen() {
                    // Nobody knows what changed meanwhile.
                    return;
                }
                continue;
            };
            let mut room = [0; MESSAGE];
            let mut rest = room.as_mut_slice();
            let outcome = socket.recv(&mut rest).await;
            let length = MESSAGE - rest.len();
            match outcome {
                Ok(()) => {
                    self.retry.is_over();
                    if matter(&room[..length]) {
                        return;
                    }
                }
                Err(error) if error.raw_os_error() == Some(sys::ENOBUFS) => return,
                Err(error) => self.lose(&error),
            }
        }
    }

    /// False if that fails.
    fn listen(&mut self) -> bool {
        match self.open() {
            Ok(socket) => self.socket = Some(socket),
            Err(error) => self.lose(&error),
        }
        self.socket.is_some()
    }

    fn open(&self) -> io::Result<TokioSocket> {
        let mut socket = TokioSocket::new(NETLINK_ROUTE)?;
        let inner = socket.socket_mut();
        inner.bind(&SocketAddr::new(0, 0))?;
        for group in &self.groups {
            inner.add_membership(*group as u32)?;
        }
        for group in &self.optional {
            let _ = inner.add_membership(*group as u32);
        }
        Ok(socket)
    }

    fn lose(&mut self, error: &io::Error) {
        self.socket = None;
        let now = Instant::now();
        self.again_at = now + self.retry.next_pause();
        if self.retry.may_log(now.into()) {
            let what = self.what;
            warn!(%error, "the kernel does not tell of {what} at the moment, so that they are noticed late; the socket is opened again");
        }
    }

    /// As after an error of the socket.
    #[cfg(test)]
    pub(super) fn break_off(&mut self) {
        self.lose(&io::ErrorKind::ConnectionAborted.into());
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::*;
    use crate::testing::{block_on, in_namespace, ip};

    #[test]
    fn who_could_not_hear_for_a_while_hears_of_a_change_and_then_of_all() {
        in_namespace(|| {
            block_on(async {
                let mut changes = Changes::of("links", &[MulticastGroup::Link], &[]);
                changes.break_off();
                let limit = Duration::from_secs(20);
                timeout(limit, changes.next()).await.expect("the loss");
                ip("link set lo up");
                timeout(limit, changes.next()).await.expect("a change");
            });
        });
    }
}
