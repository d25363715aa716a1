// SPDX-License-Identifier: MIT OR Apache-2.0
//! The express queue of a TAP: flows that send little do not wait behind those that send much.
//!
//! Each flow is *sparse* or *bulk*. It becomes bulk when it sends more than [`Limits::flow_bytes`]
//! within a window, or when all sparse flows together send more than [`Limits::express_bytes`]; it
//! becomes sparse again when it has sent nothing for [`Limits::idle_ns`]. Sparse flows go to the
//! express queue, bulk flows to one of the other queues, each always to the same one.
//!
//! So a flood of short flows fills the express queue for a window at most: then its flows are bulk,
//! and go where they would go without an express queue. Flows that share a slot of the table share
//! their class. Cores that send at the same time may overwrite each other's sums of one flow: a
//! flow then becomes bulk a few frames later.
//!
//! The first frame of a flow that becomes bulk must not overtake those before, which went to the
//! express queue. The program counts these changes before the kernel puts the frame into its queue
//! ([`FlowTable::changes`]), and the reader of the queue then waits for the express queue.

use std::io;
use std::os::fd::OwnedFd;

use super::{HASH, R0, R1, R6, hash_of_flow};
use crate::io::sys::ebpf::{
    self, Array, Counters, Instruction, add, add_to, copy, end, load, load_length, look_up,
    read_clock, remainder, set, shift_right, skip_if, skip_if_below, skip_if_more, skip_if_same,
    store, store_word,
};

/// Flows that are distinguished: 2 to the power of this.
const SLOT_BITS: u32 = 12;
/// Bytes that a frame counts beside its own: small frames cost nearly as much as large ones.
const FRAME_COST: u32 = 300;

// A slot, in 64-bit words.
const BULK_UNTIL: i16 = 0;
// A slot, and the sums of all sparse flows.
const WINDOW: i16 = 8;
const BYTES: i16 = 16;
// Only the sums.
const CHANGES: usize = 0;

/// When a flow is bulk.
#[derive(Clone, Copy, Debug)]
struct Limits {
    /// A window lasts 2 to the power of this, in nanoseconds.
    window_bits: u32,
    /// Of a sparse flow in a window.
    flow_bytes: u32,
    /// Of all sparse flows in a window.
    express_bytes: u32,
    /// A bulk flow stays bulk until it has been silent for this long.
    idle_ns: u32,
}

/// A window of 8.4 ms. A flow may send 4 Mbit/s, or 2000 of the smallest frames a second, which is
/// less than the acknowledgements of a fast transfer; all of them together 10,000.
///
/// What a flow has sent as bulk must be out before its next frame is express again. The longest queue
/// on the way is the receive buffer of the far end, which small frames fill for 0.4 s.
const LIMITS: Limits = Limits {
    window_bits: 23,
    flow_bytes: 6000,
    express_bytes: 32_768,
    idle_ns: 500_000_000,
};

/// What the program remembers. It lives as long as the program or this value.
#[derive(Debug)]
pub(in crate::io) struct FlowTable {
    slots: Array<3>,
    sums: Counters<3>,
}

impl FlowTable {
    /// # Errors
    /// When the kernel refuses the maps.
    pub(in crate::io) fn new() -> io::Result<Self> {
        Ok(Self {
            slots: Array::new(1 << SLOT_BITS)?,
            sums: Counters::new()?,
        })
    }

    /// How often a flow has become bulk.
    pub(in crate::io) fn changes(&self) -> u64 {
        self.sums.read(CHANGES)
    }

    /// Loads the program for a TAP with this many queues for bulk, and the express queue behind
    /// them.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub(in crate::io) fn load_program(&self, bulk_queues: u32) -> io::Result<OwnedFd> {
        ebpf::load_program(&program(bulk_queues, self, LIMITS))
    }
}

// Registers, once the flow is known. Calls leave R6 to R9 alone.
const R2: u8 = 2;
const STACK: u8 = 10;
const SLOT: u8 = 6;
const NOW: u8 = 7;
const COST: u8 = 9;

