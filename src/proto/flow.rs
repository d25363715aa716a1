// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which frames belong to one flow, so that frames of other flows may overtake them.

use patchcord_bridge::{
    ether_type,
    ethernet::Network,
    ip_protocol::{TCP, UDP},
};

/// A number that all frames of a flow share: one direction of a TCP connection, for example, or all
/// ARP between two stations. Different flows may share one, and are then kept in order as if they
/// were one.
pub(crate) fn flow_of(frame: &[u8], network: Option<Network>) -> u64 {
    let (ether_type, network) = match network {
        Some(Network { ether_type, at }) => (ether_type, at),
        None => (0, frame.len()),
    };
    let at = |from: usize, len: usize| frame.get(from..from + len).unwrap_or_default();
    let mut hash = Fnv::default();
    hash.add(at(0, network));
    let protocol_and_ports = match ether_type {
        ether_type::IPV4 => {
            hash.add(at(network + 12, 8));
            let header = frame
                .get(network)
                .map_or(20, |first| usize::from(first & 15) * 4);
            // Only the first fragment has ports, so the hash of a fragment covers none.
            let is_fragment = at(network + 6, 2) != [0, 0] && at(network + 6, 2) != [0x40, 0];
            (!is_fragment).then_some((network + 9, network + header))
        }
        ether_type::IPV6 => {
            hash.add(at(network + 8, 32));
            Some((network + 6, network + 40))
        }
        _ => None,
    };
    if let Some((protocol, ports)) = protocol_and_ports {
        hash.add(at(protocol, 1));
        if matches!(at(protocol, 1), [TCP | UDP]) {
            hash.add(at(ports, 4));
        }
    }
    hash.0
}

/// FNV-1a: the keys are short, and a collision gains an attacker nothing but order among its own
/// flows.
struct Fnv(u64);

impl Default for Fnv {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Fnv {
    fn add(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
        }
    }
}

#[cfg(test)]
mod tests {
    use patchcord_bridge::Headers;

    fn flow_of(frame: &[u8]) -> u64 {
        let headers = Headers::parse(frame).ok();
        super::flow_of(frame, headers.and_then(|it| it.network()))
    }

    fn frame(ethertype: u16, rest: &[u8]) -> Vec<u8> {
        [&[2; 6][..], &[4; 6], &ethertype.to_be_bytes(), rest].concat()
    }

    fn ipv4(protocol: u8, fragment: u16, ports: [u8; 4]) -> Vec<u8> {
        let mut packet = [0; 24];
        packet[0] = 0x45;
        packet[6..8].copy_from_slice(&fragment.to_be_bytes());
        packet[9] = protocol;
        packet[20..].copy_from_slice(&ports);
        frame(0x0800, &packet)
    }

    /// Guards, VLANs and super-frames look behind the same tags: otherwise a frame could be one
    /// thing to a guard and another to the destination host.
    #[test]
    fn there_is_one_notion_of_a_tag() {
        use patchcord_bridge::{
            Tag,
            inspect::{Content, inspect},
        };
        let advertisement = [
            &[0, 7, 0x86, 0xdd, 0x60, 0, 0, 0, 0, 16, 58, 255][..],
            &[0xfe; 32],
            &[134; 16],
        ];
        for tpid in 0..=u16::MAX {
            let frame = frame(tpid, &advertisement.concat());
            let is_tag = [0x8100, 0x88a8].contains(&tpid);
            let headers = Headers::parse(&frame).unwrap();
            assert_eq!(headers.tag != Tag::None, is_tag, "a VLAN: {tpid:04x}");
            let seen = inspect(&frame) == Content::RouterAdvertisement;
            assert_eq!(seen, is_tag, "a guard: {tpid:04x}");
            let behind = headers.network().is_some_and(|it| it.at == 18);
            assert_eq!(behind, is_tag, "a super-frame: {tpid:04x}");
        }
    }

    #[test]
    fn flows_differ_by_ports_and_fragments_do_not() {
        let one = flow_of(&ipv4(6, 0, [0, 1, 0, 2]));
        assert_eq!(one, flow_of(&ipv4(6, 0, [0, 1, 0, 2])));
        assert_ne!(one, flow_of(&ipv4(6, 0, [0, 1, 0, 3])));
        assert_ne!(one, flow_of(&ipv4(17, 0, [0, 1, 0, 2])));
        let first = flow_of(&ipv4(17, 0x2000, [0, 1, 0, 2]));
        assert_eq!(first, flow_of(&ipv4(17, 0x0020, [9, 9, 9, 9])));
        let tagged = frame(0x8100, &[0, 7, 8, 6]);
        assert_ne!(flow_of(&tagged), flow_of(&frame(0x0806, &[])));
        assert_ne!(flow_of(&[]), one);
    }
}
