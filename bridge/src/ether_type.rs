// SPDX-License-Identifier: MIT OR Apache-2.0
//! EtherTypes, IANA "IEEE 802 Numbers".

/// Below this, the field is a length: IEEE 802.3 section 3.2.6.
pub const MIN: u16 = 0x0600;

/// IPv4.
pub const IPV4: u16 = 0x0800;
/// ARP.
pub const ARP: u16 = 0x0806;
/// An Ethernet frame, as GRE and Geneve carry one.
pub const BRIDGED_ETHERNET: u16 = 0x6558;
/// The customer tag of IEEE 802.1Q.
pub const CUSTOMER_TAG: u16 = 0x8100;
/// IPv6.
pub const IPV6: u16 = 0x86dd;
/// A session of PPPoE.
pub const PPPOE_SESSION: u16 = 0x8864;
/// The service tag of IEEE 802.1ad.
pub const SERVICE_TAG: u16 = 0x88a8;
/// The local experimental EtherType 2, IEEE 802 section 9.2.3.
pub const LOCAL_EXPERIMENTAL_2: u16 = 0x88b6;
/// A stacked tag from before IEEE 802.1ad. Neither this switch nor Linux treats it as a tag.
pub const OLD_STACKED_TAG: u16 = 0x9100;
