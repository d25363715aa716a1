// SPDX-License-Identifier: MIT OR Apache-2.0
//! The priority of this process among the programs of other sessions (sched(7), "The autogroup
//! feature").
//!
//! With autogroups, which Linux has by default, a niceness counts inside one session only: two
//! sessions share a core in halves, whatever the niceness of their threads. A service has a session
//! of its own, so the niceness of its data threads says nothing to the programs whose frames it
//! carries. The niceness of the autogroup does.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Write},
    sync::{Mutex, OnceLock, PoisonError},
};

use crate::io::sys;

const PATH: &str = "/proc/self/autogroup";

/// The autogroup of this process, of which no other program is a member.
struct Autogroup {
    file: File,
    /// Its niceness before the first [`Boost`].
    usual: i32,
    boosts: Mutex<usize>,
}

/// Holds the niceness of this process's autogroup below the usual one. Several tunnels of one
/// process may each have one; with the last, the usual niceness comes back.
#[derive(Debug)]
pub(crate) struct Boost(());

impl Boost {
    /// `None` where there is nothing to gain: no autogroups, a session that this process shares
    /// with others, or a niceness that is not below the usual one.
    ///
    /// # Errors
    /// `EPERM` without CAP_SYS_NICE or RLIMIT_NICE. `EAGAIN` if an autogroup of the machine was
    /// changed within the last 100 ms; root is not held to that.
    pub(crate) fn take(nice: i32) -> io::Result<Option<Self>> {
        let Some(group) = own().filter(|group| nice < group.usual) else {
            return Ok(None);
        };
        let mut boosts = group.boosts.lock().unwrap_or_else(PoisonError::into_inner);
        if *boosts == 0 {
            group.set_niceness(nice)?;
        }
        *boosts += 1;
        Ok(Some(Self(())))
    }

    /// Ends it.
    ///
    /// # Errors
    /// The boost, which goes on, where [`take`](Self::take) would fail with `EAGAIN`.
    pub(crate) fn end(self) -> Result<(), Self> {
        if end_one().is_err() {
            return Err(self);
        }
        std::mem::forget(self);
        Ok(())
    }
}

impl Drop for Boost {
    fn drop(&mut self) {
        // The process most likely ends too, and its autogroup with it.
        let _ = end_one();
    }
}

fn end_one() -> io::Result<()> {
    let Some(group) = own() else {
        return Ok(());
    };
    let mut boosts = group.boosts.lock().unwrap_or_else(PoisonError::into_inner);
    if *boosts == 1 {
        group.set_niceness(group.usual)?;
    }
    *boosts = boosts.saturating_sub(1);
    Ok(())
}

fn own() -> Option<&'static Autogroup> {
    static OWN: OnceLock<Option<Autogroup>> = OnceLock::new();
    OWN.get_or_init(Autogroup::of_own_session).as_ref()
}

impl Autogroup {
    fn of_own_session() -> Option<Self> {
        // In the session of a terminal, its other programs would be raised too.
        if !sys::is_session_leader() {
            return None;
        }
        let file = OpenOptions::new().read(true).write(true).open(PATH).ok()?;
        let mut text = String::new();
        (&file).read_to_string(&mut text).ok()?;
        Some(Self {
            file,
            usual: niceness_in(&text)?,
            boosts: Mutex::default(),
        })
    }

    fn set_niceness(&self, nice: i32) -> io::Result<()> {
        // One call: the kernel takes each write as a whole number.
        (&self.file).write(nice.to_string().as_bytes()).map(drop)
    }
}

/// The kernel writes `/autogroup-25 nice 0`, or nothing if autogroups are off.
fn niceness_in(text: &str) -> Option<i32> {
    text.trim_end().rsplit_once(" nice ")?.1.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_niceness_is_what_the_kernel_writes() {
        assert_eq!(niceness_in("/autogroup-25 nice 0\n"), Some(0));
        assert_eq!(niceness_in("/autogroup-1500 nice -20\n"), Some(-20));
        assert_eq!(niceness_in(""), None);
    }

    #[test]
    fn a_session_of_several_programs_is_left_alone() {
        // Whoever runs the tests has begun their session.
        assert!(Boost::take(-20).unwrap().is_none());
    }
}
