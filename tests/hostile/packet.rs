// SPDX-License-Identifier: MIT OR Apache-2.0
//! UDP over IPv6 behind extension headers of any length, as a frame with a partial checksum.

use patchcord::internals::wire::offload::{Checksum, Offload, Segmentation, Transport};

use crate::kit::frames::{self, Mac};

const ETHERNET: usize = 14;
const TAG: usize = 4;
const IPV6: usize = 40;
const UDP: usize = 8;
/// The most bytes of one extension header.
const EXTENSION_MAX: usize = 2048;
const DESTINATION_OPTIONS: u8 = 60;
const UDP_NUMBER: u8 = 17;

/// The parts of a frame.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Packet<'a> {
    pub(crate) dst: Mac,
    pub(crate) src: Mac,
    /// VLANs of its 802.1Q tags.
    pub(crate) vlans: &'a [u16],
    /// Bytes of IPv6 destination options, a multiple of eight.
    pub(crate) options: usize,
    /// Bytes of the UDP payload.
    pub(crate) payload: usize,
    /// Chooses the payload.
    pub(crate) seed: u64,
}

impl Packet<'_> {
    /// Bytes up to the payload.
    pub(crate) fn headers_len(&self) -> usize {
        self.transport() + UDP
    }

    fn transport(&self) -> usize {
        ETHERNET + TAG * self.vlans.len() + IPV6 + self.options
    }

    /// The frame as it travels: its checksum is that of the pseudo-header.
    pub(crate) fn with_partial_checksum(&self) -> Vec<u8> {
        self.with_payload(&self.payload())
    }

    /// The same with its checksum finished, as its receiver should see it.
    pub(crate) fn finished(&self) -> Vec<u8> {
        self.finish(self.with_partial_checksum())
    }

    /// Its segments of so many bytes, as their receiver should see them.
    pub(crate) fn segments(&self, size: usize) -> Vec<Vec<u8>> {
        let payload = self.payload();
        let segments = payload.chunks(size);
        segments
            .map(|segment| self.finish(self.with_payload(segment)))
            .collect()
    }

    fn payload(&self) -> Vec<u8> {
        let mut payload = Vec::new();
        frames::fill(&mut payload, self.payload, self.seed);
        payload
    }

    fn with_payload(&self, payload: &[u8]) -> Vec<u8> {
        assert_eq!(self.options % 8, 0, "an extension header has whole words");
        let udp_len = UDP + payload.len();
        let mut frame = self.ethernet();
        let next = if self.options > 0 {
            DESTINATION_OPTIONS
        } else {
            UDP_NUMBER
        };
        frame.extend([0x60, 0, 0, 0]);
        frame.extend(((self.options + udp_len) as u16).to_be_bytes());
        frame.extend([next, 64]);
        let addresses: Vec<u8> = [1, 2].map(address).concat();
        frame.extend(&addresses);
        extend_with_options(&mut frame, self.options);
        frame.extend([0x30, 0x39, 0x30, 0x3a]);
        frame.extend((udp_len as u16).to_be_bytes());
        let pseudo = [
            &addresses[..],
            &(udp_len as u32).to_be_bytes(),
            &[0, 0, 0, UDP_NUMBER],
        ]
        .concat();
        frame.extend(sum(&pseudo).to_be_bytes());
        frame.extend(payload);
        frame
    }

    fn finish(&self, mut frame: Vec<u8>) -> Vec<u8> {
        let at = self.transport() + 6;
        let finished = match !sum(&frame[self.transport()..]) {
            0 => 0xffff,
            sum => sum,
        };
        frame[at..at + 2].copy_from_slice(&finished.to_be_bytes());
        frame
    }

    /// The position of the checksum.
    pub(crate) fn checksum(&self) -> Checksum {
        Checksum {
            start: self.transport() as u16,
            offset: 6,
        }
    }

    /// Its offload descriptor as a super-frame with so many bytes in each segment.
    pub(crate) fn open_segments(&self, size: u16) -> Offload {
        Offload {
            checksum: self.checksum(),
            segmentation: Some(Segmentation {
                transport: Transport::Udp,
                size,
                cwr: false,
            }),
        }
    }

    fn ethernet(&self) -> Vec<u8> {
        let mut frame = [self.dst, self.src].concat();
        for vlan in self.vlans {
            frame.extend([0x81, 0x00]);
            frame.extend(vlan.to_be_bytes());
        }
        frame.extend([0x86, 0xdd]);
        frame
    }
}

fn address(last: u8) -> [u8; 16] {
    let mut address = [0; 16];
    [address[0], address[1], address[15]] = [0xfd, 0x99, last];
    address
}

/// Destination options of padding, in as many headers as needed.
fn extend_with_options(frame: &mut Vec<u8>, mut left: usize) {
    while left > 0 {
        let len = left.min(EXTENSION_MAX);
        left -= len;
        let next = if left > 0 {
            DESTINATION_OPTIONS
        } else {
            UDP_NUMBER
        };
        frame.extend([next, (len / 8 - 1) as u8]);
        let mut padding = len - 2;
        while padding > 0 {
            // PadN takes 2 to 257 bytes; a single byte would need Pad1.
            let pad = match padding {
                1..=257 => padding,
                258 => 200,
                _ => 257,
            };
            frame.extend([1, (pad - 2) as u8]);
            frame.resize(frame.len() + pad - 2, 0);
            padding -= pad;
        }
    }
}

/// The ones' complement sum of RFC 1071.
fn sum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2);
    let mut sum: u64 = words
        .map(|word| u64::from(word[0]) << 8 | word.get(1).map_or(0, |&low| u64::from(low)))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}
