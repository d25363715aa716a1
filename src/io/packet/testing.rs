// SPDX-License-Identifier: MIT OR Apache-2.0
//! Shared by the tests of `packet`.
#![cfg(test)]

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use crate::io::tap::{Backend, Tap, TapError, TapOptions, TapQueue};
use crate::io::vnet::VnetHeader;
use crate::io::waker;
use crate::testing::{ip, wait_for_carrier};

pub(super) const EXPERIMENTAL: u16 = 0x88b5;
/// The source of every frame here, which distinguishes them from the kernel's own.
pub(super) const OURS: [u8; 6] = [2, 0, 0, 0, 0, 1];
pub(super) const OTHER_STATION: [u8; 6] = [2, 0, 0, 0, 0, 2];

pub(super) fn open(name: &str, queues: usize) -> Result<(Tap, Vec<TapQueue>), TapError> {
    let options = TapOptions {
        name: name.to_owned(),
        backend: Backend::Packet,
        express: false,
    };
    Tap::open(&options, queues)
}

/// Two ends of a cable; it takes frames of this MTU.
pub(super) fn cable(mtu: u32) {
    ip("link add near mtu 9000 type veth peer name far mtu 9000");
    for name in ["near", "far"] {
        ip(&format!("link set {name} mtu {mtu} addrgenmode none up"));
    }
    wait_for_carrier("near");
    wait_for_carrier("far");
}

/// A NIC at either end of a cable.
pub(super) fn plugged(mtu: u32) -> [(Tap, TapQueue); 2] {
    cable(mtu);
    ["near", "far"].map(|name| {
        let (tap, mut queues) = open(name, 1).unwrap();
        (tap, queues.remove(0))
    })
}

pub(super) fn frame(dst: [u8; 6], tags: &[(u16, u16)], ethertype: u16, len: usize) -> Vec<u8> {
    let mut frame = [dst, OURS].concat();
    for (tpid, tci) in tags {
        frame.extend(tpid.to_be_bytes());
        frame.extend(tci.to_be_bytes());
    }
    frame.extend(ethertype.to_be_bytes());
    frame.extend((frame.len()..len).map(|at| (at % 253) as u8));
    frame
}

/// The next frame of ours.
pub(super) fn read_ours(queue: &TapQueue) -> Option<(VnetHeader, Vec<u8>)> {
    let mut buf = vec![0; 70_000];
    let deadline = Instant::now() + Duration::from_secs(1);
    while Instant::now() < deadline {
        while let Some((header, at)) = queue.try_read(&mut buf).unwrap() {
            let frame = &buf[at];
            if frame.get(6..12) == Some(&OURS) || header == VnetHeader::BROKEN {
                return Some((header, frame.to_vec()));
            }
        }
        waker::wait(&[queue.as_fd()], Some(Duration::from_millis(100))).unwrap();
    }
    None
}

pub(super) fn assert_crosses(from: &TapQueue, to: &TapQueue, frame: &[u8], what: &str) {
    from.write(&VnetHeader::NONE, frame).unwrap();
    let (header, arrived) = read_ours(to).unwrap_or_else(|| panic!("{what} does not arrive"));
    assert!(
        arrived == frame,
        "{what}: {:02x?}",
        &arrived[..arrived.len().min(40)]
    );
    assert!(header.is_finished(), "{what}: {header:?}");
}
