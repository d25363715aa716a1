// SPDX-License-Identifier: MIT OR Apache-2.0
//! `[[peer]]`: what it becomes, its keys, and how they are read. Pure.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::ops::Range;
use std::time::Duration;

use patchcord_bridge::PortConfig;
use toml::de::DeValue;

use super::error::Report;
use super::key_files::KeyFiles;
use super::port;
use super::schema::{Effect::Live, Key, Schema};
use super::section::Section;
use super::stations::Stations;
use super::value::{MAX_INTERFACE_NAME, Parsed, duration, key_path, shown, string};
use crate::crypto::keys::{PresharedKey, PublicKey};

/// One `[[peer]]`.
#[derive(Debug)]
pub struct PeerConfig {
    /// `name`: unique; the public key in base64 when absent.
    pub name: String,
    /// `public-key`: unique, and not our own.
    pub public_key: PublicKey,
    /// `endpoint`: the address of the peer at first. Without it, the peer has to initiate.
    pub endpoint: Option<Endpoint>,
    /// `keepalive`: 1 s to 1 h, 10 s when absent.
    pub keepalive: Duration,
    /// Read from `preshared-key-file`.
    pub preshared_key: Option<PresharedKey>,
    /// `[peer.port]`: its port of the switch.
    pub port: PortConfig,
}

impl PeerConfig {
    /// Whether all but the port of the switch is equal.
    pub(crate) fn is_like(&self, other: &Self) -> bool {
        let secret = self.preshared_key.as_ref().map(PresharedKey::as_bytes);
        (&self.name, self.public_key, &self.endpoint, self.keepalive)
            == (
                &other.name,
                other.public_key,
                &other.endpoint,
                other.keepalive,
            )
            && secret == other.preshared_key.as_ref().map(PresharedKey::as_bytes)
    }
}

/// The address of a peer until it has answered from another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// An address.
    Addr(SocketAddr),
    /// A name that is resolved at start, and again when the peer does not answer.
    Host {
        /// The name.
        name: String,
        /// Never 0.
        udp_port: u16,
    },
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Addr(addr) => write!(f, "{addr}"),
            Self::Host { name, udp_port } => write!(f, "{name}:{udp_port}"),
        }
    }
}

pub(super) const SCHEMA: Schema = Schema {
    name: "peer",
    header: "[[peer]]",
    about: "One or more.",
    keys: &[
        Key {
            name: "public-key",
            kind: "string",
            default: "required",
            range: "",
            effect: Live,
            about: "What `patchcord pubkey` prints at the peer.",
        },
        Key {
            name: "name",
            kind: "string",
            default: "the public key",
            range: "1 to 64 bytes, not `tap`",
            effect: Live,
            about: "For logs, `show` and `fdb`.",
        },
        Key {
            name: "endpoint",
            kind: "string",
            default: "none",
            range: "`HOST:PORT`, `ADDRESS:PORT`",
            effect: Live,
            about: "Where to call the peer; a link-local address has its interface, \
                    `[fe80::1%eth0]:51830`. Without it, this side waits for the peer. A name is looked \
                    up again while the peer does not answer.",
        },
        Key {
            name: "keepalive",
            kind: "duration",
            default: "`\"10s\"`",
            range: "1 s to 1 h",
            effect: Live,
            about: "Interval at which an idle link is probed.",
        },
        Key {
            name: "preshared-key-file",
            kind: "path",
            default: "none",
            range: "",
            effect: Live,
            about: "File with the key of `patchcord genpsk`, the same at both ends.",
        },
    ],
    port: Some(&port::OF_PEER),
};

/// Where errors about a peer point.
pub(super) struct Spans {
    pub(super) name: Range<usize>,
    pub(super) public_key: Range<usize>,
    pub(super) endpoint: Range<usize>,
    pub(super) port: Range<usize>,
}

/// With the places of its keys, for the checks between peers. None only after an error was reported.
pub(super) fn read(
    section: &Section<'_, '_>,
    key_files: &KeyFiles<'_>,
    stations: &mut Stations,
    report: &mut Report<'_>,
) -> Option<(Spans, PeerConfig)> {
    let remedy = "write what `patchcord pubkey` printed at the peer";
    let public_key = section.require("public-key", report, remedy, public_key);
    let name = section.read("name", report, peer_name);
    let endpoint = section.read("endpoint", report, endpoint);
    let keepalive = section.read("keepalive", report, keepalive);
    let port = port::read(&section.nested(&port::OF_PEER, report), stations, report);
    let preshared_path = section.read("preshared-key-file", report, key_path);
    let preshared_key = preshared_path.and_then(|path| {
        key_files.key(section, "preshared-key-file", &path, report, |text| {
            PresharedKey::from_base64(text).map_err(|error| (error, "patchcord genpsk"))
        })
    });
    let spans = Spans {
        name: section.span_of("name"),
        public_key: section.span_of("public-key"),
        endpoint: section.span_of("endpoint"),
        port: section.span_of("port"),
    };
    let public_key = public_key?;
    Some((
        spans,
        PeerConfig {
            name: name.unwrap_or_else(|| public_key.to_string()),
            public_key,
            endpoint,
            keepalive: keepalive.unwrap_or(Duration::from_secs(10)),
            preshared_key,
            port,
        },
    ))
}

