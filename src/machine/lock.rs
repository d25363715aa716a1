// SPDX-License-Identifier: MIT OR Apache-2.0
//! Locks against a second process on the same tunnel or the same device.
//!
//! A lock is a file in the run directory under `flock`: the kernel frees it with the process,
//! however that ends. The file names its holder for the error message. `device` takes those of
//! tunnels and devices, `routing` its own.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::io::{NAMESPACE, namespace_inode, sys};

/// Why a lock cannot be taken.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LockError {
    /// This tunnel runs already.
    #[error(
        "tunnel `{tunnel}` is already up{}: stop it first with `patchcord down {tunnel}`, or `patchcord host stop {tunnel}` if a host runs it", by(*.pid)
    )]
    TunnelHeld {
        /// The tunnel.
        tunnel: String,
        /// The process that holds the lock, if it is known.
        pid: Option<u32>,
    },
    /// Another tunnel uses the device.
    #[error("device `{device}` belongs to another tunnel{}: choose another device.name", by(*.pid))]
    DeviceHeld {
        /// The device.
        device: String,
        /// The process that holds the lock, if it is known.
        pid: Option<u32>,
    },
    /// A lock file cannot be created in the run directory.
    #[error("cannot lock {}: {cause}{}", path.display(), remedy(.cause))]
    Io {
        /// The lock file.
        path: PathBuf,
        /// The kernel's error.
        cause: io::Error,
    },
}

fn by(pid: Option<u32>) -> String {
    pid.map_or_else(String::new, |pid| format!(" (process {pid})"))
}

fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => {
            "; run as root, or let this user write to that directory"
        }
        io::ErrorKind::ReadOnlyFilesystem => {
            "; mount a writable file system, such as a tmpfs, there"
        }
        io::ErrorKind::StorageFull => "; free some space there",
        _ => "",
    }
}

/// The name of a tunnel, for this process alone.
#[derive(Debug)]
pub(crate) struct RunLock {
    _file: LockFile,
}

impl RunLock {
    /// Takes the lock of `tunnel` in the run directory `dir`, which is made when it does not exist. The
    /// holder is a host: clients of the tunnel ask at its socket.
    ///
    /// # Errors
    /// When another holder lives, or the directory is not writable.
    pub(crate) fn acquire(dir: &Path, tunnel: &str) -> Result<Self, LockError> {
        Self::acquire_as("", dir, tunnel)
    }

    /// The same for a process that runs only this tunnel, and makes a socket for it. The file says so from
    /// the first moment: until the socket is there, and when it is gone, nothing else does.
    ///
    /// # Errors
    /// As [`Self::acquire`].
    pub(crate) fn acquire_alone(dir: &Path, tunnel: &str) -> Result<Self, LockError> {
        Self::acquire_as(ALONE, dir, tunnel)
    }

    fn acquire_as(role: &str, dir: &Path, tunnel: &str) -> Result<Self, LockError> {
        let file = LockFile::acquire_as(role, dir.join(format!("{tunnel}.lock")));
        // Once in a while, and a start is one.
        sweep(dir);
        let held = |pid| LockError::TunnelHeld {
            tunnel: tunnel.to_owned(),
            pid,
        };
        Ok(Self {
            _file: file.map_err(|refusal| refusal.into_error(held))?,
        })
    }
}

/// In the lock of a tunnel, behind the process: it runs no other.
const ALONE: &str = "alone";

/// Whether a host that lives holds the lock of `tunnel` in the run directory `dir`.
pub fn is_hosted(dir: &Path, tunnel: &str) -> bool {
    let text = fs::read_to_string(dir.join(format!("{tunnel}.lock"))).unwrap_or_default();
    pid_in(&text).is_some_and(is_alive) && text.split_whitespace().nth(1) != Some(ALONE)
}

/// The name of a device in the network namespace of this thread, for this process alone.
///
/// The kernel guards only devices with a single queue: any process may attach to a multi-queue TAP, and
/// would receive some of its frames.
#[derive(Debug)]
pub(crate) struct DeviceLock {
    _file: LockFile,
}

