// SPDX-License-Identifier: MIT OR Apache-2.0
//! The tunnel of a command: its name on the command line, and the process that runs it, however it was
//! started.
//!
//! `patchcord up NAME` has a socket of its own, `NAME.sock`; the tunnels of a `patchcord host` share
//! `host.sock`. Unless there is a sign that a host runs a tunnel, its socket is not used: a connection
//! may start the host, where systemd listens for it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, anyhow};
use clap::Args;
use patchcord::config::{self, ConfigErrors, RESERVED_NAME};
use patchcord::control::{RUN_DIR, socket_path};
use patchcord::host::client::{Client, ClientError};
use patchcord::host::protocol::{Refusal, RefusalCode, TunnelInfo};
use patchcord::internals::machine::is_hosted;
use patchcord::provider::SessionStatus;
use tokio::runtime::Builder;
use tokio::time::timeout;

use super::failure::Failure;

/// A tunnel that has to be named.
#[derive(Args)]
pub(super) struct Target {
    /// The tunnel's NAME, which means /etc/patchcord/NAME.toml, or its configuration FILE, with a `/` in it
    /// or `.toml` at its end
    #[arg(id = "target", value_name = "NAME|FILE")]
    pub(super) name_or_file: String,
}

/// A tunnel that may be named, or else all that run.
#[derive(Args)]
pub(super) struct TargetOrAll {
    /// The tunnel's NAME, which means /etc/patchcord/NAME.toml, or its configuration FILE, with a `/` in it
    /// or `.toml` at its end; without it, every running tunnel
    #[arg(id = "target", value_name = "NAME|FILE")]
    pub(super) name_or_file: Option<String>,
}

#[derive(Args)]
pub(super) struct RunDir {
    /// Where the sockets of running tunnels are
    #[arg(id = "run-dir", long, value_name = "DIR", default_value = RUN_DIR, hide = true)]
    pub(super) path: PathBuf,
}

/// A running tunnel, and the process that runs it.
pub(super) struct Found {
    pub(super) client: Client,
    pub(super) name: String,
}

/// The time for an answer about a tunnel.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// Runs a command's request to its end.
pub(super) fn block_on<T>(task: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(task)
}

impl Found {
    /// The answer of the process about the tunnel, within `patience`.
    pub(super) async fn asked<T>(
        &self,
        patience: Duration,
        answer: impl Future<Output = Result<T, ClientError>>,
    ) -> anyhow::Result<T> {
        let answer = timeout(patience, answer).await;
        let in_time = answer.map_err(|_| anyhow!("no reply within {patience:?}"));
        in_time
            .and_then(|answer| Ok(answer?))
            .with_context(|| format!("tunnel `{}`", self.name))
    }
}

/// Whether a tunnel does not answer because it is of another kind, or has ended since it was listed.
pub(super) fn is_none_of_ours(error: &anyhow::Error) -> bool {
    use RefusalCode::{NoQuery, NoTunnel, NotRunning};
    matches!(
        error.downcast_ref(),
        Some(ClientError::Refused(Refusal {
            code: NoQuery | NoTunnel | NotRunning,
            ..
        }))
    )
}

/// The running tunnel of this name.
pub(super) async fn find(name_or_file: &str, run_dir: &RunDir) -> Result<Found, Failure> {
    let name = name_of(name_or_file)?;
    let socket = socket_path(&run_dir.path, &name);
    match Client::connect(&socket).await {
        Ok(client) => Ok(Found { client, name }),
        Err(ClientError::NotRunning { .. }) => {
            let hosted = hosted(&name, &run_dir.path).await;
            let not_running = || {
                anyhow!(
                    "tunnel `{name}` is not running (no socket {}); start it with `patchcord up {name_or_file}`, or \
                     with `patchcord host start {name}` if a host has it",
                    socket.display()
                )
            };
            Ok(hosted.ok_or_else(not_running)?)
        }
        Err(error) => Err(of_tunnel(&name, error)),
    }
}

/// Every running tunnel.
pub(super) async fn all(run_dir: &RunDir) -> Result<Vec<Found>, Failure> {
    let run_dir = &run_dir.path;
    let mut processes = processes(run_dir).await?;
    if is_host_busy(run_dir) {
        processes.extend(host(run_dir).await);
    }
    let mut found = Vec::new();
    for (client, tunnels) in processes {
        let running = tunnels.into_iter().filter(is_running);
        found.extend(running.map(|tunnel| Found {
            client: client.clone(),
            name: tunnel.tunnel,
        }));
    }
    found.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(found)
}

