// SPDX-License-Identifier: MIT OR Apache-2.0
//! The fate of the frames of one direction: seeded, bounded, in virtual time.
//!
//! ```text
//!  offer ─> loss ─> duplication ─> link of a rate ─> delay ─> reordering ─> poll
//!            │                          │              │
//!           lost                  queue_overflow  delay_overflow
//! ```
//!
//! Owns the decisions and the waiting frames. Never reads a clock or a socket: `now` is the time since
//! the relay began. Each decision has dice of its own, so that one option does not change the result of
//! another, and the n-th frame has the same fate in each run with the same seed.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use serde::Serialize;

/// The harm to the frames of both directions. The default is none.
#[derive(Clone, Debug, clap::Args)]
pub struct Harm {
    /// Frames to lose
    #[arg(long = "loss", value_name = "PERCENT", default_value_t = 0.0, value_parser = percent)]
    pub loss_percent: f64,
    /// Lose them in bursts of this mean length (Gilbert-Elliott); without it, each by itself
    #[arg(long, value_name = "FRAMES", value_parser = burst)]
    pub loss_burst: Option<f64>,
    /// Frames to hold back until others have overtaken them
    #[arg(long = "reorder", value_name = "PERCENT", default_value_t = 0.0, value_parser = percent)]
    pub reorder_percent: f64,
    /// How many frames overtake one that is held back; after 5 ms it goes in any case
    #[arg(long, value_name = "FRAMES", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    pub reorder_by: u32,
    /// Frames to send twice
    #[arg(long = "duplicate", value_name = "PERCENT", default_value_t = 0.0, value_parser = percent)]
    pub duplicate_percent: f64,
    /// Time that every frame takes
    #[arg(long = "delay", value_name = "MS", default_value_t = 0.0, value_parser = delay)]
    pub delay_ms: f64,
    /// The delay varies by up to this in both directions; frames keep their order all the same
    #[arg(long = "jitter", value_name = "MS", default_value_t = 0.0, value_parser = delay)]
    pub jitter_ms: f64,
    /// Frames overtake each other by their jitter
    #[arg(long)]
    pub overtake: bool,
    /// Speed of the link; without it, as fast as the machine can
    #[arg(long = "rate", value_name = "MBIT", value_parser = rate)]
    pub rate_mbit: Option<f64>,
    /// Frames that may wait for the link
    #[arg(long = "queue", value_name = "FRAMES", default_value_t = 1000)]
    pub queue_frames: usize,
    /// Another seed harms other frames, the same one the same
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

impl Default for Harm {
    fn default() -> Self {
        Self {
            loss_percent: 0.0,
            loss_burst: None,
            reorder_percent: 0.0,
            reorder_by: 3,
            duplicate_percent: 0.0,
            delay_ms: 0.0,
            jitter_ms: 0.0,
            overtake: false,
            rate_mbit: None,
            queue_frames: 1000,
            seed: 1,
        }
    }
}

fn percent(text: &str) -> Result<f64, String> {
    number(text, 0.0, 99.0)
}

fn burst(text: &str) -> Result<f64, String> {
    number(text, 1.0, 1e6)
}

fn delay(text: &str) -> Result<f64, String> {
    number(text, 0.0, 60_000.0)
}

fn rate(text: &str) -> Result<f64, String> {
    number(text, 0.001, 1e6)
}

fn number(text: &str, least: f64, most: f64) -> Result<f64, String> {
    let value = text.parse::<f64>().map_err(|error| error.to_string())?;
    if (least..=most).contains(&value) {
        Ok(value)
    } else {
        Err(format!("not between {least} and {most}"))
    }
}

/// The fate of the frames of a [`Path`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Fates {
    /// Frames that were subject to harm.
    pub offered: u64,
    /// Dropped on purpose.
    pub lost: u64,
    /// Second copies that were made.
    pub duplicated: u64,
    /// Held back so that later frames overtake them.
    pub held_back: u64,
    /// Dropped because too many waited for the link.
    pub queue_overflow: u64,
    /// Dropped because too many were on their way.
    pub delay_overflow: u64,
    /// Came out at the far end.
    pub passed: u64,
}

