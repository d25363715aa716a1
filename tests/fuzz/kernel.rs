// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a kernel does with a frame that is written to a TAP: it checks the offload descriptor, finishes the
//! checksum, and cuts a super-frame.

use patchcord::internals::{
    io::tap::VnetHeader,
    proto::{partial_checksum::finish_checksum, superframe::MAX_SEGMENTS},
    wire::offload::{Checksum, Transport},
};

use crate::original::{pseudo_header, sum};

/// The checks of a kernel's `virtio_net_hdr_to_skb`, and stricter ones.
pub fn check_description(vnet: &VnetHeader, frame: &[u8]) {
    let start = usize::from(vnet.csum_start);
    let is_open = vnet.flags & VnetHeader::NEEDS_CHECKSUM != 0;
    if is_open {
        assert!(start >= 14 && start + usize::from(vnet.csum_offset) + 2 <= frame.len());
    } else {
        assert_eq!(*vnet, VnetHeader::NONE);
    }
    if vnet.gso_type == VnetHeader::GSO_NONE {
        return assert_eq!((vnet.gso_size, vnet.hdr_len), (0, 0));
    }
    let (transport, ethertype) = match vnet.gso_type & !VnetHeader::GSO_ECN {
        VnetHeader::GSO_TCPV4 => (Transport::Tcp, Some([0x08, 0x00])),
        VnetHeader::GSO_TCPV6 => (Transport::Tcp, Some([0x86, 0xdd])),
        VnetHeader::GSO_UDP_L4 => (Transport::Udp, None),
        other => panic!("no kernel knows of {other}"),
    };
    let cwr = vnet.gso_type & VnetHeader::GSO_ECN != 0;
    assert!(is_open && vnet.gso_size > 0 && !(cwr && transport == Transport::Udp));
    let headers = usize::from(vnet.hdr_len);
    assert!(headers > start && headers < frame.len());
    let segments = (frame.len() - headers).div_ceil(vnet.gso_size.into());
    assert!(segments <= MAX_SEGMENTS);
    let mut at = 12;
    while [[0x81, 0x00], [0x88, 0xa8], [0x91, 0x00]].contains(&[frame[at], frame[at + 1]]) {
        at += 4;
    }
    assert!(ethertype.is_none_or(|ethertype| frame[at..at + 2] == ethertype));
    let total = match frame[at..at + 2] {
        [0x08, 0x00] => at + 2 + word(frame, at + 4),
        _ => at + 42 + word(frame, at + 6),
    };
    assert_eq!(total, frame.len(), "the packet fills the frame");
}

fn word(frame: &[u8], at: usize) -> usize {
    u16::from_be_bytes([frame[at], frame[at + 1]]).into()
}

/// The frames that a kernel makes of it. Only those that frames may have been merged into are cut.
pub fn apart(vnet: &VnetHeader, frame: &[u8]) -> Vec<Vec<u8>> {
    let start = usize::from(vnet.csum_start);
    let is_behind = |header: usize, ethertype: usize, first: u8| {
        let network = start.checked_sub(header);
        network.is_some_and(|at| {
            at >= 14 && word(frame, at - 2) == ethertype && frame[at] & 0xf0 == first
        })
    };
    let (is_ipv4, is_ipv6) = (is_behind(20, 0x0800, 0x40), is_behind(40, 0x86dd, 0x60));
    if vnet.gso_type != VnetHeader::GSO_UDP_L4 || !(is_ipv4 || is_ipv6) {
        return vec![finished(vnet, frame)];
    }
    let (headers, payload) = frame.split_at(vnet.hdr_len.into());
    let segments = payload.chunks(vnet.gso_size.into()).enumerate();
    let segment = |(number, payload): (usize, &[u8])| {
        let mut segment = [headers, payload].concat();
        let len = segment.len();
        put(&mut segment, start + 4, len - start);
        let addresses = match is_ipv6 {
            true => {
                let network = start - 40;
                put(&mut segment, network + 4, len - start);
                network + 8..start
            }
            false => {
                let network = start - 20;
                let id = word(&segment, network + 4) + number;
                put(&mut segment, network + 2, len - network);
                put(&mut segment, network + 4, id);
                put(&mut segment, network + 10, 0);
                let checksum = !sum(&segment[network..start]);
                put(&mut segment, network + 10, checksum.into());
                network + 12..start
            }
        };
        let open = pseudo_header(&segment[addresses], 17, len - start);
        put(&mut segment, start + 6, open.into());
        let checksum = Checksum {
            start: vnet.csum_start,
            offset: vnet.csum_offset,
        };
        let _ = finish_checksum(&mut segment, checksum);
        segment
    };
    segments.map(segment).collect()
}

fn put(bytes: &mut [u8], at: usize, value: usize) {
    bytes[at..at + 2].copy_from_slice(&(value as u16).to_be_bytes());
}

/// With its partial checksum finished; one with an impossible position stays.
pub fn finished(vnet: &VnetHeader, frame: &[u8]) -> Vec<u8> {
    let mut frame = frame.to_vec();
    if vnet.gso_type == VnetHeader::GSO_NONE && vnet.flags & VnetHeader::NEEDS_CHECKSUM != 0 {
        let checksum = Checksum {
            start: vnet.csum_start,
            offset: vnet.csum_offset,
        };
        let _ = finish_checksum(&mut frame, checksum);
    }
    frame
}
