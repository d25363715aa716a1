// SPDX-License-Identifier: MIT OR Apache-2.0
use etherparse::PacketBuilder;
use patchcord_bridge::{TagEdit, Tpid, ethernet::Fields};

use super::*;
use crate::{
    io::tap::VnetHeader,
    pipeline::frame_buf::FrameBuf,
    proto::{
        superframe::{HEADER_ROOM, Layout},
        testing::{Network, Stream},
        train::PendingOffload,
    },
    stats::DropReason,
    wire::offload::Transport,
};

/// The pending offload of a frame that crosses as it is, and nothing if it was finished here.
fn pending_of(
    vnet: &VnetHeader,
    frame: &mut Vec<u8>,
) -> Result<Option<PendingOffload>, DropReason> {
    let mut room = Vec::new();
    let mut buf = FrameBuf::copy(&mut room, &[frame]);
    let checked = check_device_frame(vnet, Fields::parse(frame).ok(), &mut buf)?;
    *frame = buf.frame().to_vec();
    match checked {
        DeviceFrame::Whole(pending) => Ok(pending),
        DeviceFrame::InPieces(_) => panic!("in pieces"),
    }
}

/// A frame of 5000 bytes of payload, and the kernel's header of it.
fn super_frame(is_ipv6: bool, transport: Transport) -> (VnetHeader, Vec<u8>) {
    let ethernet = PacketBuilder::ethernet2([2; 6], [4; 6]);
    let ip = if is_ipv6 {
        ethernet.ipv6([1; 16], [2; 16], 64)
    } else {
        ethernet.ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
    };
    let (payload, mut frame) = ([7; 5000], Vec::new());
    match transport {
        Transport::Tcp => ip.tcp(1, 2, 3, 4).write(&mut frame, &payload),
        Transport::Udp => ip.udp(1, 2).write(&mut frame, &payload),
    }
    .unwrap();
    let vnet = VnetHeader {
        flags: VnetHeader::NEEDS_CHECKSUM,
        gso_type: match (transport, is_ipv6) {
            (Transport::Tcp, false) => VnetHeader::GSO_TCPV4,
            (Transport::Tcp, true) => VnetHeader::GSO_TCPV6,
            (Transport::Udp, _) => VnetHeader::GSO_UDP_L4,
        },
        hdr_len: (frame.len() - payload.len()) as u16,
        gso_size: 1000,
        csum_start: if is_ipv6 { 54 } else { 34 },
        csum_offset: match transport {
            Transport::Tcp => 16,
            Transport::Udp => 6,
        },
    };
    (vnet, frame)
}

/// The header that the far end gives its kernel, if its checks accept the frame.
fn arrived(pending: PendingOffload, frame: &[u8]) -> VnetHeader {
    let layout = pending.offload.segmentation.map(|_| {
        let head = &frame[..pending.headers_len];
        Layout::parse(head, frame.len(), &pending.offload, 1522).unwrap()
    });
    let leaving = EgressFrame {
        pending: Some((pending.offload, layout)),
        ..EgressFrame::finished(frame)
    };
    leaving.vnet()
}

#[test]
fn the_far_kernel_hears_what_the_near_one_said() {
    for is_ipv6 in [false, true] {
        for transport in [Transport::Tcp, Transport::Udp] {
            let (vnet, mut frame) = super_frame(is_ipv6, transport);
            let pending = pending_of(&vnet, &mut frame).unwrap().unwrap();
            assert_eq!(arrived(pending, &frame), vnet, "{transport:?}");
        }
        let (mut vnet, mut frame) = super_frame(is_ipv6, Transport::Tcp);
        vnet.gso_type |= VnetHeader::GSO_ECN;
        let pending = pending_of(&vnet, &mut frame).unwrap().unwrap();
        assert_eq!(arrived(pending, &frame), vnet);
    }
}

#[test]
fn the_length_of_headers_is_not_believed() {
    for hdr_len in [0, 14, 60, u16::MAX] {
        let (expected, mut frame) = super_frame(false, Transport::Tcp);
        let vnet = VnetHeader {
            hdr_len,
            ..expected
        };
        let pending = pending_of(&vnet, &mut frame).unwrap().unwrap();
        assert_eq!(arrived(pending, &frame), expected);
    }
}

#[test]
fn a_partial_checksum_travels_and_a_finished_frame_does_not_say_more() {
    let (mut vnet, mut frame) = super_frame(false, Transport::Udp);
    vnet.gso_type = VnetHeader::GSO_NONE;
    vnet.gso_size = 0;
    let pending = pending_of(&vnet, &mut frame).unwrap().unwrap();
    assert_eq!(pending.headers_len, 42);
    let expected = VnetHeader { hdr_len: 0, ..vnet };
    assert_eq!(arrived(pending, &frame), expected);
    for flags in [0, VnetHeader::DATA_VALID] {
        vnet.flags = flags;
        assert!(pending_of(&vnet, &mut frame).unwrap().is_none());
    }
    assert_eq!(EgressFrame::finished(&frame).vnet(), VnetHeader::NONE);
}

