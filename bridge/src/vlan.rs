// SPDX-License-Identifier: MIT OR Apache-2.0
//! VLANs: their identifiers and sets of them. Edits of a frame's tags are in `tag`, the VLANs of a
//! port in `port_vlans`.

mod tag;

use core::fmt;

pub use self::tag::{EDIT_BYTES, Inside, Tag, TagEdit};
use crate::ether_type;

/// A VLAN identifier, 12 bits.
///
/// 4095 is reserved by IEEE 802.1Q and no configuration should name it, yet a transparent switch
/// may receive a frame with it; there it is a VLAN like any other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Vid(u16);

impl Vid {
    /// No VLAN. A priority tag (VID 0) carries a priority and no VLAN, so it counts as untagged.
    pub const UNTAGGED: Self = Self(0);

    const MASK: u16 = 0x0fff;

    /// The VLAN of this number, unless it needs more than 12 bits.
    pub const fn new(value: u16) -> Option<Self> {
        if value <= Self::MASK {
            Some(Self(value))
        } else {
            None
        }
    }

    /// The number.
    pub const fn value(self) -> u16 {
        self.0
    }

    /// Whether a configuration may name it: IEEE 802.1Q, table 9-2, reserves 0 and 4095.
    pub const fn is_assignable(self) -> bool {
        self.0 != 0 && self.0 != Self::MASK
    }

    /// The VLAN in a tag's control information; the upper four bits are priority and DEI.
    pub(crate) const fn from_tci(tci: u16) -> Self {
        Self(tci & Self::MASK)
    }

    /// The control information of a tag for this VLAN, with priority and DEI of `tci`.
    pub(crate) const fn with_priority_of(self, tci: u16) -> u16 {
        tci & !Self::MASK | self.0
    }
}

impl fmt::Display for Vid {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, out)
    }
}

/// The EtherType that marks a tag.
///
/// These two are the tags of IEEE 802.1Q (table 9-1 there), and those that Linux takes off a frame
/// (`eth_type_vlan`). So a guard sees behind all tags that a host behind it may strip. Numbers that
/// vendors used for stacked tags before, such as 9100, are EtherTypes like any other, and the bytes
/// behind them are opaque here as they are to hosts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Tpid {
    /// Customer tag, IEEE 802.1Q: 8100.
    #[default]
    Customer,
    /// Service tag, IEEE 802.1ad: 88a8.
    Service,
}

impl Tpid {
    /// The tag that this EtherType announces, if it is one.
    pub const fn from_ether_type(ether_type: u16) -> Option<Self> {
        match ether_type {
            ether_type::CUSTOMER_TAG => Some(Self::Customer),
            ether_type::SERVICE_TAG => Some(Self::Service),
            _ => None,
        }
    }

    /// The EtherType.
    pub const fn ether_type(self) -> u16 {
        match self {
            Self::Customer => ether_type::CUSTOMER_TAG,
            Self::Service => ether_type::SERVICE_TAG,
        }
    }
}

/// A set of VLANs: one bit for each of the 4096 identifiers.
#[derive(Clone, PartialEq, Eq)]
pub struct VidSet([u64; Self::WORDS]);

impl VidSet {
    /// No VLAN.
    pub const EMPTY: Self = Self([0; Self::WORDS]);

    const WORDS: usize = 64;

    /// Every VLAN that a configuration may name: 1 to 4094.
    pub fn all() -> Self {
        (1..Vid::MASK).map(Vid).collect()
    }

    /// Adds `vid` and returns whether it was missing.
    pub fn insert(&mut self, vid: Vid) -> bool {
        let was_missing = !self.contains(vid);
        self.0[usize::from(vid.0 / 64)] |= 1 << (vid.0 % 64);
        was_missing
    }

    /// Whether `vid` is in the set.
    pub const fn contains(&self, vid: Vid) -> bool {
        self.0[(vid.0 / 64) as usize] >> (vid.0 % 64) & 1 == 1
    }

    /// Whether the set is empty.
    pub fn is_empty(&self) -> bool {
        *self == Self::EMPTY
    }

    /// Its members in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = Vid> + '_ {
        (0..=Vid::MASK).map(Vid).filter(|&vid| self.contains(vid))
    }
}

impl Extend<Vid> for VidSet {
    fn extend<I: IntoIterator<Item = Vid>>(&mut self, vids: I) {
        for vid in vids {
            self.insert(vid);
        }
    }
}

impl FromIterator<Vid> for VidSet {
    fn from_iter<I: IntoIterator<Item = Vid>>(vids: I) -> Self {
        let mut set = Self::EMPTY;
        set.extend(vids);
        set
    }
}

impl fmt::Debug for VidSet {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_set().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use super::*;

    #[test]
    fn holds_twelve_bits() {
        for (value, vid) in [
            (0, Some(Vid::UNTAGGED)),
            (4095, Some(Vid(4095))),
            (4096, None),
        ] {
            assert_eq!(Vid::new(value), vid, "{value}");
        }
    }

    #[test]
    fn ignores_priority_and_dei_of_a_tag() {
        for (tci, vid) in [(0x0064, 100), (0xf064, 100), (0xe000, 0), (0x1fff, 4095)] {
            assert_eq!(Vid::from_tci(tci).value(), vid, "{tci:#06x}");
        }
    }

    #[test]
    fn a_set_holds_each_of_the_4096() {
        for value in 0..4096 {
            let vid = Vid(value);
            let set: VidSet = [vid].into_iter().collect();
            assert!(set.contains(vid), "{value}");
            assert_eq!(set.iter().collect::<Vec<_>>(), [vid]);
            assert!(!set.contains(Vid(value ^ 1)), "{value}");
        }
        let mut set = VidSet::EMPTY;
        assert!(set.is_empty());
        assert!(set.insert(Vid(64)));
        assert!(!set.insert(Vid(64)), "twice");
        assert!(!set.is_empty());
    }

    #[test]
    fn all_are_those_that_can_be_assigned() {
        let all = VidSet::all();
        for vid in (0..4096).map(Vid) {
            assert_eq!(all.contains(vid), vid.is_assignable(), "{vid}");
        }
        assert_eq!(all.iter().count(), 4094);
    }

    #[test]
    fn a_tag_is_known_by_its_ether_type() {
        for (ether_type, tpid) in [
            (0x8100, Some(Tpid::Customer)),
            (0x88a8, Some(Tpid::Service)),
            (0x9100, None),
            (0x0800, None),
        ] {
            assert_eq!(Tpid::from_ether_type(ether_type), tpid, "{ether_type:#x}");
            assert!(tpid.is_none_or(|tpid| tpid.ether_type() == ether_type));
        }
    }

    #[test]
    fn priority_and_dei_survive_another_vlan() {
        for (vid, tci, after) in [(100, 0xf00a, 0xf064), (0, 0x6fff, 0x6000), (4095, 0, 4095)] {
            assert_eq!(Vid(vid).with_priority_of(tci), after, "{vid} {tci:#x}");
        }
    }
}
