// SPDX-License-Identifier: MIT OR Apache-2.0
//! Sections and their keys: the schema, typed access to values, and help with unknown names.
//!
//! Knows which keys there are, not what they mean. serde's derive stops at the first error; walking
//! the parsed document finds them all.

use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::error::Report;

/// What a section is called and which keys it has.
pub(super) struct Schema {
    pub(super) name: &'static str,
    pub(super) header: &'static str,
    keys: &'static [&'static str],
}

pub(super) const TUNNEL: Schema = Schema {
    name: "tunnel",
    header: "[tunnel]",
    keys: &[
        "private-key-file",
        "listen",
        "cipher",
        "network-id",
        "rekey-interval",
    ],
};
pub(super) const DEVICE: Schema = Schema {
    name: "device",
    header: "[device]",
    keys: &["name", "mtu", "bridge", "mac", "addresses", "backend"],
};
pub(super) const PEER: Schema = Schema {
    name: "peer",
    header: "[[peer]]",
    keys: &[
        "name",
        "public-key",
        "endpoint",
        "keepalive",
        "preshared-key-file",
    ],
};
pub(super) const PIPELINE: Schema = Schema {
    name: "pipeline",
    header: "[pipeline]",
    keys: &["plan", "lanes", "workers", "pin", "nice"],
};
const SECTIONS: [&Schema; 4] = [&TUNNEL, &DEVICE, &PEER, &PIPELINE];

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

    /// A table of the file; its unknown keys are reported at once.
    pub(super) fn new(
        schema: &'static Schema,
        table: &'t DeTable<'i>,
        span: Range<usize>,
        report: &mut Report<'_>,
    ) -> Self {
        for (key, _) in table
            .iter()
            .filter(|(key, _)| !schema.keys.contains(&key.as_ref().as_ref()))
        {
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

    /// Whether `key` is there, or would be if the section could be read.
    pub(super) fn has(&self, key: &str) -> bool {
        !self.is_readable || self.table.is_some_and(|table| table.contains_key(key))
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
        let value = self.table?.get(key)?;
        parse(value.get_ref())
            .map_err(|problem| self.refuse(key, report, problem))
            .ok()
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
        report.add(
            &self.span_of(key),
            format!("{} {key}", self.schema.header),
            problem,
        );
    }
}

/// Says what to do about a top-level name that is no section.
pub(super) fn unknown_section(name: &str) -> String {
    if let Some(home) = homes_of(name) {
        return format!("stands outside every section; it belongs in {home}");
    }
    let names = SECTIONS.iter().map(|section| section.name);
    match closest(name, names) {
        Some(best) => {
            let header = SECTIONS
                .iter()
                .find(|section| section.name == best)
                .map(|s| s.header);
            format!(
                "unknown section; did you mean `{}`?",
                header.unwrap_or(best)
            )
        }
        None => format!(
            "unknown section; there are {}",
            list(SECTIONS.iter().map(|s| s.header))
        ),
    }
}

fn unknown_key(schema: &Schema, key: &str) -> String {
    if let Some(home) = homes_of(key) {
        return format!("is not a key of {}; it belongs in {home}", schema.header);
    }
    if let Some(best) = closest(key, schema.keys.iter().copied()) {
        return format!("unknown key; did you mean `{best}`?");
    }
    let elsewhere = SECTIONS
        .iter()
        .flat_map(|section| section.keys.iter().copied());
    match closest(key, elsewhere) {
        Some(best) => {
            let home = homes_of(best).unwrap_or_default();
            format!("unknown key; did you mean `{best}` in {home}?")
        }
        None => format!(
            "unknown key; {} has {}",
            schema.header,
            list(schema.keys.iter().copied())
        ),
    }
}

/// The sections that have `key`.
fn homes_of(key: &str) -> Option<String> {
    let homes: Vec<_> = SECTIONS
        .iter()
        .filter(|s| s.keys.contains(&key))
        .map(|s| s.header)
        .collect();
    (!homes.is_empty()).then(|| homes.join(" or "))
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