fn program(bulk_queues: u32, table: &FlowTable, limits: Limits) -> Vec<Instruction> {
    // The slot begins with the time until which the flow is bulk, the sums with the changes.
    let bulk = [
        copy(R0, HASH),
        shift_right(R0, 16),
        remainder(R0, bulk_queues),
        end(),
    ];
    let stay = [add(NOW, limits.idle_ns), store(SLOT, BULK_UNTIL, NOW)];
    let mut change = vec![set(R2, 1)];
    change.extend(table.sums.load_into(R1));
    change.push(add_to(R1, CHANGES as i16 * 8, R2));
    let express = [set(R0, bulk_queues), end()];

    let mut sum_of_all = table.sums.load_into(R0).to_vec();
    sum_of_all.extend(count_in_window(R0, limits.window_bits));
    sum_of_all.push(skip_if_more(R2, limits.express_bytes, express.len()));

    let mut sum_of_flow = count_in_window(SLOT, limits.window_bits);
    sum_of_flow.push(skip_if_more(
        R2,
        limits.flow_bytes,
        sum_of_all.len() + express.len(),
    ));

    let mut program = hash_of_flow();
    program.extend([
        load_length(COST, R6),
        add(COST, FRAME_COST),
        copy(R2, HASH),
        shift_right(R2, 32 - SLOT_BITS),
        store_word(STACK, -4, R2),
        read_clock(),
        copy(NOW, R0),
    ]);
    program.extend(table.slots.load_into(R1));
    let sparse = sum_of_flow.len() + sum_of_all.len() + express.len();
    program.extend([
        copy(R2, STACK),
        add(R2, 4_u32.wrapping_neg()),
        look_up(),
        // There is one: the verifier does not know.
        skip_if(R0, 0, 3 + sparse + change.len() + stay.len()),
        copy(SLOT, R0),
        load(R1, SLOT, BULK_UNTIL),
        skip_if_below(NOW, R1, sparse + change.len()),
    ]);
    program.extend(sum_of_flow);
    program.extend(sum_of_all);
    program.extend(express);
    program.extend(change);
    program.extend(stay);
    program.extend(bulk);
    program
}

