// SPDX-License-Identifier: MIT OR Apache-2.0
//! Peers: one line for each of many, or everything about one.

use patchcord::control::message::{Counters, LastErrorStatus, PeerStatus, Rates, Status};

use crate::cli::output::{age, ago, bytes, milliseconds, number, plural, row, table};

/// One line per peer.
pub(super) fn peers(status: &Status) -> String {
    let up = status.peers.iter().filter(|peer| peer.state == "up");
    let rows = status.peers.iter().map(|peer| {
        let counters = &peer.counters;
        let rest = match &peer.last_error {
            Some(error) if peer.state != "up" || is_nearly_cut_off(peer) => {
                format!("for {}: {}", age(error.since_s), error.text)
            }
            _ => peer.rtt_us.map(milliseconds).unwrap_or_default(),
        };
        vec![
            peer.name.clone(),
            peer.state.clone(),
            peer.endpoint.clone().unwrap_or_else(|| "unknown".into()),
            peer.last_received_s.map_or_else(|| "never".into(), ago),
            format!("{} out", bytes(counters.outbound_bytes)),
            format!("{} in", bytes(counters.inbound_bytes)),
            rest,
        ]
    });
    format!(
        "{}, {} up; `patchcord show {} --peer PEER` says all of one\n{}",
        plural(status.peers.len(), "peer"),
        up.count(),
        status.tunnel,
        table("  ", rows.collect())
    )
}

/// Everything about one peer.
pub(crate) fn peer(peer: &PeerStatus) -> String {
    let unknown = |text: &Option<String>| text.clone().unwrap_or_else(|| "unknown".into());
    let mut rows = vec![
        row("state", peer.state.clone()),
        row("public key", peer.public_key.clone()),
        row("endpoint", unknown(&peer.endpoint)),
        row(
            "last handshake",
            match peer.handshake_age_s {
                Some(seconds) => ago(seconds),
                None if peer.handshakes > 0 => "no session now".into(),
                None => "never".into(),
            },
        ),
        row(
            "last received",
            peer.last_received_s.map_or_else(|| "never".into(), ago),
        ),
        row("handshakes", number(peer.handshakes)),
    ];
    rows.extend(
        peer.last_error
            .as_ref()
            .map(|error| row("last error", last_error(error, peer))),
    );
    rows.extend(peer.cipher.clone().map(|cipher| row("cipher", cipher)));
    rows.extend(peer.rtt_us.map(|rtt| row("round trip", milliseconds(rtt))));
    rows.extend(path_mtu(peer).map(|text| row("path MTU", text)));
    rows.push(row("outbound", outbound(&peer.counters)));
    rows.push(row("inbound", inbound(&peer.counters)));
    rows.extend(peer.remedies.iter().map(|text| row("", text.clone())));
    let Rates {
        outbound_bits_per_s,
        outbound_frames_per_s,
        ..
    } = peer.rates;
    rows.push(row(
        "rate out",
        rate(outbound_bits_per_s, outbound_frames_per_s),
    ));
    let Rates {
        inbound_bits_per_s,
        inbound_frames_per_s,
        ..
    } = peer.rates;
    rows.push(row(
        "rate in",
        rate(inbound_bits_per_s, inbound_frames_per_s),
    ));
    format!("peer {}\n{}", peer.name, table("  ", rows))
}

fn path_mtu(peer: &PeerStatus) -> Option<String> {
    match peer.path_mtu {
        Some(mtu) => Some(format!("{mtu} bytes")),
        None => is_nearly_cut_off(peer).then(|| "below 576 bytes".to_owned()),
    }
}

/// The peer is up, but only small frames cross.
fn is_nearly_cut_off(peer: &PeerStatus) -> bool {
    let is_narrow = |error: &LastErrorStatus| error.cause == "narrow-path";
    peer.state == "up" && peer.path_mtu.is_none() && peer.last_error.as_ref().is_some_and(is_narrow)
}

fn last_error(error: &LastErrorStatus, peer: &PeerStatus) -> String {
    let LastErrorStatus {
        text,
        remedy,
        since_s,
        last_s,
        ..
    } = error;
    match peer.state == "up" && !is_nearly_cut_off(peer) {
        true => format!("{}: {text}", ago(*last_s)),
        false => format!("for {}: {text}; {remedy}", age(*since_s)),
    }
}

pub(super) fn outbound(counters: &Counters) -> String {
    let Counters {
        outbound_frames,
        outbound_bytes,
        outbound_datagrams,
        ..
    } = *counters;
    traffic(outbound_frames, outbound_bytes, outbound_datagrams)
}

pub(super) fn inbound(counters: &Counters) -> String {
    let Counters {
        inbound_frames,
        inbound_bytes,
        inbound_datagrams,
        ..
    } = *counters;
    traffic(inbound_frames, inbound_bytes, inbound_datagrams)
}

fn traffic(frames: u64, size: u64, datagrams: u64) -> String {
    format!(
        "{}, {} frames, {} datagrams",
        bytes(size),
        number(frames),
        number(datagrams)
    )
}

fn rate(bits_per_s: f64, frames_per_s: f64) -> String {
    const UNITS: [&str; 4] = ["bit/s", "kbit/s", "Mbit/s", "Gbit/s"];
    let (mut value, mut unit) = (bits_per_s, 0);
    while value >= 1000.0 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    format!(
        "{value:.1} {}, {} frames/s",
        UNITS[unit],
        number(frames_per_s.round() as u64)
    )
}
