// SPDX-License-Identifier: MIT OR Apache-2.0
//! The head of every datagram, and the header of data.

use std::hash::{Hash, Hasher};

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned, big_endian::U64};

use crate::stats::DropReason;

/// The format version that this program speaks, sent in the high nibble of the first byte.
pub const VERSION: u8 = 1;

/// Bytes of an AEAD tag.
pub const TAG_LEN: usize = 16;

/// Bytes of the header of a data datagram.
pub const DATA_HEADER_LEN: usize = size_must_be::<DataHeader>(12);

/// Bytes that every data datagram spends on header and tag.
pub const DATA_OVERHEAD: usize = DATA_HEADER_LEN + TAG_LEN;

/// The type of a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum MessageType {
    /// First handshake message.
    Initiation = 1,
    /// Second handshake message.
    Response = 2,
    /// Answer to a handshake message while under load.
    CookieReply = 3,
    /// Sealed data: the plaintext is exactly one Ethernet frame.
    Frame = 4,
    /// Sealed data: the plaintext is a sequence of [`chunk`](super::chunk)s.
    Chunks = 5,
}

impl MessageType {
    /// The first byte of a datagram of this type.
    pub(crate) const fn first_byte(self) -> u8 {
        VERSION << 4 | self as u8
    }

    /// Reads version and type from the first byte of `datagram`.
    ///
    /// # Errors
    /// [`DropReason::Truncated`] when empty, [`DropReason::UnsupportedVersion`] and
    /// [`DropReason::UnknownType`] otherwise.
    pub fn of(datagram: &[u8]) -> Result<Self, DropReason> {
        let &first = datagram.first().ok_or(DropReason::Truncated)?;
        if first >> 4 != VERSION {
            return Err(DropReason::UnsupportedVersion);
        }
        Ok(match first & 0x0f {
            1 => Self::Initiation,
            2 => Self::Response,
            3 => Self::CookieReply,
            4 => Self::Frame,
            5 => Self::Chunks,
            _ => return Err(DropReason::UnknownType),
        })
    }
}

/// A session's name on the wire: 24 bits, chosen at random by the receiver.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
    Unaligned,
)]
#[repr(transparent)]
pub struct SessionIndex([u8; 3]);

impl Hash for SessionIndex {
    /// As one number: the data threads hash one per datagram.
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u32(self.value());
    }
}

impl SessionIndex {
    /// The low 24 bits of `value`.
    pub const fn from_low_bits(value: u32) -> Self {
        let [_, a, b, c] = value.to_be_bytes();
        Self([a, b, c])
    }

    /// The index as a number.
    pub const fn value(self) -> u32 {
        u32::from_be_bytes([0, self.0[0], self.0[1], self.0[2]])
    }
}

/// The index in the head of any datagram: after type and version, three bytes.
///
/// # Errors
/// [`DropReason::Truncated`].
pub fn index_of(datagram: &[u8]) -> Result<SessionIndex, DropReason> {
    let index = datagram.get(1..4).and_then(|bytes| bytes.try_into().ok());
    index.map(SessionIndex).ok_or(DropReason::Truncated)
}

/// A lane's number: the top byte of a counter, so that lanes never share one.
///
/// Lane 0 belongs to the control thread (echoes, probes, close); data travels on lanes 1 and up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Lane(pub u8);

impl Lane {
    /// The control thread's lane.
    pub const CONTROL: Self = Self(0);
    /// The first data lane.
    pub const FIRST_DATA: Self = Self(1);
    /// The lane for flows from the device that send little.
    pub const EXPRESS: Self = Self(9);
    /// The same for frames that a hub forwards from peer to peer.
    pub const EXPRESS_ONWARD: Self = Self(10);

    /// Whether receivers hand its datagrams on ahead of others.
    pub fn is_express(self) -> bool {
        self == Self::EXPRESS || self == Self::EXPRESS_ONWARD
    }
}

/// The lanes on which a node sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LaneSet {
    /// The highest one.
    pub highest: u8,
    /// The highest one beside the express lanes; 0: every lane up to the highest is used.
    pub bulk: u8,
}

impl From<u8> for LaneSet {
    fn from(highest: u8) -> Self {
        Self { highest, bulk: 0 }
    }
}

impl LaneSet {
    /// Whether the lane is one of them; the control lane always is.
    pub fn has(self, lane: Lane) -> bool {
        let is_used = self.bulk == 0 || lane.0 <= self.bulk || lane.is_express();
        lane.0 <= self.highest && is_used
    }

    /// How many data lanes there are.
    pub fn count(self) -> u8 {
        (1..=self.highest)
            .filter(|&lane| self.has(Lane(lane)))
            .count() as u8
    }
}

