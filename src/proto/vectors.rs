// SPDX-License-Identifier: MIT OR Apache-2.0
//! The test vectors of PROTOCOL.md, in both directions: this code produces what the file says, and
//! reads it back. `scripts/vectors.py` computes the same file without this code.
#![cfg(test)]

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant, UNIX_EPOCH},
};

use patchcord_bridge::PortId;
use serde::Deserialize;
use zerocopy::{FromZeros, IntoBytes};

use super::{
    guard::Mac1Check,
    node::macs,
    reassembly::{Reassembly, Which},
    session::{Agreement, Role, Session},
    tai64n::tai64n,
    train::{Outgoing, PendingOffload, Pushed, Train},
};
use crate::{
    crypto::{
        aead::Cipher,
        keys::{PresharedKey, PrivateKey, PublicKey},
        mac,
        noise::{SplitKey, SplitKeys, with_ephemeral},
    },
    stats::DropReason,
    wire::{
        CookieReply, Counter, DATA_HEADER_LEN, DataHeader, Initiation, InitiationPayload, Lane,
        MessageType, Response, ResponsePayload, SessionIndex, TAG_LEN,
        chunk::{Chunk, Chunks, ControlChunk, CutFrame, Fragment, push_control},
        handshake::MacFields,
        offload::{Checksum, Offload, Segmentation, Transport},
    },
};

#[derive(Deserialize)]
struct Vectors {
    keys: Keys,
    timestamps: Vec<Timestamp>,
    handshakes: Vec<Handshake>,
    cookie: CookieExchange,
    split_key: Hex,
    lane_keys: Vec<LaneKeyVector>,
    datagrams: Vec<SealedDatagram>,
    packing: Vec<Packing>,
    reassembly: Vec<ReassemblyRun>,
    offloads: Vec<OffloadVector>,
}

#[derive(Deserialize)]
struct Keys {
    initiator_private: Hex,
    initiator_public: Hex,
    initiator_ephemeral: Hex,
    responder_private: Hex,
    responder_public: Hex,
    responder_ephemeral: Hex,
}

#[derive(Deserialize)]
struct Timestamp {
    seconds: u64,
    nanoseconds: u32,
    tai64n: Hex,
}

#[derive(Deserialize)]
struct Handshake {
    preshared_key: Option<Hex>,
    initiator_index: u32,
    responder_index: u32,
    offer: Offer,
    choice: Choice,
    initiation: Hex,
    response: Hex,
    initiator_to_responder: Hex,
    responder_to_initiator: Hex,
}

#[derive(Deserialize)]
struct Offer {
    timestamp: Hex,
    network_id: u32,
    ciphers: u8,
    flags: u8,
    lanes: u8,
    max_frame: u16,
}

#[derive(Deserialize)]
struct Choice {
    cipher: u8,
    lanes: u8,
    max_frame: u16,
}

#[derive(Deserialize)]
struct CookieExchange {
    secret: Hex,
    mac1_key: Hex,
    cookie_key: Hex,
    cookies: Vec<CookieVector>,
    initiation: Hex,
    nonce: Hex,
    cookie_reply: Hex,
    initiation_with_mac2: Hex,
}

#[derive(Deserialize)]
struct CookieVector {
    address: std::net::IpAddr,
    udp_port: u16,
    cookie: Hex,
}

#[derive(Deserialize)]
struct LaneKeyVector {
    cipher: u8,
    lane: u8,
    key: Hex,
}

#[derive(Deserialize)]
struct SealedDatagram {
    name: String,
    cipher: u8,
    #[serde(rename = "type")]
    message_type: u8,
    receiver: u32,
    lane: u8,
    sequence: u64,
    plaintext: Hex,
    datagram: Hex,
}

#[derive(Deserialize)]
struct Packing {
    name: String,
    cipher: u8,
    datagram_len: usize,
    frames: Vec<Hex>,
    datagrams: Vec<Hex>,
}

#[derive(Deserialize)]
struct ReassemblyRun {
    name: String,
    max_frame: u32,
    steps: Vec<ReassemblyStep>,
}