/// Adds [`COST`] to the sum of the present window, which `sums` has, and leaves the sum in R2.
fn count_in_window(sums: u8, window_bits: u32) -> Vec<Instruction> {
    vec![
        copy(R1, NOW),
        shift_right(R1, window_bits),
        load(R2, sums, WINDOW),
        skip_if_same(R1, R2, 3),
        store(sums, WINDOW, R1),
        set(R2, 0),
        store(sums, BYTES, R2),
        add_to(sums, BYTES, COST),
        load(R2, sums, BYTES),
    ]
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::thread;
    use std::time::Duration;

    use etherparse::{PacketBuilder, VlanId};

    use super::*;
    use crate::io::sys::ebpf::run;

    const BULK_QUEUES: u32 = 3;
    const EXPRESS: u32 = BULK_QUEUES;
    /// Windows of hours, and flows that stay bulk: no matter how slow the machine is. The kernel
    /// runs programs on frames of a page at most, which are large with this limit.
    const PATIENT: Limits = Limits {
        window_bits: 44,
        flow_bytes: 2000,
        idle_ns: 2_000_000_000,
        ..LIMITS
    };

    /// Payload of a frame that makes its flow bulk.
    const LARGE: usize = 2500;

    struct Classifier {
        table: FlowTable,
        program: OwnedFd,
    }

    impl Classifier {
        fn new(limits: Limits) -> Self {
            let table = FlowTable::new().unwrap();
            let program = ebpf::load_program(&program(BULK_QUEUES, &table, limits)).unwrap();
            Self { table, program }
        }

        fn place(&self, frame: &[u8]) -> u32 {
            run(self.program.as_fd(), frame).unwrap()
        }

        /// How many of these frames in a row go to the express queue.
        fn expresses(&self, frame: &[u8]) -> u32 {
            (0..).take_while(|_| self.place(frame) == EXPRESS).count() as u32
        }
    }

    /// Of a flow for each port, of every kind of frame that has ports.
    fn kinds(port: u16, payload: usize) -> Vec<Vec<u8>> {
        let builder = || PacketBuilder::ethernet2([2; 6], [4; 6]);
        let tag = VlanId::try_new(5).unwrap();
        let v4 = ([10, 0, 0, 1], [10, 0, 0, 2], 64);
        let v6 = ([1; 16], [2; 16], 64);
        [
            builder().ipv4(v4.0, v4.1, v4.2).udp(port, 9),
            builder().ipv6(v6.0, v6.1, v6.2).udp(port, 9),
            builder()
                .single_vlan(tag)
                .ipv4(v4.0, v4.1, v4.2)
                .udp(port, 9),
            builder()
                .double_vlan(tag, tag)
                .ipv6(v6.0, v6.1, v6.2)
                .udp(port, 9),
        ]
        .map(|builder| {
            let mut frame = Vec::new();
            builder.write(&mut frame, &vec![7; payload]).unwrap();
            frame
        })
        .into()
    }

    /// Neither IPv4 nor IPv6.
    fn other(source: u8, len: usize) -> Vec<u8> {
        let mut frame = vec![source; len];
        frame[12..14].copy_from_slice(&[0x88, 0xb5]);
        frame
    }

    #[test]
    fn a_flow_is_express_until_it_sends_much() {
        for len in [60, 300, 1400, 3000] {
            let mut frames = kinds(1000, len - 58);
            frames.push(other(1, len));
            for frame in frames {
                let classifier = Classifier::new(PATIENT);
                let cost = frame.len() as u32 + FRAME_COST;
                assert_eq!(
                    classifier.expresses(&frame),
                    PATIENT.flow_bytes / cost,
                    "{len} bytes"
                );
                let place = classifier.place(&frame);
                assert!((0..100).all(|_| classifier.place(&frame) == place && place < BULK_QUEUES));
                assert_eq!(classifier.table.changes(), 1);
            }
        }
    }

    #[test]
    fn bulk_goes_where_it_goes_without_an_express_queue() {
        let plain = ebpf::load_program(&super::super::program()).unwrap();
        let classifier = Classifier::new(PATIENT);
        let mut used = [false; BULK_QUEUES as usize];
        for port in 1000..1032 {
            for frame in kinds(port, LARGE) {
                let place = classifier.place(&frame);
                assert_eq!(place, run(plain.as_fd(), &frame).unwrap() % BULK_QUEUES);
                used[place as usize] = true;
            }
        }
        assert_eq!(used, [true; BULK_QUEUES as usize]);
    }

    #[test]
    fn a_sparse_flow_stays_express_beside_bulk() {
        let classifier = Classifier::new(PATIENT);
        let sparse = &kinds(1, 30)[0];
        for port in 1000..1004 {
            classifier.place(&kinds(port, LARGE)[0]);
            assert_eq!(classifier.place(sparse), EXPRESS);
        }
    }

    #[test]
    fn a_flow_is_express_again_after_silence_and_not_before() {
        let classifier = Classifier::new(PATIENT);
        let (small, large) = (&kinds(1, 30)[0], &kinds(1, LARGE)[0]);
        assert!(classifier.place(large) < BULK_QUEUES);
        assert!(classifier.place(small) < BULK_QUEUES);
        let short = Classifier::new(Limits {
            idle_ns: 1_000_000,
            window_bits: 20,
            ..PATIENT
        });
        assert!(short.place(large) < BULK_QUEUES);
        thread::sleep(Duration::from_millis(5));
        assert_eq!(short.place(small), EXPRESS);
        assert!(short.place(large) < BULK_QUEUES);
        assert_eq!(short.table.changes(), 2);
    }

    #[test]
    fn a_new_window_begins_at_nothing() {
        let classifier = Classifier::new(Limits {
            window_bits: 20,
            ..PATIENT
        });
        let frame = &kinds(1, 1000)[0];
        for _ in 0..20 {
            assert_eq!(classifier.place(frame), EXPRESS);
            thread::sleep(Duration::from_millis(3));
        }
    }

    #[test]
    fn a_flood_of_sparse_flows_is_bulk() {
        let classifier = Classifier::new(PATIENT);
        let frames: Vec<_> = (1..=2000).map(|port| kinds(port, 18).remove(0)).collect();
        let cost = frames[0].len() as u32 + FRAME_COST;
        let places = frames.iter().map(|frame| classifier.place(frame));
        let express = places.filter(|&place| place == EXPRESS).count() as u32;
        assert_eq!(express, PATIENT.express_bytes / cost);
        // Those that were express share the fate of the others from now on.
        assert!(
            frames
                .iter()
                .all(|frame| classifier.place(frame) < BULK_QUEUES)
        );
    }

    #[test]
    fn a_frame_that_is_cut_short_goes_to_the_first_queue() {
        let classifier = Classifier::new(PATIENT);
        let whole = &kinds(1, 18)[0];
        for len in [0, 1, 13, 14, 20, 33, 36] {
            assert_eq!(classifier.place(&whole[..len]), 0, "{len} bytes");
        }
    }

    #[test]
    fn the_kernel_takes_the_program_for_every_number_of_queues() {
        for bulk_queues in 1..=8 {
            FlowTable::new().unwrap().load_program(bulk_queues).unwrap();
        }
    }
}
