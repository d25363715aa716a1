// SPDX-License-Identifier: MIT OR Apache-2.0
//! Maintains the routes and rules of a session while it lasts: restores those that other programs
//! delete.
//!
//! Another program that insists would keep this one busy for ever, and fill the log. So this restores
//! them [`MOST`] times in [`WINDOW`], logs once that it will now do so less often, and from then on
//! restores whenever the limit allows. The session runs this from before its first settings, because a
//! kill switch exists by then.

use std::{collections::VecDeque, error::Error, time::Duration};

use tokio::time::{Instant, sleep_until};
use tracing::{info, warn};

use super::context::ProviderContext;

/// The number of repairs, or failures, without a pause,
const MOST: usize = 5;
/// within this time.
const WINDOW: Duration = Duration::from_secs(10);

/// Runs as a task of a session until it is dropped.
pub(super) async fn follow(context: ProviderContext) {
    let mut changes = context.routing_changes().await;
    let mut repairs = Repairs::default();
    // The first check is for changes from before the watch began.
    loop {
        repair(&context, &mut repairs).await;
        changes.next().await;
        if let Some(end) = repairs.pause(Instant::now()) {
            if repairs.begin_fight() {
                let tunnel = context.tunnel();
                warn!(
                    tunnel,
                    "another program keeps deleting routes or rules of the tunnel, which restores them \
                     {MOST} times in {} s; find it with `ip monitor route rule`",
                    WINDOW.as_secs()
                );
            }
            sleep_until(end).await;
        }
    }
}

async fn repair(context: &ProviderContext, repairs: &mut Repairs) {
    let tunnel = context.tunnel();
    match context.restore_routing().await {
        Ok(false) => return,
        Ok(true) if repairs.is_fight => {}
        Ok(true) => info!(
            tunnel,
            "restored routes or rules of the tunnel that another program had deleted"
        ),
        Err(_) if repairs.is_fight => {}
        Err(error) => {
            let source = error.source().map(ToString::to_string);
            warn!(tunnel, %error, source, "cannot restore routes or rules of the tunnel that another program has deleted; trying again with the next change");
        }
    }
    repairs.note(Instant::now());
}

/// The latest repairs, and whether another program undoes them.
#[derive(Default)]
struct Repairs {
    times: VecDeque<Instant>,
    is_fight: bool,
}

impl Repairs {
    /// Counts a repair. After a quiet [`WINDOW`], it is the first one of another incident.
    fn note(&mut self, now: Instant) {
        let is_another = |last: &Instant| now.duration_since(*last) >= WINDOW;
        if self.times.back().is_some_and(is_another) {
            *self = Self::default();
        }
        self.times.push_back(now);
        if self.times.len() > MOST {
            self.times.pop_front();
        }
    }

    /// The time until which the next one has to wait, if it has to.
    fn pause(&self, now: Instant) -> Option<Instant> {
        let first = self.times.front().filter(|_| self.times.len() == MOST)?;
        let end = *first + WINDOW;
        (now < end).then_some(end)
    }

    /// True the first time.
    fn begin_fight(&mut self) -> bool {
        !std::mem::replace(&mut self.is_fight, true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repairs_are_limited_and_a_fight_is_logged_once() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut repairs = Repairs::default();
        for ms in [0, 100, 200, 300] {
            repairs.note(at(ms));
            assert_eq!(repairs.pause(at(ms)), None, "after {ms} ms");
        }
        repairs.note(at(5000));
        assert_eq!(repairs.pause(at(5000)), Some(at(10_000)));
        assert!(repairs.begin_fight() && !repairs.begin_fight());
        assert_eq!(repairs.pause(at(10_000)), None);
        repairs.note(at(10_000));
        assert_eq!(
            repairs.pause(at(10_000)),
            Some(at(10_100)),
            "a window slides"
        );
        assert!(!repairs.begin_fight(), "it goes on");
        repairs.note(at(20_000));
        assert_eq!(repairs.pause(at(20_000)), None);
        assert!(repairs.begin_fight(), "another one");
    }
}
