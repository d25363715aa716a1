// SPDX-License-Identifier: MIT OR Apache-2.0
//! Firewall marks: how routing rules tell one socket from another.

use std::fmt;

/// Some bits of the 32 that a socket's mark has (`SO_MARK`). The other bits belong to other
/// programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Mark {
    /// The bits as they are set.
    pub value: u32,
    /// The bits that count.
    pub mask: u32,
}

impl Mark {
    /// For sockets that stay outside of every tunnel: rules that send traffic into a tunnel say
    /// `not fwmark` with this mark. Four bits that kube-proxy, Tailscale and wg-quick leave alone.
    pub const BYPASS: Self = Self {
        value: 0x0500_0000,
        mask: 0x0f00_0000,
    };

    /// `mark` with our bits set, and the other bits unchanged.
    pub const fn apply_to(self, mark: u32) -> u32 {
        mark & !self.mask | self.value & self.mask
    }

    /// Whether a socket or frame with `mark` has this mark.
    pub const fn matches(self, mark: u32) -> bool {
        mark & self.mask == self.value & self.mask
    }
}

/// As `ip rule` takes it after `fwmark`.
impl fmt::Display for Mark {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{:#x}/{:#x}", self.value, self.mask)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_bits_of_the_mask_change() {
        let mark = Mark {
            value: 0x50,
            mask: 0xf0,
        };
        for (before, after) in [
            (0, 0x50),
            (0xffff_ffff, 0xffff_ff5f),
            (0x1234_5678, 0x1234_5658),
        ] {
            assert_eq!(mark.apply_to(before), after);
            assert!(mark.matches(after), "{after:#x}");
        }
        assert!(!mark.matches(0x40));
        assert_eq!(mark.to_string(), "0x50/0xf0");
    }
}
