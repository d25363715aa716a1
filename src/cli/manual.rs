// SPDX-License-Identifier: MIT OR Apache-2.0
//! `patchcord generate`: manual pages, completions, the reference of keys and the schema of the
//! protocol, generated from the program itself. For packages and for `docs/`.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use clap::{Command, Subcommand};
use clap_complete::Shell;
use patchcord::config::{Effect, Key, SECTIONS, Schema};
use patchcord::host::protocol::schema;
use roff::{Inline, Roff, bold, roman};

use super::failure::Failure;
use super::output::print;

#[derive(Subcommand)]
pub(super) enum Generate {
    /// Write patchcord.1, a page for each command, and patchcord.toml.5
    Man {
        /// The directory for the pages; it must exist
        dir: PathBuf,
    },
    /// Print completions for a shell
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Print the reference of configuration keys, in Markdown
    Keys,
    /// Print the JSON Schema of the client protocol of running tunnels
    Schema,
}

/// `command` is that of the whole program.
pub(super) fn generate(what: Generate, mut command: Command) -> Result<(), Failure> {
    match what {
        Generate::Man { dir } => Ok(manual_pages(command, &dir)?),
        Generate::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut command, "patchcord", &mut script);
            Ok(print(&String::from_utf8(script)?)?)
        }
        Generate::Keys => Ok(print(&key_reference())?),
        Generate::Schema => {
            let schema = serde_json::to_string_pretty(&schema())?;
            Ok(print(&format!("{schema}\n"))?)
        }
    }
}

fn manual_pages(command: Command, dir: &Path) -> io::Result<()> {
    clap_mangen::generate_to(command, dir)?;
    fs::write(dir.join("patchcord.toml.5"), configuration_page().to_roff())
}

/// patchcord.toml(5).
fn configuration_page() -> Roff {
    let mut page = Roff::new();
    page.control("TH", ["patchcord.toml", "5", "", "patchcord", ""]);
    page.control("SH", ["NAME"]);
    page.text([roman("patchcord.toml - configuration of a tunnel")]);
    page.control("SH", ["DESCRIPTION"]);
    page.text(inline(
        "`patchcord up NAME` reads `/etc/patchcord/NAME.toml`, a TOML file with the sections below. \
         `patchcord check` validates it and names every error with its line and remedy. Paths of key files \
         are relative to the file. Durations are text such as `\"25s\"`.",
    ));
    for section in SECTIONS {
        page.control("SH", [section.header]);
        page.text(inline(section.about));
        for key in section.keys.iter().filter(|_| !is_repeated_below(section)) {
            describe(&mut page, key);
        }
    }
    page.control("SH", ["SEE ALSO"]);
    page.text([bold("patchcord"), roman("(1)")]);
    page
}

fn describe(page: &mut Roff, key: &Key) {
    page.control("TP", []);
    page.text([bold(key.name), roman(format!(" ({})", key.kind))]);
    page.text(inline(key.about));
    for (what, text) in [
        ("Range", key.range),
        ("Default", key.default),
        ("Change", effect(key)),
    ] {
        if !text.is_empty() {
            page.control("br", []);
            page.text([vec![roman(format!("{what}: "))], inline(text)].concat());
        }
    }
}

/// Makes text between backquotes bold.
fn inline(text: &str) -> Vec<Inline> {
    let parts = text.split('`').enumerate();
    parts
        .map(|(place, part)| {
            if place % 2 == 1 {
                bold(part)
            } else {
                roman(part)
            }
        })
        .collect()
}

/// The sections as Markdown, each with a table of its keys; those with the same keys are one.
fn key_reference() -> String {
    let sections = SECTIONS
        .into_iter()
        .filter(|section| !is_repeated_below(section));
    let texts: Vec<_> = sections.map(section_reference).collect();
    texts.join("\n")
}

fn section_reference(section: &Schema) -> String {
    let alike = SECTIONS
        .into_iter()
        .filter(|other| names(other) == names(section));
    let headers: Vec<_> = alike.map(|section| section.header).collect();
    let mut text = format!("## {}\n\n{}\n\n", headers.join(" and "), section.about);
    text.push_str(
        "| Key | Type | Default | Range | Change | Meaning |\n|---|---|---|---|---|---|\n",
    );
    for key in section.keys {
        let cells = [key.kind, key.default, key.range, effect(key), key.about];
        text.push_str(&format!("| `{}` | {} |\n", key.name, cells.join(" | ")));
    }
    text
}

/// When a change takes effect, in one word.
fn effect(key: &Key) -> &'static str {
    match key.effect {
        Effect::Live => "live",
        Effect::Restart => "restart",
    }
}

/// Whether the same keys are described at a later section.
fn is_repeated_below(section: &Schema) -> bool {
    let sections = SECTIONS.into_iter();
    let mut later = sections
        .skip_while(|other| other.header != section.header)
        .skip(1);
    later.any(|other| names(other) == names(section))
}

fn names(section: &Schema) -> Vec<&'static str> {
    section.keys.iter().map(|key| key.name).collect()
}
