// SPDX-License-Identifier: MIT OR Apache-2.0
//! Ethernet addresses, as bytes and as text.

use core::error::Error;
use core::fmt;
use core::str::FromStr;

/// An Ethernet address in the order of the wire.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MacAddr(pub [u8; 6]);

impl MacAddr {
    /// Whether it names a group of stations: multicast, or broadcast.
    pub const fn is_group(self) -> bool {
        self.0[0] & 1 == 1
    }

    /// Whether it names every station.
    pub fn is_broadcast(self) -> bool {
        self.0 == [0xff; 6]
    }

    /// Whether it is the null address, which no station has.
    pub fn is_zero(self) -> bool {
        self.0 == [0; 6]
    }

    /// Whether a station may have it: neither a group address nor null.
    pub fn is_station(self) -> bool {
        !self.is_group() && !self.is_zero()
    }

    /// The address as the low 48 bits of a number.
    pub(crate) const fn to_bits(self) -> u64 {
        let [a, b, c, d, e, f] = self.0;
        u64::from_be_bytes([0, 0, a, b, c, d, e, f])
    }

    /// The address in the low 48 bits of a number.
    pub(crate) const fn from_bits(bits: u64) -> Self {
        let [_, _, a, b, c, d, e, f] = bits.to_be_bytes();
        Self([a, b, c, d, e, f])
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, f] = self.0;
        write!(out, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
    }
}

impl fmt::Debug for MacAddr {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, out)
    }
}

impl FromStr for MacAddr {
    type Err = ParseMacError;

    /// Parses six groups of one or two hexadecimal digits with colons between them.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut bytes = [0; 6];
        let mut groups = text.split(':');
        for byte in &mut bytes {
            *byte = parse_group(groups.next().ok_or(ParseMacError::GroupCount)?)?;
        }
        groups
            .next()
            .map_or(Ok(Self(bytes)), |_| Err(ParseMacError::GroupCount))
    }
}

fn parse_group(group: &str) -> Result<u8, ParseMacError> {
    // `from_str_radix` alone would accept a sign.
    if group.len() > 2 || !group.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(ParseMacError::BadGroup);
    }
    u8::from_str_radix(group, 16).map_err(|_| ParseMacError::BadGroup)
}

/// Why a text is not an Ethernet address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ParseMacError {
    /// There are not exactly six groups.
    GroupCount,
    /// A group is not one or two hexadecimal digits.
    BadGroup,
}

impl fmt::Display for ParseMacError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::GroupCount => "an Ethernet address has six groups, as in 02:00:5e:10:00:01",
            Self::BadGroup => "each group of an Ethernet address is one or two hexadecimal digits",
        })
    }
}

impl Error for ParseMacError {}

#[cfg(test)]
mod tests {
    use std::string::ToString;

    use super::ParseMacError::{BadGroup, GroupCount};
    use super::*;

    #[test]
    fn reads_and_writes_text() {
        for (text, verdict) in [
            ("02:00:5e:10:00:01", Ok("02:00:5e:10:00:01")),
            ("2:0:5E:10:0:1", Ok("02:00:5e:10:00:01")),
            ("", Err(BadGroup)),
            ("02:00:5e:10:00", Err(GroupCount)),
            ("02:00:5e:10:00:01:02", Err(GroupCount)),
            ("02:00:5e:10:00:", Err(BadGroup)),
            ("02:00:5e:10:00:001", Err(BadGroup)),
            ("02:00:5e:10:00:+1", Err(BadGroup)),
            ("02:00:5e:10:00:0g", Err(BadGroup)),
            ("02-00-5e-10-00-01", Err(BadGroup)),
        ] {
            let parsed = text.parse().map(|mac: MacAddr| mac.to_string());
            assert_eq!(parsed.as_deref(), verdict.as_ref().copied(), "{text}");
        }
    }

    #[test]
    fn knows_groups_from_stations() {
        for (text, group, broadcast, zero) in [
            ("ff:ff:ff:ff:ff:ff", true, true, false),
            ("01:00:5e:00:00:fb", true, false, false),
            ("33:33:00:00:00:01", true, false, false),
            ("02:00:5e:10:00:01", false, false, false),
            ("fe:ff:ff:ff:ff:ff", false, false, false),
            ("00:00:00:00:00:00", false, false, true),
        ] {
            let mac: MacAddr = text.parse().unwrap();
            let seen = (mac.is_group(), mac.is_broadcast(), mac.is_zero());
            assert_eq!(seen, (group, broadcast, zero), "{text}");
        }
    }
}
