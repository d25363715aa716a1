// SPDX-License-Identifier: MIT OR Apache-2.0
use ether_type::{CUSTOMER_TAG, OLD_STACKED_TAG, SERVICE_TAG};
use etherparse::{PacketBuilder, PacketBuilderStep, UdpHeader};
use sys::faults::{Call, Fault, finish, script};

use super::super::testing::{
    EXPERIMENTAL, OTHER_STATION, OURS, assert_crosses, frame, open, plugged, read_ours,
};
use super::*;
use crate::io::tap;
use crate::testing::{eventually, in_namespace, ip};

/// Its name, destination, tags, EtherType (or 802.3 length) and length.
type Kind<'a> = (&'a str, [u8; 6], &'a [(u16, u16)], u16, usize);

#[test]
fn frames_of_every_kind_come_in_and_go_out_as_they_are() {
    let group = |last| [0x01, 0x80, 0xc2, 0, 0, last];
    let kinds: &[Kind<'_>] = &[
        ("untagged", OTHER_STATION, &[], EXPERIMENTAL, 60),
        ("the shortest", OTHER_STATION, &[], EXPERIMENTAL, 14),
        ("full size", OTHER_STATION, &[], EXPERIMENTAL, 1514),
        ("broadcast", [0xff; 6], &[], EXPERIMENTAL, 100),
        (
            "802.1Q",
            OTHER_STATION,
            &[(CUSTOMER_TAG, 42)],
            EXPERIMENTAL,
            60,
        ),
        (
            "802.1Q, full size",
            OTHER_STATION,
            &[(CUSTOMER_TAG, 42)],
            EXPERIMENTAL,
            1518,
        ),
        (
            "with PCP and DEI",
            OTHER_STATION,
            &[(CUSTOMER_TAG, 0xf000 | 4094)],
            EXPERIMENTAL,
            100,
        ),
        (
            "VID 0",
            OTHER_STATION,
            &[(CUSTOMER_TAG, 0xa000)],
            EXPERIMENTAL,
            100,
        ),
        (
            "VID 0, PCP 0",
            OTHER_STATION,
            &[(CUSTOMER_TAG, 0)],
            EXPERIMENTAL,
            100,
        ),
        (
            "802.1ad",
            OTHER_STATION,
            &[(SERVICE_TAG, 7)],
            EXPERIMENTAL,
            100,
        ),
        (
            "802.1ad, VID 0",
            OTHER_STATION,
            &[(SERVICE_TAG, 0)],
            EXPERIMENTAL,
            100,
        ),
        (
            "QinQ",
            OTHER_STATION,
            &[(SERVICE_TAG, 7), (CUSTOMER_TAG, 42)],
            EXPERIMENTAL,
            100,
        ),
        (
            "802.1Q twice",
            OTHER_STATION,
            &[(CUSTOMER_TAG, 7), (CUSTOMER_TAG, 42)],
            EXPERIMENTAL,
            100,
        ),
        (
            "three tags",
            OTHER_STATION,
            &[(CUSTOMER_TAG, 0), (CUSTOMER_TAG, 7), (CUSTOMER_TAG, 42)],
            EXPERIMENTAL,
            100,
        ),
        (
            "old QinQ",
            OTHER_STATION,
            &[(OLD_STACKED_TAG, 7), (CUSTOMER_TAG, 42)],
            EXPERIMENTAL,
            100,
        ),
        ("STP", group(0x00), &[], 39, 60),
        (
            "pause, if it ever comes so far",
            group(0x01),
            &[],
            0x8808,
            60,
        ),
        ("LACP", group(0x02), &[], 0x8809, 124),
        ("802.1X", group(0x03), &[], 0x888e, 64),
        ("LLDP", group(0x0e), &[], 0x88cc, 200),
        ("CDP", [0x01, 0x00, 0x0c, 0xcc, 0xcc, 0xcc], &[], 300, 314),
        (
            "LLDP behind a tag",
            group(0x0e),
            &[(CUSTOMER_TAG, 5)],
            0x88cc,
            200,
        ),
    ];
    for has_vnet_header in [true, false] {
        in_namespace(|| {
            if !has_vnet_header {
                let refusal = (Call::OfferVnetHeader, Fault::Errno(sys::ENOPROTOOPT));
                script(&[refusal, refusal]);
            }
            let [(near_tap, near), (_far, far)] = plugged(1500);
            finish();
            assert_eq!(near.takes_offloads(), has_vnet_header);
            assert_eq!(near_tap.fallback().is_none(), has_vnet_header);
            for &(what, dst, tags, ethertype, len) in kinds {
                let frame = frame(dst, tags, ethertype, len);
                assert_crosses(&far, &near, &frame, what);
                assert_crosses(&near, &far, &frame, what);
            }
            // Nothing arrived twice, and frames of this end did not return.
            assert_eq!((read_ours(&near), read_ours(&far)), (None, None));
        });
    }
}

