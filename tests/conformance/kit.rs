// SPDX-License-Identifier: MIT OR Apache-2.0
//! A host in a namespace, and a provider that a check controls.

use std::{
    future::Future,
    net::{IpAddr, Ipv4Addr},
    process::Command,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use nix::sched::{CloneFlags, unshare};
use patchcord::{
    host::{Event, EventKind, Events, Host, secrets::SecretStore},
    provider::{
        AppMessage, Applied, BoxFut, Deadlines, EthernetTunnelProvider, EthernetTunnelSettings,
        ProviderContext, ProviderError, SessionStatus, SettingsError, StartOptions, StopReason,
        TunnelConfiguration,
    },
};
use patchcord_bridge::MacAddr;
use tempfile::TempDir;
use tokio::time::timeout;

pub(crate) const MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 0x77]);

/// Runs an async check in a fresh network namespace, with a run directory.
pub(crate) fn in_namespace<F: Future<Output = ()>>(check: impl FnOnce(TempDir) -> F + Send) {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("network namespaces need root");
            ip("link set lo up");
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            runtime.unwrap().block_on(async {
                let limit = Duration::from_secs(120);
                let directory = tempfile::tempdir().unwrap();
                timeout(limit, check(directory))
                    .await
                    .expect("no check hangs");
            });
        });
        if let Err(panic) = thread.join() {
            std::panic::resume_unwind(panic);
        }
    });
}

/// Runs `ip` in the namespace of this thread, and returns its output.
pub(crate) fn ip(arguments: &str) -> String {
    let output = Command::new("ip").args(arguments.split(' ')).output();
    let output = output.expect("iproute2 is installed");
    let failure = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {arguments}: {failure}");
    String::from_utf8(output.stdout).unwrap()
}

/// A pure port of this name.
pub(crate) fn port(name: &str) -> EthernetTunnelSettings {
    EthernetTunnelSettings::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), MAC, 1500, name)
}

/// The behaviour of `start` of a [`Scripted`] provider.
pub(crate) type Start = dyn Fn(ProviderContext, StartOptions) -> BoxFut<'static, Result<(), ProviderError>>
    + Send
    + Sync;

/// The instructions of a check for a kind of provider, and the records of its instances.
pub(crate) struct Script {
    pub(crate) start: Box<Start>,
    pub(crate) hang_in_stop: bool,
    pub(crate) panic_in: &'static str,
    pub(crate) instances: AtomicUsize,
    pub(crate) stops: Mutex<Vec<StopReason>>,
    pub(crate) contexts: Mutex<Vec<ProviderContext>>,
}

impl Script {
    pub(crate) fn new<F>(
        start: impl Fn(ProviderContext, StartOptions) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = Result<(), ProviderError>> + Send + 'static,
    {
        Self {
            start: Box::new(move |context, options| Box::pin(start(context, options))),
            hang_in_stop: false,
            panic_in: "",
            instances: AtomicUsize::new(0),
            stops: Mutex::default(),
            contexts: Mutex::default(),
        }
    }

    /// Makes a pure port and is ready.
    pub(crate) fn plain() -> Self {
        Self::new(|context, _| async move {
            let name = format!("tap-{}", context.tunnel());
            context.set_network_settings(Some(port(&name))).await?;
            Ok(())
        })
    }

    pub(crate) fn stops(&self) -> Vec<StopReason> {
        self.stops.lock().unwrap().clone()
    }

    /// The context of the latest session.
    pub(crate) fn context(&self) -> ProviderContext {
        self.contexts.lock().unwrap().last().unwrap().clone()
    }
}

pub(crate) struct Scripted(pub(crate) Arc<Script>);

impl EthernetTunnelProvider for Scripted {
    fn start<'a>(
        &'a self,
        context: &'a ProviderContext,
        options: StartOptions,
    ) -> BoxFut<'a, Result<(), ProviderError>> {
        self.0.contexts.lock().unwrap().push(context.clone());
        assert_ne!(self.0.panic_in, "start", "a provider's panic");
        (self.0.start)(context.clone(), options)
    }

    fn stop<'a>(&'a self, _: &'a ProviderContext, reason: StopReason) -> BoxFut<'a, ()> {
        Box::pin(async move {
            self.0.stops.lock().unwrap().push(reason);
            assert_ne!(self.0.panic_in, "stop", "a provider's panic");
            if self.0.hang_in_stop {
                std::future::pending::<()>().await;
            }
        })
    }

    fn handle_app_message<'a>(
        &'a self,
        _: &'a ProviderContext,
        message: AppMessage,
    ) -> BoxFut<'a, Option<Bytes>> {
        Box::pin(async move {
            assert_ne!(message.body, "panic", "a provider's panic");
            if message.body == "hang" {
                std::future::pending::<()>().await;
            }
            if message.body == "who" {
                return Some(format!("{:?}", message.sender).into());
            }
            (message.body == "ping").then(|| Bytes::from_static(b"pong"))
        })
    }
}

