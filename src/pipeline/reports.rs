// SPDX-License-Identifier: MIT OR Apache-2.0
//! The lines that the control task logs about peers and about unknown initiators: each names the
//! peer, the cause and the remedy, at a rate that no peer or attacker decides.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use patchcord_bridge::PortId;
use tracing::{info, warn};

use super::log_rate::LogRate;
use crate::{
    crypto::keys::PublicKey,
    io::udp::SendError,
    proto::{
        node::{PeerView, Refused},
        trouble::{LastTrouble, Trouble, Unreachable},
    },
    stats::DropReason,
};

/// The same refusal, or the same trouble with a peer, is logged at most this often …
const INTERVAL: Duration = Duration::from_secs(60);
/// … and the moves of one peer.
const MOVE_INTERVAL: Duration = Duration::from_secs(10);

/// Refusals that are distinguished at the same time.
const INITIATORS: usize = 64;

/// An event that a peer can cause as often as it likes.
#[derive(Debug, PartialEq, Eq, Hash)]
enum Topic {
    Move,
    Flaps,
    Unmerged,
    Trouble(&'static str),
}

/// The sender of a handshake.
#[derive(Debug, PartialEq, Eq, Hash)]
enum Initiator {
    Key(PublicKey),
    Address(IpAddr),
}

pub(super) struct Reports {
    refusals: LogRate<(DropReason, Initiator)>,
    /// Bounded by the number of peers.
    peers: LogRate<(PortId, Topic)>,
}

impl Default for Reports {
    fn default() -> Self {
        Self {
            refusals: LogRate::new(INITIATORS),
            peers: LogRate::new(usize::MAX),
        }
    }
}

impl Reports {
    /// `peer` is the name of its peer, if it is one.
    pub(super) fn refused(&mut self, refused: &Refused, peer: Option<&str>, now: Instant) {
        let &Refused {
            reason, from, key, ..
        } = refused;
        let Some(remedy) = remedy(reason) else { return };
        let address = || Initiator::Address(network_of(from.ip()));
        let initiator = key.map_or_else(address, Initiator::Key);
        if let Some(left_out) = self.refusals.may((reason, initiator), INTERVAL, now) {
            warn!(
                %from,
                key = key.map(tracing::field::display),
                peer,
                reason = reason.name(),
                repeated = left_out.repeated,
                others = left_out.others,
                "a handshake was refused: {remedy}"
            );
        }
    }

    pub(super) fn flaps(&mut self, port: PortId, peer: &str, now: Instant) {
        if let Some(left_out) = self.peers.may((port, Topic::Flaps), INTERVAL, now) {
            let repeated = left_out.repeated;
            warn!(
                peer,
                repeated,
                "peer flaps; it counts as down until it has stayed up for up to 20 s; check its log, and the path for intermittent failures"
            );
        }
    }

    pub(super) fn moved(
        &mut self,
        port: PortId,
        peer: &str,
        (from, to): (SocketAddr, SocketAddr),
        now: Instant,
    ) {
        let topic = (port, Topic::Move);
        if let Some(left_out) = self.peers.may(topic, MOVE_INTERVAL, now) {
            let repeated = left_out.repeated;
            info!(peer, %from, %to, repeated, "peer moved to another address");
        }
    }

    /// Bulk traffic of the peer arrives as single datagrams by `interface`, where GRO is off.
    pub(super) fn unmerged(&mut self, port: PortId, peer: &str, interface: &str, now: Instant) {
        if let Some(left_out) = self.peers.may((port, Topic::Unmerged), INTERVAL, now) {
            let repeated = left_out.repeated;
            info!(
                peer,
                interface,
                repeated,
                "datagrams of the peer arrive one by one, which costs processor time: GRO is off at the interface; `ethtool -K {interface} gro on`"
            );
        }
    }

    /// `endpoint`: the address or name to which initiations go.
    pub(super) fn trouble(
        &mut self,
        port: PortId,
        (peer, endpoint): (&str, Option<&str>),
        last: &LastTrouble,
        now: Instant,
    ) {
        let trouble = &last.trouble;
        let topic = (port, Topic::Trouble(trouble.name()));
        let Some(left_out) = self.peers.may(topic, INTERVAL, now) else {
            return;
        };
        let for_s = now.saturating_duration_since(last.since).as_secs();
        let (cause, remedy, repeated) = (trouble.name(), trouble.remedy(), left_out.repeated);
        let subject = match trouble {
            Trouble::SharedKey(_) => "peer key is in use twice",
            Trouble::NarrowPath => "peer is reachable for small frames only",
            Trouble::LostTrains => "peer gets single datagrams only",
            _ => "peer cannot be reached",
        };
        warn!(
            peer,
            endpoint, cause, for_s, repeated, "{subject}: {trouble}; {remedy}"
        );
    }
}

/// The number of peers that are up, and the problem of the first of the others.
pub(super) fn summary(peers: &[(&str, &PeerView)]) -> String {
    let mut down = peers.iter().filter(|(_, view)| !view.is_up);
    let up = peers.len() - down.clone().count();
    let mut text = format!("{up} of {} peers up", peers.len());
    if let Some((name, view)) = down.next() {
        text += &match &view.last_trouble {
            Some(last) => format!("; {name}: {}", last.trouble),
            None if view.endpoint.is_none() => format!("; {name}: waiting for its initiation"),
            None => format!("; {name}: connecting"),
        };
    }
    let is_narrow = |view: &PeerView| {
        let last = view.last_trouble.as_ref();
        view.path_mtu.is_none() && last.is_some_and(|last| last.trouble == Trouble::NarrowPath)
    };
    if up == peers.len()
        && let Some((name, _)) = peers.iter().find(|(_, view)| is_narrow(view))
    {
        text += &format!("; {name}: {}", Trouble::NarrowPath);
    }
    match down.count() {
        0 => text,
        others => text + &format!(", and {others} more are down"),
    }
}

/// The problem, and its remedy. `None` for a reason that is not worth a line.
fn remedy(reason: DropReason) -> Option<&'static str> {
    Some(match reason {
        DropReason::BadMac => {
            "it was made for another public key than ours; if the address is a peer's, compare the \
             public-key in its [[peer]] with this tunnel's (`patchcord show`)"
        }
        DropReason::UnknownPeer => {
            "its public key is in no [[peer]] of this tunnel; add one, if it is to take part"
        }
        DropReason::BadHandshake => {
            "it does not fit our key or the preshared key; compare `patchcord pubkey` and the \
             preshared-key-file of both ends"
        }
        DropReason::Incompatible => {
            "the ends differ in tunnel.network-id, or allow no common tunnel.cipher"
        }
        DropReason::ReplayedHandshake => {
            "its timestamp is not later than that of an earlier one; if it is no repetition, the \
             peer's clock went back, or two machines have its key"
        }
        _ => return None,
    })
}

