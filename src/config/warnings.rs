// SPDX-License-Identifier: MIT OR Apache-2.0
//! Valid settings that are rarely meant: `check` and each start warn of them. Certain errors are those of
//! `parse`. Pure.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use super::device::{DeviceConfig, Mode};
use super::model::Config;
use super::peer::{Endpoint, PeerConfig};

/// Many address translators forget a UDP flow after 30 s.
const TRANSLATORS_FORGET: Duration = Duration::from_secs(30);
/// The MTU of Ethernet, and of most ports of a bridge.
const USUAL_MTU: u32 = 1500;

/// One setting that is rarely meant: `[section] key: what may be wrong; remedy`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigWarning {
    key: &'static str,
    text: String,
}

impl fmt::Display for ConfigWarning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.key, self.text)
    }
}

impl Config {
    /// Settings that are rarely meant, in the order of the sections.
    pub fn warnings(&self) -> Vec<ConfigWarning> {
        let mut warnings = Vec::new();
        let mut warn = |key, text| warnings.push(ConfigWarning { key, text });
        about_device(&self.device, &mut warn);
        for peer in &self.peers {
            about_peer(self, peer, &mut warn);
        }
        about_listen(self, &mut warn);
        about_pairs(&self.peers, &mut warn);
        if self.switch.hub && self.peers.len() == 1 {
            let text = "there is one peer, so no frame passes from peer to peer; leave it out";
            warn("[switch] hub", text.to_owned());
        }
        warnings
    }
}

type Warn<'a> = dyn FnMut(&'static str, String) + 'a;

fn about_device(device: &DeviceConfig, warn: &mut Warn<'_>) {
    let DeviceConfig {
        bridge,
        addresses,
        mtu,
        ..
    } = device;
    if bridge.is_some() && *mtu < USUAL_MTU {
        let text = format!(
            "{mtu} is less than the usual {USUAL_MTU} of a bridge's other ports: longer frames from \
             there are lost at `{}`. The tunnel needs no smaller MTU, whatever the path carries; \
             leave it out",
            device.name
        );
        warn("[device] mtu", text);
    }
    for net in addresses {
        let is_alone = net.prefix_len() == net.max_prefix_len();
        if is_alone && device.mode == Mode::Switch {
            let text = format!(
                "`{net}` is a network of one address, without another station; write for example \
                 `{}/{}`",
                net.addr(),
                if net.addr().is_ipv4() { 24 } else { 64 }
            );
            warn("[device] addresses", text);
        }
    }
}

fn about_peer(config: &Config, peer: &PeerConfig, warn: &mut Warn<'_>) {
    let name = &peer.name;
    if peer.keepalive > TRANSLATORS_FORGET {
        let text = format!(
            "{} of peer `{name}` is longer than address translators and firewalls remember, which \
             is often {}; write `25s` or less if there is one on the path",
            humantime::format_duration(peer.keepalive),
            humantime::format_duration(TRANSLATORS_FORGET),
        );
        warn("[[peer]] keepalive", text);
    }
    match &peer.endpoint {
        None if config.tunnel.listen.port() == 0 => {
            let text = format!(
                "peer `{name}` has to initiate, to a UDP port that changes at each start; \
                 write `listen = \"[::]:51830\"` in [tunnel], or an `endpoint`"
            );
            warn("[[peer]] endpoint", text);
        }
        Some(Endpoint::Addr(endpoint)) => about_endpoint(config, name, *endpoint, warn),
        Some(Endpoint::Host { .. }) | None => {}
    }
}

fn about_endpoint(config: &Config, name: &str, endpoint: SocketAddr, warn: &mut Warn<'_>) {
    let inside = config.device.addresses.iter();
    let mut inside = inside.filter(|net| net.contains(&endpoint.ip()));
    if let Some(net) = inside.next() {
        let text = format!(
            "`{endpoint}` of peer `{name}` is in the network `{net}` of the tunnel's own device, so \
             the route to the peer leads into the tunnel; choose other `addresses`"
        );
        warn("[[peer]] endpoint", text);
    }
    let is_link_local = matches!(endpoint, SocketAddr::V6(it) if it.ip().is_unicast_link_local() && it.scope_id() == 0);
    if is_link_local {
        let text = format!(
            "`{endpoint}` of peer `{name}` is a link-local address without its interface; write `[{}%INTERFACE]:{}`",
            endpoint.ip(),
            endpoint.port()
        );
        warn("[[peer]] endpoint", text);
    }
}

/// A loopback address reaches no peer on another machine.
fn about_listen(config: &Config, warn: &mut Warn<'_>) {
    let listen = config.tunnel.listen;
    let elsewhere = |peer: &&PeerConfig| match &peer.endpoint {
        Some(Endpoint::Addr(endpoint)) => !is_loopback(endpoint.ip()),
        _ => false,
    };
    let mut elsewhere = config.peers.iter().filter(elsewhere);
    let Some(first) = elsewhere.next().filter(|_| is_loopback(listen.ip())) else {
        return;
    };
    let name = &first.name;
    let who = match elsewhere.count() {
        0 => format!("peer `{name}` is"),
        1 => format!("peer `{name}` and another one are"),
        others => format!("peer `{name}` and {others} others are"),
    };
    let text = format!(
        "`{listen}` reaches this machine only, and {who} elsewhere; write `[::]:{}`",
        listen.port()
    );
    warn("[tunnel] listen", text);
}

fn is_loopback(ip: IpAddr) -> bool {
    ip.to_canonical().is_loopback()
}

/// Endpoints and preshared keys belong to one peer each.
fn about_pairs(peers: &[PeerConfig], warn: &mut Warn<'_>) {
    for (at, peer) in peers.iter().enumerate() {
        let earlier = || peers[..at].iter();
        let same =
            |other: &&PeerConfig| other.endpoint.is_some() && other.endpoint == peer.endpoint;
        if let (Some(other), Some(endpoint)) = (earlier().find(same), &peer.endpoint) {
            let text = format!(
                "peers `{}` and `{}` both have the endpoint `{endpoint}`, and only one can be there",
                other.name, peer.name
            );
            warn("[[peer]] endpoint", text);
        }
        let Some(key) = &peer.preshared_key else {
            continue;
        };
        let has_it = |other: &&PeerConfig| {
            let other = other.preshared_key.as_ref();
            other.is_some_and(|other| other.as_bytes() == key.as_bytes())
        };
        if let Some(other) = earlier().find(has_it) {
            let text = format!(
                "peers `{}` and `{}` have the same preshared key, so each knows the other's; make \
                 one for each with `patchcord genpsk`",
                other.name, peer.name
            );
            warn("[[peer]] preshared-key-file", text);
        }
    }
}
