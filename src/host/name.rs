// SPDX-License-Identifier: MIT OR Apache-2.0
//! Valid names for tunnels and secrets: the names of their files.

/// The longest name.
pub(super) const MAX_NAME: usize = 64;

/// Whether a tunnel or a secret may have this name: it becomes the name of a file.
pub(super) fn is_name(name: &str) -> bool {
    let is_good = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    name.len() <= MAX_NAME
        && name
            .bytes()
            .next()
            .is_some_and(|first| first.is_ascii_alphanumeric())
        && name.bytes().all(is_good)
}
