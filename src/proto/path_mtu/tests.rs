// SPDX-License-Identifier: MIT OR Apache-2.0
//! The search over paths that are narrow, change, lose datagrams or move.

#![cfg(test)]

use super::*;
use crate::proto::limits::PATH_MTU_MAX;

/// A path, and the clock.
struct Bench {
    path: PathMtu,
    now: Instant,
    token: u64,
    /// The largest packet that arrives.
    carries: u16,
    /// The largest that our own link takes.
    link: u16,
    has_traffic: bool,
    probes: usize,
}

impl Bench {
    fn new(carries: u16) -> Self {
        let now = Instant::now();
        Self {
            path: PathMtu::new(now),
            now,
            token: 0,
            carries,
            link: u16::MAX,
            has_traffic: true,
            probes: 0,
        }
    }

    /// A search that has found its size.
    fn settled(carries: u16) -> Self {
        let mut bench = Self::new(carries);
        bench.run(12);
        assert_eq!(bench.path.current(), carries);
        bench
    }

    fn run(&mut self, seconds: u64) {
        self.run_until(seconds, |_| false);
    }

    /// For how long until `done`, which happens within `seconds` or not at all.
    fn run_until(&mut self, seconds: u64, done: impl Fn(&PathMtu) -> bool) -> Duration {
        let start = self.now;
        while self.now < start + Duration::from_secs(seconds) && !done(&self.path) {
            if self.has_traffic {
                self.path.handle_traffic(self.now);
            }
            self.path.handle_timeout(self.now);
            self.send_probes();
            self.now += Duration::from_millis(50);
        }
        self.now - start
    }

    fn send_probes(&mut self) {
        while let Some(size) = self.path.poll_probe() {
            self.token += 1;
            self.path.handle_sent(self.token, size);
            if size > self.link {
                self.path.handle_refused(size, self.now);
                continue;
            }
            self.probes += 1;
            if size <= self.carries {
                self.path.handle_reply(self.token, self.now);
            }
        }
    }
}

#[test]
fn finds_the_largest_size_that_arrives() {
    for (carries, found) in [
        (576, 576),
        (577, 577),
        (700, 700),
        (1100, 1100),
        (1279, 1279),
        (1280, 1280),
        (1281, 1281),
        (1337, 1337),
        (1419, 1419),
        (1492, 1492),
        (1499, 1499),
        (1500, 1500),
        // Nearly all paths that carry this size carry no more.
        (1550, 1500),
        (1777, 1777),
        (9000, 9000),
        (9199, 9199),
        (65535, PATH_MTU_MAX),
    ] {
        for link in [u16::MAX, carries] {
            let mut bench = Bench::new(carries);
            bench.link = link;
            bench.run(12);
            assert_eq!(bench.path.current(), found, "a path of {carries}");
            assert!(!bench.path.is_too_narrow());
        }
    }
}

#[test]
fn a_path_below_the_base_is_found_out_within_a_second() {
    let mut bench = Bench::new(1100);
    bench.run(1);
    assert!((1000..=1100).contains(&bench.path.current()));
}

#[test]
fn sizes_that_our_own_kernel_refuses_take_no_time_to_find_out() {
    let mut bench = Bench::new(u16::MAX);
    bench.link = 700;
    let took = bench.run_until(5, |path| path.current() == 700);
    assert!(took < Duration::from_millis(500), "{took:?}");
}

#[test]
fn a_path_that_shrinks_or_grows_is_noticed() {
    let mut bench = Bench::settled(1500);
    bench.carries = 1400;
    bench.run(6);
    assert_eq!(bench.path.current(), 1400, "a black hole");
    bench.carries = 1401;
    bench.run(610);
    assert_eq!(bench.path.current(), 1401, "by the least");
    bench.carries = 9000;
    bench.run(610);
    assert_eq!(bench.path.current(), 9000, "the raise timer");
    bench.path.handle_too_big(bench.now);
    assert_eq!(bench.path.current(), PATH_MTU_BASE, "EMSGSIZE");
    bench.carries = 1500;
    bench.run(2);
    assert_eq!(bench.path.current(), 1500);
}

/// The proof of the present size does not wait for probes of larger ones.
#[test]
fn a_black_hole_is_found_within_the_time_of_three_proofs_whenever_it_comes() {
    for after in (0..300).step_by(7) {
        let mut bench = Bench::settled(1500);
        bench.run_until(60, |_| false);
        bench.now += Duration::from_millis(after * 100);
        bench.run(1);
        bench.carries = 1300;
        let took = bench.run_until(20, |path| path.current() == 1300);
        let bound = CONFIRM_INTERVAL + (u32::from(ROUNDS) + 2) * PROBE_TIMEOUT;
        assert!(took <= bound, "after {after}: {took:?}");
    }
}

