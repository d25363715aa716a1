// SPDX-License-Identifier: MIT OR Apache-2.0
//! The VLANs of a port, and the form of frames there.
//!
//! ```text
//!              takes                              gives
//!  transparent every frame, VLAN of its tag       every frame, tagged unless in VLAN 0
//!  trunk       allowed VLANs; untagged: native    the same; native untagged
//!  access      untagged and priority-tagged       its VLAN, untagged
//!  tunnel      every frame, tags are payload      its VLAN, as the far customer sent it
//! ```
//!
//! The constructors refuse a configuration that makes no sense. Called by
//! [`Switch`](crate::Switch), once as a frame arrives and once for each port by which it leaves.

use alloc::boxed::Box;
use core::error::Error;
use core::fmt;

use crate::drop_reason::DropReason;
use crate::ethernet::Headers;
use crate::vlan::{Inside, Tag, TagEdit, Tpid, Vid, VidSet};

/// The VLANs of a port, and its treatment of tags.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PortVlans(Mode);

#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum Mode {
    #[default]
    Transparent,
    Trunk(Box<Trunk>),
    Access(Vid),
    Tunnel {
        vid: Vid,
        tpid: Tpid,
    },
}

impl PortVlans {
    /// Every frame unchanged, in the VLAN of its outermost tag: the default.
    pub const fn transparent() -> Self {
        Self(Mode::Transparent)
    }

    /// Tagged frames of the `allowed` VLANs; untagged and priority-tagged ones are in `native`, or
    /// refused without it. [`Vid::UNTAGGED`] as native leaves them untagged.
    ///
    /// `translate` holds pairs of a VLAN's number outside and inside. All other numbers are the
    /// same on both sides, unless a pair has taken them: with (10, 110), a frame that is tagged 110
    /// outside, or is in VLAN 10 inside, has no number on the other side and does not pass.
    /// `allowed` and `native` are numbers inside.
    ///
    /// # Errors
    /// If a number is reserved, a pair contradicts another or has no use, or nothing can pass.
    pub fn trunk(
        allowed: VidSet,
        native: Option<Vid>,
        translate: &[(Vid, Vid)],
    ) -> Result<Self, VlanError> {
        allowed.iter().try_for_each(assignable)?;
        native.map_or(Ok(()), assignable_or_untagged)?;
        if allowed.is_empty() && native.is_none() {
            return Err(VlanError::Empty);
        }
        let translation = Translation::new(translate)?;
        for &(_, inside) in translate {
            if !allowed.contains(inside) && native != Some(inside) {
                return Err(VlanError::TranslatedInVain { inside });
            }
        }
        Ok(Self(Mode::Trunk(Box::new(Trunk {
            allowed,
            native,
            translation,
        }))))
    }

    /// Untagged and priority-tagged frames, all of VLAN `vid`; a tag is refused, even one of `vid`.
    /// [`Vid::UNTAGGED`] is the VLAN of the untagged frames of transparent ports.
    ///
    /// # Errors
    /// If the number is reserved.
    pub fn access(vid: Vid) -> Result<Self, VlanError> {
        assignable_or_untagged(vid)?;
        Ok(Self(Mode::Access(vid)))
    }

    /// Every frame, with whatever tags, in VLAN `vid`: its own tags are payload, and ports that tag
    /// put another one in front of them (QinQ; IEEE 802.1Q, clause 15). Its `tpid` is
    /// [`Tpid::Service`] unless the devices behind those ports know only the other.
    ///
    /// # Errors
    /// If the number is reserved.
    pub fn tunnel(vid: Vid, tpid: Tpid) -> Result<Self, VlanError> {
        assignable(vid)?;
        Ok(Self(Mode::Tunnel { vid, tpid }))
    }

    /// Whether frames of the VLAN, by its number inside, enter and leave here.
    pub fn has(&self, vid: Vid) -> bool {
        match &self.0 {
            Mode::Transparent => vid == Vid::UNTAGGED || vid.is_assignable(),
            Mode::Trunk(trunk) => trunk.allowed.contains(vid) || trunk.native == Some(vid),
            Mode::Access(own) | Mode::Tunnel { vid: own, .. } => *own == vid,
        }
    }

    /// The VLAN of the frames that are untagged here, if they pass.
    pub fn untagged_vid(&self) -> Option<Vid> {
        match &self.0 {
            Mode::Transparent => Some(Vid::UNTAGGED),
            Mode::Trunk(trunk) => trunk.native,
            Mode::Access(vid) | Mode::Tunnel { vid, .. } => Some(*vid),
        }
    }

