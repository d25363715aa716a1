// SPDX-License-Identifier: MIT OR Apache-2.0
//! Makes the output of `show` from the host's and the engine's snapshots.

use std::{net::SocketAddr, time::Duration};

use patchcord_bridge::MacAddr;

use crate::{
    config::Mode,
    control::message::{
        BlockStatus, BridgePortStatus, CorePlanStatus, Counters, DeviceStatus, ExpressStatus,
        GroupStatus, KernelCountersStatus, LastErrorStatus, LatencyStatus, PeerStatus, PortStatus,
        Status, ThreadStatus,
    },
    crypto::keys::PublicKey,
    io::udp::{Capabilities, is_here},
    machine::{
        device::DeviceReport,
        link::{PortReport, ranges},
    },
    pipeline::{EngineView, PeerReport, PortView, clock, plan::CorePlan},
    proto::trouble::LastTrouble,
    provider::SessionStatus,
    stats::Traffic,
};

/// Everything that `show` can print.
pub(super) struct Snapshot<'a> {
    pub(super) tunnel: &'a str,
    pub(super) state: SessionStatus,
    pub(super) uptime: Duration,
    pub(super) public_key: PublicKey,
    pub(super) listen: SocketAddr,
    pub(super) udp: Capabilities,
    pub(super) device: DeviceReport,
    pub(super) mode: Mode,
    pub(super) plan: &'a CorePlan,
    pub(super) latency: Option<LatencyStatus>,
    pub(super) engine: EngineView,
}

pub(super) fn status(snapshot: Snapshot<'_>) -> Status {
    let EngineView {
        peers,
        tap: [outbound, inbound],
        express,
        drops,
        ports,
        groups,
        switch,
        fdb,
        fdb_omitted,
    } = snapshot.engine;
    let groups = groups
        .iter()
        .map(|group| GroupStatus {
            vid: group.vid.value(),
            group: group.group.to_string(),
            ports: (group.ports.iter())
                .map(|(port, _)| port_name(&peers, port.0))
                .collect(),
        })
        .collect();
    let ports = (0..)
        .zip(ports)
        .map(|(port, view)| port_status(&peers, port, &view))
        .collect();
    let is_any_up = peers.iter().any(|peer| peer.view.is_up);
    Status {
        tunnel: snapshot.tunnel.to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        state: snapshot.state.name().to_owned(),
        condition: condition(snapshot.state, is_any_up).to_owned(),
        pid: std::process::id(),
        uptime_s: snapshot.uptime.as_secs_f64(),
        public_key: snapshot.public_key.to_string(),
        listen: snapshot.listen.to_string(),
        listen_is_here: is_here(snapshot.listen),
        udp_gso: snapshot.udp.gso,
        udp_gro: snapshot.udp.gro,
        device: device_status(snapshot.device, snapshot.mode),
        core_plan: plan_status(snapshot.plan, express),
        latency: snapshot.latency,
        counters: Counters {
            outbound_frames: outbound.0,
            outbound_bytes: outbound.1,
            outbound_datagrams: peers
                .iter()
                .map(|peer| peer.view.traffic.outbound.datagrams())
                .sum(),
            inbound_frames: inbound.0,
            inbound_bytes: inbound.1,
            inbound_datagrams: peers
                .iter()
                .map(|peer| peer.view.traffic.inbound.datagrams())
                .sum(),
        },
        peers: peers.into_iter().map(peer_status).collect(),
        drops: drops
            .into_iter()
            .map(|(reason, count)| (reason.name().to_owned(), count))
            .collect(),
        ports,
        groups,
        switch,
        fdb,
        fdb_omitted,
    }
}

/// A session is connected from the start on, before any peer has answered.
fn condition(state: SessionStatus, is_any_up: bool) -> &'static str {
    match state {
        SessionStatus::Connected | SessionStatus::Reasserting if !is_any_up => "no peer up",
        SessionStatus::Reasserting => SessionStatus::Connected.name(),
        other => other.name(),
    }
}

fn port_status(peers: &[PeerReport], port: u16, view: &PortView) -> PortStatus {
    let since_s = |then_us: u64, now_us: u64| now_us.saturating_sub(then_us) as f64 / 1e6;
    let by_loop = view.blocked_by_loop.map(|blocked| BlockStatus::Loop {
        other: port_name(peers, blocked.cause.other.0),
        vlan: blocked.cause.vid.value(),
        for_s: since_s(blocked.since_us, view.now_us),
        opens_in_s: since_s(view.now_us, blocked.unblocks_us),
        probes: blocked.count,
    });
    let by_bpdu = view.blocked_by_bpdu.then_some(BlockStatus::Bpdu);
    let refused = view.refused.iter();
    PortStatus {
        port: port_name(peers, port),
        blocked: by_loop.or(by_bpdu),
        refused: refused
            .map(|(reason, count)| (reason.name().to_owned(), *count))
            .collect(),
    }
}

