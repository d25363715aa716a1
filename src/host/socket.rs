// SPDX-License-Identifier: MIT OR Apache-2.0
//! The file of a socket: created with its mode, in place of one that a dead process left, and removed.

use std::{
    fs::{self, DirBuilder, Permissions},
    io,
    os::unix::fs::{DirBuilderExt, FileTypeExt, PermissionsExt},
    path::{Path, PathBuf},
};

use tokio::net::{UnixListener, UnixStream};
use tracing::debug;

/// Removes the socket's file when it is dropped.
#[derive(Debug)]
pub struct SocketFile(PathBuf);

/// Listens at `path`, which gets this mode; creates the directory if it does not exist. An existing
/// socket counts as stale and is replaced: the caller knows that no process listens on it. Must be
/// called on a tokio runtime.
///
/// # Errors
/// The error of the kernel; `AlreadyExists` if something other than a socket is in the way.
pub fn bind(path: &Path, mode: u32) -> io::Result<(UnixListener, SocketFile)> {
    if let Some(dir) = path.parent().filter(|dir| !dir.exists()) {
        DirBuilder::new().recursive(true).mode(0o755).create(dir)?;
        // Set again, because the umask may have removed bits.
        fs::set_permissions(dir, Permissions::from_mode(0o755))?;
    }
    remove_stale(path)?;
    let listener = UnixListener::bind(path)?;
    let file = SocketFile(path.to_owned());
    // Until this line, other users might connect; the check of credentials would refuse them.
    fs::set_permissions(path, Permissions::from_mode(mode))?;
    Ok((listener, file))
}

/// The same where another process may listen at `path`: fails with `AddrInUse` if one does.
///
/// # Errors
/// As [`bind`].
pub async fn bind_unless_in_use(path: &Path, mode: u32) -> io::Result<(UnixListener, SocketFile)> {
    if UnixStream::connect(path).await.is_ok() {
        return Err(io::Error::new(
            io::ErrorKind::AddrInUse,
            "another process listens there already; stop it, or choose another path",
        ));
    }
    bind(path, mode)
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.0) {
            debug!(%error, path = %self.0.display(), "cannot remove the socket's file");
        }
    }
}

fn remove_stale(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.file_type().is_socket() => fs::remove_file(path),
        Ok(_) => Err(io::Error::new(
            io::ErrorKind::AlreadyExists,
            format!(
                "{} is in the way and is not a socket; remove it",
                path.display()
            ),
        )),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::block_on;

    #[test]
    fn replaces_a_stale_socket_but_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        block_on(async {
            let stale = dir.path().join("run/a.sock");
            fs::create_dir(dir.path().join("run")).unwrap();
            drop(std::os::unix::net::UnixListener::bind(&stale).unwrap());
            let (_listener, file) = bind(&stale, 0o600).unwrap();
            let mode = fs::metadata(&stale).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
            drop(file);
            assert!(!stale.exists());
            let (_listener, file) = bind_unless_in_use(&stale, 0o600).await.unwrap();
            let refused = bind_unless_in_use(&stale, 0o600).await.unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::AddrInUse);
            assert!(stale.exists(), "it is left to its owner");
            drop(file);
            let file = dir.path().join("b.sock");
            fs::write(&file, "precious").unwrap();
            let refused = bind(&file, 0o600).unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::AlreadyExists);
            assert_eq!(fs::read(&file).unwrap(), b"precious");
        });
    }
}