    /// Whether it is a [`Self::trunk`].
    pub const fn is_trunk(&self) -> bool {
        matches!(self.0, Mode::Trunk(_))
    }

    /// The VLAN of a tunnel, [`Self::tunnel`].
    pub const fn as_tunnel(&self) -> Option<Vid> {
        match self.0 {
            Mode::Tunnel { vid, .. } => Some(vid),
            _ => None,
        }
    }

    /// Whether frames pass unchanged.
    pub const fn is_transparent(&self) -> bool {
        matches!(self.0, Mode::Transparent)
    }

    /// The VLAN in which a frame enters.
    #[inline]
    pub(crate) fn classify(&self, headers: &Headers<'_>) -> Result<Inside, DropReason> {
        match (&self.0, headers.tag) {
            (Mode::Transparent, _) => Ok(headers.inside(headers.vid())),
            (Mode::Access(_), Tag::Vlan { .. }) => Err(DropReason::TaggedRefused),
            (Mode::Access(vid), _) => Ok(headers.inside(*vid)),
            (Mode::Tunnel { vid, tpid }, tag) => Ok(Inside {
                push_tpid: *tpid,
                is_nested: tag != Tag::None,
                ..Inside::untagged(*vid)
            }),
            (Mode::Trunk(trunk), tag) => trunk.classify(tag).map(|vid| headers.inside(vid)),
        }
    }

    /// Decides how to edit a frame's tag as it leaves.
    pub(crate) fn leave(&self, inside: &Inside) -> Result<TagEdit, DropReason> {
        let outside = match &self.0 {
            Mode::Transparent if inside.vid == Vid::UNTAGGED => None,
            Mode::Transparent => Some(inside.vid),
            Mode::Tunnel { vid, .. } if *vid == inside.vid => None,
            // An access port promises untagged frames, and this frame has a tag beneath the one
            // that would be removed.
            Mode::Access(vid) if *vid == inside.vid && !inside.is_nested => None,
            Mode::Access(_) | Mode::Tunnel { .. } => return Err(DropReason::VlanRefused),
            Mode::Trunk(trunk) => trunk.outside(inside)?,
        };
        Ok(inside.edit(outside))
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Trunk {
    allowed: VidSet,
    native: Option<Vid>,
    translation: Translation,
}

impl Trunk {
    fn classify(&self, tag: Tag) -> Result<Vid, DropReason> {
        let Tag::Vlan { .. } = tag else {
            return self.native.ok_or(DropReason::UntaggedRefused);
        };
        self.translation
            .inside(tag.vid())
            .filter(|&vid| self.has(vid))
            .ok_or(DropReason::VlanRefused)
    }

    /// The number with which a frame leaves; none in the native VLAN.
    fn outside(&self, inside: &Inside) -> Result<Option<Vid>, DropReason> {
        // A frame with a further tag keeps one of its own: without it, it would enter the VLAN of
        // the inner tag, the oldest form of VLAN hopping.
        if self.native == Some(inside.vid) && !inside.is_nested {
            return Ok(None);
        }
        self.translation
            .outside(inside.vid)
            .filter(|_| self.has(inside.vid))
            .map(Some)
            .ok_or(DropReason::VlanRefused)
    }

    /// Whether tagged frames of this VLAN pass.
    fn has(&self, vid: Vid) -> bool {
        self.allowed.contains(vid) || (vid.is_assignable() && self.native == Some(vid))
    }
}

/// Numbers that differ between outside and inside; each number once per side, so that translation
/// is reversible.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Translation {
    /// (outside, inside), by outside.
    inward: Box<[(Vid, Vid)]>,
    /// (inside, outside), by inside.
    outward: Box<[(Vid, Vid)]>,
}

impl Translation {
    fn new(pairs: &[(Vid, Vid)]) -> Result<Self, VlanError> {
        let (mut outsides, mut insides) = (VidSet::EMPTY, VidSet::EMPTY);
        for &(outside, inside) in pairs {
            assignable(outside)?;
            assignable(inside)?;
            if !outsides.insert(outside) {
                return Err(VlanError::OutsideTwice { outside });
            }
            if !insides.insert(inside) {
                return Err(VlanError::InsideTwice { inside });
            }
        }
        let mut inward: Box<[_]> = pairs.into();
        let mut outward: Box<[_]> = pairs.iter().map(|&(out, inside)| (inside, out)).collect();
        inward.sort_unstable();
        outward.sort_unstable();
        Ok(Self { inward, outward })
    }

    fn inside(&self, outside: Vid) -> Option<Vid> {
        translated(&self.inward, &self.outward, outside)
    }