#[test]
fn a_dip_costs_no_longer_than_it_lasts() {
    for dip_s in [1, 3, 30, 100, 300] {
        for (link, has_traffic) in [(u16::MAX, true), (576, true), (576, false)] {
            let mut bench = Bench::settled(1500);
            bench.path.handle_too_big(bench.now);
            (bench.carries, bench.link, bench.has_traffic) = (576, link, has_traffic);
            bench.run(dip_s);
            assert!(bench.path.current() <= PATH_MTU_BASE);
            (bench.carries, bench.link) = (1500, u16::MAX);
            bench.run(dip_s + 10);
            assert_eq!(bench.path.current(), 1500, "{dip_s} s, a link of {link}");
        }
    }
}

#[test]
fn a_search_limited_by_its_own_link_probes_often_at_little_cost() {
    let mut bench = Bench::settled(1500);
    (bench.link, bench.has_traffic) = (1400, false);
    bench.path.handle_too_big(bench.now);
    bench.run(1000);
    assert_eq!(bench.path.current(), 1400);
    bench.probes = 0;
    bench.run(1000);
    assert_eq!(bench.probes, 0, "the kernel knows");
    bench.link = u16::MAX;
    let took = bench.run_until(20, |path| path.current() == 1500);
    assert!(took <= Duration::from_secs(9), "{took:?}");
}

#[test]
fn a_sign_of_change_is_followed_at_once_and_not_too_often() {
    let mut bench = Bench::settled(1500);
    bench.carries = 1400;
    bench.run(400);
    assert_eq!(bench.path.current(), 1400);
    bench.carries = 1500;
    bench.path.handle_route_change(bench.now);
    let took = bench.run_until(5, |path| path.current() == 1500);
    assert!(took < Duration::from_secs(1), "{took:?}");
    bench.run(60);
    bench.probes = 0;
    for _ in 0..200 {
        bench.path.handle_route_change(bench.now);
        bench.run_until(1, |_| false);
    }
    // In each second a proof, in every fourth a probe for more.
    assert!(bench.probes < 200 * 5, "{} probes", bench.probes);
}

#[test]
fn a_link_that_became_narrow_is_noticed_without_traffic() {
    let mut bench = Bench::settled(1500);
    (bench.link, bench.has_traffic) = (1400, false);
    bench.path.handle_route_change(bench.now);
    let took = bench.run_until(5, |path| path.current() == 1400);
    assert!(took < Duration::from_secs(1), "{took:?}");
}

#[test]
fn a_path_that_carries_nothing_is_told_until_it_does() {
    for (carries, link) in [(575, u16::MAX), (u16::MAX, 575)] {
        let mut bench = Bench::settled(1500);
        (bench.carries, bench.link) = (carries, link);
        bench.path.handle_too_big(bench.now);
        bench.run(10);
        assert!(bench.path.is_too_narrow() && bench.path.take_too_narrow());
        assert!(!bench.path.take_too_narrow(), "once");
        // Frames are refused, too; that is not new.
        bench.path.handle_too_big(bench.now);
        assert!(bench.path.is_too_narrow());
        bench.probes = 0;
        bench.run(100);
        assert!(bench.path.take_too_narrow(), "and again from time to time");
        assert!(bench.probes < 60, "{} probes", bench.probes);
        (bench.carries, bench.link) = (1500, u16::MAX);
        let took = bench.run_until(60, |path| path.current() == 1500);
        assert!(took <= Duration::from_secs(10), "{took:?}");
        assert!(!bench.path.is_too_narrow() && !bench.path.take_too_narrow());
    }
}

#[test]
fn a_peer_that_moves_all_the_time_is_not_probed_all_the_time() {
    let mut bench = Bench::new(u16::MAX);
    for _ in 0..1000 {
        bench.path.restart(bench.now);
        bench.path.handle_timeout(bench.now);
        bench.send_probes();
        bench.now += Duration::from_millis(2);
    }
    assert!(bench.probes < 100, "{} probes in two seconds", bench.probes);
}

#[test]
fn an_answer_that_is_late_counts() {
    let mut bench = Bench::new(1400);
    // The first of all probes was the largest.
    let took = bench.run_until(5, |path| path.ceiling == 1420);
    assert!(took < Duration::from_secs(2) && bench.path.current() == 1400);
    assert!(bench.path.handle_reply(1, bench.now));
    bench.carries = 1500;
    bench.run(5);
    assert_eq!(bench.path.current(), 1500);
}

#[test]
fn silence_keeps_the_size() {
    let mut bench = Bench::settled(1500);
    bench.carries = 0;
    bench.run(1);
    for _ in 0..100 {
        bench.path.handle_silence(bench.now);
        bench.now += PROBE_TIMEOUT;
    }
    bench.carries = 1500;
    bench.run(3);
    assert_eq!(bench.path.current(), 1500);
}

#[test]
fn unsolicited_replies_change_nothing() {
    let now = Instant::now();
    let mut path = PathMtu::new(now);
    assert!(!path.handle_reply(99, now));
    assert_eq!(path.current(), PATH_MTU_BASE);
}