/// The most frames that are on their way at a time.
const DELAY_FRAMES_MAX: usize = 20_000;
/// The most frames that are held back at a time, and for how long.
const HELD_FRAMES_MAX: usize = 256;
const HELD_MAX: Duration = Duration::from_millis(5);

/// The frames of one direction, from [`Path::offer`] to [`Path::poll`].
pub struct Path<F> {
    fates: Fates,
    loss: Loss,
    duplicate: Chance,
    link: Option<Link<F>>,
    delay: Delay<F>,
    reorder: Reorder<F>,
}

impl<F: AsRef<[u8]> + Clone> Path<F> {
    /// `direction` tells apart paths that are made from the same `harm`.
    #[must_use]
    pub fn new(harm: &Harm, direction: u64) -> Self {
        let dice = |purpose| Dice::new(harm.seed, direction, purpose);
        Self {
            fates: Fates::default(),
            loss: Loss::new(harm.loss_percent, harm.loss_burst, dice(1)),
            duplicate: Chance::new(harm.duplicate_percent, dice(2)),
            link: harm
                .rate_mbit
                .map(|rate_mbit| Link::new(rate_mbit, harm.queue_frames)),
            delay: Delay::new(harm, dice(3)),
            reorder: Reorder::new(harm.reorder_by, Chance::new(harm.reorder_percent, dice(4))),
        }
    }

    /// Puts a frame in. Times must not go backwards from call to call.
    pub fn offer(&mut self, frame: F, now: Duration) {
        self.fates.offered += 1;
        if self.loss.strikes() {
            self.fates.lost += 1;
            return;
        }
        if self.duplicate.happens() {
            self.fates.duplicated += 1;
            self.queue(frame.clone(), now);
        }
        self.queue(frame, now);
    }

    fn queue(&mut self, frame: F, now: Duration) {
        let Some(link) = &mut self.link else {
            self.fates.delay_overflow += u64::from(!self.delay.push(frame, now));
            return;
        };
        self.fates.queue_overflow += u64::from(!link.push(frame, now));
    }

    /// The next frame that comes out, none if none does yet. Call it until it gives none.
    pub fn poll(&mut self, now: Duration) -> Option<F> {
        while let Some((frame, left)) = self.link.as_mut().and_then(|link| link.pop(now)) {
            self.fates.delay_overflow += u64::from(!self.delay.push(frame, left));
        }
        loop {
            if let Some(frame) = self.reorder.pop(now) {
                self.fates.passed += 1;
                return Some(frame);
            }
            let (frame, due) = self.delay.pop(now)?;
            self.fates.held_back += u64::from(self.reorder.push(frame, due));
        }
    }

    /// The time when [`Path::poll`] will return a frame, if none is offered before. None: never.
    #[must_use]
    pub fn next_due(&self) -> Option<Duration> {
        let link = self.link.as_ref().and_then(Link::next_due);
        let due = [link, self.delay.next_due(), self.reorder.next_due()];
        due.into_iter().flatten().min()
    }

    /// The counters so far.
    #[must_use]
    pub fn fates(&self) -> Fates {
        self.fates
    }
}

/// Decides losses: the model of Gilbert and Elliott, which loses none in its good state and all in its
/// bad one.
struct Loss {
    bad: bool,
    to_bad: Chance,
    to_good: Option<Chance>,
}

impl Loss {
    fn new(percent: f64, burst: Option<f64>, dice: Dice) -> Self {
        let Some(burst) = burst else {
            return Self {
                bad: false,
                to_bad: Chance::new(percent, dice),
                to_good: None,
            };
        };
        // A burst ends after each frame with a chance of 1 / length. The share of time in the bad
        // state, to_bad / (to_bad + to_good), is to be the loss.
        let loss = percent / 100.0;
        let to_good = 100.0 / burst;
        let (first, second) = dice.split();
        Self {
            bad: false,
            to_bad: Chance::new(to_good * loss / (1.0 - loss), first),
            to_good: Some(Chance::new(to_good, second)),
        }
    }

    fn strikes(&mut self) -> bool {
        let stays_bad = self.bad && self.to_good.as_mut().is_some_and(|end| !end.happens());
        self.bad = stays_bad || (!self.bad || self.to_good.is_none()) && self.to_bad.happens();
        self.bad
    }
}

