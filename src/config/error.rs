// SPDX-License-Identifier: MIT OR Apache-2.0
//! Errors of a configuration, with their place in the file. Collected by `parse` and `load`.

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// The errors of one file, in the order of the file; never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigErrors(Vec<ConfigError>);

impl ConfigErrors {
    /// The errors, in the order of the file.
    pub fn iter(&self) -> impl Iterator<Item = &ConfigError> {
        self.0.iter()
    }
}

/// One line per error.
impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { "\n" };
            write!(f, "{separator}{error}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}

impl From<ConfigError> for ConfigErrors {
    fn from(error: ConfigError) -> Self {
        Self(vec![error])
    }
}

/// One error: `FILE:LINE:COLUMN: [section] key: what is wrong; remedy`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    file: PathBuf,
    position: Option<Position>,
    key: String,
    problem: String,
}

impl ConfigError {
    /// An error about the file as a whole.
    pub(super) fn of_file(file: &Path, problem: String) -> Self {
        Self {
            file: file.into(),
            position: None,
            key: String::new(),
            problem,
        }
    }

    /// An error at the byte `offset` of `text`.
    pub(super) fn at(file: &Path, text: &str, offset: usize, key: String, problem: String) -> Self {
        let position = Some(Position::of(text, offset));
        Self {
            file: file.into(),
            position,
            key,
            problem,
        }
    }

    /// The line, counted from 1; none when the file as a whole is wrong.
    pub fn line(&self) -> Option<usize> {
        self.position.map(|position| position.line)
    }

    /// `[section] key`; empty if the error is not about one key.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// The problem and its remedy.
    pub fn problem(&self) -> &str {
        &self.problem
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.file.display())?;
        if let Some(Position { line, column }) = self.position {
            write!(f, "{line}:{column}:")?;
        }
        if !self.key.is_empty() {
            write!(f, " {}:", self.key)?;
        }
        write!(f, " {}", self.problem)
    }
}

impl std::error::Error for ConfigError {}

/// Both counted from 1; columns in characters, as editors count them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Position {
    line: usize,
    column: usize,
}

impl Position {
    fn of(text: &str, offset: usize) -> Self {
        let before = text.get(..offset).unwrap_or(text);
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        Self {
            line: before.matches('\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
        }
    }
}

/// Collects the errors of one file while it is read.
pub(super) struct Report<'a> {
    file: &'a Path,
    text: &'a str,
    errors: Vec<ConfigError>,
}

impl<'a> Report<'a> {
    pub(super) fn new(file: &'a Path, text: &'a str) -> Self {
        Self {
            file,
            text,
            errors: Vec::new(),
        }
    }

    /// Adds an error at the start of `span`.
    pub(super) fn add(&mut self, span: &Range<usize>, key: impl Into<String>, problem: String) {
        let error = ConfigError::at(self.file, self.text, span.start, key.into(), problem);
        self.errors.push(error);
    }

    /// `value` if there was no error.
    pub(super) fn finish<T>(mut self, value: Option<T>) -> Result<T, ConfigErrors> {
        self.errors.sort_by_key(|error| error.position);
        match value {
            Some(value) if self.errors.is_empty() => Ok(value),
            _ => Err(ConfigErrors(self.errors)),
        }
    }
}