/// Lane and sequence number of a data datagram, unique under a session's keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Counter(u64);

impl Counter {
    const SEQUENCE_BITS: u32 = 56;

    /// The largest sequence number that fits.
    pub const MAX_SEQUENCE: u64 = (1 << Self::SEQUENCE_BITS) - 1;

    /// Joins lane and sequence number; `sequence` is at most [`Self::MAX_SEQUENCE`].
    pub const fn new(lane: Lane, sequence: u64) -> Self {
        Self((lane.0 as u64) << Self::SEQUENCE_BITS | sequence & Self::MAX_SEQUENCE)
    }

    /// The lane.
    pub const fn lane(self) -> Lane {
        Lane((self.0 >> Self::SEQUENCE_BITS) as u8)
    }

    /// The number within the lane.
    pub const fn sequence(self) -> u64 {
        self.0 & Self::MAX_SEQUENCE
    }

    /// The 64 bits as sent.
    pub const fn value(self) -> u64 {
        self.0
    }
}

/// Header of a data datagram; authenticated, not encrypted.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct DataHeader {
    first_byte: u8,
    receiver: SessionIndex,
    counter: U64,
}

impl DataHeader {
    /// A header for a datagram of the given type ([`MessageType::Frame`] or
    /// [`MessageType::Chunks`]).
    pub fn new(message_type: MessageType, receiver: SessionIndex, counter: Counter) -> Self {
        Self {
            first_byte: message_type.first_byte(),
            receiver,
            counter: U64::new(counter.value()),
        }
    }

    /// Reads the header of a datagram whose type is known to be a data type.
    ///
    /// # Errors
    /// [`DropReason::Truncated`] when there is no room for header and tag.
    pub fn parse(datagram: &[u8]) -> Result<&Self, DropReason> {
        if datagram.len() < DATA_OVERHEAD {
            return Err(DropReason::Truncated);
        }
        Self::ref_from_prefix(datagram)
            .map(|(header, _)| header)
            .map_err(|_| DropReason::Truncated)
    }

    /// The receiver's session.
    pub fn receiver(&self) -> SessionIndex {
        self.receiver
    }

    /// Lane and sequence number.
    pub fn counter(&self) -> Counter {
        Counter(self.counter.get())
    }
}

/// `size_of::<T>()`, checked at compile time against the size in PROTOCOL.md.
pub(crate) const fn size_must_be<T>(size: usize) -> usize {
    assert!(
        size_of::<T>() == size,
        "a wire layout differs from PROTOCOL.md"
    );
    size
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_first_byte_names_version_and_type() {
        for (datagram, verdict) in [
            (&[][..], Err(DropReason::Truncated)),
            (&[0x11], Ok(MessageType::Initiation)),
            (&[0x12], Ok(MessageType::Response)),
            (&[0x13], Ok(MessageType::CookieReply)),
            (&[0x14], Ok(MessageType::Frame)),
            (&[0x15], Ok(MessageType::Chunks)),
            (&[0x10], Err(DropReason::UnknownType)),
            (&[0x16], Err(DropReason::UnknownType)),
            (&[0x01], Err(DropReason::UnsupportedVersion)),
            (&[0x24], Err(DropReason::UnsupportedVersion)),
        ] {
            assert_eq!(MessageType::of(datagram), verdict, "{datagram:02x?}");
        }
    }

    #[test]
    fn a_data_header_needs_room_for_the_tag() {
        let datagram = [0x14; DATA_OVERHEAD];
        assert!(DataHeader::parse(&datagram).is_ok());
        assert_eq!(
            DataHeader::parse(&datagram[..DATA_OVERHEAD - 1]).err(),
            Some(DropReason::Truncated)
        );
    }

    proptest! {
        #[test]
        fn parse_returns_what_was_emitted(lane: u8, sequence in 0..=Counter::MAX_SEQUENCE, index: u32) {
            let counter = Counter::new(Lane(lane), sequence);
            let index = SessionIndex::from_low_bits(index);
            let header = DataHeader::new(MessageType::Chunks, index, counter);
            let mut datagram = header.as_bytes().to_vec();
            datagram.resize(DATA_OVERHEAD, 0);
            prop_assert_eq!(MessageType::of(&datagram), Ok(MessageType::Chunks));
            let parsed = DataHeader::parse(&datagram).unwrap();
            prop_assert_eq!(parsed.receiver(), index);
            prop_assert_eq!(parsed.counter(), counter);
            prop_assert_eq!((counter.lane(), counter.sequence()), (Lane(lane), sequence));
        }
    }
}
