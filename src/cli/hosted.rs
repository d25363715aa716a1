// SPDX-License-Identifier: MIT OR Apache-2.0
//! Tunnels that a `patchcord host` runs, for `show`, `fdb` and `down`: they have no socket of their own,
//! so the host is asked. Where nothing says that it runs one it is left alone: to call it may be what
//! starts it, where systemd listens for it.

use std::fs;
use std::path::Path;

use anyhow::anyhow;
use patchcord::{
    config::RESERVED_NAME,
    control::{
        message::{Reply, Request, Status},
        socket_path,
    },
    host::client::{Client, ClientError},
    provider::SessionStatus,
};
use tokio::runtime::{Builder, Runtime};

/// What the host answers for its tunnel `name`; none if there is no host, or it does not run that one.
pub(super) fn ask(name: &str, run_dir: &Path, request: &Request) -> Option<anyhow::Result<Reply>> {
    if !is_locked(run_dir, name) {
        return None;
    }
    let runtime = runtime()?;
    runtime.block_on(async {
        let client = connect(run_dir).await?;
        if !runs(client.view(name).await.ok()?.status) {
            return None;
        }
        Some(answer(&client, name, request).await)
    })
}

/// The status of every tunnel that the host runs, as far as it is a tunnel of this program.
pub(super) fn all(run_dir: &Path) -> Vec<Status> {
    let names = locked(run_dir);
    let (false, Some(runtime)) = (names.is_empty(), runtime()) else {
        return Vec::new();
    };
    runtime.block_on(async {
        let mut running = Vec::new();
        let Some(client) = connect(run_dir).await else {
            return running;
        };
        for name in names {
            if let Ok(tunnel) = client.view(&name).await
                && runs(tunnel.status)
                && let Ok(Reply::Status(status)) = answer(&client, &name, &Request::Show).await
            {
                running.push(*status);
            }
        }
        running
    })
}

/// The tunnels that run and have no socket of their own.
fn locked(run_dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(run_dir).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| {
        let name = entry.file_name().into_string().ok()?;
        name.strip_suffix(".lock").map(str::to_owned)
    });
    names
        .filter(|name| !socket_path(run_dir, name).exists() && is_locked(run_dir, name))
        .collect()
}

/// Whether a process that lives has the tunnel.
fn is_locked(run_dir: &Path, name: &str) -> bool {
    let pid = fs::read_to_string(run_dir.join(format!("{name}.lock")));
    let pid = pid.ok().and_then(|text| text.trim().parse::<u32>().ok());
    pid.is_some_and(|pid| Path::new("/proc").join(pid.to_string()).exists())
}

fn runtime() -> Option<Runtime> {
    Builder::new_current_thread().enable_all().build().ok()
}

async fn connect(run_dir: &Path) -> Option<Client> {
    Client::connect(socket_path(run_dir, RESERVED_NAME))
        .await
        .ok()
}

fn runs(status: SessionStatus) -> bool {
    !matches!(status, SessionStatus::Invalid | SessionStatus::Disconnected)
}

async fn answer(client: &Client, name: &str, request: &Request) -> anyhow::Result<Reply> {
    let message = match request {
        Request::Down => {
            client.stop(name).await?;
            return Ok(Reply::Stopped);
        }
        Request::Show => b"show".to_vec(),
        Request::Fdb(_) => request.to_line(),
    };
    let answer = client.send_message(name, &message).await;
    let answer = answer.map_err(|error: ClientError| anyhow!(error))?;
    let answer = answer.ok_or_else(|| anyhow!("nothing to say at the moment; try again"))?;
    Ok(match request {
        Request::Show => Reply::Status(serde_json::from_slice(&answer)?),
        _ => Reply::from_line(&answer)?,
    })
}
