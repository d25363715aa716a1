// SPDX-License-Identifier: MIT OR Apache-2.0
//! Configurations of tunnels as files (`loadFromPreferences`, `saveToPreferences`).
//!
//! A file `NAME.toml` in one of two folders is the [`TunnelConfiguration`] of the tunnel NAME: the
//! administrator's, which is only read, and the host's own, which clients write to by [`Store::save`].
//! The administrator's wins where both have one. Files that appear, change or go are noticed at once,
//! whichever program changes them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::Duration,
};

use futures_util::{FutureExt, StreamExt};
use inotify::{EventMask, EventOwned, Inotify, WatchMask, Watches};
use tracing::{info, warn};

use super::{
    event::EventKind,
    name::{MAX_NAME, is_name},
    tunnels::Host,
};
use crate::{
    machine::file::{self, Lasting},
    provider::TunnelConfiguration,
};

/// The administrator's folder.
pub const ADMIN_DIR: &str = "/etc/patchcord/tunnels.d";
/// The host's own folder.
pub const OWN_DIR: &str = "/var/lib/patchcord/tunnels";

/// An editor writes, renames and deletes within moments.
const SETTLE: Duration = Duration::from_millis(50);

/// Two folders of configurations.
#[derive(Clone, Debug)]
pub struct Store {
    admin: PathBuf,
    own: PathBuf,
}

/// Why a configuration is not stored, or not used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The file cannot be read, written or deleted.
    #[error("{}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The kernel's error.
        source: io::Error,
    },
    /// The file is not a configuration.
    #[error("{}: {problem}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// The error, with its position.
        problem: String,
    },
    /// A tunnel cannot have this name.
    #[error(
        "`{0}` is not a valid name for a tunnel: use letters, digits, `-`, `_` and `.`, {MAX_NAME} at most, the first a letter or digit"
    )]
    Name(String),
    /// It belongs to the administrator.
    #[error("`{0}` is configured in {ADMIN_DIR}; change it there")]
    ReadOnly(String),
}

impl Store {
    /// Configurations in these folders; a folder that does not exist is empty.
    pub fn new(admin: impl Into<PathBuf>, own: impl Into<PathBuf>) -> Self {
        Self {
            admin: admin.into(),
            own: own.into(),
        }
    }

    /// All configurations, and the errors of those that cannot be used.
    pub fn load(&self) -> (BTreeMap<String, TunnelConfiguration>, Vec<StoreError>) {
        let (mut tunnels, mut errors) = (BTreeMap::new(), Vec::new());
        for folder in [&self.own, &self.admin] {
            for path in files(folder, &mut errors) {
                match read(&path) {
                    Ok((name, configuration)) => drop(tunnels.insert(name, configuration)),
                    Err(error) => errors.push(error),
                }
            }
        }
        (tunnels, errors)
    }

    /// Stores a configuration across restarts. The file is complete or absent, also after a crash.
    ///
    /// # Errors
    /// The name is invalid, the administrator has a configuration for it, or the file system
    /// refuses.
    pub fn save(&self, name: &str, configuration: &TunnelConfiguration) -> Result<(), StoreError> {
        let path = self.own_file(name)?;
        let text = toml::to_string(configuration).map_err(|error| StoreError::Malformed {
            path: path.clone(),
            problem: error.to_string(),
        })?;
        let write = || {
            fs::create_dir_all(&self.own)?;
            file::replace(&path, text.as_bytes(), 0o600, Lasting::Disk)
        };
        write().map_err(|source| StoreError::File {
            path: path.clone(),
            source,
        })
    }

    /// Deletes a configuration; succeeds if there is none.
    ///
    /// # Errors
    /// As for [`save`](Self::save).
    pub fn remove(&self, name: &str) -> Result<(), StoreError> {
        let path = self.own_file(name)?;
        file::remove_for_good(&path).map_err(|source| StoreError::File { path, source })
    }

    fn own_file(&self, name: &str) -> Result<PathBuf, StoreError> {
        if !is_name(name) {
            return Err(StoreError::Name(name.to_owned()));
        }
        let file = format!("{name}.toml");
        if self.admin.join(&file).exists() {
            return Err(StoreError::ReadOnly(name.to_owned()));
        }
        Ok(self.own.join(file))
    }

    /// Gives `host` the present configurations, and each change of them, until the future is
    /// dropped. A file that cannot be used, or a folder that cannot be read, leaves the earlier
    /// configurations in force.
    ///
    /// # Errors
    /// When the folders cannot be created or watched.
    pub async fn feed(&self, host: &Host) -> io::Result<()> {
        let inotify = Inotify::init()?;
        let mut watches = inotify.watches();
        self.watch(&mut watches)?;
        let mut events = inotify.into_event_stream([0; 4096])?;
        let mut fed = self.hand_over(host, Fed::default());
        while let Some(event) = events.next().await {
            if self.is_unfinished(&event?) {
                continue;
            }
            tokio::time::sleep(SETTLE).await;
            // The same read covers changes that came meanwhile.
            while let Some(Some(event)) = events.next().now_or_never() {
                event?;
            }
            // A folder that was deleted or moved away is a new one now.
            if let Err(error) = self.watch(&mut watches) {
                warn!(%error, "cannot watch a folder of configurations: changes in it are not noticed");
            }
            fed = self.hand_over(host, fed);
        }
        Ok(())
    }

