// SPDX-License-Identifier: MIT OR Apache-2.0
//! `host`: the process of many tunnels, and its client.

use std::{
    collections::BTreeMap,
    fmt::Write,
    fs,
    io::{self, Read},
    os::unix::fs::{FileTypeExt, PermissionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, anyhow, bail};
use clap::{Args, Subcommand};
use patchcord::{
    config::Config,
    control::RUN_DIR,
    host::{
        EventKind, Host, TunnelView,
        client::{Client, DEFAULT_SOCKET},
        daemon::{self, Policy},
        secrets::{MAX_SECRET, SECRETS_DIR, SecretStore},
        store::{ADMIN_DIR, OWN_DIR, Store},
    },
    internals::machine::{service, signals},
    provider::{ProviderError, Secret, SessionStatus, StopReason, TunnelConfiguration},
    tunnel::TunnelProvider,
};
use tokio::{
    net::{UnixListener, UnixStream},
    task::{JoinError, JoinSet},
    time::timeout,
};
use zeroize::Zeroizing;

use super::{Failure, logs, print};

/// For the host's own tasks to end.
const PATIENCE: Duration = Duration::from_secs(5);

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
    Run(RunOptions),
    /// List tunnels and their states
    List(ListOptions),
    /// Start a tunnel and wait until it is connected
    Start(StartArguments),
    /// Stop a tunnel; returns when it is gone
    Stop(Tunnel),
    /// Send a message to a tunnel's provider and print its answer
    Send(SendArguments),
    /// Print what happens, one line of JSON each
    Events(Socket),
    /// Leave a secret for tunnels, read from standard input; nothing prints it again
    KeepSecret(SecretName),
    /// Forget a secret
    ForgetSecret(SecretName),
}

#[derive(Args)]
pub(super) struct RunOptions {
    #[command(flatten)]
    socket: Socket,
    /// The administrator's configurations
    #[arg(long, value_name = "DIR", default_value = ADMIN_DIR)]
    tunnels: PathBuf,
    /// The configurations that clients make
    #[arg(long, value_name = "DIR", default_value = OWN_DIR)]
    state: PathBuf,
    /// The secrets that clients leave
    #[arg(long, value_name = "DIR", default_value = SECRETS_DIR)]
    secrets: PathBuf,
    /// Where run-time state is kept
    #[arg(long, value_name = "DIR", default_value = RUN_DIR, hide = true)]
    run_dir: PathBuf,
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
    /// For the provider
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
    /// The host's socket
    #[arg(id = "socket", long, value_name = "PATH", default_value = DEFAULT_SOCKET)]
    path: PathBuf,
}

pub(super) fn run(command: HostCommand) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let outcome = runtime.block_on(async {
        match command {
            HostCommand::Run(options) => serve(&options).await,
            HostCommand::List(options) => list(&options).await,
            HostCommand::Start(arguments) => start(&arguments).await,
            HostCommand::Stop(Tunnel { name, socket }) => {
                Ok(connect(&socket).await?.stop(&name).await?)
            }
            HostCommand::Send(arguments) => send(&arguments).await,
            HostCommand::Events(socket) => events(&socket).await,
            HostCommand::KeepSecret(arguments) => keep_secret(&arguments).await,
            HostCommand::ForgetSecret(SecretName { name, socket }) => {
                Ok(connect(&socket).await?.forget_secret(&name).await?)
            }
        }
    });
    // Work that a provider has left to another thread does not hold up the end.
    runtime.shutdown_background();
    outcome
}

async fn serve(options: &RunOptions) -> Result<(), Failure> {
    let _logs = logs::start();
    if let Err(error) = patchcord::internals::machine::keep_memory_private() {
        tracing::warn!(%error, "a core dump would contain private keys");
    }
    let path = &options.socket.path;
    let policy = Policy::default();
    let activated = service::activation_listener()?;
    let is_ours = activated.is_none();
    let listener = match activated {
        Some(listener) => {
            listener.set_nonblocking(true)?;
            UnixListener::from_std(listener)?
        }
        None => listen(path, policy.socket_mode()).await?,
    };
    let host = Host::builder(&options.run_dir)
        .secrets(SecretStore::new(&options.secrets))
        .register("patchcord", tunnel_provider)
        .build();
    let store = Store::new(&options.tunnels, &options.state);
    tracing::info!(socket = %path.display(), tunnels = %options.tunnels.display(), "host is ready");
    service::tell_ready();
    let mut tasks = duties(&host, listener, policy, store);
    let mut reports = JoinSet::new();
    let watched = host.clone();
    reports.spawn(tell_status(host.clone()));
    reports.spawn(service::tell_alive(move || watched.is_well()));
    let outcome = tokio::select! {
        Some(ended) = tasks.join_next() => ended.unwrap_or_else(|end| Err(unasked(&end))),
        Some(Err(end)) = reports.join_next() => Err(unasked(&end)),
        caught = signals::until_end() => caught.context("signals cannot be caught"),
    };
    service::tell_stopping();
    // First: none of them shall start what is being stopped.
    if timeout(PATIENCE, tasks.shutdown()).await.is_err() {
        tracing::error!("a task of the host does not end, and is left behind");
    }
    host.stop_all(StopReason::UserInitiated).await;
    reports.abort_all();
    if is_ours {
        // Somebody else may have removed it.
        let _ = fs::remove_file(path);
    }
    Ok(outcome?)
}

