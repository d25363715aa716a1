// SPDX-License-Identifier: MIT OR Apache-2.0
use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use sys::faults::{Call, Fault, finish, script};

use super::super::batch::RecvBatch;
use super::super::error::SendError;
use super::super::testing::{assert_arrives, at, bind, cable, port, receive, train};
use super::*;
use crate::io::sys::SocketOption;
use crate::io::waker;
use crate::testing::{in_namespace, ip, wait_for_addresses};

impl UdpSocket {
    /// Sends datagrams of 1000 bytes by the time of `clock`.
    fn send_by(
        &self,
        clock: impl Fn() -> Instant + Copy,
        to: SocketAddr,
        train: &[u8],
    ) -> Result<SendReport, SendFailure> {
        self.send_with(
            &mut Patience::Endless,
            clock,
            to,
            SendOptions::default(),
            train,
            (1000, true),
        )
    }
}
#[test]
fn trains_arrive_datagram_by_datagram() {
    in_namespace(|| {
        ip("link set lo up");
        let (sender, receiver) = (bind("127.0.0.1:0"), bind("127.0.0.1:0"));
        let to = receiver.local_addr().unwrap();
        // One short, one full, a short last one, exactly one super-send, and several of them.
        for size in [1, 1000, 1001, 4300, 64_000, 64_001, 200_500] {
            let trains = assert_arrives(&sender, &receiver, to, size);
            assert_eq!(trains, size.div_ceil(64_000), "{size} bytes");
        }
    });
}

#[test]
fn a_train_that_fails_half_way_says_how_much_left() {
    in_namespace(|| {
        ip("link set lo up");
        let (sender, receiver) = (bind("127.0.0.1:0"), bind("127.0.0.1:0"));
        let to = receiver.local_addr().unwrap();
        let gone = Fault::Errno(sys::EHOSTUNREACH);
        for (steps, sent) in [
            (&[(Call::SendSegments, gone)][..], 0),
            (
                &[
                    (Call::SendSegments, Fault::Pass),
                    (Call::SendSegments, gone),
                ],
                64,
            ),
            (
                &[
                    (Call::SendSegments, Fault::Errno(sys::EINVAL)),
                    (Call::SendEach, Fault::AtMost(3)),
                    (Call::SendEach, gone),
                ],
                3,
            ),
        ] {
            script(steps);
            let failure = sender.send_train(to, &train(70_000), 1000).unwrap_err();
            finish();
            assert_eq!(failure.sent, sent);
            assert_eq!(receive(&receiver, sent).0.len(), sent, "and it arrived");
        }
    });
}

#[test]
fn trains_arrive_without_gso() {
    in_namespace(|| {
        ip("link set lo up");
        let (sender, receiver) = (bind("[::]:0"), bind("[::]:0"));
        let to = SocketAddr::new(Ipv6Addr::LOCALHOST.into(), port(&receiver));
        sender.pauses.begin(Key::of(to), now());
        for size in [1, 1000, 4300, 70_700] {
            let trains = assert_arrives(&sender, &receiver, to, size);
            assert_eq!(trains, size.div_ceil(1000));
        }
    });
}

#[test]
fn a_train_that_the_kernel_cannot_cut_is_sent_in_singles() {
    in_namespace(|| {
        ip("link set lo up");
        let (sender, receiver) = (bind("127.0.0.1:0"), bind("127.0.0.1:0"));
        // A socket without checksums gets EINVAL for every GSO send.
        sys::set_option(sender.as_fd(), SocketOption::NoChecksum, 1).unwrap();
        let to = receiver.local_addr().unwrap();
        // Two super-sends: the third failure in a row is in the second train.
        for uses_gso in [true, false, false] {
            assert_eq!(assert_arrives(&sender, &receiver, to, 70_300), 71);
            assert_eq!(sender.uses_gso(to), uses_gso);
        }
        let elsewhere = at("127.0.0.2:9");
        assert!(sender.uses_gso(elsewhere), "the pause is of one address");
        sys::set_option(sender.as_fd(), SocketOption::NoChecksum, 0).unwrap();
        let later = || now() + Duration::from_secs(61);
        let report = sender.send_by(later, to, &train(3000)).unwrap();
        assert_eq!((report.sent, receive(&receiver, 3).1), (3, 1));
        assert!(sender.uses_gso(to), "EINVAL is not for ever");
    });
}