    fn outside(&self, inside: Vid) -> Option<Vid> {
        translated(&self.outward, &self.inward, inside)
    }
}

/// The other number of `vid`: the same if no pair names it, and none if a pair has taken that.
fn translated(forth: &[(Vid, Vid)], back: &[(Vid, Vid)], vid: Vid) -> Option<Vid> {
    find(forth, vid).or_else(|| find(back, vid).is_none().then_some(vid))
}

fn find(pairs: &[(Vid, Vid)], vid: Vid) -> Option<Vid> {
    let at = pairs.binary_search_by_key(&vid, |&(from, _)| from).ok()?;
    Some(pairs[at].1)
}

fn assignable(vid: Vid) -> Result<(), VlanError> {
    vid.is_assignable()
        .then_some(())
        .ok_or(VlanError::Reserved { vid })
}

fn assignable_or_untagged(vid: Vid) -> Result<(), VlanError> {
    if vid == Vid::UNTAGGED {
        Ok(())
    } else {
        assignable(vid)
    }
}

/// Why a port cannot have these VLANs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum VlanError {
    /// The number is 0 or 4095, which name no VLAN.
    Reserved {
        /// The number.
        vid: Vid,
    },
    /// A trunk without a VLAN.
    Empty,
    /// Two pairs of a translation begin with the same number.
    OutsideTwice {
        /// The number.
        outside: Vid,
    },
    /// Two pairs of a translation end with the same number.
    InsideTwice {
        /// The number.
        inside: Vid,
    },
    /// A translation into a VLAN that the trunk does not allow.
    TranslatedInVain {
        /// Its number inside.
        inside: Vid,
    },
}

impl fmt::Display for VlanError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Reserved { vid } => write!(out, "VLAN {vid} is reserved: use 1 to 4094"),
            Self::Empty => write!(out, "no VLAN is allowed and none is native"),
            Self::OutsideTwice { outside } => {
                write!(out, "VLAN {outside} outside is translated twice")
            }
            Self::InsideTwice { inside } => {
                write!(out, "two VLANs are translated to {inside} inside")
            }
            Self::TranslatedInVain { inside } => {
                write!(out, "VLAN {inside} is translated to but not allowed")
            }
        }
    }
}

impl Error for VlanError {}

#[cfg(test)]
mod tests {
    use std::string::ToString;
    use std::vec::Vec;

    use super::DropReason::{TaggedRefused, UntaggedRefused, VlanRefused};
    use super::VlanError::{Empty, InsideTwice, OutsideTwice, Reserved, TranslatedInVain};
    use super::*;

    const UNTAGGED: &[u8] = &[8, 0];
    const PRIORITY: &[u8] = &[0x81, 0, 0xe0, 0, 8, 0];
    const IN_10: &[u8] = &[0x81, 0, 0xf0, 10, 8, 0];
    const IN_20: &[u8] = &[0x81, 0, 0, 20, 8, 0];
    const IN_110: &[u8] = &[0x81, 0, 0, 110, 8, 0];
    const SERVICE_10: &[u8] = &[0x88, 0xa8, 0, 10, 8, 0];
    const QINQ: &[u8] = &[0x88, 0xa8, 0, 10, 0x81, 0, 0, 20, 8, 0];

    #[test]
    fn each_kind_of_port_takes_its_own_frames() {
        for (name, port, vids) in [
            (
                "transparent",
                PortVlans::transparent(),
                [Ok(0), Ok(0), Ok(10), Ok(20), Ok(110), Ok(10), Ok(10)],
            ),
            (
                "trunk 10",
                trunk(&[10], None, &[]),
                [
                    Err(UntaggedRefused),
                    Err(UntaggedRefused),
                    Ok(10),
                    Err(VlanRefused),
                    Err(VlanRefused),
                    Ok(10),
                    Ok(10),
                ],
            ),
            (
                "trunk 10, native 20, which is allowed by being native",
                trunk(&[10], Some(20), &[]),
                [
                    Ok(20),
                    Ok(20),
                    Ok(10),
                    Ok(20),
                    Err(VlanRefused),
                    Ok(10),
                    Ok(10),
                ],
            ),
            (
                "trunk 110, which is 10 outside",
                trunk(&[110], Some(0), &[(10, 110)]),
                [
                    Ok(0),
                    Ok(0),
                    Ok(110),
                    Err(VlanRefused),
                    Err(VlanRefused),
                    Ok(110),
                    Ok(110),
                ],
            ),
            (
                "two numbers that change places",
                trunk(&[10, 110], None, &[(10, 110), (110, 10)]),
                [
                    Err(UntaggedRefused),
                    Err(UntaggedRefused),
                    Ok(110),
                    Err(VlanRefused),
                    Ok(10),
                    Ok(110),
                    Ok(110),
                ],
            ),
            (
                "access 10",
                PortVlans::access(vid(10)).unwrap(),
                [
                    Ok(10),
                    Ok(10),
                    Err(TaggedRefused),
                    Err(TaggedRefused),
                    Err(TaggedRefused),
                    Err(TaggedRefused),
                    Err(TaggedRefused),
                ],
            ),
            (
                "tunnel 10",
                PortVlans::tunnel(vid(10), Tpid::Service).unwrap(),
                [Ok(10); 7],
            ),
        ] {
            let frames = [UNTAGGED, PRIORITY, IN_10, IN_20, IN_110, SERVICE_10, QINQ];
            for (frame, expected) in frames.into_iter().zip(vids) {
                let seen = classify(&port, frame);
                let seen = seen.map(|inside| inside.vid.value());
                assert_eq!(seen, expected, "{name}: {frame:02x?}");
            }
        }
    }

