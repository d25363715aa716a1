// SPDX-License-Identifier: MIT OR Apache-2.0
//! Frames that tests send and recognise: byte-exact ones of any shape, and numbered ones of a flow.

use std::time::{Duration, Instant};

use super::cable::{Arrival, Cable};

pub(crate) type Mac = [u8; 6];

pub(crate) const BROADCAST: Mac = [0xff; 6];
/// IEEE 802 local experimental EtherType 1.
pub(crate) const EXPERIMENTAL: u16 = 0x88b5;
/// The TPIDs of C-tags and of S-tags.
pub(crate) const DOT1Q: u16 = 0x8100;
pub(crate) const DOT1AD: u16 = 0x88a8;

/// A frame of `len` bytes (header and tags included, no FCS) whose payload depends on `seed`.
pub(crate) fn frame(
    dst: Mac,
    src: Mac,
    tags: &[(u16, u16)],
    ethertype: u16,
    len: usize,
    seed: u64,
) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(len);
    bytes.extend(dst);
    bytes.extend(src);
    for (tpid, tci) in tags {
        bytes.extend(tpid.to_be_bytes());
        bytes.extend(tci.to_be_bytes());
    }
    bytes.extend(ethertype.to_be_bytes());
    fill(&mut bytes, len, seed);
    bytes
}

/// Appends bytes until `len`: the same for the same seed, and never compressible or repeated.
pub(crate) fn fill(bytes: &mut Vec<u8>, len: usize, seed: u64) {
    let mut state = seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let wanted = (len - bytes.len()).min(8);
        bytes.extend(&state.to_le_bytes()[..wanted]);
    }
}

/// Numbered frames from one cable to another.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Flow {
    pub(crate) src: Mac,
    pub(crate) dst: Mac,
    pub(crate) id: u16,
}

/// Ethernet header, mark, flow, number.
const NUMBERED_HEADER: usize = 14 + 4 + 2 + 8;
const MARK: [u8; 4] = *b"pcfl";

impl Flow {
    pub(crate) fn between(from: &Cable, to: &Cable, id: u16) -> Self {
        Self {
            src: from.mac,
            dst: to.mac,
            id,
        }
    }

    pub(crate) fn frame(&self, number: u64, len: usize) -> Vec<u8> {
        assert!(
            len >= NUMBERED_HEADER,
            "a numbered frame needs {NUMBERED_HEADER} bytes"
        );
        let mut bytes = frame(self.dst, self.src, &[], EXPERIMENTAL, 14, 0);
        bytes.extend(MARK);
        bytes.extend(self.id.to_be_bytes());
        bytes.extend(number.to_be_bytes());
        fill(&mut bytes, len, number ^ u64::from(self.id) << 48);
        bytes
    }

    /// The number of a frame of this flow, none for other frames.
    ///
    /// # Panics
    /// When the frame is ours but differs in any byte from the one that was sent.
    pub(crate) fn number(&self, bytes: &[u8]) -> Option<u64> {
        let number = self.claimed_number(bytes)?;
        assert!(
            bytes == self.frame(number, bytes.len()),
            "frame {number} of flow {} was changed",
            self.id
        );
        Some(number)
    }

    /// As [`Flow::number`], but cheap: checks nothing else.
    fn claimed_number(&self, bytes: &[u8]) -> Option<u64> {
        let (_, rest) = bytes.split_at_checked(14)?;
        let rest = rest
            .strip_prefix(&MARK)?
            .strip_prefix(&self.id.to_be_bytes())?;
        Some(u64::from_be_bytes(*rest.first_chunk()?))
    }

    /// The number of frames of this flow that came out of `cable`.
    pub(crate) fn count(&self, cable: &Cable) -> u64 {
        cable.with_arrivals(|all| {
            all.iter()
                .filter(|arrival| self.claimed_number(&arrival.bytes).is_some())
                .count() as u64
        })
    }

    /// The highest number among the last frames that came out; a path repeats or reorders fewer.
    pub(crate) fn newest(&self, arrivals: &[Arrival]) -> Option<u64> {
        let numbers = arrivals
            .iter()
            .rev()
            .filter_map(|arrival| self.claimed_number(&arrival.bytes));
        numbers.take(512).max()
    }

    /// Waits until the frame with this number, and so, in order, every frame before it, came out.
    pub(crate) fn wait_number(&self, cable: &Cable, number: u64, limit: Duration) -> bool {
        // From the end, so that a wake-up per frame stays cheap.
        cable.wait(limit, |all| {
            all.iter()
                .rev()
                .take(64)
                .any(|arrival| self.claimed_number(&arrival.bytes) == Some(number))
        })
    }

    /// The frames of this flow that came out of `cable`, with their times, in order of arrival.
    pub(crate) fn arrivals(&self, cable: &Cable) -> Vec<(Instant, u64)> {
        let number = |arrival: &Arrival| Some((arrival.at, self.number(&arrival.bytes)?));
        cable.with_arrivals(|all| all.iter().filter_map(number).collect())
    }

    /// Compares the arrivals at `cable` with the `sent` frames numbered from 0.
    pub(crate) fn tally(&self, cable: &Cable, sent: u64) -> Tally {
        let mut seen = vec![0_u32; sent as usize];
        let mut tally = Tally {
            sent,
            ..Tally::default()
        };
        let mut highest = None;
        for (_, number) in self.arrivals(cable) {
            seen[number as usize] += 1;
            tally.reordered += u64::from(highest.is_some_and(|highest| number < highest));
            highest = highest.max(Some(number));
        }
        tally.lost = seen.iter().filter(|&&times| times == 0).count() as u64;
        tally.duplicates = seen
            .iter()
            .map(|&times| u64::from(times.saturating_sub(1)))
            .sum();
        tally
    }
}

/// How a flow arrived.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) sent: u64,
    pub(crate) lost: u64,
    pub(crate) duplicates: u64,
    pub(crate) reordered: u64,
}

impl Tally {
    /// Every frame once and in order.
    pub(crate) fn perfect(sent: u64) -> Self {
        Self {
            sent,
            ..Self::default()
        }
    }
}

/// The longest time between two arrivals, of those that end after `since`.
///
/// The time from the last arrival until `until` counts too: silence is a gap.
pub(crate) fn longest_gap(arrivals: &[(Instant, u64)], since: Instant, until: Instant) -> Duration {
    let times = arrivals.iter().map(|&(at, _)| at).chain([until]);
    let mut last = arrivals
        .iter()
        .map(|&(at, _)| at)
        .take_while(|&at| at <= since)
        .last()
        .unwrap_or(since);
    let mut longest = Duration::ZERO;
    for at in times.filter(|&at| at > since) {
        longest = longest.max(at - last);
        last = at;
    }
    longest
}
