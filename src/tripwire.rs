// SPDX-License-Identifier: MIT OR Apache-2.0
//! Faults that tests put into debug builds: a frame, or a task, that panics or hangs.
//!
//! Armed by `PATCHCORD_TRIPWIRE` in the environment. A release build does not contain it.

/// A frame that trips [`frame`] has one of these behind its Ethernet header.
#[cfg(debug_assertions)]
const PANICS: &[u8] = b"tripwire: panic!";
#[cfg(debug_assertions)]
const HANGS: &[u8] = b"tripwire: hangs!";

/// Panics or hangs over a frame that asks for it.
#[cfg(debug_assertions)]
pub(crate) fn frame(frame: &[u8]) {
    const HEADER: usize = 14;
    let Some(says) = frame.get(HEADER..HEADER + PANICS.len()) else {
        return;
    };
    if says == PANICS && is_armed("frame") {
        panic!("a frame said so");
    }
    if says == HANGS && is_armed("frame") {
        hang();
    }
}

/// Trips the task of this name.
#[cfg(debug_assertions)]
pub(crate) fn task(name: &str) {
    if is_armed(name) {
        panic!("the environment said so");
    }
}

#[cfg(debug_assertions)]
fn is_armed(name: &str) -> bool {
    std::env::var_os("PATCHCORD_TRIPWIRE").is_some_and(|armed| armed == name)
}

/// Longer than any test waits.
#[cfg(debug_assertions)]
#[expect(clippy::disallowed_methods, reason = "it hangs")]
fn hang() {
    std::thread::sleep(std::time::Duration::from_secs(600));
}

#[cfg(not(debug_assertions))]
#[inline(always)]
pub(crate) fn frame(_: &[u8]) {}

#[cfg(not(debug_assertions))]
#[inline(always)]
pub(crate) fn task(_: &str) {}