    #[test]
    fn a_frame_leaves_as_the_port_shows_its_vlan() {
        let transparent = PortVlans::transparent();
        let access = |number| PortVlans::access(vid(number)).unwrap();
        let tunnel = |number| PortVlans::tunnel(vid(number), Tpid::Service).unwrap();
        for (name, from, frame, to, after) in [
            ("as it is", &transparent, QINQ, &transparent, Ok(QINQ)),
            (
                "as it is",
                &transparent,
                PRIORITY,
                &transparent,
                Ok(PRIORITY),
            ),
            (
                "pushed",
                &access(10),
                UNTAGGED,
                &trunk(&[10], None, &[]),
                Ok(&[0x81, 0, 0, 10, 8, 0][..]),
            ),
            (
                "written into the priority tag",
                &access(10),
                PRIORITY,
                &transparent,
                Ok(&[0x81, 0, 0xe0, 10, 8, 0]),
            ),
            ("kept", &access(10), PRIORITY, &access(10), Ok(PRIORITY)),
            ("popped", &transparent, IN_10, &access(10), Ok(UNTAGGED)),
            (
                "another's",
                &transparent,
                IN_20,
                &access(10),
                Err(VlanRefused),
            ),
            (
                "popped, but a tag is left",
                &transparent,
                QINQ,
                &access(10),
                Err(VlanRefused),
            ),
            (
                "translated, priority and DEI kept",
                &transparent,
                &[0x88, 0xa8, 0xf0, 110, 8, 0],
                &trunk(&[110], None, &[(10, 110)]),
                Ok(&[0x88, 0xa8, 0xf0, 10, 8, 0]),
            ),
            (
                "without a number outside",
                &transparent,
                IN_10,
                &trunk(&[10, 110], None, &[(10, 110)]),
                Err(VlanRefused),
            ),
            (
                "native",
                &transparent,
                IN_10,
                &trunk(&[20], Some(10), &[]),
                Ok(UNTAGGED),
            ),
            (
                "native, and bare it would be in VLAN 20",
                &transparent,
                QINQ,
                &trunk(&[20], Some(10), &[]),
                Ok(QINQ),
            ),
            (
                "native, from a tunnel, and bare it would be in VLAN 20",
                &tunnel(10),
                IN_20,
                &trunk(&[20], Some(10), &[]),
                Ok(&[0x88, 0xa8, 0, 10, 0x81, 0, 0, 20, 8, 0]),
            ),
            (
                "of no VLAN",
                &transparent,
                UNTAGGED,
                &trunk(&[10], Some(10), &[]),
                Err(VlanRefused),
            ),
            (
                "left alone",
                &transparent,
                UNTAGGED,
                &trunk(&[10], Some(0), &[]),
                Ok(UNTAGGED),
            ),
            (
                "into the tunnel's VLAN",
                &tunnel(10),
                IN_20,
                &transparent,
                Ok(&[0x88, 0xa8, 0, 10, 0x81, 0, 0, 20, 8, 0]),
            ),
            ("out of it", &transparent, QINQ, &tunnel(10), Ok(IN_20)),
            ("through it", &tunnel(10), QINQ, &tunnel(10), Ok(QINQ)),
            (
                "not through another",
                &tunnel(10),
                QINQ,
                &tunnel(20),
                Err(VlanRefused),
            ),
        ] {
            let inside = classify(from, frame).unwrap();
            let left = to.leave(&inside).map(|edit| edited(frame, edit));
            assert_eq!(
                left.as_deref(),
                after.as_ref().copied(),
                "{name}: {frame:02x?}"
            );
        }
    }

