// SPDX-License-Identifier: MIT OR Apache-2.0
//! The part of an Ethernet header that a switch decides by. A view only: frames are never altered.
//!
//! ```text
//!  0      6     12     14     16            18
//!  | dst  | src  | type | payload                        untagged
//!  | dst  | src  | TPID | TCI  | type        | payload   tagged; TPID is 8100 or 88a8
//! ```

use crate::forward::DropReason;
use crate::mac::MacAddr;
use crate::vlan::Vid;

/// What a switch reads of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    /// Destination.
    pub dst: MacAddr,
    /// Source.
    pub src: MacAddr,
    /// VLAN of the outermost tag, [`Vid::UNTAGGED`] without one.
    pub vid: Vid,
}

impl FrameHeader {
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
        let vid = match u16::from_be_bytes(ether_type) {
            TPID_C_TAG | TPID_S_TAG => Self::parse_tag(rest)?,
            _ => Vid::UNTAGGED,
        };
        Ok(Self {
            dst: MacAddr(dst),
            src: MacAddr(src),
            vid,
        })
    }

    fn parse_tag(tag: &[u8]) -> Result<Vid, DropReason> {
        let (tci, rest) = take(tag)?;
        // A tag is whole only with the EtherType that follows it.
        let _: ([u8; 2], _) = take(rest)?;
        Ok(Vid::from_tci(u16::from_be_bytes(tci)))
    }
}

/// Customer tag, IEEE 802.1Q.
const TPID_C_TAG: u16 = 0x8100;
/// Service tag, IEEE 802.1ad.
const TPID_S_TAG: u16 = 0x88a8;

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
        for (name, after_addresses, vid) in [
            ("IPv4, untagged", &[0x08, 0x00, 0x45][..], 0),
            (
                "802.3 length instead of a type",
                &[0x00, 0x26, 0x42, 0x42, 0x03],
                0,
            ),
            ("an EtherType nobody knows", &[0x88, 0xb5], 0),
            ("802.1Q", &[0x81, 0x00, 0x00, 0x64, 0x08, 0x00], 100),
            (
                "802.1Q with priority and DEI",
                &[0x81, 0x00, 0xf0, 0x64, 0x08, 0x00],
                100,
            ),
            (
                "802.1Q, VID 0: a priority and no VLAN",
                &[0x81, 0x00, 0xe0, 0x00, 0x08, 0x00],
                0,
            ),
            (
                "802.1Q, highest VID",
                &[0x81, 0x00, 0x0f, 0xff, 0x08, 0x00],
                4095,
            ),
            ("802.1ad", &[0x88, 0xa8, 0x00, 0xc8, 0x08, 0x00], 200),
            (
                "QinQ",
                &[0x88, 0xa8, 0, 200, 0x81, 0x00, 0, 100, 0x08, 0x00],
                200,
            ),
            (
                "QinQ, both tags 8100",
                &[0x81, 0x00, 0, 200, 0x81, 0x00, 0, 100, 0x08, 0x00],
                200,
            ),
            (
                "9100, a vendor's tag, is an EtherType",
                &[0x91, 0x00, 0x00, 0x64, 0x08, 0x00],
                0,
            ),
        ] {
            let header = FrameHeader {
                dst: DST,
                src: SRC,
                vid: Vid::new(vid).unwrap(),
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
