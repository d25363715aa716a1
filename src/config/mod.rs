// SPDX-License-Identifier: MIT OR Apache-2.0
//! A tunnel's configuration: from a TOML file to a [`Config`] that is valid by construction.
//!
//! ```text
//! NAME or FILE -> file_of -> Config::load -> text, key files   (load: the only I/O)
//!                                 └> Config::parse -> Config   (all others: pure)
//! ```
//! A [`Config`] needs no further checks. A file with errors yields all of them at once, each with line,
//! column, key and remedy, and without secrets.

mod combinations;
mod device;
mod diff;
mod error;
mod key_files;
mod keys;
mod load;
mod model;
mod name;
mod parse;
mod peer;
mod pipeline;
mod port;
mod schema;
mod section;
mod stations;
mod switch;
mod syntax;
#[cfg(test)]
mod testing;
mod tunnel;
mod unknown;
mod value;
mod vlan;
mod warnings;
mod written;

pub use device::{Backend, BridgeVlans, Carrier, DeviceConfig, Mode};
pub use diff::{ConfigChange, Difference};
pub use error::{ConfigError, ConfigErrors};
pub use key_files::KeyFileError;
pub use keys::SECTIONS;
pub use load::{CONFIG_DIR, file_of, read_key_file};
pub use model::Config;
pub use name::{RESERVED_NAME, tunnel_name};
pub use peer::{Endpoint, PeerConfig};
pub use pipeline::{OffloadChoice, PipelineConfig, PlanChoice};
pub use schema::{Effect, Key, Schema};
pub use switch::SwitchSettings;
pub use tunnel::{CipherChoice, TcpMss, TunnelConfig};
pub use warnings::ConfigWarning;
