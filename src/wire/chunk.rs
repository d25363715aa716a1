// SPDX-License-Identifier: MIT OR Apache-2.0
//! Chunks: the plaintext of a sealed datagram of type [`Chunks`](super::MessageType::Chunks)
//! (PROTOCOL.md, "Chunks").
//!
//! A chunk is a kind, a length and a body; kinds that this version does not know are skipped, so
//! later versions can add some. Kind 0 ends the sequence: the rest of the datagram is padding.

use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
    big_endian::{U16, U32, U64},
};

use super::{
    message::size_must_be,
    offload::{Checksum, Offload, Segmentation, Transport},
};
use crate::stats::DropReason;

/// Bytes before a chunk's body.
pub const CHUNK_HEADER_LEN: usize = size_must_be::<ChunkHeader>(3);
/// Bytes before the piece of a frame in a fragment chunk.
pub const FRAGMENT_HEADER_LEN: usize = CHUNK_HEADER_LEN + size_must_be::<FragmentHeader>(10);
/// Bytes before the frame in a chunk of a frame with a partial checksum.
pub const PARTIAL_CHECKSUM_HEADER_LEN: usize =
    CHUNK_HEADER_LEN + size_must_be::<PartialChecksumHeader>(4);
/// Bytes before the copied headers in an offload chunk.
pub const OFFLOAD_HEADER_LEN: usize = CHUNK_HEADER_LEN + size_must_be::<OffloadHeader>(14);
/// Bytes of an echo request or reply chunk.
pub const ECHO_LEN: usize = CHUNK_HEADER_LEN + size_must_be::<U64>(8);

