// SPDX-License-Identifier: MIT OR Apache-2.0
//! `[tunnel]`: what it becomes, its keys, and how they are read. Pure.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use toml::de::DeValue;

use super::error::Report;
use super::key_files::KeyFiles;
use super::schema::{
    Effect::{Live, Restart},
    Key, Schema,
};
use super::section::Section;
use super::value::{Parsed, choice, duration, integer, key_path, shown, string};
use crate::crypto::keys::PrivateKey;

/// `[tunnel]`: this node on the underlay.
#[derive(Debug)]
pub struct TunnelConfig {
    /// Read from `private-key-file`.
    pub private_key: PrivateKey,
    /// `listen`: the UDP address; `[::]:0`, any port, when absent.
    pub listen: SocketAddr,
    /// `cipher`
    pub cipher: CipherChoice,
    /// `network-id`: 24 bits, 0 when absent; both ends must agree on it.
    pub network_id: u32,
    /// `tcp-mss`
    pub tcp_mss: TcpMss,
    /// `rekey-interval`: 1 s to 120 s, 120 s when absent.
    pub rekey_interval: Duration,
}

/// Which AEAD seals the frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CipherChoice {
    /// AEGIS-128X4 where both ends measure it to be faster by a fifth, AES-256-GCM where both have
    /// the instructions for it, else ChaCha20-Poly1305.
    #[default]
    Auto,
    /// AES-256-GCM only.
    Aes256Gcm,
    /// ChaCha20-Poly1305 only.
    ChaCha20Poly1305,
    /// AEGIS-128X4 only.
    Aegis128X4,
}

/// Whether the maximum segment size in the SYNs of TCP is lowered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TcpMss {
    /// Every frame crosses unaltered.
    #[default]
    Unaltered,
    /// So that each segment fits one datagram on the path to the peer.
    Path,
}

pub(super) const SCHEMA: Schema = Schema {
    name: "tunnel",
    header: "[tunnel]",
    about: "This node on the underlay.",
    keys: &[
        Key {
            name: "private-key-file",
            kind: "path",
            default: "required",
            range: "",
            effect: Restart,
            about: "File with the key of `patchcord genkey`; refused if group or others have any \
                    access.",
        },
        Key {
            name: "listen",
            kind: "address",
            default: "`\"[::]:0\"`",
            range: "`ADDRESS:PORT`",
            effect: Restart,
            about: "UDP socket for IPv4 and IPv6; port 0 is any. The tunnel waits for an address that \
                    this machine does not have yet. Required unless a peer has an `endpoint`.",
        },
        Key {
            name: "cipher",
            kind: "string",
            default: "`\"auto\"`",
            range: "`auto`, `aes-256-gcm`, `chacha20-poly1305`, `aegis-128x`",
            effect: Live,
            about: "AEAD for data. `aegis-128x` is AEGIS-128X4, with keys of 128 bits (the others: 256); \
                    it needs AES instructions. `auto` is `aegis-128x` if both ends measure it to be \
                    faster by a fifth, otherwise `aes-256-gcm` if both ends have instructions for it. To have \
                    keys of 256 bits in any case, name one.",
        },
        Key {
            name: "network-id",
            kind: "integer",
            default: "`0`",
            range: "0 to 16777215",
            effect: Restart,
            about: "Both ends must have the same.",
        },
        Key {
            name: "tcp-mss",
            kind: "string",
            default: "`\"unaltered\"`",
            range: "`unaltered`, `path`",
            effect: Restart,
            about: "`path` lowers the maximum segment size in the SYNs of TCP connections, both ways, so \
                    that each segment fits one datagram: for a path that loses packets, or drops them from \
                    a short queue. It alters those frames, and no others. One end suffices.",
        },
        Key {
            name: "rekey-interval",
            kind: "duration",
            default: "`\"120s\"`",
            range: "1 s to 120 s",
            effect: Live,
            about: "Age at which session keys are replaced.",
        },
    ],
    port: None,
};

/// None only after an error was reported.
pub(super) fn read(
    section: &Section<'_, '_>,
    key_files: &KeyFiles<'_>,
    report: &mut Report<'_>,
) -> Option<TunnelConfig> {
    let remedy = "make a key with `umask 077; patchcord genkey > a.key` and name the file here";
    let path = section.require("private-key-file", report, remedy, key_path);
    let listen = section.read("listen", report, listen);
    let cipher = section.read("cipher", report, cipher);
    let network_id = section.read("network-id", report, network_id);
    let tcp_mss = section.read("tcp-mss", report, tcp_mss);
    let rekey_interval = section.read("rekey-interval", report, rekey_interval);
    let private_key = key_files.key(section, "private-key-file", &path?, report, |text| {
        PrivateKey::from_base64(text).map_err(|error| (error, "patchcord genkey"))
    });
    Some(TunnelConfig {
        private_key: private_key?,
        listen: listen.unwrap_or_else(|| (Ipv6Addr::UNSPECIFIED, 0).into()),
        cipher: cipher.unwrap_or_default(),
        network_id: network_id.unwrap_or(0),
        tcp_mss: tcp_mss.unwrap_or_default(),
        rekey_interval: rekey_interval.unwrap_or(Duration::from_secs(120)),
    })
}

fn listen(value: &DeValue<'_>) -> Parsed<SocketAddr> {
    if let DeValue::Integer(port) = value {
        return Err(format!("has no address; write `listen = \"[::]:{port}\"`"));
    }
    let text = string(value, "listen = \"[::]:51830\"")?;
    let addr: SocketAddr = text.parse().map_err(|_| explain_listen(text))?;
    if addr.ip().is_multicast() {
        return Err(format!(
            "{} is a multicast address; write `[::]:PORT`",
            shown(text)
        ));
    }
    Ok(addr)
}

fn explain_listen(text: &str) -> String {
    let port = text
        .strip_prefix(':')
        .or_else(|| text.strip_prefix("*:"))
        .unwrap_or(text);
    if port.parse::<u16>().is_ok() {
        return format!("{} has no address; write `[::]:{port}`", shown(text));
    }
    if let Ok(ip) = text.trim_matches(['[', ']']).parse::<IpAddr>() {
        let example = SocketAddr::new(ip, 51830);
        return format!(
            "{} has no UDP port; write for example `{example}`",
            shown(text)
        );
    }
    let remedy = "write ADDRESS:PORT, for example `[::]:51830` for every address of this host";
    format!(
        "{} is not an address with a UDP port; {remedy}",
        shown(text)
    )
}

fn cipher(value: &DeValue<'_>) -> Parsed<CipherChoice> {
    choice(
        value,
        &[
            ("auto", CipherChoice::Auto),
            ("aes-256-gcm", CipherChoice::Aes256Gcm),
            ("chacha20-poly1305", CipherChoice::ChaCha20Poly1305),
            ("aegis-128x", CipherChoice::Aegis128X4),
        ],
    )
}

fn network_id(value: &DeValue<'_>) -> Parsed<u32> {
    integer(value, 0..=0xff_ffff, "network-id = 100").map(|id| id as u32)
}

fn tcp_mss(value: &DeValue<'_>) -> Parsed<TcpMss> {
    choice(
        value,
        &[("unaltered", TcpMss::Unaltered), ("path", TcpMss::Path)],
    )
}

fn rekey_interval(value: &DeValue<'_>) -> Parsed<Duration> {
    duration(
        value,
        Duration::from_secs(1)..=Duration::from_secs(120),
        "120s",
    )
}