    /// Creates folders that do not exist, and watches those that are not watched yet.
    fn watch(&self, watches: &mut Watches) -> io::Result<()> {
        let of_files = WatchMask::CREATE | WatchMask::CLOSE_WRITE | WatchMask::DELETE;
        let of_folder = WatchMask::DELETE_SELF | WatchMask::MOVE_SELF;
        for folder in [&self.admin, &self.own] {
            fs::create_dir_all(folder)?;
            watches.add(folder, of_files | WatchMask::MOVE | of_folder)?;
        }
        Ok(())
    }

    /// Whether this is a new file that a program is about to write. A link is complete at once.
    fn is_unfinished(&self, event: &EventOwned) -> bool {
        let name = event.name.as_deref().unwrap_or_default();
        let is_link = |folder: &PathBuf| {
            let found = fs::symlink_metadata(folder.join(name));
            found.is_ok_and(|found| found.is_symlink() || found.nlink() > 1)
        };
        event.mask == EventMask::CREATE && ![&self.admin, &self.own].into_iter().any(is_link)
    }

    /// Returns what the host has afterwards.
    fn hand_over(&self, host: &Host, before: Fed) -> Fed {
        let (mut now, errors) = self.load();
        let problems = report_problems(host, &errors, &before.problems);
        // Which files of an unreadable folder are gone is unknown.
        let may_be_there = |name: &str| {
            let file = format!("{name}.toml");
            errors.iter().any(|error| match error {
                StoreError::File { path, .. } | StoreError::Malformed { path, .. } => {
                    path.ends_with(&file) || [&self.admin, &self.own].contains(&path)
                }
                StoreError::Name(_) | StoreError::ReadOnly(_) => false,
            })
        };
        for (name, configuration) in before.tunnels {
            if now.contains_key(&name) {
                continue;
            }
            if may_be_there(&name) {
                now.insert(name, configuration);
            } else if host.remove(&name).is_ok() {
                info!(
                    tunnel = name,
                    "the configuration was deleted: removing the tunnel"
                );
            }
        }
        for (name, configuration) in &now {
            // Without a generation, the host does not refuse it.
            let _ = host.configure(name, configuration.clone(), None);
        }
        Fed {
            tunnels: now,
            problems,
        }
    }
}

/// The configurations that a host was given.
#[derive(Default)]
struct Fed {
    tunnels: BTreeMap<String, TunnelConfiguration>,
    /// The errors of those that could not be used.
    problems: BTreeSet<String>,
}

/// Reports new problems, and returns all of them.
fn report_problems(
    host: &Host,
    errors: &[StoreError],
    before: &BTreeSet<String>,
) -> BTreeSet<String> {
    let mut problems = BTreeSet::new();
    for error in errors {
        let source = std::error::Error::source(error).map(ToString::to_string);
        let problem = match &source {
            Some(source) => format!("{error}: {source}"),
            None => error.to_string(),
        };
        if !before.contains(&problem) {
            let tunnel = error.tunnel();
            warn!(tunnel, %error, source, "cannot use a configuration; the earlier one stays in force");
            let problem = problem.clone();
            host.publish(&tunnel, None, EventKind::NotUsed { problem });
        }
        problems.insert(problem);
    }
    problems
}

impl StoreError {
    /// The tunnel of the file; empty for a folder.
    fn tunnel(&self) -> String {
        let file = match self {
            Self::File { path, .. } | Self::Malformed { path, .. } => path,
            Self::Name(name) | Self::ReadOnly(name) => return name.clone(),
        };
        let is_file = file
            .extension()
            .is_some_and(|extension| extension == "toml");
        let stem = file.file_stem().filter(|_| is_file);
        stem.unwrap_or_default().to_string_lossy().into_owned()
    }
}

/// The error in `text`, with its position, for a log in which each line is an entry.
fn in_one_line(text: &str, error: &toml::de::Error) -> String {
    let message: Vec<_> = error.message().lines().map(str::trim).collect();
    let message = message.join("; ");
    let before = error.span().and_then(|span| text.get(..span.start));
    match before {
        Some(before) => format!("line {}: {message}", before.matches('\n').count() + 1),
        None => message,
    }
}

fn files(folder: &Path, errors: &mut Vec<StoreError>) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder);
    let entries = entries.and_then(|entries| entries.collect::<io::Result<Vec<_>>>());
    let entries = entries.unwrap_or_else(|source| {
        if source.kind() != io::ErrorKind::NotFound {
            let path = folder.to_owned();
            errors.push(StoreError::File { path, source });
        }
        Vec::new()
    });
    let paths = entries.iter().map(fs::DirEntry::path);
    let mut paths: Vec<_> = paths
        .filter(|path| path.extension().is_some_and(|end| end == "toml"))
        .collect();
    paths.sort();
    paths
}

