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
            let again = request.to_line();
            // There are shorter forms of a request than the one that is written.
            if again.len() <= MAX_REQUEST_BYTES {
                assert_eq!(Request::from_line(&again).ok(), Some(request));
            }
        }
        // The error may repeat what the line says; the answer is one line all the same.
        Err(error) => assert_one_line(&refused(error.to_string())),
    }
    if let Ok(reply) = Reply::from_line(line) {
        let again = reply.to_line();
        assert_one_line(&again);
        // Numbers may lose their last bits; the text is then the same from the first time on.
        let reread = Reply::from_line(&again).expect("what was written can be read");
        assert_eq!(reread.to_line(), again);
    }
});

fn refused(message: String) -> Vec<u8> {
    Reply::Refused { message }.to_line()
}

fn assert_one_line(line: &[u8]) {
    assert_eq!(
        line.iter().position(|&byte| byte == b'\n'),
        Some(line.len() - 1)
    );
}
