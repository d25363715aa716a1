// SPDX-License-Identifier: MIT OR Apache-2.0
//! A daemon of your own: a host with a provider that you wrote, a socket for its clients, and tunnels as
//! files that an administrator drops into a folder.
//!
//! ```text
//!  patchcord host list --socket S ──┐
//!  patchcord host start NAME  …  ───┴─ S ═ daemon ═ Host ═ Drain, one for each session
//!                                          Store::feed ═══╝
//! ```
//! The provider is the least that there can be: an interface whose frames go nowhere and are counted.
//! [`daemon::serve_until`] does the rest: it asks the kernel who a client is, lets in whom the policy names, and
//! answers what `patchcord host` and [`Client`](patchcord::host::client::Client) ask.
//!
//! ```text
//! $ echo 'provider = "drain"' > /tmp/tunnels/drain0.toml
//! $ sudo target/debug/examples/daemon --socket /tmp/drain.sock --tunnels /tmp/tunnels
//! drain0: configured
//! $ sudo patchcord host start drain0 --socket /tmp/drain.sock      # meanwhile, elsewhere
//! $ sudo patchcord host send drain0 count --socket /tmp/drain.sock
//! 17
//! ```
//! Exit codes: 0 stopped, 1 failed at run time, 2 bad usage.

// It is a program: its output goes to stdout, its errors to stderr.
#![allow(clippy::print_stderr, clippy::print_stdout)]

use std::{
    path::PathBuf,
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use clap::Parser;
use patchcord::{
    control::RUN_DIR,
    host::{
        EventKind, Events, Host,
        daemon::{self, Policy},
        socket,
        store::Store,
    },
    provider::{
        AppMessage, BoxFut, EthernetTunnelProvider, EthernetTunnelSettings, MacAddr,
        ProviderContext, ProviderError, StartOptions, StopReason,
    },
};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// A host of tunnels that drop their frames
#[derive(Clone, Parser)]
#[command(name = "daemon")]
struct Args {
    /// The socket for clients
    #[arg(long)]
    socket: PathBuf,
    /// The folder with a file NAME.toml for each tunnel
    #[arg(long)]
    tunnels: PathBuf,
    /// A user, by number, who may do everything that root may
    #[arg(long)]
    user: Option<u32>,
    /// Where locks and journals of the tunnels are kept
    #[arg(long, default_value = RUN_DIR)]
    run_dir: PathBuf,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("daemon: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[tokio::main(flavor = "current_thread")]
async fn run(args: &Args) -> Result<()> {
    // The name of a tunnel is that of its interface.
    let host = Host::builder(&args.run_dir)
        .register("drain", |name, _configuration| Ok(Drain::new(name)))
        .build();
    let mut policy = Policy::default();
    for who in [
        &mut policy.observe,
        &mut policy.control,
        &mut policy.configure,
    ] {
        who.users.extend(args.user);
    }
    // Configurations of clients are in a folder below the administrator's.
    let store = Store::new(&args.tunnels, args.tunnels.join("by-clients"));
    // Its file goes with the variable.
    let (listener, _file) = socket::bind_unless_in_use(&args.socket, policy.socket_mode())
        .await
        .with_context(|| format!("cannot listen on {}", args.socket.display()))?;
    tokio::spawn(print(host.events()));
    let terminate = signal(SignalKind::terminate())?;
    let over = stop_on_signal(host.clone(), terminate);
    let outcome = tokio::select! {
        () = daemon::serve_until(host.clone(), listener, policy, Some(store.clone()), over) => Ok(()),
        fed = store.feed(&host) => fed.context("the folder cannot be watched"),
    };
    // Also after a failure, and what a client has started since.
    host.stop_all(StopReason::UserInitiated).await;
    outcome
}

/// Returns when each provider is stopped and its interface removed; clients see that happen.
async fn stop_on_signal(host: Host, mut terminate: Signal) {
    tokio::select! {
        _ = terminate.recv() => {}
        _ = tokio::signal::ctrl_c() => {}
    }
    host.stop_all(StopReason::UserInitiated).await;
}

/// Prints what happens, until the host is gone.
async fn print(mut events: Events) {
    while let Some(event) = events.next().await {
        let Ok(event) = event else { continue };
        let tunnel = event.tunnel;
        match event.kind {
            EventKind::Configured { .. } => println!("{tunnel}: configured"),
            EventKind::NotUsed { problem } => println!("{tunnel}: not used: {problem}"),
            EventKind::Status(status) => println!("{tunnel}: {}", status.name()),
            _ => {}
        }
    }
}

/// The provider of one session.
struct Drain {
    name: String,
    frames: Arc<AtomicU64>,
}

impl Drain {
    fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            frames: Arc::default(),
        }
    }
}

impl EthernetTunnelProvider for Drain {
    fn start<'a>(
        &'a self,
        context: &'a ProviderContext,
        _options: StartOptions,
    ) -> BoxFut<'a, Result<(), ProviderError>> {
        Box::pin(async move {
            let mac = MacAddr([2, 0, 0, 0, 0x80, 3]);
            let nowhere = [0, 0, 0, 0].into();
            let settings = EthernetTunnelSettings::new(nowhere, mac, 1500, &self.name);
            context.set_network_settings(Some(settings)).await?;
            context.set_carrier(true).await;
            if let Some(mut reader) = context.take_reader() {
                let frames = self.frames.clone();
                tokio::spawn(async move {
                    let mut batch: Vec<Bytes> = Vec::new();
                    // Ends with the session.
                    while let Ok(count) = reader.recv_batch(&mut batch).await {
                        frames.fetch_add(count as u64, Ordering::Relaxed);
                        batch.clear();
                    }
                });
            }
            Ok(())
        })
    }

    fn stop<'a>(&'a self, _: &'a ProviderContext, _: StopReason) -> BoxFut<'a, ()> {
        Box::pin(async {})
    }

    /// A client asks for the count.
    fn handle_app_message<'a>(
        &'a self,
        _: &'a ProviderContext,
        _message: AppMessage,
    ) -> BoxFut<'a, Option<Bytes>> {
        let count = self.frames.load(Ordering::Relaxed).to_string();
        Box::pin(async move { Some(count.into()) })
    }
}