#[test]
fn jumbo_frames_cross_and_those_beyond_the_mtu_are_named() {
    in_namespace(|| {
        let [(_near, near), (_far, far)] = plugged(9000);
        for (len, tags) in [(9014, &[][..]), (9018, &[(CUSTOMER_TAG, 42)])] {
            let jumbo = frame(OTHER_STATION, tags, EXPERIMENTAL, len);
            assert_crosses(&far, &near, &jumbo, "a jumbo frame");
            assert_crosses(&near, &far, &jumbo, "a jumbo frame");
            let longer = frame(OTHER_STATION, tags, EXPERIMENTAL, len + 1);
            let error = near.write(&VnetHeader::NONE, &longer).unwrap_err();
            assert!(tap::is_too_big(&error), "{error}");
        }
        // The kernel makes room for a single 802.1Q tag; others count.
        for (mtu, fits) in [(1500, false), (1508, true)] {
            ip(&format!("link set near mtu {mtu}"));
            let full = frame(
                OTHER_STATION,
                &[(SERVICE_TAG, 7), (CUSTOMER_TAG, 42)],
                EXPERIMENTAL,
                1522,
            );
            let outcome = near.write(&VnetHeader::NONE, &full);
            assert_eq!(outcome.is_ok(), fits, "{outcome:?}");
        }
        assert_eq!(read_ours(&far).unwrap().1.len(), 1522);
    });
}

/// A frame of 5000 bytes of payload with a partial checksum, and the kernel's header of it.
fn super_frame(is_ipv6: bool, is_tcp: bool, tags: &[(u16, u16)]) -> (VnetHeader, Vec<u8>) {
    let ethernet = PacketBuilder::ethernet2(OURS, OTHER_STATION);
    let ip = match is_ipv6 {
        true => ethernet.ipv6([1; 16], [2; 16], 64),
        false => ethernet.ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64),
    };
    let (payload, mut frame) = ([7; 5000], Vec::new());
    match is_tcp {
        true => ip.tcp(1, 2, 3, 4).ack(5).write(&mut frame, &payload),
        false => ip.udp(1, 2).write(&mut frame, &payload),
    }
    .unwrap();
    let start = if is_ipv6 { 54 } else { 34 };
    let in_front: Vec<u8> = tags
        .iter()
        .flat_map(|&(tpid, tci)| [tpid.to_be_bytes(), tci.to_be_bytes()].concat())
        .collect();
    frame.splice(12..12, in_front.iter().copied());
    let header = VnetHeader {
        flags: VnetHeader::NEEDS_CHECKSUM,
        gso_type: match (is_tcp, is_ipv6) {
            (true, false) => VnetHeader::GSO_TCPV4,
            (true, true) => VnetHeader::GSO_TCPV6,
            (false, _) => VnetHeader::GSO_UDP_L4,
        },
        hdr_len: (frame.len() - payload.len()) as u16,
        gso_size: 1000,
        csum_start: (start + in_front.len()) as u16,
        csum_offset: if is_tcp { 16 } else { 6 },
    };
    (header, frame)
}

