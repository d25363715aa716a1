// SPDX-License-Identifier: MIT OR Apache-2.0
//! Checksums of transport headers: the Internet checksum (RFC 1071), and the CRC32c of SCTP (RFC 9260).

use crc::{CRC_32_ISCSI, Crc, Table};
use patchcord_bridge::ip_protocol::{DCCP, ICMP, ICMPV6, IGMP, SCTP, TCP, UDP, UDP_LITE};

use super::{
    headers::{Goal, Headers},
    superframe::{TCP_CHECKSUM, UDP_CHECKSUM, finish_checksum},
};
use crate::{stats::DropReason, wire::offload::Checksum};

const SCTP_CHECKSUM: u16 = 8;

static CRC32C: Crc<u32, Table<16>> = Crc::<u32, Table<16>>::new(&CRC_32_ISCSI);

/// How a checksum is summed up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Internet,
    Crc32c,
}

/// Finishes a checksum that a device of this machine left open anywhere in `frame`. One of a kind that
/// is not known stays as it is: whatever is written there would be wrong.
///
/// # Errors
/// [`DropReason::BadOffload`] when it does not lie inside of the frame.
pub(crate) fn finish_any(frame: &mut [u8], checksum: Checksum) -> Result<(), DropReason> {
    match kind(frame, checksum) {
        Some(Kind::Internet) => finish_checksum(frame, checksum),
        Some(Kind::Crc32c) => finish_crc32c(frame, checksum),
        None => Ok(()),
    }
}

fn kind(frame: &[u8], Checksum { start, offset }: Checksum) -> Option<Kind> {
    let headers = Headers::find(frame, Goal::At(start.into()));
    match (headers.map(|headers| headers.protocol), offset) {
        (Some(TCP), TCP_CHECKSUM) | (Some(UDP | UDP_LITE | DCCP), UDP_CHECKSUM) => {
            Some(Kind::Internet)
        }
        (Some(ICMP | IGMP | ICMPV6), 2) => Some(Kind::Internet),
        (Some(SCTP), SCTP_CHECKSUM) => Some(Kind::Crc32c),
        // Behind headers that are not known. No checksum of another kind has one of these places.
        (None, TCP_CHECKSUM | UDP_CHECKSUM) => Some(Kind::Internet),
        _ => None,
    }
}

fn finish_crc32c(frame: &mut [u8], checksum: Checksum) -> Result<(), DropReason> {
    let packet = frame.get_mut(usize::from(checksum.start)..);
    let packet = packet.ok_or(DropReason::BadOffload)?;
    let at = usize::from(checksum.offset);
    let field = packet.get_mut(at..at + 4).ok_or(DropReason::BadOffload)?;
    field.fill(0);
    let sum = CRC32C.checksum(packet);
    packet[at..at + 4].copy_from_slice(&sum.to_le_bytes());
    Ok(())
}

pub(super) fn try_read(bytes: &[u8], at: usize) -> Option<u16> {
    let field = bytes.get(at..at + 2)?;
    Some(u16::from_be_bytes([field[0], field[1]]))
}

pub(super) fn read(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

pub(super) fn put(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use etherparse::{IpNumber, PacketBuilder};

    use super::*;

    /// An IPv4 packet of this protocol in an Ethernet frame, behind a VLAN tag or not.
    fn frame(protocol: u8, is_tagged: bool, payload: &[u8]) -> Vec<u8> {
        let ethernet = PacketBuilder::ethernet2([2; 6], [4; 6]);
        let mut frame = Vec::new();
        let number = IpNumber(protocol);
        match is_tagged {
            true => ethernet
                .single_vlan(7.try_into().unwrap())
                .ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
                .write(&mut frame, number, payload),
            false => ethernet
                .ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
                .write(&mut frame, number, payload),
        }
        .unwrap();
        frame
    }

    #[test]
    fn the_checksum_of_sctp_is_a_crc32c() {
        // An SCTP packet (ports 1 and 2, tag 3) with a COOKIE ACK chunk. By the register-at-a-time
        // algorithm of RFC 9260, appendix A.
        let reference = |bytes: &[u8]| {
            let mut crc = u32::MAX;
            for &byte in bytes {
                crc ^= u32::from(byte);
                for _ in 0..8 {
                    crc = crc >> 1 ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 };
                }
            }
            !crc
        };
        assert_eq!(reference(b"123456789"), 0xe306_9283);
        let packet = [0, 1, 0, 2, 0, 0, 0, 3, 0, 0, 0, 0, 11, 0, 0, 4];
        let sum = reference(&packet).to_le_bytes();
        for is_tagged in [false, true] {
            let mut frame = frame(SCTP, is_tagged, &packet);
            let start = frame.len() - packet.len();
            let checksum = Checksum {
                start: start as u16,
                offset: SCTP_CHECKSUM,
            };
            assert_eq!(finish_any(&mut frame, checksum), Ok(()));
            let mut expected = packet;
            expected[8..12].copy_from_slice(&sum);
            assert_eq!(frame[start..], expected);
        }
        let mut cut = frame(SCTP, false, &packet[..11]);
        let checksum = Checksum {
            start: 34,
            offset: SCTP_CHECKSUM,
        };
        assert_eq!(finish_any(&mut cut, checksum), Err(DropReason::BadOffload));
    }

    #[test]
    fn nothing_is_written_where_the_kind_is_not_known() {
        for (protocol, offset) in [(SCTP, 16), (TCP, 8), (UDP, 2), (253, 16), (47, 4)] {
            let before = frame(protocol, false, &[7; 64]);
            let mut after = before.clone();
            let checksum = Checksum { start: 34, offset };
            assert_eq!(finish_any(&mut after, checksum), Ok(()));
            assert_eq!(after, before, "protocol {protocol}, offset {offset}");
        }
        for (protocol, offset) in [(TCP, 16), (UDP, 6), (UDP_LITE, 6), (DCCP, 6), (ICMPV6, 2)] {
            let before = frame(protocol, false, &[7; 64]);
            let (mut finished, mut expected) = (before.clone(), before.clone());
            let checksum = Checksum { start: 34, offset };
            assert_eq!(finish_any(&mut finished, checksum), Ok(()));
            assert_eq!(finish_checksum(&mut expected, checksum), Ok(()));
            assert_eq!(finished, expected, "protocol {protocol}");
            assert_ne!(finished, before, "protocol {protocol}");
        }
    }
}
