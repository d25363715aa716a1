// SPDX-License-Identifier: MIT OR Apache-2.0
//! A configuration as a value: the settings of the file, and defaults for the keys that it leaves out.
//!
//! Each section is described in a file of its own.

use std::path::PathBuf;

use super::device::DeviceConfig;
use super::peer::PeerConfig;
use super::pipeline::PipelineConfig;
use super::switch::SwitchSettings;
use super::tunnel::TunnelConfig;
use super::written::Written;

/// The whole configuration of a tunnel.
#[derive(Debug)]
pub struct Config {
    /// The file, whose folder is that of relative paths in it.
    pub file: PathBuf,
    /// The stem of the file's name; also names the socket.
    pub name: String,
    /// `[tunnel]`
    pub tunnel: TunnelConfig,
    /// `[device]`
    pub device: DeviceConfig,
    /// Every `[[peer]]`, at least one, in the order of the file.
    pub peers: Vec<PeerConfig>,
    /// `[switch]`
    pub switch: SwitchSettings,
    /// `[pipeline]`
    pub pipeline: PipelineConfig,
    /// The values as the file has them, for [`Config::changes_to`].
    pub(super) written: Written,
}
