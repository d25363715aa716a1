// SPDX-License-Identifier: MIT OR Apache-2.0
//! The layout of a probe.

use super::verdict::NodeId;
use crate::ethernet::{Headers, Payload};
use crate::inspect::{PROBE_ETHER_TYPE, PROBE_GROUP};
use crate::port_id::PortId;
use crate::vlan::Vid;

/// The fields of a probe.
///
/// ```text
///  0       1       2      4     6         14         18        20
///  | ver 1 | flags | port | vid | node id | sequence | changes | tag (16) | padding
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Message {
    pub(super) node: NodeId,
    pub(super) sequence: u32,
    pub(super) port: PortId,
    pub(super) vid: Vid,
    /// The sender has seen a loop and not yet cut it.
    pub(super) contends: bool,
    /// It left by a port that the sender has blocked, and may arrive by two paths though the loop
    /// is cut.
    pub(super) is_trial: bool,
    /// How often the sender has blocked or unblocked a port.
    pub(super) changes: u16,
}

impl Message {
    pub(super) const LEN: usize = 20;
    const VERSION: u8 = 1;
    const CONTENDS: u8 = 1;
    const TRIAL: u8 = 2;

    pub(super) fn emit(&self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[0] = Self::VERSION;
        bytes[1] = u8::from(self.contends) * Self::CONTENDS + u8::from(self.is_trial) * Self::TRIAL;
        bytes[2..4].copy_from_slice(&self.port.0.to_be_bytes());
        bytes[4..6].copy_from_slice(&self.vid.value().to_be_bytes());
        bytes[6..14].copy_from_slice(&self.node.0.to_be_bytes());
        bytes[14..18].copy_from_slice(&self.sequence.to_be_bytes());
        bytes[18..20].copy_from_slice(&self.changes.to_be_bytes());
        bytes
    }

    pub(super) fn parse(frame: &[u8]) -> Option<Self> {
        let bytes = Self::body(frame)?.first_chunk::<{ Self::LEN }>()?;
        let [version, flags, p0, p1, v0, v1, rest @ ..] = bytes;
        let (node, rest) = rest.split_first_chunk()?;
        let (sequence, rest) = rest.split_first_chunk()?;
        let (changes, _) = rest.split_first_chunk()?;
        if *version != Self::VERSION {
            return None;
        }
        Some(Self {
            node: NodeId(u64::from_be_bytes(*node)),
            sequence: u32::from_be_bytes(*sequence),
            port: PortId(u16::from_be_bytes([*p0, *p1])),
            vid: Vid::new(u16::from_be_bytes([*v0, *v1]))?,
            contends: flags & Self::CONTENDS != 0,
            is_trial: flags & Self::TRIAL != 0,
            changes: u16::from_be_bytes(*changes),
        })
    }

    /// The bytes behind the EtherType of a probe.
    pub(super) fn body(frame: &[u8]) -> Option<&[u8]> {
        let headers = Headers::parse(frame).ok()?;
        match headers.payload()? {
            Payload::Typed(PROBE_ETHER_TYPE, body) if headers.dst().0 == PROBE_GROUP => Some(body),
            _ => None,
        }
    }
}
