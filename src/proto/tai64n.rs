// SPDX-License-Identifier: MIT OR Apache-2.0
//! TAI64N timestamps (cr.yp.to/libtai/tai64.html): 12 bytes that sort as the times they stand for.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A timestamp as sent in an initiation.
pub(crate) type Tai64N = [u8; 12];

/// 2^62, and the ten seconds by which TAI led UTC at the Unix epoch.
const EPOCH: u64 = (1 << 62) + 10;
/// The low bits of the nanoseconds are left out, so that the clock's fine state is not published.
const NANOS_MASK: u32 = !0xff_ffff;

pub(crate) fn tai64n(time: SystemTime) -> Tai64N {
    let since_epoch = time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    let mut bytes = [0; 12];
    bytes[..8].copy_from_slice(&(EPOCH + since_epoch.as_secs()).to_be_bytes());
    bytes[8..].copy_from_slice(&(since_epoch.subsec_nanos() & NANOS_MASK).to_be_bytes());
    bytes
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
}
