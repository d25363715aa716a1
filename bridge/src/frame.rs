// SPDX-License-Identifier: MIT OR Apache-2.0
//! The part of an Ethernet header that a switch decides by. A view only: frames are never altered.
//!
//! ```text
//!  0      6     12     14     16            18
//!  | dst  | src  | type | payload                        untagged
//!  | dst  | src  | TPID | TCI  | type        | payload   tagged; TPID is 8100 or 88a8
//! ```

use crate::drop_reason::DropReason;
use crate::mac::MacAddr;
use crate::vlan::{Inside, Tag, Tpid, Vid};

/// What a switch reads of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    /// Destination.
    pub dst: MacAddr,
    /// Source.
    pub src: MacAddr,
    /// VLAN of the outermost tag, [`Vid::UNTAGGED`] without one.
    pub vid: Vid,
    /// The outermost tag.
    pub tag: Tag,
    /// Whether another tag follows it.
    pub is_nested: bool,
}

impl FrameHeader {
    /// The bytes of both addresses; the first tag or the EtherType follows.
    pub const ADDRESSES: usize = 12;

    /// Reads the header at the start of `frame`.
    ///
    /// Inner tags are payload: the outermost one says which VLAN the frame is in.
    ///
    /// # Errors
    /// [`DropReason::Runt`] if the frame ends before its header or its tag does.
    pub fn parse(frame: &[u8]) -> Result<Self, DropReason> {
        let (dst, rest) = take(frame)?;
        let (src, rest) = take(rest)?;
        let (ether_type, rest) = take(rest)?;
        let (tag, is_nested) = match Tpid::from_ether_type(u16::from_be_bytes(ether_type)) {
            Some(tpid) => Self::parse_tag(tpid, rest)?,
            None => (Tag::None, false),
        };
        Ok(Self {
            dst: MacAddr(dst),
            src: MacAddr(src),
            vid: tag.vid(),
            tag,
            is_nested,
        })
    }

    /// The frame within the switch, where its outermost tag is the one that its port goes by.
    pub(crate) const fn inside(&self, vid: Vid) -> Inside {
        Inside {
            tag: self.tag,
            is_nested: self.is_nested,
            ..Inside::untagged(vid)
        }
    }

    fn parse_tag(tpid: Tpid, tag: &[u8]) -> Result<(Tag, bool), DropReason> {
        let (tci, rest) = take(tag)?;
        // A tag is whole only with the EtherType that follows it.
        let (next, _) = take(rest)?;
        let is_nested = Tpid::from_ether_type(u16::from_be_bytes(next)).is_some();
        Ok((Tag::new(tpid, u16::from_be_bytes(tci)), is_nested))
    }
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
            let header = FrameHeader {
                dst: DST,
                src: SRC,
                vid: Vid::new(vid).unwrap(),
                tag,
                is_nested,
            };
            assert_eq!(
                FrameHeader::parse(&frame(after_addresses)),
                Ok(header),
                "{name}"
            );
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
                let runt = FrameHeader::parse(&frame[..len]) == Err(DropReason::Runt);
                assert_eq!(runt, len < whole, "{name}, {len} bytes");
            }
        }
    }

    fn frame(after_addresses: &[u8]) -> Vec<u8> {
        [&DST.0, &SRC.0, after_addresses].concat()
    }
}
