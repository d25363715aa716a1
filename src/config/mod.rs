// SPDX-License-Identifier: MIT OR Apache-2.0
//! A tunnel's configuration: from a TOML file to a [`Config`] that is valid by construction.
//!
//! ```text
//! NAME or FILE -> file_of -> Config::load -> text, key files   (load: the only I/O)
//!                                 └> Config::parse -> Config   (all others: pure)
//! ```
//! Whoever holds a [`Config`] need not check any of it again. A file that is wrong yields *all* its
//! errors at once, each with line, column, key and remedy, and none with a secret in it.

mod combinations;
mod error;
mod keys;
mod load;
mod model;
mod name;
mod parse;
mod port;
mod section;
mod stations;
mod syntax;
mod value;
mod vlan;
mod warnings;

pub use error::{ConfigError, ConfigErrors};
pub use keys::{Key, SECTIONS, Schema};
pub use load::{CONFIG_DIR, KeyFileError, file_of, read_key_file};
pub use model::{
    Backend, BridgeVlans, Carrier, CipherChoice, Config, DeviceConfig, Endpoint, Mode,
    OffloadChoice, PeerConfig, PipelineConfig, PlanChoice, SwitchSettings, TunnelConfig,
};
pub use name::{RESERVED_NAME, tunnel_name};
pub use warnings::ConfigWarning;