const PADDING: u8 = 0;
const FRAME: u8 = 1;
const FRAGMENT: u8 = 2;
const PARTIAL_CHECKSUM: u8 = 3;
const OFFLOAD: u8 = 4;
const ECHO_REQUEST: u8 = 16;
const ECHO_REPLY: u8 = 17;
const CLOSE: u8 = 18;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct ChunkHeader {
    kind: u8,
    len: U16,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct FragmentHeader {
    frame_id: U32,
    total: [u8; 3],
    offset: [u8; 3],
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct PartialChecksumHeader {
    checksum_start: U16,
    checksum_offset: U16,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct OffloadHeader {
    frame_id: U32,
    total: [u8; 3],
    /// 0, or the transport protocol and [`CWR`].
    segmentation: u8,
    segment_size: U16,
    checksum_start: U16,
    checksum_offset: U16,
}

/// In `OffloadHeader::segmentation`: only the first segment has the TCP flag CWR.
const CWR: u8 = 0x80;

/// Where a piece of a frame belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment {
    /// Number of the frame, unique among the unfinished ones of a lane.
    pub frame_id: u32,
    /// Bytes of the whole frame, at most 2^24 - 1.
    pub total: u32,
    /// Where the piece starts in the frame.
    pub offset: u32,
}

/// A frame that arrives in pieces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CutFrame {
    /// As in [`Fragment`].
    pub frame_id: u32,
    /// As in [`Fragment`].
    pub total: u32,
}

/// One parsed chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chunk<'a> {
    /// A whole Ethernet frame.
    Frame(&'a [u8]),
    /// A piece of a frame that did not fit.
    Fragment(Fragment, &'a [u8]),
    /// A whole Ethernet frame with a partial checksum.
    PartialChecksum(Checksum, &'a [u8]),
    /// The pending offload of a frame that arrives in fragments, and a copy of its first bytes,
    /// which are in none of them.
    Offload(CutFrame, Offload, &'a [u8]),
    /// For the node itself; on the control lane only.
    Control(ControlChunk),
}

/// A chunk of the control lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ControlChunk {
    /// Wants an [`EchoReply`](Self::EchoReply) with the same token; padding may follow to probe the
    /// path MTU.
    EchoRequest {
        /// Chosen by the sender.
        token: u64,
    },
    /// Answers an echo request.
    EchoReply {
        /// Copied from the request.
        token: u64,
    },
    /// The sender stops; its sessions end now.
    Close,
}

fn u24(value: u32) -> [u8; 3] {
    let [_, a, b, c] = value.to_be_bytes();
    [a, b, c]
}

fn from_u24([a, b, c]: [u8; 3]) -> u32 {
    u32::from_be_bytes([0, a, b, c])
}

/// Writes the header of a frame chunk; the frame of `len` bytes follows.
pub fn emit_frame_header(out: &mut [u8; CHUNK_HEADER_LEN], len: u16) {
    out.copy_from_slice(
        ChunkHeader {
            kind: FRAME,
            len: U16::new(len),
        }
        .as_bytes(),
    );
}

/// Writes the header of a fragment chunk; a piece of `len` bytes follows.
pub fn emit_fragment_header(out: &mut [u8; FRAGMENT_HEADER_LEN], fragment: Fragment, len: u16) {
    let body_len = len + (FRAGMENT_HEADER_LEN - CHUNK_HEADER_LEN) as u16;
    let (chunk, body) = out.split_at_mut(CHUNK_HEADER_LEN);
    chunk.copy_from_slice(
        ChunkHeader {
            kind: FRAGMENT,
            len: U16::new(body_len),
        }
        .as_bytes(),
    );
    let header = FragmentHeader {
        frame_id: U32::new(fragment.frame_id),
        total: u24(fragment.total),
        offset: u24(fragment.offset),
    };
    body.copy_from_slice(header.as_bytes());
}

/// Writes the header of a partial-checksum chunk; the frame of `len` bytes follows.
pub fn emit_partial_checksum_header(
    out: &mut [u8; PARTIAL_CHECKSUM_HEADER_LEN],
    checksum: Checksum,
    len: u16,
) {
    let body_len = len + (PARTIAL_CHECKSUM_HEADER_LEN - CHUNK_HEADER_LEN) as u16;
    let (chunk, body) = out.split_at_mut(CHUNK_HEADER_LEN);
    chunk.copy_from_slice(
        ChunkHeader {
            kind: PARTIAL_CHECKSUM,
            len: U16::new(body_len),
        }
        .as_bytes(),
    );
    let header = PartialChecksumHeader {
        checksum_start: U16::new(checksum.start),
        checksum_offset: U16::new(checksum.offset),
    };
    body.copy_from_slice(header.as_bytes());
}

/// Writes the header of an offload chunk; the first `len` bytes of the frame follow.
pub fn emit_offload_header(
    out: &mut [u8; OFFLOAD_HEADER_LEN],
    CutFrame { frame_id, total }: CutFrame,
    Offload {
        checksum,
        segmentation,
    }: Offload,
    len: u16,
) {
    let body_len = len + (OFFLOAD_HEADER_LEN - CHUNK_HEADER_LEN) as u16;
    let (chunk, body) = out.split_at_mut(CHUNK_HEADER_LEN);
    chunk.copy_from_slice(
        ChunkHeader {
            kind: OFFLOAD,
            len: U16::new(body_len),
        }
        .as_bytes(),
    );
    let (kind, size) = match segmentation {
        None => (0, 0),
        Some(Segmentation {
            transport,
            size,
            cwr,
        }) => (transport as u8 | if cwr { CWR } else { 0 }, size),
    };
    let header = OffloadHeader {
        frame_id: U32::new(frame_id),
        total: u24(total),
        segmentation: kind,
        segment_size: U16::new(size),
        checksum_start: U16::new(checksum.start),
        checksum_offset: U16::new(checksum.offset),
    };
    body.copy_from_slice(header.as_bytes());
}

fn parse_offload(body: &[u8]) -> Result<Chunk<'_>, DropReason> {
    let (header, copied) =
        OffloadHeader::ref_from_prefix(body).map_err(|_| DropReason::Malformed)?;
    let segmentation = match header.segmentation & !CWR {
        0 => None,
        kind => Some(Segmentation {
            transport: Transport::from_number(kind).ok_or(DropReason::Malformed)?,
            size: header.segment_size.get(),
            cwr: header.segmentation & CWR != 0,
        }),
    };
    let offload = Offload {
        checksum: Checksum {
            start: header.checksum_start.get(),
            offset: header.checksum_offset.get(),
        },
        segmentation,
    };
    let frame = CutFrame {
        frame_id: header.frame_id.get(),
        total: from_u24(header.total),
    };
    Ok(Chunk::Offload(frame, offload, copied))
}

/// Appends a control chunk.
pub fn push_control(out: &mut Vec<u8>, chunk: ControlChunk) {
    let mut push = |kind, body: &[u8]| {
        out.extend_from_slice(
            ChunkHeader {
                kind,
                len: U16::new(body.len() as u16),
            }
            .as_bytes(),
        );
        out.extend_from_slice(body);
    };
    match chunk {
        ControlChunk::EchoRequest { token } => push(ECHO_REQUEST, U64::new(token).as_bytes()),
        ControlChunk::EchoReply { token } => push(ECHO_REPLY, U64::new(token).as_bytes()),
        ControlChunk::Close => push(CLOSE, &[]),
    }
}

/// Iterates over the chunks of a decrypted datagram; ends after the first malformed one.
#[derive(Clone, Debug)]
pub struct Chunks<'a> {
    rest: &'a [u8],
}

impl<'a> Chunks<'a> {
    /// The chunks of `plaintext`.
    pub fn new(plaintext: &'a [u8]) -> Self {
        Self { rest: plaintext }
    }

    fn split(&mut self) -> Result<Option<(u8, &'a [u8])>, DropReason> {
        if self.rest.first().is_none_or(|&kind| kind == PADDING) {
            return Ok(None);
        }
        let (header, rest) =
            ChunkHeader::ref_from_prefix(self.rest).map_err(|_| DropReason::Malformed)?;
        let (body, rest) = rest
            .split_at_checked(header.len.get().into())
            .ok_or(DropReason::Malformed)?;
        self.rest = rest;
        Ok(Some((header.kind, body)))
    }
}

impl<'a> Iterator for Chunks<'a> {
    type Item = Result<Chunk<'a>, DropReason>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let parsed = match self.split() {
                Ok(None) => return None,
                Ok(Some((kind, body))) => parse(kind, body).transpose(),
                Err(reason) => Some(Err(reason)),
            };
            if let Some(Err(_)) = parsed {
                self.rest = &[];
            }
            if parsed.is_some() {
                return parsed;
            }
        }
    }
}

