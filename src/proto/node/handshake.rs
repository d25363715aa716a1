// SPDX-License-Identifier: MIT OR Apache-2.0
//! The node's part in handshakes: initiation, and its two messages in their order (PROTOCOL.md,
//! "Handshake").

use std::{
    net::SocketAddr,
    time::{Duration, Instant, SystemTime},
};

use patchcord_bridge::PortId;
use zerocopy::{FromZeros, IntoBytes};

use super::{
    event::{Event, Refused, Transmit},
    state::{Node, Owner},
    upkeep::random_token,
};
use crate::{
    crypto::{
        aead::{Cipher, CipherOffer},
        keys::PublicKey,
        mac,
        noise::{Initiator, Responder},
    },
    proto::{
        guard::Verdict,
        limits::{INITIATION_INTERVAL, REFUSAL_INTERVAL, UNCONFIRMED_ANSWERS},
        peer::Attempt,
        session::{Agreement, Role},
        tai64n::{Tai64N, next_after, tai64n},
        trouble::{Refusal, Trouble},
    },
    stats::DropReason,
    wire::{
        CookieReply, Initiation, InitiationPayload, Response, ResponsePayload, SessionIndex,
        handshake::MacFields,
    },
};

impl Node {
    pub(super) fn initiate(&mut self, now: Instant, wall: SystemTime, at: usize) {
        let index = self.fresh_index();
        let peer = &mut self.peers[at];
        let to = peer.attempt_address();
        peer.handle_attempt(now, jitter());
        let Some(to) = to else { return };

        let timestamp = tai64n(wall).max(next_after(&peer.own_timestamp));
        peer.own_timestamp = timestamp;
        let payload = InitiationPayload {
            timestamp,
            network_id: network_id_bytes(self.config.network_id),
            ciphers: self.config.ciphers.allowed,
            flags: self.config.ciphers.flags(),
            lanes: self.config.lanes.highest,
            max_frame: self.config.max_frame.into(),
            bulk_lanes: self.config.lanes.bulk,
            ..InitiationPayload::new_zeroed()
        };
        let settings = &peer.settings;
        let mut message = Initiation::new(index, [0; _]);
        let noise = Initiator::start(
            &self.config.private_key,
            &settings.public_key,
            settings.preshared_key.as_ref(),
            &payload,
            &mut message.noise,
        );
        let cookie = peer.fresh_cookie(now);
        let (mac1, mac2) = macs(&settings.public_key, cookie.as_ref(), message.as_bytes());
        (message.mac1, message.mac2) = (mac1, mac2);

        let former = peer.attempt.replace(Attempt { noise, index, mac1 });
        if let Some(former) = former {
            self.indices.remove(&former.index);
        }
        self.indices
            .insert(index, Owner::Attempt(PortId(at as u16 + 1)));
        // Data threads pass on only answers to initiations that they know of.
        self.events.push_back(Event::TablesChanged);
        self.transmits.push_back(Transmit {
            to,
            datagram: message.as_bytes().to_vec(),
            joins_next: false,
        });
    }

    pub(super) fn handle_initiation(
        &mut self,
        now: Instant,
        from: SocketAddr,
        datagram: &[u8],
    ) -> Result<(), DropReason> {
        let message = Initiation::parse(datagram)?;
        self.pass_guard(now, from, datagram, message.sender)?;
        let responder = Responder::read(&self.config.private_key, &message.noise)
            .map_err(|reason| self.note_refused(reason, from, None))?;
        let initiator = Some(responder.initiator);
        let Some(&port) = self.by_key.get(&responder.initiator) else {
            // No answer: the node stays silent towards unknown senders.
            return Err(self.note_refused(DropReason::UnknownPeer, from, initiator));
        };
        let offer = responder.payload;
        if offer.network_id != network_id_bytes(self.config.network_id) {
            self.refuse(now, from, message.sender, responder, Refusal::NetworkId);
            return Err(self.note_refused(DropReason::Incompatible, from, initiator));
        }
        let peer = &mut self.peers[usize::from(port.0) - 1];
        if offer.timestamp <= peer.newest_timestamp {
            // An initiation with the same timestamp is a duplicate from the network, and was
            // answered.
            if offer.timestamp < peer.newest_timestamp {
                self.refuse(now, from, message.sender, responder, Refusal::Timestamp);
            }
            return Err(self.note_refused(DropReason::ReplayedHandshake, from, initiator));
        }
        if peer
            .last_initiation
            .is_some_and(|last| now < last + INITIATION_INTERVAL)
        {
            return Err(DropReason::HandshakeRateLimited);
        }
        let theirs = CipherOffer::from_wire(offer.ciphers, offer.flags);
        let Some(cipher) = self.config.ciphers.choose(theirs) else {
            self.refuse(now, from, message.sender, responder, Refusal::Cipher);
            return Err(self.note_refused(DropReason::Incompatible, from, initiator));
        };
        peer.newest_timestamp = offer.timestamp;
        peer.last_initiation = Some(now);
        peer.max_frame = offer.max_frame.get();
        if peer.next.as_ref().is_some_and(|next| next.is_confirmed()) {
            // The peer sends under it already; the new session must not replace it.
            self.promote(now, usize::from(port.0) - 1);
        }
        self.respond(now, from, message.sender, responder, cipher, port)
    }