/// A link that sends one frame after the other at its speed. Frames count with the bytes that they
/// have here, without preamble, check sequence and gap.
struct Link<F> {
    ns_per_byte: f64,
    limit: usize,
    free_at: Duration,
    waiting: VecDeque<(Duration, F)>,
}

impl<F: AsRef<[u8]>> Link<F> {
    fn new(rate_mbit: f64, limit: usize) -> Self {
        Self {
            ns_per_byte: 8000.0 / rate_mbit,
            limit: limit.max(1),
            free_at: Duration::ZERO,
            waiting: VecDeque::new(),
        }
    }

    /// False if the queue is full. Frames that have left by `now` take no room, even if the relay had
    /// no time to take them out.
    fn push(&mut self, frame: F, now: Duration) -> bool {
        let left = self.waiting.partition_point(|(due, _)| *due <= now);
        if self.waiting.len() - left >= self.limit {
            return false;
        }
        let takes_ns = frame.as_ref().len() as f64 * self.ns_per_byte;
        self.free_at = self.free_at.max(now) + Duration::from_nanos(takes_ns as u64);
        self.waiting.push_back((self.free_at, frame));
        true
    }

    /// The next frame that has left by `now`, with its time.
    fn pop(&mut self, now: Duration) -> Option<(F, Duration)> {
        pop_due(&mut self.waiting, now)
    }

    fn next_due(&self) -> Option<Duration> {
        self.waiting.front().map(|(due, _)| *due)
    }
}

/// Frames on their way, by the time at which they arrive, and then in the order in which they set out.
struct Delay<F> {
    delay: Duration,
    jitter: Duration,
    overtake: bool,
    dice: Dice,
    last_due: Duration,
    set_out: u64,
    on_their_way: BTreeMap<(Duration, u64), F>,
}

impl<F> Delay<F> {
    fn new(harm: &Harm, dice: Dice) -> Self {
        Self {
            delay: Duration::from_secs_f64(harm.delay_ms / 1e3),
            jitter: Duration::from_secs_f64(harm.jitter_ms / 1e3),
            overtake: harm.overtake,
            dice,
            last_due: Duration::ZERO,
            set_out: 0,
            on_their_way: BTreeMap::new(),
        }
    }

    /// False if too many are on their way.
    fn push(&mut self, frame: F, now: Duration) -> bool {
        if self.on_their_way.len() >= DELAY_FRAMES_MAX {
            return false;
        }
        let spread = self.jitter.mul_f64(2.0 * self.dice.roll());
        let due = (now + self.delay + spread).saturating_sub(self.jitter);
        // With jitter, a frame may be due before earlier ones, or before it came.
        let due = due.max(now);
        self.last_due = due.max(self.last_due);
        let due = if self.overtake { due } else { self.last_due };
        self.set_out += 1;
        self.on_their_way.insert((due, self.set_out), frame);
        true
    }

    fn pop(&mut self, now: Duration) -> Option<(F, Duration)> {
        let first = self.on_their_way.first_entry()?;
        let (due, _) = *first.key();
        (due <= now).then(|| (first.remove(), due))
    }

    fn next_due(&self) -> Option<Duration> {
        let ((due, _), _) = self.on_their_way.first_key_value()?;
        Some(*due)
    }
}

/// Holds some frames back until others have overtaken them.
struct Reorder<F> {
    by: u32,
    chance: Chance,
    held: VecDeque<Held<F>>,
    ready: VecDeque<F>,
}

struct Held<F> {
    frame: F,
    until: Duration,
    still_to_pass: u32,
}

impl<F> Reorder<F> {
    fn new(by: u32, chance: Chance) -> Self {
        Self {
            by,
            chance,
            held: VecDeque::new(),
            ready: VecDeque::new(),
        }
    }

    /// True if the frame is held back.
    fn push(&mut self, frame: F, now: Duration) -> bool {
        // The dice are rolled in any case: a full queue must not change the fate of later frames.
        if self.chance.happens() && self.held.len() < HELD_FRAMES_MAX {
            self.held.push_back(Held {
                frame,
                until: now + HELD_MAX,
                still_to_pass: self.by,
            });
            return true;
        }
        self.ready.push_back(frame);
        for held in &mut self.held {
            held.still_to_pass -= 1;
        }
        false
    }

