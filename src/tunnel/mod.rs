// SPDX-License-Identifier: MIT OR Apache-2.0
//! `patchcord up`: the built-in provider, and the process around it.
//!
//! [`TunnelProvider`] turns a [`Config`] into settings and an `Engine`; it is a provider like any
//! other. [`run`] is a [`Host`] with this one tunnel on the control thread: it answers clients as any
//! host does, and notifies systemd.

mod latency;
mod provider;
mod reload;
mod status;

use std::{
    io,
    mem::take,
    path::{Path, PathBuf},
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Duration,
};

use tokio::{
    sync::{oneshot, watch},
    task::JoinSet,
    time::timeout,
};
use tracing::{info, warn};

pub use self::provider::TunnelProvider;
use crate::{
    config::Config,
    control::{
        RUN_DIR,
        message::{Answer, Query, ReloadMode, ReloadOutcome},
        socket_path,
    },
    host::{Ending, EventKind, Events, Host, HostError, daemon, socket},
    machine::{
        bus::Bus,
        keep_memory_private,
        lock::{LockError, RunLock},
        service, signals,
    },
    provider::{
        ProviderError, SessionStatus, SleepWatch, StartOptions, StartSource, StopReason,
        TunnelConfiguration,
    },
};

/// The host's name for the built-in kind of provider.
pub const PROVIDER: &str = "patchcord";
/// The time for pending answers after the tunnel is gone.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// Why a tunnel did not start, or ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// Another process runs it.
    #[error(transparent)]
    Locked(#[from] LockError),
    /// The control socket cannot be made.
    #[error("cannot create the control socket {}", path.display())]
    ControlSocket {
        /// The path of the socket.
        path: PathBuf,
        /// The kernel's error.
        source: io::Error,
    },
    /// The kernel has no threads or descriptors left.
    #[error("cannot start the control thread")]
    Runtime(#[source] io::Error),
    /// The session cannot be started.
    #[error(transparent)]
    Host(#[from] HostError),
    /// The session did not start, or failed.
    #[error("{0}")]
    Session(String),
    /// The control thread panicked, or one of its tasks.
    #[error("the control thread panicked; please report this with the lines above")]
    Panicked,
}

/// Runs the tunnel until a signal or `patchcord down` stops it.
///
/// # Errors
/// What failed, with the remedy. Everything that was set up is removed by then.
pub fn run(config: Config) -> Result<(), RunError> {
    if let Err(error) = keep_memory_private() {
        warn!(%error, "cannot exclude memory from core dumps: a core dump would contain the private key");
    }
    let control = thread::Builder::new()
        .name("control".into())
        .spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .map_err(RunError::Runtime)?;
            let outcome = runtime.block_on(serve(config, Path::new(RUN_DIR)));
            // Blocking work of a task must not delay the end.
            runtime.shutdown_background();
            outcome
        });
    control
        .map_err(RunError::Runtime)?
        .join()
        .map_err(|_| RunError::Panicked)?
}

async fn serve(config: Config, run_dir: &Path) -> Result<(), RunError> {
    let name = config.name.clone();
    // Held until the socket is gone, too.
    let lock = Arc::new(RunLock::acquire_alone(run_dir, &name)?);
    let path = socket_path(run_dir, &name);
    let (listener, _file) = socket::bind(&path, daemon::Policy::default().socket_mode())
        .map_err(|source| RunError::ControlSocket { path, source })?;
    let file = config.file.clone();
    let provider = TunnelProvider::new(config);
    let summary = provider.summary();
    let host = host_of(&name, provider, file, run_dir)?;
    let mut tasks = JoinSet::new();
    let (over, is_over) = oneshot::channel::<()>();
    tasks.spawn(daemon::serve_one(host.clone(), listener, async {
        let _ = is_over.await;
    }));
    let watched = host.clone();
    let mut reports = vec![
        tasks.spawn(notify_status(summary)),
        tasks.spawn(notify_ready(name.clone(), host.events())),
        tasks.spawn(service::notify_watchdog(move || watched.is_well())),
        tasks.spawn(obey_signals(host.clone(), name.clone())),
    ];
    let options = StartOptions {
        options: None,
        source: StartSource::System,
    };
    host.start_under(Some(lock.clone()), &name, options)?;
    let (end, panicked) = with_tasks(&mut tasks, last_end(&host, &name), || {
        host.begin_stop(&name, StopReason::InternalError);
    })
    .await;
    reports.drain(..).for_each(|report| report.abort());
    service::notify_stopping();

    // Everything is removed: answer the clients that asked for the end, then remove the socket.
    drop(over);
    let last_words = async { while tasks.join_next().await.is_some() {} };
    if timeout(LAST_WORDS, last_words).await.is_err() {
        warn!("cannot answer a client that asked for the stop: it does not read");
    }
    if panicked {
        return Err(RunError::Panicked);
    }
    finish(end?)
}

