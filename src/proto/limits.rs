// SPDX-License-Identifier: MIT OR Apache-2.0
//! Every number of the protocol that is not a byte layout (PROTOCOL.md, "Limits").

use std::time::Duration;

/// Bytes of a frame beside the payload that an MTU bounds: an Ethernet header and two VLAN tags,
/// and between the sites perhaps one more, of a port that is a QinQ tunnel.
pub const FRAME_OVERHEAD: u32 = 14 + 3 * 4;

/// A session older than this starts a new handshake (the configured `rekey-interval` may be less).
pub const REKEY_AFTER_TIME: Duration = Duration::from_secs(120);
/// The side with the larger public key leaves the rekey to the other for this long, whichever began
/// the session: two sides that initiated at the same time must not go on doing so.
pub const SECOND_REKEY_DELAY: Duration = Duration::from_secs(15);
/// A session older than this is no longer used, in either direction.
pub const REJECT_AFTER_TIME: Duration = Duration::from_secs(180);
/// A lane that sent this many datagrams asks for a new session. AES-GCM keeps a confidentiality
/// margin of 2^-60 at this number and 1500 bytes each, and of 2^-54 at 9216 (CFRG's AEAD limits).
pub const REKEY_AFTER_DATAGRAMS: u64 = 1 << 28;
/// A lane never sends more than this under one session.
pub const REJECT_AFTER_DATAGRAMS: u64 = REKEY_AFTER_DATAGRAMS + (1 << 24);

/// The second attempt of a handshake follows the first after this; then the distance doubles …
pub const HANDSHAKE_RETRY: Duration = Duration::from_millis(100);
/// … up to this for the first attempts, since the peer may just be starting …
pub const HANDSHAKE_RETRY_EARLY_MAX: Duration = Duration::from_millis(500);
/// … of which there are this many …
pub const EARLY_ATTEMPTS: u32 = 12;
/// … and then up to this.
pub const HANDSHAKE_RETRY_MAX: Duration = Duration::from_secs(5);
/// Initiations that a node sends in a second, to all its peers together: each costs three
/// multiplications on the curve, and its answer more …
pub const INITIATION_RATE: u32 = 64;
/// … and how many of them may leave at once.
pub const INITIATION_BURST: u32 = 16;
/// A new route to a peer that is down makes the next initiation due at once, no more often than
/// this.
pub const ROUTE_INITIATION_INTERVAL: Duration = HANDSHAKE_RETRY_MAX;
/// A name is looked up again after this many attempts without an answer.
pub const RESOLVE_AFTER_ATTEMPTS: u32 = 4;

/// Traffic counters are sampled this often while there is a session.
pub const SAMPLE_INTERVAL: Duration = Duration::from_millis(250);
/// Datagrams were sent and nothing was heard for this long: send an echo request.
pub const SUSPECT_AFTER: Duration = Duration::from_millis(500);
/// … for this long: start a handshake, the peer may have restarted.
pub const REKEY_WHEN_SILENT_AFTER: Duration = Duration::from_millis(1000);
/// … for this long: the peer counts as down.
pub const DOWN_AFTER: Duration = Duration::from_secs(5);

/// A peer that was lost more often than this, recently, is held down …
pub const FLAP_LIMIT: f64 = 4.0;
/// … until the number has fallen to this; it halves …
pub const FLAP_REUSE: f64 = 2.0;
/// … in this time …
pub const FLAP_HALF_LIFE: Duration = Duration::from_secs(10);
/// … and is never more than this.
pub const FLAP_MOST: f64 = 8.0;

/// The cookie secret is replaced this often, so a cookie is valid for at most this long.
pub const COOKIE_LIFETIME: Duration = Duration::from_secs(120);
/// The holder stops using a cookie a little before its maker does.
pub const COOKIE_USE: Duration = Duration::from_secs(110);
/// More initiations than this in a second with a valid mac1 mean load.
pub const LOAD_THRESHOLD: u32 = 64;
/// Load is over after this long below the threshold.
pub const LOAD_HOLD: Duration = Duration::from_secs(1);
/// Under load, handshakes per second from one address with a valid cookie …
pub const SOURCE_RATE: u32 = 20;
/// … and how many of them may arrive at once.
pub const SOURCE_BURST: u32 = 5;
/// Addresses whose rate is kept.
pub const SOURCES: usize = 4096;
/// Initiations accepted from one peer follow each other at least at this distance.
pub const INITIATION_INTERVAL: Duration = Duration::from_millis(20);
/// After this many answers in a row that a peer has not used, something is wrong with them. On a
/// long path some initiations cross their answers.
pub const UNCONFIRMED_ANSWERS: u32 = 12;
/// A peer receives a refusal because of its configuration at most this often.
pub const REFUSAL_INTERVAL: Duration = Duration::from_secs(1);

