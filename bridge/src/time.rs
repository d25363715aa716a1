// SPDX-License-Identifier: MIT OR Apache-2.0
//! Seconds on a clock that wraps: of two times, the later one is at most half a turn, 68 years, ahead.

/// Whether `at_s` is after `than_s`.
pub(crate) const fn is_later(at_s: u32, than_s: u32) -> bool {
    at_s.wrapping_sub(than_s).cast_signed() > 0
}

/// Whether the time `at_s` has been reached.
pub(crate) const fn is_past(at_s: u32, now_s: u32) -> bool {
    !is_later(at_s, now_s)
}

/// The later of two times.
pub(crate) const fn later(one_s: u32, other_s: u32) -> u32 {
    if is_later(one_s, other_s) {
        one_s
    } else {
        other_s
    }
}

/// Seconds from `since_s` to `now_s`, and zero if `now_s` is the earlier of the two: a thread whose
/// clock is a little behind sees an event from its future, which is as fresh as can be.
pub(crate) const fn elapsed_s(since_s: u32, now_s: u32) -> u32 {
    if is_later(now_s, since_s) {
        now_s.wrapping_sub(since_s)
    } else {
        0
    }
}

/// Seconds from `now_s` until `at_s`, and zero once that has passed.
pub(crate) const fn left_s(at_s: u32, now_s: u32) -> u32 {
    elapsed_s(now_s, at_s)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_may_wrap_between_two_times() {
        for (one_s, other_s, after_s) in [
            (5, 5, 0),
            (5, 6, 1),
            (u32::MAX, 0, 1),
            (u32::MAX - 9, 90, 100),
            (0, i32::MAX as u32, i32::MAX as u32),
        ] {
            let is_apart = after_s > 0;
            assert_eq!(is_later(other_s, one_s), is_apart, "{one_s}, {other_s}");
            assert!(!is_later(one_s, other_s), "{one_s}, {other_s}");
            assert_eq!(is_past(other_s, one_s), !is_apart, "{one_s}, {other_s}");
            assert!(is_past(one_s, other_s), "{one_s}, {other_s}");
            for latest_s in [later(one_s, other_s), later(other_s, one_s)] {
                assert_eq!(latest_s, other_s, "{one_s}, {other_s}");
            }
            assert_eq!(elapsed_s(one_s, other_s), after_s);
            assert_eq!(elapsed_s(other_s, one_s), 0);
            assert_eq!(left_s(other_s, one_s), after_s);
            assert_eq!(left_s(one_s, other_s), 0);
        }
    }
}
