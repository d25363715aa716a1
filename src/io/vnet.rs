// SPDX-License-Identifier: MIT OR Apache-2.0
//! The header of a frame between the kernel and a TAP or a NIC, and the offloads that the kernel
//! may use.
//!
//! Layout and names only; `tap` reads and writes it, `pipeline` interprets it.

use std::fmt;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::sys::tun;

/// What the reader of a TAP accepts instead of finished frames of at most the MTU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offloads {
    /// Frames whose checksum is not complete ([`VnetHeader::NEEDS_CHECKSUM`]).
    pub checksum: bool,
    /// TCP super-frames of up to 64 KiB. Needs `checksum`.
    pub tcp: bool,
    /// UDP super-frames of up to 64 KiB. Needs `checksum`.
    pub udp: bool,
}

/// For logs: `checksum, tcp, udp`, or `none`.
impl fmt::Display for Offloads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { checksum, tcp, udp } = *self;
        let names = [(checksum, "checksum"), (tcp, "tcp"), (udp, "udp")];
        let on: Vec<_> = names.iter().filter(|(is_on, _)| *is_on).collect();
        let on: Vec<_> = on.iter().map(|(_, name)| *name).collect();
        match on.is_empty() {
            true => f.write_str("none"),
            false => f.write_str(&on.join(", ")),
        }
    }
}

impl Offloads {
    /// Finished frames only.
    pub const NONE: Self = Self {
        checksum: false,
        tcp: false,
        udp: false,
    };

    /// All that the kernel has.
    pub const ALL: Self = Self {
        checksum: true,
        tcp: true,
        udp: true,
    };

    pub(super) fn bits(self) -> u32 {
        let bit = |on, bits| if on { bits } else { 0 };
        bit(self.checksum, tun::OFFLOAD_CHECKSUM)
            | bit(self.tcp, tun::OFFLOAD_TSO)
            | bit(self.udp, tun::OFFLOAD_USO)
    }
}

/// The kernel's description of a frame beside its bytes: `struct virtio_net_hdr`, in the byte order
/// of this machine.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct VnetHeader {
    /// [`NEEDS_CHECKSUM`](Self::NEEDS_CHECKSUM), [`DATA_VALID`](Self::DATA_VALID).
    pub flags: u8,
    /// [`GSO_NONE`](Self::GSO_NONE) and following, and the bit [`GSO_ECN`](Self::GSO_ECN).
    pub gso_type: u8,
    /// Bytes of Ethernet, IP and transport header. Not to be trusted: the kernel may state more, or
    /// 0.
    pub hdr_len: u16,
    /// Payload bytes of each segment of a super-frame.
    pub gso_size: u16,
    /// Where the transport header starts, from the start of the frame.
    pub csum_start: u16,
    /// Where the checksum is, from `csum_start`.
    pub csum_offset: u16,
}

const _: () = assert!(size_of::<VnetHeader>() == 10);

impl VnetHeader {
    /// A finished frame.
    pub const NONE: Self = Self {
        flags: 0,
        gso_type: Self::GSO_NONE,
        hdr_len: 0,
        gso_size: 0,
        csum_start: 0,
        csum_offset: 0,
    };
    /// Of a frame that could not be read unchanged: describes none, whatever its bytes are.
    pub const BROKEN: Self = Self {
        gso_type: 0x7f,
        ..Self::NONE
    };
    /// In `flags`: the checksum field holds the pseudo-header's sum only.
    pub const NEEDS_CHECKSUM: u8 = 1;
    /// In `flags`: the checksum was verified.
    pub const DATA_VALID: u8 = 2;
    /// Not a super-frame.
    pub const GSO_NONE: u8 = 0;
    /// TCP over IPv4.
    pub const GSO_TCPV4: u8 = 1;
    /// TCP over IPv6.
    pub const GSO_TCPV6: u8 = 4;
    /// UDP over IPv4 or IPv6, in datagrams of `gso_size`.
    pub const GSO_UDP_L4: u8 = 5;
    /// A bit beside the TCP types: the first segment carries CWR.
    pub const GSO_ECN: u8 = 0x80;

    /// Bits beside the types: the described packet is in a tunnel over UDP and IPv4, or IPv6.
    /// Kernels since 6.17 set them for readers that ask for it, which this program does not.
    pub const GSO_TUNNEL: u8 = 0x20 | 0x40;

    /// Whether the frame is complete: not to be cut, its checksum finished.
    pub fn is_finished(&self) -> bool {
        self.gso_type == Self::GSO_NONE && self.flags & Self::NEEDS_CHECKSUM == 0
    }

    /// Describes the same frame with `bytes` more before its network header.
    pub(super) fn insert(&mut self, bytes: u16) {
        if self.flags & Self::NEEDS_CHECKSUM != 0 {
            self.csum_start = self.csum_start.saturating_add(bytes);
        }
        if self.gso_type != Self::GSO_NONE {
            self.hdr_len = self.hdr_len.saturating_add(bytes);
        }
    }
}
