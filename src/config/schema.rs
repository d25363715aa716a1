// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the table of keys is made of: sections, and the row of each key.

/// One key of a section.
#[derive(Debug)]
pub struct Key {
    /// As it is written.
    pub name: &'static str,
    /// The type of its value.
    pub kind: &'static str,
    /// What holds where the key is absent.
    pub default: &'static str,
    /// The values that are taken; empty where the type or `about` says all.
    pub range: &'static str,
    /// What it does, in one paragraph. Keys and values stand between backquotes.
    pub about: &'static str,
}

/// One section of the file.
#[derive(Debug)]
pub struct Schema {
    /// Its name, without brackets.
    pub name: &'static str,
    /// As it is written.
    pub header: &'static str,
    /// What it is about.
    pub about: &'static str,
    /// Its keys, in the order of the documents.
    pub keys: &'static [Key],
    /// The section within it.
    pub(super) port: Option<&'static Self>,
}

impl Schema {
    /// Whether it has a key of this name.
    pub(super) fn has(&self, key: &str) -> bool {
        self.keys.iter().any(|known| known.name == key)
    }

    /// The names of its keys.
    pub(super) fn names(&self) -> impl Iterator<Item = &'static str> + use<> {
        self.keys.iter().map(|key| key.name)
    }
}
