// SPDX-License-Identifier: MIT OR Apache-2.0
//! Explicit congestion notification (RFC 3168): the mark, and which senders react to a loss
//! instead.

use patchcord_bridge::{checksum, ether_type, ethernet::Network, ip_protocol::TCP};

use super::field::{put, read};

/// Whether the sender of a frame that is no super-frame reacts to its loss.
pub(crate) fn heeds_loss(frame: &[u8], network: Option<Network>) -> bool {
    let protocol_at = match network {
        Some(Network {
            ether_type: ether_type::IPV4,
            at,
        }) => at + 9,
        Some(Network {
            ether_type: ether_type::IPV6,
            at,
        }) => at + 6,
        _ => return false,
    };
    frame.get(protocol_at) == Some(&TCP)
}

/// Sets "congestion experienced" (RFC 3168) in a frame whose sender supports it. False, without
/// effect, for every other frame.
pub(crate) fn mark_congestion(frame: &mut [u8], network: Option<Network>) -> bool {
    const CE: u8 = 3;
    let Some(Network {
        ether_type,
        at: network,
    }) = network
    else {
        return false;
    };
    let Some(Some(words)) = frame.get(network..).map(<[u8]>::first_chunk::<20>) else {
        return false;
    };
    match ether_type {
        ether_type::IPV4 if words[0] >> 4 == 4 && words[1] & CE != 0 => {
            let before = read(frame, network);
            let after = before | u16::from(CE);
            put(frame, network, after);
            // RFC 1624, equation 3.
            let checksum = read(frame, network + 10);
            let sum = u64::from(!checksum) + u64::from(!before) + u64::from(after);
            put(frame, network + 10, checksum::finish(sum));
            true
        }
        ether_type::IPV6 if words[0] >> 4 == 6 && words[1] >> 4 & CE != 0 => {
            frame[network + 1] |= CE << 4;
            true
        }
        _ => false,
    }
}
