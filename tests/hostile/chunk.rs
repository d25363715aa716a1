// SPDX-License-Identifier: MIT OR Apache-2.0
//! Chunks with any headers. Those of a datagram are laid end to end.

use patchcord::internals::wire::{
    chunk::{
        CHUNK_HEADER_LEN, CutFrame, FRAGMENT_HEADER_LEN, Fragment, OFFLOAD_HEADER_LEN,
        PARTIAL_CHECKSUM_HEADER_LEN, emit_fragment_header, emit_frame_header, emit_offload_header,
        emit_partial_checksum_header,
    },
    offload::{Checksum, Offload},
};

/// A whole frame.
pub(crate) fn frame(frame: &[u8]) -> Vec<u8> {
    let mut header = [0; CHUNK_HEADER_LEN];
    emit_frame_header(&mut header, frame.len() as u16);
    [&header[..], frame].concat()
}

/// A whole frame with a partial checksum, and where that is.
pub(crate) fn partial_checksum_frame(checksum: Checksum, frame: &[u8]) -> Vec<u8> {
    let mut header = [0; PARTIAL_CHECKSUM_HEADER_LEN];
    emit_partial_checksum_header(&mut header, checksum, frame.len() as u16);
    [&header[..], frame].concat()
}

/// A piece of a frame.
pub(crate) fn fragment(fragment: Fragment, piece: &[u8]) -> Vec<u8> {
    let mut header = [0; FRAGMENT_HEADER_LEN];
    emit_fragment_header(&mut header, fragment, piece.len() as u16);
    [&header[..], piece].concat()
}

/// The offload descriptor of a frame in pieces, and a copy of its headers.
pub(crate) fn offload(cut: CutFrame, offload: Offload, headers: &[u8]) -> Vec<u8> {
    let mut header = [0; OFFLOAD_HEADER_LEN];
    emit_offload_header(&mut header, cut, offload, headers.len() as u16);
    [&header[..], headers].concat()
}

/// The chunks of a frame in pieces of at most `piece_len` bytes, each for a datagram of its own: first
/// the offload chunk with `headers_len` bytes, if there is an offload.
pub(crate) fn cut(
    frame: &[u8],
    frame_id: u32,
    open: Option<(Offload, usize)>,
    piece_len: usize,
) -> Vec<Vec<u8>> {
    let total = frame.len() as u32;
    let described = open.map(|(description, headers_len)| {
        let cut = CutFrame { frame_id, total };
        offload(cut, description, &frame[..headers_len])
    });
    let begin = open.map_or(0, |(_, headers_len)| headers_len);
    let pieces = frame[begin..].chunks(piece_len).enumerate();
    let pieces = pieces.map(|(at, piece)| {
        let offset = (begin + at * piece_len) as u32;
        let place = Fragment {
            frame_id,
            total,
            offset,
        };
        fragment(place, piece)
    });
    described.into_iter().chain(pieces).collect()
}
