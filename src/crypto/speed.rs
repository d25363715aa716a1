// SPDX-License-Identifier: MIT OR Apache-2.0
//! How fast the data ciphers are on this machine, measured with the code that tunnels run.
//!
//! Seals and opens datagrams in memory, in slices of time that rotate through all ciphers and
//! sizes, so that other load on the machine affects all of them alike. It reads no clock: the
//! caller provides one. Called by `patchcord bench crypto`, and for the choice of a cipher.

use std::{
    sync::OnceLock,
    time::{Duration, Instant},
};

use chacha20poly1305::{ChaCha20Poly1305, KeyInit, aead::AeadInPlace};

use super::{
    aead::{Cipher, CipherOffer, LaneKey},
    noise::SplitKey,
    random,
};
use crate::wire::{Counter, DATA_HEADER_LEN, Lane, TAG_LEN};

/// Bytes of plaintext that are measured: a small frame, a medium one, and full datagrams on paths of
/// 1500 and 9000 bytes or nearly.
pub const SIZES: [usize; 4] = [64, 256, 1444, 8972];
/// Each figure is the median of this many slices of time.
pub const ROUNDS: usize = 7;

/// Datagrams that are sealed, and then opened, between two readings of the clock: about a train.
const POOL_BYTES: usize = 65_000;
const POOL_DATAGRAMS: usize = 64;

/// Code that seals and opens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Implementation {
    /// The cipher as a tunnel uses it.
    Tunnel(Cipher),
    /// ChaCha20-Poly1305 without assembly, of the crate `chacha20poly1305`, for comparison. No
    /// tunnel uses it.
    PureRust,
}

impl Implementation {
    /// All that are measured: what a tunnel on this machine may use, and the reference.
    pub fn all() -> Vec<Self> {
        let tunnels = Cipher::available().map(Self::Tunnel);
        tunnels.chain([Self::PureRust]).collect()
    }

    /// The cipher.
    pub const fn cipher(self) -> Cipher {
        match self {
            Self::Tunnel(cipher) => cipher,
            Self::PureRust => Cipher::ChaCha20Poly1305,
        }
    }

    /// Whether it is only for comparison.
    pub const fn is_reference(self) -> bool {
        matches!(self, Self::PureRust)
    }
}

/// Nanoseconds for one datagram, over the rounds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    /// Half of the rounds were faster.
    pub median_ns: f64,
    /// The fastest round.
    pub min_ns: f64,
    /// The slowest round.
    pub max_ns: f64,
}

/// One line of the result.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Speed {
    /// The implementation measured.
    pub implementation: Implementation,
    /// Bytes of plaintext in a datagram.
    pub len: usize,
    /// Encrypting, with the tag.
    pub seal: Spread,
    /// Checking the tag and decrypting.
    pub open: Spread,
}

impl CipherOffer {
    /// Every cipher that is available; which ones are fast is read from the CPU and, with `clock`,
    /// measured, once for the process (less than a millisecond).
    pub fn auto(clock: impl Fn() -> Instant) -> Self {
        static AEGIS_IS_FAST: OnceLock<bool> = OnceLock::new();
        /// In all; a slice of it is one pool of datagrams at the least.
        const BUDGET: Duration = Duration::from_micros(500);

        let (aegis, aes) = (Cipher::Aegis128X4, Cipher::Aes256Gcm);
        let measure = || aegis.is_available() && is_faster(aegis, aes, BUDGET, clock);
        Self::all(*AEGIS_IS_FAST.get_or_init(measure))
    }
}

/// Measures every implementation at every size for about `budget` in total, on this thread.
pub fn measure(budget: Duration, clock: impl Fn() -> Instant) -> Vec<Speed> {
    let implementations = Implementation::all();
    run_all(&implementations, &SIZES, ROUNDS, budget, clock)
}

/// The share of the other cipher's time that the faster one may take. Its keys are shorter, and where
/// it takes nine tenths, no tunnel was seen to gain by it.
const FASTER: f64 = 0.8;

/// Whether `cipher` is clearly faster than `other` for a small and a full datagram together, sealed
/// and opened, each in the fastest of a few rounds.
fn is_faster(cipher: Cipher, other: Cipher, budget: Duration, clock: impl Fn() -> Instant) -> bool {
    const LENS: [usize; 2] = [SIZES[0], SIZES[2]];
    const FEW_ROUNDS: usize = 4;

    let both = [cipher, other].map(Implementation::Tunnel);
    let speeds = run_all(&both, &LENS, FEW_ROUNDS, budget, clock);
    let total_ns = |implementation| -> f64 {
        let its = speeds
            .iter()
            .filter(|it| it.implementation == implementation);
        its.map(|speed| speed.seal.min_ns + speed.open.min_ns).sum()
    };
    total_ns(both[0]) <= FASTER * total_ns(both[1])
}

