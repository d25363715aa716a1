// SPDX-License-Identifier: MIT OR Apache-2.0
//! TAI64N timestamps (cr.yp.to/libtai/tai64.html): 12 bytes that sort as the times they stand for.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A timestamp as sent in an initiation.
pub(crate) type Tai64N = [u8; 12];

/// 2^62, and the ten seconds by which TAI led UTC at the Unix epoch.
const EPOCH: u64 = (1 << 62) + 10;
/// The low bits of the nanoseconds are left out, so that the fine state of the clock is not
/// published.
const NANOS_MASK: u32 = !0xff_ffff;

pub(crate) fn tai64n(time: SystemTime) -> Tai64N {
    let since_epoch = time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    let mut bytes = [0; 12];
    bytes[..8].copy_from_slice(&(EPOCH + since_epoch.as_secs()).to_be_bytes());
    bytes[8..].copy_from_slice(&(since_epoch.subsec_nanos() & NANOS_MASK).to_be_bytes());
    bytes
}

/// The earliest that sorts behind `timestamp` and has its low bits zero; itself at the end of time.
pub(crate) fn next_after(timestamp: &Tai64N) -> Tai64N {
    const STEP: u32 = !NANOS_MASK + 1;
    let [a, b, c, d, e, f, g, h, nanos @ ..] = *timestamp;
    let seconds = u64::from_be_bytes([a, b, c, d, e, f, g, h]);
    let nanos = (u32::from_be_bytes(nanos) & NANOS_MASK).saturating_add(STEP);
    let (seconds, nanos) = match nanos < 1_000_000_000 {
        true => (seconds, nanos),
        false => match seconds.checked_add(1) {
            Some(seconds) => (seconds, 0),
            None => return *timestamp,
        },
    };
    let mut next = [0; 12];
    next[..8].copy_from_slice(&seconds.to_be_bytes());
    next[8..].copy_from_slice(&nanos.to_be_bytes());
    next
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timestamps_sort_like_times() {
        let at = |millis| tai64n(UNIX_EPOCH + Duration::from_millis(millis));
        assert_eq!(at(0), [0x40, 0, 0, 0, 0, 0, 0, 10, 0, 0, 0, 0]);
        assert!(at(0) < at(500) && at(500) < at(999) && at(999) < at(1000));
        assert!(at(1_000_000_000_000) < at(1_000_000_000_020));
    }

    #[test]
    fn the_next_timestamp_sorts_behind_any_other() {
        for seconds in [0, 1 << 62, u64::MAX - 1] {
            for nanos in [0, 1, 0xff_ffff, 0x3aff_ffff, 999_999_999, u32::MAX] {
                let mut timestamp = [0; 12];
                timestamp[..8].copy_from_slice(&seconds.to_be_bytes());
                timestamp[8..].copy_from_slice(&nanos.to_be_bytes());
                let next = next_after(&timestamp);
                assert!(next > timestamp, "{timestamp:x?}");
                assert_eq!(next[9..], [0; 3], "{next:x?}");
            }
        }
        assert_eq!(next_after(&[0xff; 12]), [0xff; 12]);
    }
}
