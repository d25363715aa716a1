// SPDX-License-Identifier: MIT OR Apache-2.0
//! `up`, `check` and `down`.

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::time::Duration;

use clap::Args;
use patchcord::config::{self, CipherChoice, Config, DeviceConfig, Mode, PeerConfig};
use patchcord_bridge::Vid;

use super::failure::Failure;
use super::logs;
use super::output::{plural, print};
use super::reload;
use super::target::{self, RunDir, Target, block_on};

pub(super) const UP_HELP: &str = "\
Logs go to stderr; RUST_LOG selects them (default: info). Tells systemd when it is ready.

Examples:
  patchcord up a                  run /etc/patchcord/a.toml
  RUST_LOG=debug patchcord up ./a.toml";

/// Taking a tunnel down may include telling its peers and removing links.
const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Args)]
pub(super) struct DownOptions {
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    run_dir: RunDir,
}

pub(super) fn up(target: &Target) -> Result<(), Failure> {
    let config = load(target)?;
    let _logs = logs::start();
    patchcord::tunnel::run(config)?;
    Ok(())
}

#[derive(Args)]
pub(super) struct CheckOptions {
    #[command(flatten)]
    target: Target,
    /// Show what differs from the configuration with which the tunnel runs, as `reload` would apply it
    #[arg(long)]
    diff: bool,
    #[command(flatten)]
    run_dir: RunDir,
}

pub(super) fn check(options: &CheckOptions) -> Result<(), Failure> {
    let config = load(&options.target)?;
    if options.diff {
        return reload::show_changes(&options.target.name_or_file, &options.run_dir);
    }
    print(&summary(&config))?;
    for warning in config.warnings() {
        // The file is valid even if the warning cannot be written.
        let _ = writeln!(io::stderr(), "warning: {warning}");
    }
    Ok(())
}

pub(super) fn down(options: &DownOptions) -> Result<(), Failure> {
    block_on(async {
        let found = target::find(&options.target.name_or_file, &options.run_dir).await?;
        let stop = found.client.stop(&found.name);
        Ok(found.asked(PATIENCE, stop).await?)
    })
}

fn load(target: &Target) -> Result<Config, Failure> {
    Config::load(&config::file_of(&target.name_or_file)).map_err(Failure::Config)
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
        CipherChoice::Aegis128X4 => "aegis-128x",
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