    pub(super) fn respond(
        &mut self,
        now: Instant,
        from: SocketAddr,
        remote: SessionIndex,
        responder: Responder,
        cipher: Cipher,
        port: PortId,
    ) -> Result<(), DropReason> {
        let local = self.fresh_index();
        let remote_lanes = responder.payload.lane_set();
        let payload = ResponsePayload {
            cipher: cipher as u8,
            max_frame: self.config.max_frame.into(),
            ..ResponsePayload::new_zeroed()
        };
        let payload = payload.with_lanes(self.config.lanes);
        let peer = &mut self.peers[usize::from(port.0) - 1];
        let mut message = Response::new(remote, local, [0; _]);
        let keys = responder.respond(
            peer.settings.preshared_key.as_ref(),
            &payload,
            &mut message.noise,
        )?;
        let cookie = peer.fresh_cookie(now);
        (message.mac1, message.mac2) = macs(
            &peer.settings.public_key,
            cookie.as_ref(),
            message.as_bytes(),
        );

        let role = Role::Responder;
        let local_lanes = self.config.lanes;
        let agreement = Agreement {
            local,
            remote,
            role,
            cipher,
            local_lanes,
            remote_lanes,
        };
        let session = peer.session(agreement, &keys, now);
        let ended = peer.establish_as_responder(session.clone());
        let is_ignored = peer.unconfirmed >= UNCONFIRMED_ANSWERS;
        self.install(session, ended);
        if is_ignored {
            self.note_trouble(now, port, Trouble::Unconfirmed);
        }
        self.transmits.push_back(Transmit {
            to: from,
            datagram: message.as_bytes().to_vec(),
            joins_next: false,
        });
        Ok(())
    }

    /// Tells a peer why it is refused, in a response that only it can read (PROTOCOL.md,
    /// "Refusal"). To everyone else it looks like any other response.
    fn refuse(
        &mut self,
        now: Instant,
        from: SocketAddr,
        remote: SessionIndex,
        responder: Responder,
        refusal: Refusal,
    ) {
        let Some(&port) = self.by_key.get(&responder.initiator) else {
            return;
        };
        let peer = &mut self.peers[usize::from(port.0) - 1];
        // Only the guard limits answers that let an initiator in: an attacker that repeats recorded
        // initiations must not use up the answers that the initiator needs.
        if refusal != Refusal::Timestamp {
            let last = peer.last_refusal;
            if last.is_some_and(|last| now < last + REFUSAL_INTERVAL) {
                return;
            }
            peer.last_refusal = Some(now);
        }
        let payload = ResponsePayload {
            lanes: refusal as u8,
            timestamp: match refusal {
                Refusal::Timestamp => peer.newest_timestamp,
                Refusal::NetworkId | Refusal::Cipher => [0; _],
            },
            ..ResponsePayload::new_zeroed()
        };
        let nowhere = SessionIndex::from_low_bits(0);
        let mut message = Response::new(remote, nowhere, [0; _]);
        let psk = peer.settings.preshared_key.as_ref();
        if responder
            .respond(psk, &payload, &mut message.noise)
            .is_err()
        {
            return;
        }
        let cookie = peer.fresh_cookie(now);
        let key = &peer.settings.public_key;
        (message.mac1, message.mac2) = macs(key, cookie.as_ref(), message.as_bytes());
        self.transmits.push_back(Transmit {
            to: from,
            datagram: message.as_bytes().to_vec(),
            joins_next: false,
        });
    }

    /// Records a refusal for the log. Returns `reason`.
    fn note_refused(
        &mut self,
        reason: DropReason,
        from: SocketAddr,
        key: Option<PublicKey>,
    ) -> DropReason {
        let port = key.and_then(|key| self.by_key.get(&key).copied());
        self.events.push_back(Event::Refused(Refused {
            reason,
            from,
            key,
            port,
        }));
        reason
    }

