// SPDX-License-Identifier: MIT OR Apache-2.0
//! How many frames per second a port may flood.
//!
//! A limit is the generic cell rate algorithm (ITU-T I.371, annex A): one number says until when
//! the frames so far have used up the rate. A frame advances it by its share of a second, and is
//! refused if the number is too far ahead of the clock; that distance is the burst. The clock is the
//! latest of those that callers bring: a thread that was not scheduled for a while comes with an old one,
//! and its frames are not refused for that. Two atomic words per limit, and a refused frame only reads
//! them, but for the first one at a later time: threads that drown in a storm do not contend for a cache
//! line.
//!
//! Called by [`Switch`](crate::Switch) for frames that it would flood.

use core::sync::atomic::Ordering::Relaxed;

use crate::sync::AtomicU64;

/// How many frames per second a port may send to many stations; 0 sets no limit.
///
/// The defaults are rates that no sane LAN reaches. A burst of a tenth of a second passes, and 64
/// frames in any case. A super-frame counts as the frames it stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FloodLimits {
    /// Frames to all stations.
    pub broadcast: u32,
    /// Frames to a group of them.
    pub multicast: u32,
    /// Frames to a station that the switch does not know.
    pub unknown: u32,
}

impl Default for FloodLimits {
    fn default() -> Self {
        Self {
            broadcast: 5000,
            multicast: 50_000,
            unknown: 10_000,
        }
    }
}

impl FloodLimits {
    /// No limits at all.
    pub const OFF: Self = Self {
        broadcast: 0,
        multicast: 0,
        unknown: 0,
    };
}

/// A rate, and how much of it is used.
#[derive(Debug)]
pub(crate) struct Limit {
    /// Between two frames at the full rate; 0 sets no limit.
    interval_ns: u64,
    /// How far the frames may be ahead of the clock.
    burst_ns: u64,
    /// Until when the rate is used up.
    used_until_ns: AtomicU64,
    /// The latest time that a caller brought.
    latest_us: AtomicU64,
}

impl Limit {
    /// The least burst, in frames: as many as one read of a device may bring at once.
    const MIN_BURST: u64 = 64;
    const SECOND_NS: u64 = 1_000_000_000;

    pub(crate) fn new(frames_per_s: u32) -> Self {
        Self::with_burst(
            frames_per_s,
            Self::MIN_BURST.max(u64::from(frames_per_s) / 10),
        )
    }

    /// A rate, and how many frames may arrive at once.
    pub(crate) fn with_burst(frames_per_s: u32, burst: u64) -> Self {
        let rate = u64::from(frames_per_s);
        // Rounded down, so in favour of the sender: by one in a hundred beyond ten million per
        // second.
        let interval_ns = Self::SECOND_NS.checked_div(rate).unwrap_or(0);
        Self {
            interval_ns,
            burst_ns: interval_ns * burst,
            used_until_ns: AtomicU64::new(0),
            latest_us: AtomicU64::new(0),
        }
    }

    /// Whether `frames` more may pass.
    ///
    /// `now_us` comes from clocks that may be a little behind each other: frames that one of them
    /// has accounted for stay accounted for.
    pub(crate) fn take(&self, frames: u32, now_us: u64) -> bool {
        if self.interval_ns == 0 {
            return true;
        }
        let now_ns = self.latest(now_us).saturating_mul(1000);
        let cost_ns = self.interval_ns.saturating_mul(u64::from(frames));
        // A super-frame may exceed a burst: it passes when nothing is in use, and is charged in
        // full afterwards.
        let room_ns = self.burst_ns - cost_ns.min(self.burst_ns);
        self.used_until_ns
            .fetch_update(Relaxed, Relaxed, |used_ns| {
                let ahead_ns = used_ns.saturating_sub(now_ns);
                (ahead_ns <= room_ns).then(|| used_ns.max(now_ns).saturating_add(cost_ns))
            })
            .is_ok()
    }

    /// The later of this time and of those before.
    fn latest(&self, now_us: u64) -> u64 {
        let latest_us = self.latest_us.load(Relaxed);
        if latest_us < now_us {
            self.latest_us.fetch_max(now_us, Relaxed);
        }
        latest_us.max(now_us)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND_US: u64 = 1_000_000;

    #[test]
    fn a_burst_passes_and_then_the_rate() {
        for (rate, burst) in [
            (1, 64),
            (100, 64),
            (640, 64),
            (1000, 100),
            (5000, 500),
            (50_000, 5000),
        ] {
            let limit = Limit::new(rate);
            assert_eq!(passed(&limit, 7 * SECOND_US), burst, "burst at {rate}/s");
            let interval_us = SECOND_US.div_ceil(u64::from(rate));
            let after_us = 7 * SECOND_US + interval_us;
            assert!(!limit.take(1, after_us - 2), "early at {rate}/s");
            assert!(limit.take(1, after_us), "in time at {rate}/s");
            assert!(!limit.take(1, after_us), "twice at {rate}/s");
            let rested_us = after_us + (burst + 1) * interval_us;
            assert_eq!(passed(&limit, rested_us), burst, "rested at {rate}/s");
        }
    }

    #[test]
    fn over_a_long_time_the_rate_is_exact() {
        let limit = Limit::new(5000);
        let offered = 100_000 * 10; // a storm of 100,000 frames/s
        let passed = (0..offered).filter(|at| limit.take(1, at * 10)).count();
        assert_eq!(passed, 500 + 50_000 - 1);
    }

    #[test]
    fn a_super_frame_costs_its_segments() {
        let limit = Limit::new(100);
        for (at_us, frames, passes) in [
            (0, 44, true),
            (0, 44, false),
            (0, 20, true),
            (0, 1, false),
            (SECOND_US, 640, true), // more than a burst, and nothing is in use
            (2 * SECOND_US, 1, false),
            (6_770_000, 1, true), // 640 at 100/s, less the burst, after the first second
        ] {
            assert_eq!(limit.take(frames, at_us), passes, "{frames} at {at_us}");
        }
    }

    #[test]
    fn no_limit_and_no_overflow() {
        let off = Limit::new(0);
        assert!((0..100_000).all(|_| off.take(u32::MAX, 0)));
        for rate in [1, 3, u32::MAX] {
            let limit = Limit::new(rate);
            for now_us in [0, u64::MAX, 5, u64::MAX] {
                limit.take(u32::MAX, now_us);
            }
        }
    }

    #[test]
    fn a_clock_that_is_behind_gives_nothing_back() {
        let limit = Limit::new(1000);
        assert_eq!(passed(&limit, SECOND_US), 100);
        assert_eq!(passed(&limit, SECOND_US - 50), 0);
        assert_eq!(passed(&limit, SECOND_US), 0);
    }

    #[test]
    fn a_clock_that_is_behind_refuses_nothing() {
        let limit = Limit::new(1000);
        assert!(limit.take(1, 7 * SECOND_US));
        assert_eq!(passed(&limit, 6 * SECOND_US), 99, "the rest of the burst");
        assert!(limit.take(1, 8 * SECOND_US));
        assert!(limit.take(1, 0));
    }

    /// How many frames pass at this moment.
    fn passed(limit: &Limit, now_us: u64) -> u64 {
        let most = 1_000_000;
        (0..most).take_while(|_| limit.take(1, now_us)).count() as u64
    }
}
