// SPDX-License-Identifier: MIT OR Apache-2.0
//! `patchcord up`: the built-in provider, and the process around it.
//!
//! [`TunnelProvider`] turns a [`Config`] into settings and an `Engine`; it
//! is a provider like any other. [`run`] hosts it on the control thread, answers the control socket,
//! and tells systemd.

mod provider;
mod status;

use std::{
    io,
    path::{Path, PathBuf},
    pin::pin,
    sync::Arc,
    thread,
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinSet,
    time::timeout,
};
use tracing::{info, warn};

pub use self::provider::TunnelProvider;
use crate::{
    config::Config,
    control::{
        RUN_DIR,
        message::{Reply, Request},
        server::Server,
        socket_path,
    },
    machine::{
        keep_memory_private,
        lock::{LockError, RunLock},
        service, signals,
    },
    provider::{
        Deadlines, EthernetTunnelProvider, Session, SessionEnd, SessionError, SessionHandle,
        StartOptions, StartSource, StopReason,
    },
};

/// Requests of the control socket that wait for the control thread.
const REQUESTS: usize = 4;
/// For the answers that are due when the tunnel is gone.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// Why a tunnel did not start, or ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// Another process runs it.
    #[error(transparent)]
    Locked(#[from] LockError),
    /// The control socket cannot be made.
    #[error("cannot make the control socket {}", path.display())]
    ControlSocket {
        /// Where.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The kernel has no threads or descriptors left.
    #[error("cannot start the control thread")]
    Runtime(#[source] io::Error),
    /// The session did not start, or failed.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// The control thread panicked, or one of its tasks.
    #[error("the control thread panicked; please report this with the lines above")]
    Panicked,
}

/// Runs the tunnel until it is told to stop, by a signal or by `patchcord down`.
///
/// # Errors
/// Says what failed and the remedy. Everything that was set up is removed by then.
pub fn run(config: Config) -> Result<(), RunError> {
    if let Err(error) = keep_memory_private() {
        warn!(%error, "a core dump would contain the private key");
    }
    let control = thread::Builder::new()
        .name("control".into())
        .spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .map_err(RunError::Runtime)?;
            let outcome = runtime.block_on(serve(config, Path::new(RUN_DIR)));
            // Work that a task has left to another thread does not hold up the end.
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
    let _lock = RunLock::acquire(run_dir, &name)?;
    let path = socket_path(run_dir, &name);
    let server = Server::bind(&path).map_err(|source| RunError::ControlSocket { path, source })?;
    let (requests_in, requests) = mpsc::channel(REQUESTS);
    let mut tasks = JoinSet::new();
    tasks.spawn(server.serve(requests_in));

    let provider = Arc::new(TunnelProvider::new(config));
    let status = tasks.spawn(tell_status(provider.summary()));
    let deadlines = Deadlines::default();
    let session = Session::new(provider.clone(), name.clone(), run_dir, deadlines);
    let handle = session.handle();
    let signals = tasks.spawn(stop_on_signal(handle.clone()));
    let (ended_in, ended) = oneshot::channel();
    tasks.spawn(answer(handle.clone(), requests, ended));
    let options = StartOptions {
        options: None,
        source: StartSource::System,
    };
    let watchdog = tasks.spawn(service::tell_alive(move || provider.is_well()));
    let ready = || {
        info!(tunnel = name, "ready");
        service::tell_ready();
    };
    let session = session.run(options, ready);
    let (end, panicked) = beside(&mut tasks, session, || {
        handle.stop(StopReason::InternalError);
    })
    .await;
    signals.abort();
    watchdog.abort();
    status.abort();
    service::tell_stopping();

    // Whoever asked for the end hears of it now that everything is gone, and then the socket goes.
    drop(ended_in);
    let last_words = async { while tasks.join_next().await.is_some() {} };
    if timeout(LAST_WORDS, last_words).await.is_err() {
        warn!("somebody who asked by the control socket gets no answer");
    }
    if panicked {
        return Err(RunError::Panicked);
    }
    finish(end)
}

/// What `session` comes to, and whether one of the `tasks` beside it panicked, which stops it.
async fn beside<T>(
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

fn finish(end: SessionEnd) -> Result<(), RunError> {
    match end.error {
        Some(error) => Err(error.into()),
        None => {
            info!(reason = %end.reason, "stopped");
            Ok(())
        }
    }
}

/// Tells systemd what the tunnel waits for, until it is dropped.
async fn tell_status(mut summary: watch::Receiver<String>) {
    while summary.changed().await.is_ok() {
        let text = summary.borrow_and_update().clone();
        service::tell_status(&text);
    }
}

/// Answers the control socket until the session has `ended`.
async fn answer(
    host: SessionHandle,
    mut requests: mpsc::Receiver<(Request, oneshot::Sender<Reply>)>,
    mut ended: oneshot::Receiver<()>,
) {
    let mut waiting_for_end = Vec::new();
    loop {
        let (request, reply) = tokio::select! {
            Some(request) = requests.recv() => request,
            _ = &mut ended => break,
        };
        match request {
            Request::Show => {
                // Whoever asked may have gone.
                let _ = reply.send(show(&host).await);
            }
            Request::Fdb(_) => {
                let _ = reply.send(relay(&host, &request).await);
            }
            Request::Down => {
                host.stop(StopReason::UserInitiated);
                waiting_for_end.push(reply);
            }
        }
    }
    for reply in waiting_for_end {
        let _ = reply.send(Reply::Stopped);
    }
}

async fn show(host: &SessionHandle) -> Reply {
    let answer = host.send_message(Bytes::from_static(status::SHOW)).await;
    let status = answer.and_then(|json| serde_json::from_slice(&json).ok());
    match status {
        Some(status) => Reply::Status(Box::new(status)),
        None => {
            let state = host.status().name();
            Reply::Refused {
                message: format!("nothing to show while {state}; try again"),
            }
        }
    }
}

/// Has the provider answer a request.
async fn relay(host: &SessionHandle, request: &Request) -> Reply {
    let answer = host.send_message(request.to_line()).await;
    let reply = answer.and_then(|line| Reply::from_line(&line).ok());
    reply.unwrap_or_else(|| {
        let state = host.status().name();
        Reply::Refused {
            message: format!("there is no table of addresses while {state}; try again"),
        }
    })
}

async fn stop_on_signal(host: SessionHandle) {
    if let Err(error) = signals::until_end().await {
        return warn!(%error, "signals cannot be caught; use `patchcord down`");
    }
    host.stop(StopReason::UserInitiated);
}
