// SPDX-License-Identifier: MIT OR Apache-2.0
//! Any line as a client's request, as a hello, and as a tunnel's answer: a value that was read can be
//! written and read again, and a refusal is one line.
#![no_main]

use libfuzzer_sys::fuzz_target;
use patchcord::{
    control::message::Answer,
    host::protocol::{Hello, HostLine, Reply, from_line, request_from_line, to_line},
};

fuzz_target!(|line: &[u8]| {
    match request_from_line(line) {
        Ok(request) => {
            let _access = request.verb.access();
            let again = to_line(&request);
            assert_one_line(&again);
            assert_eq!(request_from_line(&again).ok(), Some(request));
        }
        // The error may quote the line; the answer is one line all the same.
        Err((id, error)) => assert_one_line(&to_line(&HostLine::Refused { id, error })),
    }
    if let Ok(hello) = from_line::<Hello>(line) {
        let _common = hello.common();
        assert_eq!(from_line::<Hello>(&to_line(&hello)).ok(), Some(hello));
    }
    if let Ok(answer) = from_line::<Answer>(line) {
        let again = to_line(&Reply::Answer(answer));
        assert_one_line(&again);
        // Numbers may lose their last bits; from then on, the text stays the same.
        let reread: Reply = from_line(&again).expect("what was written can be read");
        assert_eq!(to_line(&reread), again);
    }
});

fn assert_one_line(line: &[u8]) {
    assert_eq!(
        line.iter().position(|&byte| byte == b'\n'),
        Some(line.len() - 1)
    );
}
