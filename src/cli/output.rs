// SPDX-License-Identifier: MIT OR Apache-2.0
//! Output of commands: tables, and numbers with their units.

use std::io::{self, Write};
use std::time::Duration;

/// Writes to stdout, without the panic of `println!` when the reader is gone.
pub(super) fn print(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()
}

pub(super) fn row(label: &str, value: String) -> Vec<String> {
    vec![label.into(), value]
}

/// Left-aligned columns, two spaces apart, without spaces at the ends of lines.
pub(super) fn table(indent: &str, rows: Vec<Vec<String>>) -> String {
    let mut widths = Vec::new();
    for row in &rows {
        widths.resize(widths.len().max(row.len()), 0);
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    let mut text = String::new();
    for row in &rows {
        let cells = row
            .iter()
            .zip(&widths)
            .map(|(cell, &width)| format!("{cell:width$}"));
        let line = cells.collect::<Vec<_>>().join("  ");
        text += &format!("{indent}{}\n", line.trim_end());
    }
    text
}

/// With binary units and three digits or so: `1.50 MiB`.
pub(super) fn bytes(n: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if n < 1024 {
        return format!("{n} B");
    }
    let mut value = n as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.2} {}", UNITS[unit])
}

/// With spaces between thousands: `1 234 567`.
pub(super) fn number(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}

pub(super) fn milliseconds(us: u64) -> String {
    format!("{:.3} ms", us as f64 / 1000.0)
}

pub(super) fn ago(seconds: f64) -> String {
    format!("{} ago", age(seconds))
}

/// Whole seconds: `2m 5s`.
pub(super) fn age(seconds: f64) -> String {
    // Only a tunnel of another version sends a value out of range.
    let age = Duration::try_from_secs_f64(seconds.floor()).unwrap_or_default();
    humantime::format_duration(age).to_string()
}

/// `1 peer`, `2 peers`.
pub(super) fn plural(count: usize, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_units() {
        for (n, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.00 KiB"),
            (1_572_864, "1.50 MiB"),
            (u64::MAX, "16384.00 PiB"),
        ] {
            assert_eq!(bytes(n), text);
        }
        for (n, text) in [
            (0, "0"),
            (999, "999"),
            (1000, "1 000"),
            (1_234_567, "1 234 567"),
        ] {
            assert_eq!(number(n), text);
        }
        for (seconds, text) in [
            (0.4, "0s"),
            (125.9, "2m 5s"),
            (-1.0, "0s"),
            (f64::NAN, "0s"),
        ] {
            assert_eq!(age(seconds), text);
        }
    }
}
