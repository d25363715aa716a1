// SPDX-License-Identifier: MIT OR Apache-2.0
//! Keeps the routes and rules of a session while it lasts: what somebody else deletes comes back.
//!
//! Another program that insists would keep this one busy for ever, and the log with it. So things
//! come back [`MOST`] times in [`WINDOW`], which is said once, and from then on whenever there is
//! room. The session runs this from before its first settings, because a kill switch is there by then.

use std::{collections::VecDeque, error::Error, time::Duration};

use tokio::time::{Instant, sleep_until};
use tracing::{info, warn};

use super::context::ProviderContext;

/// So often may something come back, or fail to,
const MOST: usize = 5;
/// in so long.
const WINDOW: Duration = Duration::from_secs(10);

/// Runs beside a session until it is dropped.
pub(super) async fn follow(context: ProviderContext) {
    let mut changes = context.routing_changes().await;
    let mut repairs = Repairs::default();
    // The first look is for what happened before the kernel was heard.
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

/// The latest repairs, and whether somebody undoes them.
#[derive(Default)]
struct Repairs {
    times: VecDeque<Instant>,
    is_fight: bool,
}

impl Repairs {
    /// A repair was made. After a quiet [`WINDOW`] it is the first one of another matter.
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

    /// Until when the next one has to wait, if it has to.
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
    fn repairs_are_few_and_a_fight_is_told_once() {
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