impl DeviceLock {
    /// Takes the lock of `device` in the run directory `dir`.
    ///
    /// # Errors
    /// When another holder lives, or the directory is not writable.
    pub(crate) fn acquire(dir: &Path, device: &str) -> Result<Self, LockError> {
        let at = |cause| LockError::Io {
            path: PathBuf::from(NAMESPACE),
            cause,
        };
        let namespace = namespace_inode().map_err(at)?;
        let file = LockFile::acquire(dir.join(format!("{namespace}-{device}.device-lock")));
        let held = |pid| LockError::DeviceHeld {
            device: device.to_owned(),
            pid,
        };
        Ok(Self {
            _file: file.map_err(|refusal| refusal.into_error(held))?,
        })
    }
}

/// One of the numbers that `routing` gives to tunnels, in the network namespace of this thread, for
/// this process alone.
#[derive(Debug)]
pub(super) struct RoutingLock {
    _file: LockFile,
}

impl RoutingLock {
    /// Takes the lock of `number` in the run directory `dir`; None when another holder lives.
    ///
    /// # Errors
    /// When the directory is not writable.
    pub(super) fn try_acquire(dir: &Path, number: u8) -> Result<Option<Self>, LockError> {
        let at = |cause| LockError::Io {
            path: PathBuf::from(NAMESPACE),
            cause,
        };
        let namespace = namespace_inode().map_err(at)?;
        match LockFile::acquire(dir.join(format!("{namespace}-{number}.routing-lock"))) {
            Ok(file) => Ok(Some(Self { _file: file })),
            Err(Refusal::Held(_)) => Ok(None),
            Err(Refusal::Io(path, cause)) => Err(LockError::Io { path, cause }),
        }
    }
}

/// A locked file, deleted on drop.
#[derive(Debug)]
struct LockFile {
    path: PathBuf,
    file: File,
}

enum Refusal {
    Held(Option<u32>),
    Io(PathBuf, io::Error),
}

impl Refusal {
    fn into_error(self, held: impl FnOnce(Option<u32>) -> LockError) -> LockError {
        match self {
            Self::Held(pid) => held(pid),
            Self::Io(path, cause) => LockError::Io { path, cause },
        }
    }
}

impl LockFile {
    fn acquire(path: PathBuf) -> Result<Self, Refusal> {
        Self::acquire_as("", path)
    }

    /// `role`: a word about this process for the file, or none.
    fn acquire_as(role: &str, path: PathBuf) -> Result<Self, Refusal> {
        match Self::try_acquire(role, &path) {
            Ok(Ok(file)) => Ok(Self { path, file }),
            Ok(Err(pid)) => Err(Refusal::Held(pid)),
            Err(error) => Err(Refusal::Io(path, error)),
        }
    }

    /// The locked file, or the process that holds it.
    fn try_acquire(role: &str, path: &Path) -> io::Result<Result<File, Option<u32>>> {
        if let Some(dir) = path.parent() {
            make_run_dir(dir)?;
        }
        let mut patience = 200;
        loop {
            let mut file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                // A process that can open a file for reading can lock it.
                .mode(0o600)
                .custom_flags(sys::O_NOFOLLOW)
                .open(path)?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    let pid = read_pid(&mut file);
                    // A process that sweeps holds the file of a dead process, and deletes it at
                    // once.
                    if patience > 0 && !pid.is_some_and(is_alive) {
                        patience -= 1;
                        wait_for_sweep();
                        continue;
                    }
                    return Ok(Err(pid));
                }
                Err(TryLockError::Error(error)) => return Err(error),
            }
            // The previous holder deletes the file when it leaves. If that happened between our
            // open and our lock, no other process can see the lock that we hold.
            if fs::metadata(path).is_ok_and(|there| is_same_file(&there, &file)) {
                file.set_len(0)?;
                let holder = format!("{} {role}", std::process::id());
                file.write_all(holder.trim_end().as_bytes())?;
                return Ok(Ok(file));
            }
        }
    }
}

fn is_alive(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

#[expect(clippy::disallowed_methods, reason = "io may block, and this is short")]
fn wait_for_sweep() {
    std::thread::sleep(Duration::from_millis(1));
}

/// Deletes the locks without a holder: a `kill -9` leaves them, and in a namespace that is gone no
/// process would ever take them again.
fn sweep(dir: &Path) {
    let Ok(entries) = fs::read_dir(dir) else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if SWEPT.iter().any(|ending| name.ends_with(ending)) {
            // A file that cannot be deleted now stays until the next time.
            let _ = delete_if_free(&entry.path());
        }
    }
}

/// The endings of files that a namespace has of its own.
const SWEPT: [&str; 2] = [".device-lock", ".routing-lock"];