#[derive(Deserialize)]
struct ReassemblyStep {
    frame_id: u32,
    total: u32,
    offset: u32,
    piece: Hex,
    /// A frame, or the name of a reason; none when the frame is not complete.
    result: Option<String>,
}

#[derive(Deserialize)]
struct OffloadVector {
    name: String,
    datagram_len: usize,
    frame: Hex,
    offload: OffloadFields,
    datagrams: Vec<Hex>,
    fates: Vec<Fate>,
}

#[derive(Deserialize)]
struct OffloadFields {
    /// 0 for none.
    transport: u8,
    segment_size: u16,
    cwr: bool,
    checksum_start: u16,
    checksum_offset: u16,
    headers_len: usize,
}

/// The output when these datagrams are lost.
#[derive(Deserialize)]
struct Fate {
    lost: Vec<usize>,
    frames: Vec<OpenVector>,
}

#[derive(Deserialize)]
struct OpenVector {
    frame: Hex,
    offload: OffloadFields,
}

/// Bytes, written as two digits each.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
struct Hex(Vec<u8>);

impl TryFrom<String> for Hex {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let bytes = text.as_bytes().chunks(2).map(|pair| {
            let digits = str::from_utf8(pair).map_err(|error| error.to_string())?;
            u8::from_str_radix(digits, 16).map_err(|error| format!("{digits}: {error}"))
        });
        Ok(Self(bytes.collect::<Result<_, _>>()?))
    }
}

impl Hex {
    fn array<const N: usize>(&self) -> [u8; N] {
        self.0[..].try_into().unwrap()
    }

    fn private_key(&self) -> PrivateKey {
        PrivateKey::from_base64(&self.base64()).unwrap()
    }

    fn preshared_key(&self) -> PresharedKey {
        PresharedKey::from_base64(&self.base64()).unwrap()
    }

    fn base64(&self) -> String {
        use base64::{Engine, engine::general_purpose::STANDARD};
        STANDARD.encode(&self.0)
    }

    fn split_key(&self) -> SplitKey {
        SplitKey::from_bytes(self.array())
    }
}

impl Offer {
    fn payload(&self) -> InitiationPayload {
        let [_, network_id @ ..] = self.network_id.to_be_bytes();
        InitiationPayload {
            timestamp: self.timestamp.array(),
            network_id,
            ciphers: self.ciphers,
            flags: self.flags,
            lanes: self.lanes,
            max_frame: self.max_frame.into(),
            ..InitiationPayload::new_zeroed()
        }
    }
}

impl Choice {
    fn payload(&self) -> ResponsePayload {
        ResponsePayload {
            cipher: self.cipher,
            lanes: self.lanes,
            max_frame: self.max_frame.into(),
            ..ResponsePayload::new_zeroed()
        }
    }
}

impl OffloadFields {
    fn offload(&self) -> Offload {
        Offload {
            checksum: Checksum {
                start: self.checksum_start,
                offset: self.checksum_offset,
            },
            segmentation: Transport::from_number(self.transport).map(|transport| Segmentation {
                transport,
                size: self.segment_size,
                cwr: self.cwr,
            }),
        }
    }
}

fn vectors() -> Vectors {
    serde_json::from_str(include_str!("../../tests/vectors/v1.json")).unwrap()
}

/// A session whose two directions have the same key, so that it opens what it seals.
fn session(split_key: &Hex, cipher: u8, index: u32) -> Arc<Session> {
    let agreement = Agreement {
        local: SessionIndex::from_low_bits(index),
        remote: SessionIndex::from_low_bits(index),
        role: Role::Initiator,
        cipher: Cipher::from_bit(cipher).unwrap(),
        local_lanes: 16.into(),
        remote_lanes: 16.into(),
    };
    let keys = SplitKeys {
        seal: split_key.split_key(),
        open: split_key.split_key(),
    };
    let traffic = Arc::default();
    Arc::new(Session::new(
        agreement,
        &keys,
        PortId(1),
        Instant::now(),
        traffic,
    ))
}

#[test]
fn timestamps() {
    for vector in vectors().timestamps {
        let time = UNIX_EPOCH + Duration::new(vector.seconds, vector.nanoseconds);
        assert_eq!(tai64n(time), vector.tai64n.array(), "{}", vector.seconds);
    }
}

