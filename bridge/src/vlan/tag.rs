// SPDX-License-Identifier: MIT OR Apache-2.0
//! Edits of a frame's tag between its ingress and its egress port.
//!
//! ```text
//!                leaves untagged       leaves in VLAN 20
//!  untagged      keep                  push 20
//!  priority tag  keep (VID 0 stays)    replace: VID 20, same priority
//!  in VLAN 10    pop                   replace: VID 20, same priority; keep if 10 = 20
//! ```
//!
//! Only the tag from which the ingress port took the VLAN is edited. The caller edits the bytes,
//! and has room in front of the frame: nothing here writes to it.

use super::{Tpid, Vid};
use crate::mac::MacAddr;

/// The most bytes that [`TagEdit::apply`] writes: both addresses and a tag.
pub const EDIT_BYTES: usize = 16;

/// Destination and source.
const ADDRESSES: usize = 2 * size_of::<MacAddr>();

/// The tag of a frame that a port goes by: the outermost one, or none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tag {
    /// The frame has none, or the port ignores those that it has.
    #[default]
    None,
    /// VID 0: a priority, and no VLAN.
    Priority {
        /// Its TPID.
        tpid: Tpid,
        /// Priority, DEI, and twelve zeros.
        tci: u16,
    },
    /// A VLAN.
    Vlan {
        /// Its TPID.
        tpid: Tpid,
        /// Priority, DEI and VID.
        tci: u16,
    },
}

impl Tag {
    /// The tag with this control information.
    pub(crate) const fn new(tpid: Tpid, tci: u16) -> Self {
        match Vid::from_tci(tci) {
            Vid::UNTAGGED => Self::Priority { tpid, tci },
            _ => Self::Vlan { tpid, tci },
        }
    }

    /// The VLAN it names.
    pub const fn vid(self) -> Vid {
        match self {
            Self::None | Self::Priority { .. } => Vid::UNTAGGED,
            Self::Vlan { tci, .. } => Vid::from_tci(tci),
        }
    }
}

/// A frame within the switch: its VLAN, and what the frame itself says of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inside {
    /// The VLAN.
    pub vid: Vid,
    /// Which tag of the frame belongs to the VLAN.
    pub tag: Tag,
    /// The TPID to push where the frame needs a tag and has none.
    pub push_tpid: Tpid,
    /// Whether a tag follows the one above, or the addresses if there is none: without its own tag
    /// the frame would pass for a frame of another VLAN.
    pub(crate) is_nested: bool,
    /// Whether it is a loop probe of this node, for which no port is blocked.
    pub(crate) is_probe: bool,
}

impl Inside {
    /// An untagged frame in VLAN `vid`, such as this node originates.
    pub const fn untagged(vid: Vid) -> Self {
        Self {
            vid,
            tag: Tag::None,
            push_tpid: Tpid::Customer,
            is_nested: false,
            is_probe: false,
        }
    }

    /// A frame that this node originates in VLAN `vid`, with the tag of that VLAN.
    pub const fn tagged(vid: Vid) -> Self {
        let tag = match vid {
            Vid::UNTAGGED => Tag::None,
            vid => Tag::new(Tpid::Customer, vid.value()),
        };
        Self {
            tag,
            ..Self::untagged(vid)
        }
    }

    /// The same for a loop probe of this node.
    pub const fn probe(vid: Vid) -> Self {
        Self {
            is_probe: true,
            ..Self::tagged(vid)
        }
    }

    /// Whether the frame has another tag than that of its VLAN, so that its content belongs to a
    /// customer VLAN, which the switch does not tell from others.
    pub const fn is_nested(&self) -> bool {
        self.is_nested
    }

    /// Whether its VLAN is a provider's. Stations that use service tags there do not receive this
    /// node's frames with customer tags, such as queries for groups.
    pub const fn is_service(&self) -> bool {
        match self.tag {
            Tag::None => matches!(self.push_tpid, Tpid::Service),
            Tag::Priority { tpid, .. } | Tag::Vlan { tpid, .. } => matches!(tpid, Tpid::Service),
        }
    }

    /// How to edit the frame so that it leaves in VLAN `outside`, or in none.
    pub(crate) const fn edit(&self, outside: Option<Vid>) -> TagEdit {
        match (self.tag, outside) {
            (Tag::None | Tag::Priority { .. }, None) => TagEdit::Keep,
            (Tag::Vlan { .. }, None) => TagEdit::Pop,
            (Tag::None, Some(vid)) => TagEdit::Push {
                tpid: self.push_tpid,
                tci: vid.value(),
            },
            (Tag::Vlan { tci, .. }, Some(vid)) if Vid::from_tci(tci).value() == vid.value() => {
                TagEdit::Keep
            }
            (Tag::Priority { tpid, tci } | Tag::Vlan { tpid, tci }, Some(vid)) => {
                TagEdit::Replace {
                    tpid,
                    tci: vid.with_priority_of(tci),
                }
            }
        }
    }
}