/// `Ok(None)` for a kind of a later version.
fn parse(kind: u8, body: &[u8]) -> Result<Option<Chunk<'_>>, DropReason> {
    let token = || match U64::ref_from_prefix(body) {
        Ok((token, _)) => Ok(token.get()),
        Err(_) => Err(DropReason::Malformed),
    };
    Ok(Some(match kind {
        FRAME => Chunk::Frame(body),
        FRAGMENT => {
            let (header, piece) =
                FragmentHeader::ref_from_prefix(body).map_err(|_| DropReason::Malformed)?;
            let fragment = Fragment {
                frame_id: header.frame_id.get(),
                total: from_u24(header.total),
                offset: from_u24(header.offset),
            };
            Chunk::Fragment(fragment, piece)
        }
        PARTIAL_CHECKSUM => {
            let (header, frame) =
                PartialChecksumHeader::ref_from_prefix(body).map_err(|_| DropReason::Malformed)?;
            let checksum = Checksum {
                start: header.checksum_start.get(),
                offset: header.checksum_offset.get(),
            };
            Chunk::PartialChecksum(checksum, frame)
        }
        OFFLOAD => parse_offload(body)?,
        ECHO_REQUEST => Chunk::Control(ControlChunk::EchoRequest { token: token()? }),
        ECHO_REPLY => Chunk::Control(ControlChunk::EchoReply { token: token()? }),
        CLOSE => Chunk::Control(ControlChunk::Close),
        _ => return Ok(None),
    }))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame_chunk(frame: &[u8]) -> Vec<u8> {
        let mut header = [0; CHUNK_HEADER_LEN];
        emit_frame_header(&mut header, frame.len() as u16);
        [&header[..], frame].concat()
    }

    fn fragment_chunk(fragment: Fragment, piece: &[u8]) -> Vec<u8> {
        let mut header = [0; FRAGMENT_HEADER_LEN];
        emit_fragment_header(&mut header, fragment, piece.len() as u16);
        [&header[..], piece].concat()
    }

    fn open_frame_chunk(checksum: Checksum, frame: &[u8]) -> Vec<u8> {
        let mut header = [0; PARTIAL_CHECKSUM_HEADER_LEN];
        emit_partial_checksum_header(&mut header, checksum, frame.len() as u16);
        [&header[..], frame].concat()
    }

    fn offload_chunk(frame: CutFrame, offload: Offload, head: &[u8]) -> Vec<u8> {
        let mut header = [0; OFFLOAD_HEADER_LEN];
        emit_offload_header(&mut header, frame, offload, head.len() as u16);
        [&header[..], head].concat()
    }

    #[test]
    fn chunks_come_back_in_order_and_padding_ends_them() {
        let fragment = Fragment {
            frame_id: 7,
            total: 70_000,
            offset: 65_600,
        };
        let mut plaintext = frame_chunk(b"frame");
        plaintext.extend(fragment_chunk(fragment, b"piece"));
        let controls = [
            ControlChunk::EchoRequest { token: 1 },
            ControlChunk::EchoReply { token: 2 },
            ControlChunk::Close,
        ];
        for control in controls {
            push_control(&mut plaintext, control);
        }
        plaintext.extend([0, 1, 2, 3]);
        let parsed: Vec<_> = Chunks::new(&plaintext).map(Result::unwrap).collect();
        let frames = [Chunk::Frame(b"frame"), Chunk::Fragment(fragment, b"piece")];
        assert_eq!(
            parsed,
            [&frames[..], &controls.map(Chunk::Control)].concat()
        );
    }

    #[test]
    fn unknown_kinds_are_skipped_and_broken_ones_end_the_sequence() {
        let mut plaintext = vec![0x70, 0, 2, 9, 9];
        plaintext.extend(frame_chunk(b"x"));
        assert_eq!(
            Chunks::new(&plaintext).collect::<Vec<_>>(),
            [Ok(Chunk::Frame(b"x"))]
        );

        for broken in [
            &[FRAME][..],
            &[FRAME, 0],
            &[FRAME, 0, 2, 1],
            &[FRAGMENT, 0, 3, 1, 2, 3],
            &[PARTIAL_CHECKSUM, 0, 3, 0, 34, 0],
            &[OFFLOAD, 0, 13, 0, 0, 0, 1, 0, 0, 60, 0, 0, 0, 0, 34, 0],
            // A transport that does not exist.
            &[OFFLOAD, 0, 14, 0, 0, 0, 1, 0, 0, 60, 3, 0, 9, 0, 34, 0, 16],
            &[ECHO_REQUEST, 0, 1, 1],
        ] {
            let parsed: Vec<_> = Chunks::new(broken).collect();
            assert_eq!(parsed, [Err(DropReason::Malformed)], "{broken:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_parse_without_panic(plaintext: Vec<u8>) {
            let total: usize = Chunks::new(&plaintext)
                .map(|chunk| match chunk {
                    Ok(
                        Chunk::Frame(body)
                        | Chunk::Fragment(_, body)
                        | Chunk::PartialChecksum(_, body)
                        | Chunk::Offload(.., body),
                    ) => body.len(),
                    _ => 0,
                })
                .sum();
            prop_assert!(total <= plaintext.len());
        }

        #[test]
        fn a_pending_offload_survives_the_wire(
            frame_id: u32,
            total in 0..1_u32 << 24,
            checksum in (any::<u16>(), any::<u16>()),
            segmentation in prop::option::of((any::<bool>(), any::<u16>(), any::<bool>())),
            bytes in prop::collection::vec(any::<u8>(), 0..300),
        ) {
            let checksum = Checksum { start: checksum.0, offset: checksum.1 };
            let segmentation = segmentation.map(|(is_tcp, size, cwr)| Segmentation {
                transport: if is_tcp { Transport::Tcp } else { Transport::Udp },
                size,
                cwr,
            });
            let (frame, offload) = (CutFrame { frame_id, total }, Offload { checksum, segmentation });
            let mut plaintext = offload_chunk(frame, offload, &bytes);
            plaintext.extend(open_frame_chunk(checksum, &bytes));
            let parsed: Vec<_> = Chunks::new(&plaintext).collect();
            let expected = [
                Ok(Chunk::Offload(frame, offload, &bytes[..])),
                Ok(Chunk::PartialChecksum(checksum, &bytes)),
            ];
            prop_assert_eq!(parsed, expected);
        }

        #[test]
        fn fragments_survive_the_wire(
            frame_id: u32,
            total in 0..1_u32 << 24,
            offset in 0..1_u32 << 24,
            piece in proptest::collection::vec(any::<u8>(), 0..300),
        ) {
            let fragment = Fragment { frame_id, total, offset };
            let plaintext = fragment_chunk(fragment, &piece);
            let parsed: Vec<_> = Chunks::new(&plaintext).collect();
            prop_assert_eq!(parsed, [Ok(Chunk::Fragment(fragment, &piece[..]))]);
        }
    }
}