fn run_all(
    implementations: &[Implementation],
    lens: &[usize],
    rounds: usize,
    budget: Duration,
    clock: impl Fn() -> Instant,
) -> Vec<Speed> {
    let mut contests: Vec<_> = lens
        .iter()
        .flat_map(|&len| {
            let each = implementations.iter();
            each.map(move |&implementation| Contest::new(implementation, len))
        })
        .collect();
    let slice = budget / (contests.len() * (rounds + 1)) as u32;
    for round in 0..=rounds {
        for contest in &mut contests {
            let (seal_ns, open_ns) = contest.run(slice, &clock);
            // The first round warms up caches and the processor's clock.
            if round > 0 {
                contest.seal_ns.push(seal_ns);
                contest.open_ns.push(open_ns);
            }
        }
    }
    contests.into_iter().map(Contest::result).collect()
}

/// The instructions of this processor that make the ciphers fast, and whether it has them. Empty on
/// processors of which nothing is known.
pub fn cpu_features() -> Vec<(&'static str, bool)> {
    #[cfg(target_arch = "x86_64")]
    return vec![
        ("aes", std::arch::is_x86_feature_detected!("aes")),
        (
            "pclmulqdq",
            std::arch::is_x86_feature_detected!("pclmulqdq"),
        ),
        ("avx2", std::arch::is_x86_feature_detected!("avx2")),
        ("vaes", std::arch::is_x86_feature_detected!("vaes")),
        (
            "vpclmulqdq",
            std::arch::is_x86_feature_detected!("vpclmulqdq"),
        ),
        ("avx512f", std::arch::is_x86_feature_detected!("avx512f")),
    ];
    #[cfg(target_arch = "aarch64")]
    return vec![
        ("aes", std::arch::is_aarch64_feature_detected!("aes")),
        ("pmull", std::arch::is_aarch64_feature_detected!("pmull")),
        ("neon", std::arch::is_aarch64_feature_detected!("neon")),
    ];
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    Vec::new()
}

/// One implementation at one size, and its results so far.
struct Contest {
    implementation: Implementation,
    len: usize,
    key: Key,
    /// Datagrams back to back, each with room for its tag.
    pool: Vec<u8>,
    /// The sequence number of the pool's first datagram.
    next: u64,
    seal_ns: Vec<f64>,
    open_ns: Vec<f64>,
}

impl Contest {
    fn new(implementation: Implementation, len: usize) -> Self {
        let datagrams = (POOL_BYTES / (len + TAG_LEN)).clamp(1, POOL_DATAGRAMS);
        Self {
            implementation,
            len,
            key: Key::random(implementation),
            pool: vec![0x5a; datagrams * (len + TAG_LEN)],
            next: 0,
            seal_ns: Vec::with_capacity(ROUNDS),
            open_ns: Vec::with_capacity(ROUNDS),
        }
    }

    /// Seals and opens for `slice`; nanoseconds for one datagram of each.
    fn run(&mut self, slice: Duration, clock: &impl Fn() -> Instant) -> (f64, f64) {
        let begin = clock();
        let (mut sealing, mut opening, mut datagrams) = (Duration::ZERO, Duration::ZERO, 0);
        loop {
            let before = clock();
            self.seal_pool();
            let between = clock();
            self.open_pool();
            let after = clock();
            sealing += between - before;
            opening += after - between;
            datagrams += self.pool.len() / (self.len + TAG_LEN);
            if after - begin >= slice {
                let each_ns = |time: Duration| time.as_secs_f64() * 1e9 / datagrams as f64;
                return (each_ns(sealing), each_ns(opening));
            }
        }
    }

    fn seal_pool(&mut self) {
        for (counter, datagram) in counters(self.next).zip(self.pool.chunks_mut(self.len + TAG_LEN))
        {
            let (plaintext, tag) = datagram.split_at_mut(self.len);
            tag.copy_from_slice(&self.key.seal(counter, &HEADER, plaintext));
        }
    }

    fn open_pool(&mut self) {
        for (counter, datagram) in counters(self.next).zip(self.pool.chunks_mut(self.len + TAG_LEN))
        {
            self.key.open(counter, &HEADER, datagram);
            self.next += 1;
        }
    }

    fn result(self) -> Speed {
        Speed {
            implementation: self.implementation,
            len: self.len,
            seal: Spread::of(self.seal_ns),
            open: Spread::of(self.open_ns),
        }
    }
}

/// Stands for a datagram's header, which is authenticated.
const HEADER: [u8; DATA_HEADER_LEN] = [0x14; DATA_HEADER_LEN];

fn counters(first: u64) -> impl Iterator<Item = Counter> {
    (first..).map(|sequence| Counter::new(Lane::FIRST_DATA, sequence))
}

enum Key {
    Tunnel(LaneKey),
    PureRust(Box<ChaCha20Poly1305>),
}

