// SPDX-License-Identifier: MIT OR Apache-2.0
//! The permissions of users.

use std::collections::BTreeSet;

use tokio::net::unix::UCred;

use crate::control::message::Access;

/// The permissions of users. Root may do everything, and so may the user that the host runs as.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// May read states and events.
    pub observe: Who,
    /// May start and stop tunnels, and send them messages.
    pub control: Who,
    /// May add, change and remove tunnels.
    pub configure: Who,
}

/// Some users and groups.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Who {
    /// User IDs.
    pub users: BTreeSet<u32>,
    /// Group IDs; only the group that a client runs as counts.
    pub groups: BTreeSet<u32>,
}

impl Who {
    fn is_empty(&self) -> bool {
        self.users.is_empty() && self.groups.is_empty()
    }
}

impl Policy {
    /// The mode of the host's socket: open to all users only if the policy names users besides root
    /// and the host's own user.
    pub fn socket_mode(&self) -> u32 {
        let whos = [&self.observe, &self.control, &self.configure];
        match whos.into_iter().all(Who::is_empty) {
            true => 0o600,
            false => 0o666,
        }
    }

    /// Whether the client has any permission.
    pub(super) fn knows(&self, client: &UCred) -> bool {
        let all = [Access::Observe, Access::Control, Access::Configure];
        all.into_iter().any(|access| self.allows(client, access))
    }

    pub(super) fn allows(&self, client: &UCred, access: Access) -> bool {
        let who = match access {
            Access::Observe => &self.observe,
            Access::Control => &self.control,
            Access::Configure => &self.configure,
        };
        let (user, group) = (client.uid(), client.gid());
        let is_ours = user == 0 || user == crate::machine::effective_user();
        is_ours || who.users.contains(&user) || who.groups.contains(&group)
    }
}