    fn pop(&mut self, now: Duration) -> Option<F> {
        if let Some(frame) = self.ready.pop_front() {
            return Some(frame);
        }
        // The oldest is the first to be due, by number and by time.
        let eldest = self.held.front()?;
        if eldest.still_to_pass > 0 && eldest.until > now {
            return None;
        }
        self.held.pop_front().map(|held| held.frame)
    }

    fn next_due(&self) -> Option<Duration> {
        self.held.front().map(|held| held.until)
    }
}

fn pop_due<F>(queue: &mut VecDeque<(Duration, F)>, now: Duration) -> Option<(F, Duration)> {
    if queue.front()?.0 > now {
        return None;
    }
    queue.pop_front().map(|(due, frame)| (frame, due))
}

/// An event with a probability.
struct Chance {
    probability: f64,
    dice: Dice,
}

impl Chance {
    fn new(percent: f64, dice: Dice) -> Self {
        Self {
            probability: percent / 100.0,
            dice,
        }
    }

    fn happens(&mut self) -> bool {
        self.dice.roll() < self.probability
    }
}

/// SplitMix64: small, seeded, the same everywhere.
#[derive(Clone)]
struct Dice(u64);

impl Dice {
    fn new(seed: u64, direction: u64, purpose: u64) -> Self {
        let mut dice = Self(seed);
        for salt in [direction, purpose] {
            dice.0 = dice.next().wrapping_add(salt);
        }
        dice
    }

    fn split(mut self) -> (Self, Self) {
        let other = Self(self.next());
        (self, other)
    }

