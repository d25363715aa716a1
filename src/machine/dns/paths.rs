// SPDX-License-Identifier: MIT OR Apache-2.0
//! Where the resolvers of a machine are found.

use std::{env, path::PathBuf};

use crate::machine::bus::Bus;

/// Where the machine's resolvers are found.
#[derive(Clone, Debug)]
pub(crate) struct ResolverPaths {
    /// The bus of systemd-resolved.
    pub bus: Bus,
    /// The file that programs read.
    pub resolv_conf: PathBuf,
    /// The directories that are searched for programs.
    pub programs: Vec<PathBuf>,
}

impl Default for ResolverPaths {
    fn default() -> Self {
        let path = env::var_os("PATH").unwrap_or_default();
        let administration = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from);
        Self {
            bus: Bus::default(),
            resolv_conf: PathBuf::from("/etc/resolv.conf"),
            programs: env::split_paths(&path).chain(administration).collect(),
        }
    }
}
