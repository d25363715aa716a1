// SPDX-License-Identifier: MIT OR Apache-2.0
//! Small files that are complete or absent.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use crate::io::sys::faults::{self, Call};

/// Whether a file must survive a power cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lasting {
    /// As long as the kernel runs: for the run directory, whose life ends with the kernel too.
    Boot,
    /// Across a power cut.
    Disk,
}

/// Replaces the file: a reader finds the old or the new text, never a part of one.
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
    fs::rename(new, path)?;
    match lasting {
        Lasting::Boot => Ok(()),
        Lasting::Disk => sync_folder_of(path),
    }
}

/// Makes renames and removals in the file's folder durable: until then, a power cut may undo them.
pub(crate) fn sync_folder_of(path: &Path) -> io::Result<()> {
    faults::before(Call::SyncFolder, 1)?;
    let folder = path.parent().filter(|folder| *folder != Path::new(""));
    let folder = folder.unwrap_or_else(|| Path::new("."));
    File::open(folder)?.sync_all()
}

/// Deletes the file, if it exists, so that a power cut does not bring it back.
pub(crate) fn remove_for_good(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Ok(()) => sync_folder_of(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// Deletes the file, if it exists.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        io::sys::{EIO, faults::Fault},
        testing::assert_made_to_last,
    };

    #[test]
    fn a_durable_file_is_durable_in_its_folder_too() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        faults::script(&[(Call::SyncFolder, Fault::Errno(EIO))]);
        replace(&path, b"one", 0o600, Lasting::Boot).unwrap();
        let error = replace(&path, b"two", 0o600, Lasting::Disk).unwrap_err();
        assert_eq!(
            error.raw_os_error(),
            Some(EIO),
            "and that it does not is told"
        );
        faults::finish();
        replace(&path, b"three", 0o600, Lasting::Disk).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"three");
        assert_made_to_last(1, || remove_for_good(&path)).unwrap();
        remove_for_good(&path).unwrap();
        assert!(!path.exists());
    }
}
