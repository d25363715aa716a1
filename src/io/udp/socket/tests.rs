// SPDX-License-Identifier: MIT OR Apache-2.0
use sys::faults::{Call, Fault, finish, script};

use super::super::testing::{assert_arrives, at, bind, port, receive, train};
use super::*;
use crate::io::waker;
use crate::testing::{in_namespace, ip, wait_for_addresses};

#[test]
fn offloads_that_are_not_allowed_are_not_used() {
    in_namespace(|| {
        ip("link set lo up");
        for (gso, gro) in [(true, true), (false, true), (true, false), (false, false)] {
            let allowed = Capabilities { gso, gro };
            let [mut sender, mut receiver] = [bind("[::]:0"), bind("[::]:0")];
            for socket in [&mut sender, &mut receiver] {
                socket.restrict(allowed).unwrap();
                assert_eq!(socket.capabilities(), allowed);
            }
            let to = SocketAddr::new(Ipv6Addr::LOCALHOST.into(), port(&receiver));
            let trains = assert_arrives(&sender, &receiver, to, 10_000);
            let expected = if gso && gro { 1 } else { 10 };
            assert_eq!(trains, expected, "{allowed:?}");
        }
    });
}

#[test]
fn errors_of_others_are_skipped_while_receiving() {
    use sys::{EAGAIN, ECONNREFUSED, EHOSTUNREACH, EINTR, ENETUNREACH};
    in_namespace(|| {
        ip("link set lo up");
        let receiver = bind("127.0.0.1:0");
        let mut batch = RecvBatch::new(2);
        let mut receive_after = |codes: &[i32]| {
            let faults = codes
                .iter()
                .map(|&code| (Call::Receive, Fault::Errno(code)));
            script(&faults.collect::<Vec<_>>());
            let result = receiver.recv_batch(&mut batch);
            finish();
            result.map_err(|error| error.raw_os_error())
        };
        let send = || {
            assert_eq!(
                receiver
                    .send_train(receiver.local_addr().unwrap(), b"x", 1)
                    .unwrap()
                    .sent,
                1
            )
        };
        send();
        assert_eq!(
            receive_after(&[ECONNREFUSED, EHOSTUNREACH, EINTR, ENETUNREACH]),
            Ok(1)
        );
        send();
        assert_eq!(receive_after(&[EAGAIN]), Ok(0));
        // After a flood of them the thread continues in between.
        assert_eq!(receive_after(&[ECONNREFUSED; 16]), Ok(0));
        assert_eq!(receive_after(&[sys::EBADFD]), Err(Some(sys::EBADFD)));
        assert_eq!(receive_after(&[]), Ok(1));
    });
}

#[test]
fn a_dual_stack_socket_speaks_ipv4_under_ipv4_addresses() {
    in_namespace(|| {
        ip("link set lo up");
        let (dual, four) = (bind("[::]:0"), bind("127.0.0.1:0"));
        let to = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port(&dual));
        assert_eq!(four.send_train(to, b"ping", 4).unwrap().sent, 1);
        let (datagrams, _) = receive(&dual, 1);
        assert_eq!(datagrams, [(four.local_addr().unwrap(), b"ping".to_vec())]);
        assert_eq!(dual.send_train(datagrams[0].0, b"pong", 4).unwrap().sent, 1);
        assert_eq!(receive(&four, 1).0, [(to, b"pong".to_vec())]);
        let to = SocketAddr::new(Ipv6Addr::LOCALHOST.into(), port(&dual));
        assert_eq!(dual.send_train(to, b"self", 4).unwrap().sent, 1);
        assert_eq!(receive(&dual, 1).0, [(to, b"self".to_vec())]);
    });
}

#[test]
fn an_icmp_error_does_not_break_the_socket() {
    in_namespace(|| {
        ip("link set lo up");
        let sender = bind("[::]:0");
        for to in ["127.0.0.1:9", "[::1]:9"] {
            for _ in 0..3 {
                assert_eq!(sender.send_train(at(to), &train(300), 100).unwrap().sent, 3);
            }
            assert!(receive(&sender, 1).0.is_empty());
        }
    });
}

#[test]
fn empty_datagrams_are_skipped_over_safely() {
    in_namespace(|| {
        ip("link set lo up");
        let receiver = bind("127.0.0.1:0");
        let sender = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        sender.send_to(b"", receiver.local_addr().unwrap()).unwrap();
        let mut batch = RecvBatch::new(2);
        waker::wait(&[receiver.as_fd()], None).unwrap();
        assert_eq!(receiver.recv_batch(&mut batch).unwrap(), 1);
        let mut received = batch.iter_mut().next().unwrap();
        assert!(received.bytes().is_empty() && received.stride == 1);
        assert_eq!(receiver.recv_batch(&mut batch).unwrap(), 0);
        assert_eq!(batch.iter_mut().count(), 0);
    });
}

#[test]
fn a_clone_is_the_same_socket() {
    in_namespace(|| {
        ip("link set lo up");
        let (sender, receiver) = (bind("127.0.0.1:0"), bind("127.0.0.1:0"));
        let clone = receiver.try_clone().unwrap();
        sender
            .send_train(receiver.local_addr().unwrap(), b"x", 1)
            .unwrap();
        drop(receiver);
        assert_eq!(receive(&clone, 1).0.len(), 1);
    });
}

#[test]
fn start_up_errors_name_the_remedy() {
    in_namespace(|| {
        let first = bind("[::]:4789");
        for listen in ["[::]:4789", "0.0.0.0:4789"] {
            let error = UdpSocket::bind(at(listen)).unwrap_err().to_string();
            assert!(error.starts_with("UDP port 4789 is in use"), "{error}");
            assert!(error.contains("choose another tunnel.listen"), "{error}");
        }
        drop(first);
    });
}

#[test]
fn an_address_may_come_after_the_socket() {
    in_namespace(|| {
        // A namespace without any address accepts every address as its own.
        ip("link set lo up");
        for (listen, address) in [
            ("192.0.2.1:0", "192.0.2.1/32"),
            ("[2001:db8::1]:0", "2001:db8::1/128"),
        ] {
            let sockets = UdpSocket::bind_lanes(at(listen), 2).unwrap();
            let senders = UdpSocket::bind_senders(&sockets, sockets.len(), 2);
            assert_eq!((sockets.len(), senders.len()), (2, 2));
            let here = sockets[0].local_addr().unwrap();
            assert!(!is_here(here));
            let caller = bind("[::]:0");
            ip(&format!("address add {address} dev lo nodad"));
            wait_for_addresses();
            assert!(is_here(here));
            caller.send_train(here, b"hello", 5).unwrap();
            let came = sockets
                .iter()
                .map(|it| receive(it, 1).0.len())
                .sum::<usize>();
            assert_eq!(came, 1, "{listen}");
            let back = SocketAddr::new(here.ip(), port(&caller));
            senders[0].send_train(back, b"back", 4).unwrap();
            assert_eq!(receive(&caller, 1).0, [(here, b"back".to_vec())]);
        }
    });
}

#[test]
fn a_new_socket_has_large_buffers_and_knows_the_kernel() {
    let socket = bind("127.0.0.1:0");
    assert_eq!(
        socket.capabilities(),
        Capabilities {
            gso: true,
            gro: true
        }
    );
    // The kernel doubles the requested size; rmem_max alone would allow less.
    let (receive, send) = socket.buffer_bytes().unwrap();
    assert!(
        receive >= 2 * BUFFER_BYTES && send >= 2 * BUFFER_BYTES,
        "{receive} {send}"
    );
}