fn delete_if_free(path: &Path) -> io::Result<()> {
    let mut options = OpenOptions::new();
    let options = options.read(true).custom_flags(sys::O_NOFOLLOW);
    let mut file = options.open(path)?;
    // A live process may be about to lock it.
    if read_pid(&mut file).is_none_or(is_alive) || file.try_lock().is_err() {
        return Ok(());
    }
    if is_same_file(&fs::metadata(path)?, &file) {
        fs::remove_file(path)?;
    }
    file.unlock()
}

impl Drop for LockFile {
    fn drop(&mut self) {
        // While still locked: afterwards it may be another process's file.
        let _ = fs::remove_file(&self.path);
        // Closing is not enough while a child, between fork and exec, has a copy of the descriptor.
        let _ = self.file.unlock();
    }
}

/// Only its owner may create files there, whatever the umask is: a link of another user in it would
/// redirect our writes.
fn make_run_dir(dir: &Path) -> io::Result<()> {
    if let Ok(metadata) = fs::metadata(dir) {
        return check_run_dir(&metadata);
    }
    DirBuilder::new()
        .recursive(true)
        .mode(RUN_DIR_MODE)
        .create(dir)?;
    // Set again, because the umask may have removed bits.
    fs::set_permissions(dir, Permissions::from_mode(RUN_DIR_MODE))
}

const RUN_DIR_MODE: u32 = 0o755;

fn check_run_dir(metadata: &fs::Metadata) -> io::Result<()> {
    const ROOT: u32 = 0;
    const WRITABLE_BY_OTHERS: u32 = 0o022;
    let is_trusted = [ROOT, sys::effective_uid()].contains(&metadata.uid());
    if is_trusted && metadata.mode() & WRITABLE_BY_OTHERS == 0 {
        return Ok(());
    }
    Err(io::Error::other(
        "others can change the directory: give it to the user of the tunnel, with mode 755",
    ))
}

fn is_same_file(there: &fs::Metadata, file: &File) -> bool {
    file.metadata()
        .is_ok_and(|here| here.ino() == there.ino() && here.dev() == there.dev())
}

fn read_pid(file: &mut File) -> Option<u32> {
    let mut text = String::new();
    file.read_to_string(&mut text).ok()?;
    pid_in(&text)
}