pub(crate) const DEADLINES: Deadlines = Deadlines {
    start: Duration::from_secs(1),
    abandon: Duration::from_millis(100),
    stop: Duration::from_millis(300),
};

/// A host with one kind of provider, "scripted", and the tunnels "a" and "b" of it.
pub(crate) fn host(directory: &TempDir, script: &Arc<Script>) -> Host {
    host_with(directory, script, DEADLINES)
}

/// As [`host`], with other deadlines.
pub(crate) fn host_with(directory: &TempDir, script: &Arc<Script>, deadlines: Deadlines) -> Host {
    let script = script.clone();
    let host = Host::builder(directory.path())
        .deadlines(deadlines)
        .secrets(SecretStore::new(directory.path().join("secrets")))
        .register("scripted", move |_, _| {
            script.instances.fetch_add(1, Ordering::Relaxed);
            Ok(Scripted(script.clone()))
        })
        .build();
    for tunnel in ["a", "b"] {
        host.configure(tunnel, TunnelConfiguration::new("scripted"), None)
            .unwrap();
    }
    host
}

/// The next event about this tunnel.
pub(crate) async fn next(events: &mut Events, tunnel: &str) -> EventKind {
    next_event(events, tunnel).await.kind
}

async fn next_event(events: &mut Events, tunnel: &str) -> Event {
    loop {
        let event = timeout(Duration::from_secs(5), events.next()).await;
        let event = event.expect("an event within 5 s").unwrap().unwrap();
        if event.tunnel == tunnel {
            return event;
        }
    }
}

/// The statuses of the tunnel until its session is over, the reason, and the error.
pub(crate) async fn until_end(
    events: &mut Events,
    tunnel: &str,
) -> (Vec<SessionStatus>, StopReason, Option<String>) {
    let mut statuses = Vec::new();
    loop {
        match next(events, tunnel).await {
            EventKind::Status(status) => statuses.push(status),
            EventKind::Ended { reason, error } => return (statuses, reason, error),
            _ => {}
        }
    }
}

/// Starts a tunnel and waits until it is connected.
pub(crate) async fn connect(host: &Host, events: &mut Events, tunnel: &str) {
    let attempt = host.start(tunnel, StartOptions::default()).unwrap();
    loop {
        let event = next_event(events, tunnel).await;
        match event.kind {
            _ if event.attempt != Some(attempt) => {}
            EventKind::Status(SessionStatus::Connected) => return,
            EventKind::Ended { error, .. } => panic!("{tunnel} did not connect: {error:?}"),
            _ => {}
        }
    }
}

/// Applies settings that must be accepted.
pub(crate) async fn apply(context: &ProviderContext, settings: EthernetTunnelSettings) -> Applied {
    let applied = context.set_network_settings(Some(settings)).await;
    applied.unwrap().unwrap()
}

/// The field of settings that must be refused.
pub(crate) async fn refused(
    context: &ProviderContext,
    settings: EthernetTunnelSettings,
) -> &'static str {
    match context.set_network_settings(Some(settings)).await {
        Err(SettingsError::Invalid { field, .. }) => field,
        other => panic!("{other:?}"),
    }
}
