// SPDX-License-Identifier: MIT OR Apache-2.0
//! How a [`Status`], or a table of addresses, looks on a screen.

use std::io::{self, Write};
use std::iter;
use std::time::Duration;

use patchcord::control::message::{
    BlockStatus, Counters, DeviceStatus, FdbStatus, LastErrorStatus, PeerStatus, PortStatus, Rates,
    Status,
};

use super::tunnel::plural;

/// One line per tunnel.
pub(super) fn list(running: &[Status]) -> String {
    if running.is_empty() {
        return "no tunnel is running\n".into();
    }
    let rows = running.iter().map(|status| {
        let up = status
            .peers
            .iter()
            .filter(|peer| peer.state == "up")
            .count();
        vec![
            status.tunnel.clone(),
            state(status).to_owned(),
            status.device.name.clone(),
            format!("{up} of {} up", plural(status.peers.len(), "peer")),
            format!("{} out", bytes(status.counters.outbound_bytes)),
            format!("{} in", bytes(status.counters.inbound_bytes)),
            format!("for {}", age(status.uptime_s)),
        ]
    });
    table("", rows.collect())
}

/// So many peers are shown in full; more than that get a line each.
const PEERS_IN_FULL: usize = 4;

/// Everything about one tunnel; of many peers only with `verbose`.
pub(super) fn page(status: &Status, verbose: bool) -> String {
    let mut sections = vec![overview(status)];
    if verbose || status.peers.len() <= PEERS_IN_FULL {
        sections.extend(status.peers.iter().map(peer));
    } else {
        sections.push(peers(status));
    }
    if !status.drops.is_empty() {
        let rows = status
            .drops
            .iter()
            .map(|(reason, n)| vec![reason.clone(), number(*n)]);
        sections.push(format!("drops\n{}", table("  ", rows.collect())));
    }
    let ports: Vec<_> = status.ports.iter().filter_map(port).collect();
    if !ports.is_empty() {
        sections.push(format!("ports\n{}", table("  ", ports)));
    }
    if !status.groups.is_empty() {
        let rows = status.groups.iter().map(|group| {
            let ports = group.ports.join(", ");
            vec![group.group.clone(), vlan(group.vid), ports]
        });
        sections.push(format!("groups\n{}", table("  ", rows.collect())));
    }
    let switch = switch(status);
    if !switch.is_empty() {
        sections.push(format!("switch\n{}", table("  ", switch)));
    }
    if !status.fdb.is_empty() && known(status) <= LISTED {
        let rows = status.fdb.iter().map(|entry| address(entry).into());
        sections.push(format!("addresses\n{}", table("  ", rows.collect())));
    }
    sections.join("\n")
}

fn vlan(vid: u16) -> String {
    match vid {
        0 => "untagged".into(),
        vid => format!("VID {vid}"),
    }
}

