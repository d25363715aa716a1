// SPDX-License-Identifier: MIT OR Apache-2.0
//! The secrets of a host: credentials of its unit, and files that only it can read.
//!
//! Clients may store a secret here, replace and delete it. Only the provider of a tunnel whose
//! configuration names a secret can read it. A credential (systemd.exec(5), `LoadCredential=`) takes
//! precedence over a file of the same name.

use std::{
    env,
    fs::{self, File},
    io::{self, Read},
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::{Path, PathBuf},
};

use zeroize::Zeroizing;

use super::name::is_name;
use crate::{
    machine::file::{self, Lasting},
    provider::{Secret, SecretError},
};

/// Where the host stores secrets.
pub const SECRETS_DIR: &str = "/var/lib/patchcord/secrets";
/// The largest secret, in bytes: room for a chain of certificates.
pub const MAX_SECRET: usize = 64 << 10;

/// The directories of secrets.
#[derive(Clone, Debug)]
pub struct SecretStore {
    credentials: Option<PathBuf>,
    own: PathBuf,
}

impl SecretStore {
    /// The credentials of this process, and files in `own`.
    pub fn new(own: impl Into<PathBuf>) -> Self {
        Self {
            credentials: env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from),
            own: own.into(),
        }
    }

    /// The secret of this name.
    ///
    /// # Errors
    /// There is none, other users can read it, or the file system refuses.
    pub fn get(&self, name: &str) -> Result<Secret, SecretError> {
        let own = self.own_file(name)?;
        let credential = self.credentials.as_ref().map(|folder| folder.join(name));
        for path in credential.iter().chain([&own]) {
            if let Some(secret) = read(path)? {
                return Ok(secret);
            }
        }
        Err(SecretError::NotKept(name.to_owned()))
    }

    /// Stores a secret across restarts, in place of an older one. The file is complete or absent.
    ///
    /// # Errors
    /// The name is invalid, the secret is too large, or the file system refuses.
    pub fn keep(&self, name: &str, secret: &Secret) -> Result<(), SecretError> {
        let path = self.own_file(name)?;
        let bytes = secret.expose();
        if bytes.len() > MAX_SECRET {
            return Err(SecretError::TooLarge { max: MAX_SECRET });
        }
        let write = || {
            let mut folder = fs::DirBuilder::new();
            folder.recursive(true).mode(0o700).create(&self.own)?;
            file::replace(&path, bytes, 0o600, Lasting::Disk)
        };
        write().map_err(file_error(&path))
    }

    /// Deletes a stored secret; succeeds if there is none.
    ///
    /// # Errors
    /// The name is invalid, or the file system refuses.
    pub fn forget(&self, name: &str) -> Result<(), SecretError> {
        let path = self.own_file(name)?;
        file::remove_for_good(&path).map_err(file_error(&path))
    }

    fn own_file(&self, name: &str) -> Result<PathBuf, SecretError> {
        match is_name(name) {
            true => Ok(self.own.join(name)),
            false => Err(SecretError::Name(name.to_owned())),
        }
    }
}

fn read(path: &Path) -> Result<Option<Secret>, SecretError> {
    let failed = file_error(path);
    // Checked before it is opened, because opening a pipe would wait for a writer.
    match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Ok(metadata) if !metadata.is_file() => {
            return Err(failed(io::Error::other("not a regular file")));
        }
        Err(error) => return Err(failed(error)),
        Ok(_) => {}
    }
    let file = File::open(path).map_err(&failed)?;
    // The mode of the open file, as the path may name another one by now.
    let metadata = file.metadata().map_err(&failed)?;
    if metadata.permissions().mode() & 0o077 != 0 {
        let path = path.to_owned();
        return Err(SecretError::Exposed { path });
    }
    // Reserved in full: growing would leave copies behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(MAX_SECRET + 1));
    file.take(MAX_SECRET as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(&failed)?;
    if bytes.len() > MAX_SECRET {
        return Err(SecretError::TooLarge { max: MAX_SECRET });
    }
    Ok(Some(Secret::new(bytes)))
}

fn file_error(path: &Path) -> impl Fn(io::Error) -> SecretError {
    let path = path.to_owned();
    move |source| SecretError::File {
        path: path.clone(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::assert_made_to_last;

    fn secret(text: &str) -> Secret {
        Secret::new(text.as_bytes().to_vec())
    }

    #[test]
    fn secrets_are_kept_replaced_and_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        let own = folder.path().join("secrets");
        let store = SecretStore {
            credentials: None,
            own: own.clone(),
        };
        assert!(matches!(store.get("psk"), Err(SecretError::NotKept(_))));
        for text in ["hunter2", "another"] {
            assert_made_to_last(1, || store.keep("psk", &secret(text))).unwrap();
            assert_eq!(store.get("psk").unwrap(), secret(text));
        }
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&own), mode(&own.join("psk"))), (0o700, 0o600));
        assert_made_to_last(1, || store.forget("psk")).unwrap();
        store.forget("psk").unwrap();
        assert!(matches!(store.get("psk"), Err(SecretError::NotKept(_))));

        for name in ["", "../psk", ".psk", "a/b"] {
            let refused = store.keep(name, &secret("x"));
            assert!(matches!(refused, Err(SecretError::Name(_))), "{name}");
            assert!(matches!(store.get(name), Err(SecretError::Name(_))));
        }
        let large = Secret::new(vec![1; MAX_SECRET + 1]);
        let refused = store.keep("large", &large);
        assert!(matches!(refused, Err(SecretError::TooLarge { .. })));
    }

    #[test]
    fn a_credential_wins_and_a_readable_file_is_refused() {
        let (credentials, own) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let store = SecretStore {
            credentials: Some(credentials.path().to_owned()),
            own: own.path().to_owned(),
        };
        store.keep("psk", &secret("kept")).unwrap();
        assert_eq!(store.get("psk").unwrap(), secret("kept"));
        let credential = credentials.path().join("psk");
        fs::write(&credential, "passed").unwrap();
        fs::set_permissions(&credential, fs::Permissions::from_mode(0o400)).unwrap();
        assert_eq!(store.get("psk").unwrap(), secret("passed"));

        fs::set_permissions(&credential, fs::Permissions::from_mode(0o440)).unwrap();
        let refused = store.get("psk").unwrap_err();
        assert!(matches!(refused, SecretError::Exposed { .. }));
        assert!(!format!("{refused} {refused:?}").contains("passed"));
        assert_eq!(format!("{:?}", secret("hunter2")), "Secret(…)");
    }
}
