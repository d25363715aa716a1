// SPDX-License-Identifier: MIT OR Apache-2.0
//! `show`: asks running tunnels for their status. How a status looks on a screen is in `status`.

use std::io;
use std::path::Path;

use anyhow::{Context, anyhow};
use patchcord::config::RESERVED_NAME;
use patchcord::control::client::{self, ClientError};
use patchcord::control::message::{PeerStatus, Reply, Request, Status};
use patchcord::control::socket_path;

use super::tunnel::{ask, unexpected};
use super::{Failure, ShowOptions, hosted, print, status};

pub(super) fn show(options: &ShowOptions) -> Result<(), Failure> {
    let shown = match &options.name {
        Some(name) => {
            let reply = ask(name, &options.run_dir.path, Request::Show)?;
            let Reply::Status(status) = reply else {
                return Err(unexpected(name, &reply));
            };
            print(&one(&status, options)?)?;
            vec![*status]
        }
        None => {
            let running = all(&options.run_dir.path)?;
            print(&match options.json {
                true => json(&running)?,
                false => status::list(&running),
            })?;
            running
        }
    };
    match options.check {
        true => check(&shown),
        false => Ok(()),
    }
}

fn one(status: &Status, options: &ShowOptions) -> Result<String, Failure> {
    if options.json {
        return json(status);
    }
    let Some(wanted) = &options.peer else {
        return Ok(status::page(status, options.verbose));
    };
    let is_wanted = |peer: &&PeerStatus| [&peer.name, &peer.public_key].contains(&wanted);
    let peer = status.peers.iter().find(is_wanted).ok_or_else(|| {
        anyhow!(
            "tunnel `{}` has no peer `{wanted}`; `patchcord show {}` lists them",
            status.tunnel,
            status.tunnel
        )
    })?;
    Ok(status::peer(peer))
}

/// Every tunnel shall have a peer that is up, and there shall be one.
fn check(shown: &[Status]) -> Result<(), Failure> {
    if shown.is_empty() {
        return Err(anyhow!("no tunnel is running").into());
    }
    let is_dead = |status: &&Status| status.peers.iter().all(|peer| peer.state != "up");
    match shown.iter().find(is_dead) {
        Some(status) => Err(anyhow!("tunnel `{}`: no peer is up", status.tunnel).into()),
        None => Ok(()),
    }
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
    running.extend(hosted::all(run_dir));
    running.sort_by(|one, other| one.tunnel.cmp(&other.tunnel));
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
