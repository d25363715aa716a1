// SPDX-License-Identifier: MIT OR Apache-2.0
//! What `patchcord fdb` says about the table of addresses, and what `show` tells of it.
//!
//! Addresses and names are text here, so that what is wrong with one is said by the tunnel, in words
//! for people, and not by the codec.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What is to be done with the table of addresses; fields that may be absent have a default.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum FdbRequest {
    /// Answer with an [`FdbPage`].
    Show(FdbShow),
    /// Assign an address to a port, whatever is known of it.
    Add(FdbAdd),
    /// Forget an address, whatever its origin.
    Del(FdbDel),
    /// Forget what was learned.
    Flush(FdbFlush),
}

/// Which part of the table to show.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct FdbShow {
    /// Where to go on: [`FdbPage::next`], 0 at first.
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

/// An address, and where it shall live.
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
    /// On whose word.
    #[serde(default, skip_serializing_if = "is_default")]
    pub origin: Assigner,
    /// The number under which a controller advertises it (RFC 7432, section 7.7); absent is 0.
    #[serde(default, skip_serializing_if = "is_default")]
    pub sequence: Option<u32>,
}

/// Who assigns an address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Assigner {
    /// The administrator: it neither ages nor moves.
    #[default]
    Static,
    /// A control plane: it does not age, and moves with its station.
    Controller,
}

/// An address to forget.
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

/// Which of the learned addresses to forget; all of them by default.
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

/// A request is no longer when it is written than it was when it was read.
fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// A part of the table.
///
/// An address is always in the same part, so none comes twice. The parts are not of one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FdbPage {
    /// Addresses, in no particular order; there may be none although more parts follow.
    pub entries: Vec<FdbStatus>,
    /// Where the next part begins, if there is one.
    pub next: Option<u32>,
}

/// An address of the table.
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
    /// Whether it moved too often, and moves at a lower rate for now.
    pub dampened: bool,
    /// Whether its port is down, and it is only kept from ports with `spoof-guard`.
    pub bound: bool,
}

/// What the switch has counted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SwitchStatus {
    /// How full the table of addresses is.
    pub addresses: AddressCounts,
    /// What became of addresses since the start.
    pub counters: FdbCounters,
    /// The last moves of addresses from port to port, the oldest first; 32 at most.
    pub moves: Vec<MoveStatus>,
}

/// How full the table of addresses is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AddressCounts {
    /// Addresses there is room for at most.
    pub places: u64,
    /// Learned, and not too old.
    pub learned: u64,
    /// Assigned by the administrator.
    #[serde(rename = "static")]
    pub fixed: u64,
    /// Assigned by a controller.
    pub controller: u64,
}

impl AddressCounts {
    /// All that are known.
    pub fn total(&self) -> u64 {
        self.learned + self.fixed + self.controller
    }
}

/// What became of addresses since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FdbCounters {
    /// Addresses learned that were not known.
    pub learned: u64,
    /// Addresses that turned up on another port.
    pub moved: u64,
    /// How often an address began to move too often.
    pub dampened: u64,
    /// Frames whose source was not learned: too many addresses on the port.
    pub limited: u64,
    /// Frames whose source was not learned: its places in the table were taken.
    pub full: u64,
}

/// An address that was seen on another port than before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MoveStatus {
    /// VLAN, 0 when untagged.
    pub vid: u16,
    /// Address.
    pub mac: String,
    /// Where it lived.
    pub from: String,
    /// Where it was seen.
    pub to: String,
    /// Seconds since then.
    pub age_s: u32,
}
