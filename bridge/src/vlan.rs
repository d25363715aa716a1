// SPDX-License-Identifier: MIT OR Apache-2.0
//! VLAN identifiers.

/// A VLAN identifier, 12 bits.
///
/// 4095 is reserved by IEEE 802.1Q and no configuration should name it, yet a transparent switch may
/// meet it in a frame; it is then a VLAN like any other.
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

    /// The VLAN in a tag's control information; the upper four bits are priority and DEI.
    pub(crate) const fn from_tci(tci: u16) -> Self {
        Self(tci & Self::MASK)
    }
}

#[cfg(test)]
mod tests {
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
}
