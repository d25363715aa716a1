// SPDX-License-Identifier: MIT OR Apache-2.0
//! Layouts of the handshake messages (PROTOCOL.md, "Handshake").
//!
//! The Noise parts are opaque here; `crypto::noise` makes and reads them. An answer is never larger
//! than its question: response <= initiation, cookie reply <= response.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned, big_endian::U16};

use super::message::{LaneSet, MessageType, SessionIndex, size_must_be};
use crate::stats::DropReason;

/// Bytes of mac1, mac2 and of a cookie.
pub const MAC_LEN: usize = 16;

const NOISE_1_LEN: usize = 32 + (32 + 16) + (size_of::<InitiationPayload>() + 16);
const NOISE_2_LEN: usize = 32 + (size_of::<ResponsePayload>() + 16);

/// First message, initiator to responder.
#[derive(Clone, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Initiation {
    first_byte: u8,
    /// The index under which the initiator wants to be addressed.
    pub sender: SessionIndex,
    /// Noise message 1: `e, es, s, ss` and the sealed [`InitiationPayload`].
    pub noise: [u8; NOISE_1_LEN],
    /// Proves that the sender knows the responder's public key.
    pub mac1: [u8; MAC_LEN],
    /// Proves that the sender owns its source address; zero without a cookie.
    pub mac2: [u8; MAC_LEN],
}

/// Second message, responder to initiator.
#[derive(Clone, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Response {
    first_byte: u8,
    /// The initiator's index.
    pub receiver: SessionIndex,
    /// The index under which the responder wants to be addressed.
    pub sender: SessionIndex,
    reserved: u8,
    /// Noise message 2: `e, ee, se, psk` and the sealed [`ResponsePayload`].
    pub noise: [u8; NOISE_2_LEN],
    /// As in [`Initiation`].
    pub mac1: [u8; MAC_LEN],
    /// As in [`Initiation`].
    pub mac2: [u8; MAC_LEN],
}

/// Sent instead of a response while under load.
#[derive(Clone, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct CookieReply {
    first_byte: u8,
    /// Sender index of the message that it answers.
    pub receiver: SessionIndex,
    /// XChaCha20-Poly1305 nonce.
    pub nonce: [u8; 24],
    /// The cookie, sealed; the mac1 of the message that it answers is the associated data.
    pub sealed_cookie: [u8; MAC_LEN + 16],
}

/// The initiator's parameters, readable by the responder alone.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct InitiationPayload {
    /// TAI64N; a responder accepts only newer ones from the same initiator.
    pub timestamp: [u8; 12],
    /// 24-bit network id; both sides must use the same.
    pub network_id: [u8; 3],
    /// Bit mask of the ciphers that the initiator allows.
    pub ciphers: u8,
    /// Which ciphers are fast for the initiator. Bit 0: it has AES and carry-less multiply
    /// instructions; bit 1: it measured AEGIS to be faster than AES-256-GCM.
    pub flags: u8,
    /// Highest data lane that the initiator sends on.
    pub lanes: u8,
    /// Largest frame that the initiator accepts, in bytes with its Ethernet header; 0: not stated.
    pub max_frame: U16,
    /// Highest data lane beside the express lanes; 0: the initiator sends on all up to the highest.
    pub bulk_lanes: u8,
    /// Sent as zero, ignored on receipt.
    pub reserved: [u8; 11],
}

/// The responder's choice, or why it refuses.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct ResponsePayload {
    /// The one cipher of the session; 0: there is none, this is a refusal.
    pub cipher: u8,
    /// Highest data lane that the responder sends on; in a refusal, the number of the reason.
    pub lanes: u8,
    /// As in [`InitiationPayload`].
    pub max_frame: U16,
    /// In a refusal because of the timestamp, the latest that the responder has accepted. Otherwise
    /// the first byte is that of [`InitiationPayload::bulk_lanes`], and the others are sent as zero
    /// and ignored on receipt.
    pub timestamp: [u8; 12],
}

impl InitiationPayload {
    /// The lanes on which the initiator sends.
    pub fn lane_set(&self) -> LaneSet {
        LaneSet {
            highest: self.lanes,
            bulk: self.bulk_lanes,
        }
    }
}

impl ResponsePayload {
    /// The lanes on which the responder sends, unless this is a refusal.
    pub fn lane_set(&self) -> LaneSet {
        LaneSet {
            highest: self.lanes,
            bulk: self.timestamp[0],
        }
    }

    /// The same with these lanes.
    #[must_use]
    pub fn with_lanes(mut self, lanes: LaneSet) -> Self {
        self.lanes = lanes.highest;
        self.timestamp[0] = lanes.bulk;
        self
    }
}

