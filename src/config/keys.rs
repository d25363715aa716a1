// SPDX-License-Identifier: MIT OR Apache-2.0
//! The table of keys: every section of a tunnel's file, and every key in it.
//!
//! Hints about unknown names, `man patchcord.toml` and `docs/configuration.md` are made from this table, and
//! the parser reads no key that is not in it. The rows of a section are in the file of the section.

use super::schema::Schema;
use super::{device, peer, pipeline, port, switch, tunnel};

/// All sections, in the order of the documents.
pub const SECTIONS: [&Schema; 7] = [
    &tunnel::SCHEMA,
    &device::SCHEMA,
    &port::OF_DEVICE,
    &peer::SCHEMA,
    &port::OF_PEER,
    &switch::SCHEMA,
    &pipeline::SCHEMA,
];

#[cfg(test)]
mod tests {
    use std::path::Path;

    use zeroize::Zeroizing;

    use super::*;
    use crate::config::model::Config;

    // RFC 7748, section 6.1.
    const OWN: &str = "dwdtCnMYpX08FsFyUbJmRd9ML4frwJkqsXf7pR25LCo=";
    const PEER_KEY: &str = "public-key = '3p7bfXt9wbTTW2HC7OQ1Nz+DQ8hbeGdNrfx+FG+IK08='";
    /// No key takes a date.
    const ABSURD: &str = "1979-05-27";

    #[test]
    fn the_parser_reads_every_key() {
        for section in SECTIONS {
            for key in section.keys {
                let text = file_with(section, key.name);
                let file = Path::new("/etc/patchcord/a.toml");
                let read = |_: &Path| Ok(Zeroizing::new(OWN.to_owned()));
                let errors = Config::parse(&text, file, &read).unwrap_err().to_string();
                let name = format!("{} {}", section.header, key.name);
                assert!(errors.contains(&name), "{name}: {errors}");
                let is_unknown = errors.contains(&format!("{name}: unknown key"));
                assert!(!is_unknown, "{errors}");
            }
        }
    }

    #[test]
    fn every_row_says_something() {
        for section in SECTIONS {
            for key in section.keys {
                let cells = [key.kind, key.default, key.range, key.about];
                let is_whole = [key.kind, key.default, key.about]
                    .iter()
                    .all(|it| !it.is_empty());
                assert!(is_whole, "{}", key.name);
                // They go into a table of Markdown.
                let is_table_safe = cells.iter().all(|cell| !cell.contains(['|', '\n']));
                assert!(is_table_safe, "{}", key.name);
                assert!(key.about.ends_with('.'), "{}", key.name);
            }
        }
    }

    /// Every section, with what is required, and one absurd value.
    fn file_with(section: &Schema, key: &str) -> String {
        let required = [
            ("[tunnel]", "private-key-file = 'a.key'"),
            ("[device]", "name = 'pc0'"),
            ("[device.port]", ""),
            ("[[peer]]", PEER_KEY),
            ("[peer.port]", ""),
            ("[switch]", ""),
            ("[pipeline]", ""),
        ];
        let lines = required.map(|(header, line)| {
            let is_here = header == section.header;
            let is_replaced =
                is_here && line.starts_with(key) && line[key.len()..].starts_with(' ');
            let line = if is_replaced { "" } else { line };
            let absurd = if is_here {
                format!("{key} = {ABSURD}")
            } else {
                String::new()
            };
            format!("{header}\n{line}\n{absurd}\n")
        });
        lines.concat()
    }
}
