// SPDX-License-Identifier: MIT OR Apache-2.0
//! A frame's headers, parsed once for all users. A view: it alters nothing.
//!
//! ```text
//!  0      6     12     14     16            18
//!  | dst  | src  | type | payload                        untagged
//!  | dst  | src  | TPID | TCI  | type        | payload   tagged; TPID is 8100 or 88a8
//! ```

use core::ops::Deref;

use crate::drop_reason::DropReason;
use crate::ether_type;
use crate::mac::MacAddr;
use crate::vlan::{Inside, Tag, Tpid, Vid};

/// Bytes of both addresses. The first tag follows, or the EtherType.
pub const ADDRESSES_LEN: usize = 2 * size_of::<MacAddr>();
/// Bytes of the header of a frame without a tag.
const UNTAGGED_LEN: usize = ADDRESSES_LEN + 2;
/// Bytes of a tag.
pub const TAG_LEN: usize = 4;
/// Bytes of the shortest frame, without its frame check sequence: IEEE 802.3 section 4.4.2.
pub const MIN_FRAME_LEN: usize = 60;

/// How many tags a guard looks behind to see what a frame carries. Some hosts strip any number of
/// tags with VID 0, so a deeper stack reaches them and must not pass unseen.
const MAX_TAGS: u8 = 3;

/// What a frame's headers say behind the addresses: the outermost tag, and the EtherType behind all
/// tags.
///
/// Parsed once, it stays valid until the frame's tags change, even if the payload changes or the
/// frame is cut behind its headers. It borrows nothing; [`Fields::of`] makes a view of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fields {
    /// The outermost tag. It names the VLAN of the frame.
    pub tag: Tag,
    /// Whether another tag follows it.
    pub is_nested: bool,
    /// How many tags there are, up to [`MAX_TAGS`].
    tags: u8,
    /// What follows them: an EtherType, a length, or the EtherType of yet another tag. `None` if
    /// the frame ends there.
    ether_type: Option<u16>,
}

/// The headers of a frame, and its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Headers<'a> {
    frame: &'a [u8],
    addresses: &'a [u8; ADDRESSES_LEN],
    fields: Fields,
}

/// Where the network header of a frame is, and of which kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    /// The EtherType, or a length in its place.
    pub ether_type: u16,
    /// Bytes in front of the network header.
    pub at: usize,
}

/// What follows the tags of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Payload<'a> {
    /// An EtherType, and the bytes that it describes.
    Typed(u16, &'a [u8]),
    /// An LLC header, behind a length: IEEE 802.3.
    Llc(&'a [u8]),
    /// The frame has more tags than this switch parses.
    TooManyTags,
}

impl Fields {
    /// Reads the headers at the start of `frame`.
    ///
    /// # Errors
    /// [`DropReason::Runt`] if the frame ends before its header or its outermost tag does.
    #[inline]
    pub fn parse(frame: &[u8]) -> Result<Self, DropReason> {
        let (start, rest) = frame
            .split_first_chunk::<UNTAGGED_LEN>()
            .ok_or(DropReason::Runt)?;
        let [.., high, low] = *start;
        let ether_type = u16::from_be_bytes([high, low]);
        let tags = match Tpid::from_ether_type(ether_type) {
            None => Tags::none(ether_type),
            Some(tpid) => Tags::parse(tpid, rest)?,
        };
        Ok(Self {
            tag: tags.outermost,
            is_nested: tags.is_nested,
            tags: tags.count,
            ether_type: tags.ether_type,
        })
    }

    /// The view of these fields over the bytes of the frame that they were parsed from.
    #[inline]
    pub const fn of(self, frame: &[u8]) -> Headers<'_> {
        // Never of fewer bytes than were parsed.
        let addresses = match frame.first_chunk() {
            Some(addresses) => addresses,
            None => &[0; ADDRESSES_LEN],
        };
        Headers {
            frame,
            addresses,
            fields: self,
        }
    }

    /// VLAN of the outermost tag, [`Vid::UNTAGGED`] without one.
    #[inline]
    pub const fn vid(&self) -> Vid {
        self.tag.vid()
    }

    /// The frame within the switch: the ingress port goes by its outermost tag.
    pub(crate) const fn inside(&self, vid: Vid) -> Inside {
        Inside {
            tag: self.tag,
            is_nested: self.is_nested,
            ..Inside::untagged(vid)
        }
    }

    /// The offset at which the tags end.
    #[inline]
    fn payload_at(&self) -> usize {
        ADDRESSES_LEN + usize::from(self.tags) * TAG_LEN + 2
    }
}

/// The tags of a frame, and what follows them.
struct Tags {
    outermost: Tag,
    is_nested: bool,
    count: u8,
    ether_type: Option<u16>,
}

impl Tags {
    const fn none(ether_type: u16) -> Self {
        Self {
            outermost: Tag::None,
            is_nested: false,
            count: 0,
            ether_type: Some(ether_type),
        }
    }

