// SPDX-License-Identifier: MIT OR Apache-2.0
//! `host`: the process of many tunnels, and its client. It lists, stops and messages tunnels of
//! `patchcord up` in the same way.

mod run;

use std::{
    collections::BTreeMap,
    fmt::Write,
    io::{self, Read},
    path::PathBuf,
};

use anyhow::{Context, anyhow};
use clap::{Args, Subcommand};
use patchcord::{
    control::socket_path,
    host::{
        EventKind,
        client::{Client, ClientError, DEFAULT_SOCKET},
        protocol::TunnelInfo,
        secrets::MAX_SECRET,
    },
    provider::{Secret, SessionStatus},
};
use serde::Serialize;
use tokio::{task::JoinSet, time::timeout};
use zeroize::Zeroizing;

use super::{
    failure::Failure,
    output::print,
    status,
    target::{self, PATIENCE, RunDir},
};

pub(super) const HELP: &str = "\
A file NAME.toml in /etc/patchcord/tunnels.d is a tunnel of the host:
  provider = \"patchcord\"
  vendor.config = \"/etc/patchcord/NAME.toml\"

Examples:
  patchcord host run               run the host, with all tunnels down
  patchcord host start office      start one, and wait until it is connected
  patchcord host list";

#[derive(Subcommand)]
pub(super) enum HostCommand {
    /// Run the host in the foreground
    Run(run::RunOptions),
    /// List tunnels and their states: those of the host, and those that `patchcord up` runs
    List(ListOptions),
    /// Start a tunnel and wait until it is connected
    Start(StartArguments),
    /// Stop a tunnel; returns when it is gone
    Stop(Tunnel),
    /// Send a message to a tunnel's provider and print its answer
    Send(SendArguments),
    /// Print events, one line of JSON each
    Events(Socket),
    /// Store a secret for tunnels, read from standard input; no command prints it again
    KeepSecret(SecretName),
    /// Delete a secret
    ForgetSecret(SecretName),
}

#[derive(Args)]
pub(super) struct ListOptions {
    #[command(flatten)]
    socket: Socket,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
pub(super) struct StartArguments {
    #[command(flatten)]
    tunnel: Tunnel,
    /// Options for the provider
    #[arg(value_name = "KEY=VALUE")]
    options: Vec<String>,
}

#[derive(Args)]
pub(super) struct SendArguments {
    #[command(flatten)]
    tunnel: Tunnel,
    /// The message
    message: String,
}

#[derive(Args)]
pub(super) struct Tunnel {
    /// The tunnel
    #[arg(value_name = "NAME")]
    name: String,
    #[command(flatten)]
    socket: Socket,
}

#[derive(Args)]
pub(super) struct SecretName {
    /// The secret
    #[arg(value_name = "NAME")]
    name: String,
    #[command(flatten)]
    socket: Socket,
}

#[derive(Args)]
pub(super) struct Socket {
    /// The socket of a host, and only its tunnels
    #[arg(id = "socket", long, value_name = "PATH")]
    path: Option<PathBuf>,
    #[command(flatten)]
    run_dir: RunDir,
}

pub(super) fn run(command: HostCommand) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let outcome = runtime.block_on(async {
        match command {
            HostCommand::Run(options) => run::run(&options).await,
            HostCommand::List(options) => list(&options).await,
            HostCommand::Start(arguments) => start(&arguments).await,
            HostCommand::Stop(Tunnel { name, socket }) => {
                Ok(connect_for(&name, &socket).await?.stop(&name).await?)
            }
            HostCommand::Send(arguments) => send(&arguments).await,
            HostCommand::Events(socket) => events(&socket).await,
            HostCommand::KeepSecret(arguments) => keep_secret(&arguments).await,
            HostCommand::ForgetSecret(SecretName { name, socket }) => {
                Ok(connect(&socket).await?.forget_secret(&name).await?)
            }
        }
    });
    // Blocking work of a provider must not delay the end.
    runtime.shutdown_background();
    outcome
}

/// The host.
async fn connect(socket: &Socket) -> Result<Client, ClientError> {
    match &socket.path {
        Some(path) => Client::connect(path).await,
        None => Client::connect(host_socket(socket)).await,
    }
}

/// The process that runs the tunnel, or would run it.
async fn connect_for(name: &str, socket: &Socket) -> Result<Client, Failure> {
    let is_any = socket.path.is_none();
    if is_any && let Ok(name) = target::name_of(name) {
        match Client::connect(socket_path(&socket.run_dir.path, &name)).await {
            Err(ClientError::NotRunning { .. }) => {}
            outcome => return Ok(outcome?),
        }
    }
    Ok(connect(socket).await?)
}

fn host_socket(socket: &Socket) -> PathBuf {
    let file = PathBuf::from(DEFAULT_SOCKET);
    let name = file.file_name().unwrap_or_default();
    socket.run_dir.path.join(name)
}

/// A tunnel with what `patchcord show` calls its state.
#[derive(Serialize)]
struct Listed {
    #[serde(flatten)]
    info: TunnelInfo,
    condition: String,
}

