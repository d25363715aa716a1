// SPDX-License-Identifier: MIT OR Apache-2.0
//! Encrypted Ethernet tunnels: frames of a TAP, over UDP, to peers known by their keys.
//!
//! ```text
//!             ┌── outbound ── switch ── pack ─── seal ──┐
//!  TAP queue ─┤                                         ├─ UDP socket ═══ peers
//!             └── inbound ─── switch ── unpack ─ open ──┘
//!                       notices │  ^ tables
//!                    control: handshakes, timers, netlink, `patchcord show`
//! ```
//! The program `patchcord` is a thin edge around [`tunnel::run`]. The bytes on the wire are
//! described in PROTOCOL.md, the code as a whole in ARCHITECTURE.md.
//!
//! # Modules, top down
//!
//! | Module | Holds |
//! |---|---|
//! | [`tunnel`] | `patchcord up` as a function |
//! | [`config`] | the configuration file as a valid value |
//! | [`provider`] | the lifecycle of a tunnel, and the trait for tunnels of your own |
//! | [`control`] | how `show` and `down` reach a running tunnel |
//! | [`pipeline`] | the data threads and the control task |
//! | [`proto`] | the protocol without sockets, threads or clocks |
//! | [`io`] | TAP, UDP, netlink, locks; all unsafe code |
//! | [`queue`] | batches through several threads and back in order |
//! | [`wire`], [`crypto`], [`stats`] | byte layouts, keys and ciphers, counters |
//!
//! The switch is a crate of its own, [`patchcord_bridge`].
//!
//! # What this crate does not do
//!
//! It runs on Linux only. It has no routing, no IP addresses of its own beyond those that the
//! interface is given, no discovery of peers, no relays, and no fallback to TCP. It does not look
//! for loops, and puts no limit on flooded frames.
//!
//! # A tunnel from a configuration
//!
//! [`config::Config::load`] reads a file; here the text and the key come from elsewhere.
//!
//! ```
//! use std::path::Path;
//!
//! use patchcord::{config::Config, crypto::keys::PrivateKey};
//!
//! let peer = PrivateKey::generate().public_key();
//! let text = format!(
//!     r#"
//!     [tunnel]
//!     private-key-file = "a.key"
//!     [device]
//!     name = "pc0"
//!     [[peer]]
//!     name = "site-b"
//!     public-key = "{peer}"
//!     endpoint = "192.0.2.1:51830"
//!     "#
//! );
//! let read_key = |_: &Path| Ok(PrivateKey::generate().to_base64());
//! let config = Config::parse(&text, Path::new("/etc/patchcord/a.toml"), &read_key)?;
//! assert_eq!((config.name.as_str(), config.device.mtu), ("a", 1500));
//! // As root: patchcord::tunnel::run(config)?;
//! # Ok::<(), patchcord::config::ConfigErrors>(())
//! ```
//!
//! # A tunnel of your own
//!
//! A provider asks its [`ProviderContext`](provider::ProviderContext) for an interface and moves
//! the frames as it likes; the [`Session`](provider::Session) calls it, and removes the interface however
//! the session ends. This one sends each frame back to the station that sent it.
//!
//! ```no_run
//! use std::{net::Ipv4Addr, sync::Arc};
//!
//! use bytes::Bytes;
//! use patchcord::provider::*;
//! use patchcord_bridge::MacAddr;
//!
//! struct Mirror;
//!
//! impl EthernetTunnelProvider for Mirror {
//!     fn start<'a>(
//!         &'a self,
//!         context: &'a ProviderContext,
//!         _options: StartOptions,
//!     ) -> BoxFut<'a, Result<(), ProviderError>> {
//!         Box::pin(async move {
//!             let mac = MacAddr([0x02, 0, 0, 0, 0, 1]);
//!             let remote = Ipv4Addr::UNSPECIFIED.into();
//!             let settings = EthernetTunnelSettings::new(remote, mac, 1500, "mirror0");
//!             context.set_network_settings(Some(settings)).await?;
//!             context.set_carrier(true).await;
//!             tokio::spawn(reflect(context.clone()));
//!             Ok(())
//!         })
//!     }
//!
//!     fn stop<'a>(&'a self, _: &'a ProviderContext, _reason: StopReason) -> BoxFut<'a, ()> {
//!         Box::pin(async {}) // `reflect` ends with the interface
//!     }
//! }
//!
//! async fn reflect(context: ProviderContext) {
//!     let Some(mut reader) = context.take_reader() else { return };
//!     let writer = context.writer();
//!     let mut frames: Vec<Bytes> = Vec::new();
//!     while reader.recv_batch(&mut frames).await.is_ok() {
//!         let answers: Vec<_> = frames
//!             .drain(..)
//!             .filter(|frame| frame[0] & 1 == 0) // not to groups
//!             .map(|frame| [&frame[6..12], &frame[..6], &frame[12..]].concat())
//!             .collect();
//!         if let Err(error) = writer.try_send_batch(&answers) {
//!             let gone = ProviderError::with_source("cannot write frames", error);
//!             return context.cancel_tunnel(Some(gone));
//!         }
//!     }
//! }
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
//! let end = runtime.block_on(async {
//!     let session = Session::new(Arc::new(Mirror), "mirror", "/run/patchcord", Deadlines::default());
//!     let handle = session.handle();
//!     tokio::spawn(async move {
//!         let _ = tokio::signal::ctrl_c().await;
//!         handle.stop(StopReason::UserInitiated);
//!     });
//!     session.run(StartOptions::default(), || println!("ready")).await
//! });
//! assert!(end.error.is_none());
//! # Ok(())
//! # }
//! ```
#![deny(unsafe_code)]
// Tests live in real time.
#![cfg_attr(test, allow(clippy::disallowed_methods))]

pub mod config;
pub mod control;
pub mod crypto;
pub mod host;
pub mod io;
pub mod pipeline;
pub mod proto;
pub mod provider;
pub mod queue;
pub mod stats;
pub mod tunnel;
pub mod wire;
