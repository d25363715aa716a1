// SPDX-License-Identifier: MIT OR Apache-2.0
//! An ended connection leaves no key in memory: a later reader of the memory can decrypt no recording.
//!
//! This program starts itself again. The child makes handshakes and lanes, sends the parent their keys
//! under a mask (so that this leaves no copy), and waits: once with all of it alive, once after it has
//! ended. The parent looks for the keys in the child's memory, and for the values from which they
//! derive.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::{
    fs::File,
    io::{BufRead, BufReader, Write},
    os::unix::fs::FileExt,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use blake2::{Blake2s256, Digest};
use patchcord::{
    internals::{
        crypto::{
            aead::{Cipher, LaneKey},
            noise::{Initiator, Responder, SplitKey},
        },
        wire::{
            Counter, Initiation, InitiationPayload, Lane, Response, ResponsePayload, SessionIndex,
        },
    },
    keys::{PresharedKey, PrivateKey},
};
use zerocopy::FromZeros;

const MASK: u8 = 0x5a;
const CHILD: &str = "--child";
/// As many as in ten minutes of a connection.
const HANDSHAKES: usize = 5;

fn main() {
    if std::env::args().any(|argument| argument == CHILD) {
        return child();
    }
    let mut child = Command::new(std::env::current_exe().unwrap())
        .arg(CHILD)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let keys: Vec<_> = (0..2 * HANDSHAKES)
        .map(|_| unmasked(&lines.next().unwrap().unwrap()))
        .collect();

    assert_eq!(lines.next().unwrap().unwrap(), "alive");
    let alive = Memory::of(&child);
    for pair in keys.chunks(2) {
        assert!(alive.holds(&pair[0]), "the search finds what is there");
        assert!(alive.holds(&pair[1]), "the search finds what is there");
        for (cipher, lane) in lanes().filter(|(cipher, _)| *cipher == Cipher::Aegis128X4) {
            let key = lane_key(&pair[0], cipher, lane);
            assert!(alive.holds(&key), "the search finds {cipher:?}, {lane:?}");
        }
    }
    let last = &keys[2 * HANDSHAKES - 2..];
    assert!(
        alive.holds_origin(&last[0]),
        "the search finds a chaining key"
    );

    child.stdin.as_mut().unwrap().write_all(b"end\n").unwrap();
    assert_eq!(lines.next().unwrap().unwrap(), "ended");
    let ended = Memory::of(&child);
    for (number, pair) in keys.chunks(2).enumerate() {
        for key in pair {
            assert!(!ended.holds(key), "a key of handshake {number}");
        }
        assert!(!ended.holds_origin(&pair[0]), "the chaining key {number}");
        for (cipher, lane) in lanes() {
            let key = lane_key(&pair[0], cipher, lane);
            assert!(!ended.holds(&key), "{cipher:?}, {lane:?} of {number}");
        }
    }
    drop(child.stdin.take());
    assert!(child.wait().unwrap().success());
    println!("test keys_of_what_has_ended_are_gone ... ok");
}

/// A handshake with itself, as between the two nodes of a tunnel, and lanes under its keys.
fn child() {
    let (alice, bob) = (PrivateKey::generate(), PrivateKey::generate());
    let psk = PresharedKey::generate();
    let mut alive = Vec::new();
    for _ in 0..HANDSHAKES {
        let mut offer = InitiationPayload::new_zeroed();
        offer.ciphers = 3;
        let mut choice = ResponsePayload::new_zeroed();
        choice.cipher = 1;
        let index = SessionIndex::from_low_bits(1);
        let mut first = Initiation::new(index, [0; _]);
        let mut second = Response::new(index, index, [0; _]);
        let mut initiator = Initiator::start(
            &alice,
            &bob.public_key(),
            Some(&psk),
            &offer,
            &mut first.noise,
        );
        let responder = Responder::read(&bob, &first.noise).unwrap();
        let bobs = responder
            .respond(Some(&psk), &choice, &mut second.noise)
            .unwrap();
        let (_, alices) = initiator.finish(&second.noise).unwrap();
        tell(&alices.seal);
        tell(&alices.open);
        let keys: Arc<[_]> = lanes()
            .map(|(cipher, lane)| LaneKey::derive(&alices.seal, cipher, lane))
            .collect();
        idle_after_use(keys.clone());
        alive.push((initiator, alices, bobs, keys));
    }
    println!("alive");
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).unwrap();
    drop(alive);
    println!("ended");
    std::io::stdin().read_line(&mut line).unwrap();
}

/// Two for each cipher.
fn lanes() -> impl Iterator<Item = (Cipher, Lane)> {
    Cipher::available().flat_map(|cipher| [0, 1].map(|lane| (cipher, Lane(lane))))
}

