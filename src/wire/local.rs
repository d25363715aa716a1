// SPDX-License-Identifier: MIT OR Apache-2.0
//! Our own end of the path to a peer.

use std::net::IpAddr;

/// An address of this machine, and the interface by which a datagram arrived at it or is to leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Local {
    /// Never a group or broadcast address.
    pub address: IpAddr,
    /// Its index; 0: the one that the routes choose.
    pub interface: u32,
}

impl Local {
    /// `None` for an address from which nothing can be sent.
    pub fn new(address: IpAddr, interface: u32) -> Option<Self> {
        let address = address.to_canonical();
        let is_broadcast = address == IpAddr::V4(std::net::Ipv4Addr::BROADCAST);
        let is_usable = !address.is_multicast() && !address.is_unspecified() && !is_broadcast;
        is_usable.then_some(Self { address, interface })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_sent_from_a_group() {
        for (address, is_usable) in [
            ("192.0.2.1", true),
            ("::ffff:192.0.2.1", true),
            ("2001:db8::1", true),
            ("0.0.0.0", false),
            ("::", false),
            ("255.255.255.255", false),
            ("224.0.0.1", false),
            ("::ffff:224.0.0.1", false),
            ("ff02::1", false),
        ] {
            let local = Local::new(address.parse().unwrap(), 1);
            assert_eq!(local.is_some(), is_usable, "{address}");
            assert!(local.is_none_or(|local| !local.address.to_string().contains("ffff")));
        }
    }
}