/// A train of ten datagrams whose calls go as scripted: the report, how many datagrams from its
/// front arrive, and whether the next train is sent in one piece.
#[track_caller]
fn assert_scripted(steps: &[(Call, Fault)], verdict: &str, arrive: usize, uses_gso: bool) {
    let (sender, receiver) = (bind("127.0.0.1:0"), bind("127.0.0.1:0"));
    let (to, bytes) = (receiver.local_addr().unwrap(), train(9300));
    script(steps);
    let result = sender.send_train(to, &bytes, 1000);
    finish();
    let found = match result {
        Ok(report) => format!("sent {}, dropped {}", report.sent, report.dropped),
        Err(SendFailure {
            error: SendError::TooBig { datagram_bytes, .. },
            ..
        }) => format!("too big: {datagram_bytes}"),
        Err(SendFailure {
            error: SendError::Unreachable { .. },
            ..
        }) => "unreachable".to_owned(),
        Err(error) => format!("{error:?}"),
    };
    assert_eq!((&found[..], sender.uses_gso(to)), (verdict, uses_gso));
    // The datagram that follows shows that nothing else was between.
    assert_eq!(sender.send_train(to, b"end", 3).unwrap().sent, 1);
    let expected = bytes.chunks(1000).take(arrive).chain([&b"end"[..]]);
    let (datagrams, _) = receive(&receiver, arrive + 1);
    assert!(
        datagrams.iter().map(|(_, bytes)| &bytes[..]).eq(expected),
        "{} datagrams",
        datagrams.len()
    );
}

#[test]
fn every_datagram_arrives_once_however_sending_fails() {
    use Call::{SendEach as Each, SendSegments as Whole};
    use Fault::{AtMost, Errno, Pass};
    let full = |call| [(call, Errno(sys::EAGAIN)); 4];
    in_namespace(|| {
        ip("link set lo up");
        let (all, none) = ("sent 10, dropped 0", "sent 0, dropped 10");
        assert_scripted(&[(Whole, Pass)], all, 10, true);
        for (code, uses_gso) in [(sys::EIO, false), (sys::EINVAL, true)] {
            let refused = (Whole, Errno(code));
            assert_scripted(&[refused, (Each, Pass)], all, 10, uses_gso);
            let bumpy = [
                refused,
                (Each, AtMost(3)),
                (Each, Errno(sys::EINTR)),
                (Each, AtMost(1)),
                (Each, Errno(sys::EAGAIN)),
                (Each, Errno(sys::ENOBUFS)),
                (Each, Pass),
            ];
            assert_scripted(&bumpy, all, 10, uses_gso);
            let stuck = [&[refused, (Each, AtMost(3))][..], &full(Each)].concat();
            assert_scripted(&stuck, "sent 3, dropped 7", 3, uses_gso);
            for (code, verdict) in [
                (sys::EMSGSIZE, "too big: 1000"),
                (sys::ENETUNREACH, "unreachable"),
            ] {
                let cut_off = [refused, (Each, AtMost(3)), (Each, Errno(code))];
                assert_scripted(&cut_off, verdict, 3, uses_gso);
            }
        }
        let bumpy = [sys::EAGAIN, sys::EINTR, sys::ENOBUFS].map(|code| (Whole, Errno(code)));
        assert_scripted(&[&bumpy[..], &[(Whole, Pass)]].concat(), all, 10, true);
        assert_scripted(&full(Whole), none, 0, true);
        assert_scripted(&[(Whole, Errno(sys::EMSGSIZE))], "too big: 1000", 0, true);
        assert_scripted(&[(Whole, Errno(sys::ENETUNREACH))], "unreachable", 0, true);
    });
}

