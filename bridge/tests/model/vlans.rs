// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a port makes of VLANs, on frames that are taken apart.

use std::collections::BTreeSet;

use patchcord_bridge::{DropReason, MacAddr, PortVlans, Tpid};

use super::vid;

/// A frame with its tags in a list.
#[derive(Clone)]
pub(crate) struct Frame {
    pub(crate) dst: MacAddr,
    pub(crate) src: MacAddr,
    /// TPID and control information, the outermost first.
    tags: Vec<(u16, u16)>,
    /// From the EtherType on, or from a last tag that is not whole.
    rest: Vec<u8>,
}

/// In which VLAN a frame is, and what it shows of that.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shown {
    pub(crate) vid: u16,
    /// Whether its outermost tag belongs to the VLAN.
    by_tag: bool,
    push_tpid: u16,
}

/// The VLANs of a port.
#[derive(Clone, Debug)]
pub(crate) enum Vlans {
    Transparent,
    Trunk(Trunk),
    Access(u16),
    Tunnel(u16, Tpid),
}

#[derive(Clone, Debug)]
pub(crate) struct Trunk {
    allowed: BTreeSet<u16>,
    native: Option<u16>,
    /// Outside, inside.
    translate: Vec<(u16, u16)>,
    /// Every VLAN it has with its numbers outside and inside.
    numbers: Vec<(u16, u16)>,
}

impl Trunk {
    pub(crate) fn new(
        allowed: BTreeSet<u16>,
        native: Option<u16>,
        translate: Vec<(u16, u16)>,
    ) -> Self {
        let mut numbers = translate.clone();
        for number in 1..4095 {
            let is_taken = |pair: &(u16, u16)| pair.0 == number || pair.1 == number;
            if !translate.iter().any(is_taken) {
                numbers.push((number, number));
            }
        }
        numbers.retain(|(_, inside)| allowed.contains(inside) || native == Some(*inside));
        Self {
            allowed,
            native,
            translate,
            numbers,
        }
    }

    fn config(&self) -> PortVlans {
        let allowed = self.allowed.iter().copied().map(vid).collect();
        let pairs = self.translate.iter().map(|&(a, b)| (vid(a), vid(b)));
        let pairs: Vec<_> = pairs.collect();
        PortVlans::trunk(allowed, self.native.map(vid), &pairs).expect("no contradiction")
    }

    fn inside(&self, number: u16) -> Option<u16> {
        let mut numbers = self.numbers.iter();
        Some(numbers.find(|(outside, _)| *outside == number)?.1)
    }

    fn outside(&self, number: u16) -> Option<u16> {
        let mut numbers = self.numbers.iter();
        Some(numbers.find(|(_, inside)| *inside == number)?.0)
    }
}

impl Frame {
    /// A frame with its addresses, its outermost tag if it has one, and an EtherType.
    pub(crate) fn parse(bytes: &[u8]) -> Option<Self> {
        let dst = MacAddr(bytes.get(..6)?.try_into().ok()?);
        let src = MacAddr(bytes.get(6..12)?.try_into().ok()?);
        let (mut tags, mut rest) = (Vec::new(), &bytes[12..]);
        while let &[high, low, ref behind @ ..] = rest {
            let tpid = u16::from_be_bytes([high, low]);
            let [tci_high, tci_low, _, _, ..] = behind else {
                break;
            };
            if tpid != 0x8100 && tpid != 0x88a8 {
                break;
            }
            tags.push((tpid, u16::from_be_bytes([*tci_high, *tci_low])));
            rest = &behind[2..];
        }
        let is_cut = matches!(rest, [0x81, 0x00, ..] | [0x88, 0xa8, ..]);
        if rest.len() < 2 || (tags.is_empty() && is_cut) {
            return None;
        }
        Some(Self {
            dst,
            src,
            tags,
            rest: rest.to_vec(),
        })
    }

    fn emit(&self) -> Vec<u8> {
        let mut bytes = [self.dst.0, self.src.0].concat();
        for (tpid, tci) in &self.tags {
            bytes.extend_from_slice(&tpid.to_be_bytes());
            bytes.extend_from_slice(&tci.to_be_bytes());
        }
        bytes.extend_from_slice(&self.rest);
        bytes
    }

    /// How many tags it has, whole or not.
    fn count_tags(&self) -> usize {
        let is_cut = matches!(self.rest[..], [0x81, 0x00, ..] | [0x88, 0xa8, ..]);
        self.tags.len() + usize::from(is_cut)
    }
}

impl Vlans {
    pub(crate) fn config(&self) -> PortVlans {
        match self {
            Self::Transparent => PortVlans::transparent(),
            Self::Access(number) => PortVlans::access(vid(*number)).expect("assignable"),
            Self::Tunnel(number, tpid) => {
                PortVlans::tunnel(vid(*number), *tpid).expect("assignable")
            }
            Self::Trunk(trunk) => trunk.config(),
        }
    }

    pub(crate) fn enter(&self, frame: &Frame) -> Result<Shown, DropReason> {
        let number = frame.tags.first().map_or(0, |(_, tci)| tci & 0x0fff);
        let in_vlan = |vid| Shown {
            vid,
            by_tag: !frame.tags.is_empty(),
            push_tpid: 0x8100,
        };
        match self {
            Self::Transparent => Ok(in_vlan(number)),
            Self::Access(own) if number == 0 => Ok(in_vlan(*own)),
            Self::Access(_) => Err(DropReason::TaggedRefused),
            Self::Tunnel(own, tpid) => Ok(Shown {
                vid: *own,
                by_tag: false,
                push_tpid: tpid.ether_type(),
            }),
            Self::Trunk(trunk) if number == 0 => {
                let native = trunk.native.map(in_vlan);
                native.ok_or(DropReason::UntaggedRefused)
            }
            Self::Trunk(trunk) => {
                let inside = trunk.inside(number).map(in_vlan);
                inside.ok_or(DropReason::VlanRefused)
            }
        }
    }

    /// The frame as it leaves, if it does.
    pub(crate) fn leave(&self, frame: &Frame, shown: Shown) -> Option<Vec<u8>> {
        let has_more = frame.count_tags() > usize::from(shown.by_tag);
        let number = match self {
            Self::Transparent => shown.vid,
            Self::Access(own) => {
                if *own != shown.vid || has_more {
                    return None;
                }
                0
            }
            Self::Tunnel(own, _) => {
                if *own != shown.vid {
                    return None;
                }
                0
            }
            Self::Trunk(trunk) if trunk.native == Some(shown.vid) && !has_more => 0,
            Self::Trunk(trunk) => trunk.outside(shown.vid)?,
        };
        Some(tagged(frame.clone(), shown, number).emit())
    }
}

/// The frame with `number` in the tag that shows its VLAN; 0 for none.
fn tagged(mut frame: Frame, shown: Shown, number: u16) -> Frame {
    if !shown.by_tag {
        if number != 0 {
            frame.tags.insert(0, (shown.push_tpid, number));
        }
        return frame;
    }
    let tci = frame.tags[0].1;
    if number == 0 && tci & 0x0fff != 0 {
        frame.tags.remove(0);
    } else {
        frame.tags[0].1 = tci & 0xf000 | number;
    }
    frame
}
