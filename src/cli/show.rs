// SPDX-License-Identifier: MIT OR Apache-2.0
//! `show`: asks running tunnels for their status. How a status looks on a screen is in `status`.

use std::io;
use std::path::Path;

use anyhow::Context;
use patchcord::config::RESERVED_NAME;
use patchcord::control::client::{self, ClientError};
use patchcord::control::message::{Reply, Request, Status};
use patchcord::control::socket_path;

use super::tunnel::{ask, unexpected};
use super::{Failure, ShowOptions, print, status};

pub(super) fn show(options: &ShowOptions) -> Result<(), Failure> {
    let text = match &options.name {
        Some(name) => {
            let reply = ask(name, &options.run_dir.path, Request::Show)?;
            let Reply::Status(status) = reply else {
                return Err(unexpected(name, &reply));
            };
            if options.json {
                json(&status)?
            } else {
                status::page(&status)
            }
        }
        None => {
            let running = all(&options.run_dir.path)?;
            if options.json {
                json(&running)?
            } else {
                status::list(&running)
            }
        }
    };
    print(&text)?;
    Ok(())
}

fn json(value: &impl serde::Serialize) -> Result<String, Failure> {
    Ok(serde_json::to_string_pretty(value)? + "\n")
}

/// The status of every running tunnel, by name.
pub(super) fn all(run_dir: &Path) -> Result<Vec<Status>, Failure> {
    let mut running = Vec::new();
    for name in sockets(run_dir)? {
        match client::request_at(&socket_path(run_dir, &name), Request::Show) {
            Ok(Reply::Status(status)) => running.push(*status),
            Ok(reply) => return Err(unexpected(&name, &reply)),
            // Its tunnel was killed, or ended since the directory was read.
            Err(ClientError::NotRunning(_)) => {}
            Err(error) => return Err(anyhow::Error::new(error).context(name).into()),
        }
    }
    Ok(running)
}

/// The names for which there is a socket, in order; some may be of tunnels that were killed.
fn sockets(run_dir: &Path) -> Result<Vec<String>, Failure> {
    let entries = match run_dir.read_dir() {
        Ok(entries) => entries,
        // No tunnel has run since the machine started.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => Err(error).with_context(|| run_dir.display().to_string())?,
    };
    let mut names: Vec<_> = entries
        .filter_map(|entry| {
            Some(
                entry
                    .ok()?
                    .file_name()
                    .to_str()?
                    .strip_suffix(".sock")?
                    .to_owned(),
            )
        })
        .collect();
    names.retain(|name| name != RESERVED_NAME);
    names.sort();
    Ok(names)
}