#[test]
fn gso_that_an_interface_refuses_is_tried_again_after_a_minute() {
    in_namespace(|| {
        ip("link set lo up");
        let (sender, receiver) = (bind("[::]:0"), bind("[::]:0"));
        let to = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port(&receiver));
        let begin = now();
        let refused = [
            (Call::SendSegments, Fault::Errno(sys::EIO)),
            (Call::SendEach, Fault::Pass),
        ];
        let (singly, whole) = (
            [(Call::SendEach, Fault::Pass)],
            [(Call::SendSegments, Fault::Pass)],
        );
        for (s, steps, trains) in [
            (0, &refused[..], 3),
            (59, &singly, 3),
            (61, &refused, 3),
            (119, &singly, 3),
            (122, &whole, 1),
            (122, &whole, 1),
        ] {
            script(steps);
            let clock = || begin + Duration::from_secs(s);
            let report = sender.send_by(clock, to, &train(2500)).unwrap();
            finish();
            assert_eq!(report.sent, 3, "after {s} s");
            let (datagrams, arrived) = receive(&receiver, 3);
            let bytes: Vec<_> = datagrams.into_iter().flat_map(|(_, bytes)| bytes).collect();
            assert_eq!((bytes, arrived), (train(2500), trains), "after {s} s");
        }
    });
}

#[test]
fn datagrams_that_are_too_big_do_not_count_against_gso() {
    in_namespace(|| {
        ip("link set lo up");
        let sender = bind("127.0.0.1:0");
        let to = at("127.0.0.1:9");
        for _ in 0..5 {
            script(&[
                (Call::SendSegments, Fault::Errno(sys::EINVAL)),
                (Call::SendEach, Fault::Errno(sys::EMSGSIZE)),
            ]);
            let error = sender.send_train(to, &train(3000), 1000).unwrap_err().error;
            finish();
            assert!(matches!(error, SendError::TooBig { .. }), "{error:?}");
        }
        assert!(sender.uses_gso(to));
    });
}

#[test]
fn trains_cross_a_veth_in_one_piece() {
    let (left, right) = cable();
    let (sender, receiver) = (left.run(|| bind("[::]:0")), right.run(|| bind("[::]:4789")));
    assert_eq!(
        assert_arrives(&sender, &receiver, at("10.0.0.2:4789"), 40_300),
        1
    );
}

#[test]
fn datagrams_larger_than_the_interface_are_reported_with_and_without_gso() {
    let (left, right) = cable();
    let (sender, receiver) = (
        left.run(|| bind("0.0.0.0:0")),
        right.run(|| bind("[::]:4789")),
    );
    let to = at("10.0.0.2:4789");
    for gso in [true, false] {
        if !gso {
            sender.pauses.begin(Key::of(to), now());
        }
        for (bytes, size) in [(1473, 1473), (1473, 65_535), (14_730, 1473)] {
            let error = sender
                .send_train(to, &train(bytes), size)
                .unwrap_err()
                .error;
            let SendError::TooBig {
                datagram_bytes: 1473,
                ..
            } = error
            else {
                panic!("{error:?}, gso {gso}, {bytes} bytes in datagrams of {size}");
            };
        }
        assert_eq!(sender.uses_gso(to), gso, "too big says nothing about GSO");
        // The socket works as before, and 1472 bytes fit.
        assert_eq!(sender.send_train(to, &train(2944), 1472).unwrap().sent, 2);
        assert_eq!(receive(&receiver, 2).0.len(), 2);
    }
}