fn pid_in(text: &str) -> Option<u32> {
    text.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::in_namespace;

    #[test]
    fn a_second_holder_gets_the_pid_of_the_first() {
        let dir = tempfile::tempdir().unwrap();
        let first = RunLock::acquire(dir.path(), "office").unwrap();
        let error = RunLock::acquire(dir.path(), "office")
            .unwrap_err()
            .to_string();
        let pid = std::process::id();
        assert!(
            error.contains(&format!("`office` is already up (process {pid})")),
            "{error}"
        );
        RunLock::acquire(dir.path(), "home").unwrap();
        drop(first);
        RunLock::acquire(dir.path(), "office").unwrap();
        assert_eq!(
            fs::read_dir(dir.path()).unwrap().count(),
            0,
            "nothing is left behind"
        );
    }

    #[test]
    fn a_lock_tells_a_host_from_a_process_that_runs_one_tunnel() {
        let dir = tempfile::tempdir().unwrap();
        assert!(!is_hosted(dir.path(), "office"), "nobody runs it");
        let hosted = RunLock::acquire(dir.path(), "office").unwrap();
        assert!(is_hosted(dir.path(), "office"));
        drop(hosted);
        let _alone = RunLock::acquire_alone(dir.path(), "office").unwrap();
        assert!(!is_hosted(dir.path(), "office"));
        let error = RunLock::acquire(dir.path(), "office").unwrap_err();
        let pid = format!("(process {})", std::process::id());
        assert!(error.to_string().contains(&pid), "{error}");
        fs::write(dir.path().join("home.lock"), "4194305").unwrap();
        assert!(!is_hosted(dir.path(), "home"), "its host is dead");
    }

    #[test]
    fn a_device_is_locked_per_namespace() {
        let dir = tempfile::tempdir().unwrap();
        let _here = DeviceLock::acquire(dir.path(), "tap7").unwrap();
        let error = DeviceLock::acquire(dir.path(), "tap7").unwrap_err();
        assert!(matches!(error, LockError::DeviceHeld { .. }), "{error:?}");
        let _there = in_namespace(|| DeviceLock::acquire(dir.path(), "tap7")).unwrap();
    }

    #[test]
    fn a_file_left_by_a_dead_process_does_not_lock() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(
            dir.path().join("office.lock"),
            "4194304 and longer than a pid",
        )
        .unwrap();
        let _lock = RunLock::acquire(dir.path(), "office").unwrap();
        let text = fs::read_to_string(dir.path().join("office.lock")).unwrap();
        assert_eq!(text, std::process::id().to_string());
    }

    #[test]
    fn locks_of_the_dead_are_swept_and_those_of_the_living_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
        let dead = "4194305";
        write("4026531840-tap7.device-lock", dead);
        write("4026531840-3.routing-lock", dead);
        // About to be locked, or not a lock of patchcord.
        write("1-tap7.device-lock", "");
        write("2-tap7.device-lock", &std::process::id().to_string());
        write("office.journal", dead);
        let _held = DeviceLock::acquire(dir.path(), "tap7").unwrap();
        let held = format!("{}-tap7.device-lock", namespace_inode().unwrap());
        // As if its holder lived in another PID namespace.
        write(&held, dead);
        let _lock = RunLock::acquire(dir.path(), "home").unwrap();
        let names = fs::read_dir(dir.path()).unwrap();
        let mut names: Vec<_> = names
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        let mut expected = [
            "1-tap7.device-lock",
            "2-tap7.device-lock",
            &held,
            "home.lock",
            "office.journal",
        ];
        expected.sort_unstable();
        assert_eq!(names, expected);
    }

    #[test]
    fn others_can_neither_hold_a_lock_nor_lead_it_astray() {
        let dir = tempfile::tempdir().unwrap();
        let mode_of = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        let run_dir = dir.path().join("run");
        // The umask of this thread alone.
        let modes = std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                nix::sched::unshare(nix::sched::CloneFlags::CLONE_FS).unwrap();
                nix::sys::stat::umask(nix::sys::stat::Mode::empty());
                let _lock = RunLock::acquire(&run_dir, "office").unwrap();
                (mode_of(&run_dir), mode_of(&run_dir.join("office.lock")))
            });
            thread.join().unwrap()
        });
        assert_eq!(modes, (0o755, 0o600));

        let precious = dir.path().join("precious");
        fs::write(&precious, "precious").unwrap();
        std::os::unix::fs::symlink(&precious, run_dir.join("home.lock")).unwrap();
        assert!(RunLock::acquire(&run_dir, "home").is_err());
        assert_eq!(fs::read(&precious).unwrap(), b"precious");
    }

    #[test]
    fn a_lock_whose_file_was_replaced_is_not_taken_for_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("office.lock");
        let _ours = RunLock::acquire(dir.path(), "office").unwrap();
        let opened = File::open(&path).unwrap();
        fs::remove_file(&path).unwrap();
        fs::write(&path, "").unwrap();
        assert!(!is_same_file(&fs::metadata(&path).unwrap(), &opened));
    }

    #[test]
    fn a_refusal_of_the_kernel_comes_with_a_remedy() {
        for (kind, remedy) in [
            (io::ErrorKind::PermissionDenied, "; run as root"),
            (
                io::ErrorKind::ReadOnlyFilesystem,
                "; mount a writable file system",
            ),
            (io::ErrorKind::StorageFull, "; free some space"),
        ] {
            let error = LockError::Io {
                path: "run/office.lock".into(),
                cause: kind.into(),
            };
            let text = error.to_string();
            let expected = format!("cannot lock run/office.lock: {kind}{remedy}");
            assert!(text.starts_with(&expected), "{text}");
        }
    }

    #[test]
    fn a_run_directory_that_cannot_be_made_is_an_error_with_its_path() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = RunLock::acquire(&file.path().join("run"), "office")
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("run/office.lock: Not a directory"),
            "{error}"
        );
    }

    #[test]
    fn a_run_directory_that_others_can_change_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        for (mode, is_fine) in [
            (0o755, true),
            (0o700, true),
            (0o775, false),
            (0o1777, false),
        ] {
            fs::set_permissions(dir.path(), Permissions::from_mode(mode)).unwrap();
            let lock = RunLock::acquire(dir.path(), "office");
            assert_eq!(lock.is_ok(), is_fine, "{mode:o}");
        }
    }
}
