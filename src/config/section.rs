// SPDX-License-Identifier: MIT OR Apache-2.0
//! Sections of a file: typed access to values.
//!
//! Knows which keys a section has ([`Schema`]), not what they mean. serde's derive stops at the first
//! error; walking the parsed document finds them all.

use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::error::Report;
use super::schema::Schema;
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

    /// A section that is not a table, which has been reported. No key of it is reported as missing.
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
        Self::new(schema, table, value.span())
    }

    /// A table of the file.
    pub(super) fn new(schema: &'static Schema, table: &'t DeTable<'i>, span: Range<usize>) -> Self {
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

    /// Whether it is a table, or absent. All else has been reported.
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

    /// Reports a problem with the whole section, if the file has it.
    pub(super) fn refuse_whole(&self, report: &mut Report<'_>, problem: String) {
        if self.table.is_some() {
            report.add(&self.span, self.schema.header, problem);
        }
    }

    /// The name of `key` in errors.
    pub(super) fn name_of(&self, key: &str) -> String {
        format!("{} {key}", self.schema.header)
    }
}