/// Counters of a lane may arrive this much out of order.
pub const REPLAY_WINDOW: u64 = 8192;

/// IP packet size that every path is assumed to carry until probes show more (RFC 8899:
/// BASE_PLPMTU).
pub const PATH_MTU_BASE: u16 = 1280;
/// The packet size that every IPv4 path carries (RFC 791); a path that does not is reported.
pub const PATH_MTU_FLOOR: u16 = 576;
/// The largest IP packet that is probed.
pub const PATH_MTU_MAX: u16 = 9216;

/// Control datagrams that a session accepts in a second; a path MTU search at both ends has up to
/// seventy, where all sizes arrive.
pub const CONTROL_RATE: u32 = 128;
/// Lanes of a peer that are received; a datagram on a higher one is malformed. It bounds the memory
/// that unfinished frames of a session can take.
pub const MAX_LANES: u8 = 16;
/// Bytes that the unfinished frames of a lane may take: more than a thousand full ones, as many as
/// arrive within a tenth of a second at 100 Mbit/s …
pub const REASSEMBLY_LANE_BYTES: usize = 4 << 20;
/// … those of all lanes of a session …
pub const REASSEMBLY_SESSION_BYTES: usize = 16 << 20;
/// … those of all peers, if they fill their share …
pub const REASSEMBLY_ALL_BYTES: usize = 256 << 20;
/// … but this much for each session, however many peers there are.
pub const REASSEMBLY_LEAST_BYTES: usize = 4 << 20;
/// Separate parts that an unfinished frame may have. The largest frame crosses the narrowest path
/// in 135 pieces, of which every second may be late; in smaller pieces, the list of its parts would
/// outgrow it.
pub const REASSEMBLY_PARTS: usize = 128;
/// A super-frame waits for missing pieces until this many datagrams of its lane arrived after the
/// latest of its own: later pieces are delivered too, but in smaller runs.
pub const REORDERING: u64 = 32;
/// … or until nothing has arrived for this long.
pub const REASSEMBLY_PATIENCE: Duration = Duration::from_millis(2);
/// Sessions of one peer that may receive at the same time: the current one, the one before, and
/// one that is not yet confirmed.
pub const SESSIONS_PER_PEER: usize = 3;

/// Bytes that the unfinished frames of one lane may take, given the number of peers and the number
/// of lanes that the peer has announced.
pub const fn reassembly_bytes(peers: usize, lanes: u8) -> usize {
    let peers = if peers == 0 { 1 } else { peers };
    let share = REASSEMBLY_ALL_BYTES / SESSIONS_PER_PEER / peers;
    let session = if share < REASSEMBLY_LEAST_BYTES {
        REASSEMBLY_LEAST_BYTES
    } else if share > REASSEMBLY_SESSION_BYTES {
        REASSEMBLY_SESSION_BYTES
    } else {
        share
    };
    let lanes = match lanes {
        0 => 1,
        1..MAX_LANES => lanes,
        _ => MAX_LANES,
    };
    let lane = session / lanes as usize;
    if lane > REASSEMBLY_LANE_BYTES {
        REASSEMBLY_LANE_BYTES
    } else {
        lane
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unfinished_frames_of_a_peer_are_bounded() {
        for (peers, lanes, mib_in_quarters) in [
            (1, 1, 16),
            (1, 4, 16),
            (1, 8, 8),
            (1, 16, 4),
            (1, 255, 4),
            (10, 2, 16),
            (10, 16, 3),
            (1000, 1, 16),
            (1000, 16, 1),
        ] {
            let bytes = reassembly_bytes(peers, lanes);
            assert!(bytes <= mib_in_quarters << 18, "{peers} {lanes}: {bytes}");
            assert!(
                bytes > (mib_in_quarters - 1) << 18,
                "{peers} {lanes}: {bytes}"
            );
        }
    }
}
