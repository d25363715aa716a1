// SPDX-License-Identifier: MIT OR Apache-2.0
//! Text that is not TOML: the errors of the TOML parser, with remedies. Pure.

use toml::de::Error;

use super::error::Report;

/// Reports what the parser of TOML found in `text`.
pub(super) fn report_errors(text: &str, errors: Vec<Error>, report: &mut Report<'_>) {
    if let Some(at) = text.find("[Interface]") {
        let problem = "this is a WireGuard file; the sections here are `[tunnel]`, \
                       `[device]` and `[[peer]]`, in TOML";
        report.add(&(at..at), "", problem.into());
        return;
    }
    for error in errors {
        let span = error.span().unwrap_or_default();
        let is_duplicate = error.message().contains("duplicate key");
        let remedy = match is_duplicate {
            true => order_remedy(text, span.start),
            false => quotes_remedy(text, span.start),
        };
        let remedy = remedy.unwrap_or_default();
        let problem = format!("not valid TOML: {}{remedy}", error.message());
        report.add(&span, "", problem);
    }
}

/// The TOML parser takes a word without quotes for a number or a boolean, and complains about that. The
/// remedy names the key only: the rest of the line may hold a secret.
fn quotes_remedy(text: &str, offset: usize) -> Option<String> {
    let (before, after) = text.split_at_checked(offset)?;
    let before = before.rsplit('\n').next()?;
    let (key, _) = before.split_once('=')?;
    let line = before.to_owned() + after.lines().next()?;
    let (_, value) = line.split_once('=')?;
    let key = key.trim();
    let is_key = key.chars().all(|c| c.is_ascii_lowercase() || c == '-');
    let value = value.trim_start_matches(['[', ' ', '\t']);
    let is_bare = !value.is_empty() && !value.starts_with(['"', '\'', '#']);
    (is_key && is_bare).then(|| format!("; text goes between straight quotes: `{key} = \"...\"`"))
}

/// To the TOML parser, `[peer.port]` above the first `[[peer]]` makes a `peer` that is no list.
fn order_remedy(text: &str, offset: usize) -> Option<String> {
    let line = text[text[..offset].rfind('\n').map_or(0, |at| at + 1)..]
        .lines()
        .next()?;
    let headers = || {
        text.lines()
            .map(|line| line.split('#').next().unwrap_or_default().trim())
    };
    let first = headers().find(|line| line.starts_with("[peer") || line.starts_with("[[peer]]"));
    match first? {
        "[peer.port]" => {
            Some("; `[peer.port]` is about the `[[peer]]` above it: move it below one".to_owned())
        }
        "[peer]" => Some("; write `[[peer]]`, with two brackets, for each peer".to_owned()),
        _ => (line.trim_start().starts_with('['))
            .then(|| "; the section is there already: write its keys below that one".to_owned()),
    }
}
