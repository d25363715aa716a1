// SPDX-License-Identifier: MIT OR Apache-2.0
//! Maintains the interface of a session while it lasts: restores what other programs change, and takes
//! what appears late, such as its bridge.
//!
//! Each change of a link or an address that the kernel reports leads to a check, at most one every
//! [`GAP`]; so does each [`ROUND`], for changes that the kernel does not report.
//! [`Device::keep`](crate::machine::device::Device::keep) restores what is ours and differs. A program
//! that insists on its change wins for longer and longer ([`Fight`]), and the log says so when that
//! begins. The session runs this from the first settings on.

use std::{collections::VecDeque, error::Error, time::Duration};

use tokio::time::{Instant, sleep_until};
use tracing::{info, warn};

use super::{context::ProviderContext, network::Kept, settings::SettingsError};
use crate::{
    machine::{
        device::Drift,
        link::{LinkEvent, Links},
    },
    tripwire,
};

/// The time between two checks.
const GAP: Duration = Duration::from_millis(250);
/// The time until a check without an event.
const ROUND: Duration = Duration::from_secs(30);

/// Runs beside a session until the session is to end.
pub(super) async fn follow(context: ProviderContext) {
    // Before the first settings there is nothing to maintain.
    tokio::select! {
        () = context.until_interface() => {}
        _ = context.cancelled() => return,
    }
    let mut events = Links::watch();
    let mut keeper = Keeper::new();
    loop {
        let event = tokio::select! {
            event = events.next() => Some(event),
            () = sleep_until(keeper.due) => None,
            _ = context.cancelled() => return,
        };
        tripwire::task("keep");
        match event {
            Some(event) => keeper.handle_event(&context, event).await,
            None => keeper.check(&context).await,
        }
    }
}

struct Keeper {
    last: Instant,
    due: Instant,
    /// The kernel reported that the interface is gone, or in another namespace.
    is_gone: bool,
    /// The number of that network namespace.
    moved_to: Option<i32>,
    /// The last check did not find it.
    is_missed: bool,
    /// The interface was down since the last check, so that routes and names may be gone, too.
    came_up: bool,
    fight: Fight,
    last_error: Option<String>,
}

impl Keeper {
    fn new() -> Self {
        let now = Instant::now();
        Self {
            last: now,
            // For changes from before the watch began.
            due: now + GAP,
            is_gone: false,
            moved_to: None,
            is_missed: false,
            came_up: false,
            fight: Fight::default(),
            last_error: None,
        }
    }

    async fn handle_event(&mut self, context: &ProviderContext, event: LinkEvent) {
        let Some(device) = context.device_info() else {
            return;
        };
        let own = device.index;
        let bridge = device.bridge.as_ref().or(device.waits_for.as_ref());
        let now = Instant::now();
        match event {
            LinkEvent::LinkChanged {
                index,
                deleted: true,
                moved_to,
                ..
            } if index == own => {
                (self.is_gone, self.moved_to) = (true, moved_to);
                self.due = now;
            }
            LinkEvent::LinkChanged {
                index,
                name,
                came_up,
                ..
            } => {
                self.came_up |= came_up && index == own;
                // A machine may have thousands of other interfaces, which come and go.
                if index == own || name == device.name || Some(&name) == bridge {
                    self.check_soon(now);
                }
            }
            LinkEvent::AddressesChanged => {
                context.follow_local_networks().await;
                self.check_soon(now);
            }
        }
    }

    /// Not before the last check is [`GAP`] old, nor while another program's change is tolerated.
    fn check_soon(&mut self, now: Instant) {
        let earliest = self.fight.pause(now).unwrap_or(self.last + GAP);
        self.due = self.due.min(earliest.max(now));
    }

    async fn check(&mut self, context: &ProviderContext) {
        let now = Instant::now();
        (self.last, self.due) = (now, now + ROUND);
        if let Some(end) = self.fight.pause(now)
            && !std::mem::take(&mut self.is_gone)
        {
            self.due = end;
            return;
        }
        match context
            .keep_interface(std::mem::take(&mut self.came_up))
            .await
        {
            Ok(Kept::Well(drifts)) => {
                (self.is_gone, self.is_missed, self.moved_to) = (false, false, None);
                self.log_repairs(context, &drifts);
            }
            Ok(Kept::Lost) if self.is_gone || self.is_missed => {
                context.lose_interface(self.moved_to).await;
            }
            Ok(Kept::Lost) => {
                // The kernel reports in a moment whether it was deleted or moved.
                (self.is_missed, self.due) = (true, now + GAP);
            }
            Err(error) => self.failed(context, &error),
        }
    }

