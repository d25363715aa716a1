// SPDX-License-Identifier: MIT OR Apache-2.0
//! `/etc/resolv.conf` itself, on machines where no other program manages it.
//!
//! The first line names the owner. The earlier file or link is kept beside it under another name, so
//! that one rename restores it, even after a power cut.

use std::{
    fs::{self, File, Permissions},
    io::{self, Write},
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use tracing::{info, warn};

use super::{
    error::{NamesError, file_error},
    request::NamesRequest,
};
use crate::machine::file::{remove, remove_for_good, sync_folder_of};

/// The start of the first line, for every tunnel; the path of the tunnel's journal follows.
const MARK: &str = "# Written by patchcord ";

/// A file that replaces another one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Replacement {
    path: PathBuf,
    /// The path of the other one; `None` if there was none.
    backup: Option<PathBuf>,
    /// The possible contents of the file: one text, or two while one replaces the other. The last
    /// is the wanted one.
    texts: Vec<String>,
}

impl Replacement {
    /// Plans the replacement of the present file.
    pub(super) fn plan(
        path: &Path,
        journal: &Path,
        request: &NamesRequest,
    ) -> Result<Self, NamesError> {
        let first_line = first_line(path);
        if first_line.starts_with(MARK) {
            return Err(NamesError::Taken {
                path: path.to_owned(),
                by: first_line,
            });
        }
        let existed = path.symlink_metadata().is_ok();
        Ok(Self {
            path: path.to_owned(),
            backup: existed.then(|| backup(path, journal)),
            texts: vec![text(journal, request)],
        })
    }

    /// The same place with another text. If another program replaced the file, its version is the
    /// one to restore.
    pub(super) fn with(self, journal: &Path, request: &NamesRequest) -> Result<Self, NamesError> {
        if !self.has_header() {
            return Self::plan(&self.path, journal, request);
        }
        let texts = self.texts.into_iter().rev().take(1);
        Ok(Self {
            texts: texts.chain([text(journal, request)]).collect(),
            ..self
        })
    }

    /// The replacement that the tunnel of this journal left before the machine lost power.
    pub(super) fn left(path: &Path, journal: &Path) -> Option<Self> {
        let text = fs::read_to_string(path).ok()?;
        let backup = backup(path, journal);
        text.starts_with(&header(journal)).then(|| Self {
            path: path.to_owned(),
            backup: backup.symlink_metadata().is_ok().then_some(backup),
            texts: vec![text],
        })
    }

    /// Writes the text.
    pub(super) fn put(&self) -> Result<(), NamesError> {
        let put = || {
            // Once our file is in place, it must not become the backup.
            if let Some(backup) = &self.backup
                && !self.has_header()
            {
                copy(&self.path, backup)?;
            }
            let text = self.texts.last().map_or("", String::as_str);
            replace(&self.path, text.as_bytes())
        };
        put().map_err(file_error(&self.path))
    }

    /// Restores the earlier file, unless another program changed ours.
    pub(super) fn restore(&self) -> Result<(), NamesError> {
        let restore = || match &self.backup {
            Some(backup) if backup.symlink_metadata().is_err() => {
                warn!(path = %self.path.display(), "cannot restore the file: its backup is missing, so our version stays; write the machine's name servers into it");
                Ok(())
            }
            Some(backup) if self.is_in_place() => bring_back(backup, &self.path),
            None if self.is_in_place() => remove_for_good(&self.path),
            backup => {
                let path = self.path.display();
                info!(%path, "not restoring the file: another program has changed it since; leaving its version");
                backup.as_deref().map_or(Ok(()), remove)
            }
        };
        restore().map_err(file_error(&self.path))
    }

    /// Whether patchcord wrote the file, and it was at most edited since.
    fn has_header(&self) -> bool {
        let ours = self.texts.last().and_then(|text| text.lines().next());
        ours == Some(&first_line(&self.path))
    }

    fn is_in_place(&self) -> bool {
        fs::read_to_string(&self.path).is_ok_and(|now| self.texts.contains(&now))
    }
}

/// The file, or the one that a tunnel will restore.
pub(super) fn without_tunnel(path: &Path) -> String {
    let journal = first_line(path)
        .strip_prefix(MARK)
        .and_then(|rest| rest.strip_prefix('('))
        .and_then(|rest| rest.split_once(')'))
        .map(|(journal, _)| PathBuf::from(journal));
    let path = match journal {
        Some(journal) => &backup(path, &journal),
        None => path,
    };
    fs::read_to_string(path).unwrap_or_default()
}

fn first_line(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines().next().unwrap_or_default().to_owned()
}

fn header(journal: &Path) -> String {
    let journal = journal.display();
    format!("{MARK}({journal}). What was here comes back when its tunnel stops.\n")
}

fn text(journal: &Path, request: &NamesRequest) -> String {
    header(journal) + &request.as_resolv_conf()
}

fn backup(path: &Path, journal: &Path) -> PathBuf {
    let tunnel = journal.file_stem().unwrap_or_default();
    sibling(path, &format!("patchcord-{}", tunnel.display()))
}

fn sibling(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(suffix);
    name.into()
}

/// A link is copied as a link.
fn copy(from: &Path, to: &Path) -> io::Result<()> {
    remove(to)?;
    match fs::read_link(from) {
        Ok(target) => symlink(target, to)?,
        Err(_) => {
            fs::copy(from, to)?;
            File::open(to)?.sync_all()?;
        }
    }
    sync_folder_of(to)
}

/// A reader finds the old or the new text, never a part of one.
fn replace(path: &Path, text: &[u8]) -> io::Result<()> {
    let new = sibling(path, "patchcord-new");
    let mut file = File::create(&new)?;
    file.set_permissions(Permissions::from_mode(0o644))?;
    file.write_all(text)?;
    file.sync_all()?;
    bring_back(&new, path)
}

/// Renames; in a container, though, the file is often a mount of its own, which can only be written to.
fn bring_back(from: &Path, to: &Path) -> io::Result<()> {
    match fs::rename(from, to) {
        Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
            warn!(path = %to.display(), "the file is a mount of its own and cannot be replaced in one step; writing into it");
            fs::write(to, fs::read(from)?)?;
            File::open(to)?.sync_all()?;
            remove(from)?;
        }
        outcome => outcome?,
    }
    sync_folder_of(to)
}