/// How the bytes of a frame change as it leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TagEdit {
    /// Not at all.
    Keep,
    /// This tag replaces the outermost one.
    Replace {
        /// Its TPID.
        tpid: Tpid,
        /// Priority, DEI and VID.
        tci: u16,
    },
    /// This tag is pushed in front of all others.
    Push {
        /// Its TPID.
        tpid: Tpid,
        /// Priority, DEI and VID.
        tci: u16,
    },
    /// The outermost tag is popped.
    Pop,
}

impl TagEdit {
    /// By how many bytes the frame grows; offsets of checksums in it shift along.
    pub const fn delta(&self) -> isize {
        match self {
            Self::Keep | Self::Replace { .. } => 0,
            Self::Push { .. } => 4,
            Self::Pop => -4,
        }
    }

    /// Writes the frame's new beginning to `out` and returns its length, and the length of the old
    /// beginning that it replaces: `(0, 0)` where nothing changes.
    ///
    /// `front` is the beginning of the frame, its tag included. If it is too short for a tag to be
    /// replaced, it is left as it is; [`Switch::forward`](crate::Switch::forward) admits no such
    /// frame.
    pub fn apply(&self, front: &[u8], out: &mut [u8; EDIT_BYTES]) -> (usize, usize) {
        let (len, replaced, tag) = match *self {
            Self::Keep => return (0, 0),
            Self::Replace { tpid, tci } => (EDIT_BYTES, EDIT_BYTES, Some((tpid, tci))),
            Self::Push { tpid, tci } => (EDIT_BYTES, ADDRESSES, Some((tpid, tci))),
            Self::Pop => (ADDRESSES, EDIT_BYTES, None),
        };
        if front.len() < replaced {
            return (0, 0);
        }
        out[..ADDRESSES].copy_from_slice(&front[..ADDRESSES]);
        if let Some((tpid, tci)) = tag {
            out[ADDRESSES..14].copy_from_slice(&tpid.ether_type().to_be_bytes());
            out[14..].copy_from_slice(&tci.to_be_bytes());
        }
        (len, replaced)
    }
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use super::TagEdit::{Keep, Pop, Push, Replace};
    use super::*;

    const C: Tpid = Tpid::Customer;
    const S: Tpid = Tpid::Service;

    #[test]
    fn the_form_outside_decides_what_becomes_of_the_tag() {
        let (priority, vlan) = (Tag::new(S, 0xa000), Tag::new(C, 0xb00a));
        for (tag, outside, edit) in [
            (Tag::None, None, Keep),
            (Tag::None, Some(20), Push { tpid: S, tci: 20 }),
            (priority, None, Keep),
            (
                priority,
                Some(20),
                Replace {
                    tpid: S,
                    tci: 0xa014,
                },
            ),
            (vlan, None, Pop),
            (vlan, Some(10), Keep),
            (
                vlan,
                Some(20),
                Replace {
                    tpid: C,
                    tci: 0xb014,
                },
            ),
        ] {
            let inside = Inside {
                tag,
                push_tpid: S,
                ..Inside::untagged(Vid::UNTAGGED)
            };
            let outside = outside.map(|vid| Vid::new(vid).unwrap());
            assert_eq!(inside.edit(outside), edit, "{tag:?} to {outside:?}");
        }
    }

    #[test]
    fn edits_the_front_of_a_frame() {
        let addresses = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12];
        let untagged = [&addresses[..], &[8, 0, 0x45]].concat();
        let tagged = [&addresses[..], &[0x81, 0, 0xa0, 10, 8, 0, 0x45]].concat();
        let pushed = [&addresses[..], &[0x88, 0xa8, 0, 20, 8, 0, 0x45]].concat();
        let replaced = [&addresses[..], &[0x88, 0xa8, 0xa0, 20, 8, 0, 0x45]].concat();
        let push = Push { tpid: S, tci: 20 };
        let replace = Replace {
            tpid: S,
            tci: 0xa014,
        };
        for (edit, before, after) in [
            (Keep, &untagged, &untagged),
            (Keep, &tagged, &tagged),
            (push, &untagged, &pushed),
            (replace, &tagged, &replaced),
            (Pop, &tagged, &untagged),
        ] {
            let mut out = [0xee; EDIT_BYTES];
            let (len, replaced) = edit.apply(before, &mut out);
            let edited: Vec<u8> = [&out[..len], &before[replaced..]].concat();
            assert_eq!(&edited, after, "{edit:?}");
            let grown = edited.len() as isize - before.len() as isize;
            assert_eq!(grown, edit.delta(), "{edit:?}");
        }
    }

    #[test]
    fn a_front_that_is_too_short_is_left_alone() {
        for (edit, needed) in [
            (Push { tpid: C, tci: 1 }, 12),
            (Replace { tpid: C, tci: 1 }, 16),
            (Pop, 16),
        ] {
            for len in 0..18 {
                let untouched = edit.apply(&[0; 18][..len], &mut [0; EDIT_BYTES]) == (0, 0);
                assert_eq!(untouched, len < needed, "{edit:?}, {len} bytes");
            }
        }
    }
}
