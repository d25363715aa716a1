// SPDX-License-Identifier: MIT OR Apache-2.0
//! A configuration as a value: what the file says, with the defaults in place of what it leaves out.
//!
//! Each section is described in a file of its own.

use super::device::DeviceConfig;
use super::peer::PeerConfig;
use super::pipeline::PipelineConfig;
use super::switch::SwitchSettings;
use super::tunnel::TunnelConfig;

/// Everything that a tunnel is told at start.
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
