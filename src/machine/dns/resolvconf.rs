// SPDX-License-Identifier: MIT OR Apache-2.0
//! The resolvconf program, openresolv's or Debian's: it stores the name servers of each interface, and
//! makes `/etc/resolv.conf` of them.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Output, Stdio},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::{io::AsyncWriteExt, process::Command, time::timeout};

use super::{error::NamesError, request::NamesRequest};

/// resolvconf runs scripts that restart servers.
const RUN_TIME: Duration = Duration::from_secs(10);

/// The program.
#[derive(Debug)]
pub(super) struct Resolvconf {
    program: PathBuf,
}

/// The record that the program stores for a tunnel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Entry {
    program: PathBuf,
    key: String,
}

impl Resolvconf {
    /// The first one in these directories. systemd-resolved has a program of this name too, which
    /// has no effect where systemd-resolved is not in charge.
    pub(super) fn find(directories: &[PathBuf]) -> Option<Self> {
        let is_real = |program: &PathBuf| {
            is_executable(program)
                && fs::canonicalize(program).is_ok_and(|real| !real.ends_with("resolvectl"))
        };
        let programs = directories.iter().map(|dir| dir.join("resolvconf"));
        programs
            .into_iter()
            .find(is_real)
            .map(|program| Self { program })
    }

    /// The record of the program for the interface of this name.
    pub(super) fn entry(&self, interface: &str) -> Entry {
        Entry {
            program: self.program.clone(),
            key: format!("{interface}.patchcord"),
        }
    }

    /// Adds the servers, or replaces those of the interface, before and instead of all others.
    pub(super) async fn add(
        &self,
        interface: &str,
        request: &NamesRequest,
    ) -> Result<(), NamesError> {
        let entry = self.entry(interface);
        let arguments = ["-a", &entry.key, "-m", "0", "-x"];
        entry.run(&arguments, &request.as_resolv_conf()).await
    }
}

impl Entry {
    /// Deletes the record; succeeds if the program was removed.
    pub(super) async fn delete(&self) -> Result<(), NamesError> {
        if !is_executable(&self.program) {
            return Ok(());
        }
        self.run(&["-d", &self.key], "").await
    }

    async fn run(&self, arguments: &[&str], input: &str) -> Result<(), NamesError> {
        let run = run(&self.program, arguments, input);
        let outcome = timeout(RUN_TIME, run).await;
        let outcome = outcome.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        outcome.map_err(|source| NamesError::Resolvconf {
            program: self.program.clone(),
            source,
        })
    }
}

fn is_executable(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
}

async fn run(program: &Path, arguments: &[&str], input: &str) -> io::Result<()> {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        match stdin.write_all(input.as_bytes()).await {
            // The program need not read its input.
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => return Err(error),
            _ => {}
        }
    }
    let Output { status, stderr, .. } = child.wait_with_output().await?;
    if status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&stderr);
    Err(io::Error::other(format!("{status}: {}", said.trim())))
}
