// SPDX-License-Identifier: MIT OR Apache-2.0
//! Scans the FDB: the VLANs in use, and how many addresses each port has in each of them.
//!
//! A large table is read in batches, one each second, so that no other work of the control thread
//! waits for long. Called by the slow path.

use std::{collections::BTreeSet, iter::zip};

use patchcord_bridge::{Fdb, PortId, Vid, VidSet};

/// Buckets of a batch: 65,536 addresses, a fifth of a millisecond if a quarter of them is known,
/// and all of the table if there are up to seven peers, by default.
const BUCKETS_AT_ONCE: usize = 8192;

/// The result of the scan.
pub(super) struct FdbScan {
    next_bucket: usize,
    /// By the batches so far.
    current: Seen,
    /// By the batches of the last whole table.
    last: Seen,
}

/// For each port.
struct Seen {
    vlans: Vec<VidSet>,
    addresses: Vec<usize>,
}

impl Seen {
    fn nothing(ports: usize) -> Self {
        Self {
            vlans: vec![VidSet::EMPTY; ports],
            addresses: vec![0; ports],
        }
    }
}

impl FdbScan {
    /// Nothing was read yet of the addresses of this many ports.
    pub(super) fn new(ports: usize) -> Self {
        Self {
            next_bucket: 0,
            current: Seen::nothing(ports),
            last: Seen::nothing(ports),
        }
    }

    /// Reads the next batch.
    pub(super) fn advance(&mut self, fdb: &Fdb, now_s: u32) {
        let batch = self.next_bucket..self.next_bucket + BUCKETS_AT_ONCE;
        self.next_bucket = batch.end;
        for entry in fdb.entries_in(batch, now_s) {
            let port = usize::from(entry.port.0);
            let seen = &mut self.current;
            if let (Some(vlans), Some(count)) =
                (seen.vlans.get_mut(port), seen.addresses.get_mut(port))
            {
                vlans.insert(entry.vid);
                *count += 1;
            }
        }
        if self.next_bucket >= fdb.buckets() {
            self.next_bucket = 0;
            let nothing = Seen::nothing(self.last.addresses.len());
            self.last = std::mem::replace(&mut self.current, nothing);
        }
    }

    /// The VLANs that a station is in, with that of untagged frames. A VLAN whose last station has
    /// gone is among them until the table was read to its end.
    pub(super) fn vlans(&self) -> VidSet {
        let mut all = VidSet::EMPTY;
        all.insert(Vid::UNTAGGED);
        for vlans in self.last.vlans.iter().chain(&self.current.vlans) {
            all.extend(vlans.iter());
        }
        all
    }

    /// The same with the ports of the stations.
    pub(super) fn stations(&self) -> BTreeSet<(Vid, PortId)> {
        let seen = zip(&self.last.vlans, &self.current.vlans);
        let ports = (0..).map(PortId).zip(seen);
        let all = ports.flat_map(|(port, (last, current))| {
            let vlans = last.iter().chain(current.iter());
            vlans.map(move |vid| (vid, port))
        });
        all.collect()
    }

    /// How many addresses each port had when the table was read to its end.
    pub(super) fn addresses(&self) -> &[usize] {
        &self.last.addresses
    }
}

#[cfg(test)]
mod tests {
    use patchcord_bridge::{MacAddr, PortId, SwitchConfig};

    use super::*;

    const BATCHES: usize = 4;

    /// A table of this many batches with addresses of ports 1 and 2 in the VLANs 0 to 99.
    fn table() -> Fdb {
        let config = SwitchConfig {
            fdb_capacity: BATCHES * BUCKETS_AT_ONCE * 8,
            max_per_port: usize::MAX,
            ..SwitchConfig::default()
        };
        let fdb = Fdb::new(&config, [1, 2]);
        for number in 0..30_000_u32 {
            let [_, a, b, c] = number.to_be_bytes();
            let vid = Vid::new((number % 100) as u16).unwrap();
            let port = PortId(1 + u16::from(number % 3 == 0));
            fdb.learn(vid, MacAddr([2, 0, 0, a, b, c]), port, 0);
        }
        fdb
    }

    #[test]
    fn a_table_is_read_to_its_end_and_then_again() {
        let fdb = table();
        let mut scan = FdbScan::new(3);
        assert_eq!(scan.vlans().iter().collect::<Vec<_>>(), [Vid::UNTAGGED]);
        for at in 1..=BATCHES {
            assert_eq!(scan.addresses(), [0; 3], "before batch {at}");
            scan.advance(&fdb, 1);
        }
        assert_eq!(scan.addresses(), [0, 20_000, 10_000]);
        assert_eq!(scan.vlans().iter().count(), 100);

        // One appears and another one goes.
        let (new, gone) = (Vid::new(200).unwrap(), Vid::new(7).unwrap());
        fdb.learn(new, MacAddr([2, 0, 0, 0, 0, 1]), PortId(0), 1);
        fdb.flush_vlan(gone);
        for _ in 0..BATCHES {
            assert!(scan.vlans().contains(gone), "until all was read");
            scan.advance(&fdb, 1);
        }
        assert_eq!(scan.addresses()[0], 1);
        let vlans = scan.vlans();
        assert!(vlans.contains(new) && !vlans.contains(gone));
        let stations = scan.stations();
        assert!(stations.contains(&(new, PortId(0))));
        assert!(!stations.contains(&(new, PortId(1))));
    }

    #[test]
    fn vlans_in_use_are_known_after_their_batch() {
        let fdb = Fdb::new(
            &SwitchConfig {
                fdb_capacity: BATCHES * BUCKETS_AT_ONCE * 8,
                ..SwitchConfig::default()
            },
            [1, 2],
        );
        let (vid, mac) = (Vid::new(9).unwrap(), MacAddr([2, 0, 0, 0, 0, 1]));
        fdb.learn(vid, mac, PortId(1), 0);
        let batch = fdb.bucket_of(vid, mac) / BUCKETS_AT_ONCE;
        let mut scan = FdbScan::new(2);
        for at in 0..2 * BATCHES {
            scan.advance(&fdb, 1);
            assert_eq!(scan.vlans().contains(vid), at >= batch, "batch {at}");
        }
    }
}
