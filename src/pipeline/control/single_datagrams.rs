// SPDX-License-Identifier: MIT OR Apache-2.0
//! Whether bulk traffic of a peer arrives as single datagrams although the kernel could merge them,
//! because GRO is off at the interface by which they come. That costs several times the processor
//! time, and nothing fails.
//!
//! The receiving threads count what could have been merged, so neither little traffic nor a sender
//! of datagrams that differ is taken for it; the interface is asked only then.

use crate::stats::Flow;

/// Fewer datagrams in a second are not worth a remedy.
const BULK: u64 = 2000;

/// The datagrams of one peer.
#[derive(Debug, Default)]
pub(super) struct SingleDatagrams {
    /// Where its last control datagram arrived.
    interface: Option<u32>,
    /// The counters when they were last read.
    datagrams: u64,
    mergeable: u64,
    /// The interface that merges nothing.
    culprit: Option<String>,
}

impl SingleDatagrams {
    /// The peer was heard by this interface.
    pub(super) fn handle_heard(&mut self, interface: u32) {
        self.interface = Some(interface);
    }

    /// Reads the counters, once per second; `off_at` says the name of an interface if GRO is off
    /// there. True if that is news.
    pub(super) fn read(&mut self, inbound: &Flow, off_at: impl Fn(u32) -> Option<String>) -> bool {
        let datagrams = advance(&mut self.datagrams, inbound.datagrams());
        let mergeable = advance(&mut self.mergeable, inbound.mergeable());
        let is_bulk = datagrams >= BULK;
        let are_merged = is_bulk && mergeable < datagrams / 2;
        let before = self.culprit.take();
        if !are_merged && (is_bulk || before.is_some()) {
            self.culprit = self.interface.and_then(off_at);
        }
        self.culprit.is_some() && self.culprit != before
    }

    /// The interface that merges nothing, if bulk traffic came that way.
    pub(super) fn culprit(&self) -> Option<&str> {
        self.culprit.as_deref()
    }
}

fn advance(count: &mut u64, now: u64) -> u64 {
    now - std::mem::replace(count, now)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interface_is_named_only_where_merging_would_help() {
        let inbound = Flow::default();
        let mut singles = SingleDatagrams::default();
        singles.handle_heard(7);
        let off = |index| Some(format!("wan{index}"));
        let on = |_| None;
        // Datagrams, how many of them could have been merged, whether GRO is on, and the result.
        for (datagrams, mergeable, is_on, culprit) in [
            (100, 99, false, None),
            (100_000, 1000, false, None),
            (100_000, 95_000, true, None),
            (100_000, 95_000, false, Some("wan7")),
            // It stays while there is no traffic, until GRO is on …
            (0, 0, false, Some("wan7")),
            (0, 0, true, None),
            (100_000, 95_000, false, Some("wan7")),
            // … or datagrams are merged all the same.
            (100_000, 1000, false, None),
        ] {
            inbound.of(1).add_datagrams(datagrams);
            inbound.of(1).add_mergeable(mergeable);
            let before = singles.culprit().map(str::to_owned);
            let is_news = match is_on {
                true => singles.read(&inbound, on),
                false => singles.read(&inbound, off),
            };
            assert_eq!(singles.culprit(), culprit, "{mergeable} of {datagrams}");
            assert_eq!(is_news, culprit.is_some() && before.as_deref() != culprit);
        }
    }
}