/// One IPv6 network has more addresses than a log has lines.
fn network_of(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V6(ip) => IpAddr::V6((u128::from(ip) >> 64 << 64).into()),
        ip => ip,
    }
}

/// The kernel's reason when it takes no datagram for a destination; `None` for other errors.
pub(super) fn unreachable(error: &SendError) -> Option<Unreachable> {
    let SendError::Unreachable { source, .. } = error else {
        return None;
    };
    Some(match source.kind() {
        io::ErrorKind::HostUnreachable => Unreachable::NoHost,
        io::ErrorKind::ConnectionRefused => Unreachable::PortClosed,
        io::ErrorKind::PermissionDenied => Unreachable::Forbidden,
        io::ErrorKind::NetworkUnreachable
        | io::ErrorKind::NetworkDown
        | io::ErrorKind::AddrNotAvailable => Unreachable::NoRoute,
        _ => Unreachable::WrongFamily,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{crypto::keys::PrivateKey, testing::Log};

    fn logged(work: impl FnOnce(&mut Reports, Instant)) -> String {
        let log = Log::default();
        tracing::subscriber::with_default(log.subscriber(), || {
            work(&mut Reports::default(), Instant::now());
        });
        log.text()
    }

    #[test]
    fn a_refusal_says_whose_it_is() {
        let key = PrivateKey::generate().public_key();
        let mut refused = Refused {
            reason: DropReason::UnknownPeer,
            from: "192.0.2.7:4000".parse().unwrap(),
            key: Some(key),
            port: None,
        };
        let lines = logged(|reports, now| {
            reports.refused(&refused, None, now);
            reports.refused(&refused, None, now);
            refused.key = None;
            refused.reason = DropReason::BadMac;
            reports.refused(&refused, Some("lab"), now);
        });
        let lines: Vec<_> = lines.lines().collect();
        assert_eq!(lines.len(), 2, "{lines:?}");
        let first = format!("from=192.0.2.7:4000 key={key} reason=\"unknown-peer\"");
        assert!(lines[0].contains(&first), "{}", lines[0]);
        let second = "from=192.0.2.7:4000 peer=\"lab\" reason=\"bad-mac\"";
        assert!(lines[1].contains(second), "{}", lines[1]);
    }

    #[test]
    fn a_peer_that_moves_all_the_time_does_not_fill_the_log() {
        let lines = logged(|reports, now| {
            for udp_port in 1..=100 {
                let from = SocketAddr::from(([192, 0, 2, 1], udp_port));
                let to = SocketAddr::from(([192, 0, 2, 2], udp_port));
                reports.moved(PortId(1), "office", (from, to), now);
            }
        });
        assert_eq!(lines.lines().count(), 1, "{lines}");
        assert!(
            lines.contains("peer=\"office\" from=192.0.2.1:1 to=192.0.2.2:1"),
            "{lines}"
        );
    }

    #[test]
    fn callers_without_end_fill_a_bounded_part_of_the_log() {
        let lines = logged(|reports, now| {
            for last in 0..5000_u16 {
                let [a, b] = last.to_be_bytes();
                let refused = Refused {
                    reason: DropReason::BadMac,
                    from: SocketAddr::from(([10, 0, a, b], 9)),
                    key: None,
                    port: None,
                };
                reports.refused(&refused, None, now);
            }
        });
        assert_eq!(lines.lines().count(), INITIATORS);
    }

    #[test]
    fn trouble_is_told_with_cause_and_remedy() {
        let lines = logged(|reports, now| {
            let last = LastTrouble {
                trouble: Trouble::Unreachable(Unreachable::PortClosed, None),
                since: now,
                last: now,
            };
            for _ in 0..10 {
                reports.trouble(PortId(1), ("office", Some("192.0.2.1:1")), &last, now);
            }
        });
        assert_eq!(lines.lines().count(), 1, "{lines}");
        for part in [
            "peer=\"office\" endpoint=\"192.0.2.1:1\" cause=\"port-closed\"",
            "peer cannot be reached: nothing listens on the endpoint's UDP port",
            "start the tunnel there",
        ] {
            assert!(lines.contains(part), "{part}: {lines}");
        }
    }
}
