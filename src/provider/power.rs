// SPDX-License-Identifier: MIT OR Apache-2.0
//! Announces the machine's sleep to providers, and ends their sessions before it if they are configured
//! so.
//!
//! ```text
//! logind ── Power ── SleepWatch ─┬─> follow, session "office" ── provider
//!    one inhibitor               ├─> follow, session "lab" ── provider
//!                                └─> the host, which starts nothing meanwhile
//! ```
//! Each session holds a clone of the guard as long as it needs.

use std::{
    error::Error,
    future::pending,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time::timeout_at,
};
use tracing::{Instrument, debug, warn};

use super::{
    callback::cancel,
    context::ProviderContext,
    error::ProviderError,
    ethernet_tunnel::EthernetTunnelProvider,
    status::{SessionStatus, StopReason},
};
use crate::machine::{
    bus::Bus,
    power::{Power, PowerEvent, SleepGuard},
};

/// The time between attempts to connect to logind; a machine may have none, or start it later.
const RETRY: Duration = Duration::from_secs(30);

/// One watch over the machine's sleep, shared by all clones. It begins with the first listener, and
/// ends with the last clone.
#[derive(Clone)]
pub(crate) struct SleepWatch {
    inner: Arc<Inner>,
}

struct Inner {
    bus: Bus,
    why: String,
    listeners: Arc<Listeners>,
    /// One task, or none yet.
    task: Mutex<JoinSet<()>>,
}

#[derive(Default)]
struct Listeners {
    senders: Mutex<Vec<mpsc::UnboundedSender<PowerEvent>>>,
    is_asleep: watch::Sender<bool>,
}

impl SleepWatch {
    /// Not begun. `systemd-inhibit --list` shows `why`.
    pub(crate) fn new(bus: Bus, why: impl Into<String>) -> Self {
        let inner = Inner {
            bus,
            why: why.into(),
            listeners: Arc::default(),
            task: Mutex::default(),
        };
        Self {
            inner: Arc::new(inner),
        }
    }

    /// The power events from now on. Must be called on a tokio runtime.
    pub(super) fn events(&self) -> mpsc::UnboundedReceiver<PowerEvent> {
        let (sender, events) = mpsc::unbounded_channel();
        let mut senders = lock(&self.inner.listeners.senders);
        senders.retain(|listener| !listener.is_closed());
        senders.push(sender);
        self.begin();
        events
    }

    /// Whether the machine sleeps, or is about to. Must be called on a tokio runtime.
    pub(crate) fn is_asleep(&self) -> watch::Receiver<bool> {
        self.begin();
        self.inner.listeners.is_asleep.subscribe()
    }

    fn begin(&self) {
        let Inner {
            bus,
            why,
            listeners,
            task,
        } = &*self.inner;
        let mut task = lock(task);
        if task.is_empty() {
            task.spawn(listen(bus.clone(), why.clone(), listeners.clone()));
        }
    }
}

impl Listeners {
    fn announce(&self, event: &PowerEvent) {
        // Set before providers get ready: no session may start meanwhile.
        self.is_asleep
            .send_replace(matches!(event, PowerEvent::Sleep(_)));
        lock(&self.senders).retain(|listener| listener.send(event.clone()).is_ok());
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Listens to logind for ever, if the machine has it.
async fn listen(bus: Bus, why: String, listeners: Arc<Listeners>) {
    let mut is_told = false;
    loop {
        match Power::watch(&bus, &why).await {
            Ok(mut power) => {
                is_told = false;
                while let Some(event) = power.next().await {
                    listeners.announce(&event);
                }
                // No event will report the end of that sleep.
                if *listeners.is_asleep.borrow() {
                    listeners.announce(&PowerEvent::Wake);
                }
                debug!("logind cannot be reached any more");
            }
            Err(_) if is_told => {}
            Err(error) => {
                is_told = true;
                let source = error.source().map(ToString::to_string);
                debug!(%error, source, "cannot watch the machine's sleep");
            }
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// Runs as a task of a session until it is dropped. A machine without logind does not announce its
/// sleep.
pub(super) async fn follow(
    mut events: mpsc::UnboundedReceiver<PowerEvent>,
    provider: Arc<dyn EthernetTunnelProvider>,
    context: ProviderContext,
) {
    while let Some(event) = events.recv().await {
        match event {
            PowerEvent::Sleep(guard) if disconnects_on_sleep(&context) => {
                context.begin_stop(StopReason::Sleep);
                // Held until everything is removed, which ends this task.
                let _guard = guard;
                return pending().await;
            }
            PowerEvent::Sleep(guard) if is_connected(&context) => {
                sleep(&guard, &provider, &context).await;
            }
            PowerEvent::Wake if is_connected(&context) => wake(&provider, &context).await,
            PowerEvent::Sleep(_) | PowerEvent::Wake => {}
        }
    }
}

/// The callbacks are for sessions that run.
fn is_connected(context: &ProviderContext) -> bool {
    matches!(
        *context.status().borrow(),
        SessionStatus::Connected | SessionStatus::Reasserting
    )
}

fn disconnects_on_sleep(context: &ProviderContext) -> bool {
    context.configuration().borrow().disconnect_on_sleep
}

async fn sleep(
    guard: &SleepGuard,
    provider: &Arc<dyn EthernetTunnelProvider>,
    context: &ProviderContext,
) {
    let (provider, its_context) = (provider.clone(), context.clone());
    let sleep = async move { provider.sleep(&its_context).await };
    let mut sleep = tokio::spawn(sleep.in_current_span());
    match timeout_at(guard.deadline(), &mut sleep).await {
        Ok(Ok(())) => {}
        Ok(Err(_)) => panicked(context, "sleep"),
        Err(_) => {
            warn!("the provider did not get ready for sleep in time");
            cancel(&mut sleep, "sleep").await;
        }
    }
}

async fn wake(provider: &Arc<dyn EthernetTunnelProvider>, context: &ProviderContext) {
    let (provider, its_context) = (provider.clone(), context.clone());
    // A task of its own, because it may panic.
    let wake = async move { provider.wake(&its_context) };
    let wake = tokio::spawn(wake.in_current_span());
    if wake.await.is_err() {
        panicked(context, "wake");
    }
}

fn panicked(context: &ProviderContext, callback: &str) {
    let message = format!("the provider panicked in {callback}");
    context.cancel_tunnel(Some(ProviderError::new(message)));
}
