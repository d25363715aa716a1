// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the tests of `proto` share: a session with itself, and frames laid out by real trains.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Instant,
};

use patchcord_bridge::PortId;

use super::{
    session::{Agreement, Role, Session},
    train::{Open, Outgoing, Pushed, Train},
};
use crate::{
    crypto::{
        aead::Cipher,
        noise::{SplitKey, SplitKeys},
    },
    wire::{Lane, SessionIndex},
};

pub(super) const LANE: Lane = Lane::FIRST_DATA;
pub(super) const DESTINATION: SocketAddr =
    SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), 1);

/// A session with itself: seals and opens under the same key.
pub(super) fn looped_session() -> Arc<Session> {
    let agreement = Agreement {
        local: SessionIndex::from_low_bits(1),
        remote: SessionIndex::from_low_bits(2),
        role: Role::Initiator,
        cipher: Cipher::Aes256Gcm,
        local_lanes: 1,
        remote_lanes: 1,
    };
    let keys = SplitKeys {
        seal: SplitKey::from_bytes([1; 32]),
        open: SplitKey::from_bytes([1; 32]),
    };
    Arc::new(Session::new(
        agreement,
        &keys,
        PortId(1),
        Instant::now(),
        Arc::default(),
    ))
}

/// Packs the frames; returns every sealed datagram in order, and the number of trains.
pub(super) fn pack<'a>(
    frames: impl Iterator<Item = (&'a [u8], Option<Open>)>,
    datagram_len: usize,
) -> (Vec<Vec<u8>>, usize) {
    let session = looped_session();
    let (mut datagrams, mut trains) = (Vec::new(), 0);
    let mut train = Train::default();
    let mut finish = |train: &mut Train| {
        train.close(LANE).unwrap();
        train.seal();
        for (run, size) in train.runs() {
            datagrams.extend(run.chunks(size).map(<[u8]>::to_vec));
        }
        train.clear();
        trains += 1;
    };
    for (frame_id, (frame, open)) in (0..).zip(frames) {
        let mut outgoing = Outgoing::new(frame, frame_id, open);
        loop {
            if train.is_empty() {
                train.bind(session.clone(), DESTINATION, datagram_len);
            }
            match train.push(LANE, &mut outgoing).unwrap() {
                Pushed::Done => break,
                Pushed::Full => finish(&mut train),
            }
        }
    }
    finish(&mut train);
    (datagrams, trains)
}
