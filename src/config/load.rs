// SPDX-License-Identifier: MIT OR Apache-2.0
//! Files: where a tunnel's configuration is, and the guarded way to read it and its keys.
//!
//! The only I/O of `config`; called once at start, by the command line.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use super::error::{ConfigError, ConfigErrors};
use super::key_files::KeyFileError;
use super::model::Config;

/// Where `patchcord up NAME` looks for `NAME.toml`.
pub const CONFIG_DIR: &str = "/etc/patchcord";

impl Config {
    /// Reads the file and the key files that it names.
    ///
    /// # Errors
    /// Everything that is wrong with them.
    pub fn load(file: &Path) -> Result<Self, ConfigErrors> {
        let bytes = read_text(file).map_err(|problem| ConfigError::of_file(file, problem))?;
        let text = str::from_utf8(&bytes).map_err(|error| {
            let valid = String::from_utf8_lossy(&bytes[..error.valid_up_to()]);
            let problem = "is not UTF-8 here; save the file as UTF-8 text".into();
            ConfigError::at(file, &valid, valid.len(), String::new(), problem)
        })?;
        let mut config = Self::parse(text, file, &read_key_file)?;
        // Whatever the working directory is when it is read again.
        config.file = std::path::absolute(file).unwrap_or(config.file);
        Ok(config)
    }
}

/// The file that NAME or FILE on the command line means.
///
/// A file has a slash in it or ends in `.toml`; all else is a name.
pub fn file_of(name_or_file: &str) -> PathBuf {
    if name_or_file.contains('/') || name_or_file.ends_with(".toml") {
        name_or_file.into()
    } else {
        Path::new(CONFIG_DIR).join(format!("{name_or_file}.toml"))
    }
}

/// Reads a key file, if only its owner can.
///
/// # Errors
/// Says what is wrong with the file and what to do.
pub fn read_key_file(path: &Path) -> Result<Zeroizing<String>, KeyFileError> {
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => KeyFileError::Missing(path.into()),
        reason => KeyFileError::Unreadable {
            path: path.into(),
            reason,
        },
    };
    // Checked before opening, because opening a pipe would wait for a writer.
    if !fs::metadata(path).map_err(failed)?.is_file() {
        return Err(KeyFileError::NotAFile(path.into()));
    }
    let file = File::open(path).map_err(failed)?;
    // The mode of the open file: the path may name another one by now.
    let mode = file.metadata().map_err(failed)?.permissions().mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(KeyFileError::Exposed {
            path: path.into(),
            mode,
        });
    }
    // Reserved in full: growing would leave copies of the key behind.
    let mut text = Zeroizing::new(String::with_capacity(MAX_KEY_FILE_BYTES + 1));
    let limit = MAX_KEY_FILE_BYTES as u64 + 1;
    let length = file
        .take(limit)
        .read_to_string(&mut text)
        .map_err(|error| match error.kind() {
            io::ErrorKind::InvalidData => KeyFileError::NotAKey(path.into()),
            _ => failed(error),
        })?;
    if length > MAX_KEY_FILE_BYTES {
        return Err(KeyFileError::NotAKey(path.into()));
    }
    Ok(text)
}

/// Generous: a key and its newline have 45.
const MAX_KEY_FILE_BYTES: usize = 1024;

fn read_text(file: &Path) -> Result<Vec<u8>, String> {
    let explain = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => {
            format!("no such file; write the path of a file, or a NAME for {CONFIG_DIR}/NAME.toml")
        }
        io::ErrorKind::PermissionDenied => "permission denied; run patchcord as root".into(),
        io::ErrorKind::IsADirectory => "is a directory; write the path of a file".into(),
        _ => format!("cannot be read: {error}"),
    };
    let mut bytes = Vec::new();
    let opened = File::open(file).map_err(explain)?;
    opened
        .take(MAX_CONFIG_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(explain)?;
    if bytes.len() as u64 > MAX_CONFIG_BYTES {
        return Err("is larger than 4 MiB; this is not a configuration file".into());
    }
    Ok(bytes)
}

/// Enough for tens of thousands of peers, and too little for more peers than there are port numbers.
const MAX_CONFIG_BYTES: u64 = 4 << 20;
