// SPDX-License-Identifier: MIT OR Apache-2.0
//! Shared by the tests of `udp`.
#![cfg(test)]

use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::time::Duration;

use super::batch::RecvBatch;
use super::socket::UdpSocket;
use super::transmit::SendReport;
use crate::io::waker;
use crate::testing::{Namespace, ip, wait_for_carrier};

pub(super) fn at(address: &str) -> SocketAddr {
    address.parse().unwrap()
}

pub(super) fn bind(address: &str) -> UdpSocket {
    UdpSocket::bind(at(address)).unwrap()
}

pub(super) fn port(socket: &UdpSocket) -> u16 {
    socket.local_addr().unwrap().port()
}

/// A train in which every datagram differs from every other one.
pub(super) fn train(bytes: usize) -> Vec<u8> {
    (0..bytes)
        .map(|at| (at % 251) as u8 ^ (at >> 8) as u8)
        .collect()
}

/// Receives datagrams until there are `count`, or none arrives for a while. Returns them with their
/// sender and the number of trains in which they arrived.
pub(super) fn receive(socket: &UdpSocket, count: usize) -> (Vec<(SocketAddr, Vec<u8>)>, usize) {
    let mut batch = RecvBatch::new(8);
    let (mut datagrams, mut trains) = (Vec::new(), 0);
    while datagrams.len() < count {
        let wait = Some(Duration::from_millis(300));
        if waker::wait(&[socket.as_fd()], wait).unwrap().is_timeout() {
            break;
        }
        trains += socket.recv_batch(&mut batch).unwrap();
        for mut received in batch.iter_mut() {
            let from = received.from;
            datagrams.extend(received.datagrams().map(|bytes| (from, bytes.to_vec())));
        }
    }
    (datagrams, trains)
}

pub(super) fn assert_arrives(
    sender: &UdpSocket,
    receiver: &UdpSocket,
    to: SocketAddr,
    size: usize,
) -> usize {
    let bytes = train(size);
    let expected: Vec<_> = bytes.chunks(1000).collect();
    let report = sender.send_train(to, &bytes, 1000).unwrap();
    assert_eq!(
        report,
        SendReport {
            sent: expected.len(),
            ..SendReport::default()
        }
    );
    let (datagrams, trains) = receive(receiver, expected.len());
    let bytes: Vec<_> = datagrams.iter().map(|(_, bytes)| &bytes[..]).collect();
    assert!(
        bytes == expected,
        "{size} bytes: {} datagrams of {}",
        bytes.len(),
        expected.len()
    );
    trains
}

/// Two namespaces with a veth between them: 10.0.0.1 and 10.0.0.2, MTU 1500.
pub(super) fn cable() -> (Namespace, Namespace) {
    let (left, right) = (Namespace::new(), Namespace::new());
    left.run(|| {
        ip(&format!(
            "link add veth0 type veth peer name veth1 netns {}",
            right.path()
        ));
        ip("address add 10.0.0.1/24 dev veth0");
        ip("link set veth0 up");
    });
    right.run(|| {
        ip("address add 10.0.0.2/24 dev veth1");
        ip("link set veth1 up");
        wait_for_carrier("veth1");
    });
    left.run(|| wait_for_carrier("veth0"));
    (left, right)
}
