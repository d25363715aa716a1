// SPDX-License-Identifier: MIT OR Apache-2.0
//! Reports that a program, perhaps the tunnel itself, changed a tunnel's table or rules.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use rtnetlink::MulticastGroup::{Ipv4Route, Ipv4Rule, Ipv6Route, Ipv6Rule};

use super::slot::Slot;
use crate::machine::changes::Changes;
use crate::machine::monitor::Event;

/// Changes of the routes and rules of one tunnel, whatever slot it has.
pub(crate) struct RoutingChanges {
    changes: Changes,
    /// The number of the slot; 0 while there is none.
    number: Arc<AtomicU8>,
}

impl RoutingChanges {
    pub(super) fn new(number: Arc<AtomicU8>) -> Self {
        // A kernel without IPv6 lacks its groups.
        let (groups, optional) = ([Ipv4Route, Ipv4Rule], [Ipv6Route, Ipv6Rule]);
        let changes = Changes::of("routes and rules", &groups, &optional);
        Self { changes, number }
    }

    /// Waits for a change, and then until it is over: a burst is one change, and so is each second
    /// of a flood.
    pub(crate) async fn next(&mut self) {
        let Self { changes, number } = self;
        changes
            .next_that(|event| {
                Slot::try_from(number.load(Ordering::Relaxed))
                    .is_ok_and(|slot| concerns(slot, event))
            })
            .await;
    }
}

/// Whether the event is about the slot's table or priorities.
fn concerns(slot: Slot, event: &Event) -> bool {
    match event {
        Event::Route(route) => slot.has_route(route),
        Event::Rule(rule) => slot.is_used_by(rule),
        Event::Lost => true,
        Event::Link { .. } | Event::Address | Event::Other => false,
    }
}
