// SPDX-License-Identifier: MIT OR Apache-2.0
//! Any line as a request and as a reply of the control socket: what is read can be written and read
//! again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use patchcord::control::{
    MAX_REQUEST_BYTES,
    message::{Reply, Request},
};

fuzz_target!(|line: &[u8]| {
    match Request::from_line(line) {
        Ok(request) => {
            assert!(line.len() <= MAX_REQUEST_BYTES);
            let again = Request::from_line(&request.to_line());
            assert_eq!(again.ok(), Some(request));
        }
        Err(error) => assert!(!error.to_string().contains('\n')),
    }
    if let Ok(reply) = Reply::from_line(line) {
        let again = reply.to_line();
        assert_eq!(again.iter().filter(|&&byte| byte == b'\n').count(), 1);
        // Numbers may lose their last bits; the text is then the same from the first time on.
        let reread = Reply::from_line(&again).expect("what was written can be read");
        assert_eq!(reread.to_line(), again);
    }
});