/// Both ends of the next datagram.
fn ends(socket: &UdpSocket) -> (SocketAddr, Option<Local>) {
    let mut batch = RecvBatch::new(1);
    let ready = waker::wait(&[socket.as_fd()], Some(Duration::from_secs(10)));
    assert!(!ready.unwrap().is_timeout());
    assert_eq!(socket.recv_batch(&mut batch).unwrap(), 1);
    let received = batch.iter_mut().next().unwrap();
    (received.from, received.to)
}

#[test]
fn an_answer_leaves_from_the_address_of_the_request() {
    in_namespace(|| {
        ip("link set lo up");
        ip("address add fd00::7/128 dev lo");
        wait_for_addresses();
        for (listen, address) in [
            ("0.0.0.0:0", "127.0.0.7"),
            ("[::]:0", "127.0.0.7"),
            ("[::]:0", "fd00::7"),
        ] {
            let server = bind(listen);
            let address: std::net::IpAddr = address.parse().unwrap();
            let client = bind(if address.is_ipv4() {
                "127.0.0.1:0"
            } else {
                "[::1]:0"
            });
            let to = SocketAddr::new(address, port(&server));
            // Alone, and cut by the kernel, both ways.
            for train in [train(100), train(300)] {
                client.send_train(to, &train, 100).unwrap();
                let (from, local) = ends(&server);
                assert_eq!(from, client.local_addr().unwrap());
                let local = local.unwrap();
                assert_eq!((local.address, local.interface), (address, 1));
                for interface in [0, 1] {
                    let local = Some(Local { interface, ..local });
                    let sent = server.send_train_from(local, from, &train, 100).unwrap();
                    assert_eq!((sent.sent, sent.from_elsewhere), (train.len() / 100, false));
                    assert_eq!(ends(&client).0, to);
                }
            }
        }
    });
}

#[test]
fn a_datagram_that_cannot_use_its_source_leaves_from_another() {
    let (left, right) = cable();
    left.run(|| ip("address add fd00::1/64 dev veth0 nodad"));
    right.run(|| ip("address add fd00::2/64 dev veth1 nodad"));
    left.run(wait_for_addresses);
    right.run(wait_for_addresses);
    for (listen, to, there, gone) in [
        ("0.0.0.0:0", "10.0.0.2", "10.0.0.1", "10.0.0.99"),
        ("[::]:0", "10.0.0.2", "10.0.0.1", "10.0.0.99"),
        ("[::]:0", "fd00::2", "fd00::1", "fd00::99"),
    ] {
        let ip: fn(&str) -> std::net::IpAddr = |address| address.parse().unwrap();
        // An address that was deleted, and one whose interface was.
        for (address, interface) in [(ip(gone), 0), (ip(there), 99)] {
            let local = Some(Local { address, interface });
            let (sender, receiver) = (left.run(|| bind(listen)), right.run(|| bind("[::]:0")));
            let to = SocketAddr::new(ip(to), port(&receiver));
            for train in [train(100), train(300)] {
                let sent = sender.send_train_from(local, to, &train, 100).unwrap();
                assert_eq!((sent.sent, sent.from_elsewhere), (train.len() / 100, true));
                assert_eq!(ends(&receiver).0.ip(), ip(there), "{listen} {to} {local:?}");
            }
        }
    }
}

#[test]
fn no_route_to_the_destination_is_an_error_of_that_send_only() {
    in_namespace(|| {
        let (dual, four) = (bind("[::]:0"), bind("0.0.0.0:0"));
        for (socket, to) in [
            (&dual, "192.0.2.1:9"),
            (&dual, "[2001:db8::1]:9"),
            (&four, "192.0.2.1:9"),
            (&four, "[2001:db8::1]:9"),
        ] {
            let error = socket.send_train(at(to), b"x", 1).unwrap_err().error;
            assert!(
                matches!(error, SendError::Unreachable { .. }),
                "{to}: {error:?}"
            );
        }
        ip("link set lo up");
        let to = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port(&four));
        assert_eq!(dual.send_train(to, b"x", 1).unwrap().sent, 1);
        assert_eq!(receive(&four, 1).0.len(), 1);
    });
}
