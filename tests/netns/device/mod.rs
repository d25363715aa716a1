// SPDX-License-Identifier: MIT OR Apache-2.0
//! The device on this machine keeps its configuration, whatever other programs do to it; and stations
//! behind the tunnel configure nothing here that the file does not allow.

mod autoconf;
mod keep;
mod port_vlans;
