// SPDX-License-Identifier: MIT OR Apache-2.0
//! A reload of a tunnel's configuration: the request, and what it has changed.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What to do with the configuration's file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum ReloadMode {
    /// Compare it with the configuration in force, and change nothing.
    Compare,
    /// Apply all differences while frames cross, or nothing.
    Apply,
}

/// The outcome of a reload, and the differences.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub struct Reloaded {
    /// What was done.
    pub outcome: ReloadOutcome,
    /// What differs in the file from the configuration that was in force.
    pub changes: Vec<ConfigChange>,
}

/// What a reload has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum ReloadOutcome {
    /// Nothing, as the request was to compare.
    Compared,
    /// Nothing, as nothing differs.
    Unchanged,
    /// All changes are in force.
    Applied,
    /// Nothing, as one of the changes needs a restart of the tunnel.
    NeedsRestart,
}

/// A difference between the configuration in force and the file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub struct ConfigChange {
    /// The header of its section.
    pub section: String,
    /// The peer in whose section it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer: Option<String>,
    /// What differs.
    pub difference: Difference,
    /// Whether it takes effect with a restart only.
    pub needs_restart: bool,
}

/// What differs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Difference {
    /// The whole section is new.
    Added,
    /// The whole section is gone.
    Removed,
    /// The value of one key. Secrets are described, not shown.
    #[serde(rename_all = "kebab-case")]
    Value {
        /// The key.
        key: String,
        /// Its value in force.
        old: String,
        /// Its value in the file.
        new: String,
    },
}

impl fmt::Display for ConfigChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = match self.difference {
            Difference::Added => '+',
            Difference::Removed => '-',
            Difference::Value { .. } => '~',
        };
        write!(f, "{sign} {}", self.section)?;
        if let Some(peer) = &self.peer {
            write!(f, " {peer}")?;
        }
        if let Difference::Value { key, old, new } = &self.difference {
            write!(f, " {key}: {old} -> {new}")?;
        }
        match self.needs_restart {
            true => f.write_str("  (needs a restart)"),
            false => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_a_line() {
        let change = |peer: Option<&str>, difference, needs_restart| {
            let section = if peer.is_some() {
                "[[peer]]"
            } else {
                "[tunnel]"
            };
            ConfigChange {
                section: section.to_owned(),
                peer: peer.map(str::to_owned),
                difference,
                needs_restart,
            }
        };
        let value = || Difference::Value {
            key: "listen".to_owned(),
            old: "1".to_owned(),
            new: "2".to_owned(),
        };
        for (change, line) in [
            (change(Some("b"), Difference::Added, false), "+ [[peer]] b"),
            (
                change(Some("b"), Difference::Removed, false),
                "- [[peer]] b",
            ),
            (change(None, value(), false), "~ [tunnel] listen: 1 -> 2"),
            (
                change(None, value(), true),
                "~ [tunnel] listen: 1 -> 2  (needs a restart)",
            ),
        ] {
            assert_eq!(change.to_string(), line);
        }
    }
}
