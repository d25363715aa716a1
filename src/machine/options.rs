// SPDX-License-Identifier: MIT OR Apache-2.0
//! The kernel's options of one interface: files below `/proc/sys/net`.
//!
//! An option is named by its family and its file: `ipv6/accept_ra` of `pc0` is
//! `/proc/sys/net/ipv6/conf/pc0/accept_ra`. The files show the network namespace of the thread that
//! opens them. Called by `device` and `journal`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::{fs, io};

use tracing::debug;

const ROOT: &str = "/proc/sys/net";

/// The path of an option of `device`.
pub(super) fn path(device: &str, option: &str) -> PathBuf {
    let (family, name) = option.split_once('/').unwrap_or(("ipv6", option));
    Path::new(ROOT)
        .join(family)
        .join("conf")
        .join(device)
        .join(name)
}

/// The value of an option; None when the device does not have it, as without IPv6.
pub(super) fn read(device: &str, option: &str) -> io::Result<Option<i32>> {
    match fs::read_to_string(path(device, option)) {
        Ok(text) => Ok(text.trim().parse().ok()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Sets an option.
pub(super) fn write(device: &str, option: &str, value: i32) -> io::Result<()> {
    fs::write(path(device, option), value.to_string())
}

/// All options of IPv6 and of neighbour discovery on `device`. The kernel drops them together with
/// IPv6, when the MTU falls below 1280.
pub(super) fn ipv6_of(device: &str) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    for kind in ["conf", "neigh"] {
        for entry in fs::read_dir(ipv6_dir(kind, device)).into_iter().flatten() {
            let Ok(entry) = entry else { continue };
            // Some cannot be read: `stable_secret` only when it is set.
            if let Ok(value) = fs::read_to_string(entry.path()) {
                let name = entry.file_name().to_string_lossy().into_owned();
                all.insert(format!("{kind}/{name}"), value.trim().to_owned());
            }
        }
    }
    all
}

/// Restores the options that [`ipv6_of`] has read. Writes only those that differ.
pub(super) fn restore_ipv6(device: &str, options: &BTreeMap<String, String>) {
    let now = ipv6_of(device);
    for (option, value) in options {
        if now.get(option) == Some(value) {
            continue;
        }
        let Some((kind, name)) = option.split_once('/') else {
            continue;
        };
        if let Err(error) = fs::write(ipv6_dir(kind, device).join(name), value) {
            debug!(device, option, value, %error, "cannot restore an IPv6 option");
        }
    }
}

fn ipv6_dir(kind: &str, device: &str) -> PathBuf {
    Path::new(ROOT).join("ipv6").join(kind).join(device)
}