#[test]
fn super_frames_and_open_checksums_keep_their_description() {
    in_namespace(|| {
        let [(_near, near), (_far, far)] = plugged(1500);
        for tags in [
            &[][..],
            &[(CUSTOMER_TAG, 42)],
            &[(CUSTOMER_TAG, 0xa000)],
            &[(SERVICE_TAG, 7), (CUSTOMER_TAG, 42)],
        ] {
            for (is_ipv6, is_tcp) in [(false, true), (true, true), (false, false), (true, false)] {
                let (header, frame) = super_frame(is_ipv6, is_tcp, tags);
                let short = &frame[..1000];
                let single = VnetHeader {
                    gso_type: VnetHeader::GSO_NONE,
                    hdr_len: 0,
                    gso_size: 0,
                    ..header
                };
                for (from, to) in [(&far, &near), (&near, &far)] {
                    from.write(&header, &frame).unwrap();
                    let (said, arrived) = read_ours(to).unwrap();
                    assert!(arrived == frame, "{tags:?}");
                    // The kernel may state more headers than there are.
                    let said = VnetHeader {
                        hdr_len: header.hdr_len,
                        ..said
                    };
                    assert_eq!(said, header, "{tags:?}");
                    from.write(&single, short).unwrap();
                    assert_eq!(read_ours(to).unwrap(), (single, short.to_vec()), "{tags:?}");
                }
            }
        }
    });
}

#[test]
fn segments_larger_than_the_mtu_are_named() {
    in_namespace(|| {
        let [(_near, near), (_far, far)] = plugged(1500);
        for tags in [&[][..], &[(SERVICE_TAG, 7), (CUSTOMER_TAG, 42)]] {
            let (header, frame) = super_frame(false, true, tags);
            for (gso_size, fits) in [(1460, true), (1461, false)] {
                let header = VnetHeader { gso_size, ..header };
                match near.write(&header, &frame) {
                    Ok(()) => assert!(fits),
                    Err(error) => assert!(!fits && tap::is_too_big(&error), "{error}"),
                }
                assert_eq!(read_ours(&far).is_some(), fits);
            }
        }
    });
}

#[test]
fn without_descriptions_what_needs_one_is_refused_and_not_mangled() {
    in_namespace(|| {
        let [(_near, near), _far] = plugged(1500);
        script(&[(Call::OfferVnetHeader, Fault::Errno(sys::ENOPROTOOPT))]);
        let (_tap, plain) = open("far", 1).unwrap();
        finish();
        let (header, frame) = super_frame(false, true, &[]);
        near.write(&header, &frame).unwrap();
        assert_eq!(read_ours(&plain[0]), Some((VnetHeader::BROKEN, Vec::new())));
    });
}

#[test]
fn a_frame_that_the_kernel_cannot_describe_does_not_end_the_reading() {
    in_namespace(|| {
        let [(_near, near), (_far, far)] = plugged(1500);
        let frame = frame(OTHER_STATION, &[], EXPERIMENTAL, 100);
        script(&[(Call::ReceiveFrame, Fault::Errno(sys::EINVAL))]);
        assert_eq!(read_ours(&near).unwrap().0, VnetHeader::BROKEN);
        finish();
        assert_crosses(&far, &near, &frame, "the next one");
        // The same with a frame that is longer than its buffer.
        far.write(&VnetHeader::NONE, &frame).unwrap();
        let read = || near.try_read(&mut [0; 80]).unwrap();
        assert_eq!(eventually(read), Some((VnetHeader::BROKEN, 0..0)));
    });
}

#[test]
fn frames_that_this_machine_sends_by_the_nic_are_not_read() {
    in_namespace(|| {
        let [(_near, near), (_far, far)] = plugged(1500);
        // Another program with a socket of its own, or the machine's network stack.
        let (_other, other) = open("near", 1).unwrap();
        let hello = frame(OTHER_STATION, &[], EXPERIMENTAL, 100);
        assert_crosses(&other[0], &far, &hello, "a frame of another program");
        assert_eq!((read_ours(&near), read_ours(&other[0])), (None, None));
    });
}

