// SPDX-License-Identifier: MIT OR Apache-2.0
//! The FDB.

use std::io::{self, Write};
use std::iter;

use patchcord::control::message::FdbStatus;

use crate::cli::output::ago;

/// The addresses of the FDB, one to a line. There may be very many.
pub(crate) fn addresses(out: &mut impl Write, indent: &str, all: &[FdbStatus]) -> io::Result<()> {
    if all.is_empty() {
        return writeln!(out, "{indent}no address is known");
    }
    // Written as it is generated: `table` would hold the text of a million lines, and their cells.
    let widest = |text: fn(&FdbStatus) -> &str| {
        let widths = all.iter().map(|entry| text(entry).chars().count());
        widths.max().unwrap_or_default()
    };
    let [ports, origins] = [widest(|entry| &entry.port), widest(|entry| &entry.origin)];
    for entry in all {
        let [mac, vid, port, origin, rest] = address(entry);
        let line = format!("{indent}{mac}  {vid:8}  {port:ports$}  {origin:origins$}  {rest}");
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(())
}

/// Address, VLAN, port, origin, and the rest.
pub(super) fn address(entry: &FdbStatus) -> [String; 5] {
    let vid = vlan(entry.vid);
    let number = entry.sequence.map(|number| format!("number {number}"));
    let dampened = entry.dampened.then(|| "moved too often".to_owned());
    let age = ago(f64::from(entry.age_s));
    let bound = entry
        .bound
        .then(|| "kept from guarded ports while its own is down".to_owned());
    let more = number.into_iter().chain(dampened).chain(bound);
    let rest: Vec<_> = iter::once(age).chain(more).collect();
    [
        entry.mac.clone(),
        vid,
        entry.port.clone(),
        entry.origin.clone(),
        rest.join(", "),
    ]
}

pub(super) fn vlan(vid: u16) -> String {
    match vid {
        0 => "untagged".into(),
        vid => format!("VID {vid}"),
    }
}
