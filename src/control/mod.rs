// SPDX-License-Identifier: MIT OR Apache-2.0
//! The control socket: how `show`, `down` and `fdb` reach a running tunnel.
//!
//! ```text
//! patchcord show -> client -> /run/patchcord/NAME.sock -> server -> the control thread
//! ```
//! The directory is open to all (mode 0755), so that anyone can see which tunnels run; the sockets
//! are for their owner only (mode 0600), and the server asks the kernel who is calling.

pub mod client;
pub mod message;
pub mod server;

use std::path::{Path, PathBuf};

/// Where running tunnels keep their sockets.
pub const RUN_DIR: &str = "/run/patchcord";

/// The control socket of the tunnel `name` below `run_dir`, usually [`RUN_DIR`].
pub fn socket_path(run_dir: &Path, name: &str) -> PathBuf {
    run_dir.join(format!("{name}.sock"))
}

/// A request is one line of at most so many bytes, newline included.
pub const MAX_REQUEST_BYTES: usize = 4096;
