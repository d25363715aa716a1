// SPDX-License-Identifier: MIT OR Apache-2.0
//! Partial checksums (virtio's `NEEDS_CSUM`): fields that hold the sum of the pseudo-header, or nothing,
//! and are left to the next sender. The Internet checksum (RFC 1071), and the CRC32c of SCTP (RFC 9260).

use crc::{CRC_32_ISCSI, Crc, Table};
use patchcord_bridge::{
    Headers,
    checksum::{self, sum},
    ip_protocol::{DCCP, ICMP, ICMPV6, IGMP, SCTP, TCP, UDP, UDP_LITE},
};

use super::{
    encapsulation::{Encapsulation, Goal},
    field::put,
    packet::{self, TCP_CHECKSUM, UDP_CHECKSUM},
};
use crate::{stats::DropReason, wire::offload::Checksum};

const SCTP_CHECKSUM: u16 = 8;

static CRC32C: Crc<u32, Table<16>> = Crc::<u32, Table<16>>::new(&CRC_32_ISCSI);

/// The algorithm of a checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Internet,
    Crc32c,
}

/// Checks that a partial checksum is that of the TCP or UDP header at the front of a frame of
/// `total` bytes. Any other would let a peer have bytes changed after a packet filter has seen
/// them.
///
/// # Errors
/// [`DropReason::BadOffload`].
pub fn check_checksum(
    headers: &Headers<'_>,
    total: usize,
    checksum: Checksum,
) -> Result<(), DropReason> {
    let found = packet::transport(headers, total).map(|it| (it.protocol, it.at));
    let expected = match found {
        Some((TCP, start)) => (start, TCP_CHECKSUM),
        Some((UDP, start)) => (start, UDP_CHECKSUM),
        _ => return Err(DropReason::BadOffload),
    };
    let end = expected.0 + usize::from(expected.1) + 2;
    if (usize::from(checksum.start), checksum.offset) == expected && end <= total {
        Ok(())
    } else {
        Err(DropReason::BadOffload)
    }
}

/// Finishes a partial checksum in `frame`.
///
/// # Errors
/// [`DropReason::BadOffload`] when it does not lie inside of the frame.
pub fn finish_checksum(frame: &mut [u8], checksum: Checksum) -> Result<(), DropReason> {
    let start = usize::from(checksum.start);
    if start < 14 || start + usize::from(checksum.offset) + 2 > frame.len() {
        return Err(DropReason::BadOffload);
    }
    let finished = match checksum::finish(sum(&frame[start..])) {
        // 0 would mean "no checksum" in UDP; both are zero in ones' complement.
        0 => 0xffff,
        finished => finished,
    };
    put(frame, start + usize::from(checksum.offset), finished);
    Ok(())
}

/// Finishes a checksum that a device of this machine left partial anywhere in `frame`. A checksum
/// of unknown kind stays as it is: any value written there would be wrong.
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
    let headers = Encapsulation::find(frame, Goal::At(start.into()));
    match (headers.map(|headers| headers.protocol), offset) {
        (Some(TCP), TCP_CHECKSUM) | (Some(UDP | UDP_LITE | DCCP), UDP_CHECKSUM) => {
            Some(Kind::Internet)
        }
        (Some(ICMP | IGMP | ICMPV6), 2) => Some(Kind::Internet),
        (Some(SCTP), SCTP_CHECKSUM) => Some(Kind::Crc32c),
        // Behind headers that are not known. No checksum of another kind has one of these offsets.
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

#[cfg(test)]
mod tests {
    use etherparse::{IpNumber, PacketBuilder};

    use super::*;
    use crate::proto::testing::Stream;

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

    #[test]
    fn a_checksum_is_finished_behind_the_ethernet_header_and_inside_only() {
        for (start, offset, len, is_fine) in [
            (34, 16, 60, true),
            (14, 0, 16, true),
            (13, 0, 60, false),
            (0, 16, 60, false),
            (34, 25, 60, false),
            (34, 24, 60, true),
            (u16::MAX, u16::MAX, 1500, false),
            (14, u16::MAX, 1500, false),
            (14, 0, 0, false),
        ] {
            let checksum = Checksum { start, offset };
            let finished = finish_checksum(&mut vec![1; len], checksum);
            assert_eq!(finished.is_ok(), is_fine, "{checksum:?}");
        }
    }

    #[test]
    fn only_the_checksum_of_the_transport_header_may_be_open() {
        for stream in [Stream::tcp_v4(100, 100), Stream::udp_v6(100, 100)] {
            let frame = stream.whole();
            let checksum = stream.offload(0..1).checksum;
            let check = |head: &[u8], total, checksum| match Headers::parse(head) {
                Ok(headers) => check_checksum(&headers, total, checksum),
                Err(_) => Err(DropReason::BadOffload),
            };
            assert_eq!(check(&frame, frame.len(), checksum), Ok(()));
            let head = &frame[..usize::from(checksum.start + checksum.offset) + 2];
            assert_eq!(check(head, frame.len(), checksum), Ok(()));

            // A port, or an address, that a packet filter has already seen.
            let Checksum { start, offset } = checksum;
            for (start, offset) in [
                (start, 2),
                (start - 2, offset + 2),
                (20, 10),
                (u16::MAX, u16::MAX),
            ] {
                let wrong = Checksum { start, offset };
                let refused = Err(DropReason::BadOffload);
                assert_eq!(check(&frame, frame.len(), wrong), refused, "{wrong:?}");
            }
            for len in 0..head.len() {
                assert!(check(&frame[..len], len, checksum).is_err(), "{len}");
            }
            assert!(check(&frame, frame.len() + 1, checksum).is_err());
        }
    }

    #[test]
    fn a_finished_checksum_is_never_zero() {
        let mut frame = [0; 24];
        frame[14..16].fill(0xff);
        let checksum = Checksum {
            start: 14,
            offset: 6,
        };
        assert_eq!(finish_checksum(&mut frame, checksum), Ok(()));
        assert_eq!(frame[20..22], [0xff; 2]);
    }
}
