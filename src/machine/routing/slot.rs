// SPDX-License-Identifier: MIT OR Apache-2.0
//! The numbers in the kernel that a tunnel has for itself: a table, and priorities of rules.
//!
//! There are [`Slot::COUNT`] sets of them, in fixed ranges that users can recognise and that no known
//! program uses. `routing` assigns them.

use rtnetlink::packet_route::route::{RouteAttribute, RouteMessage};
use rtnetlink::packet_route::rule::{RuleAttribute, RuleMessage};
use serde::{Deserialize, Serialize};

use super::state::Rule;

/// One set of numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u8", into = "u8")]
pub(super) struct Slot(u8);

impl Slot {
    /// More than there are tunnels on any machine.
    pub(super) const COUNT: u8 = 63;

    const TABLES: u32 = 47_100;
    const PRIORITIES: u32 = 18_000;

    /// All of them, beginning with the one that follows from `tunnel`, so that a tunnel is likely
    /// to get the same one each time. FNV-1a, because the hash must be the same in every build.
    pub(super) fn all_for(tunnel: &str) -> impl Iterator<Item = Self> + use<> {
        let hash = tunnel
            .bytes()
            .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
                (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
            });
        let first = (hash % u64::from(Self::COUNT)) as u8;
        (0..Self::COUNT).map(move |step| Self((first + step) % Self::COUNT + 1))
    }

    pub(super) const fn number(self) -> u8 {
        self.0
    }

    pub(super) const fn table(self) -> u32 {
        Self::TABLES + self.0 as u32
    }

    pub(super) const fn priority(self, rule: Rule) -> u32 {
        let first = Self::PRIORITIES + 2 * self.0 as u32;
        match rule {
            Rule::MainButDefault(_) => first,
            Rule::Unmarked(_) => first + 1,
        }
    }

    /// Whether a rule of any program uses one of the numbers.
    pub(super) fn is_used_by(self, rule: &RuleMessage) -> bool {
        let first = Self::PRIORITIES + 2 * u32::from(self.0);
        rule.attributes.iter().any(|attribute| match attribute {
            RuleAttribute::Table(table) => *table == self.table(),
            RuleAttribute::Priority(priority) => (first..=first + 1).contains(priority),
            _ => false,
        })
    }

    /// Whether a route of any program is in the table.
    pub(super) fn has_route(self, route: &RouteMessage) -> bool {
        // The field of the header has room for 255 tables.
        let table = RouteAttribute::Table(self.table());
        route.attributes.contains(&table)
    }
}

impl TryFrom<u8> for Slot {
    type Error = &'static str;

    fn try_from(number: u8) -> Result<Self, Self::Error> {
        let is_one = (1..=Self::COUNT).contains(&number);
        is_one.then_some(Self(number)).ok_or("no such slot")
    }
}

impl From<Slot> for u8 {
    fn from(slot: Slot) -> Self {
        slot.0
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::machine::routing::state::Family;

    #[test]
    fn slots_share_no_number() {
        let slots: Vec<_> = Slot::all_for("office").collect();
        let unmarked = |slot: &Slot| slot.priority(Rule::Unmarked(Family::V4));
        let main = |slot: &Slot| slot.priority(Rule::MainButDefault(Family::V6));
        let distinct = [
            slots.iter().map(|slot| slot.table()).collect(),
            slots
                .iter()
                .flat_map(|slot| [main(slot), unmarked(slot)])
                .collect(),
        ]
        .map(|numbers: BTreeSet<u32>| numbers.len());
        assert_eq!(distinct, [63, 126]);
        for slot in &slots {
            assert!(main(slot) < unmarked(slot), "the machine's routes go first");
            assert_eq!(Slot::try_from(slot.number()), Ok(*slot));
        }
        assert!(Slot::try_from(0).is_err() && Slot::try_from(64).is_err());
    }

    #[test]
    fn a_tunnel_begins_its_search_where_it_did_before() {
        let first = |tunnel| Slot::all_for(tunnel).next().map(Slot::number);
        assert_eq!(first("office"), first("office"));
        assert_ne!(first("office"), first("home"));
    }
}
