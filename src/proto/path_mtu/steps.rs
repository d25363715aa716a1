// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which sizes a step of the search probes: those of a table, then some between two of them, until
//! the size is exact.

use crate::proto::limits::{PATH_MTU_BASE, PATH_MTU_FLOOR, PATH_MTU_MAX};

/// IP packet sizes worth probing: the floors of RFC 791 and RFC 8200, common tunnels and access
/// lines, Ethernet, jumbo frames.
const SIZES: &[u16] = &[
    PATH_MTU_FLOOR,
    1000,
    1200,
    PATH_MTU_BASE,
    1300,
    1320,
    1340,
    1360,
    1380,
    1400,
    1420,
    1440,
    1460,
    1472,
    1480,
    1492,
    ETHERNET,
    1600,
    2000,
    3000,
    4000,
    4352,
    6000,
    8000,
    8900,
    9000,
    9198,
    PATH_MTU_MAX,
];
pub(super) const ETHERNET: u16 = 1500;
/// No size is known not to arrive.
pub(super) const NO_CEILING: u16 = PATH_MTU_MAX + 1;
/// At most this many sizes between two of the table are probed at once.
const STEPS: u16 = 8;

/// The first step of a search that assumes `current`: it probes that, too.
pub(super) fn first(current: u16) -> Vec<u16> {
    table(current, ETHERNET + 1).collect()
}

/// Probes whether a path that was found to carry `current` has become wider, however little.
pub(super) fn above(current: u16) -> Vec<u16> {
    let limit = limit(current);
    // Nearly all paths that carry more than an Ethernet's packets carry jumbo frames.
    let next = (current != ETHERNET && current < limit).then_some(current + 1);
    let table = table(current + 1, limit + 1).filter(|&size| Some(size) != next);
    next.into_iter().chain(table).collect()
}

/// The next step where `current` arrives and `ceiling` does not; empty when there is none.
pub(super) fn between(current: u16, ceiling: u16) -> Vec<u16> {
    let sizes: Vec<_> = table(current + 1, ceiling.min(limit(current) + 1)).collect();
    if !sizes.is_empty() || current == ETHERNET {
        return sizes;
    }
    let gap = ceiling - current;
    let steps = STEPS.min(gap - 1);
    let at = |step| current + (u32::from(gap) * u32::from(step) / u32::from(steps + 1)) as u16;
    (1..=steps).map(at).collect()
}

/// Jumbo frames are probed only where an Ethernet's packets arrive.
fn limit(current: u16) -> u16 {
    match current < ETHERNET {
        true => ETHERNET,
        false => PATH_MTU_MAX,
    }
}

fn table(from: u16, to: u16) -> impl Iterator<Item = u16> {
    let sizes = SIZES.iter().copied();
    sizes.filter(move |size| (from..to).contains(size))
}
