// SPDX-License-Identifier: MIT OR Apache-2.0
//! The attributes of a link in the kernel, as a value.

use rtnetlink::packet_core::Nla;
use rtnetlink::packet_route::link::{
    AfSpecInet6, AfSpecUnspec, InfoData, LinkAttribute, LinkFlags, LinkInfo as LinkKind,
    LinkMessage,
};

/// The attributes of a link in the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LinkInfo {
    /// The number of the link in its namespace.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its hardware address, if it is an Ethernet address.
    pub mac: Option<[u8; 6]>,
    /// The overlay MTU: bytes behind the Ethernet header.
    pub mtu: u32,
    /// Whether it is administratively up.
    pub up: bool,
    /// Whether its carrier is on.
    pub carrier: bool,
    /// The index of the bridge or bond that it belongs to.
    pub controller: Option<u32>,
    /// `bridge`, `tun`, `veth` and so on; physical interfaces have none.
    pub kind: Option<String>,
    /// How IPv6 generates addresses by itself; None when the link has no IPv6.
    pub addr_gen_mode: Option<u8>,
    /// How many queues of a multi-queue TAP are open now.
    pub tap_queues: Option<u32>,
    /// Whether there is packet information in front of a TAP's frames.
    pub tap_packet_information: bool,
}

impl LinkInfo {
    /// Whether it is a bridge of the kernel.
    pub(crate) fn is_bridge(&self) -> bool {
        self.kind.as_deref() == Some("bridge")
    }

    pub(in crate::machine) fn parse(message: &LinkMessage) -> Self {
        let mut info = Self {
            index: message.header.index,
            name: String::new(),
            mac: None,
            mtu: 0,
            up: message.header.flags.contains(LinkFlags::Up),
            carrier: message.header.flags.contains(LinkFlags::LowerUp),
            controller: None,
            kind: None,
            addr_gen_mode: None,
            tap_queues: None,
            tap_packet_information: false,
        };
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => info.name.clone_from(name),
                LinkAttribute::Address(mac) => info.mac = mac.as_slice().try_into().ok(),
                LinkAttribute::Mtu(mtu) => info.mtu = *mtu,
                LinkAttribute::Controller(index) => info.controller = Some(*index),
                LinkAttribute::LinkInfo(kinds) => info.parse_kind(kinds),
                LinkAttribute::AfSpecUnspec(families) => {
                    info.addr_gen_mode = addr_gen_mode(families);
                }
                _ => {}
            }
        }
        info
    }

    fn parse_kind(&mut self, kinds: &[LinkKind]) {
        for kind in kinds {
            match kind {
                LinkKind::Kind(kind) => self.kind = Some(kind.to_string()),
                LinkKind::Data(InfoData::Tun(attributes)) => {
                    self.tap_queues = attributes.iter().find_map(tap_queues);
                    self.tap_packet_information = attributes.iter().any(is_packet_information);
                }
                _ => {}
            }
        }
    }
}

/// The value of IFLA_TUN_NUM_QUEUES, which only multi-queue TAPs have.
fn tap_queues(attribute: &impl Nla) -> Option<u32> {
    const IFLA_TUN_NUM_QUEUES: u16 = 8;
    let mut value = [0; 4];
    if attribute.kind() != IFLA_TUN_NUM_QUEUES || attribute.value_len() != value.len() {
        return None;
    }
    attribute.emit_value(&mut value);
    Some(u32::from_ne_bytes(value))
}

/// Whether it is IFLA_TUN_PI, and set.
fn is_packet_information(attribute: &impl Nla) -> bool {
    const IFLA_TUN_PI: u16 = 4;
    let mut value = [0; 1];
    if attribute.kind() != IFLA_TUN_PI || attribute.value_len() != value.len() {
        return false;
    }
    attribute.emit_value(&mut value);
    value != [0]
}

fn addr_gen_mode(families: &[AfSpecUnspec]) -> Option<u8> {
    families.iter().find_map(|family| match family {
        AfSpecUnspec::Inet6(attributes) => {
            attributes.iter().find_map(|attribute| match attribute {
                AfSpecInet6::AddrGenMode(mode) => Some(u8::from(mode)),
                _ => None,
            })
        }
        _ => None,
    })
}

/// The value of `addr_gen_mode` with which IPv6 generates no address by itself.
pub(crate) const ADDR_GEN_NONE: u8 = 1;

/// Whether this interface is a radio (IEEE 802.11).
pub(crate) fn is_radio(name: &str) -> bool {
    std::path::Path::new("/sys/class/net")
        .join(name)
        .join("phy80211")
        .exists()
}