#[test]
fn datagrams_to_a_port_of_this_machine_are_left_out_and_nothing_else() {
    in_namespace(|| {
        let [(near_tap, near), (_far, far)] = plugged(1500);
        let mac = ip(&format!("-br link show {}", near_tap.name()));
        let mac = mac.split_whitespace().nth(2).unwrap().split(':');
        let mac: Vec<_> = mac
            .map(|byte| u8::from_str_radix(byte, 16).unwrap())
            .collect();
        let mac: [u8; 6] = mac.try_into().unwrap();
        near.leave_out_tunnel(51830).unwrap();

        let to = |mac| PacketBuilder::ethernet2(OURS, mac);
        let (here, there) = ([10, 0, 0, 1], [10, 0, 0, 2]);
        let filled = |headers: PacketBuilderStep<UdpHeader>| {
            let mut frame = Vec::new();
            headers.write(&mut frame, &[7; 100]).unwrap();
            frame
        };
        let ipv4 = |mac, port| filled(to(mac).ipv4(here, there, 64).udp(9, port));
        let ipv6 = |mac, port| filled(to(mac).ipv6([1; 16], [2; 16], 64).udp(9, port));
        let mut with_options = ipv4(mac, 51830);
        with_options[14] = 0x46;
        with_options.splice(34..34, [1; 4]);
        let tagged = |mut frame: Vec<u8>| {
            frame.splice(12..12, [0x81, 0, 0, 5]);
            frame
        };
        for (sent, passes, what) in [
            (ipv4(mac, 51830), false, "IPv4"),
            (ipv6(mac, 51830), false, "IPv6"),
            (with_options, false, "IPv4 with an option"),
            (tagged(ipv4(mac, 51830)), false, "in a VLAN"),
            (ipv4(mac, 51831), true, "another port"),
            (ipv6(mac, 51831), true, "another port, IPv6"),
            (ipv4(OTHER_STATION, 51830), true, "another station"),
            (ipv6(OTHER_STATION, 51830), true, "another station, IPv6"),
            (ipv4([0xff; 6], 51830), true, "broadcast"),
        ] {
            far.write(&VnetHeader::NONE, &sent).unwrap();
            let last = frame(mac, &[], EXPERIMENTAL, 80);
            far.write(&VnetHeader::NONE, &last).unwrap();
            let expected = if passes { &sent } else { &last };
            assert_eq!(read_ours(&near).unwrap().1, *expected, "{what}");
            if passes {
                assert_eq!(read_ours(&near).unwrap().1, last, "{what}");
            }
        }
        let mut fragment = ipv4(mac, 51830);
        fragment[21] = 1;
        assert_crosses(&far, &near, &fragment, "a later fragment");
        let mut tcp = ipv4(mac, 51830);
        tcp[23] = 6;
        assert_crosses(&far, &near, &tcp, "TCP");
    });
}

#[test]
fn a_writer_waits_for_a_nic_that_is_behind() {
    in_namespace(|| {
        let [(_near, near), (_far, far)] = plugged(1500);
        let slow = "qdisc add dev near root tbf rate 400mbit burst 20k limit 100m";
        let tc = std::process::Command::new("tc")
            .args(slow.split(' '))
            .status();
        assert!(tc.unwrap().success());
        let frame = frame(OTHER_STATION, &[], EXPERIMENTAL, 1514);
        // More than fits in the socket's buffer.
        let (mut buf, mut arrived) = (vec![0; 2000], 0);
        for number in 0..4000 {
            let written = near.write(&VnetHeader::NONE, &frame);
            assert!(written.is_ok(), "{number}: {written:?}");
            while far.try_read(&mut buf).unwrap().is_some() {
                arrived += 1;
            }
        }
        arrived += std::iter::from_fn(|| read_ours(&far)).count();
        assert_eq!(arrived, 4000);
    });
}
