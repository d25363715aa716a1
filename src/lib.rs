// SPDX-License-Identifier: MIT OR Apache-2.0
//! Ethernet tunnels on Linux: an encrypted one that is ready to use, and a host for your own.
//!
//! A *provider* holds the far end of an Ethernet cable. The near end is an interface of this
//! machine, a TAP: with addresses like any network card, or a port of a bridge. What the kernel
//! sends into the interface the provider reads as whole Ethernet frames, and what the provider
//! writes the kernel receives. What happens in between is the provider's own business; the one that
//! comes with this crate seals the frames and sends them over UDP to peers known by their keys.
//!
//! ```text
//!     this machine                         this process
//!  ┌────────────────┐           ┌──────────────────────────────────┐
//!  │ programs, or   │           │  host     one session per tunnel │
//!  │ a bridge       │           │   │ start, stop, messages        │
//!  │   │            │           │   │ ^ settings, states, failure  │
//!  │   │ IP, ARP    │           │   v │                            │
//!  │ ┌─┴─────────┐  │  frames   │  provider ── as it likes: UDP to │
//!  │ │ interface ╞══╪═══ TAP ═══╪═══╡          a peer, a file, a   │
//!  │ └───────────┘  │           │              simulated network   │
//!  └────────────────┘           └──────────────────────────────────┘
//! ```
//! The callbacks, states and settings are those of Apple's `NEEthernetTunnelProvider`, so a
//! provider can be moved from there without inventing its lifecycle again. The kernel's part
//! (making the TAP, addresses, routes, MTU, bridge, and the removal of all that however a session
//! ends, `kill -9` included) is the host's, and never the provider's.
//!
//! # Where to start
//!
//! | To | Look at |
//! |---|---|
//! | join two machines or LANs, encrypted | the program `patchcord`, README.md; as a function, [`tunnel::run`] |
//! | write a tunnel of your own | [below](#a-tunnel-of-your-own), [`provider`], and the [examples](#examples) |
//! | run several tunnels in one process | [`host`] |
//! | know how the code hangs together | ARCHITECTURE.md |
//! | speak to `patchcord` from another program | PROTOCOL.md for the wire, [`host::protocol`] for the sockets of running tunnels |
//!
//! # A tunnel of your own
//!
//! A provider asks its [`ProviderContext`](provider::ProviderContext) for an interface and moves
//! the frames as it likes; a [`Session`](provider::Session) calls it, and removes the interface
//! however the session ends. This one sends each frame back to the station that sent it. It depends on
//! these, the first by its path or its version:
//!
//! ```toml
//! [dependencies]
//! patchcord = "0.1"
//! bytes = "1"
//! tokio = { version = "1", features = ["rt", "time", "signal"] }
//! ```
//!
//! ```no_run
//! use std::{net::Ipv4Addr, sync::Arc};
//!
//! use bytes::Bytes;
//! use patchcord::provider::*;
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
//!         Box::pin(async {}) // the reader of `reflect` ends
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
//!     let deadlines = Deadlines::default();
//!     let session = Session::new(Arc::new(Mirror), "mirror", "/run/patchcord", deadlines);
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
//!
//! It needs CAP_NET_ADMIN, and a `/dev/net/tun`.
//!
//! # Examples
//!
//! Programs in `examples/`, each one file, from simple to real; `cargo build --examples` makes
//! them, and tests run them as they are.
//!
//! | Example | Shows |
//! |---|---|
//! | `echo` | the two callbacks; reading, understanding and writing frames |
//! | `replay` | work that ends: a recording played in time, another one written |
//! | `link` | a cable over plain UDP in about 100 lines; not encrypted |
//! | `daemon` | a host of one's own: its socket and clients, tunnels as files, events |
//! | `hard_path` | routes, router and name servers, reasserting, changing paths, messages, giving up, sleep and wake |
//!
//! # A tunnel from a configuration
//!
//! [`config::Config::load`] reads a file; here the text and the key come from elsewhere.
//!
//! ```
//! use std::path::Path;
//!
//! use patchcord::{config::Config, keys::PrivateKey};
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
//! # What this crate does not do
//!
//! It runs on Linux only. It does not route or translate addresses, and an interface has no
//! addresses but those that its settings give it. Providers run in the host's process, with its
//! rights: they are not kept apart from it, or from each other, but for panics.
//!
//! The encrypted tunnel discovers no peers, knows no relays and no fallback to TCP. Its switch finds
//! loops and cuts them, but is no part of a spanning tree; the frames of one pass through.
//!
//! # Modules, top down
//!
//! | Module | Holds |
//! |---|---|
//! | [`host`] | tunnels in one process: configurations, sessions, events, clients and their protocol |
//! | [`tunnel`] | `patchcord up` as a function |
//! | [`config`] | the configuration file as a valid value |
//! | [`provider`] | the lifecycle of a tunnel, and the trait for tunnels of your own |
//! | [`control`] | what a running tunnel can be asked, and what it answers |
//! | [`keys`] | private, public and preshared keys |
//!
//! Below them are the data path and the machine, which are no part of the API; ARCHITECTURE.md draws them.
//! The switch is a crate of its own, [`patchcord_bridge`]. A frame's way through the encrypted
//! tunnel:
//!
//! ```text
//!             ┌── outbound ── switch ── pack ─── seal ──┐
//!  TAP queue ─┤                                         ├─ UDP socket ═══ peers
//!             └── inbound ─── switch ── unpack ─ open ──┘
//!                       notices │  ^ tables
//!                    control: handshakes, timers, netlink, `patchcord show`
//! ```
#![deny(unsafe_code)]
// Tests live in real time.
#![cfg_attr(test, allow(clippy::disallowed_methods))]

pub mod config;
pub mod control;
pub mod host;
pub mod provider;
pub mod tunnel;

mod crypto;
mod io;
mod machine;
mod pipeline;
mod proto;
mod queue;
mod rate;
mod retry;
mod stats;
#[cfg(test)]
mod testing;
mod tripwire;
mod wire;

pub use crypto::keys;

/// What the program, the benches, the fuzz targets and the tests of this repository reach into. No part of
/// the API: anything in it may change with any version.
#[doc(hidden)]
pub mod internals {
    pub mod crypto {
        pub use crate::crypto::{aead, mac, noise, speed};
    }
    #[cfg(fuzzing)]
    pub mod io {
        pub use crate::io::memory;
        pub mod tap {
            pub use crate::io::tap::VnetHeader;
        }
    }
    pub mod machine {
        pub use crate::machine::{keep_memory_private, lock::is_hosted, service, signals};
    }
    #[cfg(fuzzing)]
    pub mod pipeline {
        pub use crate::pipeline::fuzzing;
    }
    pub mod proto {
        pub use crate::proto::{
            guard, limits, merge, node, partial_checksum, peer, reassembly, replay, session,
            superframe, train, trouble,
        };
    }
    pub mod stats {
        pub use crate::stats::{DropReason, Drops, Flow, LaneFlow, Traffic};
    }
    pub mod wire {
        pub use crate::wire::*;
    }
}
