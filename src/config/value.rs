// SPDX-License-Identifier: MIT OR Apache-2.0
//! Values of single keys: from TOML to a type. Pure; knows nothing of sections or of other keys.
//!
//! Every error reads "what is wrong; remedy". A value is repeated only through [`shown`], because
//! a key may be pasted into the wrong line.

use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use patchcord_bridge::MacAddr;
use toml::de::DeValue;

pub(super) type Parsed<T> = Result<T, String>;

pub(super) fn interface_name(value: &DeValue<'_>) -> Parsed<String> {
    let name = string(value, "\"pc0\"")?;
    if name.is_empty() {
        return Err("is empty; write 1 to 15 bytes, for example `pc0`".into());
    }
    if name.len() > MAX_INTERFACE_NAME {
        let length = name.len();
        return Err(format!(
            "name is {length} bytes, at most {MAX_INTERFACE_NAME}; shorten it"
        ));
    }
    let bad = |c: char| matches!(c, '/' | ':' | '%') || c.is_whitespace() || c.is_control();
    if let Some(bad) = name.chars().find(|&c| bad(c)) {
        let remedy = "use letters, digits, `-`, `_` and `.`";
        return Err(format!(
            "{} contains {bad:?}, which the kernel refuses; {remedy}",
            shown(name)
        ));
    }
    if name == "." || name == ".." {
        return Err(format!(
            "`{name}` is not an interface name; write for example `pc0`"
        ));
    }
    Ok(name.into())
}

/// IFNAMSIZ without the terminating zero.
pub(super) const MAX_INTERFACE_NAME: usize = 15;

pub(super) fn mac_address(text: &str, remedy: &str) -> Parsed<MacAddr> {
    text.parse()
        .map_err(|error| format!("{}: {error}; {remedy}", shown(text)))
}

pub(super) fn flag(value: &DeValue<'_>, key: &str) -> Parsed<bool> {
    value
        .as_bool()
        .ok_or_else(|| wrong_type(value, "true or false", &format!("{key} = true")))
}

pub(super) fn duration(
    value: &DeValue<'_>,
    range: RangeInclusive<Duration>,
    example: &str,
) -> Parsed<Duration> {
    if let DeValue::Integer(number) = value {
        return Err(format!("has no unit; write `\"{number}s\"`"));
    }
    let text = string(value, &format!("\"{example}\""))?;
    let duration = humantime::parse_duration(text).map_err(|_| {
        let remedy = format!("write a number with a unit, for example `{example}`");
        format!("{} is not a duration; {remedy}", shown(text))
    })?;
    if !range.contains(&duration) {
        let [min, max] = [range.start(), range.end()].map(|d| humantime::format_duration(*d));
        return Err(format!(
            "{} is out of range; write {min} to {max}",
            shown(text)
        ));
    }
    Ok(duration)
}

/// A path as written: not yet relative to anything.
pub(super) fn key_path(value: &DeValue<'_>) -> Parsed<PathBuf> {
    let text = string(value, "\"a.key\"")?;
    if text.is_empty() {
        return Err("is empty; write the path of a file".into());
    }
    if is_key_rather_than_path(text.trim()) {
        let remedy = "store it in a file of mode 600 and write the file's path here";
        return Err(format!("holds a key instead of a path; {remedy}"));
    }
    Ok(text.into())
}

pub(super) fn choice<T: Copy>(value: &DeValue<'_>, choices: &[(&str, T)]) -> Parsed<T> {
    let text = string(value, &format!("\"{}\"", choices[0].0))?;
    choices
        .iter()
        .find(|(name, _)| *name == text)
        .map(|&(_, choice)| choice)
        .ok_or_else(|| {
            let names: Vec<_> = choices
                .iter()
                .map(|(name, _)| format!("`{name}`"))
                .collect();
            format!(
                "{} is not a choice; write {}",
                shown(text),
                names.join(" or ")
            )
        })
}

pub(super) fn integer(
    value: &DeValue<'_>,
    range: RangeInclusive<i64>,
    example: &str,
) -> Parsed<i64> {
    let (min, max) = (range.start(), range.end());
    let Some(integer) = value.as_integer() else {
        return Err(wrong_type(
            value,
            &format!("a number from {min} to {max}"),
            example,
        ));
    };
    i64::from_str_radix(integer.as_str(), integer.radix())
        .ok()
        .filter(|number| range.contains(number))
        .ok_or_else(|| format!("`{integer}` is out of range; write {min} to {max}"))
}

pub(super) fn string<'v>(value: &'v DeValue<'_>, example: &str) -> Parsed<&'v str> {
    value
        .as_str()
        .ok_or_else(|| wrong_type(value, "a string", example))
}

pub(super) fn wrong_type(value: &DeValue<'_>, expected: &str, example: &str) -> String {
    format!(
        "is {}, not {expected}; write for example `{example}`",
        type_name(value)
    )
}

fn type_name(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "an integer",
        DeValue::Float(_) => "a decimal fraction",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "an array",
        DeValue::Table(_) => "a table",
    }
}

/// The value for an error message: short, on one line, and never a key.
pub(super) fn shown(text: &str) -> String {
    if text.split(|c| !is_base64(c)).any(may_hold_a_key) {
        return "the value (not shown, it looks like a key)".into();
    }
    let short: String = text.chars().take(64).collect();
    let dots = if short.len() < text.len() { "…" } else { "" };
    format!("`{}{dots}`", short.escape_debug())
}

/// A run of base64 that may be a key, cut short or with extra characters.
fn may_hold_a_key(run: &str) -> bool {
    run.len() >= 32
}

/// Stricter than [`may_hold_a_key`], because a long path of letters and slashes must pass.
fn is_key_rather_than_path(text: &str) -> bool {
    let base64 = matches!(text.trim_end_matches('=').len(), 42..=43)
        && text.chars().all(is_base64)
        && !text.starts_with('/');
    let hex = text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit());
    base64 || hex
}

fn is_base64(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '+' | '/' | '=')
}
