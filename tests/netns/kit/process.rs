// SPDX-License-Identifier: MIT OR Apache-2.0
//! A child process with a log file, and the one way of waiting that the tests use.

use std::fs::{self, OpenOptions};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// How many times as long as usual a test waits, for machines that are that slow: scripts/kernel_test.py
/// emulates their processors.
fn patience() -> u32 {
    static PATIENCE: OnceLock<u32> = OnceLock::new();
    let read = || {
        std::env::var("PATCHCORD_TEST_PATIENCE").map_or(1, |text| text.parse().expect("a number"))
    };
    *PATIENCE.get_or_init(read)
}

/// Polls until `attempt` returns a value; after `limit`, fails the test with `what` in the message.
///
/// The longer it takes, the less often it polls: an attempt may start a program or two, and a test that
/// waits for seconds should leave the cores to the others.
pub(crate) fn eventually<T>(
    limit: Duration,
    what: &str,
    mut attempt: impl FnMut() -> Option<T>,
) -> T {
    let limit = limit * patience();
    let begun = Instant::now();
    loop {
        if let Some(value) = attempt() {
            return value;
        }
        let waited = begun.elapsed();
        assert!(waited < limit, "within {limit:?}: {what}");
        thread::sleep((waited / 10).clamp(millis(10), millis(100)));
    }
}

pub(crate) const fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

pub(crate) const fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// Ends with its value, by SIGKILL if necessary.
pub(crate) struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    pub(crate) fn spawn(mut command: Command, log: &Path) -> Self {
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(log)
            .expect("the log can be opened");
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone().expect("a file can be cloned"))
            .stderr(file)
            .process_group(0)
            .spawn()
            .expect("nsenter can be run");
        Self {
            child,
            log: log.to_owned(),
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits for a word in the log.
    pub(crate) fn wait_for(&mut self, word: &str, limit: Duration) {
        eventually(
            limit,
            &format!("`{word}` in {}", self.log.display()),
            || {
                if self.log().contains(word) {
                    return Some(());
                }
                let ended = self.child.try_wait().expect("a child can be waited for");
                assert!(
                    ended.is_none(),
                    "the process ended ({ended:?}) before `{word}`:\n{}",
                    self.log()
                );
                None
            },
        );
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).expect("the child is there");
    }

    /// Waits until the process ends by itself.
    pub(crate) fn wait_exit(&mut self, limit: Duration) -> ExitStatus {
        eventually(limit, "the process ended", || {
            self.child.try_wait().expect("a child can be waited for")
        })
    }

    /// Ends it as a power cut would.
    pub(crate) fn kill_9(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// A field of /proc/PID/status, in KiB.
    /// The niceness of each of its threads, by name.
    pub(crate) fn niceness(&self) -> Vec<(String, i32)> {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.pid())).expect("it runs");
        let stats = tasks.filter_map(|task| {
            // A thread may end meanwhile.
            fs::read_to_string(task.ok()?.path().join("stat")).ok()
        });
        let of_thread = |stat: String| {
            let (name, fields) = stat.split_once('(')?.1.rsplit_once(") ")?;
            let nice = fields.split(' ').nth(16)?.parse().ok()?;
            Some((name.to_owned(), nice))
        };
        stats.filter_map(of_thread).collect()
    }

    pub(crate) fn memory_kib(&self) -> u64 {
        let status =
            fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("the process lives");
        let line = status
            .lines()
            .find(|line| line.starts_with("VmRSS:"))
            .expect("VmRSS is there");
        line.split_whitespace()
            .nth(1)
            .and_then(|kib| kib.parse().ok())
            .expect("VmRSS is a number")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill_9();
    }
}
