// SPDX-License-Identifier: MIT OR Apache-2.0
//! A frame and its buffer, and whether the relay may harm it.

/// Room for a jumbo frame, and for VLAN tags and unusual cables.
pub(crate) const CAPACITY: usize = 10_000;
/// Room before it, for the tag that the kernel removes from a frame and reports separately.
pub(crate) const HEADROOM: usize = 4;

const ETHERNET_HEADER: usize = 14;
const MACS: usize = 12;

/// An Ethernet frame, from the destination address to the end of the payload.
#[derive(Clone)]
pub(crate) struct Frame {
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Frame {
    /// An empty one.
    pub(crate) fn new() -> Self {
        Self {
            buffer: vec![0; HEADROOM + CAPACITY].into_boxed_slice(),
            start: HEADROOM,
            end: HEADROOM,
        }
    }

    /// The buffer for a received frame; [`Frame::set_len`] then sets its length.
    pub(crate) fn room(&mut self) -> &mut [u8] {
        &mut self.buffer[HEADROOM..]
    }

    pub(crate) fn set_len(&mut self, len: usize) {
        self.start = HEADROOM;
        self.end = HEADROOM + len.min(CAPACITY);
    }

    /// Puts a VLAN tag behind the addresses.
    pub(crate) fn insert_tag(&mut self, tpid: u16, tci: u16) {
        if self.as_ref().len() < ETHERNET_HEADER {
            return;
        }
        self.buffer.copy_within(HEADROOM..HEADROOM + MACS, 0);
        self.start = 0;
        self.buffer[MACS..MACS + 2].copy_from_slice(&tpid.to_be_bytes());
        self.buffer[MACS + 2..MACS + 4].copy_from_slice(&tci.to_be_bytes());
    }

    /// IPv4 and IPv6, tagged or not. Everything else passes untouched, and so does neighbour
    /// discovery: without neighbours a test would see no traffic instead of bad traffic.
    pub(crate) fn may_be_harmed(&self) -> bool {
        let mut rest = self.as_ref().get(MACS..).unwrap_or_default();
        while let [0x81, 0x00, _, _, inner @ ..] | [0x88, 0xa8, _, _, inner @ ..] = rest {
            rest = inner;
        }
        match rest {
            [0x08, 0x00, ..] => true,
            [0x86, 0xdd, ip @ ..] => !is_neighbour_discovery(ip),
            _ => false,
        }
    }
}

impl AsRef<[u8]> for Frame {
    fn as_ref(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }
}

/// Router and neighbour solicitations and advertisements, and redirects (RFC 4861).
fn is_neighbour_discovery(ip: &[u8]) -> bool {
    const ICMPV6: u8 = 58;
    ip.get(6) == Some(&ICMPV6) && matches!(ip.get(40), Some(133..=137))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(behind_macs: &[u8]) -> Frame {
        let mut frame = Frame::new();
        let bytes = [&[1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2], behind_macs].concat();
        frame.room()[..bytes.len()].copy_from_slice(&bytes);
        frame.set_len(bytes.len());
        frame
    }

    fn icmpv6(kind: u8) -> Vec<u8> {
        let mut bytes = vec![0; 2 + 44];
        bytes[..2].copy_from_slice(&[0x86, 0xdd]);
        bytes[2 + 6] = 58;
        bytes[2 + 40] = kind;
        bytes
    }

    #[test]
    fn only_ip_is_harmed_and_neighbour_discovery_is_not() {
        for (behind_macs, harmed) in [
            (vec![], false),
            (vec![0x08], false),
            (vec![0x08, 0x00, 0x45], true),
            (vec![0x08, 0x06, 0x00], false),
            (vec![0x86, 0xdd, 0x60], true),
            (vec![0x81, 0x00, 0, 42, 0x08, 0x00], true),
            (vec![0x88, 0xa8, 0, 1, 0x81, 0x00, 0, 2, 0x86, 0xdd], true),
            (vec![0x81, 0x00, 0, 42, 0x08, 0x06], false),
            (vec![0x81, 0x00, 0], false),
            (icmpv6(128), true),
            (icmpv6(135), false),
            (icmpv6(136), false),
        ] {
            assert_eq!(
                frame(&behind_macs).may_be_harmed(),
                harmed,
                "{behind_macs:x?}"
            );
        }
    }

    #[test]
    fn a_tag_goes_behind_the_addresses_and_a_reused_buffer_forgets_it() {
        let mut tagged = frame(&[0x08, 0x00, 7, 8]);
        tagged.insert_tag(0x8100, 0x2005);
        assert_eq!(
            tagged.as_ref(),
            [
                1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 0x81, 0, 0x20, 5, 8, 0, 7, 8
            ]
        );
        tagged.set_len(14);
        assert_eq!(tagged.as_ref().len(), 14);
        assert_eq!(tagged.as_ref()[12..], [0x08, 0x00]);
    }
}
