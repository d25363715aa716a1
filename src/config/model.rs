// SPDX-License-Identifier: MIT OR Apache-2.0
//! A configuration as a value: the settings of the file, and defaults for the keys that it leaves out.
//!
//! Each section is described in a file of its own.

use super::device::DeviceConfig;
use super::peer::PeerConfig;
use super::pipeline::PipelineConfig;
use super::switch::SwitchSettings;
use super::tunnel::TunnelConfig;

/// The whole configuration of a tunnel.
#[derive(Debug)]
pub struct Config {
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
}