    pub(super) fn handle_response(
        &mut self,
        now: Instant,
        from: SocketAddr,
        datagram: &[u8],
    ) -> Result<(), DropReason> {
        let message = Response::parse(datagram)?;
        let Some(&Owner::Attempt(port)) = self.indices.get(&message.receiver) else {
            return Err(DropReason::UnknownSession);
        };
        // No cookie is required: only a host that saw our initiation knows the index.
        self.guard.check_mac1(datagram)?;
        let peer = &mut self.peers[usize::from(port.0) - 1];
        let attempt = peer.attempt.as_mut().ok_or(DropReason::UnknownSession)?;
        let finished = attempt.noise.finish(&message.noise);
        let (payload, keys) = match finished {
            Ok(finished) => finished,
            Err(reason) => {
                let key = peer.settings.public_key;
                self.note_trouble(now, port, Trouble::UnreadableAnswer);
                return Err(self.note_refused(reason, from, Some(key)));
            }
        };
        let local = attempt.index;
        peer.attempt = None;
        self.indices.remove(&local);
        if let (0, Some(refusal)) = (payload.cipher, Refusal::from_number(payload.lanes)) {
            return self.handle_refusal(now, port, refusal, payload.timestamp);
        }
        let cipher = Cipher::from_bit(payload.cipher)
            .filter(|&cipher| self.config.ciphers.allowed & cipher as u8 != 0)
            .ok_or(DropReason::Incompatible)?;
        let agreement = Agreement {
            local,
            remote: message.sender,
            role: Role::Initiator,
            cipher,
            local_lanes: self.config.lanes,
            remote_lanes: payload.lane_set(),
        };
        peer.max_frame = payload.max_frame.get();
        let session = peer.session(agreement, &keys, now);
        let ended = peer.establish_as_initiator(session.clone());
        peer.handle_endpoint(from, now);
        self.install(session, ended);
        let at = usize::from(port.0) - 1;
        self.handle_established(now, at);
        // The responder may send only after it has received a datagram from us under the new keys.
        self.send_echo(now, at);
        Ok(())
    }

    /// The peer said why it refuses our initiation. The next attempt follows in its time.
    fn handle_refusal(
        &mut self,
        now: Instant,
        port: PortId,
        refusal: Refusal,
        theirs: Tai64N,
    ) -> Result<(), DropReason> {
        let peer = &mut self.peers[usize::from(port.0) - 1];
        if refusal == Refusal::Timestamp && theirs > peer.own_timestamp {
            // Our clock went back. The next timestamp is later than all that the peer has seen.
            peer.own_timestamp = theirs;
            return Ok(());
        }
        self.note_trouble(now, port, Trouble::Refused(refusal));
        Err(DropReason::Incompatible)
    }

    pub(super) fn handle_cookie_reply(
        &mut self,
        now: Instant,
        datagram: &[u8],
    ) -> Result<(), DropReason> {
        let reply = CookieReply::parse(datagram)?;
        let Some(&Owner::Attempt(port)) = self.indices.get(&reply.receiver) else {
            return Err(DropReason::UnknownSession);
        };
        let at = usize::from(port.0) - 1;
        let peer = &mut self.peers[at];
        let mac1 = peer
            .attempt
            .as_ref()
            .ok_or(DropReason::UnknownSession)?
            .mac1;
        let key = mac::cookie_key(&peer.settings.public_key);
        let cookie = mac::open_cookie(&key, &reply.nonce, &mac1, &reply.sealed_cookie)
            .ok_or(DropReason::BadMac)?;
        let had_one = peer.fresh_cookie(now).is_some();
        peer.cookie = Some((cookie, now));
        if !had_one {
            // Once per cookie: a responder that keeps asking must not make us flood it.
            peer.schedule.due = Some(now);
        }
        Ok(())
    }

    pub(super) fn pass_guard(
        &mut self,
        now: Instant,
        from: SocketAddr,
        datagram: &[u8],
        sender: SessionIndex,
    ) -> Result<(), DropReason> {
        match self.guard.judge(now, from, datagram, sender) {
            Verdict::Pass => Ok(()),
            Verdict::Drop(reason) => Err(reason),
            Verdict::Challenge(reply) => {
                self.transmits.push_back(Transmit {
                    to: from,
                    datagram: reply.as_bytes().to_vec(),
                    joins_next: false,
                });
                Err(DropReason::CookieRequired)
            }
        }
    }
}

fn network_id_bytes(network_id: u32) -> [u8; 3] {
    let [_, a, b, c] = network_id.to_be_bytes();
    [a, b, c]
}

/// mac1 and mac2 of a message to the owner of `public_key`.
pub(in crate::proto) fn macs(
    public_key: &PublicKey,
    cookie: Option<&mac::Cookie>,
    message: &[u8],
) -> ([u8; 16], [u8; 16]) {
    let fields = MacFields::of(message).expect("handshake messages end with two macs");
    let mac1 = mac::mac(&mac::mac1_key(public_key), fields.before_mac1);
    let mac2 = cookie.map_or([0; 16], |cookie| {
        let covered = [fields.before_mac1, &mac1].concat();
        mac::mac(cookie, &covered)
    });
    (mac1, mac2)
}

/// Up to a tenth of a second, so that two sides that initiate at the same time do not go on so.
fn jitter() -> Duration {
    Duration::from_millis(random_token() % 100)
}
