// SPDX-License-Identifier: MIT OR Apache-2.0
//! Every thread and task of an engine has an owner that notices its end, and that waits for it for a
//! bounded time at stop.

use std::{io, sync::Arc, thread::JoinHandle, time::Duration};

use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval, sleep},
};
use tracing::{Instrument, error};

use super::{
    view::{EngineEvent, Stopped},
    watchdog::Watchdog,
};

/// Between two checks of all heartbeats.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// Runs a task that works for as long as the engine does. Its owner is told of any other end, once
/// there is room for the event.
pub(super) async fn supervise(
    name: &'static str,
    task: impl Future<Output = ()> + Send + 'static,
    events: mpsc::Sender<EngineEvent>,
) {
    // Ends with this one.
    let mut inner = JoinSet::new();
    inner.spawn(task.in_current_span());
    let stopped = match inner.join_next().await {
        Some(Err(end)) if end.is_panic() => Stopped::of_panic(name, &*end.into_panic()),
        _ => Stopped::Failed(io::Error::other(format!("`{name}` ended"))),
    };
    // Fails when the owner is gone.
    let _ = events.send(EngineEvent::Broken(stopped)).await;
}

/// Reports a thread or task that makes no progress to the owner.
pub(super) async fn watch_over(watchdog: Arc<Watchdog>, events: mpsc::Sender<EngineEvent>) {
    let mut checks = interval(CHECK_INTERVAL);
    checks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        checks.tick().await;
        if let Some(name) = watchdog.check() {
            let problem = format!("`{name}` makes no progress");
            let stopped = Stopped::Failed(io::Error::other(problem));
            let _ = events.send(EngineEvent::Broken(stopped)).await;
            return;
        }
    }
}

/// Waits for threads to end; one that does not is left behind.
pub(super) async fn join_all(threads: &mut Vec<JoinHandle<()>>, patience: Duration) {
    const STEP: Duration = Duration::from_millis(2);
    let deadline = Instant::now() + patience;
    while threads.iter().any(|thread| !thread.is_finished()) && Instant::now() < deadline {
        sleep(STEP).await;
    }
    for thread in threads.drain(..) {
        if thread.is_finished() {
            // A thread that panicked has been reported.
            let _ = thread.join();
        } else {
            let name = thread.thread().name().unwrap_or("?");
            error!(
                thread = name,
                "a data thread does not end; leaving it behind"
            );
        }
    }
}
