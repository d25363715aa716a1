// SPDX-License-Identifier: MIT OR Apache-2.0
//! The values of a file in one spelling, so that two files can be compared key by key. Pure.

use std::collections::BTreeMap;

use toml::de::{DeTable, DeValue};

use super::peer;

/// The values of the keys of a section, and of the sections within it.
pub(super) type Values = BTreeMap<String, String>;

/// The values of a whole file. Secrets are in files of their own, so there are none here.
#[derive(Clone, Debug, Default)]
pub(super) struct Written {
    /// By the name of the section; those of a port are `device port`.
    pub(super) sections: BTreeMap<String, Values>,
    /// Of each peer, in the order of the file.
    pub(super) peers: Vec<BTreeMap<String, Values>>,
}

impl Written {
    pub(super) fn of(document: &DeTable<'_>) -> Self {
        let mut written = Self::default();
        for (name, value) in document {
            let name: &str = name.get_ref();
            match value.get_ref() {
                DeValue::Table(table) => collect(name, table, &mut written.sections),
                DeValue::Array(items) if name == peer::SCHEMA.name => {
                    let tables = items.iter().filter_map(|item| item.get_ref().as_table());
                    written.peers = tables
                        .map(|table| {
                            let mut sections = BTreeMap::new();
                            collect(name, table, &mut sections);
                            sections
                        })
                        .collect();
                }
                // Refused by the parser.
                _ => {}
            }
        }
        written
    }
}

/// Files the values of a section, and those of its port.
fn collect(name: &str, table: &DeTable<'_>, sections: &mut BTreeMap<String, Values>) {
    let mut values = Values::new();
    for (key, value) in table {
        let key: &str = key.get_ref();
        match value.get_ref() {
            DeValue::Table(port) if key == "port" => {
                collect(&format!("{name} port"), port, sections);
            }
            value => drop(values.insert(key.to_owned(), spelled(value))),
        }
    }
    sections.insert(name.to_owned(), values);
}

/// The value as TOML on one line.
fn spelled(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => format!("{text:?}"),
        DeValue::Integer(number) => number.to_string(),
        DeValue::Float(number) => number.to_string(),
        DeValue::Boolean(flag) => flag.to_string(),
        DeValue::Datetime(time) => time.to_string(),
        DeValue::Array(items) => {
            let items: Vec<_> = items.iter().map(|item| spelled(item.get_ref())).collect();
            format!("[{}]", items.join(", "))
        }
        DeValue::Table(table) => {
            let pair = |(key, value): (&str, &DeValue<'_>)| format!("{key} = {}", spelled(value));
            let pairs = table.iter();
            let pairs: Vec<_> = pairs
                .map(|(key, value)| pair((key.get_ref(), value.get_ref())))
                .collect();
            format!("{{ {} }}", pairs.join(", "))
        }
    }
}
