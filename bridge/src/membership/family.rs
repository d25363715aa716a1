// SPDX-License-Identifier: MIT OR Apache-2.0
//! The two address families of multicast.

use core::net::IpAddr;

use crate::mac::MacAddr;

/// IPv4 and IGMP, or IPv6 and MLD.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    pub(super) fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }

    /// The family whose groups have such an address, RFC 1112 section 6.4 and RFC 2464 section 7.
    pub(super) fn of_mac(mac: MacAddr) -> Option<Self> {
        match mac.0 {
            [0x01, 0x00, 0x5e, 0..=0x7f, ..] => Some(Self::V4),
            [0x33, 0x33, ..] => Some(Self::V6),
            _ => None,
        }
    }
}