#[test]
fn handshakes() {
    let Vectors {
        keys, handshakes, ..
    } = vectors();
    let (alice, bob) = (
        keys.initiator_private.private_key(),
        keys.responder_private.private_key(),
    );
    assert_eq!(
        alice.public_key().as_bytes(),
        &keys.initiator_public.array()
    );
    assert_eq!(bob.public_key().as_bytes(), &keys.responder_public.array());
    for vector in handshakes {
        let psk = vector.preshared_key.as_ref().map(Hex::preshared_key);
        let sender = SessionIndex::from_low_bits(vector.initiator_index);
        let mut first = Initiation::new(sender, [0; _]);
        let mut initiator = with_ephemeral::start(
            &keys.initiator_ephemeral.array(),
            &alice,
            &bob.public_key(),
            psk.as_ref(),
            &vector.offer.payload(),
            &mut first.noise,
        );
        (first.mac1, first.mac2) = macs(&bob.public_key(), None, first.as_bytes());
        assert_eq!(Hex(first.as_bytes().to_vec()), vector.initiation);

        let parsed = Initiation::parse(&vector.initiation.0).unwrap();
        assert_eq!(
            MessageType::of(&vector.initiation.0),
            Ok(MessageType::Initiation)
        );
        assert_eq!(parsed.sender, sender);
        let ephemeral = keys.responder_ephemeral.array();
        let responder = with_ephemeral::read(&ephemeral, &bob, &parsed.noise).unwrap();
        assert_eq!(responder.initiator, alice.public_key());
        assert_eq!(responder.payload, vector.offer.payload());

        let index = SessionIndex::from_low_bits(vector.responder_index);
        let mut second = Response::new(sender, index, [0; _]);
        let choice = vector.choice.payload();
        let bobs = responder
            .respond(psk.as_ref(), &choice, &mut second.noise)
            .unwrap();
        (second.mac1, second.mac2) = macs(&alice.public_key(), None, second.as_bytes());
        assert_eq!(Hex(second.as_bytes().to_vec()), vector.response);

        let parsed = Response::parse(&vector.response.0).unwrap();
        assert_eq!(
            MessageType::of(&vector.response.0),
            Ok(MessageType::Response)
        );
        assert_eq!((parsed.receiver, parsed.sender), (sender, index));
        let (payload, alices) = initiator.finish(&parsed.noise).unwrap();
        assert_eq!(payload, choice);
        for (ours, theirs, expected) in [
            (&alices.seal, &bobs.open, vector.initiator_to_responder),
            (&alices.open, &bobs.seal, vector.responder_to_initiator),
        ] {
            assert_eq!(ours.as_bytes(), &expected.array());
            assert_eq!(theirs.as_bytes(), &expected.array());
        }
    }
}

#[test]
fn macs_and_cookies() {
    let Vectors { keys, cookie, .. } = vectors();
    let bob = PublicKey::from_bytes(keys.responder_public.array()).unwrap();
    assert_eq!(mac::mac1_key(&bob), cookie.mac1_key.array());
    assert_eq!(mac::cookie_key(&bob), cookie.cookie_key.array());
    for vector in &cookie.cookies {
        let from = SocketAddr::new(vector.address, vector.udp_port);
        let made = mac::cookie(&cookie.secret.array(), from);
        assert_eq!(made, vector.cookie.array(), "{from}");
    }

    let first_cookie = cookie.cookies[0].cookie.array();
    let initiation = Initiation::parse(&cookie.initiation.0).unwrap();
    let (nonce, key) = (cookie.nonce.array(), cookie.cookie_key.array());
    let sealed = mac::seal_cookie(&key, &nonce, &initiation.mac1, &first_cookie);
    let reply = CookieReply::new(initiation.sender, nonce, sealed);
    assert_eq!(Hex(reply.as_bytes().to_vec()), cookie.cookie_reply);

    let parsed = CookieReply::parse(&cookie.cookie_reply.0).unwrap();
    let opened = mac::open_cookie(&key, &parsed.nonce, &initiation.mac1, &parsed.sealed_cookie);
    assert_eq!(parsed.receiver, initiation.sender);
    assert_eq!(opened, Some(first_cookie));

    let mut again = initiation.clone();
    (again.mac1, again.mac2) = macs(&bob, Some(&first_cookie), initiation.as_bytes());
    assert_eq!(Hex(again.as_bytes().to_vec()), cookie.initiation_with_mac2);
    let check = Mac1Check::new(&bob);
    for message in [&cookie.initiation.0, &cookie.initiation_with_mac2.0] {
        assert_eq!(check.check(message), Ok(()));
    }
    let fields = MacFields::of(&cookie.initiation_with_mac2.0).unwrap();
    assert_eq!(mac::mac(&first_cookie, fields.before_mac2), fields.mac2);
}