/// The addresses of a table, one to a line. There may be very many.
pub(super) fn addresses(out: &mut impl Write, indent: &str, all: &[FdbStatus]) -> io::Result<()> {
    if all.is_empty() {
        return writeln!(out, "{indent}no address is known");
    }
    // Written as it is made: `table` would hold the text of a million lines, and their cells.
    let widest = |text: fn(&FdbStatus) -> &str| {
        let widths = all.iter().map(|entry| text(entry).chars().count());
        widths.max().unwrap_or_default()
    };
    let [ports, origins] = [widest(|entry| &entry.port), widest(|entry| &entry.origin)];
    for entry in all {
        let [mac, vid, port, origin, rest] = address(entry);
        let line = format!("{indent}{mac}  {vid:8}  {port:ports$}  {origin:origins$}  {rest}");
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(())
}

/// The page of a tunnel lists so many addresses; where there are more it says how many.
const LISTED: u64 = 20;

/// How many addresses the tunnel knows.
fn known(status: &Status) -> u64 {
    status.fdb.len() as u64 + status.fdb_omitted
}

/// What there is to say about the table of addresses as a whole.
fn switch(status: &Status) -> Vec<Vec<String>> {
    let mut rows = Vec::new();
    if known(status) > LISTED {
        let name = &status.tunnel;
        let counts = &status.switch.addresses;
        let by_origin = [
            (counts.learned, "learned"),
            (counts.fixed, "static"),
            (counts.controller, "by a controller"),
        ];
        let by_origin = by_origin.iter().filter(|(count, _)| *count > 0);
        let by_origin: Vec<_> = by_origin
            .map(|(count, origin)| format!("{} {origin}", number(*count)))
            .collect();
        let text = match by_origin.is_empty() {
            true => number(known(status)),
            false => by_origin.join(", "),
        };
        rows.push(row(
            "addresses",
            format!("{text}; `patchcord fdb show {name}` lists them"),
        ));
    }
    let counters = &status.switch.counters;
    if counters.dampened > 0 {
        let text = format!(
            "{}, {} of them too often: a loop, or two stations with one address",
            number(counters.moved),
            number(counters.dampened)
        );
        rows.push(row("moved", text));
    }
    let refused = [
        (counters.limited, "more addresses than a port may have"),
        (counters.full, "no place in the table"),
    ];
    let refused = refused.iter().filter(|(count, _)| *count > 0);
    rows.extend(refused.map(|(count, why)| {
        row(
            "not learned",
            format!("{}: {why}", plural(*count as usize, "frame")),
        )
    }));
    rows
}

/// Address, VLAN, port, origin, and the rest.
fn address(entry: &FdbStatus) -> [String; 5] {
    let vid = vlan(entry.vid);
    let number = entry.sequence.map(|number| format!("number {number}"));
    let dampened = entry.dampened.then(|| "moved too often".to_owned());
    let age = ago(f64::from(entry.age_s));
    let bound = entry
        .bound
        .then(|| "kept from guarded ports while its own is down".to_owned());
    let more = number.into_iter().chain(dampened).chain(bound);
    let rest: Vec<_> = iter::once(age).chain(more).collect();
    [
        entry.mac.clone(),
        vid,
        entry.port.clone(),
        entry.origin.clone(),
        rest.join(", "),
    ]
}

/// A port that there is something to say about.
fn port(port: &PortStatus) -> Option<Vec<String>> {
    let blocked = port.blocked.as_ref().map(|block| match block {
        BlockStatus::Loop {
            other,
            vlan,
            for_s,
            opens_in_s,
            probes,
        } => {
            let vlan = match vlan {
                0 => String::new(),
                vlan => format!(" in VLAN {vlan}"),
            };
            format!(
                "blocked {}: a loop with {other}{vlan}; {} came back, opens in {} if no more do",
                ago(*for_s),
                plural(*probes as usize, "probe"),
                age(*opens_in_s),
            )
        }
        BlockStatus::Bpdu => "blocked: a bridge is behind it".to_owned(),
    });
    let refused: Vec<_> = port
        .refused
        .iter()
        .map(|(reason, n)| format!("{reason} {}", number(*n)))
        .collect();
    let refused = (!refused.is_empty()).then(|| format!("refused: {}", refused.join(", ")));
    let texts: Vec<_> = blocked.into_iter().chain(refused).collect();
    (!texts.is_empty()).then(|| vec![port.port.clone(), texts.join("; ")])
}

/// The interface of providers says connected from the start on, before any peer has answered.
fn state(status: &Status) -> &str {
    let is_any_up = status.peers.iter().any(|peer| peer.state == "up");
    match status.state.as_str() {
        "connected" | "reasserting" if !is_any_up => "no peer up",
        "reasserting" => "connected",
        other => other,
    }
}

fn overview(status: &Status) -> String {
    let mut rows = vec![
        row(
            "state",
            format!("{}, started {}", state(status), ago(status.uptime_s)),
        ),
        row("public key", status.public_key.clone()),
        row("listen", listen(status)),
        row("device", device(&status.device)),
    ];
    rows.extend(device_trouble(&status.device));
    rows.extend([
        row("core plan", core_plan(status)),
        row("outbound", outbound(&status.counters)),
        row("inbound", inbound(&status.counters)),
        row(
            "process",
            format!("{}, patchcord {}", status.pid, status.version),
        ),
    ]);
    format!("tunnel {}\n{}", status.tunnel, table("  ", rows))
}

/// What the kernel says that concerns frames: what is in their way, and what it has dropped.
fn device_trouble(device: &DeviceStatus) -> Vec<Vec<String>> {
    let remedies = device.remedies.iter();
    let mut rows: Vec<_> = remedies.map(|text| row("", text.clone())).collect();
    let kernel = &device.kernel;
    let counts = [
        (kernel.tx_dropped, "for the tunnel dropped"),
        (kernel.tx_errors, "for the tunnel failed"),
        (kernel.rx_dropped, "from the tunnel dropped"),
        (kernel.rx_errors, "from the tunnel failed"),
    ];
    let counts = counts.iter().filter(|(count, _)| *count > 0);
    let counts: Vec<_> = counts
        .map(|(count, what)| format!("{} {what}", number(*count)))
        .collect();
    if !counts.is_empty() {
        rows.push(row("", format!("by the kernel: {}", counts.join(", "))));
    }
    rows
}

fn device(device: &DeviceStatus) -> String {
    let is_nic = device.backend == "packet";
    let carrier = if device.carrier {
        "carrier"
    } else {
        "no carrier"
    };
    // Of a NIC, the cable is not ours, nor could it be but adopted.
    let parts = [
        Some(if is_nic {
            format!("NIC {}", device.name)
        } else {
            device.name.clone()
        }),
        Some(device.mac.clone()),
        Some(format!("MTU {}", device.mtu)),
        (!device.up).then(|| "down".to_owned()),
        (!is_nic && device.up).then(|| carrier.to_owned()),
        Some(device.backend.clone()),
        (device.mode != "switch").then(|| device.mode.clone()),
        device
            .bridge
            .as_ref()
            .map(|bridge| format!("port of {bridge}{}", bridge_port(device))),
        (device.waits_for.as_ref()).map(|bridge| format!("waits for {bridge}")),
        (device.moved).then(|| "in another network namespace".to_owned()),
        (device.adopted && !is_nic).then(|| "adopted".to_owned()),
    ];
    let parts: Vec<_> = parts.into_iter().flatten().collect();
    parts.join(", ")
}

/// What the bridge says of its port, if it is more than that everything passes.
fn bridge_port(device: &DeviceStatus) -> String {
    let Some(port) = &device.bridge_port else {
        return String::new();
    };
    let state = (device.carrier && port.state != "forwarding").then(|| port.state.clone());
    let vlans = port.vlans.as_ref().map(|vlans| match vlans.is_empty() {
        true => "no VLAN".to_owned(),
        false => format!("VLAN {vlans}"),
    });
    let parts: Vec<_> = state.into_iter().chain(vlans).collect();
    match parts.is_empty() {
        true => String::new(),
        false => format!(" ({})", parts.join(", ")),
    }
}

fn listen(status: &Status) -> String {
    let without = |has: bool, what: &'static str| (!has).then_some(what);
    let without = [
        without(
            status.listen_is_here,
            "an address that is not on this machine yet",
        ),
        without(status.udp_gso, "no UDP GSO"),
        without(status.udp_gro, "no UDP GRO"),
    ];
    let parts = iter::once(status.listen.as_str()).chain(without.into_iter().flatten());
    parts.collect::<Vec<_>>().join(", ")
}

fn core_plan(status: &Status) -> String {
    let plan = &status.core_plan;
    let threads: Vec<_> = plan
        .threads
        .iter()
        .map(|thread| match thread.core {
            Some(core) => format!("{} on core {core}", thread.name),
            None => thread.name.clone(),
        })
        .collect();
    format!(
        "{}, {} on {}: {}",
        plan.plan,
        plural(plan.lanes, "lane"),
        plural(plan.cores, "core"),
        threads.join(", ")
    )
}

/// One line per peer.
fn peers(status: &Status) -> String {
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
pub(super) fn peer(peer: &PeerStatus) -> String {
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

/// The peer is up, and nothing but small frames crosses.
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

fn outbound(counters: &Counters) -> String {
    let Counters {
        outbound_frames,
        outbound_bytes,
        outbound_datagrams,
        ..
    } = *counters;
    traffic(outbound_frames, outbound_bytes, outbound_datagrams)
}

fn inbound(counters: &Counters) -> String {
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

fn row(label: &str, value: String) -> Vec<String> {
    vec![label.into(), value]
}

/// Left-aligned columns, two spaces apart, without spaces at the ends of lines.
pub(super) fn table(indent: &str, rows: Vec<Vec<String>>) -> String {
    let mut widths = Vec::new();
    for row in &rows {
        widths.resize(widths.len().max(row.len()), 0);
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    let mut text = String::new();
    for row in &rows {
        let cells = row
            .iter()
            .zip(&widths)
            .map(|(cell, &width)| format!("{cell:width$}"));
        let line = cells.collect::<Vec<_>>().join("  ");
        text += &format!("{indent}{}\n", line.trim_end());
    }
    text
}

/// With binary units and three digits or so: `1.50 MiB`.
fn bytes(n: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if n < 1024 {
        return format!("{n} B");
    }
    let mut value = n as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.2} {}", UNITS[unit])
}

/// With spaces between thousands: `1 234 567`.
pub(super) fn number(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}

fn milliseconds(us: u64) -> String {
    format!("{:.3} ms", us as f64 / 1000.0)
}

fn ago(seconds: f64) -> String {
    format!("{} ago", age(seconds))
}

/// Whole seconds: `2m 5s`.
fn age(seconds: f64) -> String {
    // Out of range comes only from a tunnel of another version.
    let age = Duration::try_from_secs_f64(seconds.floor()).unwrap_or_default();
    humantime::format_duration(age).to_string()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use patchcord::control::message::{
        AddressCounts, CorePlanStatus, FdbCounters, GroupStatus, SwitchStatus, ThreadStatus,
    };

    use patchcord::control::message::{BridgePortStatus, KernelCountersStatus};

    use super::*;

    #[test]
    fn numbers_have_units() {
        for (n, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.00 KiB"),
            (1_572_864, "1.50 MiB"),
            (u64::MAX, "16384.00 PiB"),
        ] {
            assert_eq!(bytes(n), text);
        }
        for (n, text) in [
            (0, "0"),
            (999, "999"),
            (1000, "1 000"),
            (1_234_567, "1 234 567"),
        ] {
            assert_eq!(number(n), text);
        }
        for (seconds, text) in [
            (0.4, "0s"),
            (125.9, "2m 5s"),
            (-1.0, "0s"),
            (f64::NAN, "0s"),
        ] {
            assert_eq!(age(seconds), text);
        }
    }

    #[test]
    fn a_wire_says_so_and_which_nic_it_ends_at() {
        let tap = DeviceStatus {
            mode: "wire".into(),
            bridge: None,
            adopted: false,
            ..status().device
        };
        let expected = "pc0, 02:00:5e:10:00:01, MTU 1500, carrier, vnet, wire";
        assert_eq!(device(&tap), expected);
        let nic = DeviceStatus {
            name: "eth1".into(),
            backend: "packet".into(),
            adopted: true,
            ..tap
        };
        let expected = "NIC eth1, 02:00:5e:10:00:01, MTU 1500, packet, wire";
        assert_eq!(device(&nic), expected);
    }

    #[test]
    fn a_device_that_passes_nothing_says_why() {
        let port = BridgePortStatus {
            state: "learning".into(),
            stp: true,
            vlans: Some("1, 10-20".into()),
            isolated: false,
            netfilter: false,
        };
        let kernel = KernelCountersStatus {
            tx_dropped: 1200,
            rx_errors: 3,
            ..KernelCountersStatus::default()
        };
        let trouble = DeviceStatus {
            bridge_port: Some(port),
            remedies: vec!["spanning tree opens the port".into()],
            kernel,
            ..status().device
        };
        let text = device(&trouble);
        assert!(
            text.contains("port of br-lan (learning, VLAN 1, 10-20)"),
            "{text}"
        );
        let rows = device_trouble(&trouble);
        assert_eq!(rows[0][1], "spanning tree opens the port");
        let drops = "by the kernel: 1 200 for the tunnel dropped, 3 from the tunnel failed";
        assert_eq!(rows[1][1], drops);
        let waiting = DeviceStatus {
            bridge: None,
            carrier: false,
            waits_for: Some("br-lan".into()),
            ..status().device
        };
        let text = device(&waiting);
        assert!(
            text.contains("no carrier, vnet, waits for br-lan"),
            "{text}"
        );
        let down = DeviceStatus {
            up: false,
            ..status().device
        };
        assert!(device(&down).contains("MTU 1500, down, vnet"));
    }

    #[test]
    fn the_page_of_a_tunnel() {
        let expected = "\
tunnel a
  state       connected, started 1h 1m 1s ago
  public key  own=
  listen      [::]:51830
  device      pc0, 02:00:5e:10:00:01, MTU 1500, carrier, vnet, port of br-lan, adopted
  core plan   inline, 1 lane on 2 cores: outbound on core 1, control
  outbound    1.50 KiB, 1 234 frames, 5 datagrams
  inbound     0 B, 0 frames, 0 datagrams
  process     42, patchcord 0.1.0

peer site-b
  state           up
  public key      theirs=
  endpoint        192.0.2.1:51830
  last handshake  2s ago
  last received   never
  handshakes      3
  cipher          aes-256-gcm
  round trip      1.234 ms
  path MTU        1500 bytes
  outbound        1.50 KiB, 1 234 frames, 5 datagrams
  inbound         0 B, 0 frames, 0 datagrams
  rate out        1.5 Mbit/s, 1 200 frames/s
  rate in         0.0 bit/s, 0 frames/s

drops
  bad-tag   7
  replayed  1 000

ports
  tap     refused: broadcast-limited 12 345
  site-b  blocked 1m 1s ago: a loop with tap in VLAN 10; 70 probes came back, opens in 9s if no more do

groups
  239.1.2.3  VID 10  tap, site-b

addresses
  02:00:00:00:00:01  untagged  tap     learned     3s ago
  02:00:00:00:00:02  VID 100   site-b  static      0s ago
  02:00:00:00:00:03  VID 4094  site-c  controller  1m ago, number 7
";
        assert_eq!(page(&status(), false), expected);
    }

    #[test]
    fn many_peers_have_a_line_each_unless_all_is_wanted() {
        let mut status = status();
        let mut dead = status.peers[0].clone();
        dead.name = "site-with-a-long-name".into();
        dead.state = "connecting".into();
        dead.last_error = Some(LastErrorStatus {
            cause: "no-route".into(),
            text: "no route".into(),
            remedy: "make one".into(),
            since_s: 70.0,
            last_s: 4.0,
        });
        status.peers = vec![status.peers[0].clone(); 4];
        assert!(page(&status, false).contains("peer site-b\n"));
        status.peers.push(dead);
        let expected = "\
5 peers, 4 up; `patchcord show a --peer PEER` says all of one
  site-b                 up          192.0.2.1:51830  never  1.50 KiB out  0 B in  1.234 ms
  site-b                 up          192.0.2.1:51830  never  1.50 KiB out  0 B in  1.234 ms
  site-b                 up          192.0.2.1:51830  never  1.50 KiB out  0 B in  1.234 ms
  site-b                 up          192.0.2.1:51830  never  1.50 KiB out  0 B in  1.234 ms
  site-with-a-long-name  connecting  192.0.2.1:51830  never  1.50 KiB out  0 B in  for 1m 10s: no route
";
        let short = page(&status, false);
        assert!(short.contains(expected), "{short}");
        assert!(!short.contains("peer site-b\n"), "{short}");
        assert_eq!(page(&status, true).matches("peer site-").count(), 5);
    }

    #[test]
    fn the_page_does_not_list_many_addresses() {
        let mut status = status();
        let one = status.fdb[0].clone();
        for (listed, omitted, learned, expected) in [
            (20, 0, 20, None),
            (21, 0, 21, Some("21 learned, 1 static, 1 by a controller")),
            (
                1000,
                1_047_576,
                1_048_574,
                Some("1 048 574 learned, 1 static, 1 by a controller"),
            ),
            (21, 0, 0, Some("1 static, 1 by a controller")),
        ] {
            status.fdb = vec![one.clone(); listed];
            status.fdb_omitted = omitted;
            status.switch.addresses.learned = learned;
            let page = page(&status, false);
            assert_eq!(page.contains("02:00:00:00:00:01"), expected.is_none());
            if let Some(expected) = expected {
                let line = format!("addresses  {expected}; `patchcord fdb show a` lists them\n");
                assert!(page.contains(&line), "{line}: {page}");
            }
        }
        // An older tunnel does not count them.
        status.switch = SwitchStatus::default();
        let page = page(&status, false);
        assert!(page.contains("addresses  21; `patchcord"), "{page}");
    }

    #[test]
    fn the_page_says_what_is_wrong_with_the_table() {
        let mut status = status();
        status.switch.counters = FdbCounters {
            learned: 9,
            moved: 1234,
            dampened: 5,
            limited: 1,
            full: 2,
        };
        let expected = "\
switch
  moved        1 234, 5 of them too often: a loop, or two stations with one address
  not learned  1 frame: more addresses than a port may have
  not learned  2 frames: no place in the table
";
        assert!(
            page(&status, false).contains(expected),
            "{}",
            page(&status, false)
        );
    }

    #[test]
    fn the_table_of_addresses() {
        const LINES: &str = "  \
  02:00:00:00:00:01  untagged  tap     learned     3s ago, moved too often
  02:00:00:00:00:02  VID 100   site-b  static      0s ago
  02:00:00:00:00:03  VID 4094  site-c  controller  1m ago, number 7, kept from guarded ports while its own is down
";
        let mut table = table_of_three();
        table[0].dampened = true;
        table[2].bound = true;
        for (indent, of, expected) in [
            ("", &[][..], "no address is known\n"),
            ("  ", &table, LINES),
        ] {
            let mut out = Vec::new();
            addresses(&mut out, indent, of).unwrap();
            assert_eq!(String::from_utf8(out).unwrap(), expected);
        }
    }

    #[test]
    fn the_list_of_tunnels() {
        let connecting = Status {
            tunnel: "longer".into(),
            state: "connecting".into(),
            peers: Vec::new(),
            ..status()
        };
        let expected = "\
a       connected   pc0  1 of 1 peer up   1.50 KiB out  0 B in  for 1h 1m 1s
longer  connecting  pc0  0 of 0 peers up  1.50 KiB out  0 B in  for 1h 1m 1s
";
        assert_eq!(list(&[status(), connecting]), expected);
        assert_eq!(list(&[]), "no tunnel is running\n");
    }

    #[test]
    fn the_page_says_why_a_peer_cannot_be_reached() {
        let mut status = status();
        status.peers[0].last_error = Some(LastErrorStatus {
            cause: "port-closed".into(),
            text: "nothing listens".into(),
            remedy: "start it".into(),
            since_s: 70.0,
            last_s: 4.0,
        });
        for (state, expected) in [
            ("up", "last error      4s ago: nothing listens\n"),
            (
                "connecting",
                "last error      for 1m 10s: nothing listens; start it\n",
            ),
        ] {
            status.peers[0].state = state.into();
            let page = page(&status, false);
            assert!(page.contains(expected), "{page}");
        }
    }

    #[test]
    fn the_page_says_that_a_path_is_too_narrow_while_it_is() {
        let mut status = status();
        let peer = &mut status.peers[0];
        peer.last_error = Some(LastErrorStatus {
            cause: "narrow-path".into(),
            text: "no room".into(),
            remedy: "widen it".into(),
            since_s: 70.0,
            last_s: 4.0,
        });
        assert!(page(&status, false).contains("last error      4s ago: no room\n"));
        status.peers[0].path_mtu = None;
        let page = page(&status, false);
        for expected in [
            "last error      for 1m 10s: no room; widen it\n",
            "path MTU        below 576 bytes\n",
        ] {
            assert!(page.contains(expected), "{page}");
        }
        assert!(peers(&status).contains("for 1m 10s: no room\n"));
    }

    #[test]
    fn a_tunnel_without_a_reachable_peer_does_not_look_connected() {
        for state in ["connected", "reasserting"] {
            let mut status = status();
            status.state = state.into();
            assert!(page(&status, false).contains("state       connected, started "));
            status.peers[0].state = "connecting".into();
            status.peers[0].handshake_age_s = None;
            assert!(page(&status, false).contains("state       no peer up, started "));
            assert!(page(&status, false).contains("last handshake  no session now"));
            assert!(list(&[status]).starts_with("a  no peer up  pc0  0 of 1 peer up"));
        }
    }

    fn status() -> Status {
        let counters = Counters {
            outbound_frames: 1234,
            outbound_bytes: 1536,
            outbound_datagrams: 5,
            ..Counters::default()
        };
        let thread = |name: &str, core| ThreadStatus {
            name: name.into(),
            core,
        };
        Status {
            tunnel: "a".into(),
            version: "0.1.0".into(),
            state: "connected".into(),
            pid: 42,
            uptime_s: 3661.5,
            public_key: "own=".into(),
            listen: "[::]:51830".into(),
            listen_is_here: true,
            udp_gso: true,
            udp_gro: true,
            device: DeviceStatus {
                name: "pc0".into(),
                index: 7,
                mac: "02:00:5e:10:00:01".into(),
                mtu: 1500,
                bridge: Some("br-lan".into()),
                up: true,
                carrier: true,
                waits_for: None,
                moved: false,
                bridge_port: None,
                kernel: KernelCountersStatus::default(),
                remedies: Vec::new(),
                backend: "vnet".into(),
                mode: "switch".into(),
                adopted: true,
            },
            core_plan: CorePlanStatus {
                plan: "inline".into(),
                lanes: 1,
                cores: 2,
                threads: vec![thread("outbound", Some(1)), thread("control", None)],
            },
            peers: vec![PeerStatus {
                name: "site-b".into(),
                public_key: "theirs=".into(),
                endpoint: Some("192.0.2.1:51830".into()),
                state: "up".into(),
                cipher: Some("aes-256-gcm".into()),
                handshake_age_s: Some(2.0),
                last_received_s: None,
                rtt_us: Some(1234),
                path_mtu: Some(1500),
                handshakes: 3,
                last_error: None,
                counters,
                rates: Rates {
                    outbound_bits_per_s: 1_540_000.0,
                    outbound_frames_per_s: 1200.4,
                    ..Rates::default()
                },
            }],
            counters,
            ports: vec![
                PortStatus {
                    port: "tap".into(),
                    blocked: None,
                    refused: BTreeMap::from([("broadcast-limited".into(), 12_345)]),
                },
                PortStatus {
                    port: "site-b".into(),
                    blocked: Some(BlockStatus::Loop {
                        other: "tap".into(),
                        vlan: 10,
                        for_s: 61.0,
                        opens_in_s: 9.5,
                        probes: 70,
                    }),
                    refused: BTreeMap::new(),
                },
                PortStatus {
                    port: "site-c".into(),
                    blocked: None,
                    refused: BTreeMap::new(),
                },
            ],
            drops: BTreeMap::from([("bad-tag".into(), 7), ("replayed".into(), 1000)]),
            groups: vec![GroupStatus {
                vid: 10,
                group: "239.1.2.3".into(),
                ports: vec!["tap".into(), "site-b".into()],
            }],
            switch: SwitchStatus {
                addresses: AddressCounts {
                    places: 8192,
                    learned: 1,
                    fixed: 1,
                    controller: 1,
                },
                counters: FdbCounters {
                    learned: 9,
                    moved: 3,
                    ..FdbCounters::default()
                },
                moves: Vec::new(),
            },
            fdb: table_of_three(),
            fdb_omitted: 0,
        }
    }

    fn table_of_three() -> Vec<FdbStatus> {
        let entry = |vid, mac: &str, port: &str, origin: &str, age_s| FdbStatus {
            vid,
            mac: mac.into(),
            port: port.into(),
            age_s,
            origin: origin.into(),
            sequence: (origin == "controller").then_some(7),
            dampened: false,
            bound: false,
        };
        vec![
            entry(0, "02:00:00:00:00:01", "tap", "learned", 3),
            entry(100, "02:00:00:00:00:02", "site-b", "static", 0),
            entry(4094, "02:00:00:00:00:03", "site-c", "controller", 60),
        ]
    }
}