async fn tunnels(socket: &Socket) -> Result<Vec<Listed>, Failure> {
    let mut processes = match socket.path {
        None => target::processes(&socket.run_dir.path).await?,
        Some(_) => Vec::new(),
    };
    match connect(socket).await {
        Ok(host) => {
            let tunnels = host.list().await?;
            processes.push((host, tunnels));
        }
        // Without a host, these are all tunnels.
        Err(ClientError::NotRunning { .. }) if !processes.is_empty() => {}
        Err(error) => return Err(error.into()),
    }
    let mut asked = JoinSet::new();
    for (client, tunnels) in processes {
        for info in tunnels {
            asked.spawn(listed(client.clone(), info));
        }
    }
    let mut tunnels = asked.join_all().await;
    tunnels.sort_by(|one, other| one.info.tunnel.cmp(&other.info.tunnel));
    Ok(tunnels)
}

/// Asks a tunnel that runs; the status of the session has to do if it does not answer.
async fn listed(client: Client, info: TunnelInfo) -> Listed {
    let condition = match info.configuration.enabled {
        false => "disabled".to_owned(),
        true if !target::is_running(&info) => info.status.name().to_owned(),
        true => match timeout(PATIENCE, client.show(&info.tunnel)).await {
            Ok(Ok(status)) => status::state(&status).to_owned(),
            _ => info.status.name().to_owned(),
        },
    };
    Listed { info, condition }
}

async fn list(options: &ListOptions) -> Result<(), Failure> {
    let tunnels = tunnels(&options.socket).await?;
    if options.json {
        let json = serde_json::to_string_pretty(&tunnels)?;
        return Ok(print(&format!("{json}\n"))?);
    }
    let mut text = String::new();
    for Listed { info, condition } in tunnels {
        let error = info.last_disconnect_error.unwrap_or_default();
        writeln!(text, "{:<20} {condition:<14} {error}", info.tunnel)?;
    }
    Ok(print(&text)?)
}

async fn start(arguments: &StartArguments) -> Result<(), Failure> {
    let name = &arguments.tunnel.name;
    let options = arguments.options.iter().map(|option| {
        let split = option.split_once('=');
        split
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .ok_or(option)
    });
    let options = options.collect::<Result<BTreeMap<_, _>, _>>();
    let options =
        options.map_err(|option| Failure::Usage(format!("`{option}` is not KEY=VALUE")))?;
    let client = connect_for(name, &arguments.tunnel.socket).await?;
    let mut events = client.events().await?;
    let attempt = client
        .start(name, (!options.is_empty()).then_some(options))
        .await?;
    while let Some(event) = events.next().await {
        match event.map(|event| (event.attempt == Some(attempt)).then_some(event.kind)) {
            Ok(Some(EventKind::Status(SessionStatus::Connected))) => return Ok(()),
            Ok(Some(EventKind::Ended { reason, error })) => {
                let why = error.unwrap_or_else(|| reason.to_string());
                return Err(anyhow!("tunnel `{name}` did not start: {why}").into());
            }
            Ok(_) => {}
            Err(lagged) => return Err(lagged.into()),
        }
    }
    Err(anyhow!("the host is gone").into())
}

async fn send(arguments: &SendArguments) -> Result<(), Failure> {
    let Tunnel { name, socket } = &arguments.tunnel;
    let client = connect_for(name, socket).await?;
    match client
        .send_message(name, arguments.message.as_bytes())
        .await?
    {
        Some(answer) => Ok(print(&format!("{}\n", String::from_utf8_lossy(&answer)))?),
        None => Err(anyhow!("the provider of `{name}` has no answer to that").into()),
    }
}

/// All of standard input without a newline at its end, which editors and `echo` add.
async fn keep_secret(arguments: &SecretName) -> Result<(), Failure> {
    // Reserved in full: growing would leave copies behind.
    let mut secret = Zeroizing::new(Vec::with_capacity(MAX_SECRET + 2));
    let input = io::stdin().lock();
    input
        .take(MAX_SECRET as u64 + 2)
        .read_to_end(&mut secret)
        .context("cannot read the secret from standard input")?;
    if secret.last() == Some(&b'\n') {
        secret.pop();
    }
    if secret.is_empty() {
        return Err(Failure::Usage(
            "the secret on standard input is empty".to_owned(),
        ));
    }
    let client = connect(&arguments.socket).await?;
    let kept = client.keep_secret(&arguments.name, Secret::new(secret));
    Ok(kept.await?)
}

async fn events(socket: &Socket) -> Result<(), Failure> {
    let mut events = connect(socket).await?.events().await?;
    while let Some(event) = events.next().await {
        let line = match event {
            Ok(event) => serde_json::to_string(&event)?,
            Err(lagged) => format!(r#"{{"lagged":{}}}"#, lagged.0),
        };
        print(&format!("{line}\n"))?;
    }
    Err(anyhow!("the host is gone").into())
}
