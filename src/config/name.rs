// SPDX-License-Identifier: MIT OR Apache-2.0
//! The name of a tunnel, which is that of its file.

use std::path::Path;

use super::error::ConfigError;

/// The one name that no tunnel may have: its socket is that of a [`host`](crate::host).
pub const RESERVED_NAME: &str = "host";

/// The name of the tunnel that `file` configures: its stem.
///
/// # Errors
/// The stem is not 1 to 64 letters, digits, `-`, `_` or `.` that begin with a letter or digit, or it
/// is [`RESERVED_NAME`]. It names files, sockets and units.
pub fn tunnel_name(file: &Path) -> Result<String, ConfigError> {
    let stem = file.file_stem().unwrap_or_default().to_string_lossy();
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let begins_well = stem.starts_with(|c: char| c.is_ascii_alphanumeric());
    if stem == RESERVED_NAME {
        let problem = "the file's name names the tunnel, and `host` is taken by `patchcord host`; \
                       rename the file";
        return Err(ConfigError::of_file(file, problem.into()));
    }
    if begins_well && stem.len() <= 64 && stem.chars().all(fits) {
        return Ok(stem.into_owned());
    }
    let problem = "the file's name names the tunnel and must be 1 to 64 letters, digits, `-`, `_` \
                   or `.`, and begin with a letter or digit; rename the file";
    Err(ConfigError::of_file(file, problem.into()))
}