fn port_name(peers: &[PeerReport], port: u16) -> String {
    match usize::from(port).checked_sub(1) {
        None => "tap".to_owned(),
        Some(place) => peers
            .get(place)
            .map_or_else(|| "?".to_owned(), |peer| peer.name.clone()),
    }
}

fn device_status(report: DeviceReport, mode: Mode) -> DeviceStatus {
    let DeviceReport {
        info,
        port,
        counters,
        remedies,
    } = report;
    DeviceStatus {
        name: info.name,
        index: info.index,
        mac: MacAddr(info.mac).to_string(),
        mtu: info.mtu,
        bridge: info.bridge,
        up: info.up,
        carrier: info.carrier,
        waits_for: info.waits_for,
        moved: info.moved,
        bridge_port: port.as_ref().map(bridge_port_status),
        kernel: KernelCountersStatus {
            rx_dropped: counters.rx_dropped,
            tx_dropped: counters.tx_dropped,
            rx_errors: counters.rx_errors,
            tx_errors: counters.tx_errors,
        },
        remedies,
        backend: info.backend.to_owned(),
        mode: mode.name().to_owned(),
        adopted: info.adopted,
    }
}

fn bridge_port_status(port: &PortReport) -> BridgePortStatus {
    BridgePortStatus {
        state: port.state.to_owned(),
        stp: port.stp,
        vlans: port.vlans.as_ref().map(ranges),
        isolated: port.isolated,
        netfilter: port.netfilter,
    }
}

fn plan_status(plan: &CorePlan, [outbound_frames, inbound_frames]: [u64; 2]) -> CorePlanStatus {
    let names = plan
        .thread_names()
        .into_iter()
        .chain(["control".to_owned()]);
    let threads = names
        .map(|name| ThreadStatus {
            core: plan.core_of(&name).map(|core| core.id),
            name,
        })
        .collect();
    CorePlanStatus {
        plan: plan.name().to_owned(),
        lanes: plan.lanes,
        express: plan.express.then_some(ExpressStatus {
            outbound_frames,
            inbound_frames,
        }),
        cores: plan.cores.len(),
        threads,
    }
}

fn peer_status(peer: PeerReport) -> PeerStatus {
    let PeerReport {
        name,
        view,
        rates,
        unmerged_at,
    } = peer;
    let state = match (view.is_up, view.endpoint) {
        (true, _) => "up",
        (false, _) if view.is_held_down => "flapping",
        (false, Some(_)) => "connecting",
        (false, None) => "waiting",
    };
    PeerStatus {
        name,
        public_key: view.public_key.to_string(),
        endpoint: view.endpoint.map(|endpoint| endpoint.to_string()),
        state: state.to_owned(),
        cipher: view.cipher.map(|cipher| cipher.name().to_owned()),
        handshake_age_s: view.handshake_age.map(|age| age.as_secs_f64()),
        last_received_s: view.silent_for.map(|silent| silent.as_secs_f64()),
        rtt_us: view
            .rtt
            .map(|rtt| u64::try_from(rtt.as_micros()).unwrap_or(u64::MAX)),
        path_mtu: view.path_mtu.map(u32::from),
        handshakes: view.handshakes,
        last_error: view.last_trouble.as_ref().map(last_error),
        remedies: unmerged_at.iter().map(|it| unmerged(it)).collect(),
        counters: counters(&view.traffic),
        rates,
    }
}

fn unmerged(interface: &str) -> String {
    format!(
        "receives single datagrams, which costs processor time: GRO is off at {interface}; \
         `ethtool -K {interface} gro on`"
    )
}

fn last_error(last: &LastTrouble) -> LastErrorStatus {
    let age_s = |then| clock::now().saturating_duration_since(then).as_secs_f64();
    LastErrorStatus {
        cause: last.trouble.name().to_owned(),
        text: last.trouble.to_string(),
        remedy: last.trouble.remedy().to_owned(),
        since_s: age_s(last.since),
        last_s: age_s(last.last),
    }
}

fn counters(traffic: &Traffic) -> Counters {
    let Traffic { outbound, inbound } = traffic;
    Counters {
        outbound_frames: outbound.frames(),
        outbound_bytes: outbound.bytes(),
        outbound_datagrams: outbound.datagrams(),
        inbound_frames: inbound.frames(),
        inbound_bytes: inbound.bytes(),
        inbound_datagrams: inbound.datagrams(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_without_a_peer_does_not_count_as_connected() {
        use SessionStatus::{Connected, Connecting, Disconnecting, Reasserting};

        for (state, is_any_up, expected) in [
            (Connecting, false, "connecting"),
            (Connected, false, "no peer up"),
            (Connected, true, "connected"),
            (Reasserting, false, "no peer up"),
            (Reasserting, true, "connected"),
            (Disconnecting, true, "disconnecting"),
        ] {
            assert_eq!(condition(state, is_any_up), expected, "{state:?}");
        }
    }
}
