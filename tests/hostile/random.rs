// SPDX-License-Identifier: MIT OR Apache-2.0
//! Anything that a peer could send, drawn from a seed: whole and broken chunks, frames with headers of
//! any length, wrong descriptors, pieces that overlap or never come, replays, handshakes, echoes,
//! noise, from many addresses. Afterwards the program works.
//!
//! `HOSTILE_SEED=N HOSTILE_DATAGRAMS=N cargo test --test hostile random` repeats a run, or prolongs it.

use std::env;
use std::thread;

use patchcord::internals::proto::limits::MAX_LANES;
use patchcord::internals::wire::chunk::{ControlChunk, CutFrame, Fragment};
use patchcord::internals::wire::offload::{Checksum, Offload, Segmentation, Transport};
use patchcord::internals::wire::{Lane, MessageType};

use crate::chunk;
use crate::kit::frames::{BROADCAST, Mac};
use crate::kit::process::millis;
use crate::packet::Packet;
use crate::rogue::{Rogue, Sealed, Source};
use crate::stage::{Mode, Stage};

/// Some seconds of work, in the modes together.
const DATAGRAMS: u64 = 2000;
/// Sent without a check of the program.
const BURST: u64 = 50;
/// Earlier datagrams that may be sent again.
const KEPT: usize = 32;
/// Other addresses that a rogue sends from.
const SOURCES: u8 = 12;

#[test]
fn random_datagrams_leave_the_program_well() {
    let seed = setting("HOSTILE_SEED").unwrap_or_else(|| u64::from(std::process::id()));
    let datagrams = setting("HOSTILE_DATAGRAMS").unwrap_or(DATAGRAMS);
    println!("HOSTILE_SEED={seed} HOSTILE_DATAGRAMS={datagrams}");
    let modes = [
        (Mode::TAP, 1),
        (Mode::PLAIN, 1),
        (Mode::HUB, 2),
        (Mode::WIRE, 1),
        (Mode::ACCESS, 1),
        (Mode::ACCESS_PLAIN, 1),
    ];
    for (at, (mode, peers)) in (0..).zip(modes) {
        let mut stage = Stage::start(&mode, peers);
        let mut dice = Dice::new(seed.wrapping_add(at));
        molest(&stage, &mut dice, datagrams);
        stage.assert_well();
    }
}

fn setting(name: &str) -> Option<u64> {
    let text = env::var(name).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{name} is a number")),
    )
}

fn molest(stage: &Stage, dice: &mut Dice, datagrams: u64) {
    let rogue = &stage.rogues()[0];
    let sources: Vec<_> = (0..SOURCES).map(|at| rogue.source(128 + at)).collect();
    let mut attack = Attack {
        rogue,
        sources,
        stations: [
            BROADCAST,
            stage.cable.mac,
            rogue.mac,
            [0x33, 0x33, 0, 0, 0, 1],
        ],
        kept: Vec::new(),
    };
    for number in 0..datagrams {
        if number % BURST == 0 {
            // A full socket buffer would drop the interesting datagrams, and a session may have
            // ended.
            thread::sleep(millis(2));
            rogue.connect();
        }
        attack.send_one(dice);
    }
}

struct Attack<'a> {
    rogue: &'a Rogue,
    sources: Vec<Source<'a>>,
    stations: [Mac; 4],
    kept: Vec<Vec<u8>>,
}

