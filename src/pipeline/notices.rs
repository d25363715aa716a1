// SPDX-License-Identifier: MIT OR Apache-2.0
//! Observations of data threads, on their way to the control thread. Each peer has room of its own,
//! so that none can take the room that others need, and the control thread takes one notice of each
//! peer in turn.
//!
//! Of notices that supersede each other (the address of a peer, that a datagram was too big) only
//! the latest is kept, and a peer that moves all the time wakes the control thread no more often
//! than [`MOVE_INTERVAL_US`] says. No data thread waits for a lock here.

use std::{
    net::SocketAddr,
    sync::{
        Mutex, PoisonError, TryLockError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use crossbeam_channel::{Receiver, Sender};
use patchcord_bridge::{Now, PortId};
use tokio::sync::Notify;

use crate::{
    queue::Pending,
    wire::{SessionIndex, local::Local},
};

/// Bytes of a control datagram that are passed on; padding follows its chunks.
pub(super) const CONTROL_BYTES: usize = 64;
/// Control datagrams of a peer that may wait: a search for the path MTU at both ends has 34 at
/// once.
const CONTROL_PER_PEER: usize = 48;
/// … and of all peers together, when there are so many that each gets less.
const CONTROL_OF_ALL: usize = 1 << 16;
const CONTROL_LEAST: usize = 8;
/// A peer's moves are reported at this interval.
const MOVE_INTERVAL_US: u64 = 100_000;

/// An accepted datagram of the control lane.
pub(super) struct Control {
    pub(super) from: SocketAddr,
    /// The local address and interface at which it arrived.
    pub(super) local: Option<Local>,
    pub(super) receiver: SessionIndex,
    /// None with a higher counter arrived before.
    pub(super) newest: bool,
    pub(super) bytes: [u8; CONTROL_BYTES],
}

/// From a data thread to the control thread.
pub(super) enum Notice {
    /// See [`Control`].
    Control(Control),
    /// A peer was heard from another address.
    Roamed {
        receiver: SessionIndex,
        from: SocketAddr,
    },
    /// A datagram to this peer was too big for its link.
    TooBig { port: PortId },
    /// Datagrams to this peer could not leave from the requested source.
    LocalLost { port: PortId },
}

/// All peers' notices.
pub(super) struct Notices {
    peers: Box<[OfPeer]>,
    /// Which peers have some.
    pending: Pending,
    news: Notify,
}

struct OfPeer {
    control_in: Sender<Control>,
    control: Receiver<Control>,
    roamed: Mutex<Option<(SessionIndex, SocketAddr)>>,
    /// When the control thread was last notified of a move.
    told_us: AtomicU64,
    too_big: AtomicBool,
    local_lost: AtomicBool,
}

impl OfPeer {
    fn new(room: usize) -> Self {
        let (control_in, control) = crossbeam_channel::bounded(room);
        Self {
            control_in,
            control,
            roamed: Mutex::default(),
            told_us: AtomicU64::new(0),
            too_big: AtomicBool::new(false),
            local_lost: AtomicBool::new(false),
        }
    }
}

impl Notices {
    pub(super) fn new(peers: usize) -> Self {
        let room = (CONTROL_OF_ALL / peers.max(1)).clamp(CONTROL_LEAST, CONTROL_PER_PEER);
        Self {
            peers: (0..peers).map(|_| OfPeer::new(room)).collect(),
            pending: Pending::new(peers),
            news: Notify::new(),
        }
    }

    // For data threads.

    /// False if the peer's room is full.
    pub(super) fn push_control(&self, port: PortId, control: Control) -> bool {
        let Some((place, peer)) = self.peer(port) else {
            return false;
        };
        let is_taken = peer.control_in.try_send(control).is_ok();
        self.notify(place);
        is_taken
    }

    /// The peer was heard from another address.
    pub(super) fn set_roamed(
        &self,
        port: PortId,
        receiver: SessionIndex,
        from: SocketAddr,
        now: Now,
    ) {
        let Some((place, peer)) = self.peer(port) else {
            return;
        };
        match peer.roamed.try_lock() {
            Ok(mut roamed) => *roamed = Some((receiver, from)),
            Err(TryLockError::Poisoned(poisoned)) => {
                *poisoned.into_inner() = Some((receiver, from));
            }
            // Another thread is about to report it, or the peer's next datagram will.
            Err(TryLockError::WouldBlock) => {}
        }
        let told = peer.told_us.load(Ordering::Relaxed);
        if told == 0 || now.micros.saturating_sub(told) >= MOVE_INTERVAL_US {
            peer.told_us.store(now.micros.max(1), Ordering::Relaxed);
            self.notify(place);
        }
    }

    /// Datagrams to the peer left from another source than requested.
    pub(super) fn set_local_lost(&self, port: PortId) {
        if let Some((place, peer)) = self.peer(port) {
            peer.local_lost.store(true, Ordering::Relaxed);
            self.notify(place);
        }
    }

    /// The kernel refused a datagram to the peer as too big.
    pub(super) fn set_too_big(&self, port: PortId) {
        if let Some((place, peer)) = self.peer(port) {
            peer.too_big.store(true, Ordering::Relaxed);
            self.notify(place);
        }
    }

    fn peer(&self, port: PortId) -> Option<(usize, &OfPeer)> {
        let place = usize::from(port.0).checked_sub(1)?;
        Some((place, self.peers.get(place)?))
    }

    fn notify(&self, place: usize) {
        if self.pending.set(place) {
            self.news.notify_one();
        }
    }

    // For the control thread.

    /// The next notice: of the peers that have some, that of the first one after `turn`.
    pub(super) async fn next(&self, turn: &mut usize) -> Notice {
        loop {
            if let Some(notice) = self.try_next(turn) {
                return notice;
            }
            self.news.notified().await;
        }
    }

    fn try_next(&self, turn: &mut usize) -> Option<Notice> {
        while let Some(place) = self.pending.take(*turn) {
            *turn = place + 1;
            if let Some(notice) = self.take(place) {
                // It may have more.
                self.notify(place);
                return Some(notice);
            }
        }
        None
    }

    /// Reports the latest moves that arrived too soon after others. To be called from time to time.
    pub(super) fn report_late_moves(&self) {
        for (place, peer) in self.peers.iter().enumerate() {
            let roamed = peer.roamed.lock().unwrap_or_else(PoisonError::into_inner);
            if roamed.is_some() {
                self.notify(place);
            }
        }
    }

    fn take(&self, place: usize) -> Option<Notice> {
        let peer = &self.peers[place];
        let port = PortId(place as u16 + 1);
        if peer.local_lost.swap(false, Ordering::Relaxed) {
            return Some(Notice::LocalLost { port });
        }
        if peer.too_big.swap(false, Ordering::Relaxed) {
            return Some(Notice::TooBig { port });
        }
        let roamed = peer
            .roamed
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some((receiver, from)) = roamed {
            return Some(Notice::Roamed { receiver, from });
        }
        peer.control.try_recv().ok().map(Notice::Control)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INDEX: SessionIndex = SessionIndex::from_low_bits(7);

    fn control(number: u16) -> Control {
        Control {
            local: None,
            from: address(number),
            receiver: INDEX,
            newest: true,
            bytes: [0; CONTROL_BYTES],
        }
    }

    fn address(number: u16) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, 1], number))
    }

    fn at(micros: u64) -> Now {
        Now::from_micros(micros)
    }

    #[test]
    fn many_peers_that_start_at_once_lose_nothing() {
        for peers in [64, 500] {
            let notices = Notices::new(peers);
            for number in 0..34 {
                for port in 1..=peers as u16 {
                    assert!(notices.push_control(PortId(port), control(number)));
                }
            }
            let mut turn = 0;
            let mut taken = 0;
            while let Some(Notice::Control(control)) = notices.try_next(&mut turn) {
                assert_eq!(control.from, address(taken / peers as u16), "by turns");
                taken += 1;
            }
            assert_eq!(usize::from(taken), 34 * peers);
        }
    }

    #[test]
    fn a_peer_that_floods_takes_its_own_room_only() {
        let notices = Notices::new(200);
        let taken = (0..10_000).filter(|&number| notices.push_control(PortId(3), control(number)));
        assert_eq!(taken.count(), CONTROL_PER_PEER);
        notices.push_control(PortId(200), control(1));
        notices.push_control(PortId(1), control(2));
        let mut turn = 0;
        let order: Vec<_> = std::iter::from_fn(|| notices.try_next(&mut turn))
            .take(4)
            .map(|notice| match notice {
                Notice::Control(control) => control.from.port(),
                _ => unreachable!(),
            })
            .collect();
        assert_eq!(order, [2, 0, 1, 1], "of peers 1, 3, 200 and 3");
    }

    #[test]
    fn of_many_moves_the_latest_is_told_and_not_each() {
        let notices = Notices::new(2);
        let mut turn = 0;
        let mut told = Vec::new();
        let mut drain = |notices: &Notices| {
            while let Some(Notice::Roamed { from, .. }) = notices.try_next(&mut turn) {
                told.push(from);
            }
        };
        for number in 0..40_000_u64 {
            let from = address(number as u16);
            notices.set_roamed(PortId(2), INDEX, from, at(1_000_000 + number * 25));
            drain(&notices);
        }
        notices.report_late_moves();
        drain(&notices);
        notices.report_late_moves();
        drain(&notices);
        assert_eq!(told.len(), 11, "ten in a second, and the last");
        assert_eq!((told[0], told[10]), (address(0), address(39_999)));
    }

    #[test]
    fn a_datagram_that_was_too_big_is_told_once() {
        let notices = Notices::new(70);
        let mut turn = 0;
        for _ in 0..1000 {
            notices.set_too_big(PortId(70));
        }
        let port = |notice| match notice {
            Some(Notice::TooBig { port }) => Some(port),
            _ => None,
        };
        assert_eq!(port(notices.try_next(&mut turn)), Some(PortId(70)));
        assert_eq!(port(notices.try_next(&mut turn)), None);
    }

    #[test]
    fn a_waiting_thread_is_woken_by_another() {
        let notices = Notices::new(100);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for number in 0..5000 {
                    let port = PortId(1 + number % 100);
                    while !notices.push_control(port, control(number)) {
                        std::thread::yield_now();
                    }
                }
            });
            crate::testing::block_on(async {
                let mut turn = 0;
                for _ in 0..5000 {
                    notices.next(&mut turn).await;
                }
            });
        });
    }
}
