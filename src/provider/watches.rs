// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a session watches on the machine for its provider.

use std::{collections::BTreeSet, sync::Mutex};

use patchcord_bridge::MacAddr;
use tokio::sync::watch;

use crate::machine::path::Path;

/// Watches that begin with the first request, and run until the session is to end.
#[derive(Default)]
pub(super) struct Watches {
    pub(super) path: Mutex<Option<watch::Receiver<Path>>>,
    pub(super) groups: Mutex<Option<watch::Receiver<BTreeSet<MacAddr>>>>,
}
