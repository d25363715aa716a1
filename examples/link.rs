// SPDX-License-Identifier: MIT OR Apache-2.0
//! An Ethernet cable between two machines, over plain UDP: a provider of about 100 lines.
//!
//! ```text
//!  machine a ── link0 ═ TAP ═ this program ─── UDP ─── this program ═ TAP ═ link0 ── machine b
//! ```
//! **It does not encrypt.** Everyone on the path can read the frames, and an attacker who can forge the
//! peer's address can inject some. `patchcord up` is the tunnel with keys; this shows what is left
//! without them: a task for each direction, frames in batches, and temporary errors of the path.
//!
//! ```text
//! a$ sudo target/debug/examples/link --peer 192.0.2.2:47800 --address 10.81.0.1/24
//! b$ sudo target/debug/examples/link --peer 192.0.2.1:47800 --address 10.81.0.2/24
//! link0: to 192.0.2.1:47800, not encrypted; Ctrl-C ends it
//! b$ ping 10.81.0.1
//! ```
//! A datagram holds frames, each after its length in two bytes, as many as a path of 1500 bytes
//! carries; the kernel fragments the datagram of a larger frame. Exit codes: 0 stopped, 1 failed at run
//! time, 2 bad usage.

// It is a program: its output goes to stdout, its errors to stderr.
#![allow(clippy::print_stderr, clippy::print_stdout)]

use std::{io, net::SocketAddr, process::ExitCode, sync::Arc};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use clap::Parser;
use ipnet::IpNet;
use patchcord::{
    control::RUN_DIR,
    provider::{
        BoxFut, Deadlines, EthernetTunnelProvider, EthernetTunnelSettings, FlowError,
        ProviderContext, ProviderError, Session, SessionHandle, StartOptions, StopReason,
    },
};
use patchcord_bridge::MacAddr;
use tokio::{
    net::UdpSocket,
    signal::unix::{SignalKind, signal},
};

/// The room for a datagram on an IPv6 path of 1500 bytes.
const DATAGRAM_BYTES: usize = 1500 - 40 - 8;

/// An Ethernet cable over plain UDP. It does not encrypt
#[derive(Clone, Parser)]
#[command(name = "link")]
struct Args {
    /// Where the other end is
    #[arg(long, value_name = "ADDRESS:PORT")]
    peer: SocketAddr,
    /// Where this end listens
    #[arg(long, default_value = "0.0.0.0:47800")]
    listen: SocketAddr,
    /// Name of the interface
    #[arg(long, default_value = "link0")]
    name: String,
    /// MAC address of the interface, different at each end [default: a random one]
    #[arg(long)]
    mac: Option<MacAddr>,
    /// MTU of the interface, the same at each end; up to 1428 no datagram is fragmented
    #[arg(long, default_value_t = 1500)]
    mtu: u32,
    /// Address of the interface; can be repeated
    #[arg(long, value_name = "ADDRESS/LENGTH")]
    address: Vec<IpNet>,
    /// Linux bridge to plug the interface into
    #[arg(long)]
    bridge: Option<String>,
}

fn main() -> ExitCode {
    match run(Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("link: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[tokio::main(flavor = "current_thread")]
async fn run(args: Args) -> Result<()> {
    let (name, peer) = (args.name.clone(), args.peer);
    let session = Session::new(Arc::new(Link(args)), &name, RUN_DIR, Deadlines::default());
    tokio::spawn(stop_on_signal(session.handle()));
    let ready = || println!("{name}: to {peer}, not encrypted; Ctrl-C ends it");
    match session.run(StartOptions::default(), ready).await.error {
        Some(error) => Err(error).with_context(|| format!("the session on {name} ended")),
        None => Ok(()),
    }
}

async fn stop_on_signal(session: SessionHandle) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = tokio::signal::ctrl_c() => {}
    }
    session.stop(StopReason::UserInitiated);
    Ok(())
}

/// The provider.
struct Link(Args);

impl EthernetTunnelProvider for Link {
    fn start<'a>(
        &'a self,
        context: &'a ProviderContext,
        _options: StartOptions,
    ) -> BoxFut<'a, Result<(), ProviderError>> {
        Box::pin(async move {
            // The socket first: a UDP port in use must not disturb an interface.
            let socket = connect(&self.0).await?;
            let mac = match self.0.mac {
                Some(mac) => mac,
                None => random_mac()?,
            };
            let remote = self.0.peer.ip();
            let mut settings = EthernetTunnelSettings::new(remote, mac, self.0.mtu, &self.0.name)
                .with_addresses(&self.0.address);
            settings.bridge.clone_from(&self.0.bridge);
            context.set_network_settings(Some(settings)).await?;
            context.set_carrier(true).await;
            let context = context.clone();
            tokio::spawn(async move {
                let outcome = tokio::select! {
                    outcome = outbound(&context, &socket) => outcome,
                    outcome = inbound(&context, &socket) => outcome,
                    _ = context.cancelled() => return,
                };
                let error = outcome
                    .err()
                    .map(|error| ProviderError::with_source("frames do not flow", error));
                context.cancel_tunnel(error);
            });
            Ok(())
        })
    }

    fn stop<'a>(&'a self, _: &'a ProviderContext, _: StopReason) -> BoxFut<'a, ()> {
        // The task watches for the end itself, and the host removes the interface.
        Box::pin(async {})
    }
}

