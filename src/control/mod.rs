// SPDX-License-Identifier: MIT OR Apache-2.0
//! The state of a running tunnel, the queries to it, and the path of its socket.
//!
//! ```text
//! patchcord show -> host::client -> /run/patchcord/NAME.sock -> host::daemon -> the tunnel
//! ```
//! The directory is open to all (mode 0755), so that any user can see which tunnels run; the sockets
//! are for their owner only (mode 0600), and the daemon asks the kernel for the client's user.

pub mod message;

use std::path::{Path, PathBuf};

/// Where running tunnels keep their sockets.
pub const RUN_DIR: &str = "/run/patchcord";

/// The socket of the tunnel `name` below `run_dir`, usually [`RUN_DIR`].
pub fn socket_path(run_dir: &Path, name: &str) -> PathBuf {
    run_dir.join(format!("{name}.sock"))
}