    #[test]
    fn the_tag_of_a_tunnel_may_be_a_customers() {
        let port = PortVlans::tunnel(vid(10), Tpid::Customer).unwrap();
        let inside = classify(&port, UNTAGGED).unwrap();
        let edit = PortVlans::transparent().leave(&inside).unwrap();
        assert_eq!(edited(UNTAGGED, edit), [0x81, 0, 0, 10, 8, 0]);
    }

    #[test]
    fn a_port_has_the_vlans_whose_frames_pass() {
        let native = |vid| trunk(&[110], Some(vid), &[(10, 110)]);
        for (port, has, has_not, untagged) in [
            (
                PortVlans::transparent(),
                &[0, 1, 4094][..],
                &[4095][..],
                Some(0),
            ),
            (trunk(&[110], None, &[(10, 110)]), &[110], &[0, 10], None),
            (native(5), &[110, 5], &[0, 10], Some(5)),
            (native(0), &[110, 0], &[10], Some(0)),
            (
                PortVlans::access(vid(42)).unwrap(),
                &[42],
                &[0, 43],
                Some(42),
            ),
            (
                PortVlans::tunnel(vid(200), Tpid::Service).unwrap(),
                &[200],
                &[0],
                Some(200),
            ),
        ] {
            assert!(has.iter().all(|&it| port.has(vid(it))), "{port:?}");
            assert!(!has_not.iter().any(|&it| port.has(vid(it))), "{port:?}");
            assert_eq!(port.untagged_vid(), untagged.map(vid), "{port:?}");
        }
    }

    #[test]
    fn nonsense_is_refused() {
        let vids = |numbers: &[u16]| numbers.iter().copied().map(vid).collect::<VidSet>();
        let pairs = |pairs: &[(u16, u16)]| pairs.iter().map(pair).collect::<Vec<_>>();
        for (allowed, native, translate, error) in [
            (&[][..], None, &[][..], Empty),
            (&[0, 1], None, &[], Reserved { vid: vid(0) }),
            (&[4095], None, &[], Reserved { vid: vid(4095) }),
            (&[1], Some(4095), &[], Reserved { vid: vid(4095) }),
            (&[1], None, &[(0, 1)], Reserved { vid: vid(0) }),
            (&[1], None, &[(1, 4095)], Reserved { vid: vid(4095) }),
            (
                &[1, 2],
                None,
                &[(10, 1), (10, 2)],
                OutsideTwice { outside: vid(10) },
            ),
            (
                &[1, 2],
                None,
                &[(10, 1), (20, 1)],
                InsideTwice { inside: vid(1) },
            ),
            (&[1], None, &[(10, 2)], TranslatedInVain { inside: vid(2) }),
        ] {
            let port = PortVlans::trunk(vids(allowed), native.map(vid), &pairs(translate));
            assert_eq!(port, Err(error), "{error}");
        }
        for number in [0, 4095] {
            let error = Err(Reserved { vid: vid(number) });
            assert_eq!(PortVlans::tunnel(vid(number), Tpid::Service), error);
        }
        let error = PortVlans::access(vid(4095)).unwrap_err();
        assert_eq!(error.to_string(), "VLAN 4095 is reserved: use 1 to 4094");
    }

    fn trunk(allowed: &[u16], native: Option<u16>, translate: &[(u16, u16)]) -> PortVlans {
        let translate: Vec<_> = translate.iter().map(pair).collect();
        let allowed = allowed.iter().copied().map(vid).collect();
        PortVlans::trunk(allowed, native.map(vid), &translate).unwrap()
    }

    fn pair(&(outside, inside): &(u16, u16)) -> (Vid, Vid) {
        (vid(outside), vid(inside))
    }

    fn vid(number: u16) -> Vid {
        Vid::new(number).unwrap()
    }

    fn frame(after_addresses: &[u8]) -> Vec<u8> {
        [&[2; 12], after_addresses].concat()
    }

    fn classify(port: &PortVlans, after_addresses: &[u8]) -> Result<Inside, DropReason> {
        port.classify(&Headers::parse(&frame(after_addresses)).unwrap())
    }

    /// What follows the addresses once the edit is made.
    fn edited(after_addresses: &[u8], edit: TagEdit) -> Vec<u8> {
        let (frame, mut out) = (frame(after_addresses), [0; crate::EDIT_BYTES]);
        let (len, replaced) = edit.apply(&frame, &mut out);
        [&out[..len], &frame[replaced..]].concat()[12..].to_vec()
    }
}