/// A socket that receives from the peer only.
async fn connect(args: &Args) -> Result<UdpSocket, ProviderError> {
    let Args { listen, peer, .. } = args;
    let failed = |error| {
        let remedy = "give --listen a free port, and an address of the same family as --peer";
        ProviderError::with_source(
            format!("no UDP socket from {listen} to {peer}: {remedy}"),
            error,
        )
    };
    let socket = UdpSocket::bind(listen).await.map_err(failed)?;
    socket.connect(peer).await.map_err(failed)?;
    Ok(socket)
}

/// A locally administered address of one station.
fn random_mac() -> Result<MacAddr, ProviderError> {
    let mut mac = [0; 6];
    getrandom::fill(&mut mac)
        .map_err(|error| ProviderError::with_source("no random MAC address: give --mac", error))?;
    mac[0] = mac[0] & 0xfc | 0x02;
    Ok(MacAddr(mac))
}

/// From the interface to the peer: as many frames in a datagram as fit.
async fn outbound(context: &ProviderContext, socket: &UdpSocket) -> Result<(), FlowError> {
    let Some(mut reader) = context.take_reader() else {
        return Ok(());
    };
    let (mut frames, mut datagram): (Vec<Bytes>, Vec<u8>) = Default::default();
    loop {
        reader.recv_batch(&mut frames).await?;
        for frame in frames.drain(..) {
            let Ok(len) = u16::try_from(frame.len()) else {
                continue;
            };
            if datagram.len() + 2 + frame.len() > DATAGRAM_BYTES {
                send(socket, &mut datagram).await;
            }
            datagram.extend(len.to_be_bytes());
            datagram.extend(&frame);
        }
        send(socket, &mut datagram).await;
    }
}

/// A path that fails now may work later; lost frames are lost, as on any cable.
async fn send(socket: &UdpSocket, datagram: &mut Vec<u8>) {
    if !datagram.is_empty() {
        let _ = socket.send(datagram).await;
        datagram.clear();
    }
}

/// From the peer to the interface.
async fn inbound(context: &ProviderContext, socket: &UdpSocket) -> Result<(), FlowError> {
    let writer = context.writer();
    let mut datagram = vec![0; usize::from(u16::MAX)];
    loop {
        match socket.recv(&mut datagram).await {
            Ok(len) => drop(writer.try_send_batch(&frames_of(&datagram[..len]))?),
            // The peer is not up yet, or no longer.
            Err(error) if passes(&error) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn passes(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionRefused, HostUnreachable, NetworkUnreachable};
    matches!(
        error.kind(),
        ConnectionRefused | HostUnreachable | NetworkUnreachable
    )
}

/// The frames of a datagram; bytes behind a wrong length are no frame.
fn frames_of(mut datagram: &[u8]) -> Vec<&[u8]> {
    let mut frames = Vec::new();
    while let Some((len, rest)) = datagram.split_first_chunk() {
        let Some((frame, rest)) = rest.split_at_checked(u16::from_be_bytes(*len).into()) else {
            break;
        };
        frames.push(frame);
        datagram = rest;
    }
    frames
}
