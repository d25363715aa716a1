// SPDX-License-Identifier: MIT OR Apache-2.0
//! Any bytes as a frame. One more tag changes nothing.
#![no_main]

use libfuzzer_sys::fuzz_target;
use patchcord_bridge::inspect::{Content, inspect};

// The first byte keeps the corpus valid.
fuzz_target!(|input: (u8, &[u8])| {
    let (_, frame) = input;
    let content = inspect(frame);
    let Some((addresses, rest)) = frame.split_at_checked(12) else {
        assert_eq!(content, Content::Other);
        return;
    };
    let tagged = [addresses, &[0x81, 0, 0, 7], rest].concat();
    let seen = inspect(&tagged);
    // The tag may have exceeded the limit.
    let is_deep = rest.chunks(4).take(3).all(is_tag) && rest.len() >= 12;
    assert!(seen == content || is_deep && seen == Content::HidesUpperLayer);
});

fn is_tag(bytes: &[u8]) -> bool {
    matches!(bytes, [0x81, 0, ..] | [0x88, 0xa8, ..])
}