impl Attack<'_> {
    fn send_one(&mut self, dice: &mut Dice) {
        let datagram = match dice.below(100) {
            0 => self.rogue.initiation(),
            1..4 => dice.bytes(1400),
            4..10 if !self.kept.is_empty() => self.mangled(dice),
            10..13 => return self.control(dice),
            _ => return self.send_sealed(dice),
        };
        self.send_from_anywhere(dice, &datagram);
    }

    /// An earlier datagram, unchanged or with another byte.
    fn mangled(&self, dice: &mut Dice) -> Vec<u8> {
        let mut datagram = dice.one_of(&self.kept).clone();
        if dice.is(2) && !datagram.is_empty() {
            let at = dice.below(datagram.len());
            datagram[at] ^= 1 << dice.below(8);
        }
        datagram
    }

    fn control(&self, dice: &mut Dice) {
        let token = dice.next();
        match dice.below(20) {
            0 => self.rogue.send_control(&[ControlChunk::Close]),
            1..10 => self
                .rogue
                .send_control(&[ControlChunk::EchoRequest { token }]),
            _ => self
                .rogue
                .send_control(&[ControlChunk::EchoReply { token }; 4]),
        }
    }

    fn send_sealed(&mut self, dice: &mut Dice) {
        for plaintext in self.plaintexts(dice) {
            let message_type = if dice.is(8) {
                MessageType::Frame
            } else {
                MessageType::Chunks
            };
            let lane = if dice.is(2) {
                Lane::FIRST_DATA
            } else {
                Lane(dice.below(usize::from(MAX_LANES) + 1) as u8)
            };
            let datagram = self.rogue.seal(Sealed {
                message_type,
                lane,
                sequence: None,
                plaintext: &plaintext,
            });
            self.send_from_anywhere(dice, &datagram);
            if self.kept.len() < KEPT {
                self.kept.push(datagram);
            } else if dice.is(10) {
                *dice.one_of_mut(&mut self.kept) = datagram;
            }
        }
    }

    fn send_from_anywhere(&self, dice: &mut Dice, datagram: &[u8]) {
        if dice.is(20) {
            dice.one_of(&self.sources).send(datagram);
        } else {
            self.rogue.send_datagram(datagram);
        }
    }

    /// The plaintexts of the datagrams of one draw.
    fn plaintexts(&self, dice: &mut Dice) -> Vec<Vec<u8>> {
        match dice.below(10) {
            0 => vec![dice.bytes(1400)],
            1 => vec![chunk::frame(&dice.bytes(1600))],
            2 => vec![self.stray_piece(dice)],
            3..6 => vec![self.partial_checksum_frames(dice)],
            _ => self.cut_frame(dice),
        }
    }

    /// Without its tags, which are drawn separately.
    fn packet<'v>(&self, dice: &mut Dice, vlans: &'v [u16], payload: usize) -> Packet<'v> {
        Packet {
            dst: *dice.one_of(&self.stations),
            src: *dice.one_of(&self.stations),
            vlans,
            options: 8 * dice.words(),
            payload: dice.below(payload),
            seed: dice.next(),
        }
    }

    fn partial_checksum_frames(&self, dice: &mut Dice) -> Vec<u8> {
        let count = 1 + dice.below(3);
        (0..count)
            .flat_map(|_| self.partial_checksum_frame(dice))
            .collect()
    }

    fn partial_checksum_frame(&self, dice: &mut Dice) -> Vec<u8> {
        let vlans = dice.vlans();
        let packet = self.packet(dice, &vlans, 1400);
        let mut frame = packet.with_partial_checksum();
        dice.spoil(&mut frame);
        chunk::partial_checksum_frame(dice.checksum(packet.checksum()), &frame)
    }

    fn stray_piece(&self, dice: &mut Dice) -> Vec<u8> {
        let place = Fragment {
            frame_id: dice.below(64) as u32,
            total: dice.below(1 << 17) as u32,
            offset: dice.below(1 << 17) as u32,
        };
        chunk::fragment(place, &dice.bytes(1400))
    }

    /// A super-frame in pieces, some of them lost, repeated, or changed.
    fn cut_frame(&self, dice: &mut Dice) -> Vec<Vec<u8>> {
        let vlans = dice.vlans();
        let packet = self.packet(dice, &vlans, 64_000);
        let mut frame = packet.with_partial_checksum();
        dice.spoil(&mut frame);
        let honest = packet.open_segments(1 + dice.below(1460) as u16);
        let open = dice.offload(honest);
        let headers_len = packet.headers_len();
        let id = dice.below(1 << 20) as u32;
        let mut chunks = chunk::cut(&frame, id, Some((open, headers_len)), 1 + dice.below(1400));
        chunks.truncate(64);
        if dice.is(4) {
            let cut = CutFrame {
                frame_id: id,
                total: dice.below(1 << 17) as u32,
            };
            let headers = &frame[..dice.below(frame.len().min(1400))];
            chunks.push(chunk::offload(cut, dice.offload(honest), headers));
        }
        for _ in 0..dice.below(4) {
            let at = dice.below(chunks.len());
            let other = dice.below(chunks.len());
            chunks.swap(at, other);
        }
        if dice.is(3) {
            let at = dice.below(chunks.len());
            chunks.remove(at);
        }
        chunks
    }
}

/// SplitMix64, and the draws from it.
struct Dice(u64);

impl Dice {
    fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    /// Less than `end`, or 0.
    fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }

    /// Once in `times`.
    fn is(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }

    fn one_of<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.below(all.len())]
    }

    fn one_of_mut<'a, T>(&mut self, all: &'a mut [T]) -> &'a mut T {
        let at = self.below(all.len());
        &mut all[at]
    }

    /// Counted in eight bytes of the options of a packet: most headers are about as long as
    /// allowed.
    fn words(&mut self) -> usize {
        let most = if self.is(3) { 180 } else { 32 };
        self.below(most)
    }

    fn vlans(&mut self) -> Vec<u16> {
        let count = self.below(6);
        (0..count).map(|_| 10 * self.below(3) as u16).collect()
    }

    fn bytes(&mut self, most: usize) -> Vec<u8> {
        let len = self.below(most);
        (0..len).map(|_| self.next() as u8).collect()
    }

    /// Changes some bytes of the headers, now and then.
    fn spoil(&mut self, frame: &mut [u8]) {
        if self.is(3) {
            for _ in 0..=self.below(3) {
                let at = self.below(frame.len().min(120));
                frame[at] = self.next() as u8;
            }
        }
    }

    /// The right one, as a rule.
    fn checksum(&mut self, right: Checksum) -> Checksum {
        if !self.is(6) {
            return right;
        }
        Checksum {
            start: self.below(2000) as u16,
            offset: self.below(64) as u16,
        }
    }

    /// The right one, as a rule.
    fn offload(&mut self, right: Offload) -> Offload {
        if !self.is(6) {
            return right;
        }
        let transport = if self.is(2) {
            Transport::Tcp
        } else {
            Transport::Udp
        };
        let segmentation = Segmentation {
            transport,
            size: self.next() as u16,
            cwr: self.is(2),
        };
        Offload {
            checksum: self.checksum(right.checksum),
            segmentation: (!self.is(3)).then_some(segmentation),
        }
    }
}
