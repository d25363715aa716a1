// SPDX-License-Identifier: MIT OR Apache-2.0
//! Removes learned addresses: of a port, of a VLAN, or all of them.
//!
//! Called by the control thread, while the data threads go on.

use super::bucket::{Key, Value, WAYS};
use super::table::Fdb;
use crate::port_id::PortId;
use crate::vlan::Vid;

impl Fdb {
    /// Removes the addresses that were learned on `port` and returns their number; assigned
    /// addresses stay until the configuration or the controller removes them.
    ///
    /// Another thread may still learn from a frame of that port that it is processing. Such an
    /// entry is true, if late, and it ages.
    pub fn flush_port(&self, port: PortId) -> usize {
        self.flush(|_, held| held.port == port)
    }

    /// Removes the location of the stations behind `port` and returns their number, but keeps ports
    /// that guard against forged sources from learning their addresses until these age: no station
    /// gets the address of another by taking that station's port off the network.
    pub fn bind_port(&self, port: PortId) -> usize {
        let is_meant = |_, held: Value| held.port == port && !held.is_bound();
        self.change_learned(is_meant, Value::bound)
    }

    /// The same for the stations behind all ports.
    pub fn bind_learned(&self) -> usize {
        self.change_learned(|_, held| !held.is_bound(), Value::bound)
    }

    /// [`Self::flush_port`] for one VLAN of the port.
    pub fn flush_port_in(&self, port: PortId, vid: Vid) -> usize {
        self.flush(|key, held| held.port == port && key.vid() == vid)
    }

    /// Removes the addresses that were learned in this VLAN and returns their number.
    pub fn flush_vlan(&self, vid: Vid) -> usize {
        self.flush(|key, _| key.vid() == vid)
    }

    /// Removes all learned addresses and returns their number.
    pub fn flush_learned(&self) -> usize {
        self.flush(|_, _| true)
    }

    fn flush(&self, is_meant: impl Fn(Key, Value) -> bool) -> usize {
        self.change_learned(is_meant, Value::vacated)
    }

    fn change_learned(
        &self,
        is_meant: impl Fn(Key, Value) -> bool,
        change: impl Fn(Value) -> Value,
    ) -> usize {
        let mut changed = 0;
        for bucket in &self.buckets {
            for slot in 0..WAYS {
                while let Some((key, held)) = bucket.held(slot) {
                    if !held.is_learned() || !is_meant(key, held) {
                        break;
                    }
                    if self.replace(bucket, slot, held, change(held)) {
                        changed += 1;
                        break;
                    }
                }
            }
        }
        changed
    }
}
