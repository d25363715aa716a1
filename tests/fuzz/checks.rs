// SPDX-License-Identifier: MIT OR Apache-2.0
//! Properties of super-frames and of runs of their segments.

use patchcord::internals::{proto::superframe::Layout, wire::offload::Checksum};

use super::original::pseudo_header;

/// Whether the partial checksum of a frame of ours would be right when finished: it is the sum of a
/// pseudo-header that fits the rest.
pub fn has_right_pseudo_header(frame: &[u8], checksum: Checksum) -> bool {
    let start = usize::from(checksum.start);
    let network = if frame[12..14] == [0x81, 0x00] {
        18
    } else {
        14
    };
    let addresses = if frame[network] >> 4 == 4 {
        network + 12..network + 20
    } else {
        network + 8..network + 40
    };
    let protocol = if checksum.offset == 16 { 6 } else { 17 };
    let right = pseudo_header(&frame[addresses], protocol, frame.len() - start);
    let at = start + usize::from(checksum.offset);
    let found = u16::from_be_bytes([frame[at], frame[at + 1]]);
    // Both zeros of ones' complement are right.
    found % 0xffff == right % 0xffff
}

/// Whether two layouts put the same segments behind the same headers.
pub fn is_same(one: &Layout, other: &Layout) -> bool {
    let facts = |layout: &Layout| {
        let segments = layout.segments();
        let ends = (layout.payload(0..1), layout.payload(segments - 1..segments));
        (layout.headers_len(), layout.is_ipv6(), segments, ends)
    };
    facts(one) == facts(other)
}