#[test]
fn lane_keys() {
    let vectors = vectors();
    for vector in vectors.lane_keys {
        let cipher = Cipher::from_bit(vector.cipher).unwrap();
        let lane = Lane(vector.lane);
        let session = session(&vectors.split_key, vector.cipher, 1);
        let mut datagram = vec![0; DATA_HEADER_LEN + TAG_LEN];
        let counter = Counter::new(lane, 0);
        session.seal(MessageType::Chunks, counter, &mut datagram);
        assert!(
            is_sealed_with(&vector.key.0, cipher, counter, &mut datagram),
            "{cipher:?}, {lane:?}"
        );
    }
}

/// Whether the tag of `datagram` is by this key, for the library itself.
fn is_sealed_with(key: &[u8], cipher: Cipher, counter: Counter, datagram: &mut [u8]) -> bool {
    use aegis::aegis128x4::Aegis128X4;
    use aws_lc_rs::aead::{AES_256_GCM, Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};

    let (header, sealed) = datagram.split_at_mut(DATA_HEADER_LEN);
    let counter = counter.value().to_be_bytes();
    let algorithm = match cipher {
        Cipher::Aes256Gcm => &AES_256_GCM,
        Cipher::ChaCha20Poly1305 => &CHACHA20_POLY1305,
        Cipher::Aegis128X4 => {
            let (key, prefix) = key.split_first_chunk().unwrap();
            let nonce = [prefix, &counter].concat();
            let (sealed, tag) = sealed.split_last_chunk_mut::<TAG_LEN>().unwrap();
            let library = Aegis128X4::new(key, &nonce.try_into().unwrap());
            return library.decrypt_in_place(sealed, tag, header).is_ok();
        }
    };
    let nonce = Nonce::try_assume_unique_for_key(&[&[0; 4], &counter[..]].concat()).unwrap();
    let library = LessSafeKey::new(UnboundKey::new(algorithm, key).unwrap());
    let opened = library.open_in_place(nonce, Aad::from(&*header), sealed);
    opened.is_ok()
}

#[test]
fn datagrams() {
    let vectors = vectors();
    for vector in vectors.datagrams {
        let name = format!("{}, cipher {}", vector.name, vector.cipher);
        let session = session(&vectors.split_key, vector.cipher, vector.receiver);
        let message_type = MessageType::of(&vector.datagram.0).unwrap();
        assert_eq!(message_type as u8, vector.message_type, "{name}");
        let header = DataHeader::parse(&vector.datagram.0).unwrap();
        assert_eq!(header.receiver().value(), vector.receiver, "{name}");
        let counter = Counter::new(Lane(vector.lane), vector.sequence);
        assert_eq!(header.counter(), counter, "{name}");

        let mut datagram = [
            &[0; DATA_HEADER_LEN],
            &vector.plaintext.0[..],
            &[0; TAG_LEN],
        ]
        .concat();
        session.seal(message_type, counter, &mut datagram);
        assert_eq!(Hex(datagram), vector.datagram, "{name}");

        let mut datagram = vector.datagram.0.clone();
        let (opened, plaintext) = session.open(&mut datagram).unwrap();
        assert_eq!((opened, &*plaintext), (counter, &vector.plaintext.0[..]));
        for at in 0..vector.datagram.0.len() {
            let mut mangled = vector.datagram.0.clone();
            mangled[at] ^= 0x80;
            assert!(session.open(&mut mangled).is_err(), "{name}, byte {at}");
        }
    }
}