fn public_key(value: &DeValue<'_>) -> Parsed<PublicKey> {
    const REMEDY: &str = "write what `patchcord pubkey` printed at the peer";
    let text = string(value, "public-key = \"…\"")?;
    text.parse()
        .map_err(|error| format!("the key {error}; {REMEDY}"))
}

fn peer_name(value: &DeValue<'_>) -> Parsed<String> {
    let name = string(value, "name = \"site-b\"")?;
    let remedy = "write 1 to 64 bytes without white space, for example `site-b`";
    let bad = |c: char| c.is_whitespace() || c.is_control();
    if !matches!(name.len(), 1..=64) || name.chars().any(bad) {
        return Err(format!(
            "{} is not the name of a peer; {remedy}",
            shown(name)
        ));
    }
    if name == "tap" {
        return Err("`tap` is what `show` calls the device; choose another name".into());
    }
    Ok(name.into())
}

fn keepalive(value: &DeValue<'_>) -> Parsed<Duration> {
    duration(
        value,
        Duration::from_secs(1)..=Duration::from_secs(3600),
        "25s",
    )
}

fn endpoint(value: &DeValue<'_>) -> Parsed<Endpoint> {
    let text = string(value, "endpoint = \"site-b.example.net:51830\"")?;
    if let Ok(addr) = text.parse::<SocketAddr>() {
        return usable_endpoint(addr, text).map(Endpoint::Addr);
    }
    if let Ok(ip) = text.trim_matches(['[', ']']).parse::<IpAddr>() {
        let example = SocketAddr::new(ip, 51830);
        return Err(format!(
            "{} has no UDP port; write for example `{example}`",
            shown(text)
        ));
    }
    if let Some((scheme, rest)) = text.split_once("://") {
        return Err(format!(
            "{} is a URL; write HOST:PORT, without `{}://`{}",
            shown(text),
            shown(scheme).trim_matches('`'),
            if rest.is_empty() { "" } else { " in front" }
        ));
    }
    let Some((name, port)) = text.rsplit_once(':') else {
        return Err(format!("{} has no UDP port; write HOST:PORT", shown(text)));
    };
    if let Some(scoped) = scoped_address(name)? {
        return Ok(Endpoint::Host {
            name: scoped,
            udp_port: udp_port(port)?,
        });
    }
    if name.contains(':') {
        let remedy = "an IPv6 address needs brackets: `[2001:db8::1]:51830`";
        return Err(format!("{} is not HOST:PORT; {remedy}", shown(text)));
    }
    if !is_host_name(name) {
        let remedy = "write a name or an address before the `:`";
        return Err(format!(
            "{} is not the name of a host; {remedy}",
            shown(name)
        ));
    }
    Ok(Endpoint::Host {
        name: name.into(),
        udp_port: udp_port(port)?,
    })
}

fn udp_port(text: &str) -> Parsed<u16> {
    match text.parse() {
        Ok(udp_port @ 1..) => Ok(udp_port),
        _ => Err(format!(
            "{} is not a UDP port; write 1 to 65535",
            shown(text)
        )),
    }
}

/// `[fe80::1%eth0]`, kept as text: the index of the interface is looked up for each call, because it changes
/// with each start of the machine. None without a `%`.
fn scoped_address(name: &str) -> Parsed<Option<String>> {
    let inner = name.trim_matches(['[', ']']);
    let Some((address, interface)) = inner.split_once('%') else {
        return Ok(None);
    };
    let is_scoped = address.parse().is_ok_and(|ip: Ipv6Addr| {
        ip.is_unicast_link_local() && !(ip.is_unspecified() || ip.is_multicast())
    });
    let fits = |c: char| !matches!(c, '/' | ':' | '%') && !c.is_whitespace() && !c.is_control();
    let is_name = matches!(interface.len(), 1..=MAX_INTERFACE_NAME) && interface.chars().all(fits);
    if is_scoped && is_name && name.starts_with('[') && name.ends_with(']') {
        return Ok(Some(name.to_owned()));
    }
    let remedy = "write a link-local address and its interface, such as `[fe80::1%eth0]:51830`";
    Err(format!("{} is not HOST:PORT; {remedy}", shown(name)))
}

fn usable_endpoint(addr: SocketAddr, text: &str) -> Parsed<SocketAddr> {
    if addr.port() == 0 {
        return Err("`0` is not a UDP port; write 1 to 65535".into());
    }
    if addr.ip().is_unspecified() || addr.ip().is_multicast() {
        let remedy = "write the address at which this host reaches the peer";
        return Err(format!(
            "{} is not the address of one host; {remedy}",
            shown(text)
        ));
    }
    Ok(addr)
}

fn is_host_name(name: &str) -> bool {
    let label_fits = |label: &str| {
        matches!(label.len(), 1..=63)
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
    };
    // A name of digits and dots is a mistyped IPv4 address, which resolvers read in their own ways.
    let numeric = name.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    name.len() <= 253
        && !numeric
        && name
            .strip_suffix('.')
            .unwrap_or(name)
            .split('.')
            .all(label_fits)
}