/// Bytes of an initiation.
pub const INITIATION_LEN: usize = size_must_be::<Initiation>(164);
/// Bytes of a response.
pub const RESPONSE_LEN: usize = size_must_be::<Response>(104);
/// Bytes of a cookie reply.
pub const COOKIE_REPLY_LEN: usize = size_must_be::<CookieReply>(60);

const _: () = assert!(COOKIE_REPLY_LEN <= RESPONSE_LEN && RESPONSE_LEN <= INITIATION_LEN);

impl Initiation {
    /// A message with empty macs.
    pub fn new(sender: SessionIndex, noise: [u8; NOISE_1_LEN]) -> Self {
        let first_byte = MessageType::Initiation.first_byte();
        Self {
            first_byte,
            sender,
            noise,
            mac1: [0; MAC_LEN],
            mac2: [0; MAC_LEN],
        }
    }

    /// Reads a datagram of type [`MessageType::Initiation`].
    ///
    /// # Errors
    /// [`DropReason::Truncated`] when the length is not [`INITIATION_LEN`].
    pub fn parse(datagram: &[u8]) -> Result<&Self, DropReason> {
        Self::ref_from_bytes(datagram).map_err(|_| DropReason::Truncated)
    }
}

impl Response {
    /// A message with empty macs.
    pub fn new(receiver: SessionIndex, sender: SessionIndex, noise: [u8; NOISE_2_LEN]) -> Self {
        let first_byte = MessageType::Response.first_byte();
        let (mac1, mac2) = ([0; MAC_LEN], [0; MAC_LEN]);
        Self {
            first_byte,
            receiver,
            sender,
            reserved: 0,
            noise,
            mac1,
            mac2,
        }
    }

    /// Reads a datagram of type [`MessageType::Response`].
    ///
    /// # Errors
    /// [`DropReason::Truncated`] when the length is not [`RESPONSE_LEN`].
    pub fn parse(datagram: &[u8]) -> Result<&Self, DropReason> {
        Self::ref_from_bytes(datagram).map_err(|_| DropReason::Truncated)
    }
}

impl CookieReply {
    /// A reply to the message whose sender index is `receiver`.
    pub fn new(receiver: SessionIndex, nonce: [u8; 24], sealed_cookie: [u8; MAC_LEN + 16]) -> Self {
        let first_byte = MessageType::CookieReply.first_byte();
        Self {
            first_byte,
            receiver,
            nonce,
            sealed_cookie,
        }
    }

    /// Reads a datagram of type [`MessageType::CookieReply`].
    ///
    /// # Errors
    /// [`DropReason::Truncated`] when the length is not [`COOKIE_REPLY_LEN`].
    pub fn parse(datagram: &[u8]) -> Result<&Self, DropReason> {
        Self::ref_from_bytes(datagram).map_err(|_| DropReason::Truncated)
    }
}

/// The part of a handshake message that mac1 covers, mac1, and mac2; the same for both messages.
pub(crate) struct MacFields<'a> {
    pub(crate) before_mac1: &'a [u8],
    pub(crate) before_mac2: &'a [u8],
    pub(crate) mac1: [u8; MAC_LEN],
    pub(crate) mac2: [u8; MAC_LEN],
}

impl<'a> MacFields<'a> {
    /// Splits the last 32 bytes off; `None` if the message is shorter than that.
    pub(crate) fn of(message: &'a [u8]) -> Option<Self> {
        let (before_mac2, &mac2) = message.split_last_chunk::<MAC_LEN>()?;
        let (before_mac1, &mac1) = before_mac2.split_last_chunk::<MAC_LEN>()?;
        Some(Self {
            before_mac1,
            before_mac2,
            mac1,
            mac2,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_exact_length_parses() {
        let bytes = [0_u8; INITIATION_LEN + 1];
        for len in 0..bytes.len() {
            assert_eq!(
                Initiation::parse(&bytes[..len]).is_ok(),
                len == INITIATION_LEN
            );
            assert_eq!(Response::parse(&bytes[..len]).is_ok(), len == RESPONSE_LEN);
            assert_eq!(
                CookieReply::parse(&bytes[..len]).is_ok(),
                len == COOKIE_REPLY_LEN
            );
        }
    }

    #[test]
    fn the_macs_are_the_last_bytes_of_both_messages() {
        let mut initiation = Initiation::new(SessionIndex::from_low_bits(7), [3; NOISE_1_LEN]);
        initiation.mac1 = [1; MAC_LEN];
        initiation.mac2 = [2; MAC_LEN];
        let fields = MacFields::of(initiation.as_bytes()).unwrap();
        assert_eq!((fields.mac1, fields.mac2), ([1; MAC_LEN], [2; MAC_LEN]));
        assert_eq!(fields.before_mac1.len(), INITIATION_LEN - 32);
        assert_eq!(fields.before_mac2.len(), INITIATION_LEN - 16);
    }
}