#[test]
fn packing() {
    let vectors = vectors();
    for vector in vectors.packing {
        let name = format!("{}, cipher {}", vector.name, vector.cipher);
        let session = session(&vectors.split_key, vector.cipher, 0xab_cdef);
        let mut train = Train::default();
        let to = "192.0.2.1:1".parse().unwrap();
        train.bind(&session, to, vector.datagram_len);
        for (frame_id, Hex(frame)) in (0..).zip(&vector.frames) {
            let mut outgoing = Outgoing::new(frame, frame_id, None);
            let pushed = train.push(Lane::FIRST_DATA, &mut outgoing);
            assert_eq!(pushed, Ok(Pushed::Done), "{name}");
        }
        train.close(Lane::FIRST_DATA).unwrap();
        train.seal();
        let datagrams: Vec<_> = train
            .runs()
            .flat_map(|(run, size)| run.chunks(size).map(|bytes| Hex(bytes.to_vec())))
            .collect();
        assert_eq!(datagrams, vector.datagrams, "{name}");
        assert_eq!(unpack(&session, &vector.datagrams), vector.frames, "{name}");
    }
}

fn unpack(session: &Session, datagrams: &[Hex]) -> Vec<Hex> {
    let mut reassembly = Reassembly::new(1522);
    let mut frames = Vec::new();
    for Hex(datagram) in datagrams {
        let message_type = MessageType::of(datagram).unwrap();
        let mut datagram = datagram.clone();
        let (_, plaintext) = session.open(&mut datagram).unwrap();
        if message_type == MessageType::Frame {
            frames.push(Hex(plaintext.to_vec()));
            continue;
        }
        for chunk in Chunks::new(plaintext) {
            match chunk.unwrap() {
                Chunk::Frame(frame) => frames.push(Hex(frame.to_vec())),
                Chunk::Fragment(fragment, piece) => {
                    reassembly.add(0, fragment, piece).unwrap();
                    let whole = reassembly.take_whole();
                    frames.extend(whole.map(|whole| Hex(whole.frame.to_vec())));
                }
                other => panic!("{other:?}"),
            }
        }
    }
    frames
}

#[test]
fn chunks() {
    let vectors = vectors();
    let plaintext_of = |name: &str| {
        let mut named = vectors.datagrams.iter().filter(|v| v.name == name);
        &named.next().unwrap().plaintext.0[..]
    };
    let frame = plaintext_of("one frame");
    let token = 0x0123_4567_89ab_cdef;
    let piece: Vec<u8> = (0..40).collect();
    let fragment = Fragment {
        frame_id: 0xdead_beef,
        total: 0x01_2345,
        offset: 0x01_0203,
    };
    let cut_frame = CutFrame {
        frame_id: fragment.frame_id,
        total: fragment.total,
    };
    let checksum = Checksum {
        start: 14,
        offset: 6,
    };
    let offload = Offload {
        checksum: Checksum {
            start: 34,
            offset: 16,
        },
        segmentation: Some(Segmentation {
            transport: Transport::Tcp,
            size: 1448,
            cwr: true,
        }),
    };
    for (name, expected) in [
        ("a fragment", &[Chunk::Fragment(fragment, &piece)][..]),
        (
            "a frame with a partial checksum",
            &[Chunk::PartialChecksum(checksum, frame)],
        ),
        (
            "what is open in a frame",
            &[Chunk::Offload(cut_frame, offload, &piece)],
        ),
        (
            "a chunk of a later version is skipped",
            &[Chunk::Frame(frame)],
        ),
        (
            "echo request, padded",
            &[Chunk::Control(ControlChunk::EchoRequest { token })],
        ),
        (
            "echo reply",
            &[Chunk::Control(ControlChunk::EchoReply { token })],
        ),
        ("close", &[Chunk::Control(ControlChunk::Close)]),
        ("nothing but a tag", &[]),
    ] {
        let parsed: Result<Vec<_>, _> = Chunks::new(plaintext_of(name)).collect();
        assert_eq!(parsed.as_deref(), Ok(expected), "{name}");
        let mut emitted = Vec::new();
        for &chunk in expected {
            if let Chunk::Control(chunk) = chunk {
                push_control(&mut emitted, chunk);
            }
        }
        assert!(plaintext_of(name).starts_with(&emitted), "{name}");
    }
}

