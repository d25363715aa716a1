// SPDX-License-Identifier: MIT OR Apache-2.0
//! Small files that are whole or not there.

use std::fs::{self, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

/// Whether a file must survive a power cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lasting {
    /// As long as the kernel runs: for the run directory, which lasts no longer either.
    Boot,
    /// Over a power cut.
    Disk,
}

/// Replaces the file: a reader finds the old or the new text, never half of one.
pub(crate) fn replace(path: &Path, text: &[u8], mode: u32, lasting: Lasting) -> io::Result<()> {
    let mut new = path.to_owned().into_os_string();
    new.push(".new");
    let new = Path::new(&new);
    remove(new)?;
    let mut options = OpenOptions::new();
    let mut file = options.write(true).create_new(true).mode(mode).open(new)?;
    // The umask of a service is often stricter.
    file.set_permissions(Permissions::from_mode(mode))?;
    file.write_all(text)?;
    if lasting == Lasting::Disk {
        file.sync_all()?;
    }
    fs::rename(new, path)
}

/// Deletes the file, if there is one.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
