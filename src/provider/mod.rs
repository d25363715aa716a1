// SPDX-License-Identifier: MIT OR Apache-2.0
//! Ethernet tunnel providers: the lifecycle of Apple's `NEEthernetTunnelProvider`, on Linux.
//!
//! A provider is a value with two callbacks, [`start`](EthernetTunnelProvider::start) and
//! [`stop`](EthernetTunnelProvider::stop). A [`Session`] calls them and owns everything else: the
//! states, the deadlines, the TAP and its removal. In between, the provider calls the host through its
//! [`ProviderContext`]: it asks for an interface with
//! [`set_network_settings`](ProviderContext::set_network_settings), takes the frames, and reports
//! trouble with [`cancel_tunnel`](ProviderContext::cancel_tunnel).
//!
//! ```text
//!  Disconnected ── start called ──> Connecting ── start Ok ──> Connected <──> Reasserting
//!        ^                              │ failed                   │ stop, cancel
//!        └──────── all removed ── Disconnecting <──────────────────┘
//! ```
//! `patchcord up` runs its own tunnel as such a provider ([`crate::tunnel`]); there is no other way to
//! start one.

mod callback;
mod configuration;
mod context;
mod dns_proxy;
mod error;
mod ethernet_tunnel;
mod flow;
mod hosting;
mod interface;
mod interface_monitor;
mod network;
mod on_demand;
mod power;
mod routes;
mod routing_monitor;
mod secret;
mod session;
mod settings;
mod sockets;
mod status;
mod watches;

pub(crate) use self::power::SleepWatch;
pub use self::{
    configuration::{RoutingPolicy, TunnelConfiguration},
    context::{MAX_DISPLAYED, ProviderContext},
    error::ProviderError,
    ethernet_tunnel::{
        AppMessage, BoxFut, EthernetTunnelProvider, Sender, StartOptions, StartSource,
    },
    flow::{FlowError, FrameReader, FrameWriter, SendReport},
    interface::Interface,
    on_demand::{InterfaceType, OnDemandAction, OnDemandRule, ProbeUrl, ProbeUrlError},
    secret::{Secret, SecretError},
    session::{Deadlines, Session, SessionEnd, SessionError, SessionHandle},
    settings::{
        Addressing, Applied, BridgeVlans, DnsOutcome, DnsProtocol, DnsSettings,
        EthernetTunnelSettings, IpSettings, Ipv4Settings, Ipv6Settings, ProxyOutcome, ProxyServer,
        ProxySettings, Route, SettingsError,
    },
    sockets::{AppRule, RoutingMethod},
    status::{SessionStatus, StopReason},
};
pub use crate::{
    io::{
        mark::Mark,
        tap::{Backend, NicError, Offloads, TapError, TapQueue, VnetHeader},
    },
    machine::{
        device::{DeviceError, DeviceInfo},
        dns::NamesError,
        link::LinkError,
        lock::LockError,
        path::{Path, PathInterface, PathStatus},
        proxy::ProxyError,
        routing::RoutingError,
        sockets::SocketError,
    },
};
pub use patchcord_bridge::MacAddr;

pub(crate) use self::{hosting::Hosting, on_demand::Surroundings, secret::NOT_BASE64};
