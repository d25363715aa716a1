// SPDX-License-Identifier: MIT OR Apache-2.0
//! A set of ports, made to be queried for each frame.

use alloc::vec::Vec;
use core::fmt;

use crate::port_id::PortId;

/// A set of ports: a bit for each. Up to sixty-four ports take no allocation, and a query for one
/// of them is a shift.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct PortSet {
    first: u64,
    /// Ports from 64; grows with the largest and never ends with a zero.
    rest: Vec<u64>,
}

impl PortSet {
    /// Adds a port.
    pub fn insert(&mut self, port: PortId) {
        let (word, bit) = Self::place(port);
        match word.checked_sub(1) {
            None => self.first |= bit,
            Some(at) => {
                if self.rest.len() <= at {
                    self.rest.resize(at + 1, 0);
                }
                self.rest[at] |= bit;
            }
        }
    }

    /// Whether the port is in the set.
    pub fn contains(&self, port: PortId) -> bool {
        let (word, bit) = Self::place(port);
        let held = match word.checked_sub(1) {
            None => self.first,
            Some(at) => self.rest.get(at).copied().unwrap_or(0),
        };
        held & bit != 0
    }

    /// Whether no port is in the set.
    pub fn is_empty(&self) -> bool {
        self.first == 0 && self.rest.is_empty()
    }

    /// The ports, in ascending order; takes time for each member and each 64 numbers.
    pub fn iter(&self) -> impl Iterator<Item = PortId> + '_ {
        let words = core::iter::once(&self.first).chain(&self.rest);
        words.enumerate().flat_map(|(word, &bits)| {
            let each = core::iter::successors(Some(bits), |bits| Some(bits & bits.wrapping_sub(1)));
            each.take_while(|&bits| bits != 0)
                // No more words than an id can name were ever inserted.
                .map(move |bits| PortId((word * 64) as u16 + bits.trailing_zeros() as u16))
        })
    }

    fn place(PortId(number): PortId) -> (usize, u64) {
        (usize::from(number / 64), 1 << (number % 64))
    }
}

impl Extend<PortId> for PortSet {
    fn extend<I: IntoIterator<Item = PortId>>(&mut self, ports: I) {
        ports.into_iter().for_each(|port| self.insert(port));
    }
}

impl FromIterator<PortId> for PortSet {
    fn from_iter<I: IntoIterator<Item = PortId>>(ports: I) -> Self {
        let mut set = Self::default();
        set.extend(ports);
        set
    }
}

impl fmt::Debug for PortSet {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_set().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn is_a_set(ports in prop::collection::vec(prop_oneof![0..130u16, any::<u16>()], 0..50)) {
            let model: BTreeSet<PortId> = ports.iter().copied().map(PortId).collect();
            let set: PortSet = model.iter().copied().collect();
            prop_assert!(set.iter().eq(model.iter().copied()));
            prop_assert_eq!(set.is_empty(), model.is_empty());
            for port in ports.into_iter().flat_map(|port| [port, port ^ 1, port ^ 64]) {
                prop_assert_eq!(set.contains(PortId(port)), model.contains(&PortId(port)));
            }
            let reversed: PortSet = model.into_iter().rev().collect();
            prop_assert_eq!(reversed, set);
        }
    }
}