    fn log_repairs(&mut self, context: &ProviderContext, drifts: &[Drift]) {
        self.last_error = None;
        if drifts.is_empty() {
            return;
        }
        let begins = self.fight.note(Instant::now());
        let device = context.interface().map(|interface| interface.name);
        let tunnel = context.tunnel();
        for Drift {
            what,
            found,
            wanted,
        } in drifts
        {
            if begins {
                let pause_s = self.fight.backoff.as_secs();
                warn!(
                    tunnel,
                    device,
                    changed = what,
                    found,
                    wanted,
                    pause_s,
                    "another program keeps changing the interface: restoring it less and less often; \
                     leave the interface out of that program's configuration"
                );
            } else if !self.fight.is_on() {
                info!(
                    tunnel,
                    device,
                    changed = what,
                    found,
                    wanted,
                    "restored the interface after another program changed it"
                );
            }
        }
    }

    fn failed(&mut self, context: &ProviderContext, error: &SettingsError) {
        self.fight.note(Instant::now());
        let text = error.to_string();
        if self.last_error.as_ref() != Some(&text) {
            let tunnel = context.tunnel();
            let source = error.source().map(ToString::to_string);
            warn!(
                tunnel, %error, source,
                "cannot restore the interface after another program changed it; trying again"
            );
        }
        self.last_error = Some(text);
    }
}

/// The number of repairs that are made at once,
const MOST: usize = 5;
/// within this time.
const WINDOW: Duration = Duration::from_secs(10);
/// The longest time for which another program's change is tolerated.
const LONGEST: Duration = Duration::from_secs(300);

/// The latest repairs, and whether another program undoes them.
#[derive(Default)]
struct Fight {
    times: VecDeque<Instant>,
    /// How long after a repair the next one has to wait; zero while no program undoes them.
    backoff: Duration,
}

impl Fight {
    /// Counts a repair. True if that begins a fight.
    fn note(&mut self, now: Instant) -> bool {
        let quiet = self.times.back().map(|last| now.duration_since(*last));
        if quiet.is_some_and(|quiet| quiet >= self.backoff + WINDOW) {
            *self = Self::default();
        }
        self.times.push_back(now);
        if self.times.len() > MOST {
            self.times.pop_front();
        }
        if self.is_on() {
            self.backoff = (self.backoff * 2).min(LONGEST);
            return false;
        }
        let first = self.times.front().filter(|_| self.times.len() == MOST);
        let begins = first.is_some_and(|first| now.duration_since(*first) < WINDOW);
        if begins {
            self.backoff = WINDOW;
        }
        begins
    }

    fn is_on(&self) -> bool {
        !self.backoff.is_zero()
    }

    /// The time until which the next repair has to wait, if it has to.
    fn pause(&self, now: Instant) -> Option<Instant> {
        let end = *self.times.back()? + self.backoff;
        (now < end).then_some(end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fight_is_logged_once_and_repairs_back_off() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut fight = Fight::default();
        for second in [0, 1, 2, 3] {
            assert!(!fight.note(at(second)));
            assert_eq!(fight.pause(at(second)), None, "after {second} s");
        }
        assert!(fight.note(at(4)));
        assert_eq!(fight.pause(at(4)), Some(at(14)));
        for (second, next) in [
            (14, 34),
            (34, 74),
            (74, 154),
            (154, 314),
            (314, 614),
            (614, 914),
        ] {
            assert_eq!(fight.pause(at(second)), None);
            assert!(!fight.note(at(second)), "once");
            assert_eq!(fight.pause(at(second)), Some(at(next)), "after {second} s");
        }
        // The other program has given up.
        assert!(!fight.note(at(2000)));
        assert_eq!(fight.pause(at(2000)), None);
    }

    #[test]
    fn repairs_that_last_are_no_fight() {
        let start = Instant::now();
        let mut fight = Fight::default();
        for second in 0..20 {
            assert!(!fight.note(start + 3 * Duration::from_secs(second)));
        }
        assert!(!fight.is_on());
    }
}
