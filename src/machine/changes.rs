// SPDX-License-Identifier: MIT OR Apache-2.0
//! Reports that something changed in the kernel's network tables, without what: the caller reads the
//! tables itself.

use std::time::Duration;

use rtnetlink::MulticastGroup;
use tokio::time::{Instant, sleep, sleep_until};

use super::monitor::{Event, Monitor};

/// A change is reported after so long without another one.
const QUIET: Duration = Duration::from_millis(100);
/// Or, in a continuous series, so long after the first one.
const AT_LATEST: Duration = Duration::from_secs(1);

/// Changes of some kinds in one network namespace, lost ones among them.
pub(super) struct Changes {
    monitor: Monitor,
}

impl Changes {
    /// Changes from now on in the namespace of this thread: see [`Monitor::of`].
    pub(super) fn of(
        what: &'static str,
        groups: &[MulticastGroup],
        optional: &[MulticastGroup],
    ) -> Self {
        Self {
            monitor: Monitor::of(what, groups, optional),
        }
    }

    /// Waits for a change, and then until it is over: a burst is one change, and so is each second
    /// of a flood.
    pub(super) async fn next(&mut self) {
        self.next_that(|_| true).await;
    }

    /// The same, but counts only events that `matter`, and lost ones.
    pub(super) async fn next_that(&mut self, matter: impl Fn(&Event) -> bool) {
        self.event(&matter).await;
        let end = sleep_until(Instant::now() + AT_LATEST);
        let mut end = std::pin::pin!(end);
        loop {
            tokio::select! {
                () = self.event(&matter) => {}
                () = sleep(QUIET) => return,
                () = &mut end => return,
            }
        }
    }

    async fn event(&mut self, matter: impl Fn(&Event) -> bool) {
        loop {
            let event = self.monitor.next().await;
            if matches!(event, Event::Lost) || matter(&event) {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::*;
    use crate::testing::{block_on, in_namespace, ip};

    #[test]
    fn a_loss_is_a_change_also_where_nothing_else_matters() {
        in_namespace(|| {
            block_on(async {
                let mut changes = Changes::of("links", &[MulticastGroup::Link], &[]);
                changes.monitor.break_off();
                let limit = Duration::from_secs(20);
                let lost = changes.next_that(|_| false);
                timeout(limit, lost).await.expect("the loss");
                ip("link set lo up");
                timeout(limit, changes.next()).await.expect("a change");
            });
        });
    }
}