/// The processes of `patchcord up`, each with its tunnel.
pub(super) async fn processes(run_dir: &Path) -> Result<Vec<(Client, Vec<TunnelInfo>)>, Failure> {
    let mut processes = Vec::new();
    for name in sockets(run_dir)? {
        let asked = async {
            let client = Client::connect(socket_path(run_dir, &name)).await?;
            let tunnels = client.list().await?;
            Ok((client, tunnels))
        };
        match timeout(PATIENCE, asked).await {
            Ok(Ok(process)) => processes.push(process),
            // Its tunnel was killed, or ended since the directory was read.
            Ok(Err(ClientError::NotRunning { .. } | ClientError::Disconnected)) => {}
            Ok(Err(error)) => return Err(of_tunnel(&name, error)),
            Err(_) => return Err(anyhow!("tunnel `{name}`: no reply within {PATIENCE:?}").into()),
        }
    }
    Ok(processes)
}

/// The name of a tunnel that is given by its name or by its file.
pub(super) fn name_of(name_or_file: &str) -> Result<String, Failure> {
    config::tunnel_name(&config::file_of(name_or_file))
        .map_err(|error| Failure::Config(ConfigErrors::from(error)))
}

fn of_tunnel(name: &str, error: ClientError) -> Failure {
    let error = anyhow::Error::new(error).context(format!("tunnel `{name}`"));
    Failure::AtRunTime(error)
}

/// The tunnel of a host with this name, or with a file of this name.
async fn hosted(name: &str, run_dir: &Path) -> Option<Found> {
    if !is_host_busy(run_dir) {
        return None;
    }
    let (client, tunnels) = host(run_dir).await?;
    let mut running = tunnels.iter().filter(|tunnel| is_running(tunnel));
    let called = running.clone().find(|tunnel| tunnel.tunnel == name);
    let found = called.or_else(|| running.find(|tunnel| stem_of(tunnel) == Some(name)))?;
    let name = found.tunnel.clone();
    Some(Found { client, name })
}

/// The host, and its tunnels.
async fn host(run_dir: &Path) -> Option<(Client, Vec<TunnelInfo>)> {
    let asked = async {
        let client = Client::connect(socket_path(run_dir, RESERVED_NAME)).await?;
        let tunnels = client.list().await?;
        Ok::<_, ClientError>((client, tunnels))
    };
    timeout(PATIENCE, asked).await.ok()?.ok()
}

/// The stem of the configuration file of a tunnel of the built-in provider.
fn stem_of(tunnel: &TunnelInfo) -> Option<&str> {
    let file = tunnel.configuration.vendor.get("config")?.as_str()?;
    Path::new(file).file_stem()?.to_str()
}

pub(super) fn is_running(tunnel: &TunnelInfo) -> bool {
    !matches!(
        tunnel.status,
        SessionStatus::Invalid | SessionStatus::Disconnected
    )
}

/// Whether a host that lives runs a tunnel, as the locks of the tunnels show. One with a socket of its own
/// needs no host: it is that of a program with one tunnel, or of an older `patchcord up`.
fn is_host_busy(run_dir: &Path) -> bool {
    let entries = fs::read_dir(run_dir).into_iter().flatten().flatten();
    let mut names = entries.filter_map(|entry| {
        let name = entry.file_name().into_string().ok()?;
        name.strip_suffix(".lock").map(str::to_owned)
    });
    names.any(|name| is_hosted(run_dir, &name) && !socket_path(run_dir, &name).exists())
}

/// The names for which there is a socket, in order; some may be of tunnels that were killed.
fn sockets(run_dir: &Path) -> Result<Vec<String>, Failure> {
    let entries = match run_dir.read_dir() {
        Ok(entries) => entries,
        // No tunnel has run since the machine started.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => Err(error).with_context(|| run_dir.display().to_string())?,
    };
    let names = entries.filter_map(|entry| {
        let name = entry.ok()?.file_name().into_string().ok()?;
        name.strip_suffix(".sock").map(str::to_owned)
    });
    let mut names: Vec<_> = names.filter(|name| name != RESERVED_NAME).collect();
    names.sort();
    Ok(names)
}
