// SPDX-License-Identifier: MIT OR Apache-2.0
//! `host run`: the process of many tunnels.

use std::{
    fmt::Write,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, anyhow, bail};
use clap::Args;
use patchcord::{
    config::Config,
    control::RUN_DIR,
    host::{
        Host, TunnelView,
        client::DEFAULT_SOCKET,
        daemon::{self, Policy},
        secrets::{SECRETS_DIR, SecretStore},
        socket,
        store::{ADMIN_DIR, OWN_DIR, Store},
    },
    internals::machine::{service, signals},
    provider::{ProviderError, SessionStatus, StopReason, TunnelConfiguration},
    tunnel::{self, PROVIDER, TunnelProvider},
};
use tokio::{
    net::UnixListener,
    task::{JoinError, JoinSet},
    time::timeout,
};

use crate::cli::{failure::Failure, logs};

/// The time for the host's own tasks to end.
const PATIENCE: Duration = Duration::from_secs(5);

#[derive(Args)]
pub(crate) struct RunOptions {
    /// The host's socket
    #[arg(long, value_name = "PATH", default_value = DEFAULT_SOCKET)]
    socket: PathBuf,
    /// The administrator's configurations
    #[arg(long, value_name = "DIR", default_value = ADMIN_DIR)]
    tunnels: PathBuf,
    /// The configurations of clients
    #[arg(long, value_name = "DIR", default_value = OWN_DIR)]
    state: PathBuf,
    /// The secrets of clients
    #[arg(long, value_name = "DIR", default_value = SECRETS_DIR)]
    secrets: PathBuf,
    /// Where run-time state is kept
    #[arg(long, value_name = "DIR", default_value = RUN_DIR, hide = true)]
    run_dir: PathBuf,
}

pub(super) async fn run(options: &RunOptions) -> Result<(), Failure> {
    let _logs = logs::start();
    if let Err(error) = patchcord::internals::machine::keep_memory_private() {
        tracing::warn!(%error, "cannot exclude memory from core dumps: a core dump would contain private keys");
    }
    let path = &options.socket;
    let policy = Policy::default();
    let activated = service::activation_listener()?;
    let (listener, _file) = match activated {
        Some(listener) => {
            listener.set_nonblocking(true)?;
            (UnixListener::from_std(listener)?, None)
        }
        None => {
            // The host decides what each client may do.
            let bound = socket::bind_unless_in_use(path, policy.socket_mode()).await;
            let (listener, file) =
                bound.with_context(|| format!("cannot listen on {}", path.display()))?;
            (listener, Some(file))
        }
    };
    let host = Host::builder(&options.run_dir)
        .secrets(SecretStore::new(&options.secrets))
        .register(PROVIDER, tunnel_provider)
        .build();
    let store = Store::new(&options.tunnels, &options.state);
    tracing::info!(socket = %path.display(), tunnels = %options.tunnels.display(), "host is ready");
    service::notify_ready();
    let mut tasks = duties(&host, listener, policy, store);
    let mut reports = JoinSet::new();
    let watched = host.clone();
    reports.spawn(notify_status(host.clone()));
    reports.spawn(service::notify_watchdog(move || watched.is_well()));
    let outcome = tokio::select! {
        Some(ended) = tasks.join_next() => ended.unwrap_or_else(|end| Err(unasked(&end))),
        Some(Err(end)) = reports.join_next() => Err(unasked(&end)),
        caught = signals::until_end(|| reload_all(&host)) => caught.context("cannot catch signals"),
    };
    service::notify_stopping();
    // First, so that none of them starts a tunnel that is being stopped.
    if timeout(PATIENCE, tasks.shutdown()).await.is_err() {
        tracing::error!("a task of the host did not end in time; abandoning it");
    }
    host.stop_all(StopReason::UserInitiated).await;
    reports.abort_all();
    Ok(outcome?)
}

/// Reloads the files of all tunnels that run.
async fn reload_all(host: &Host) {
    for view in host.list().iter().filter(|view| view.is_running()) {
        tunnel::reload(host, &view.tunnel).await;
    }
}

/// Sets the status text in systemd, until it is dropped.
async fn notify_status(host: Host) {
    let mut events = host.events();
    let mut told = String::new();
    loop {
        let summary = summary(&host.list());
        if summary != told {
            service::notify_status(&summary);
            told = summary;
        }
        // The list has the outcome of lost events, too.
        if events.next().await.is_none() {
            return;
        }
    }
}

/// How many tunnels are connected, and the errors of those that should be.
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

/// The tasks of the host, which run as long as it does: none may end.
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
        fed.context("cannot watch the configurations")
    });
    tasks.spawn(async move {
        let followed = of_rules.follow_rules().await;
        followed.context("cannot follow the on-demand rules")
    });
    tasks
}

fn unasked(end: &JoinError) -> anyhow::Error {
    anyhow!("a task of the host panicked; please report this with the lines above: {end}")
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
