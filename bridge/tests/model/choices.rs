// SPDX-License-Identifier: MIT OR Apache-2.0
//! Bytes as choices: which port, which frame, how long to wait.

use std::collections::BTreeSet;

use patchcord_bridge::loops::PROBE_DESTINATION;
use patchcord_bridge::{MacAddr, Tpid};

use super::vlans::{Trunk, Vlans};

/// Few, so that they meet.
pub(crate) const STATIONS: [MacAddr; 5] = [
    MacAddr([2, 0, 0, 0, 0, 1]),
    MacAddr([2, 0, 0, 0, 0, 2]),
    MacAddr([2, 0, 0, 0, 0, 3]),
    MacAddr([0xfe, 0xff, 0xff, 0xff, 0xff, 0xff]),
    MacAddr([2, 0x70, 0, 0, 0, 5]),
];

/// Where else a frame may be sent to, or claim to come from.
const OTHERS: [MacAddr; 7] = [
    MacAddr([0xff; 6]),
    MacAddr([0x01, 0x00, 0x5e, 0x00, 0x00, 0xfb]),
    MacAddr([0x33, 0x33, 0x00, 0x00, 0x00, 0x01]),
    MacAddr([0x01, 0x80, 0xc2, 0x00, 0x00, 0x00]),
    MacAddr([0x01, 0x00, 0x0c, 0xcc, 0xcc, 0xcd]),
    PROBE_DESTINATION,
    MacAddr([0; 6]),
];

/// Numbers that ports have, that translate to each other, and that no port may have.
const VIDS: [u16; 6] = [0, 10, 20, 110, 120, 4095];

/// What may follow the tags.
const PAYLOADS: [&[u8]; 6] = [
    &[0x88, 0xb6, 1, 2, 3, 4],                   // loop probe
    &[0x00, 0x26, 0x42, 0x42, 0x03, 0, 0, 0, 0], // spanning tree
    &[0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 1],       // ARP, cut short
    // IGMPv2 report.
    &[
        0x08, 0x00, 0x46, 0xc0, 0, 32, 0, 0, 0, 0, 1, 2, 0, 0, 10, 0, 0, 1, 239, 1, 1, 1, 0x94, 4,
        0, 0, 0x16, 0, 0, 0, 239, 1, 1, 1,
    ],
    // DHCPv4 from a server.
    &[
        0x08, 0x00, 0x45, 0, 0, 36, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2, 0, 67, 0,
        68, 0, 16, 0, 0, 2, 1, 6, 0, 0, 0, 0, 0,
    ],
    // IPv6 router advertisement.
    &[
        0x86, 0xdd, 0x60, 0, 0, 0, 0, 16, 58, 255, 0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
        0, 1, 0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 134, 0, 0, 0, 64, 0, 7, 8, 0, 0,
        0, 0, 0, 0, 0, 0,
    ],
];

/// Bytes that are used up one by one; zeros follow the last.
pub(crate) struct Choices<'a>(&'a [u8]);

impl<'a> Choices<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(crate) fn are_left(&self) -> bool {
        !self.0.is_empty()
    }

    pub(crate) fn number(&mut self) -> u64 {
        self.byte().into()
    }

    pub(crate) fn flag(&mut self) -> bool {
        self.byte() & 1 == 1
    }

    pub(crate) fn below(&mut self, bound: usize) -> usize {
        usize::from(self.byte()) % bound
    }

    fn byte(&mut self) -> u8 {
        let Some((&byte, rest)) = self.0.split_first() else {
            return 0;
        };
        self.0 = rest;
        byte
    }

    pub(crate) fn vlans(&mut self) -> Vlans {
        let number = [10, 20, 110][self.below(3)];
        match self.below(6) {
            0 | 1 => Vlans::Transparent,
            2 => Vlans::Access([0, number][self.below(2)]),
            3 => Vlans::Tunnel(number, [Tpid::Service, Tpid::Customer][self.below(2)]),
            _ => self.trunk(),
        }
    }

    fn trunk(&mut self) -> Vlans {
        let native = [None, Some(0), Some(10), Some(110)][self.below(4)];
        let mut allowed: BTreeSet<u16> = match self.below(3) {
            0 => (1..4095).collect(),
            1 => [10, 20].into(),
            _ => [20, 110].into(),
        };
        let translate: Vec<(u16, u16)> = match self.below(4) {
            0 => vec![(10, 110)],
            1 => vec![(10, 110), (110, 10), (20, 120)],
            _ => Vec::new(),
        };
        allowed.extend(translate.iter().map(|(_, inside)| inside));
        Vlans::Trunk(Trunk::new(allowed, native, translate))
    }

    pub(crate) fn frame(&mut self) -> Vec<u8> {
        if self.below(16) == 0 {
            let len = self.below(40);
            return (0..len).map(|_| self.byte()).collect();
        }
        let mut bytes = [self.address().0, self.address().0].concat();
        let tags = [0, 0, 1, 1, 2, 3][self.below(6)];
        for _ in 0..tags {
            bytes.extend([[0x81, 0x00], [0x88, 0xa8]][self.below(2)]);
            let priority = u16::from(self.byte() & 0xf0) << 8;
            bytes.extend((priority | VIDS[self.below(6)]).to_be_bytes());
        }
        bytes.extend(match self.below(12) {
            kind @ 0..6 => PAYLOADS[kind],
            _ => &[0x08, 0x00, 0x45, 0, 0, 20],
        });
        if self.below(16) == 0 {
            let len = self.below(bytes.len());
            bytes.truncate(len);
        }
        bytes
    }

    fn address(&mut self) -> MacAddr {
        match self.below(20) {
            other @ 0..7 => OTHERS[other],
            station => STATIONS[station % STATIONS.len()],
        }
    }
}