/// Uses the keys as a data thread does that has nothing more to do, so its stack stays as it is.
fn idle_after_use(keys: Arc<[LaneKey]>) {
    let used = Arc::new(AtomicBool::new(false));
    let tell = used.clone();
    thread::spawn(move || {
        for (key, (_, lane)) in keys.iter().zip(lanes()) {
            use_once(key, lane);
        }
        drop(keys);
        tell.store(true, Ordering::Release);
        loop {
            thread::park();
        }
    });
    while !used.load(Ordering::Acquire) {
        thread::yield_now();
    }
}

fn use_once(key: &LaneKey, lane: Lane) {
    let counter = Counter::new(lane, 0);
    let mut datagram = [7; 116];
    let tag = key.seal(counter, b"header", &mut datagram[..100]);
    datagram[100..].copy_from_slice(&tag);
    assert!(key.open(counter, b"header", &mut datagram).is_ok());
}

fn tell(key: &SplitKey) {
    let masked: String = key
        .as_bytes()
        .iter()
        .map(|byte| format!("{:02x}", byte ^ MASK))
        .collect();
    println!("{masked}");
}

fn unmasked(line: &str) -> [u8; 32] {
    std::array::from_fn(|at| u8::from_str_radix(&line[2 * at..2 * at + 2], 16).unwrap() ^ MASK)
}

/// Every byte that a process could have written.
struct Memory(Vec<Vec<u8>>);

impl Memory {
    fn of(child: &Child) -> Self {
        let process = format!("/proc/{}", child.id());
        let maps = std::fs::read_to_string(format!("{process}/maps")).unwrap();
        let memory = File::open(format!("{process}/mem")).unwrap();
        let regions = maps.lines().filter_map(|line| {
            let mut words = line.split(' ');
            let (range, rights) = (words.next()?, words.next()?);
            let (start, end) = range.split_once('-')?;
            let address = |text| u64::from_str_radix(text, 16).unwrap();
            let (start, end) = (address(start), address(end));
            let mut bytes = vec![0; (end - start) as usize];
            let is_ours = rights.starts_with("rw");
            (is_ours && memory.read_exact_at(&mut bytes, start).is_ok()).then_some(bytes)
        });
        let regions: Vec<_> = regions.collect();
        assert!(regions.len() > 2, "{maps}");
        Self(regions)
    }

    fn holds(&self, key: &[u8]) -> bool {
        let mut regions = self.0.iter();
        regions.any(|bytes| memchr::memmem::find(bytes, key).is_some())
    }

    /// Whether the memory holds a chaining key from which Noise's `Split` makes `key`.
    fn holds_origin(&self, key: &[u8; 32]) -> bool {
        let mut windows = self.windows().filter(|window| looks_random(window));
        windows.any(|window| hmac(&hmac(window, b""), &[1]) == *key)
    }

    fn windows(&self) -> impl Iterator<Item = &[u8; 32]> {
        let regions = self.0.iter();
        regions.flat_map(|bytes| bytes.windows(32).map(|window| window.try_into().unwrap()))
    }
}

/// 32 random bytes have fewer than 22 different values once in 10^5 times.
fn looks_random(window: &[u8; 32]) -> bool {
    let mut seen = [0_u64; 4];
    for byte in window {
        seen[usize::from(byte / 64)] |= 1 << (byte % 64);
    }
    seen.iter().map(|word| word.count_ones()).sum::<u32>() >= 22
}

/// HMAC with BLAKE2s, as Noise has it.
fn hmac(key: &[u8; 32], data: &[u8]) -> [u8; 32] {
    let pad = |with: u8| {
        let mut block = [with; 64];
        block
            .iter_mut()
            .zip(key)
            .for_each(|(byte, key)| *byte ^= key);
        block
    };
    let inner = Blake2s256::new().chain_update(pad(0x36));
    let inner = inner.chain_update(data).finalize();
    let outer = Blake2s256::new().chain_update(pad(0x5c));
    outer.chain_update(inner).finalize().into()
}

/// HKDF-Expand (PROTOCOL.md, "Keys").
fn lane_key(split: &[u8; 32], cipher: Cipher, lane: Lane) -> Vec<u8> {
    use aws_lc_rs::hmac::{HMAC_SHA256, Key, sign};
    let info = [&b"patchcord1 lane"[..], &[cipher as u8, lane.0, 1]].concat();
    let tag = sign(&Key::new(HMAC_SHA256, split), &info);
    let len = if cipher == Cipher::Aegis128X4 { 16 } else { 32 };
    tag.as_ref()[..len].to_vec()
}
