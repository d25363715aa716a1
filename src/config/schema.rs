// SPDX-License-Identifier: MIT OR Apache-2.0
//! The types of the table of keys: a section, and the row of a key.

/// One key of a section.
#[derive(Debug)]
pub struct Key {
    /// Its name in the file.
    pub name: &'static str,
    /// The type of its value.
    pub kind: &'static str,
    /// The value if the key is absent.
    pub default: &'static str,
    /// The values that it may have; empty if the type or `about` suffices.
    pub range: &'static str,
    /// What `patchcord reload` does with another value.
    pub effect: Effect,
    /// Its purpose, in one paragraph. Keys and values stand between backquotes.
    pub about: &'static str,
}

/// When a change of the configuration takes effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// With the next `patchcord reload`, while frames cross.
    Live,
    /// With the next start of the tunnel.
    Restart,
}

/// One section of the file.
#[derive(Debug)]
pub struct Schema {
    /// Its name, without brackets.
    pub name: &'static str,
    /// Its header in the file.
    pub header: &'static str,
    /// Its purpose.
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
