// SPDX-License-Identifier: MIT OR Apache-2.0
//! Unknown names: reported with the key or section that was probably meant. Pure.

use toml::de::{DeTable, DeValue};

use super::error::Report;
use super::keys::SECTIONS;
use super::schema::Schema;

/// Reports every name in the file that is not in the table of keys.
pub(super) fn report_unknown(document: &DeTable<'_>, report: &mut Report<'_>) {
    for (name, value) in document {
        let name_text = name.get_ref().as_ref();
        match top_level().find(|schema| schema.name == name_text) {
            Some(schema) => report_keys(schema, value.get_ref(), report),
            None => report.add(&name.span(), name_text, unknown_section(name_text)),
        }
    }
}

/// For a section, or each in a list. [`Section`](super::section) refuses all other values.
fn report_keys(schema: &'static Schema, value: &DeValue<'_>, report: &mut Report<'_>) {
    match value {
        DeValue::Table(table) => report_keys_of(schema, table, report),
        DeValue::Array(items) => {
            for table in items.iter().filter_map(|item| item.get_ref().as_table()) {
                report_keys_of(schema, table, report);
            }
        }
        _ => {}
    }
}

fn report_keys_of(schema: &'static Schema, table: &DeTable<'_>, report: &mut Report<'_>) {
    for (key, value) in table {
        let name = key.get_ref().as_ref();
        if let Some(port) = schema.port.filter(|port| port.name == name) {
            report_keys(port, value.get_ref(), report);
        } else if !schema.has(name) {
            let place = format!("{} {name}", schema.header);
            report.add(&key.span(), place, unknown_key(schema, name));
        }
    }
}

/// The sections at the top level of the file.
fn top_level() -> impl Iterator<Item = &'static Schema> {
    let is_port_of = |schema: &Schema, outer: &Schema| {
        outer.port.is_some_and(|port| port.header == schema.header)
    };
    let is_top_level =
        move |schema: &&Schema| !SECTIONS.iter().any(|outer| is_port_of(schema, outer));
    SECTIONS.into_iter().filter(is_top_level)
}

/// The remedy for a name at the top level that is not a section.
fn unknown_section(name: &str) -> String {
    if let Some(home) = home_of(name, None) {
        return format!("is outside every section; it belongs in {home}");
    }
    match closest(name, SECTIONS.iter().map(|section| section.name)) {
        Some(best) => {
            let meant = SECTIONS.iter().filter(|section| section.name == best);
            let headers: Vec<_> = meant
                .map(|section| format!("`{}`", section.header))
                .collect();
            format!("unknown section; did you mean {}?", headers.join(" or "))
        }
        None => format!(
            "unknown section; there are {}",
            list(SECTIONS.iter().map(|s| s.header))
        ),
    }
}

fn unknown_key(schema: &'static Schema, key: &str) -> String {
    let header = schema.header;
    if let Some(home) = home_of(key, Some(schema)) {
        return format!("is not a key of {header}; it belongs in {home}");
    }
    let port = schema.port;
    let within = port.iter().flat_map(|port| port.names());
    let here = port.iter().map(|port| port.name).chain(within);
    let elsewhere = || SECTIONS.iter().flat_map(|section| section.names());
    match closest(key, here.chain(schema.names())).or_else(|| closest(key, elsewhere())) {
        Some(best) if schema.has(best) => {
            format!("unknown key; did you mean `{best}`?")
        }
        Some(best) => match home_of(best, Some(schema)) {
            Some(home) => format!("unknown key; did you mean `{best}` in {home}?"),
            None => format!(
                "unknown section; did you mean `{}`?",
                port.map_or(best, |port| port.header)
            ),
        },
        None => {
            let port = port.map(|port| format!(", and the section `{}`", port.header));
            let keys = list(schema.names());
            format!(
                "unknown key; {header} has {keys}{}",
                port.unwrap_or_default()
            )
        }
    }
}

/// Where `key` belongs if it stands in `found_in`: in the section within that, in the one around it,
/// or in all that have such a key.
fn home_of(key: &str, found_in: Option<&'static Schema>) -> Option<String> {
    let has_key = |schema: &&Schema| schema.has(key);
    if let Some(port) = found_in.and_then(|schema| schema.port).filter(has_key) {
        return Some(port.header.into());
    }
    let is_around = |schema: &&&Schema| match (schema.port, found_in) {
        (Some(port), Some(found_in)) => port.header == found_in.header,
        _ => false,
    };
    if let Some(around) = SECTIONS
        .iter()
        .find(is_around)
        .filter(|schema| has_key(schema))
    {
        return Some(format!("{}, above this section", around.header));
    }
    let homes = SECTIONS.iter().filter(|schema| has_key(schema));
    let headers: Vec<_> = homes.map(|schema| schema.header).collect();
    (!headers.is_empty()).then(|| headers.join(" or "))
}

fn closest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    // The spellings of other tools count as the same: PrivateKeyFile, private_key_file.
    let name = name.to_lowercase().replace('_', "-");
    known
        .map(|candidate| (strsim::jaro_winkler(&name, candidate), candidate))
        .filter(|&(likeness, _)| likeness >= LIKE_ENOUGH)
        .max_by(|(a, _), (b, _)| a.total_cmp(b))
        .map(|(_, candidate)| candidate)
}

/// Takes `peers` for `peer` and `private-key` for `private-key-file`, but not `foo` for `mtu`.
const LIKE_ENOUGH: f64 = 0.82;

fn list<'a>(names: impl Iterator<Item = &'a str>) -> String {
    names
        .map(|name| format!("`{name}`"))
        .collect::<Vec<_>>()
        .join(", ")
}
