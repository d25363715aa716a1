// SPDX-License-Identifier: MIT OR Apache-2.0
//! eBPF: programs by which the kernel spreads frames over the queues of a TAP.

use std::ffi::c_char;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

use super::check;
use super::faults::{self, Call};

/// Loads a program (`bpf(2)`).
const PROG_LOAD: libc::c_long = 5;
/// A program that reads a frame.
const SOCKET_FILTER: u32 = 1;

/// One instruction: operation, registers, distance of a jump, number.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Instruction {
    code: u8,
    registers: u8,
    offset: i16,
    immediate: i32,
}

impl Instruction {
    /// `code` as in linux/bpf.h.
    pub(crate) const fn new(
        code: u8,
        destination: u8,
        source: u8,
        offset: i16,
        immediate: u32,
    ) -> Self {
        Self {
            code,
            registers: source << 4 | destination,
            offset,
            immediate: immediate as i32,
        }
    }
}

/// The front of `union bpf_attr` as PROG_LOAD reads it; the kernel takes the rest for zeroes.
#[repr(C)]
struct LoadRequest {
    program_type: u32,
    count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
}

/// Hands a program to the kernel, which checks it. It lives as long as its descriptor, and whatever
/// it was attached to.
pub(crate) fn load(program: &[Instruction]) -> io::Result<OwnedFd> {
    let count = faults::before(Call::LoadProgram, program.len())?;
    let license: *const c_char = c"Dual MIT/GPL".as_ptr();
    let request = LoadRequest {
        program_type: SOCKET_FILTER,
        count: u32::try_from(count).map_err(io::Error::other)?,
        instructions: program.as_ptr() as u64,
        license: license as u64,
        log_level: 0,
        log_size: 0,
        log: 0,
    };
    // SAFETY: the request and its size agree; it points to `count` instructions, which are laid out
    // as the kernel's, and to a string that ends with NUL. All of them live until the call returns,
    // and the kernel only reads them.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            PROG_LOAD,
            &raw const request,
            size_of::<LoadRequest>(),
        )
    };
    let fd = check(fd as libc::c_int)?;
    // SAFETY: `fd` was just opened and has no other owner.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
