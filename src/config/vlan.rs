// SPDX-License-Identifier: MIT OR Apache-2.0
//! VLANs as values: one, or a list with ranges. Pure.

use patchcord_bridge::{Vid, VidSet};
use toml::de::DeValue;

use super::value::{Parsed, integer, shown, wrong_type};

/// The last that names a VLAN, see [`Vid::is_assignable`].
pub(super) const MAX_VID: u16 = 4094;

/// A VID from `min` on.
pub(super) fn vid(value: &DeValue<'_>, min: u16, example: &str) -> Parsed<Vid> {
    let number = integer(value, min.into()..=MAX_VID.into(), example)?;
    Ok(Vid::new(number as u16).unwrap_or_default())
}

/// `10`, `"10, 20-29"`, or an array of these.
pub(super) fn vids(value: &DeValue<'_>) -> Parsed<VidSet> {
    let mut vids = VidSet::EMPTY;
    match value {
        DeValue::Array(items) => {
            for item in items.iter() {
                add_vids(&mut vids, item.get_ref())?;
            }
        }
        DeValue::String(text) if text.trim().is_empty() => {}
        _ => add_vids(&mut vids, value)?,
    }
    Ok(vids)
}

fn add_vids(vids: &mut VidSet, value: &DeValue<'_>) -> Parsed<()> {
    const EXAMPLE: &str = "trunk = \"10, 20-29\"";
    match value {
        DeValue::String(text) => {
            for part in text.split(',') {
                let (first, last) = vid_range(part.trim())?;
                vids.extend((first..=last).filter_map(Vid::new));
            }
        }
        DeValue::Integer(_) => {
            vids.insert(vid(value, 1, EXAMPLE)?);
        }
        _ => return Err(wrong_type(value, "a list of VLANs", EXAMPLE)),
    }
    Ok(())
}

fn vid_range(text: &str) -> Parsed<(u16, u16)> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let [first, last] = [first, last].map(|number| vid_number(number.trim()));
    let remedy = "write for example `10, 20-29`";
    let (Some(first), Some(last)) = (first, last) else {
        return Err(format!(
            "{} is neither a VLAN nor a range of them; {remedy}",
            shown(text)
        ));
    };
    if first > last {
        return Err(format!("`{text}` runs backwards; write `{last}-{first}`"));
    }
    if first == 0 {
        let remedy = "write 1 to 4094, and `native = 0` to let untagged frames pass";
        return Err(format!("`{text}` is out of range; {remedy}"));
    }
    if last > MAX_VID {
        return Err(format!("`{text}` is out of range; write 1 to {MAX_VID}"));
    }
    Ok((first, last))
}

/// None for anything but digits: a parser of numbers would take a sign as well.
pub(super) fn vid_number(text: &str) -> Option<u16> {
    let is_number = text.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| text.parse().ok())?
}