    /// `rest` begins with the control information of the outermost tag.
    fn parse(tpid: Tpid, rest: &[u8]) -> Result<Self, DropReason> {
        let (tci, rest) = take(rest)?;
        // A tag is whole only with the EtherType that follows it.
        let (next, _) = take(rest)?;
        let mut ether_type = Some(u16::from_be_bytes(next));
        let is_nested = is_tag(ether_type);
        let (mut count, mut at) = (1, 0);
        while count < MAX_TAGS && is_tag(ether_type) {
            (count, at) = (count + 1, at + TAG_LEN);
            ether_type = word(rest, at);
        }
        Ok(Self {
            outermost: Tag::new(tpid, u16::from_be_bytes(tci)),
            is_nested,
            count,
            ether_type,
        })
    }
}

impl<'a> Headers<'a> {
    /// [`Fields::parse`], with the bytes.
    ///
    /// # Errors
    /// [`DropReason::Runt`] if the frame ends before its header or its outermost tag does.
    #[inline]
    pub fn parse(frame: &'a [u8]) -> Result<Self, DropReason> {
        Fields::parse(frame).map(|fields| fields.of(frame))
    }

    /// Destination. Read from the frame each time: a stored copy that is read back at once in other
    /// units costs ten nanoseconds.
    #[inline]
    pub const fn dst(&self) -> MacAddr {
        let [d0, d1, d2, d3, d4, d5, ..] = *self.addresses;
        MacAddr([d0, d1, d2, d3, d4, d5])
    }

    /// Source.
    #[inline]
    pub const fn src(&self) -> MacAddr {
        let [.., s0, s1, s2, s3, s4, s5] = *self.addresses;
        MacAddr([s0, s1, s2, s3, s4, s5])
    }

    /// The bytes.
    #[inline]
    pub const fn frame(&self) -> &'a [u8] {
        self.frame
    }

    /// What follows the tags; `None` if the frame ends within them.
    pub fn payload(&self) -> Option<Payload<'a>> {
        let ether_type = self.ether_type?;
        let payload = self.frame.get(self.payload_at()..)?;
        Some(match ether_type {
            tag if is_tag(Some(tag)) => {
                payload.get(2..)?;
                Payload::TooManyTags
            }
            length if length < ether_type::MIN => Payload::Llc(payload),
            ether_type => Payload::Typed(ether_type, payload),
        })
    }

    /// The position of the network header, behind four tags at most: as many as a super-frame may
    /// have. `None` behind more, or if the frame ends within them.
    #[inline]
    pub fn network(&self) -> Option<Network> {
        let (ether_type, at) = (self.ether_type?, self.payload_at());
        if !is_tag(Some(ether_type)) {
            return Some(Network { ether_type, at });
        }
        let ether_type = word(self.frame, at + 2).filter(|&next| !is_tag(Some(next)))?;
        let at = at + TAG_LEN;
        Some(Network { ether_type, at })
    }

    /// The tags, and the EtherType in front of `payload`, which is this frame's payload.
    pub(crate) fn tags_and_type(&self, payload: &[u8]) -> Option<&'a [u8]> {
        let end = self.frame.len().checked_sub(payload.len())?;
        self.frame.get(ADDRESSES_LEN..end)
    }
}

impl Deref for Headers<'_> {
    type Target = Fields;

    #[inline]
    fn deref(&self) -> &Fields {
        &self.fields
    }
}

#[inline]
fn is_tag(ether_type: Option<u16>) -> bool {
    ether_type.is_some_and(|ether_type| Tpid::from_ether_type(ether_type).is_some())
}

#[inline]
fn word(bytes: &[u8], at: usize) -> Option<u16> {
    let bytes = bytes.get(at..at + 2)?;
    Some(u16::from_be_bytes([bytes[0], bytes[1]]))
}