    /// From 0 to just below 1.
    fn roll(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn numbered(number: u64) -> Vec<u8> {
        let mut frame = vec![0; 1000];
        frame[..8].copy_from_slice(&number.to_be_bytes());
        frame
    }

    fn number(frame: &[u8]) -> u64 {
        u64::from_be_bytes(*frame.first_chunk().unwrap())
    }

    /// Sends `count` frames, one in each `interval`, and returns the times when they came out.
    fn send(harm: &Harm, count: u64, interval: Duration) -> (Vec<(Duration, u64)>, Fates) {
        let mut path = Path::new(harm, 0);
        let mut out = Vec::new();
        for sent in 0..count {
            let now = interval * u32::try_from(sent).unwrap();
            while let Some(due) = path.next_due().filter(|&due| due < now) {
                drain(&mut path, due, &mut out);
            }
            path.offer(numbered(sent), now);
            drain(&mut path, now, &mut out);
        }
        while let Some(due) = path.next_due() {
            drain(&mut path, due, &mut out);
        }
        (out, path.fates())
    }

    fn drain(path: &mut Path<Vec<u8>>, now: Duration, out: &mut Vec<(Duration, u64)>) {
        while let Some(frame) = path.poll(now) {
            out.push((now, number(&frame)));
        }
    }

    fn numbers(out: &[(Duration, u64)]) -> Vec<u64> {
        out.iter().map(|&(_, number)| number).collect()
    }

    /// The lengths of the runs of lost frames.
    fn bursts(out: &[(Duration, u64)]) -> Vec<u64> {
        out.windows(2)
            .map(|pair| pair[1].1 - pair[0].1 - 1)
            .filter(|&missing| missing > 0)
            .collect()
    }

    #[test]
    fn does_nothing_by_default() {
        let (out, fates) = send(&Harm::default(), 1000, MS);
        assert_eq!(numbers(&out), (0..1000).collect::<Vec<_>>());
        assert!(out.iter().all(|&(at, number)| at == MS * number as u32));
        assert_eq!((fates.offered, fates.passed), (1000, 1000));
    }

    #[test]
    fn loses_as_many_as_asked_for_in_bursts_of_the_length_asked_for() {
        for (loss_percent, loss_burst, mean_burst) in [
            (0.1, None, 1.0),
            (1.0, None, 1.01),
            (3.0, None, 1.031),
            (50.0, None, 2.0),
            (1.0, Some(1.0), 1.0),
            (5.0, Some(4.0), 4.0),
            (1.0, Some(20.0), 20.0),
        ] {
            let harm = Harm {
                loss_percent,
                loss_burst,
                ..Harm::default()
            };
            let (out, fates) = send(&harm, 1_000_000, MS);
            assert_eq!(out.len() as u64, fates.offered - fates.lost);
            let lost_percent = fates.lost as f64 / 10_000.0;
            // Five standard deviations; those of bursts are longer by their root.
            let sigma = (loss_percent / 10_000.0 * mean_burst * 2.0).sqrt();
            assert!(
                (lost_percent - loss_percent).abs() < 5.0 * sigma,
                "{lost_percent} %"
            );
            let bursts = bursts(&out);
            let mean = bursts.iter().sum::<u64>() as f64 / bursts.len() as f64;
            assert!(
                (mean / mean_burst - 1.0).abs() < 0.1,
                "{mean}, not {mean_burst}"
            );
        }
    }

    #[test]
    fn a_seed_reproduces_and_another_one_does_not() {
        let harm = |seed| Harm {
            loss_percent: 3.0,
            loss_burst: Some(3.0),
            reorder_percent: 2.0,
            duplicate_percent: 1.0,
            jitter_ms: 2.0,
            delay_ms: 2.0,
            seed,
            ..Harm::default()
        };
        let first = send(&harm(7), 10_000, MS);
        assert_eq!(send(&harm(7), 10_000, MS), first);
        assert_ne!(send(&harm(8), 10_000, MS).0, first.0);
    }

    #[test]
    fn the_directions_are_harmed_differently() {
        let harm = Harm {
            loss_percent: 50.0,
            ..Harm::default()
        };
        let [there, back] = [0, 1].map(|direction| {
            let mut path = Path::new(&harm, direction);
            (0..100).for_each(|number| path.offer(numbered(number), Duration::ZERO));
            std::iter::from_fn(|| path.poll(Duration::ZERO)).collect::<Vec<_>>()
        });
        assert_ne!(there, back);
    }

    #[test]
    fn one_harm_does_not_change_another() {
        let lossy = Harm {
            loss_percent: 2.0,
            ..Harm::default()
        };
        let worse = Harm {
            reorder_percent: 5.0,
            duplicate_percent: 5.0,
            delay_ms: 3.0,
            jitter_ms: 1.0,
            ..lossy.clone()
        };
        let alone = numbers(&send(&lossy, 10_000, MS).0);
        let mut together = numbers(&send(&worse, 10_000, MS).0);
        together.sort_unstable();
        together.dedup();
        assert_eq!(together, alone);
    }

    #[test]
    fn a_frame_held_back_is_overtaken_by_as_many_as_asked_for() {
        let harm = Harm {
            reorder_percent: 2.0,
            reorder_by: 3,
            ..Harm::default()
        };
        // Frames come often, so that the number decides and not the time.
        let (out, fates) = send(&harm, 100_000, MS / 100);
        assert!((1800..2200).contains(&fates.held_back), "{fates:?}");
        let mut late = 0;
        for (place, number) in numbers(&out).into_iter().enumerate() {
            let behind = place as i64 - number as i64;
            // One that is held back meanwhile does not count as overtaking.
            assert!((-3..=5).contains(&behind), "{number} came as {place}");
            late += u64::from(behind >= 3);
        }
        assert!(late > fates.held_back * 8 / 10, "{late} of {fates:?}");
    }

    #[test]
    fn nothing_is_held_back_for_longer_than_5_ms_or_in_large_numbers() {
        for interval in [MS * 2, MS / 1000] {
            let harm = Harm {
                reorder_percent: 99.0,
                reorder_by: 100_000,
                ..Harm::default()
            };
            let (out, fates) = send(&harm, 10_000, interval);
            assert_eq!(out.len(), 10_000);
            assert!(fates.held_back > 0);
            for (at, number) in out {
                assert!(at <= interval * number as u32 + HELD_MAX);
            }
        }
    }

    #[test]
    fn duplicates_follow_their_originals() {
        let harm = Harm {
            duplicate_percent: 1.0,
            ..Harm::default()
        };
        let (out, fates) = send(&harm, 100_000, MS);
        assert!((800..1200).contains(&fates.duplicated), "{fates:?}");
        assert_eq!(out.len() as u64, 100_000 + fates.duplicated);
        assert!(out.is_sorted());
    }

    #[test]
    fn delay_and_jitter_keep_within_their_bounds_and_the_order() {
        let harm = Harm {
            delay_ms: 20.0,
            jitter_ms: 5.0,
            ..Harm::default()
        };
        let (out, _) = send(&harm, 10_000, MS);
        assert!(out.is_sorted());
        let took = |&(at, number): &(Duration, u64)| at - MS * number as u32;
        let (least, most) = (
            out.iter().map(took).min().unwrap(),
            out.iter().map(took).max().unwrap(),
        );
        assert!(least >= MS * 15 && most <= MS * 25, "{least:?} to {most:?}");
        assert!(most - least > MS * 8, "{least:?} to {most:?}");
    }

    #[test]
    fn frames_may_overtake_each_other_by_their_jitter() {
        for jitter_ms in [2.0, 100.0] {
            let harm = Harm {
                delay_ms: jitter_ms,
                jitter_ms,
                overtake: true,
                ..Harm::default()
            };
            let (out, fates) = send(&harm, 10_000, MS / 2);
            assert_eq!((out.len(), fates.passed), (10_000, 10_000));
            let most = MS.mul_f64(2.0 * jitter_ms);
            let took = |&(at, number): &(Duration, u64)| at - MS / 2 * number as u32;
            assert!(out.iter().all(|out| took(out) <= most));
            let late = |(place, number): (usize, u64)| (place as u64).saturating_sub(number);
            let latest = numbers(&out).into_iter().enumerate().map(late).max();
            // Two frames are sent in a millisecond.
            let by = latest.unwrap() as f64;
            assert!(
                (2.0 * jitter_ms..=4.0 * jitter_ms).contains(&by),
                "{by} of {jitter_ms}"
            );
            let mut each = numbers(&out);
            each.sort_unstable();
            assert!(each.into_iter().eq(0..10_000), "each once");
        }
    }

    #[test]
    fn jitter_above_the_delay_lets_no_frame_out_before_it_came() {
        let harm = Harm {
            delay_ms: 1.0,
            jitter_ms: 10.0,
            ..Harm::default()
        };
        let (out, _) = send(&harm, 1000, MS * 30);
        assert!(
            out.iter()
                .all(|&(at, number)| at >= MS * 30 * number as u32)
        );
    }

    #[test]
    fn a_link_has_its_speed_and_a_bounded_queue() {
        // A frame of 1000 bytes takes 1 ms; two of them come in each.
        let harm = Harm {
            rate_mbit: Some(8.0),
            queue_frames: 10,
            ..Harm::default()
        };
        let (out, fates) = send(&harm, 1000, MS / 2);
        assert!((505..=515).contains(&out.len()), "{}", out.len());
        assert_eq!(fates.queue_overflow, 1000 - out.len() as u64);
        assert!(out.windows(2).all(|pair| pair[1].0 - pair[0].0 == MS));
        let longest = out.iter().map(|&(at, number)| at - MS / 2 * number as u32);
        assert!(longest.max().unwrap() <= MS * 11);
    }

    #[test]
    fn a_late_relay_loses_no_frames_for_which_the_queue_had_room() {
        let harm = Harm {
            rate_mbit: Some(8.0),
            queue_frames: 10,
            ..Harm::default()
        };
        let mut path = Path::new(&harm, 0);
        let mut out = Vec::new();
        // As many as the link sends in this time come in each time.
        for round in 0..10 {
            for number in 0..10 {
                path.offer(numbered(round * 10 + number), MS * 10 * round as u32);
            }
        }
        assert_eq!(path.fates().queue_overflow, 0);
        drain(&mut path, MS * 1000, &mut out);
        assert_eq!(out.len(), 100);
    }

    #[test]
    fn frames_on_their_way_are_bounded() {
        let harm = Harm {
            delay_ms: 1000.0,
            ..Harm::default()
        };
        let mut path = Path::new(&harm, 0);
        let mut out = Vec::new();
        for number in 0..DELAY_FRAMES_MAX as u64 + 7 {
            path.offer(numbered(number), Duration::ZERO);
        }
        drain(&mut path, MS * 1000, &mut out);
        assert_eq!(out.len(), DELAY_FRAMES_MAX);
        assert_eq!(path.fates().delay_overflow, 7);
    }
}