/// Tells systemd how the tunnels are, until it is dropped.
async fn tell_status(host: Host) {
    let mut events = host.events();
    let mut told = String::new();
    loop {
        let summary = summary(&host.list());
        if summary != told {
            service::tell_status(&summary);
            told = summary;
        }
        // What is lost is in the list as well.
        if events.next().await.is_none() {
            return;
        }
    }
}

/// How many tunnels are connected, and what is known of those that are not but should be.
fn summary(tunnels: &[TunnelView]) -> String {
    let is_connected = |tunnel: &&TunnelView| tunnel.status == SessionStatus::Connected;
    let connected = tunnels.iter().filter(is_connected).count();
    let mut text = match tunnels.len() {
        0 => "no tunnels".to_owned(),
        1 => format!("{connected} of 1 tunnel connected"),
        count => format!("{connected} of {count} tunnels connected"),
    };
    for tunnel in tunnels.iter().filter(|tunnel| !is_connected(tunnel)) {
        let name = &tunnel.tunnel;
        let error = tunnel.last_disconnect_error.as_deref();
        let news = match error.filter(|_| !tunnel.is_running()) {
            None if !tunnel.is_running() => continue,
            None => tunnel.status.name(),
            Some(error) => error,
        };
        let _ = write!(text, "; {name}: {news}");
    }
    text
}

/// What the host does as long as it runs, each in a task of its own: none is to end.
fn duties(
    host: &Host,
    listener: UnixListener,
    policy: Policy,
    store: Store,
) -> JoinSet<anyhow::Result<()>> {
    let mut tasks = JoinSet::new();
    let [of_clients, of_files, of_rules] = [(); 3].map(|()| host.clone());
    let kept = Some(store.clone());
    tasks.spawn(async move {
        daemon::serve(of_clients, listener, policy, kept).await;
        bail!("clients are not answered any more")
    });
    tasks.spawn(async move {
        let fed = store.feed(&of_files).await;
        fed.context("configurations cannot be watched")
    });
    tasks.spawn(async move {
        let followed = of_rules.follow_rules().await;
        followed.context("on-demand rules cannot be followed")
    });
    tasks
}

fn unasked(end: &JoinError) -> anyhow::Error {
    anyhow!("a task of the host panicked; please report this with the lines above: {end}")
}

/// The socket for clients to connect to: what each may do is the host's to say.
async fn listen(path: &Path, mode: u32) -> anyhow::Result<UnixListener> {
    if UnixStream::connect(path).await.is_ok() {
        bail!("a host listens on {} already", path.display());
    }
    let bind = || {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        match fs::symlink_metadata(path) {
            // Nobody listens on it any more.
            Ok(found) if found.file_type().is_socket() => fs::remove_file(path)?,
            Ok(_) => return Err(io::Error::other("it is not a socket; remove it")),
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Err(_) => {}
        }
        let listener = UnixListener::bind(path)?;
        fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
        Ok(listener)
    };
    bind().with_context(|| format!("cannot listen on {}", path.display()))
}

/// The built-in provider, of a configuration that names its file.
fn tunnel_provider(
    name: &str,
    configuration: &TunnelConfiguration,
) -> Result<TunnelProvider, ProviderError> {
    let Some(file) = configuration
        .vendor
        .get("config")
        .and_then(|file| file.as_str())
    else {
        let problem = format!(
            "the configuration of `{name}` lacks vendor.config, the path of the tunnel's file"
        );
        return Err(ProviderError::new(problem));
    };
    let config =
        Config::load(Path::new(file)).map_err(|error| ProviderError::new(error.to_string()))?;
    Ok(TunnelProvider::new(config))
}

async fn connect(socket: &Socket) -> anyhow::Result<Client> {
    Ok(Client::connect(&socket.path).await?)
}

async fn list(options: &ListOptions) -> Result<(), Failure> {
    let tunnels = connect(&options.socket).await?.list().await?;
    if options.json {
        return Ok(print(&format!(
            "{}\n",
            serde_json::to_string_pretty(&tunnels)?
        ))?);
    }
    let mut text = String::new();
    for tunnel in tunnels {
        let state = match tunnel.configuration.enabled {
            true => tunnel.status.name(),
            false => "disabled",
        };
        let error = tunnel.last_disconnect_error.unwrap_or_default();
        writeln!(text, "{:<20} {state:<14} {error}", tunnel.tunnel)?;
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
    let client = connect(&arguments.tunnel.socket).await?;
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
    let client = connect(socket).await?;
    match client
        .send_message(name, arguments.message.as_bytes())
        .await?
    {
        Some(answer) => Ok(print(&format!("{}\n", String::from_utf8_lossy(&answer)))?),
        None => Err(anyhow!("the provider of `{name}` has no answer to that").into()),
    }
}

/// All of standard input but a newline at its end, which editors and `echo` add.
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