#[test]
fn a_checksum_deep_inside_is_finished_here() {
    let mut frame = vec![7; 1000];
    let vnet = VnetHeader {
        flags: VnetHeader::NEEDS_CHECKSUM,
        csum_start: 300,
        csum_offset: 6,
        ..VnetHeader::NONE
    };
    assert!(pending_of(&vnet, &mut frame).unwrap().is_none());
    assert_ne!(frame[306..308], [7; 2]);
}

#[test]
fn a_header_that_does_not_describe_the_frame_costs_the_frame() {
    type Change = fn(&mut VnetHeader);
    let changes: [Change; 7] = [
        |vnet| vnet.gso_type = 3,
        |vnet| vnet.gso_type = VnetHeader::GSO_TCPV4 | VnetHeader::GSO_UDP_L4 | 2,
        |vnet| vnet.gso_type = VnetHeader::GSO_UDP_L4,
        |vnet| vnet.gso_size = 0,
        |vnet| vnet.csum_start = 35,
        |vnet| vnet.csum_offset = 6,
        |vnet| {
            vnet.gso_type = VnetHeader::GSO_NONE;
            vnet.csum_start = 6000;
        },
    ];
    for (number, change) in changes.into_iter().enumerate() {
        let (mut vnet, mut frame) = super_frame(false, Transport::Tcp);
        change(&mut vnet);
        let refused = pending_of(&vnet, &mut frame).map(|_| ());
        assert_eq!(refused, Err(DropReason::BadOffload), "change {number}");
    }
}

#[test]
fn the_longest_headers_have_room_for_a_tag_wherever_they_are_copied() {
    let push = TagEdit::Push {
        tpid: Tpid::Customer,
        tci: 7,
    };
    let stream = |tags| Stream {
        tags,
        network: Network::V6(vec![(60, 24)]),
        transport: Transport::Udp,
        ..Stream::tcp_v4(100, 20_000)
    };
    let (before, after) = (stream(vec![]), stream(vec![(0x8100, 7)]));
    assert_eq!(before.headers_len(), 254);
    let (whole, headers_len) = (before.whole(), before.headers_len());
    let one_piece = EgressFrame::of(&whole, before.pending()).unwrap();
    let in_two = EgressFrame {
        head: &whole[..headers_len],
        rest: &whole[headers_len..],
        ..one_piece
    };
    for leaving in [one_piece, in_two] {
        let mut headers = [0; HEADER_ROOM];
        let mut segments = Vec::new();
        leaving
            .edited(push, &mut headers)
            .try_each_finished(&mut Vec::new(), |frame| {
                segments.push(frame.frame().to_vec());
                Ok::<_, DropReason>(())
            })
            .unwrap();
        let expected: Vec<_> = (0..after.segments())
            .map(|at| after.frame(at..at + 1, true))
            .collect();
        assert!(segments == expected);
        let mut headers = [0; HEADER_ROOM];
        let Signal::Shortened(shorter) = leaving.signalled(&mut headers) else {
            panic!("nothing to mark");
        };
        assert_eq!(shorter.segments() as usize, before.segments() - 1);
    }
}

#[test]
fn a_frame_that_loses_its_tag_is_not_shorter_than_ethernet_allows() {
    for (len, expected) in [
        (18, 60),
        (60, 60),
        (63, 60),
        (64, 60),
        (65, 61),
        (1500, 1496),
    ] {
        let mut frame: Vec<u8> = (0..len).map(|at| at as u8 | 1).collect();
        frame[12..16].copy_from_slice(&[0x81, 0, 0, 7]);
        let mut popped = [&frame[..12], &frame[16..]].concat();
        popped.resize(expected.max(popped.len()), 0);
        assert_eq!(popped.len(), expected);

        let mut room = Vec::new();
        let mut buf = FrameBuf::copy(&mut room, &[&frame]);
        buf.with_edit(TagEdit::Pop, |shown| assert_eq!(shown, popped));
        assert_eq!(buf.frame(), frame);

        let (head, rest) = frame.split_at(17);
        for leaving in [
            EgressFrame::finished(&frame),
            EgressFrame {
                rest,
                ..EgressFrame::finished(head)
            },
        ] {
            let mut headers = [7; HEADER_ROOM];
            let leaving = leaving.edited(TagEdit::Pop, &mut headers);
            assert_eq!([leaving.head, leaving.rest].concat(), popped);
        }
    }
}