fn take<const N: usize>(bytes: &[u8]) -> Result<([u8; N], &[u8]), DropReason> {
    let (field, rest) = bytes.split_first_chunk().ok_or(DropReason::Runt)?;
    Ok((*field, rest))
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use super::*;

    const DST: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
    const SRC: MacAddr = MacAddr([2, 0, 0, 0, 0, 2]);

    #[test]
    fn the_outermost_tag_names_the_vlan() {
        const C: Tpid = Tpid::Customer;
        const S: Tpid = Tpid::Service;
        for (name, after_addresses, vid, tag, is_nested) in [
            (
                "IPv4, untagged",
                &[0x08, 0x00, 0x45][..],
                0,
                Tag::None,
                false,
            ),
            (
                "802.3 length instead of a type",
                &[0x00, 0x26, 0x42, 0x42, 0x03],
                0,
                Tag::None,
                false,
            ),
            (
                "an EtherType nobody knows",
                &[0x88, 0xb5],
                0,
                Tag::None,
                false,
            ),
            (
                "802.1Q",
                &[0x81, 0x00, 0x00, 0x64, 0x08, 0x00],
                100,
                Tag::new(C, 100),
                false,
            ),
            (
                "802.1Q with priority and DEI",
                &[0x81, 0x00, 0xf0, 0x64, 0x08, 0x00],
                100,
                Tag::new(C, 0xf064),
                false,
            ),
            (
                "802.1Q, VID 0: a priority and no VLAN",
                &[0x81, 0x00, 0xe0, 0x00, 0x08, 0x00],
                0,
                Tag::Priority {
                    tpid: C,
                    tci: 0xe000,
                },
                false,
            ),
            (
                "802.1Q, highest VID",
                &[0x81, 0x00, 0x0f, 0xff, 0x08, 0x00],
                4095,
                Tag::new(C, 4095),
                false,
            ),
            (
                "802.1ad",
                &[0x88, 0xa8, 0x00, 0xc8, 0x08, 0x00],
                200,
                Tag::new(S, 200),
                false,
            ),
            (
                "QinQ",
                &[0x88, 0xa8, 0, 200, 0x81, 0x00, 0, 100, 0x08, 0x00],
                200,
                Tag::Vlan { tpid: S, tci: 200 },
                true,
            ),
            (
                "QinQ, both tags 8100",
                &[0x81, 0x00, 0, 200, 0x81, 0x00, 0, 100, 0x08, 0x00],
                200,
                Tag::new(C, 200),
                true,
            ),
            (
                "9100, a vendor's tag, is an EtherType",
                &[0x91, 0x00, 0x00, 0x64, 0x08, 0x00],
                0,
                Tag::None,
                false,
            ),
        ] {
            let frame = frame(after_addresses);
            let headers = Headers::parse(&frame).unwrap();
            assert_eq!((headers.dst(), headers.src()), (DST, SRC), "{name}");
            assert_eq!((headers.tag, headers.is_nested), (tag, is_nested), "{name}");
            assert_eq!(headers.vid(), Vid::new(vid).unwrap(), "{name}");
        }
    }

    #[test]
    fn a_header_cut_short_is_a_runt() {
        for (name, after_addresses, whole) in [
            ("untagged", &[0x08, 0x00][..], 14),
            ("802.1Q", &[0x81, 0x00, 0x00, 0x64, 0x08, 0x00], 18),
            ("802.1ad", &[0x88, 0xa8, 0x00, 0x64, 0x08, 0x00], 18),
            (
                "QinQ: the inner tag is payload",
                &[0x88, 0xa8, 0, 1, 0x81, 0x00, 0, 2, 8, 0],
                18,
            ),
        ] {
            let frame = frame(after_addresses);
            for len in 0..=frame.len() {
                let runt = Headers::parse(&frame[..len]) == Err(DropReason::Runt);
                assert_eq!(runt, len < whole, "{name}, {len} bytes");
            }
        }
    }

    #[test]
    fn the_payload_is_behind_all_tags() {
        use Payload::{Llc, TooManyTags, Typed};
        const TAG: [u8; 4] = [0x81, 0, 0, 7];
        const LLC: &[u8] = &[0x42, 0x42, 3];
        for (tags, behind, payload) in [
            (0, &[8, 0, 0x45][..], Some(Typed(0x0800, &[0x45]))),
            (3, &[8, 0, 0x45], Some(Typed(0x0800, &[0x45]))),
            (3, &[0x06, 0, 1], Some(Typed(0x0600, &[1]))),
            (3, &[0x05, 0xff, 0x42, 0x42, 3], Some(Llc(LLC))),
            (4, &[8, 0, 0x45], Some(TooManyTags)),
            (4, &[], Some(TooManyTags)),
            (3, &[0x81, 0, 0], None),
            (3, &[8], None),
            (1, &[0x91, 0, 0, 7], Some(Typed(0x9100, &[0, 7]))),
        ] {
            let frame = frame(&[&TAG.repeat(tags), behind].concat());
            let headers = Headers::parse(&frame).unwrap();
            assert_eq!(headers.payload(), payload, "{tags} tags, {behind:x?}");
        }
    }

    #[test]
    fn a_network_header_is_behind_four_tags_at_most() {
        for (tags, behind, network) in [
            (0, &[0x86, 0xdd][..], Some((0x86dd, 14))),
            (0, &[0, 3], Some((3, 14))),
            (1, &[8, 0, 0x45], Some((0x0800, 18))),
            (3, &[8, 0], Some((0x0800, 26))),
            (4, &[8, 0], Some((0x0800, 30))),
            (5, &[8, 0], None),
            (4, &[8], None),
            (4, &[], None),
            (2, &[8], None),
        ] {
            let tags_of = |tpid: [u8; 2]| [tpid[0], tpid[1], 0, 7].repeat(tags);
            for tpid in [[0x81, 0], [0x88, 0xa8]] {
                let frame = frame(&[&tags_of(tpid), behind].concat());
                let headers = Headers::parse(&frame).unwrap();
                let seen = headers.network().map(|it| (it.ether_type, it.at));
                assert_eq!(seen, network, "{tags} tags, {behind:x?}");
            }
        }
    }

    fn frame(after_addresses: &[u8]) -> Vec<u8> {
        [&DST.0, &SRC.0, after_addresses].concat()
    }
}
