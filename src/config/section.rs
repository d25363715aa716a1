// SPDX-License-Identifier: MIT OR Apache-2.0
//! Sections of a file: typed access to values, and help with unknown names.
//!
//! Knows which keys there are ([`keys`](super::keys)), not what they mean. serde's derive stops at the
//! first error; walking the parsed document finds them all.

use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::error::Report;
use super::keys::{SECTIONS, Schema};
use super::value;

/// One table of the file.
pub(super) struct Section<'t, 'i> {
    schema: &'static Schema,
    table: Option<&'t DeTable<'i>>,
    span: Range<usize>,
    is_readable: bool,
}

impl<'t, 'i> Section<'t, 'i> {
    /// A section that the file does not have: every key is absent, errors point at the top.
    pub(super) fn absent(schema: &'static Schema) -> Self {
        Self {
            schema,
            table: None,
            span: 0..0,
            is_readable: true,
        }
    }

    /// A section that is not a table, which is reported: no key in it is said to be missing.
    pub(super) fn unreadable(schema: &'static Schema) -> Self {
        Self {
            is_readable: false,
            ..Self::absent(schema)
        }
    }

    /// The one section of `schema` within `table`.
    pub(super) fn within(
        table: &'t DeTable<'i>,
        schema: &'static Schema,
        report: &mut Report<'_>,
    ) -> Self {
        let Some(value) = table.get(schema.name) else {
            return Self::absent(schema);
        };
        let Some(table) = value.get_ref().as_table() else {
            let problem = format!("must be one section; write `{}` once", schema.header);
            report.add(&value.span(), schema.header, problem);
            return Self::unreadable(schema);
        };
        Self::new(schema, table, value.span(), report)
    }

    /// A table of the file; its unknown keys are reported at once.
    pub(super) fn new(
        schema: &'static Schema,
        table: &'t DeTable<'i>,
        span: Range<usize>,
        report: &mut Report<'_>,
    ) -> Self {
        let is_known =
            |key: &str| schema.has(key) || schema.port.is_some_and(|port| port.name == key);
        for (key, _) in table.iter().filter(|(key, _)| !is_known(key.as_ref())) {
            let name = format!("{} {}", schema.header, key.as_ref());
            report.add(&key.span(), name, unknown_key(schema, key.as_ref()));
        }
        Self {
            schema,
            table: Some(table),
            span,
            is_readable: true,
        }
    }

    /// The section within this one, of `schema`.
    pub(super) fn nested(&self, schema: &'static Schema, report: &mut Report<'_>) -> Self {
        match self.table {
            Some(table) => Self::within(table, schema, report),
            None => Self::absent(schema),
        }
    }

    /// Whether it is a table, or absent; what is neither is reported.
    pub(super) fn is_readable(&self) -> bool {
        self.is_readable
    }

    /// Whether `key` is there, or would be if the section could be read.
    pub(super) fn has(&self, key: &str) -> bool {
        debug_assert!(
            self.schema.has(key) || self.schema.port.is_some_and(|port| port.name == key),
            "the table of keys has no {}",
            self.name_of(key)
        );
        !self.is_readable || self.table.is_some_and(|table| table.contains_key(key))
    }

    /// Whether `key` is there for certain.
    pub(super) fn holds(&self, key: &str) -> bool {
        self.is_readable && self.has(key)
    }

    /// Where errors about `key` point: at its value, or at the section when it is absent.
    pub(super) fn span_of(&self, key: &str) -> Range<usize> {
        self.table
            .and_then(|table| table.get(key))
            .map_or_else(|| self.span.clone(), Spanned::span)
    }

    /// The value of `key`; none when it is absent or when `parse` refused it, which is reported.
    pub(super) fn read<T>(
        &self,
        key: &str,
        report: &mut Report<'_>,
        parse: impl FnOnce(&DeValue<'_>) -> Result<T, String>,
    ) -> Option<T> {
        if !self.has(key) {
            return None;
        }
        let value = self.table?.get(key)?;
        parse(value.get_ref())
            .map_err(|problem| self.refuse(key, report, problem))
            .ok()
    }

    /// Whether `key` is `true`; none as in [`Self::read`].
    pub(super) fn read_flag(&self, key: &str, report: &mut Report<'_>) -> Option<bool> {
        self.read(key, report, |value| value::flag(value, key))
    }

    /// Like [`Self::read`]; absence is an error too, which ends in `remedy`.
    pub(super) fn require<T>(
        &self,
        key: &str,
        report: &mut Report<'_>,
        remedy: &str,
        parse: impl FnOnce(&DeValue<'_>) -> Result<T, String>,
    ) -> Option<T> {
        if !self.has(key) {
            self.refuse(key, report, format!("is missing; {remedy}"));
        }
        self.read(key, report, parse)
    }

    /// Reports a problem with the value of `key`.
    pub(super) fn refuse(&self, key: &str, report: &mut Report<'_>, problem: String) {
        report.add(&self.span_of(key), self.name_of(key), problem);
    }

    /// What errors call `key`.
    pub(super) fn name_of(&self, key: &str) -> String {
        format!("{} {key}", self.schema.header)
    }
}

/// Says what to do about a top-level name that is no section.
pub(super) fn unknown_section(name: &str) -> String {
    if let Some(home) = home_of(name, None) {
        return format!("stands outside every section; it belongs in {home}");
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
