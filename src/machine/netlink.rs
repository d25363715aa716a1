// SPDX-License-Identifier: MIT OR Apache-2.0
//! A connection to the kernel's network tables (rtnetlink), and the task that serves it.
//!
//! The task ends with its owner. If it ends earlier, because of an error of the socket or a fault of
//! the program, pending requests fail, and the next request opens a new connection.

use std::{
    fmt, io,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use rtnetlink::{Error, Handle};
use tokio::{task::JoinHandle, time::Instant};
use tracing::warn;

use crate::retry::Retry;

/// Must be used on a tokio runtime, in one network namespace.
pub(super) struct Netlink {
    connect: fn() -> io::Result<Service>,
    service: Mutex<Service>,
}

struct Service {
    handle: Handle,
    task: JoinHandle<()>,
    /// Logs attempts to replace it.
    retry: Retry,
}

impl Drop for Service {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl fmt::Debug for Netlink {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Netlink").finish_non_exhaustive()
    }
}

impl Netlink {
    pub(super) fn connect() -> io::Result<Self> {
        Self::by(|| rtnetlink::new_connection().map(Service::of))
    }

    /// The kernel returns only what is asked for, such as one table of many.
    pub(super) fn connect_with_strict_check() -> io::Result<Self> {
        Self::by(|| rtnetlink::new_connection_with_strict_check().map(Service::of))
    }

    fn by(connect: fn() -> io::Result<Service>) -> io::Result<Self> {
        let service = Mutex::new(connect()?);
        Ok(Self { connect, service })
    }

    /// For the next request.
    pub(super) fn handle(&self) -> Handle {
        let mut service = self.service();
        if service.has_ended() {
            self.replace(&mut service);
        }
        service.handle.clone()
    }

    /// The answer, unless it may be incomplete: when the connection ends, so does every list.
    pub(super) fn whole<T>(&self, answer: Result<T, Error>) -> Result<T, Error> {
        let answer = answer?;
        match self.is_well() {
            true => Ok(answer),
            false => Err(Error::RequestFailed),
        }
    }

    /// Whether all requests so far were answered in full.
    pub(super) fn is_well(&self) -> bool {
        !self.service().has_ended()
    }

    fn replace(&self, service: &mut Service) {
        let may_log = service.retry.may_log(Instant::now().into());
        match (self.connect)() {
            Ok(new) => {
                warn!(
                    "the connection to the kernel's network tables ended unexpectedly; opened a new one"
                );
                *service = new;
            }
            Err(error) if may_log => {
                warn!(%error, "the connection to the kernel's network tables ended unexpectedly, and a new one cannot be opened; trying again");
            }
            Err(_) => {}
        }
    }

    fn service(&self) -> MutexGuard<'_, Service> {
        self.service.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the task as a fault would.
    #[cfg(test)]
    pub(super) async fn break_off(&self) {
        self.service().task.abort();
        while self.is_well() {
            tokio::task::yield_now().await;
        }
    }
}

impl Service {
    fn of<C, M>((connection, handle, _): (C, Handle, M)) -> Self
    where
        C: Future<Output = ()> + Send + 'static,
    {
        Self {
            handle,
            task: tokio::spawn(connection),
            retry: Retry::new(Duration::ZERO, Duration::ZERO),
        }
    }

    fn has_ended(&self) -> bool {
        self.task.is_finished()
    }
}

#[cfg(test)]
mod tests {
    use futures_util::TryStreamExt;

    use super::*;
    use crate::testing::{block_on, in_namespace};

    /// The number of links that the kernel lists.
    async fn links(netlink: &Netlink, handle: &Handle) -> Result<usize, Error> {
        let links: Result<Vec<_>, _> = handle.link().get().execute().try_collect().await;
        netlink.whole(links).map(|links| links.len())
    }

    #[test]
    fn a_question_after_the_end_of_a_connection_is_answered_and_one_at_it_fails() {
        in_namespace(|| {
            block_on(async {
                let netlink = Netlink::connect().unwrap();
                let handle = netlink.handle();
                assert_eq!(links(&netlink, &handle).await.unwrap(), 1);
                let asked = links(&netlink, &handle);
                let (answer, ()) = tokio::join!(asked, netlink.break_off());
                assert!(answer.is_err(), "no link is not what the kernel said");
                assert!(!netlink.is_well());
                let handle = netlink.handle();
                assert_eq!(links(&netlink, &handle).await.unwrap(), 1);
                assert!(netlink.is_well());
            });
        });
    }
}
