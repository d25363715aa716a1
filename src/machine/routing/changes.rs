// SPDX-License-Identifier: MIT OR Apache-2.0
//! That somebody, perhaps the tunnel itself, changed something in a tunnel's table or among its rules.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use rtnetlink::MulticastGroup::{Ipv4Route, Ipv4Rule, Ipv6Route, Ipv6Rule};
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::RouteNetlinkMessage;

use super::slot::Slot;
use crate::machine::changes::Changes;

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

    /// Waits for a change, and then until it is over: a burst of them is one, and so is each second
    /// of a flood.
    pub(crate) async fn next(&mut self) {
        let Self { changes, number } = self;
        changes
            .next_that(|message| {
                Slot::try_from(number.load(Ordering::Relaxed))
                    .is_ok_and(|slot| concerns(slot, message))
            })
            .await;
    }
}

/// Whether the message is about the slot's table or priorities. One that cannot be read may be.
fn concerns(slot: Slot, message: &[u8]) -> bool {
    use RouteNetlinkMessage::{DelRoute, DelRule, NewRoute, NewRule};
    match NetlinkMessage::deserialize(message).map(|message| message.payload) {
        Ok(NetlinkPayload::InnerMessage(NewRoute(route) | DelRoute(route))) => {
            slot.has_route(&route)
        }
        Ok(NetlinkPayload::InnerMessage(NewRule(rule) | DelRule(rule))) => slot.is_used_by(&rule),
        Ok(_) => false,
        Err(_) => true,
    }
}
