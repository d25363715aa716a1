// SPDX-License-Identifier: MIT OR Apache-2.0
//! The changes of a tunnel to a device that outlives it. A stop undoes them, and so does a start
//! after a kill -9: only changes of patchcord, never those of another program.
//!
//! Each change is written down before it is made, as "from what, to what". It is undone only where the
//! device still shows the "to": a later change by another program has the last word. A device that the
//! tunnel created needs no journal: the kernel removes it with the process. Called by `device`;
//! `routing` keeps a record of its own in the same kind of file.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::marker::PhantomData;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tracing::{debug, warn};

use super::file::{self, Lasting};
use super::link::{LinkError, LinkInfo, Links, PortVlans};
use super::options;

/// One value before and after.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Change<T> {
    pub(super) from: T,
    pub(super) to: T,
}

impl<T: PartialEq> Change<T> {
    /// The change that is needed, if any.
    pub(super) fn needed(from: T, to: T) -> Option<Self> {
        (from != to).then_some(Self { from, to })
    }

    /// This change, made after an `earlier` one: undoing both restores the value before the earlier
    /// one.
    pub(super) fn after(self, earlier: Option<Self>) -> Self {
        Self {
            from: earlier.map_or(self.from, |earlier| earlier.from),
            to: self.to,
        }
    }

    /// The value to restore: none, when `now` is not the value that the change made.
    fn undo(self, now: &T) -> Option<T> {
        (*now == self.to).then_some(self.from)
    }
}

/// Everything that was changed on one device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    /// The inode of the network namespace.
    pub(super) namespace: u64,
    /// The device's name; with `index` it distinguishes the device from a later one of the same
    /// name.
    pub(super) device: String,
    pub(super) index: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) mac: Option<Change<[u8; 6]>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) mtu: Option<Change<u32>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) addr_gen_mode: Option<Change<u8>>,
    /// The index of the bridge; 0 is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) controller: Option<Change<u32>>,
    /// Its VLANs in a bridge that it was in before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) vlans: Option<Change<PortVlans>>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) addresses: Vec<IpNet>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) up: Option<Change<bool>>,
    /// Kernel options, by family and name as in `options`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) options: BTreeMap<String, Change<i32>>,
    /// All IPv6 options from before an MTU that took IPv6 away.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) ipv6_options: BTreeMap<String, String>,
    /// Addresses of other programs that a change removed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) lost_addresses: Vec<IpNet>,
}

impl Record {
    /// Nothing changed yet.
    pub(super) fn new(namespace: u64, device: &str, index: u32) -> Self {
        Self {
            namespace,
            device: device.to_owned(),
            index,
            mac: None,
            mtu: None,
            addr_gen_mode: None,
            controller: None,
            vlans: None,
            addresses: Vec::new(),
            up: None,
            options: BTreeMap::new(),
            ipv6_options: BTreeMap::new(),
            lost_addresses: Vec::new(),
        }
    }

    /// Undoes the changes, the latest first. Logs a failure and goes on: the other changes matter
    /// as much.
    pub(super) async fn undo(&self, links: &Links) {
        let link = match links.find(&self.device).await {
            Ok(Some(link)) if link.index == self.index => link,
            Ok(_) => return debug!(device = self.device, "nothing to undo: the device is gone"),
            Err(error) => return warn_left(&self.device, &error),
        };
        let attempt = |result: Result<(), LinkError>| {
            result.unwrap_or_else(|error| warn_left(&self.device, &error));
        };
        if let Some(up) = self.up.and_then(|change| change.undo(&link.up)) {
            attempt(links.set_up(link.index, up).await);
        }
        for &address in self.addresses.iter().rev() {
            attempt(links.remove_address(link.index, address).await.map(drop));
        }
        if let Some(controller) = self.controller_before(&link) {
            attempt(links.set_controller(link.index, controller).await);
        } else if let Some(change) = &self.vlans {
            attempt(undo_vlans(links, link.index, change).await);
        }
        if let Some(mtu) = self.mtu.and_then(|change| change.undo(&link.mtu)) {
            attempt(links.set_mtu(link.index, mtu).await);
        }
        options::restore_ipv6(&self.device, &self.ipv6_options);
        for (option, change) in &self.options {
            attempt(undo_option(&self.device, option, *change));
        }
        if let (Some(change), Some(now)) = (self.addr_gen_mode, link.addr_gen_mode)
            && let Some(mode) = change.undo(&now)
        {
            attempt(links.set_addr_gen_mode(link.index, mode).await);
        }
        for &address in &self.lost_addresses {
            attempt(links.add_address(link.index, address).await.map(drop));
        }
        if let (Some(change), Some(now)) = (self.mac, link.mac)
            && let Some(mac) = change.undo(&now)
        {
            attempt(links.set_mac(link.index, mac).await);
        }
    }