#[test]
fn reassembly() {
    for vector in vectors().reassembly {
        let mut reassembly = Reassembly::new(vector.max_frame);
        for (number, step) in (1..).zip(&vector.steps) {
            let fragment = Fragment {
                frame_id: step.frame_id,
                total: step.total,
                offset: step.offset,
            };
            let result = match reassembly.add(0, fragment, &step.piece.0) {
                Ok(_) => reassembly
                    .take_whole()
                    .map(|whole| Hex(whole.frame.to_vec())),
                Err(reason) => {
                    let named = step.result.as_deref();
                    assert_eq!(named, Some(reason.name()), "{}, {number}", vector.name);
                    continue;
                }
            };
            let expected = step.result.clone().map(|text| Hex::try_from(text).unwrap());
            assert_eq!(result, expected, "{}, step {number}", vector.name);
        }
    }
    assert_eq!(DropReason::Malformed.name(), "malformed");
}

#[test]
fn offloads() {
    let vectors = vectors();
    for vector in vectors.offloads {
        let name = &vector.name;
        let session = session(&vectors.split_key, 1, 0xab_cdef);
        let mut train = Train::default();
        let to = "192.0.2.1:1".parse().unwrap();
        train.bind(&session, to, vector.datagram_len);
        let pending = PendingOffload {
            offload: vector.offload.offload(),
            headers_len: vector.offload.headers_len,
        };
        let mut outgoing = Outgoing::new(&vector.frame.0, 0, Some(pending));
        let pushed = train.push(Lane::FIRST_DATA, &mut outgoing);
        assert_eq!(pushed, Ok(Pushed::Done), "{name}");
        train.close(Lane::FIRST_DATA).unwrap();
        train.seal();
        let datagrams: Vec<_> = train
            .runs()
            .flat_map(|(run, size)| run.chunks(size).map(|bytes| Hex(bytes.to_vec())))
            .collect();
        assert_eq!(datagrams, vector.datagrams, "{name}");

        for fate in vector.fates {
            let arrived = (0..).zip(&vector.datagrams);
            let arrived = arrived.filter(|(number, _)| !fate.lost.contains(number));
            let frames = receive(&session, arrived.map(|(_, datagram)| datagram));
            let expected = fate.frames.into_iter();
            let expected: Vec<_> = expected
                .map(|pending| (pending.frame, pending.offload.offload()))
                .collect();
            assert_eq!(frames, expected, "{name} without {:?}", fate.lost);
        }
    }
}

/// The output, and its pending offload.
fn receive<'a>(session: &Session, datagrams: impl Iterator<Item = &'a Hex>) -> Vec<(Hex, Offload)> {
    let mut reassembly = Reassembly::new(1522);
    let mut frames = Vec::new();
    for Hex(datagram) in datagrams {
        let mut datagram = datagram.clone();
        let (counter, plaintext) = session.open(&mut datagram).unwrap();
        let sequence = counter.sequence();
        for chunk in Chunks::new(plaintext) {
            match chunk.unwrap() {
                Chunk::PartialChecksum(checksum, frame) => {
                    let offload = Offload {
                        checksum,
                        segmentation: None,
                    };
                    frames.push((Hex(frame.to_vec()), offload));
                }
                Chunk::Fragment(fragment, piece) => {
                    reassembly.add(sequence, fragment, piece).unwrap();
                }
                Chunk::Offload(frame, offload, head) => {
                    reassembly.describe(sequence, frame, offload, head).unwrap();
                }
                other => panic!("{other:?}"),
            }
            let whole = reassembly.take_whole();
            frames.extend(whole.map(|it| (Hex(it.frame.to_vec()), it.offload.unwrap())));
        }
    }
    while let Some(run) = reassembly.poll_run(Which::All) {
        let frame = [run.headers, run.payload].concat();
        frames.push((Hex(frame), run.offload));
    }
    frames
}
