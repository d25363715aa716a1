// SPDX-License-Identifier: MIT OR Apache-2.0
//! The requests of `patchcord fdb`, and the part of `show` about the FDB.
//!
//! Addresses and names are text here, so that the tunnel can report an error in one in plain words, and
//! not the codec.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A request to the FDB; optional fields have a default.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum FdbRequest {
    /// Answer with an [`FdbPage`].
    Show(FdbShow),
    /// Assign an address to a port, whatever entry it has.
    Add(FdbAdd),
    /// Delete an address, whatever its origin.
    Del(FdbDel),
    /// Delete learned addresses.
    Flush(FdbFlush),
}

/// The part of the FDB to show.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct FdbShow {
    /// The start of the part: [`FdbPage::next`], 0 at first.
    #[serde(skip_serializing_if = "is_default")]
    pub from: u32,
    /// Only this address.
    #[serde(skip_serializing_if = "is_default")]
    pub mac: Option<String>,
    /// Only this VLAN; 0 is no VLAN.
    #[serde(skip_serializing_if = "is_default")]
    pub vid: Option<u16>,
    /// Only this port: `tap`, or the peer's name.
    #[serde(skip_serializing_if = "is_default")]
    pub port: Option<String>,
}

/// An address and its port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FdbAdd {
    /// VLAN, 0 when untagged.
    #[serde(default, skip_serializing_if = "is_default")]
    pub vid: u16,
    /// Address.
    pub mac: String,
    /// `tap`, or the peer's name.
    pub port: String,
    /// The origin of the entry.
    #[serde(default, skip_serializing_if = "is_default")]
    pub origin: Assigner,
    /// The number under which a controller advertises it (RFC 7432, section 7.7); absent is 0.
    #[serde(default, skip_serializing_if = "is_default")]
    pub sequence: Option<u32>,
}

/// The origin of an assigned address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Assigner {
    /// The administrator: it neither ages nor moves.
    #[default]
    Static,
    /// A control plane: it does not age, and moves with its station.
    Controller,
}

/// An address to delete.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FdbDel {
    /// VLAN, 0 when untagged.
    #[serde(default, skip_serializing_if = "is_default")]
    pub vid: u16,
    /// Address.
    pub mac: String,
    /// Only if a controller advertised it under this number or an earlier one, and no frame has moved
    /// it since.
    #[serde(default, skip_serializing_if = "is_default")]
    pub sequence: Option<u32>,
}

/// The learned addresses to delete; all of them by default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct FdbFlush {
    /// Only those of this port: `tap`, or the peer's name.
    #[serde(skip_serializing_if = "is_default")]
    pub port: Option<String>,
    /// Only those in this VLAN; 0 is no VLAN.
    #[serde(skip_serializing_if = "is_default")]
    pub vid: Option<u16>,
}

/// Omits defaults, so that a request is no longer when it is written than when it was read.
fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// A part of the FDB.
///
/// An address is always in the same part, so it comes once. The parts are read at different times.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FdbPage {
    /// Addresses, in no particular order; there may be none although more parts follow.
    pub entries: Vec<FdbStatus>,
    /// The start of the next part, if there is one.
    pub next: Option<u32>,
}

/// An entry of the FDB.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FdbStatus {
    /// VLAN, 0 when untagged.
    pub vid: u16,
    /// Address.
    pub mac: String,
    /// `tap` or the peer's name.
    pub port: String,
    /// Seconds since it was last seen, or assigned.
    pub age_s: u32,
    /// `learned`, `static` or `controller`.
    pub origin: String,
    /// The number under which a controller last advertised it, even if it has moved since.
    pub sequence: Option<u32>,
    /// Whether it moved too often, and for now follows its station at a lower rate.
    pub dampened: bool,
    /// Whether its port is down, and the entry only keeps the address from ports with
    /// `spoof-guard`.
    pub bound: bool,
}

/// The counters of the switch.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SwitchStatus {
    /// How full the FDB is.
    pub addresses: AddressCounts,
    /// Changes of addresses since the start.
    pub counters: FdbCounters,
    /// The last moves of addresses from port to port, the oldest first; 32 at most.
    pub moves: Vec<MoveStatus>,
}

/// How full the FDB is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AddressCounts {
    /// The capacity of the FDB.
    pub places: u64,
    /// Learned, and not aged out.
    pub learned: u64,
    /// Assigned by the administrator.
    #[serde(rename = "static")]
    pub fixed: u64,
    /// Assigned by a controller.
    pub controller: u64,
}

impl AddressCounts {
    /// All known addresses.
    pub fn total(&self) -> u64 {
        self.learned + self.fixed + self.controller
    }
}

/// Changes of addresses since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FdbCounters {
    /// Unknown addresses that were learned.
    pub learned: u64,
    /// Addresses that were seen on another port.
    pub moved: u64,
    /// How often an address began to move too often.
    pub dampened: u64,
    /// Frames whose source was not learned, because the port had too many addresses.
    pub limited: u64,
    /// Frames whose source was not learned, because its slots in the table were full.
    pub full: u64,
}

/// An address that was seen on another port than before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MoveStatus {
    /// VLAN, 0 when untagged.
    pub vid: u16,
    /// Address.
    pub mac: String,
    /// The port before.
    pub from: String,
    /// The port where it was seen.
    pub to: String,
    /// Seconds since the move.
    pub age_s: u32,
}