    fn controller_before(&self, link: &LinkInfo) -> Option<u32> {
        self.controller?.undo(&link.controller.unwrap_or(0))
    }
}

async fn undo_vlans(
    links: &Links,
    index: u32,
    change: &Change<PortVlans>,
) -> Result<(), LinkError> {
    let now = links.port_vlans(index).await?;
    match change.clone().undo(&now) {
        Some(vlans) => links.set_port_vlans(index, &now, &vlans).await,
        None => Ok(()),
    }
}

fn undo_option(device: &str, option: &str, change: Change<i32>) -> Result<(), LinkError> {
    let now = options::read(device, option).ok().flatten();
    match now.and_then(|now| change.undo(&now)) {
        Some(value) => set_option(device, option, value),
        None => Ok(()),
    }
}

/// Sets a kernel option of a device.
pub(super) fn set_option(device: &str, option: &str, value: i32) -> Result<(), LinkError> {
    options::write(device, option, value).map_err(|source| LinkError::Refused {
        action: format!("set {} to {value}", options::path(device, option).display()),
        source,
    })
}

fn warn_left(device: &str, error: &LinkError) {
    let source = std::error::Error::source(error).map(ToString::to_string);
    warn!(device, %error, source, "cannot undo a change to the device; undo it by hand");
}

/// The file of one tunnel's [`Record`], or of a record of another kind.
#[derive(Debug)]
pub(super) struct Journal<R = Record> {
    path: PathBuf,
    record: PhantomData<fn() -> R>,
}

impl Journal {
    /// The journal of `tunnel` in the run directory; no file is made yet.
    pub(super) fn new(run_dir: &Path, tunnel: &str) -> Self {
        Self::at(run_dir.join(format!("{tunnel}.journal")))
    }
}

impl<R: Serialize + DeserializeOwned> Journal<R> {
    /// The journal with this path; no file is made yet.
    pub(super) fn at(path: PathBuf) -> Self {
        let record = PhantomData;
        Self { path, record }
    }

    /// The path of the file.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The record of an earlier run. A file that cannot be parsed is logged and counts as absent: a
    /// guess at what to undo could harm the configuration of others.
    pub(super) fn read(&self) -> io::Result<Option<R>> {
        let text = match fs::read_to_string(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            text => text?,
        };
        let record = serde_json::from_str(&text);
        Ok(record
            .inspect_err(|error| warn!(path = %self.path.display(), %error, "cannot parse the journal: what an earlier run changed is not undone"))
            .ok())
    }

    /// Replaces the file. Neither the run directory nor the changes outlive the kernel.
    pub(super) fn write(&self, record: &R) -> io::Result<()> {
        let text = serde_json::to_vec(record)?;
        file::replace(&self.path, &text, 0o600, Lasting::Boot)
    }

    /// Deletes the file, if there is one.
    pub(super) fn clear(&self) -> io::Result<()> {
        file::remove(&self.path)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_record_is_read_back_as_written() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::new(dir.path(), "office");
        assert_eq!(journal.read().unwrap(), None);
        let mut record = Record::new(4_026_531_840, "tap7", 3);
        journal.write(&record).unwrap();
        assert_eq!(journal.read().unwrap().as_ref(), Some(&record));
        record.mac = Some(Change {
            from: [2; 6],
            to: [6; 6],
        });
        record.up = Change::needed(false, true);
        record.addresses = vec![
            "10.0.0.1/24".parse().unwrap(),
            "fd00::1/64".parse().unwrap(),
        ];
        journal.write(&record).unwrap();
        assert_eq!(journal.read().unwrap().as_ref(), Some(&record));
        let mode = fs::metadata(journal.path()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        journal.clear().unwrap();
        journal.clear().unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_mangled_journal_counts_as_none() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::new(dir.path(), "office");
        for text in ["", "{", "[]", r#"{"device":"tap7"}"#] {
            fs::write(journal.path(), text).unwrap();
            assert_eq!(journal.read().unwrap(), None, "{text}");
        }
    }

    #[test]
    fn a_change_is_undone_only_while_it_stands() {
        let change = Change::needed(1500, 9000).unwrap();
        assert_eq!(change.undo(&9000), Some(1500));
        assert_eq!(change.undo(&1400), None, "someone else's MTU");
        assert_eq!(Change::needed(1500, 1500), None);
    }
}