impl Key {
    fn random(implementation: Implementation) -> Self {
        let mut bytes = [0; 32];
        random(&mut bytes);
        match implementation {
            Implementation::Tunnel(cipher) => {
                let split = SplitKey::from_bytes(bytes);
                Self::Tunnel(LaneKey::derive(&split, cipher, Lane::FIRST_DATA))
            }
            Implementation::PureRust => {
                Self::PureRust(Box::new(ChaCha20Poly1305::new(&bytes.into())))
            }
        }
    }

    fn seal(&self, counter: Counter, aad: &[u8], plaintext: &mut [u8]) -> [u8; TAG_LEN] {
        match self {
            Self::Tunnel(key) => key.seal(counter, aad, plaintext),
            Self::PureRust(key) => key
                .encrypt_in_place_detached(&nonce(counter).into(), aad, plaintext)
                .expect("a datagram is shorter than the cipher's limit")
                .into(),
        }
    }

    fn open(&self, counter: Counter, aad: &[u8], datagram: &mut [u8]) {
        match self {
            Self::Tunnel(key) => {
                key.open(counter, aad, datagram)
                    .expect("it was sealed with this key");
            }
            Self::PureRust(key) => {
                let (sealed, tag) = datagram.split_at_mut(datagram.len() - TAG_LEN);
                key.decrypt_in_place_detached(&nonce(counter).into(), aad, sealed, (&*tag).into())
                    .expect("it was sealed with this key");
            }
        }
    }
}

fn nonce(counter: Counter) -> [u8; 12] {
    let mut nonce = [0; 12];
    nonce[4..].copy_from_slice(&counter.value().to_be_bytes());
    nonce
}

impl Spread {
    fn of(mut rounds_ns: Vec<f64>) -> Self {
        rounds_ns.sort_by(f64::total_cmp);
        Self {
            median_ns: rounds_ns[rounds_ns.len() / 2],
            min_ns: rounds_ns[0],
            max_ns: rounds_ns[rounds_ns.len() - 1],
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn figures_are_of_the_clock_that_is_given() {
        let (start, looks) = (Instant::now(), Cell::new(0));
        let speeds = measure(Duration::ZERO, || {
            looks.set(looks.get() + 1);
            start + Duration::from_micros(looks.get())
        });
        let implementations = Implementation::all().len();
        assert_eq!(speeds.len(), implementations * SIZES.len());
        let of_a_size = speeds.chunks(implementations);
        // One microsecond for a pool of 64, 64, 44 and 7 datagrams.
        for (speed, expected_ns) in of_a_size.zip([15.625, 15.625, 22.727, 142.857]) {
            for figure in speed {
                for spread in [figure.seal, figure.open] {
                    assert!((spread.median_ns - expected_ns).abs() < 0.001, "{figure:?}");
                    assert_eq!(spread.min_ns, spread.max_ns);
                }
            }
        }
    }

    /// A clock that goes on by a microsecond at each look, and for the looks of `slow` by ten: a pool
    /// takes three looks, and one more begins it.
    fn clock_that_is_slow_in(slow: impl Fn(u64) -> bool) -> impl Fn() -> Instant {
        let (start, looks, passed) = (Instant::now(), Cell::new(0), Cell::new(0));
        move || {
            let step = if slow(looks.get() / 4) { 10 } else { 1 };
            looks.set(looks.get() + 1);
            passed.set(passed.get() + step);
            start + Duration::from_micros(passed.get())
        }
    }

    #[test]
    fn the_faster_cipher_is_the_one_that_the_clock_says() {
        let wins = |slow: fn(u64) -> bool| {
            let (one, other) = (Cipher::ChaCha20Poly1305, Cipher::Aes256Gcm);
            is_faster(one, other, Duration::ZERO, clock_that_is_slow_in(slow))
        };
        // The two ciphers take turns.
        assert!(wins(|turn| turn % 2 == 1));
        assert!(!wins(|turn| turn % 2 == 0));
        // As fast as the other is not enough for shorter keys.
        assert!(!wins(|_| false));
        // A round in which all are slow decides nothing.
        assert!(wins(|turn| turn % 2 == 1 || turn / 4 == 2));
    }

    #[test]
    fn auto_allows_what_is_available() {
        let auto = CipherOffer::auto(Instant::now);
        for cipher in Cipher::ALL {
            let is_allowed = auto.allowed & cipher as u8 != 0;
            assert_eq!(is_allowed, cipher.is_available(), "{cipher:?}");
            assert_eq!(Cipher::from_bit(cipher as u8), Some(cipher));
        }
        assert_eq!(auto, CipherOffer::auto(Instant::now), "measured once");
    }

    #[test]
    fn a_spread_has_the_middle_and_both_ends() {
        let spread = Spread::of(vec![5.0, 1.0, 3.0]);
        let Spread {
            median_ns,
            min_ns,
            max_ns,
        } = spread;
        assert_eq!((median_ns, min_ns, max_ns), (3.0, 1.0, 5.0));
    }
}
