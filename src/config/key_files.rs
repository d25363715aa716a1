// SPDX-License-Identifier: MIT OR Apache-2.0
//! The key files that a configuration names. Pure: their contents come through a function of the caller.

use std::io;
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use super::error::Report;
use super::section::Section;
use crate::crypto::keys::KeyError;

/// Reads a key file, given its full path.
pub(super) type ReadKeyFile<'a> = &'a dyn Fn(&Path) -> Result<Zeroizing<String>, KeyFileError>;

/// Those of one configuration file.
pub(super) struct KeyFiles<'a> {
    pub(super) file: &'a Path,
    pub(super) read: ReadKeyFile<'a>,
}

impl KeyFiles<'_> {
    /// Reads the key file at `path`, relative to the configuration file.
    pub(super) fn key<T>(
        &self,
        section: &Section<'_, '_>,
        key: &str,
        path: &Path,
        report: &mut Report<'_>,
        decode: impl FnOnce(&str) -> Result<T, (KeyError, &'static str)>,
    ) -> Option<T> {
        let path = self.file.with_file_name(path);
        let decoded = (self.read)(&path)
            .map_err(|error| error.to_string())
            .and_then(|text| {
                decode(&text).map_err(|(error, command)| {
                    format!("{} {error}; make a key with `{command}`", path.display())
                })
            });
        decoded
            .map_err(|problem| section.refuse(key, report, problem))
            .ok()
    }
}

/// Why a key file was not read. The text names the path and the remedy, never the contents.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeyFileError {
    /// There is no such file.
    #[error("{0} does not exist; write the path of the key file, relative to this file")]
    Missing(PathBuf),
    /// A directory, a pipe or a device.
    #[error("{0} is not a regular file; write the path of the key file")]
    NotAFile(PathBuf),
    /// Others may read or change it.
    #[error(
        "{path} has mode {mode:03o}: group or others can read or change the key; \
         run `chmod 600 {path}`"
    )]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The kernel refused.
    #[error("{path} cannot be read ({reason}); run patchcord as root or as the file's owner")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The kernel's reason.
        reason: io::ErrorKind,
    },
    /// Too long, or not text.
    #[error("{0} does not hold a key; a key is one line of base64")]
    NotAKey(PathBuf),
}