/// The end of the session that no other follows.
async fn last_end(host: &Host, name: &str) -> Result<Option<Ending>, HostError> {
    let mut last = None;
    while let Some(end) = host.ended(name).await? {
        last = Some(end);
    }
    Ok(last)
}

/// A host with this one tunnel. After a restart, the configuration is that of the file.
fn host_of(
    name: &str,
    provider: TunnelProvider,
    file: PathBuf,
    run_dir: &Path,
) -> Result<Host, HostError> {
    let summary = provider.summary_sender();
    let first = Mutex::new(Some(provider));
    let factory = move |_: &str, _: &TunnelConfiguration| {
        let first = first.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(first) = first {
            return Ok(first);
        }
        let config =
            Config::load(&file).map_err(|errors| ProviderError::new(errors.to_string()))?;
        Ok(TunnelProvider::new(config).reporting_to(summary.clone()))
    };
    let mut builder = Host::builder(run_dir).register(PROVIDER, factory);
    builder.sleep = SleepWatch::new(Bus::default(), format!("tunnel {name} gets ready"));
    builder.logs_name_tunnels = false;
    let host = builder.build();
    host.configure(name, TunnelConfiguration::new(PROVIDER), None)?;
    Ok(host)
}

/// The result of `session`, and whether one of the `tasks` that run with it panicked, which stops it.
async fn with_tasks<T>(
    tasks: &mut JoinSet<()>,
    session: impl Future<Output = T>,
    stop: impl Fn(),
) -> (T, bool) {
    let mut session = pin!(session);
    let mut panicked = false;
    loop {
        tokio::select! {
            end = &mut session => return (end, panicked),
            Some(ended) = tasks.join_next() => if ended.is_err_and(|end| end.is_panic()) {
                panicked = true;
                stop();
            }
        }
    }
}

fn finish(end: Option<Ending>) -> Result<(), RunError> {
    let Some(Ending { reason, error }) = end else {
        return Err(RunError::Panicked);
    };
    match error {
        Some(error) => Err(RunError::Session(error)),
        None => {
            info!(%reason, "stopped");
            Ok(())
        }
    }
}

/// Sets the status text in systemd, until it is dropped. A tunnel with a first text counts as started: its
/// network card may come hours later, and the boot must not wait for it.
async fn notify_status(mut summary: watch::Receiver<String>) {
    let mut is_first = true;
    while summary.changed().await.is_ok() {
        let text = summary.borrow_and_update().clone();
        service::notify_status(&text);
        if take(&mut is_first) {
            service::notify_ready();
        }
    }
}

/// Notifies systemd, and logs, when the tunnel is connected for the first time.
async fn notify_ready(name: String, mut events: Events) {
    while let Some(event) = events.next().await {
        let is_connected =
            event.is_ok_and(|event| event.kind == EventKind::Status(SessionStatus::Connected));
        if is_connected {
            info!(tunnel = name, "ready");
            return service::notify_ready();
        }
    }
}

async fn obey_signals(host: Host, name: String) {
    let reload = || {
        let (host, name) = (host.clone(), name.clone());
        async move { reload(&host, &name).await }
    };
    if let Err(error) = signals::until_end(reload).await {
        return warn!(%error, "cannot catch signals; stop the tunnel with `patchcord down`");
    }
    host.begin_stop(&name, StopReason::UserInitiated);
}

/// Reloads the file of a running tunnel, and logs what came of it.
pub async fn reload(host: &Host, tunnel: &str) {
    let answer = host.ask(tunnel, Query::Reload(ReloadMode::Apply)).await;
    let reloaded = match answer {
        Ok(Answer::Reloaded(reloaded)) => reloaded,
        Ok(_) | Err(HostError::NoQuery(_)) => return,
        Err(error) => {
            let error = error.to_string().replace('\n', "; ");
            return warn!(
                tunnel,
                error, "the configuration is not reloaded: it stays as it was"
            );
        }
    };
    for change in &reloaded.changes {
        info!(tunnel, "{change}");
    }
    match reloaded.outcome {
        ReloadOutcome::Applied => info!(tunnel, "the configuration is reloaded"),
        ReloadOutcome::NeedsRestart => warn!(
            tunnel,
            "the configuration is not reloaded, as a change needs a restart; `patchcord reload NAME \
             --restart` does it"
        ),
        _ => info!(tunnel, "the file has the configuration that is in force"),
    }
}
