// SPDX-License-Identifier: MIT OR Apache-2.0
//! `bench crypto`: the speed of the data ciphers on this machine, measured by `crypto::speed`.

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

use clap::Args;
use patchcord::internals::crypto::aead::CipherOffer;
use patchcord::internals::crypto::speed::{self, Implementation, ROUNDS, Speed, Spread};
use patchcord::internals::proto::limits::{
    REJECT_AFTER_DATAGRAMS, REKEY_AFTER_DATAGRAMS, REKEY_AFTER_TIME,
};
use serde::Serialize;

use super::failure::Failure;
use super::output::{number, print, table};

#[derive(Args)]
pub(super) struct CryptoOptions {
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// How long to measure
    #[arg(long, value_name = "N", default_value = "2.5", value_parser = seconds)]
    seconds: Duration,
}

pub(super) fn crypto(options: &CryptoOptions) -> Result<(), Failure> {
    #[expect(clippy::disallowed_methods, reason = "what is measured is time")]
    let clock = Instant::now;
    let speeds = speed::measure(options.seconds, clock);
    let report = Report::new(&speeds, CipherOffer::auto(clock));
    let text = if options.json {
        serde_json::to_string_pretty(&report)? + "\n"
    } else {
        page(&report)
    };
    print(&text)?;
    Ok(())
}

/// Reads the argument of `--seconds`.
fn seconds(text: &str) -> Result<Duration, String> {
    const RANGE: std::ops::RangeInclusive<f64> = 0.1..=600.0;
    match text.parse() {
        Ok(seconds) if RANGE.contains(&seconds) => Ok(Duration::from_secs_f64(seconds)),
        _ => Err("give a number from 0.1 to 600".into()),
    }
}

/// Scripts rely on the names of these fields.
#[derive(Serialize)]
struct Report {
    version: &'static str,
    cpu: Cpu,
    /// The cipher that `auto` chooses with a peer on such a machine.
    auto: &'static str,
    limits: Limits,
    rounds: usize,
    ciphers: Vec<CipherReport>,
}

#[derive(Serialize)]
struct Cpu {
    model: Option<String>,
    fast_aes: bool,
    features: BTreeMap<&'static str, bool>,
}

#[derive(Serialize)]
struct Limits {
    rekey_after_datagrams: u64,
    reject_after_datagrams: u64,
    rekey_after_s: u64,
}

#[derive(Serialize)]
struct CipherReport {
    cipher: &'static str,
    /// Not a cipher of tunnels.
    reference: bool,
    sizes: Vec<SizeReport>,
}

#[derive(Serialize)]
struct SizeReport {
    bytes: usize,
    seal: Figure,
    open: Figure,
}

#[derive(Serialize)]
struct Figure {
    ns: f64,
    ns_min: f64,
    ns_max: f64,
    gb_per_s: f64,
}

impl Report {
    fn new(speeds: &[Speed], offer: CipherOffer) -> Self {
        Self {
            version: env!("CARGO_PKG_VERSION"),
            cpu: Cpu {
                model: cpu_model(),
                fast_aes: offer.fast_aes,
                features: speed::cpu_features().into_iter().collect(),
            },
            auto: offer.choose(offer).map_or("none", |cipher| cipher.name()),
            limits: Limits {
                rekey_after_datagrams: REKEY_AFTER_DATAGRAMS,
                reject_after_datagrams: REJECT_AFTER_DATAGRAMS,
                rekey_after_s: REKEY_AFTER_TIME.as_secs(),
            },
            rounds: ROUNDS,
            ciphers: Implementation::all()
                .into_iter()
                .map(|implementation| CipherReport {
                    cipher: implementation.cipher().name(),
                    reference: implementation.is_reference(),
                    sizes: speeds
                        .iter()
                        .filter(|speed| speed.implementation == implementation)
                        .map(SizeReport::of)
                        .collect(),
                })
                .collect(),
        }
    }
}

impl SizeReport {
    fn of(speed: &Speed) -> Self {
        // A gigabyte in a second is a byte in a nanosecond.
        let figure = |spread: Spread| Figure {
            ns: spread.median_ns,
            ns_min: spread.min_ns,
            ns_max: spread.max_ns,
            gb_per_s: speed.len as f64 / spread.median_ns,
        };
        Self {
            bytes: speed.len,
            seal: figure(speed.seal),
            open: figure(speed.open),
        }
    }
}

fn page(report: &Report) -> String {
    let Limits {
        rekey_after_datagrams,
        reject_after_datagrams,
        rekey_after_s,
    } = report.limits;
    let cell = String::from;
    let facts = vec![
        vec![cell("cpu"), cpu(&report.cpu)],
        vec![
            cell("auto"),
            format!("{}, if the peer's machine is like this one", report.auto),
        ],
        vec![
            cell("keys"),
            format!(
                "replaced after {} datagrams of a lane or {rekey_after_s} s, never used for more than {}",
                number(rekey_after_datagrams),
                number(reject_after_datagrams)
            ),
        ],
    ];
    let head = [
        "cipher", "bytes", "seal ns", "min", "max", " GB/s", "open ns", "min", "max", " GB/s",
    ];
    let mut rows = vec![right_aligned(head.map(cell))];
    for cipher in &report.ciphers {
        rows.extend(cipher.sizes.iter().map(|size| row(cipher, size)));
    }
    let mut text = table("", facts);
    text += &format!(
        "\nOne core, medians of {} rounds; bytes are those of a datagram's plaintext.\n\n{}",
        report.rounds,
        table("", rows)
    );
    text + "\n* pure Rust, for comparison; tunnels do not use it\n"
}

fn cpu(cpu: &Cpu) -> String {
    let present: Vec<_> = cpu
        .features
        .iter()
        .filter_map(|(&name, &is_there)| is_there.then_some(name))
        .collect();
    format!(
        "{}; {} for AES ({})",
        cpu.model.as_deref().unwrap_or(std::env::consts::ARCH),
        if cpu.fast_aes {
            "instructions"
        } else {
            "no instructions"
        },
        if present.is_empty() {
            "nothing detected".into()
        } else {
            present.join(", ")
        }
    )
}

fn row(cipher: &CipherReport, size: &SizeReport) -> Vec<String> {
    let star = if cipher.reference { " *" } else { "" };
    let [seal, open] = [&size.seal, &size.open].map(|figure| {
        let ns = |value: f64| format!("{value:.0}");
        [
            ns(figure.ns),
            ns(figure.ns_min),
            ns(figure.ns_max),
            format!("{:.2}", figure.gb_per_s),
        ]
    });
    let [seal_ns, seal_min, seal_max, seal_rate] = seal;
    let [open_ns, open_min, open_max, open_rate] = open;
    right_aligned([
        format!("{}{star}", cipher.cipher),
        size.bytes.to_string(),
        seal_ns,
        seal_min,
        seal_max,
        seal_rate,
        open_ns,
        open_min,
        open_max,
        open_rate,
    ])
}

/// Aligns all cells but the first to the right.
fn right_aligned(cells: [String; 10]) -> Vec<String> {
    const WIDTHS: [usize; 10] = [0, 5, 8, 6, 6, 6, 8, 6, 6, 6];
    cells
        .into_iter()
        .zip(WIDTHS)
        .map(|(cell, width)| format!("{cell:>width$}"))
        .collect()
}

fn cpu_model() -> Option<String> {
    let text = fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}
