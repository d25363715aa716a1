// SPDX-License-Identifier: MIT OR Apache-2.0
//! `reload`, and `check --diff`.

use std::time::Duration;

use anyhow::anyhow;
use clap::Args;
use patchcord::control::message::{ReloadMode, ReloadOutcome, Reloaded};
use patchcord::host::client::ClientError;
use patchcord::host::protocol::{Refusal, RefusalCode};

use super::failure::Failure;
use super::output::print;
use super::target::{self, Found, RunDir, Target, block_on};

pub(super) const HELP: &str = "\
Prints what differs, then applies all of it while frames cross, or nothing. Peers that did not change keep
their sessions. A change that needs a restart is named, and refused unless --restart is given.

Examples:
  patchcord check --diff a     show what a reload would change
  patchcord reload a           apply it
  patchcord reload a --restart apply it, with a restart of the tunnel if it needs one";

/// The machine's settings may take their time, and a tunnel that ends tells its peers.
const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Args)]
pub(super) struct ReloadOptions {
    #[command(flatten)]
    target: Target,
    /// Restart the tunnel if a change needs it: frames are lost meanwhile
    #[arg(long)]
    restart: bool,
    #[command(flatten)]
    run_dir: RunDir,
}

pub(super) fn reload(options: &ReloadOptions) -> Result<(), Failure> {
    block_on(async {
        let found = target::find(&options.target.name_or_file, &options.run_dir).await?;
        let reloaded = ask(&found, ReloadMode::Apply).await?;
        print(&changes(&reloaded))?;
        match reloaded.outcome {
            ReloadOutcome::NeedsRestart if options.restart => restart(&found).await,
            ReloadOutcome::NeedsRestart => Err(anyhow!(
                "tunnel `{0}`: nothing was changed, because of the changes that need a restart; \
                 `patchcord reload {1} --restart` restarts it",
                found.name,
                options.target.name_or_file
            )
            .into()),
            _ => Ok(()),
        }
    })
}

/// Prints what a reload would change.
pub(super) fn show_changes(name_or_file: &str, run_dir: &RunDir) -> Result<(), Failure> {
    block_on(async {
        let found = target::find(name_or_file, run_dir).await?;
        let reloaded = ask(&found, ReloadMode::Compare).await?;
        Ok(print(&changes(&reloaded))?)
    })
}

async fn ask(found: &Found, mode: ReloadMode) -> Result<Reloaded, Failure> {
    let answer = found.client.reload(&found.name, mode);
    found.asked(PATIENCE, answer).await.map_err(of_file)
}

async fn restart(found: &Found) -> Result<(), Failure> {
    let started = found.client.restart(&found.name);
    found.asked(PATIENCE, started).await.map_err(of_file)?;
    Ok(print("restarted\n")?)
}

/// A bad file has an exit code of its own.
fn of_file(error: anyhow::Error) -> Failure {
    match error.downcast_ref() {
        Some(ClientError::Refused(Refusal {
            code: RefusalCode::Configuration,
            message,
        })) => Failure::Refused(message.clone()),
        _ => Failure::AtRunTime(error),
    }
}

fn changes(reloaded: &Reloaded) -> String {
    let mut text: String = reloaded
        .changes
        .iter()
        .map(|change| format!("{change}\n"))
        .collect();
    if reloaded.changes.is_empty() {
        text.push_str("no changes\n");
    }
    text
}
