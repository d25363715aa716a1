// SPDX-License-Identifier: MIT OR Apache-2.0
//! `up`, `check` and `down`.

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::path::Path;

use anyhow::{Context, anyhow};
use patchcord::config::{self, CipherChoice, Config, ConfigErrors, DeviceConfig, Mode, PeerConfig};
use patchcord::control::client::{self, ClientError};
use patchcord::control::message::{Reply, Request};
use patchcord::control::socket_path;
use patchcord_bridge::Vid;

use super::{Failure, RunDir, hosted, logs, print};

pub(super) fn up(name_or_file: &str) -> Result<(), Failure> {
    let config = load(name_or_file)?;
    let _logs = logs::start();
    patchcord::tunnel::run(config)?;
    Ok(())
}

pub(super) fn check(name_or_file: &str) -> Result<(), Failure> {
    let config = load(name_or_file)?;
    print(&summary(&config))?;
    for warning in config.warnings() {
        // When nobody reads it, the file is valid all the same.
        let _ = writeln!(io::stderr(), "warning: {warning}");
    }
    Ok(())
}

pub(super) fn down(name_or_file: &str, run_dir: &RunDir) -> Result<(), Failure> {
    match ask(name_or_file, &run_dir.path, Request::Down)? {
        Reply::Stopped => Ok(()),
        reply => Err(unexpected(name_or_file, &reply)),
    }
}

fn load(name_or_file: &str) -> Result<Config, Failure> {
    Config::load(&config::file_of(name_or_file)).map_err(Failure::Config)
}

/// Sends a request to a running tunnel, given by its name or by its file.
pub(super) fn ask(name_or_file: &str, run_dir: &Path, request: Request) -> Result<Reply, Failure> {
    let name = name_of(name_or_file)?;
    let reply = client::request_at(&socket_path(run_dir, &name), request.clone());
    if let Err(error @ ClientError::NotRunning(_)) = reply {
        if let Some(answer) = hosted::ask(&name, run_dir, &request) {
            return Ok(answer.with_context(|| format!("tunnel `{name}` of the host"))?);
        }
        let remedy = format!("start it with `patchcord up {name_or_file}`");
        return Err(anyhow!("tunnel `{name}` is {error}; {remedy}").into());
    }
    Ok(reply.with_context(|| format!("tunnel `{name}`"))?)
}

/// What a tunnel is called, given by its name or by its file.
pub(super) fn name_of(name_or_file: &str) -> Result<String, Failure> {
    config::tunnel_name(&config::file_of(name_or_file))
        .map_err(|error| Failure::Config(ConfigErrors::from(error)))
}

/// The failure for a reply that is no answer to the request.
pub(super) fn unexpected(name: &str, reply: &Reply) -> Failure {
    match reply {
        Reply::Refused { message } if reply.is_of_other_version() => anyhow!(
            "tunnel `{name}` is run by another version of patchcord, which does not know this command; start the tunnel again with this one ({message})"
        )
        .into(),
        Reply::Refused { message } => anyhow!("tunnel `{name}`: {message}").into(),
        _ => anyhow!("tunnel `{name}` answered something else; is it of another version?").into(),
    }
}

fn summary(config: &Config) -> String {
    let Config {
        name,
        tunnel,
        device,
        peers,
        switch,
        ..
    } = config;
    let mut text = format!(
        "{name}: valid. Own public key {}",
        tunnel.private_key.public_key()
    );
    // Writing to a string does not fail.
    let _ = match tunnel.listen.port() {
        0 => write!(text, ", any UDP port"),
        _ => write!(text, ", listening on {}", tunnel.listen),
    };
    let cipher = match tunnel.cipher {
        CipherChoice::Auto => "chosen with the peer",
        CipherChoice::Aes256Gcm => "aes-256-gcm",
        CipherChoice::ChaCha20Poly1305 => "chacha20-poly1305",
    };
    let _ = match device.is_nic {
        true => write!(text, ", cipher {cipher}. NIC {}", device.name),
        false => write!(
            text,
            ", cipher {cipher}. Device {}, MTU {}",
            device.name, device.mtu
        ),
    };
    if device.mode != Mode::Switch {
        let _ = write!(text, ", {}", device.mode.name());
    }
    if let Some(bridge) = &device.bridge {
        let _ = write!(text, ", port of {bridge}");
    }
    for address in &device.addresses {
        let _ = write!(text, ", {address}");
    }
    let stations = stations_summary(device, peers);
    let peers: Vec<_> = peers.iter().map(peer_summary).collect();
    let _ = writeln!(
        text,
        ". {}{}: {}.",
        if switch.hub { "Hub for " } else { "" },
        plural(peers.len(), "peer"),
        peers.join(", ")
    );
    text + &stations
}

/// A line with the stations that the configuration puts behind ports; none without any.
fn stations_summary(device: &DeviceConfig, peers: &[PeerConfig]) -> String {
    const SHOWN: usize = 16;
    let peers = peers.iter().map(|peer| (peer.name.as_str(), &peer.port));
    let ports = [("tap", &device.port)].into_iter().chain(peers);
    let stations = ports.flat_map(|(name, port)| port.stations.iter().map(move |it| (name, it)));
    let texts: Vec<_> = stations
        .map(|(port, &(vid, mac))| match vid {
            Vid::UNTAGGED => format!("{mac} on {port}"),
            vid => format!("{mac} in VLAN {vid} on {port}"),
        })
        .collect();
    if texts.is_empty() {
        return String::new();
    }
    let others = texts.len().saturating_sub(SHOWN);
    let shown = texts[..texts.len() - others].join(", ");
    let others = match others {
        0 => String::new(),
        others => format!(", and {others} more"),
    };
    format!(
        "{}: {shown}{others}.\n",
        plural(texts.len(), "static station")
    )
}

fn peer_summary(peer: &PeerConfig) -> String {
    let preshared = if peer.preshared_key.is_some() {
        " with a preshared key"
    } else {
        ""
    };
    match &peer.endpoint {
        Some(endpoint) => format!("{} at {endpoint}{preshared}", peer.name),
        None => format!("{} (waited for){preshared}", peer.name),
    }
}

/// `1 peer`, `2 peers`.
pub(super) fn plural(count: usize, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}
