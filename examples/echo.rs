// SPDX-License-Identifier: MIT OR Apache-2.0
//! The smallest useful provider: a station at the far end of a cable that sends everything back.
//!
//! ```text
//!  ping 10.80.0.2 ── kernel ── echo0 ═══ TAP ═══ this program: 10.80.0.2
//! ```
//! It shows the two callbacks of a provider, settings, reading and writing frames, and parsing frames
//! with etherparse. It answers ARP for one address, answers pings of that address, and returns any
//! other frame to its MAC address with the two MAC addresses exchanged. VLAN tags stay as they are, so
//! it answers in every VLAN.
//!
//! ```text
//! $ sudo target/debug/examples/echo                     # after `cargo build --examples`
//! echo0: 10.80.0.2 answers at 02:00:00:00:80:02; Ctrl-C ends it
//! ^Cecho0: 3 frames read, 3 answered
//! $ ping 10.80.0.2                                      # meanwhile, elsewhere
//! ```
//! Exit codes: 0 stopped, 1 failed at run time, 2 bad usage.

// It is a program: its output goes to stdout, its errors to stderr.
#![allow(clippy::print_stderr, clippy::print_stdout)]

use std::{
    net::Ipv4Addr,
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use clap::Parser;
use etherparse::{
    ArpEthIpv4Packet, ArpOperation, ArpPacketSlice, Icmpv4Header, Icmpv4Type, Ipv4Slice, NetSlice,
    SlicedPacket, TransportSlice,
};
use ipnet::Ipv4Net;
use patchcord::{
    control::RUN_DIR,
    provider::{
        BoxFut, Deadlines, EthernetTunnelProvider, EthernetTunnelSettings, FlowError,
        ProviderContext, ProviderError, Session, SessionHandle, StartOptions, StopReason,
    },
};
use patchcord_bridge::MacAddr;
use tokio::signal::unix::{SignalKind, signal};

/// A station behind a TAP that answers ARP and pings, and sends all other frames back
#[derive(Clone, Parser)]
#[command(name = "echo")]
struct Args {
    /// Name of the interface
    #[arg(long, default_value = "echo0")]
    name: String,
    /// Address of the interface, which is the kernel's end of the cable; with --bridge it has none
    #[arg(long, default_value = "10.80.0.1/24")]
    address: Ipv4Net,
    /// The address that answers
    #[arg(long, default_value = "10.80.0.2")]
    answer: Ipv4Addr,
    /// The MAC address that answers
    #[arg(long, default_value = "02:00:00:00:80:02")]
    mac: MacAddr,
    /// Linux bridge to plug the interface into
    #[arg(long)]
    bridge: Option<String>,
}

fn main() -> ExitCode {
    match run(Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("echo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[tokio::main(flavor = "current_thread")]
async fn run(args: Args) -> Result<()> {
    let provider = Arc::new(Echo::new(args.clone()));
    let session = Session::new(provider.clone(), "echo", RUN_DIR, Deadlines::default());
    tokio::spawn(stop_on_signal(session.handle()));
    let Args {
        name, answer, mac, ..
    } = args;
    let end = session
        .run(StartOptions::default(), || {
            println!("{name}: {answer} answers at {mac}; Ctrl-C ends it");
        })
        .await;
    if let Some(error) = end.error {
        return Err(error).with_context(|| format!("the session on {name} ended"));
    }
    let (read, answered) = provider.counters();
    println!("{name}: {read} frames read, {answered} answered");
    Ok(())
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

/// The provider: the input of `start`, and the counters of its task.
struct Echo {
    args: Args,
    counters: Arc<Counters>,
}

#[derive(Default)]
struct Counters {
    read: AtomicU64,
    answered: AtomicU64,
}

impl Echo {
    fn new(args: Args) -> Self {
        Self {
            args,
            counters: Arc::default(),
        }
    }

    fn counters(&self) -> (u64, u64) {
        let Counters { read, answered } = &*self.counters;
        (
            read.load(Ordering::Relaxed),
            answered.load(Ordering::Relaxed),
        )
    }

    fn settings(&self) -> EthernetTunnelSettings {
        // The kernel's end needs a MAC address of its own.
        let [first @ .., last] = self.args.mac.0;
        let [a, b, c, d, e] = first;
        let kernel = MacAddr([a, b, c, d, e, last ^ 0xff]);
        let anywhere = Ipv4Addr::UNSPECIFIED.into();
        let settings = EthernetTunnelSettings::new(anywhere, kernel, 1500, &self.args.name);
        match &self.args.bridge {
            Some(bridge) => {
                let mut settings = settings;
                settings.bridge = Some(bridge.clone());
                settings
            }
            None => settings.with_addresses(&[self.args.address.into()]),
        }
    }
}

impl EthernetTunnelProvider for Echo {
    fn start<'a>(
        &'a self,
        context: &'a ProviderContext,
        _options: StartOptions,
    ) -> BoxFut<'a, Result<(), ProviderError>> {
        Box::pin(async move {
            context.set_network_settings(Some(self.settings())).await?;
            let station = Station {
                mac: self.args.mac.0,
                ip: self.args.answer,
            };
            let (context, counters) = (context.clone(), self.counters.clone());
            context.set_carrier(true).await;
            tokio::spawn(async move {
                match answer_frames(&context, &station, &counters).await {
                    Ok(()) | Err(FlowError::Closed(_)) => {}
                    Err(error) => {
                        let error = ProviderError::with_source("frames do not flow", error);
                        context.cancel_tunnel(Some(error));
                    }
                }
            });
            Ok(())
        })
    }

    fn stop<'a>(&'a self, _: &'a ProviderContext, _: StopReason) -> BoxFut<'a, ()> {
        // Reading ends by itself, and the host removes the interface.
        Box::pin(async {})
    }
}

async fn answer_frames(
    context: &ProviderContext,
    station: &Station,
    counters: &Counters,
) -> Result<(), FlowError> {
    let Some(mut reader) = context.take_reader() else {
        return Ok(());
    };
    let writer = context.writer();
    let mut frames: Vec<Bytes> = Vec::new();
    loop {
        let read = reader.recv_batch(&mut frames).await? as u64;
        let answers: Vec<_> = frames
            .drain(..)
            .filter_map(|frame| station.answer(&frame))
            .collect();
        let sent = writer.try_send_batch(&answers)?;
        counters.read.fetch_add(read, Ordering::Relaxed);
        let answered = sent.accepted as u64;
        counters.answered.fetch_add(answered, Ordering::Relaxed);
    }
}

/// The station that answers. Pure: a frame in, perhaps a frame out.
struct Station {
    mac: [u8; 6],
    ip: Ipv4Addr,
}

impl Station {
    fn answer(&self, frame: &[u8]) -> Option<Vec<u8>> {
        let (dst, src) = (&frame[..6], &frame[6..12]);
        let is_group = dst[0] & 1 == 1;
        if !is_group && dst != self.mac {
            return None;
        }
        let packet = SlicedPacket::from_ethernet(frame).ok();
        let payload = match packet
            .as_ref()
            .map(|packet| (&packet.net, &packet.transport))
        {
            Some((Some(NetSlice::Arp(arp)), _)) => self.answer_arp(arp),
            Some((Some(NetSlice::Ipv4(ip)), Some(TransportSlice::Icmpv4(_)))) => {
                self.answer_ping(ip)
            }
            _ => None,
        };
        match (packet, payload) {
            (Some(packet), Some(payload)) => {
                // Copies everything before the payload, tags included, except the MAC addresses.
                let tags: usize = packet.link_exts.iter().map(|tag| tag.header_len()).sum();
                Some([src, &self.mac, &frame[12..14 + tags], &payload].concat())
            }
            // Not to a group: a host that receives its own broadcasts may suspect a loop.
            _ if is_group => None,
            _ => Some([src, dst, &frame[12..]].concat()),
        }
    }

    /// Who has our address? We do.
    fn answer_arp(&self, arp: &ArpPacketSlice<'_>) -> Option<Vec<u8>> {
        let request = arp.to_packet().try_eth_ipv4().ok()?;
        let is_for_us =
            request.operation == ArpOperation::REQUEST && request.target_ipv4 == self.ip.octets();
        let reply = ArpEthIpv4Packet {
            operation: ArpOperation::REPLY,
            sender_mac: self.mac,
            sender_ipv4: request.target_ipv4,
            target_mac: request.sender_mac,
            target_ipv4: request.sender_ipv4,
        };
        is_for_us.then(|| reply.to_bytes().to_vec())
    }

    /// RFC 792: addresses exchanged, the type changed, the data unchanged.
    fn answer_ping(&self, ip: &Ipv4Slice<'_>) -> Option<Vec<u8>> {
        let mut header = ip.header().to_header();
        if header.destination != self.ip.octets() || ip.is_payload_fragmented() {
            return None;
        }
        let (request, data) = Icmpv4Header::from_slice(ip.payload().payload).ok()?;
        let Icmpv4Type::EchoRequest(echo) = request.icmp_type else {
            return None;
        };
        std::mem::swap(&mut header.source, &mut header.destination);
        header.time_to_live = 64;
        header.header_checksum = header.calc_header_checksum();
        let reply = Icmpv4Header::with_checksum(Icmpv4Type::EchoReply(echo), data);
        Some([&header.to_bytes()[..], &reply.to_bytes(), data].concat())
    }
}
