// SPDX-License-Identifier: MIT OR Apache-2.0
//! The upkeep of an established peer: echoes, probes, closes on the control lane, and the samples
//! of counters that ask for them (PROTOCOL.md, "Control lane" and "Sessions").

use std::time::Instant;

use super::{
    event::{Event, Transmit},
    state::Node,
};
use crate::{
    crypto,
    proto::{
        limits::{HANDSHAKE_RETRY, HANDSHAKE_RETRY_MAX},
        trouble::Trouble,
    },
    wire::{
        DATA_HEADER_LEN, DATA_OVERHEAD, Lane, MessageType, TAG_LEN,
        chunk::{ControlChunk, ECHO_LEN, push_control},
    },
};

impl Node {
    /// A peer that was down is heard again, under a session that is still valid.
    pub(super) fn handle_back(&mut self, now: Instant, at: usize) {
        self.peers[at].is_up = true;
        self.events.push_back(Event::TablesChanged);
        self.report_state(now, at);
    }

    /// `established`: of the session under which the chunk arrived.
    pub(super) fn handle_chunk(
        &mut self,
        now: Instant,
        at: usize,
        established: Instant,
        chunk: ControlChunk,
    ) {
        match chunk {
            ControlChunk::EchoRequest { token } => {
                self.send_control(at, &[ControlChunk::EchoReply { token }], 0)
            }
            ControlChunk::EchoReply { token } => self.handle_echo_reply(now, at, token),
            ControlChunk::Close => self.handle_close(now, at, established),
        }
    }

    /// The peer stops. A session that is younger than the close was made after it, by a peer that
    /// runs again.
    pub(super) fn handle_close(&mut self, now: Instant, at: usize, established: Instant) {
        let ended = self.peers[at].end_sessions(|session| session.established <= established);
        self.uninstall(ended);
        if self.peers[at].current.is_none() {
            // Not at once: a peer that closes each session that it establishes must not keep this
            // node computing.
            let delay = match self.peers[at].flaps.is_held_down(now) {
                true => HANDSHAKE_RETRY_MAX,
                false => HANDSHAKE_RETRY,
            };
            self.peers[at].schedule_handshake(now + delay);
            self.set_down(now, at);
        }
    }

    pub(super) fn handle_echo_reply(&mut self, now: Instant, at: usize, token: u64) {
        let peer = &mut self.peers[at];
        if let Some((_, sent)) = peer.echo.take_if(|&mut (expected, _)| expected == token) {
            let rtt = now.saturating_duration_since(sent);
            peer.rtt = Some(rtt);
            peer.path.handle_rtt(rtt);
            return;
        }
        peer.trains.handle_reply(token);
        if peer.path.handle_reply(token, now) {
            self.events.push_back(Event::TablesChanged);
        }
    }

    pub(super) fn send_echo(&mut self, now: Instant, at: usize) {
        let token = random_token();
        self.peers[at].echo = Some((token, now));
        self.send_control(at, &[ControlChunk::EchoRequest { token }], 0);
    }

    /// Sends chunks on the control lane, padded to `len` bytes of UDP payload if they are shorter.
    pub(super) fn send_control(&mut self, at: usize, chunks: &[ControlChunk], len: usize) {
        let peer = &self.peers[at];
        let (Some(session), Some(to)) = (&peer.current, peer.endpoint) else {
            return;
        };
        let mut datagram = vec![0; DATA_HEADER_LEN];
        for &chunk in chunks {
            push_control(&mut datagram, chunk);
        }
        datagram.resize((datagram.len() + TAG_LEN).max(len), 0);
        let Ok(counter) = session.next_counter(Lane::CONTROL) else {
            return;
        };
        session.seal(MessageType::Chunks, counter, &mut datagram);
        session
            .traffic
            .outbound
            .of(Lane::CONTROL.0)
            .add_datagrams(1);
        self.transmits.push_back(Transmit {
            to,
            datagram,
            joins_next: false,
        });
    }

    pub(super) fn sample(&mut self, now: Instant, at: usize) {
        let peer = &mut self.peers[at];
        if now < peer.liveness.next_sample() {
            return;
        }
        if peer.next.as_ref().is_some_and(|next| next.is_confirmed()) {
            self.promote(now, at);
        }
        let peer = &mut self.peers[at];
        if peer.current.is_none() {
            peer.liveness.postpone(now);
            return;
        }
        let (sent, received) = (
            peer.traffic.outbound.datagrams(),
            peer.traffic.inbound.datagrams(),
        );
        let (keepalive, rtt) = (peer.settings.keepalive, peer.rtt.unwrap_or_default());
        let findings = peer.liveness.sample(now, sent, received, keepalive, rtt);
        let heard_again = !peer.is_up && peer.liveness.last_heard() == Some(now);
        if findings.sent {
            peer.path.handle_traffic(now);
            peer.trains.handle_traffic();
        }
        if findings.rekey {
            peer.schedule_handshake(now);
        }
        if findings.echo {
            self.send_echo(now, at);
        }
        if findings.down {
            self.set_down(now, at);
        } else if heard_again {
            self.handle_back(now, at);
        }
    }

    pub(super) fn probe_path(&mut self, now: Instant, at: usize) {
        let peer = &mut self.peers[at];
        if peer.current.is_none() {
            return;
        }
        if peer.liveness.is_suspect(now) {
            peer.path.handle_silence(now);
        } else if peer.path.handle_timeout(now) {
            self.events.push_back(Event::TablesChanged);
        }
        if self.peers[at].path.take_too_narrow() {
            self.note_trouble(now, self.peers[at].port, Trouble::NarrowPath);
        }
        while let Some(size) = self.peers[at].path.poll_probe() {
            let token = random_token();
            self.peers[at].path.handle_sent(token, size);
            let len = usize::from(size) - self.peers[at].ip_overhead();
            debug_assert!(len > DATA_OVERHEAD + ECHO_LEN);
            self.send_control(at, &[ControlChunk::EchoRequest { token }], len);
        }
    }
}

impl Node {
    /// Whether the datagrams of a train arrive at the peer.
    pub(super) fn check_trains(&mut self, now: Instant, at: usize) {
        let peer = &mut self.peers[at];
        let port = peer.port;
        if peer.trains.handle_timeout(now) {
            self.events.push_back(Event::TablesChanged);
            match self.peers[at].trains.are_lost() {
                true => self.note_trouble(now, port, Trouble::LostTrains),
                false => self.events.push_back(Event::TrainsArrive(port)),
            }
        }
        let peer = &mut self.peers[at];
        if peer.current.is_none() || !peer.trains.is_due(now) {
            return;
        }
        if peer.liveness.is_suspect(now) || peer.path.is_too_narrow() {
            return peer.trains.postpone(now);
        }
        let tokens = [(); 3].map(|()| random_token());
        let len = usize::from(peer.path.current()) - peer.ip_overhead();
        let patience = peer.path.patience();
        peer.trains.handle_sent(tokens, patience, now);
        for (token, joins_next) in tokens.into_iter().zip([true, false, false]) {
            let before = self.transmits.len();
            self.send_control(at, &[ControlChunk::EchoRequest { token }], len);
            if let Some(sent) = self.transmits.get_mut(before) {
                sent.joins_next = joins_next;
            }
        }
    }
}

pub(super) fn random_token() -> u64 {
    let mut token = [0; 8];
    crypto::random(&mut token);
    u64::from_be_bytes(token)
}
