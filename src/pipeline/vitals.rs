// SPDX-License-Identifier: MIT OR Apache-2.0
//! Whether the threads and tasks of an engine get on with their work.
//!
//! Each has a [`Pulse`]. A data thread says when it waits for the kernel, where it may stay for days,
//! and when it works, which takes milliseconds; a task beats at least once a second. Whoever [looks]
//! once a second sees a pulse that stands still. Looks are counted and not time, which goes on while
//! the whole process is held up.
//!
//! [looks]: Vitals::look

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

/// Looks in a row that find a pulse where it was, after which the service manager is told no more
/// that all is well …
const DOUBT: u32 = 5;
/// … and after which the engine is broken.
const PATIENCE: u32 = 30;

/// Written by one thread or task.
#[derive(Debug, Default)]
#[repr(align(64))]
pub(super) struct Pulse(AtomicU64);

impl Pulse {
    /// From now on it waits. Twice the same is once.
    pub(super) fn rest(&self) {
        self.step(0);
    }

    /// From now on it works.
    pub(super) fn work(&self) {
        self.step(1);
    }

    /// To the next number that is odd while there is work.
    fn step(&self, working: u64) {
        let beat = self.0.load(Ordering::Relaxed);
        let next = (beat | 1).wrapping_add(1) | working;
        self.0.store(next, Ordering::Relaxed);
    }

    fn beat(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

struct Patient {
    name: String,
    pulse: Arc<Pulse>,
    seen: u64,
    /// Looks that found it at work, and no further than before.
    still: u32,
}

/// The pulses of an engine.
#[derive(Default)]
pub(crate) struct Vitals {
    patients: Mutex<Vec<Patient>>,
    is_in_doubt: AtomicBool,
}

impl Vitals {
    /// For a thread or task of this name.
    pub(super) fn pulse(&self, name: &str) -> Arc<Pulse> {
        let pulse = Arc::new(Pulse::default());
        let patient = Patient {
            name: name.to_owned(),
            pulse: pulse.clone(),
            seen: 0,
            still: 0,
        };
        let mut patients = self.patients.lock().unwrap_or_else(PoisonError::into_inner);
        patients.push(patient);
        pulse
    }

    /// To be called once a second. The first whose work has not got on for too long.
    pub(super) fn look(&self) -> Option<String> {
        let mut patients = self.patients.lock().unwrap_or_else(PoisonError::into_inner);
        for patient in &mut *patients {
            let beat = patient.pulse.beat();
            let is_still = beat & 1 == 1 && beat == patient.seen;
            patient.still = if is_still { patient.still + 1 } else { 0 };
            patient.seen = beat;
        }
        let longest = patients.iter().max_by_key(|patient| patient.still)?;
        let is_in_doubt = longest.still >= DOUBT;
        self.is_in_doubt.store(is_in_doubt, Ordering::Relaxed);
        (longest.still >= PATIENCE).then(|| longest.name.clone())
    }

    /// As of the last look.
    pub(crate) fn are_well(&self) -> bool {
        !self.is_in_doubt.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_waits_is_well_and_who_does_not_get_on_is_named() {
        let vitals = Vitals::default();
        let [waits, works, hangs] = ["waits", "works", "hangs"].map(|name| vitals.pulse(name));
        waits.work();
        waits.rest();
        hangs.work();
        for look in 0..=PATIENCE {
            works.work();
            let found = vitals.look();
            assert_eq!(vitals.are_well(), look < DOUBT, "{look}");
            assert_eq!(found.as_deref(), (look == PATIENCE).then_some("hangs"));
        }
        hangs.rest();
        assert_eq!(vitals.look(), None);
        assert!(vitals.are_well());
    }

    #[test]
    fn each_step_is_another_number_and_odd_at_work() {
        let pulse = Pulse::default();
        let mut beats = vec![pulse.beat()];
        for is_work in [true, true, false, false, true] {
            if is_work {
                pulse.work()
            } else {
                pulse.rest()
            }
            assert_eq!(pulse.beat() & 1 == 1, is_work);
            assert!(pulse.beat() > *beats.last().unwrap());
            beats.push(pulse.beat());
        }
    }
}
