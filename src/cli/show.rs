// SPDX-License-Identifier: MIT OR Apache-2.0
//! `show`: asks running tunnels for their status. `status` formats it.

use std::io::{self, Write};

use anyhow::anyhow;
use clap::Args;
use patchcord::control::message::{PeerStatus, Status};

use super::failure::Failure;
use super::output::print;
use super::status;
use super::target::{self, PATIENCE, RunDir, TargetOrAll, block_on};

pub(super) const HELP: &str = "\
Without NAME|FILE, lists the running tunnels, one line each. With it, everything about one, and its peers
one line each if there are more than four.

Exit codes: 0 the tunnel answered, whether a peer is up or not; with --check, 0 only if one is. 1 no such
tunnel runs, it does not answer, or with --check, no peer is up. 2 bad usage.

Examples:
  patchcord show office                    the state of a tunnel and its peers
  patchcord show office --peer site-b      everything about one peer
  patchcord show office --check || ...     for scripts and monitoring";

#[derive(Args)]
pub(super) struct ShowOptions {
    #[command(flatten)]
    target: TargetOrAll,
    /// Print JSON: an object with NAME|FILE, an array without
    #[arg(long)]
    json: bool,
    /// Only this peer, with everything about it
    #[arg(
        long,
        value_name = "PEER",
        requires = "target",
        conflicts_with = "json"
    )]
    peer: Option<String>,
    /// Everything about every peer, however many there are
    #[arg(short, long, conflicts_with = "json")]
    verbose: bool,
    /// Exit with 1 unless a peer is up: of this tunnel, or of every running one
    #[arg(long)]
    check: bool,
    #[command(flatten)]
    run_dir: RunDir,
}

pub(super) fn show(options: &ShowOptions) -> Result<(), Failure> {
    block_on(async {
        match &options.target.name_or_file {
            Some(name_or_file) => show_one(name_or_file, options).await,
            None => show_all(options).await,
        }
    })
}

async fn show_one(name_or_file: &str, options: &ShowOptions) -> Result<(), Failure> {
    let found = target::find(name_or_file, &options.run_dir).await?;
    let status = found
        .asked(PATIENCE, found.client.show(&found.name))
        .await?;
    print(&one(&status, options)?)?;
    check(&[status], options)
}

async fn show_all(options: &ShowOptions) -> Result<(), Failure> {
    let mut shown = Vec::new();
    let mut is_complete = true;
    for found in target::all(&options.run_dir).await? {
        match found.asked(PATIENCE, found.client.show(&found.name)).await {
            Ok(status) => shown.push(status),
            Err(error) if target::is_none_of_ours(&error) => {}
            Err(error) => {
                // The others are shown all the same.
                let _ = writeln!(io::stderr(), "patchcord: {error:#}");
                is_complete = false;
            }
        }
    }
    print(&match options.json {
        true => json(&shown)?,
        false => status::list(&shown),
    })?;
    match is_complete {
        true => check(&shown, options),
        false => Err(anyhow!("not every running tunnel could be shown").into()),
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

/// With `--check`, there must be a tunnel, and every tunnel must have a peer that is up.
fn check(shown: &[Status], options: &ShowOptions) -> Result<(), Failure> {
    if !options.check {
        return Ok(());
    }
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
