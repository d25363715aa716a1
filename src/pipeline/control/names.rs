// SPDX-License-Identifier: MIT OR Apache-2.0
//! Resolves the names of peers, for as long as it takes.

use std::time::{Duration, Instant};

use patchcord_bridge::PortId;
use tracing::warn;

use super::{ControlTask, Lookup};
use crate::{machine::resolver, pipeline::clock::now, proto::trouble::NameError};

/// How long a name lookup may take before the log says so, and how soon a failed one is tried
/// again.
const RESOLVE_PATIENCE: Duration = Duration::from_secs(5);
const RESOLVE_RETRY: Duration = Duration::from_secs(2);

impl ControlTask {
    /// Looks the peer's name up, and again until it resolves. One lookup at a time is enough:
    /// failed attempts ask for one every few seconds, in an outage for hours.
    pub(super) fn look_up(&mut self, port: PortId, delay: Duration) {
        let place = usize::from(port.0) - 1;
        let Some((_, Some(host))) = self.labels.get(place) else {
            return;
        };
        if self.looking_up.contains_key(&port) {
            return;
        }
        self.looking_up.insert(port, now() + delay);
        let (host, turn) = (host.clone(), self.turns[place]);
        self.lookups.spawn(async move {
            tokio::time::sleep(delay).await;
            // For as long as it takes: with a dead name server before one that works, longer than a
            // user would wait.
            let found = match resolver::look_up(&host).await {
                Ok(all) => {
                    let address = all.get(turn % all.len().max(1)).copied();
                    address.ok_or(NameError::NotFound)
                }
                Err(error) => Err(name_error(&error)),
            };
            (port, host, found)
        });
    }

    pub(super) fn handle_lookup(&mut self, found: Result<Lookup, tokio::task::JoinError>) {
        match &found {
            Ok((port, ..)) => drop(self.looking_up.remove(port)),
            // A task that panicked does not say which peer it was for.
            Err(_) => self.looking_up.clear(),
        }
        match found {
            // A reload has given the peer another one.
            Ok((port, host, _)) if !self.has_host(port, &host) => {
                self.look_up(port, Duration::ZERO);
            }
            Ok((port, _, Ok(address))) => {
                self.turns[usize::from(port.0) - 1] += 1;
                self.node.handle_resolved(now(), port, address);
            }
            Ok((port, _, Err(error))) => {
                self.node.handle_unresolved(now(), port, error);
                self.look_up(port, RESOLVE_RETRY);
            }
            Err(error) => warn!(%error, "looking up a name failed"),
        }
    }

    fn has_host(&self, port: PortId, host: &str) -> bool {
        let label = self.labels.get(usize::from(port.0).wrapping_sub(1));
        label.is_some_and(|(_, its)| its.as_deref() == Some(host))
    }

    /// Name servers that do not answer delay the failure of a lookup, for up to a minute.
    pub(super) fn note_late_names(&mut self, now: Instant) {
        let is_late = |since: &Instant| now.saturating_duration_since(*since) >= RESOLVE_PATIENCE;
        let late = self.looking_up.iter().filter(|(_, since)| is_late(since));
        let late: Vec<_> = late.map(|(&port, _)| port).collect();
        for port in late {
            let silent = NameError::Unavailable;
            self.node.handle_unresolved(now, port, silent);
        }
    }
}

/// The C library says only in words why a name was not found (gai_strerror(3)).
fn name_error(error: &std::io::Error) -> NameError {
    let words = error.to_string();
    let is_unknown = [
        "not known",
        "No address",
        "does not resolve",
        "non-recoverable",
    ]
    .iter()
    .any(|part| words.contains(part));
    match is_unknown {
        true => NameError::NotFound,
        false => NameError::Unavailable,
    }
}
