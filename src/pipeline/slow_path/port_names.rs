// SPDX-License-Identifier: MIT OR Apache-2.0
//! The names of the switch's ports in logs.

use std::sync::Arc;

use patchcord_bridge::PortId;

/// Names of the ports, the TAP first.
#[derive(Clone)]
pub(super) struct PortNames(Arc<[String]>);

impl PortNames {
    pub(super) fn new(names: Vec<String>) -> Self {
        Self(names.into())
    }

    pub(super) fn count(&self) -> usize {
        self.0.len()
    }

    pub(super) fn name(&self, port: PortId) -> &str {
        self.0.get(usize::from(port.0)).map_or("?", |name| name)
    }
}
