// SPDX-License-Identifier: MIT OR Apache-2.0
//! `cfg(loom)` for this package only: some dependencies know it, too.

fn main() {
    println!("cargo::rustc-check-cfg=cfg(loom)");
    println!("cargo::rustc-cfg=loom");
}
