// SPDX-License-Identifier: MIT OR Apache-2.0
//! Any bytes as a datagram, and as the plaintext of one.
#![no_main]

use libfuzzer_sys::fuzz_target;
use patchcord::internals::wire::{
    CookieReply, DATA_OVERHEAD, DataHeader, Initiation, MessageType, Response, SessionIndex,
    chunk::{CHUNK_HEADER_LEN, Chunk, Chunks, OFFLOAD_HEADER_LEN, emit_offload_header},
    handshake::{COOKIE_REPLY_LEN, INITIATION_LEN, RESPONSE_LEN},
};
use zerocopy::IntoBytes;

fuzz_target!(|bytes: &[u8]| {
    let message_type = MessageType::of(bytes);
    assert_eq!(message_type.is_ok(), matches!(bytes, [0x11..=0x15, ..]));

    if let Ok(header) = DataHeader::parse(bytes) {
        assert!(bytes.len() >= DATA_OVERHEAD);
        assert_eq!(header.as_bytes(), &bytes[..12]);
        assert!(header.receiver().value() < 1 << 24);
        assert_eq!(
            u64::from(header.counter().lane().0),
            header.counter().value() >> 56
        );
    }
    if let Ok(message) = Initiation::parse(bytes) {
        assert_eq!((bytes.len(), message.as_bytes()), (INITIATION_LEN, bytes));
    }
    if let Ok(message) = Response::parse(bytes) {
        assert_eq!((bytes.len(), message.as_bytes()), (RESPONSE_LEN, bytes));
    }
    if let Ok(message) = CookieReply::parse(bytes) {
        assert_eq!((bytes.len(), message.as_bytes()), (COOKIE_REPLY_LEN, bytes));
        assert_eq!(
            message.receiver,
            SessionIndex::from_low_bits(message.receiver.value())
        );
    }
    walk(bytes);
});

/// Every body lies in the datagram, behind the previous one and its own header.
fn walk(plaintext: &[u8]) {
    let mut behind = plaintext.as_ptr() as usize;
    let end = behind + plaintext.len();
    let mut count = 0;
    for chunk in Chunks::new(plaintext) {
        count += 1;
        if let Ok(Chunk::Offload(frame, offload, head)) = chunk {
            let mut header = [0; OFFLOAD_HEADER_LEN];
            emit_offload_header(&mut header, frame, offload, head.len() as u16);
            let emitted = [&header[..], head].concat();
            assert_eq!(Chunks::new(&emitted).next(), Some(chunk));
        }
        let Ok(
            Chunk::Frame(body)
            | Chunk::Fragment(_, body)
            | Chunk::PartialChecksum(_, body)
            | Chunk::Offload(_, _, body),
        ) = chunk
        else {
            continue;
        };
        let begin = body.as_ptr() as usize;
        assert!(begin >= behind + CHUNK_HEADER_LEN && begin + body.len() <= end);
        behind = begin + body.len();
    }
    assert!(count <= plaintext.len() / CHUNK_HEADER_LEN + 1);
}