fn read(path: &Path) -> Result<(String, TunnelConfiguration), StoreError> {
    let name = path
        .file_stem()
        .and_then(|stem| stem.to_str())
        .unwrap_or_default();
    if !is_name(name) {
        return Err(StoreError::Name(path.display().to_string()));
    }
    let text = fs::read_to_string(path).map_err(|source| {
        let path = path.to_owned();
        StoreError::File { path, source }
    })?;
    let configuration = toml::from_str(&text).map_err(|error| StoreError::Malformed {
        path: path.to_owned(),
        problem: in_one_line(&text, &error),
    })?;
    Ok((name.to_owned(), configuration))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Log, assert_made_to_last, block_on};

    #[test]
    fn a_mistake_in_a_file_is_reported_in_one_line() {
        for (text, line, word) in [
            ("provider = \"echo\"\nvendor = 4\n", 2, "map"),
            ("provider = \"echo\"\n\nenabled = \n", 3, "value"),
        ] {
            let error = toml::from_str::<TunnelConfiguration>(text).unwrap_err();
            let told = in_one_line(text, &error);
            assert!(told.starts_with(&format!("line {line}: ")), "{told}");
            assert!(told.contains(word) && !told.contains('\n'), "{told}");
        }
    }

    #[test]
    fn configurations_are_kept_as_files() {
        let (admin, own) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let store = Store::new(admin.path(), own.path());
        let mut configuration = TunnelConfiguration::new("echo");
        configuration.routing.enforce_routes = true;
        configuration.vendor.insert("answer".into(), 42.into());
        assert_made_to_last(1, || store.save("office", &configuration)).unwrap();
        let (tunnels, errors) = store.load();
        assert!(errors.is_empty(), "{errors:?}");
        assert_eq!(
            tunnels,
            BTreeMap::from([("office".to_owned(), configuration.clone())])
        );

        for name in ["", "../a", ".a", "a/b", "a b", &"a".repeat(65)] {
            assert!(
                matches!(store.save(name, &configuration), Err(StoreError::Name(_))),
                "{name}"
            );
        }
        fs::write(
            admin.path().join("office.toml"),
            "provider = \"other\"\nenabled = false\n",
        )
        .unwrap();
        fs::write(admin.path().join("typo.toml"), "provder = \"echo\"\n").unwrap();
        let (tunnels, errors) = store.load();
        assert_eq!(
            (
                tunnels["office"].provider.as_str(),
                tunnels["office"].enabled
            ),
            ("other", false)
        );
        assert!(
            errors[0].to_string().contains("typo.toml")
                && errors[0].to_string().contains("provder")
        );
        assert!(matches!(
            store.remove("office"),
            Err(StoreError::ReadOnly(_))
        ));
        fs::remove_file(admin.path().join("office.toml")).unwrap();
        store.remove("office").unwrap();
        store.remove("office").unwrap();
        assert!(store.load().0.is_empty());
    }

    #[test]
    fn a_folder_that_cannot_be_read_takes_no_tunnel_away() {
        let folder = tempfile::tempdir().unwrap();
        let (admin, own) = (folder.path().join("admin"), folder.path().join("own"));
        let store = Store::new(&admin, &own);
        let host = Host::builder(folder.path()).build();
        fs::create_dir(&admin).unwrap();
        fs::write(admin.join("office.toml"), "provider = \"echo\"\n").unwrap();
        let fed = store.hand_over(&host, Fed::default());
        fs::remove_dir_all(&admin).unwrap();
        fs::write(&admin, "no folder").unwrap();
        let fed = store.hand_over(&host, fed);
        assert_eq!((fed.tunnels.len(), host.list().len()), (1, 1));
        fs::remove_file(&admin).unwrap();
        let fed = store.hand_over(&host, fed);
        assert_eq!((fed.tunnels.len(), host.list().len()), (0, 0));
    }

    #[test]
    fn many_changes_at_once_are_one_look() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::new(folder.path().join("admin"), folder.path().join("own"));
        let host = Host::builder(folder.path()).build();
        let log = Log::default();
        let _logging = tracing::subscriber::set_default(log.subscriber());
        block_on(async {
            let feed = store.feed(&host);
            let change = async {
                tokio::time::sleep(SETTLE).await;
                fs::write(store.admin.join("typo.toml"), "provder = \"echo\"\n").unwrap();
                for number in 0..100 {
                    let path = store.admin.join(format!("{number}.toml"));
                    fs::write(path, "provider = \"echo\"\n").unwrap();
                }
                tokio::time::sleep(10 * SETTLE).await;
            };
            tokio::select! {
                fed = feed => panic!("{fed:?}"),
                () = change => {}
            }
        });
        assert_eq!(host.list().len(), 100);
        let lines = log.text();
        assert_eq!(lines.matches("typo.toml").count(), 1, "{lines}");
    }
}
