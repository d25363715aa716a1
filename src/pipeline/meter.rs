// SPDX-License-Identifier: MIT OR Apache-2.0
//! How fast a peer's counters grow. The control task reads them once per second.

use std::time::{Duration, Instant};

use crate::{
    control::message::Rates,
    stats::{Flow, Traffic},
};

/// How often meters are read.
pub(super) const INTERVAL: Duration = Duration::from_secs(1);

/// Turns counters into rates.
#[derive(Debug)]
pub(super) struct Meter {
    read: Instant,
    outbound: (u64, u64),
    inbound: (u64, u64),
    rates: Rates,
}

impl Meter {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            read: now,
            outbound: (0, 0),
            inbound: (0, 0),
            rates: Rates::default(),
        }
    }

    /// Over the interval before the last reading.
    pub(super) fn rates(&self) -> Rates {
        self.rates
    }

    pub(super) fn read(&mut self, now: Instant, traffic: &Traffic) {
        let seconds = now.saturating_duration_since(self.read).as_secs_f64();
        if seconds <= 0.0 {
            return;
        }
        self.read = now;
        let (out_bits, out_frames) = advance(&mut self.outbound, &traffic.outbound);
        let (in_bits, in_frames) = advance(&mut self.inbound, &traffic.inbound);
        self.rates = Rates {
            outbound_bits_per_s: out_bits / seconds,
            outbound_frames_per_s: out_frames / seconds,
            inbound_bits_per_s: in_bits / seconds,
            inbound_frames_per_s: in_frames / seconds,
        };
    }
}

/// Bits and frames since the last reading.
fn advance((bytes, frames): &mut (u64, u64), flow: &Flow) -> (f64, f64) {
    let (bytes_now, frames_now) = (flow.bytes(), flow.frames());
    let bits = (bytes_now - std::mem::replace(bytes, bytes_now)) as f64 * 8.0;
    let count = (frames_now - std::mem::replace(frames, frames_now)) as f64;
    (bits, count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_those_of_the_last_interval() {
        let start = Instant::now();
        let traffic = Traffic::default();
        let mut meter = Meter::new(start);
        traffic.outbound.of(1).add_frames(10, 1250);
        meter.read(start + Duration::from_secs(1), &traffic);
        traffic.outbound.of(2).add_frames(1, 125);
        traffic.inbound.of(0).add_frames(4, 500);
        meter.read(start + Duration::from_secs(3), &traffic);
        let rates = meter.rates();
        assert_eq!(
            (rates.outbound_bits_per_s, rates.outbound_frames_per_s),
            (500.0, 0.5)
        );
        assert_eq!(
            (rates.inbound_bits_per_s, rates.inbound_frames_per_s),
            (2000.0, 2.0)
        );
        meter.read(start + Duration::from_secs(4), &traffic);
        assert_eq!(meter.rates(), Rates::default());
    }
}
